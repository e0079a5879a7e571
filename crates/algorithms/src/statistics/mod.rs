//! What an evaluation reports: means with errors, intervals, comparison tables and ratings.

mod comparison;
mod ratings;
mod summary;

pub use comparison::{Margin, PreferenceCounts, SafetyTable, safety_table, win_tie_lose};
pub use ratings::{Ratings, bradley_terry};
pub use summary::{Interval, MeanWithError, bootstrap_interval, confidence_margin, mean, mean_with_error, quantile};

//! The words that every crate of saddle shares: ids and versions, prompts and rollouts, and the list of problems that
//! a configuration check returns. Plain data; no tensors, no I/O, no clocks.

mod ids;
mod problems;
mod rollout;

pub use ids::{PolicyVersion, PromptOrdinal};
pub use problems::{Problem, Problems};
pub use rollout::{Finish, Prompt, Rollout, ScoredRollout};

/// What some editors write before the first letter of a UTF-8 file. Readers pass over it.
pub const BYTE_ORDER_MARK: &str = "\u{feff}";

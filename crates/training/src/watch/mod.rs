//! What the person who runs a training is told of it: conditions as they begin, last and end, and at the end whether each
//! limit was held.

mod alarm;
mod limit;

pub use alarm::{Alarm, Turn};
pub use limit::{CostFigure, LimitWatch, Verdict};

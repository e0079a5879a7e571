//! The algorithm, one idea a file: returns, off-policy weights, losses, dual controllers, guards and statistics.
//!
//! Two halves with one border. The modules [`returns`], [`weights`], [`shaping`], [`advantage`], [`dual`],
//! [`divergence`], [`normalizer`], [`guards`] and [`statistics`] are pure: slices and numbers in, slices and numbers out, float64
//! inside, no tensors, clocks or randomness of their own. [`losses`] is what needs a gradient, on `tch` tensors.
//!
//! Batches are `[batch, length]`, right-padded, with a mask of the *generated* positions. The pure half takes them
//! flattened row by row together with `length`; one response is a batch of one row. What a masked position holds, not
//! even a NaN, never reaches a result.
//!
//! Bad input is an [`Error`], never a panic. A configuration answers `validate()` with every problem at once.

mod error;
mod real;

pub mod advantage;
pub mod divergence;
pub mod dual;
pub mod guards;
pub mod losses;
pub mod normalizer;
pub mod returns;
pub mod shaping;
pub mod statistics;
pub mod weights;

pub use error::Error;
pub use real::Real;

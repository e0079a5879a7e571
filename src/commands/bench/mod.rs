//! `saddle bench`: measurements of the system itself.

mod decode;
mod faults;
mod throughput;
mod train;

pub(super) use decode::decode;
pub(super) use faults::faults;
pub(super) use throughput::throughput;
pub(super) use train::train;

/// The middle one of `values`; of an even number, the larger of the two in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

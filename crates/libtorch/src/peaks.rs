//! What the machine can do at best: the floors that measurements are held against.

use crate::{LibtorchError, has_bf16_units};
use std::time::Instant;
use tch::{Cuda, Device, Kind, Tensor};

const REPEATS: usize = 8;
/// Far larger than any cache of a CPU.
const READ_NUMBERS: i64 = 64 << 20;
const PRODUCT_SIZE: i64 = 1024;

/// Bytes that can be read from memory in a second, on this thread's threads: the best of some sums over 256 MiB.
///
/// # Errors
/// Fails if the memory cannot be had.
pub fn read_bytes_per_second(device: Device) -> Result<f64, LibtorchError> {
    let numbers = Tensor::f_ones([READ_NUMBERS], (Kind::Float, device))?;
    let seconds = best_seconds(device, || numbers.f_sum(Kind::Float))?;
    Ok((READ_NUMBERS * 4) as f64 / seconds)
}

/// Operations, two for a multiplication and addition, that a large matrix product of `kind` makes in a second; of float32 where
/// the device has no units for bfloat16.
///
/// # Errors
/// Fails if the memory cannot be had.
pub fn product_flops_per_second(device: Device, kind: Kind) -> Result<f64, LibtorchError> {
    let kind = if has_bf16_units(device) { kind } else { Kind::Float };
    let matrix = Tensor::f_ones([PRODUCT_SIZE, PRODUCT_SIZE], (kind, device))?;
    let seconds = best_seconds(device, || matrix.f_matmul(&matrix))?;
    Ok(2.0 * (PRODUCT_SIZE as f64).powi(3) / seconds)
}

fn best_seconds(device: Device, work: impl Fn() -> Result<Tensor, tch::TchError>) -> Result<f64, LibtorchError> {
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = Instant::now();
        let _result = work()?;
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

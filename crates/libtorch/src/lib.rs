//! What `tch` lacks, by a thin C++ shim over libtorch: loading CUDA at run time, intra-op threads per thread,
//! deterministic algorithms, streams, what the loaded library is, a [`decoder`] and its [`kernels`] for decoding on a CPU, [`layers`]
//! for training on one, and [`products`] for both and elsewhere.
//!
//! The shim is a few C++ files, compiled against the libtorch that `make setup` fetched, and one `unsafe` Rust file; the
//! kernels are two more, `decoding.cpp` and `training.cpp`, compiled once for each instruction set. C++ exceptions are caught
//! at the border and become [`LibtorchError`].

mod cuda;
pub mod decoder;
mod error;
mod ffi;
pub mod kernels;
pub mod layers;
pub mod peaks;
pub mod products;
pub mod streams;

pub use cuda::{CudaStatus, device, load_cuda};
pub use error::LibtorchError;

/// The libtorch that this program is written for. [`version`] is the one it runs on.
pub const EXPECTED_VERSION: &str = "2.11.0";

/// More intra-op threads than any machine has use for; a larger number is a slip.
const THREADS_LIMIT: usize = 1024;

/// The version of the libtorch that is loaded, e.g. `2.11.0`.
///
/// # Errors
/// [`LibtorchError::Exception`] where the library does not say.
pub fn version() -> Result<String, LibtorchError> {
    ffi::version()
}

/// The widest vector instructions that libtorch's own kernels use on this CPU: `DEFAULT`, `AVX2`, `AVX512`.
///
/// # Errors
/// [`LibtorchError::Exception`].
pub fn cpu_capability() -> Result<String, LibtorchError> {
    ffi::cpu_capability()
}

/// Whether products of bfloat16 matrices are faster than those of float32 ones on `device`: on every GPU, and on CPUs with
/// AVX-512 BF16.
#[must_use]
pub fn has_bf16_units(device: tch::Device) -> bool {
    device.is_cuda() || ffi::cpu_has_bf16_units()
}

/// Sets how many threads one operation may use when called **from this thread** (OpenMP's and MKL's thread-local
/// counts). Threads that have not used libtorch yet start with the count that was set last anywhere: each compute
/// stage sets its own.
///
/// # Errors
/// [`LibtorchError::ThreadCount`] for 0 and for more than 1024.
pub fn set_threads(threads: usize) -> Result<(), LibtorchError> {
    let refused = LibtorchError::ThreadCount { threads, limit: THREADS_LIMIT };
    match i32::try_from(threads) {
        Ok(count) if (1..=THREADS_LIMIT).contains(&threads) => ffi::set_threads(count),
        _ => Err(refused),
    }
}

/// How many threads one operation may use when called from this thread.
///
/// # Errors
/// [`LibtorchError::Exception`].
pub fn threads() -> Result<usize, LibtorchError> {
    ffi::threads()
}

/// Makes every operation of this process give the same bits for the same input and thread count. Without it,
/// accumulating `index_put` adds in the order its threads come. An operation that has no deterministic form then
/// fails; on CUDA, matrix products also want `CUBLAS_WORKSPACE_CONFIG=:4096:8` in the environment.
///
/// # Errors
/// [`LibtorchError::Exception`].
pub fn use_deterministic_algorithms(enabled: bool) -> Result<(), LibtorchError> {
    ffi::use_deterministic_algorithms(enabled)
}

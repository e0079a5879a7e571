//! Streams of a GPU: what each is given to do runs in order, and beside what the others do. On a CPU all of this is nothing.
//!
//! A thread that enters a stream has its operations run there, until the thread ends. Between streams nothing is ordered by
//! itself, and memory that is given back may be used again at once by the stream that it was taken on. Two rules keep that
//! sound: what one thread makes for others it hands over after [`synchronize`]; and what a thread was handed it lets go of
//! after [`synchronize`].

use crate::{LibtorchError, ffi};
use std::ffi::c_int;
use tch::Device;

/// Gives this thread a stream of its own on `device`, which starts after everything that the device was given before.
///
/// # Errors
/// [`LibtorchError::Exception`] where CUDA fails.
pub fn enter(device: Device) -> Result<(), LibtorchError> {
    let Device::Cuda(index) = device else { return Ok(()) };
    ffi::synchronize_device(index as c_int)?;
    ffi::enter_stream(index as c_int)
}

/// Waits until everything is done that this thread gave `device` to do.
///
/// # Errors
/// [`LibtorchError::Exception`] where CUDA fails, now or in what was waited for.
pub fn synchronize(device: Device) -> Result<(), LibtorchError> {
    let Device::Cuda(index) = device else { return Ok(()) };
    ffi::synchronize_stream(index as c_int)
}

//! What can go wrong at the border to libtorch.

/// A refusal by libtorch or by the machine, with its remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LibtorchError {
    /// The name of a device that no machine has.
    #[error("device {spec:?} is unknown; write \"cpu\", \"cuda\" or \"cuda:0\"")]
    UnknownDevice {
        /// What was asked for.
        spec: String,
    },

    /// The CUDA half of libtorch is absent or cannot be loaded.
    #[error("libtorch has no CUDA here: {reason}; remedy: make setup CUDA=1, or device = \"cpu\"")]
    NoCudaLibrary {
        /// What was looked for, or the dynamic loader's own words.
        reason: String,
    },

    /// Something used libtorch's CUDA interface before the library was loaded; libtorch does not ask twice.
    #[error(
        "libtorch was asked for CUDA before its CUDA library was loaded; remedy: call load_cuda first in the program"
    )]
    CudaAskedTooEarly,

    /// CUDA is there, this device is not.
    #[error(
        "device cuda:{index} does not exist: CUDA shows {devices} device(s); \
         remedy: check nvidia-smi and CUDA_VISIBLE_DEVICES, or device = \"cpu\""
    )]
    NoSuchDevice {
        /// The device that was asked for.
        index: usize,
        /// How many devices there are.
        devices: usize,
    },

    /// A thread count that is zero or beyond reason.
    #[error("{threads} intra-op threads were asked for; it takes 1 to {limit}")]
    ThreadCount {
        /// What was asked for.
        threads: usize,
        /// The largest count allowed.
        limit: usize,
    },

    /// A tensor that a kernel cannot take.
    #[error("a kernel refuses its operands: {message}")]
    Operand {
        /// What is needed, and what was given.
        message: String,
    },

    /// A C++ exception.
    #[error("libtorch failed at {operation}: {message}")]
    Exception {
        /// What was being done.
        operation: &'static str,
        /// The exception's own words.
        message: String,
    },
}

impl From<tch::TchError> for LibtorchError {
    fn from(error: tch::TchError) -> Self {
        Self::Exception { operation: "a tensor operation", message: error.to_string() }
    }
}

//! How the program ends when it does not succeed: one message on standard error, and an exit code that says of what kind
//! the failure is.

use crate::console;
use saddle_data::DataError;
use saddle_libtorch::LibtorchError;
use saddle_lm::LmError;
use saddle_store::StoreError;
use saddle_training::TrainingError;

/// A failure, by what the user can do about it.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line, the configuration or an input is wrong: exit code 2.
    Usage(String),
    /// The machine lacks something: exit code 3.
    Environment(String),
    /// The run itself failed: exit code 4.
    Run(String),
    /// A limit was not kept, and it was required to be: exit code 5.
    LimitBroken(String),
    /// The run was told to leave before its end, and did so in order: exit code 130.
    Interrupted(String),
}

impl Failure {
    /// A mistake in what the user gave.
    pub(crate) fn usage(message: impl std::fmt::Display) -> Self {
        Self::Usage(message.to_string())
    }

    /// Something that went wrong on the way.
    pub(crate) fn run(message: impl std::fmt::Display) -> Self {
        Self::Run(message.to_string())
    }

    /// The same failure, with more to say.
    pub(crate) fn and(mut self, more: &str) -> Self {
        let (Self::Usage(message)
        | Self::Environment(message)
        | Self::Run(message)
        | Self::LimitBroken(message)
        | Self::Interrupted(message)) = &mut self;
        message.push_str("; ");
        message.push_str(more);
        self
    }

    /// Something that the machine lacks.
    pub(crate) fn environment(message: impl std::fmt::Display) -> Self {
        Self::Environment(message.to_string())
    }

    /// Shows the message and gives the exit code.
    pub(crate) fn report(&self) -> u8 {
        console::say(format!("saddle: {self}"));
        match self {
            Self::Usage(_) => 2,
            Self::Environment(_) => 3,
            Self::Run(_) => 4,
            Self::LimitBroken(_) => 5,
            Self::Interrupted(_) => crate::interrupt::EXIT_CODE,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Usage(message)
        | Self::Environment(message)
        | Self::Run(message)
        | Self::LimitBroken(message)
        | Self::Interrupted(message)) = self;
        // libtorch's messages go on with a listing of its own stack.
        out.write_str(message.split("\nException raised from").next().unwrap_or(message))
    }
}

impl From<TrainingError> for Failure {
    fn from(error: TrainingError) -> Self {
        match error {
            TrainingError::Data(error) => error.into(),
            TrainingError::Model(error) => error.into(),
            TrainingError::Device(error) => error.into(),
            TrainingError::Unusable(message) => Self::usage(message),
            error => Self::Run(error.to_string()),
        }
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<LibtorchError> for Failure {
    fn from(error: LibtorchError) -> Self {
        match error {
            LibtorchError::UnknownDevice { .. } | LibtorchError::ThreadCount { .. } => Self::usage(error),
            error => Self::Environment(error.to_string()),
        }
    }
}

impl From<LmError> for Failure {
    fn from(error: LmError) -> Self {
        match error {
            LmError::Torch(_) => Self::Run(error.to_string()),
            LmError::File { action, .. } if !matches!(action, "open" | "read") => Self::Environment(error.to_string()),
            error => Self::Usage(error.to_string()),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io { .. } => Self::Environment(error.to_string()),
            error => Self::Usage(error.to_string()),
        }
    }
}

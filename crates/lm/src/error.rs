//! What can go wrong with a model, its files or its tokenizer. Each message names the file, key, tensor or token that it
//! is about and, where there is one, the remedy.

use saddle_core::Problems;
use saddle_libtorch::LibtorchError;
use std::io;
use std::path::{Path, PathBuf};
use tch::TchError;

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum LmError {
    /// A file or directory could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was attempted: `read`, `write`, ….
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A JSON file does not parse, or a value in it has the wrong type.
    #[error("{}: key {key}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The key at which parsing stopped; `.` for the file as a whole.
        key: String,
        /// What is wrong there, with line and column.
        source: serde_json::Error,
    },
    /// A model configuration that no decoder here can be built from; all its problems at once.
    #[error("{}: this model cannot be used:\n{problems}", path.display())]
    Configuration {
        /// The file.
        path: PathBuf,
        /// Every problem, with its key.
        problems: Problems,
    },
    /// A model directory, or a file of weights in it, is not what its configuration promises.
    #[error("{}: {message}", path.display())]
    Model {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong, and the remedy.
        message: String,
    },
    /// A stored tensor is absent, or has the wrong shape or number type.
    #[error("{}: tensor {tensor}: {message}", path.display())]
    StoredTensor {
        /// The file of weights.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong, and the remedy.
        message: String,
    },
    /// A model was built over parameters that lack a tensor.
    #[error("there is no tensor called {0}: the weights do not fit the model's configuration")]
    MissingTensor(String),
    /// Two things that must agree do not.
    #[error("{0}")]
    Mismatch(String),
    /// A tokenizer could not be loaded, trained or applied.
    #[error("{origin}: {message}")]
    Tokenizer {
        /// Where the tokenizer came from: its file, or how it was made.
        origin: String,
        /// What is wrong, and the remedy.
        message: String,
    },
    /// A chat template does not compile, or refuses a conversation.
    #[error("{origin}: chat template: {}", template_message(source))]
    Template {
        /// Where the template came from: its file, or `built-in`.
        origin: String,
        /// What the template engine said, with the line in the template.
        source: minijinja::Error,
    },
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
    /// A kernel of decoding refused an operation.
    #[error(transparent)]
    Kernel(#[from] LibtorchError),
}

impl LmError {
    /// For `map_err`: wraps an [`io::Error`] with what was attempted on which path.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { action, path: path.to_owned(), source }
    }
}

/// The template's own line and words, then those of whatever caused it.
fn template_message(error: &minijinja::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |message, cause| format!("{message}: {cause}"))
}

//! What can go wrong with a run directory, each with its place and, where there is one, its remedy.

use std::path::{Path, PathBuf};

/// A failure to read or write a run directory.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A new run was asked for where something already is.
    #[error(
        "{} is not empty: name another directory, or give --overwrite to replace the run that is there",
        path.display()
    )]
    Occupied {
        /// The directory.
        path: PathBuf,
    },
    /// A directory that should hold a run has no `config.toml`.
    #[error(
        "{} is not a run directory (it has no config.toml): name the directory that a run was written to",
        path.display()
    )]
    NotARun {
        /// The directory.
        path: PathBuf,
    },
    /// Where a run's directory should be is a file.
    #[error("{} is a file: name a directory for the run", path.display())]
    NotADirectory {
        /// The file.
        path: PathBuf,
    },
    /// Another process writes the run.
    #[error(
        "{} is being written by process {process}: wait for it or stop it, or name another directory",
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process's id, if it could be read.
        process: String,
    },
    /// A line of a JSON-lines file, or a whole JSON file (line 1 onwards), is broken.
    #[error("{}:{line}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A metric's name is already taken in its record.
    #[error("metric `{name}` at step {step} would appear twice in its record: rename one of them")]
    DuplicateMetric {
        /// The name; `step` and `seconds` are always taken.
        name: String,
        /// The record's step.
        step: u64,
    },
    /// An evaluation answer has a score that is not a finite number.
    #[error("response {index} of model `{model}`: its {score} is not a finite number")]
    NonFiniteScore {
        /// The answer's place in the list, from 0.
        index: usize,
        /// The model that gave it.
        model: String,
        /// Which score.
        score: &'static str,
    },
}

impl StoreError {
    /// Names the path that an I/O error is about.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
        let path = path.to_owned();
        move |source| StoreError::Io { path, source }
    }
}

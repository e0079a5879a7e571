//! One process at a time writes a run: its directory holds a locked file with the process's id. The system lets go of the lock when the
//! process ends, however it does.

use crate::StoreError;
use crate::files::is_in_place;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// The file's name in the run's directory.
pub(crate) const LOCK_FILE: &str = "run.lock";

/// Held for as long as the process writes the run.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock of the run in `directory`.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another process has it; I/O errors.
    pub(crate) fn take(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join(LOCK_FILE);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(StoreError::io(&path))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut process = String::new();
            // It is only for the message.
            let _ = file.read_to_string(&mut process);
            return Err(StoreError::Locked { path: directory.to_owned(), process: process.trim().to_owned() });
        }
        if !is_in_place(&file, &path).map_err(StoreError::io(&path))? {
            // Whoever had it has just removed it.
            return Self::take(directory);
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(StoreError::io(&path))?;
        Ok(Self { file, path })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A file that stays is unlocked all the same, once it is closed.
        let _ = std::fs::remove_file(&self.path);
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

//! Reading and writing whole files: written to a temporary name and renamed, so that a reader sees
//! the old file or the new one and never half of either.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::StoreError;

/// Replaces `path` by `contents` in one step.
pub(crate) fn write_whole(path: &Path, contents: &[u8]) -> Result<(), StoreError> {
    let temporary = temporary_name(path);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(StoreError::io(path))
}

/// `path` with `.partial` added to its name: same folder, so the rename stays on one file system.
fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// Whether `path` still is the open `file`: somebody may have removed or replaced it.
pub(crate) fn is_in_place(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// One JSON object a line, each line ended by a newline.
pub(crate) fn to_json_lines<T: Serialize>(records: &[T]) -> Vec<u8> {
    let mut lines = Vec::new();
    for record in records {
        serde_json::to_writer(&mut lines, record)
            .expect("a record of strings and numbers is always writable to memory");
        lines.push(b'\n');
    }
    lines
}

/// Reads one JSON object a line and skips blank lines.
///
/// A last line that has no newline and does not parse is what a killed writer leaves: it is left
/// out. Any other broken line is an error with its place.
pub(crate) fn read_json_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, StoreError> {
    let bytes = fs::read(path).map_err(StoreError::io(path))?;
    let mut records = Vec::new();
    for (index, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice(line) {
            Ok(record) => records.push(record),
            Err(_) if !line.ends_with(b"\n") => break,
            Err(error) => {
                return Err(StoreError::Malformed {
                    path: path.to_owned(),
                    line: index + 1,
                    reason: reason_on_its_line(&error),
                });
            }
        }
    }
    Ok(records)
}

/// serde's reason without its own "at line 1", which counts within the one line that it was given.
fn reason_on_its_line(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match message.strip_suffix(&place) {
        Some(reason) => format!("{reason} (column {})", error.column()),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_replaces_the_old_one_and_leaves_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        write_whole(&path, b"old and longer").unwrap();
        write_whole(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_unwritable_place_is_named_in_the_error() {
        let error = write_whole(Path::new("/nowhere/at/all"), b"").unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/at/all: "), "{error}");
    }
}

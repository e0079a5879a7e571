//! Files from outside, which must be files and not pipes or devices; small ones whole, with a limit on their size; and files
//! that appear under their name only when they are complete.

use crate::LmError;
use saddle_core::BYTE_ORDER_MARK;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

/// Opens a regular file, or a link to one. A pipe would be waited for, and a device read without end.
///
/// # Errors
/// [`LmError::File`] if there is none, [`LmError::Model`] if it is something else.
pub(crate) fn open_file(path: &Path) -> Result<File, LmError> {
    let metadata = fs::metadata(path).map_err(LmError::file("open", path))?;
    if metadata.is_file() {
        return File::open(path).map_err(LmError::file("open", path));
    }
    let message = "is not a regular file; name a file, or copy what it gives into one".into();
    Err(LmError::Model { path: path.to_owned(), message })
}

/// Reads a text file of at most `limit_bytes`, without the byte-order mark that it may begin with.
///
/// # Errors
/// [`LmError::File`] if it cannot be read, [`LmError::Model`] if it is longer or not UTF-8.
pub(crate) fn read_text(path: &Path, limit_bytes: u64) -> Result<String, LmError> {
    let file = open_file(path)?;
    let mut bytes = Vec::new();
    file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(LmError::file("read", path))?;
    let refuse = |message| LmError::Model { path: path.to_owned(), message };
    if bytes.len() as u64 > limit_bytes {
        return Err(refuse(format!("longer than {limit_bytes} bytes, the limit for this kind of file")));
    }
    let text = String::from_utf8(bytes).map_err(|error| refuse(format!("not UTF-8 text: {}", error.utf8_error())))?;
    Ok(text.strip_prefix(BYTE_ORDER_MARK).map(str::to_owned).unwrap_or(text))
}

/// Parses the JSON `text` of the file `path`.
///
/// # Errors
/// [`LmError::Json`] with the key at which parsing stopped.
pub(crate) fn parse_json<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, LmError> {
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text)).map_err(|error| LmError::Json {
        path: path.to_owned(),
        key: error.path().to_string(),
        source: error.into_inner(),
    })
}

/// Writes a file under a temporary name beside `path`, syncs it to the disk and renames it, so that `path` never holds
/// half a file. A file that was there is replaced. Not for two writers of one path at once.
///
/// # Errors
/// [`LmError::File`], or whatever `fill` returns; the temporary file is then removed.
pub(crate) fn write_complete(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), LmError>,
) -> Result<(), LmError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let write = || {
        let mut writer = BufWriter::new(File::create(&partial).map_err(LmError::file("create", &partial))?);
        fill(&mut writer)?;
        let file = writer.into_inner().map_err(|error| LmError::file("write", &partial)(error.into_error()))?;
        file.sync_all().map_err(LmError::file("sync", &partial))?;
        fs::rename(&partial, path).map_err(LmError::file("rename", &partial))
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&partial);
        return written;
    }
    sync_parent(path)
}

/// As [`write_complete`], for text.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<(), LmError> {
    write_complete(path, |writer| writer.write_all(text.as_bytes()).map_err(LmError::file("write", path)))
}

/// Makes a rename in the directory of `path` survive a power failure.
fn sync_parent(path: &Path) -> Result<(), LmError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(LmError::file("sync", parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_partial_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        write_text(&path, "old").unwrap();
        let failed = write_complete(&path, |writer| {
            writer.write_all(b"half").unwrap();
            Err(LmError::Mismatch("stopped in the middle".into()))
        });
        assert_eq!(failed.unwrap_err().to_string(), "stopped in the middle");
        assert_eq!(read_text(&path, 10).unwrap(), "old");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_at_the_limit_is_read_and_one_byte_more_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.txt");
        write_text(&path, "12345").unwrap();
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        let error = read_text(&path, 4).unwrap_err().to_string();
        assert!(error.contains("a.txt") && error.contains("4 bytes"), "{error}");
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        write_text(&path, "\u{feff}{\"a\": \"\u{feff}\"}").unwrap();
        assert_eq!(read_text(&path, 100).unwrap(), "{\"a\": \"\u{feff}\"}");
    }

    #[test]
    fn pipes_devices_and_directories_are_refused_and_links_to_files_read() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe.as_path(), Path::new("/dev/zero"), directory.path()] {
            let error = read_text(path, 100).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()) && error.contains("not a regular file"), "{error}");
        }
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        write_text(&file, "text").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read_text(&link, 100).unwrap(), "text");
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_with_the_name_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bad.json");
        fs::write(&path, b"{\"a\": \"\xff\"}").unwrap();
        let error = read_text(&path, 100).unwrap_err().to_string();
        assert!(error.contains("bad.json") && error.contains("UTF-8"), "{error}");
    }
}

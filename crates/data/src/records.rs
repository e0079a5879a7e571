//! A file as a sequence of JSON values. Owns layouts (`.jsonl`, `.json`, `.gz`) and limits; knows nothing of rows.
//!
//! A byte-order mark at the beginning of a file is passed over. Memory is bounded: a line above its limit is passed over unread, and a file that decompresses to more than the
//! file limit is refused. What concerns one line is a [`BadRow`] beside its line number; what concerns the file is a
//! [`DataError`] that ends the sequence.

use crate::{BadRow, DataError};
use flate2::read::MultiGzDecoder;
use saddle_core::BYTE_ORDER_MARK;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Take};
use std::path::{Path, PathBuf};

/// Upper bounds on what is read.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes in one line of a `.jsonl` file.
    pub(crate) line_bytes: u64,
    /// Bytes in one `.jsonl` file, after decompression.
    pub(crate) lines_bytes: u64,
    /// Bytes in one `.json` file, after decompression; it is held in memory whole.
    pub(crate) array_bytes: u64,
}

/// The limits in use: 16 MiB a line, 16 GiB a file of lines, 1 GiB an array.
pub(crate) const LIMITS: Limits = Limits { line_bytes: 16 << 20, lines_bytes: 16 << 30, array_bytes: 1 << 30 };

/// A line (or row) number, from 1, with the value there or what is wrong with it.
pub(crate) type Record = (u64, Result<Value, BadRow>);

/// The records of one file, in order.
pub(crate) type Records = Box<dyn Iterator<Item = Result<Record, DataError>>>;

/// Whether the name says that the file is one JSON array.
pub(crate) fn is_array(path: &Path) -> bool {
    layout(path) == Some(Layout::Array)
}

#[derive(PartialEq)]
enum Layout {
    Lines,
    Array,
}

fn is_gzip(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gz")
}

fn layout(path: &Path) -> Option<Layout> {
    let inner = if is_gzip(path) { path.with_extension("") } else { path.to_owned() };
    match inner.extension()?.to_str()? {
        "jsonl" => Some(Layout::Lines),
        "json" => Some(Layout::Array),
        _ => None,
    }
}

/// Opens a file.
pub(crate) fn records(path: &Path, limits: Limits) -> Result<Records, DataError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => DataError::Missing { path: path.to_owned() },
        _ => DataError::Io { action: "open", path: path.to_owned(), source },
    };
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(DataError::NotAFile { path: path.to_owned() });
    }
    let layout = layout(path).ok_or_else(|| DataError::UnknownExtension { path: path.to_owned() })?;
    let file = File::open(path).map_err(failed)?;
    let bytes: Box<dyn Read> = if is_gzip(path) { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    match layout {
        Layout::Lines => Ok(Box::new(Lines {
            reader: BufReader::new(capped(bytes, limits.lines_bytes)),
            path: path.to_owned(),
            limits,
            buffer: Vec::new(),
            line: 0,
        })),
        Layout::Array => array(capped(bytes, limits.array_bytes), path, limits.array_bytes),
    }
}

/// One byte more than allowed can be read, so that a limit of nothing left means that the file is too large.
fn capped(bytes: Box<dyn Read>, limit_bytes: u64) -> Take<Box<dyn Read>> {
    bytes.take(limit_bytes + 1)
}

fn array(mut bytes: Take<Box<dyn Read>>, path: &Path, limit_bytes: u64) -> Result<Records, DataError> {
    let mut text = Vec::new();
    bytes.read_to_end(&mut text).map_err(|source| DataError::Io { action: "read", path: path.to_owned(), source })?;
    if bytes.limit() == 0 {
        return Err(DataError::TooLarge { path: path.to_owned(), limit_bytes });
    }
    let values: Vec<Value> = serde_json::from_slice(without_byte_order_mark(&text))
        .map_err(|error| DataError::BrokenArray { path: path.to_owned(), detail: error.to_string() })?;
    Ok(Box::new((1..).zip(values).map(|(row, value)| Ok((row, Ok(value))))))
}

struct Lines {
    reader: BufReader<Take<Box<dyn Read>>>,
    path: PathBuf,
    limits: Limits,
    buffer: Vec<u8>,
    line: u64,
}

impl Lines {
    /// The next line that is not blank; `None` at the end of the file.
    fn record(&mut self) -> Result<Option<Record>, DataError> {
        loop {
            let too_long =
                self.fill().map_err(|source| DataError::Io { action: "read", path: self.path.clone(), source })?;
            if self.reader.get_ref().limit() == 0 {
                let limit_bytes = self.limits.lines_bytes;
                return Err(DataError::TooLarge { path: self.path.clone(), limit_bytes });
            }
            if self.buffer.is_empty() {
                return Ok(None);
            }
            self.line += 1;
            if self.line == 1 {
                let mark = self.buffer.len() - without_byte_order_mark(&self.buffer).len();
                self.buffer.drain(..mark);
            }
            let value = if too_long {
                Err(BadRow::LineTooLong { limit_bytes: self.limits.line_bytes })
            } else {
                parse(&self.buffer)
            };
            if !self.buffer.trim_ascii().is_empty() {
                return Ok(Some((self.line, value)));
            }
        }
    }

    /// Reads one line into the buffer and says whether it is over-long, in which case only its beginning is kept.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.clear();
        let most = self.limits.line_bytes + 1;
        (&mut self.reader).take(most).read_until(b'\n', &mut self.buffer)?;
        let too_long = self.buffer.len() as u64 == most && self.buffer.last() != Some(&b'\n');
        if too_long {
            self.reader.skip_until(b'\n')?;
        }
        Ok(too_long)
    }
}

impl Iterator for Lines {
    type Item = Result<Record, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.record().transpose()
    }
}

/// `bytes` without the byte-order mark that they may begin with.
#[must_use]
pub fn without_byte_order_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK.as_bytes()).unwrap_or(bytes)
}

fn parse(line: &[u8]) -> Result<Value, BadRow> {
    let text = str::from_utf8(line).map_err(|error| BadRow::BrokenUtf8 { valid_bytes: error.valid_up_to() })?;
    serde_json::from_str(text).map_err(|error| BadRow::BrokenJson(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    const SMALL: Limits = Limits { line_bytes: 16, lines_bytes: 100, array_bytes: 100 };

    fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        (directory, path)
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn read(path: &Path, limits: Limits) -> Result<Vec<Record>, DataError> {
        records(path, limits)?.collect()
    }

    #[test]
    fn lines_and_arrays_give_the_same_values_plain_and_compressed() {
        let lines = b"{\"a\":1}\n\n  \n[2]";
        let array = b"[{\"a\":1},\n[2]]";
        for (name, content, numbers) in [
            ("x.jsonl", lines.to_vec(), [1, 4]),
            ("x.jsonl.gz", gzip(lines), [1, 4]),
            ("x.json", array.to_vec(), [1, 2]),
            ("x.json.gz", gzip(array), [1, 2]),
        ] {
            let (_directory, path) = file(name, &content);
            let expected =
                vec![(numbers[0], Ok(serde_json::json!({"a": 1}))), (numbers[1], Ok(serde_json::json!([2])))];
            assert_eq!(read(&path, LIMITS).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_row() {
        let mark = "\u{feff}".as_bytes();
        for (name, content) in [("x.jsonl", &b"\"a\"\n\"b\"\n"[..]), ("x.json", b"[\"a\", \"b\"]")] {
            let marked = [mark, content].concat();
            for (name, content) in [(name.to_owned(), marked.clone()), (format!("{name}.gz"), gzip(&marked))] {
                let (_directory, path) = file(&name, &content);
                assert_eq!(read(&path, LIMITS).unwrap(), [(1, Ok("a".into())), (2, Ok("b".into()))], "{name}");
            }
        }
        let (_directory, path) = file("empty.jsonl", &[mark, b"\n\"a\"\n"].concat());
        assert_eq!(read(&path, LIMITS).unwrap(), [(2, Ok("a".into()))]);
    }

    #[test]
    fn a_line_at_the_limit_is_read_and_one_above_it_is_passed_over() {
        let (_directory, path) = file("x.jsonl", b"\"14 characters\"\n\"15  characters\"\n\"sixteen and more\"\n1\n");
        let values: Vec<_> = read(&path, SMALL).unwrap();
        let long = Err(BadRow::LineTooLong { limit_bytes: 16 });
        assert_eq!(values[0], (1, Ok("14 characters".into())));
        assert_eq!(values[1], (2, Ok("15  characters".into())));
        assert_eq!(values[2..], [(3, long), (4, Ok(1.into()))]);
    }

    #[test]
    fn a_file_that_decompresses_above_the_limit_is_refused_in_either_layout() {
        let fits = [vec![b'['], vec![b' '; 97], b"1]".to_vec()].concat();
        let over = [vec![b'['], vec![b' '; 98], b"1]".to_vec()].concat();
        let (_directory, path) = file("x.json.gz", &gzip(&fits));
        assert_eq!(read(&path, SMALL).unwrap().len(), 1);
        for name in ["x.json.gz", "x.jsonl.gz"] {
            let (_directory, path) = file(name, &gzip(&over));
            assert!(matches!(read(&path, SMALL), Err(DataError::TooLarge { limit_bytes: 100, .. })), "{name}");
        }
    }

    #[test]
    fn broken_utf8_and_broken_json_concern_their_own_line_only() {
        let (_directory, path) = file("x.jsonl", b"\"a\xff\"\n{\"a\":\n3\n");
        let values = read(&path, LIMITS).unwrap();
        assert_eq!(values[0], (1, Err(BadRow::BrokenUtf8 { valid_bytes: 2 })));
        assert!(matches!(values[1], (2, Err(BadRow::BrokenJson(_)))));
        assert_eq!(values[2], (3, Ok(3.into())));
    }

    #[test]
    fn what_is_not_a_readable_file_is_refused_with_its_name() {
        let (directory, broken) = file("broken.json", b"[1, 2");
        let check = |path: PathBuf, expected: &str| {
            let message = read(&path, LIMITS).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains(path.to_str().unwrap()), "{message}");
        };
        check(directory.path().join("absent.jsonl"), "no data file");
        check(directory.path().to_owned(), "is not a file");
        check(broken, "is not one JSON array");
        let (_text, text) = file("x.csv", b"a,b");
        check(text, "cannot tell the layout");
        let (_gzip, not_gzip) = file("x.jsonl.gz", b"{}");
        check(not_gzip, "cannot read");
        let (_cut, cut) = file("cut.jsonl.gz", &gzip(b"{}\n{}\n")[..12]);
        check(cut, "cannot read");
    }
}

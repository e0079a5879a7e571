//! JSONL from a file or standard input, to a file or standard output. Prompts are read as everywhere else: text, transcripts,
//! or lists of turns.

use crate::cli::{ModelArgs, StreamArgs};
use crate::console::say;
use crate::failure::Failure;
use saddle_data::{Turn, prompt_of, without_byte_order_mark};
use saddle_lm::Tokenizer;
use saddle_training::config::RunSection;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write, stdin, stdout};
use std::path::Path;

/// Longest line that is read, in bytes.
const LINE_LIMIT_BYTES: u64 = 16 << 20;

impl ModelArgs {
    /// The device and threads that these arguments ask for.
    pub(super) fn section(&self) -> RunSection {
        RunSection { device: self.device.clone(), threads: self.threads, ..RunSection::default() }
    }
}

impl StreamArgs {
    /// Opens the input, and then the output: an input that cannot be read costs nobody an earlier output.
    pub(super) fn open(&self) -> Result<(Lines, Output), Failure> {
        let lines = Lines::open(self.input.as_deref())?;
        if let (Some(input), Some(output)) = (&self.input, &self.output)
            && let (Ok(one), Ok(other)) = (input.canonicalize(), output.canonicalize())
            && one == other
        {
            let path = output.display();
            return Err(Failure::usage(format!(
                "--output {path}: this is the input, which would be lost; name another file"
            )));
        }
        Ok((lines, Output::create(self.output.as_deref())?))
    }
}

/// Tells what somebody who uses this tokenizer should know.
pub(super) fn say_notices(tokenizer: &Tokenizer) {
    tokenizer.notices().into_iter().for_each(say);
}

/// An object with its line number.
pub(super) type NumberedRow = (u64, Map<String, Value>);

/// Objects, one a line; empty lines are passed over. A text alone is an object with that `prompt`.
pub(super) struct Lines {
    name: String,
    reader: Box<dyn BufRead>,
    line: u64,
}

impl Lines {
    fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let (name, reader): (String, Box<dyn BufRead>) = match path {
            None => ("standard input".to_owned(), Box::new(stdin().lock())),
            Some(path) => {
                let file = File::open(path)
                    .map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
                (path.display().to_string(), Box::new(BufReader::new(file)))
            }
        };
        Ok(Self { name, reader, line: 0 })
    }

    /// The next objects, at most `count`, each with its line number; none at the end.
    pub(super) fn take(&mut self, count: usize) -> Result<Vec<NumberedRow>, Failure> {
        let mut rows = Vec::new();
        while rows.len() < count {
            let mut text = Vec::new();
            let mut limited = self.reader.by_ref().take(LINE_LIMIT_BYTES + 1);
            let read = limited
                .read_until(b'\n', &mut text)
                .map_err(|error| Failure::usage(format!("cannot read {}: {error}", self.name)))?;
            if read == 0 {
                break;
            }
            self.line += 1;
            if read as u64 > LINE_LIMIT_BYTES {
                return Err(Failure::usage(self.place(self.line, format!("longer than {LINE_LIMIT_BYTES} bytes"))));
            }
            let mut text = text.as_slice();
            if self.line == 1 {
                text = without_byte_order_mark(text);
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            let value = serde_json::from_slice(text)
                .map_err(|error| Failure::usage(self.place(self.line, format!("not a JSON object: {error}"))))?;
            match value {
                Value::Object(row) => rows.push((self.line, row)),
                text @ Value::String(_) => rows.push((self.line, Map::from_iter([("prompt".to_owned(), text)]))),
                _ => return Err(Failure::usage(self.place(self.line, "not a JSON object"))),
            }
        }
        Ok(rows)
    }

    /// The conversation in a row's field `prompt`.
    pub(super) fn prompt(&self, line: u64, row: &Map<String, Value>) -> Result<Vec<Turn>, Failure> {
        let prompt = row.get("prompt").map(|prompt| json!({ "prompt": prompt })).unwrap_or(json!({}));
        prompt_of(&prompt).map_err(|reason| Failure::usage(self.place(line, reason)))
    }

    /// The text of a row's field `response`, which may be empty: a model may end an answer before it began.
    pub(super) fn response<'a>(&self, line: u64, row: &'a Map<String, Value>) -> Result<&'a str, Failure> {
        match row.get("response").map(Value::as_str) {
            Some(Some(text)) => Ok(text),
            Some(None) => Err(Failure::usage(self.place(line, "`response` must be a string"))),
            None => Err(Failure::usage(self.place(line, "the field `response` is missing"))),
        }
    }

    /// A number that was computed for a row, as it is written.
    ///
    /// # Errors
    /// A failure of the run if it is not finite: it means nothing, and must not be taken for a number.
    pub(super) fn number(&self, line: u64, name: &str, number: f64) -> Result<Value, Failure> {
        if number.is_finite() {
            return Ok(json!(number));
        }
        Err(Failure::run(
            self.place(line, format!("the {name} is {number}, not a finite number; look at the model's weights")),
        ))
    }

    /// A message with the place that it is about.
    pub(super) fn place(&self, line: u64, message: impl std::fmt::Display) -> String {
        format!("{}:{line}: {message}", self.name)
    }
}

/// Objects, one a line.
pub(super) struct Output(BufWriter<Box<dyn Write>>);

impl Output {
    fn create(path: Option<&Path>) -> Result<Self, Failure> {
        let writer: Box<dyn Write> = match path {
            None => Box::new(stdout().lock()),
            Some(path) => Box::new(
                File::create(path)
                    .map_err(|error| Failure::usage(format!("cannot write {}: {error}", path.display())))?,
            ),
        };
        Ok(Self(BufWriter::new(writer)))
    }

    pub(super) fn write(&mut self, row: &Map<String, Value>) -> Result<(), Failure> {
        serde_json::to_writer(&mut self.0, row)
            .map_err(|error| Failure::run(format!("cannot write the output: {error}")))?;
        self.0.write_all(b"\n").map_err(|error| Failure::run(format!("cannot write the output: {error}")))
    }

    pub(super) fn finish(mut self) -> Result<(), Failure> {
        self.0.flush().map_err(|error| Failure::run(format!("cannot write the output: {error}")))
    }
}

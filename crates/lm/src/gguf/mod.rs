//! GGUF files, as llama.cpp and its tools write them: one file with the configuration, the tokenizer and the weights.
//!
//! The format is that of `ggml/docs/gguf.md`, versions 2 and 3. Opening reads and checks the front only; tensors are then
//! read one at a time and widened to float32, so that the peak is the model and its largest tensor. Nothing is mapped into
//! memory: a file that shrinks while it is read is an error and not a crash.

mod header;
mod model;
mod quantization;
mod tokenizer;
mod value;

pub use header::TensorPlace;
pub use quantization::Quantization;
pub use value::Value;

use crate::LmError;
use crate::files::open_file;
use crate::memory::buffer;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tch::Tensor;

/// An open GGUF file whose front has been read and checked.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: File,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorPlace>,
}

impl GgufFile {
    /// Opens a file and reads its metadata.
    ///
    /// # Errors
    /// [`LmError::File`] if it cannot be read, [`LmError::Model`] if it is not a whole GGUF file,
    /// [`LmError::StoredTensor`] for a tensor that cannot be read.
    pub fn open(path: &Path) -> Result<Self, LmError> {
        let file = open_file(path)?;
        let length = file.metadata().map_err(LmError::file("read", path))?.len();
        let header = header::read(BufReader::new(&file), length, path)?;
        Ok(Self { path: path.to_owned(), file, metadata: header.metadata, tensors: header.tensors })
    }

    /// The metadata, by key.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// Every tensor's place, by its name in the file.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<String, TensorPlace> {
        &self.tensors
    }

    /// The tensor called `name`, as float32 on the CPU.
    ///
    /// # Errors
    /// [`LmError::MissingTensor`] if there is none, [`LmError::File`] if it cannot be read, [`LmError::StoredTensor`] for a
    /// number that is not finite.
    pub fn read(&self, name: &str) -> Result<Tensor, LmError> {
        let place = self.tensors.get(name).ok_or_else(|| LmError::MissingTensor(name.to_owned()))?;
        let mut bytes = buffer(place.bytes, name, &self.path)?;
        self.file.read_exact_at(&mut bytes, place.start).map_err(LmError::file("read", &self.path))?;
        let numbers = place.quantization.dequantize(&bytes);
        if let Some(place) = numbers.iter().position(|number| !number.is_finite()) {
            return Err(LmError::StoredTensor {
                path: self.path.clone(),
                tensor: name.to_owned(),
                message: format!("its number {place} is not finite: the weights are damaged; fetch them again"),
            });
        }
        Ok(Tensor::f_from_slice(&numbers)?.f_view(place.shape.as_slice())?)
    }

    fn refuse(&self, message: impl Into<String>) -> LmError {
        LmError::Model { path: self.path.clone(), message: message.into() }
    }

    /// The value of `key`, if there is one, as `convert` takes it; `expected` says what that is.
    fn optional<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, LmError> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        match convert(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.refuse(format!("metadata key {key} must be {expected}, is {}", value.kind()))),
        }
    }

    /// As [`Self::optional`], for a key that must be there.
    fn required<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<T, LmError> {
        self.optional(key, expected, convert)?
            .ok_or_else(|| self.refuse(format!("has no metadata key {key}; convert the model to GGUF anew")))
    }

    fn text(&self, key: &str) -> Result<Option<&str>, LmError> {
        self.optional(key, "a string", Value::as_text)
    }

    fn size(&self, key: &str) -> Result<Option<usize>, LmError> {
        self.optional(key, "an integer that is not negative", |value| {
            value.as_unsigned().and_then(|size| usize::try_from(size).ok())
        })
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, LmError> {
        self.optional(key, "a bool", Value::as_bool)
    }

    fn float(&self, key: &str) -> Result<Option<f64>, LmError> {
        self.optional(key, "a number", Value::as_float)
    }

    /// A list of strings.
    fn texts(&self, key: &str) -> Result<Vec<&str>, LmError> {
        self.required(key, "an array of strings", |value| value.as_array()?.iter().map(Value::as_text).collect())
    }
}

#[cfg(test)]
mod header_tests;
#[cfg(test)]
mod model_tests;

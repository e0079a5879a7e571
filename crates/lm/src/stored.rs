//! The tensors of a model directory, in one file or in shards, under the names that this crate knows them by.
//!
//! Headers are read first: what is missing, what is too much and what has the wrong shape is known before any tensor is
//! read. Two older ways of naming are understood: checkpoints of a trunk without a head leave out the trunk's prefix, as
//! GPT-2's own do, and the score models of the Safe RLHF authors call their head `score_head`.

use crate::files::{parse_json, read_text};
use crate::layout::{LANGUAGE_MODEL_HEAD, SCORE_HEAD};
use crate::weights::SafetensorsFile;
use crate::{Architecture, LmError};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use tch::{Device, Tensor};

/// The weights in a model directory.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// The list of the files that large weights are spread over.
pub const WEIGHTS_INDEX_FILE: &str = "model.safetensors.index.json";

const INDEX_LIMIT_BYTES: u64 = 16 << 20;
/// Files that one model may be spread over; each is held open.
const SHARDS_LIMIT: usize = 512;
/// Weights as Python objects: reading them can run code, so they never are.
const PICKLES: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// The head of a score model as the Safe RLHF authors name it.
const SCORE_HEAD_ALIAS: &str = "score_head.weight";
/// What the running moments of such a score model are called.
pub(crate) const NORMALIZER_PREFIX: &str = "normalizer.";

/// The open files of one model's weights.
#[derive(Debug)]
pub(crate) struct StoredWeights {
    /// The file that messages about the whole name.
    path: PathBuf,
    files: Vec<SafetensorsFile>,
    /// By the name that this crate knows a tensor by: its file, and its name there.
    places: BTreeMap<String, (usize, String)>,
}

impl StoredWeights {
    /// Whether `directory` holds weights in a format that is read.
    pub(crate) fn are_in(directory: &Path) -> bool {
        [WEIGHTS_FILE, WEIGHTS_INDEX_FILE].iter().any(|name| directory.join(name).is_file())
    }

    /// Opens the weights in `directory` and reads their headers.
    ///
    /// # Errors
    /// [`LmError::Model`] if there are none in a format that is read, or the shards do not belong together; as
    /// [`read_safetensors`](crate::read_safetensors).
    pub(crate) fn open(directory: &Path, architecture: Architecture) -> Result<Self, LmError> {
        let single = directory.join(WEIGHTS_FILE);
        let index = directory.join(WEIGHTS_INDEX_FILE);
        let (path, files) = if single.is_file() {
            let files = vec![SafetensorsFile::open(&single)?];
            (single, files)
        } else if index.is_file() {
            let files = open_shards(directory, &index)?;
            (index, files)
        } else {
            return Err(no_weights(directory));
        };
        let mut stored = Self { path, files, places: BTreeMap::new() };
        stored.name_tensors(architecture.trunk_prefix())?;
        Ok(stored)
    }

    /// The file that messages about the weights as a whole name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// The file and shape of the tensor `name`, if there is one.
    pub(crate) fn find(&self, name: &str) -> Option<(&Path, Vec<i64>)> {
        let (file, stored) = self.places.get(name)?;
        Some((self.files[*file].path(), self.files[*file].shape(stored)))
    }

    /// Reads the tensor `name`.
    ///
    /// # Errors
    /// [`LmError::MissingTensor`] if there is none; as [`SafetensorsFile::read`].
    pub(crate) fn read(&self, name: &str, device: Device) -> Result<Tensor, LmError> {
        let (file, stored) = self.place(name)?;
        file.read(stored, device)
    }

    /// How many bytes the tensors `names` take in their files; those that are missing none.
    pub(crate) fn size_bytes<'a>(&self, names: impl Iterator<Item = &'a str>) -> u64 {
        let places = names.filter_map(|name| self.place(name).ok());
        places.map(|(file, stored)| file.size_bytes(stored) as u64).sum()
    }

    /// Whether a language-model head is stored that is not the tensor `embedding` once more.
    ///
    /// # Errors
    /// [`LmError::File`] if the two cannot be read.
    pub(crate) fn has_own_head(&self, embedding: &str) -> Result<bool, LmError> {
        let (Ok((head_file, head)), Ok((file, embedding))) = (self.place(LANGUAGE_MODEL_HEAD), self.place(embedding))
        else {
            return Ok(false);
        };
        Ok(head_file.shape(head) != file.shape(embedding) || head_file.bytes(head)? != file.bytes(embedding)?)
    }

    /// The file of the tensor `name`, and its name there.
    fn place(&self, name: &str) -> Result<(&SafetensorsFile, &str), LmError> {
        let (file, stored) = self.places.get(name).ok_or_else(|| LmError::MissingTensor(name.to_owned()))?;
        Ok((&self.files[*file], stored))
    }

    fn name_tensors(&mut self, prefix: &str) -> Result<(), LmError> {
        let has_prefix = self.files.iter().flat_map(SafetensorsFile::names).any(|name| name.starts_with(prefix));
        for (index, file) in self.files.iter().enumerate() {
            for stored in file.names() {
                let name = match stored {
                    SCORE_HEAD_ALIAS => SCORE_HEAD.to_owned(),
                    _ if has_prefix || is_beside_the_trunk(stored) => stored.to_owned(),
                    _ => format!("{prefix}{stored}"),
                };
                if let Some((other, _)) = self.places.insert(name, (index, stored.to_owned())) {
                    return Err(LmError::StoredTensor {
                        path: file.path().to_owned(),
                        tensor: stored.to_owned(),
                        message: format!("is in {} too; fetch the model again", self.files[other].path().display()),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Whether a tensor of this name never stands in the trunk.
fn is_beside_the_trunk(name: &str) -> bool {
    name == LANGUAGE_MODEL_HEAD
        || name.starts_with(NORMALIZER_PREFIX)
        || name.starts_with("score.")
        || name.starts_with("score_head.")
}

fn open_shards(directory: &Path, path: &Path) -> Result<Vec<SafetensorsFile>, LmError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let refuse = |message: String| LmError::Model { path: path.to_owned(), message };
    let index: Index = parse_json(&read_text(path, INDEX_LIMIT_BYTES)?, path)?;
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    if shards.is_empty() || shards.len() > SHARDS_LIMIT {
        return Err(refuse(format!("names {} shards; 1 to {SHARDS_LIMIT} can be read", shards.len())));
    }
    let open = |shard: &&String| {
        if Path::new(shard).file_name() != Some(OsStr::new(shard)) {
            return Err(refuse(format!("names the shard {shard:?}, which is not a file of this directory")));
        }
        SafetensorsFile::open(&directory.join(shard))
    };
    shards.iter().map(open).collect()
}

fn no_weights(directory: &Path) -> LmError {
    let pickle = PICKLES.iter().find(|name| directory.join(name).is_file());
    let message = match pickle {
        Some(name) => format!(
            "holds its weights as {name}, a pickle, which can run code when it is read and is never read here; convert \
             it where you trust it: python -c \"from transformers import AutoModel; \
             AutoModel.from_pretrained('{}').save_pretrained('OUT', safe_serialization=True)\" with the model's own class",
            directory.display()
        ),
        None => format!(
            "holds neither {WEIGHTS_FILE} nor {WEIGHTS_INDEX_FILE}; weights in other formats must be converted to safetensors"
        ),
    };
    LmError::Model { path: directory.to_owned(), message }
}

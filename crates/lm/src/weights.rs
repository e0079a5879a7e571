//! Named tensors to and from `.safetensors` files, and the hash that says whether two sets of weights are the same.
//!
//! Reading takes the header first and then one tensor at a time, so the peak is the model and its largest tensor. A file
//! is input from outside: its header is limited in size, and its offsets must cover the file exactly, before any memory
//! is taken for a tensor. Writing is deterministic, byte for byte, and never leaves half a file under the file's name.
//! A number that is not finite is neither read nor written: what a model computes with one means nothing.
//! Tensors are stored little-endian, which is the byte order of every machine that libtorch is built for.

use crate::LmError;
use crate::files::{open_file, write_complete};
use crate::finite::first_not_finite;
use crate::memory::buffer;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// The longest header that is read: enough for 100,000 tensors, little enough to hold at once.
const HEADER_LIMIT_BYTES: u64 = 16 << 20;

const LENGTH_BYTES: u64 = 8;

/// Reads all tensors of a file to `device`, in the number type they are stored in: f32, f16, bf16 or i64.
///
/// # Errors
/// [`LmError::File`] if the file cannot be read, [`LmError::Model`] if it is not a whole safetensors file,
/// [`LmError::StoredTensor`] for a number type that is not supported, and for a number that is not finite.
pub fn read_safetensors(path: &Path, device: Device) -> Result<BTreeMap<String, Tensor>, LmError> {
    let file = SafetensorsFile::open(path)?;
    file.names().map(|name| Ok((name.to_owned(), file.read(name, device)?))).collect()
}

/// An open file of weights whose header has been checked: its offsets cover the file exactly.
#[derive(Debug)]
pub(crate) struct SafetensorsFile {
    path: PathBuf,
    file: File,
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

impl SafetensorsFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// [`LmError::File`] if the file cannot be read, [`LmError::Model`] if it is not a whole safetensors file.
    pub(crate) fn open(path: &Path) -> Result<Self, LmError> {
        let mut file = open_file(path)?;
        let length = file.metadata().map_err(LmError::file("read", path))?.len();
        let (data_start, header) = read_header(&mut file, length, path)?;
        let tensors = header.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        Ok(Self { path: path.to_owned(), file, data_start, tensors })
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its tensors, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of the tensor `name`, which must be one of [`Self::names`].
    pub(crate) fn shape(&self, name: &str) -> Vec<i64> {
        self.tensors[name].shape.iter().map(|&size| size as i64).collect()
    }

    /// The bytes of the tensor `name`, which must be one of [`Self::names`].
    ///
    /// # Errors
    /// [`LmError::File`] if they cannot be read, [`LmError::Model`] if there is no memory for them.
    pub(crate) fn bytes(&self, name: &str) -> Result<Vec<u8>, LmError> {
        let (start, end) = self.tensors[name].data_offsets;
        let mut bytes = buffer(end - start, name, &self.path)?;
        let place = self.data_start + start as u64;
        self.file.read_exact_at(&mut bytes, place).map_err(LmError::file("read", &self.path))?;
        Ok(bytes)
    }

    /// How many bytes the tensor `name` takes, which must be one of [`Self::names`].
    pub(crate) fn size_bytes(&self, name: &str) -> usize {
        let (start, end) = self.tensors[name].data_offsets;
        end - start
    }

    /// Reads the tensor `name`, which must be one of [`Self::names`].
    ///
    /// # Errors
    /// As [`Self::bytes`]; [`LmError::StoredTensor`] for a number type that is not supported, and for a number that is not
    /// finite.
    pub(crate) fn read(&self, name: &str, device: Device) -> Result<Tensor, LmError> {
        let refuse = |message| LmError::StoredTensor { path: self.path.clone(), tensor: name.to_owned(), message };
        let dtype = self.tensors[name].dtype;
        let kind = kind_of(dtype)
            .ok_or_else(|| refuse(format!("is stored as {dtype}; convert it to F32, F16, BF16 or I64")))?;
        let bytes = self.bytes(name)?;
        if let Some(place) = first_not_finite(&bytes, kind) {
            return Err(refuse(format!("its number {place} is not finite: the weights are damaged; fetch them again")));
        }
        Ok(Tensor::f_from_data_size(&bytes, &self.shape(name), kind)?.f_to_device(device)?)
    }
}

/// Where the tensors begin, and what is said of them.
fn read_header(reader: &mut impl Read, file_length: u64, path: &Path) -> Result<(u64, Metadata), LmError> {
    let refuse = |message: String| LmError::Model { path: path.to_owned(), message };
    if file_length < LENGTH_BYTES {
        return Err(refuse(format!("{file_length} bytes long, too short for a safetensors file; fetch it again")));
    }
    let mut prefix = [0; LENGTH_BYTES as usize];
    reader.read_exact(&mut prefix).map_err(LmError::file("read", path))?;
    let header_length = u64::from_le_bytes(prefix);
    if header_length > HEADER_LIMIT_BYTES {
        return Err(refuse(format!(
            "claims a header of {header_length} bytes, above the limit of {HEADER_LIMIT_BYTES}: not a safetensors file"
        )));
    }
    let data_start = LENGTH_BYTES + header_length;
    if data_start > file_length {
        return Err(refuse(format!(
            "claims a header of {header_length} bytes but is only {file_length} bytes long: cut short; fetch it again"
        )));
    }
    let mut header = vec![0; header_length as usize];
    reader.read_exact(&mut header).map_err(LmError::file("read", path))?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| refuse(format!("its header is damaged: {error}")))?;
    let (promised, present) = (metadata.data_len() as u64, file_length - data_start);
    if promised != present {
        return Err(refuse(format!(
            "its header promises {promised} bytes of tensors, {present} are there: cut short or damaged; fetch it again"
        )));
    }
    Ok((data_start, metadata))
}

/// Writes `tensors`, from whichever device they are on, and `metadata` to a file. The file appears under its name when it
/// is complete and on the disk. Equal input gives equal bytes.
///
/// # Errors
/// [`LmError::File`] if it cannot be written, [`LmError::StoredTensor`] for a repeated name, a reserved one, a number type
/// other than f32, f16, bf16 and i64, or a number that is not finite.
pub fn write_safetensors(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<(), LmError> {
    let refuse = |tensor: &str, message: String| LmError::StoredTensor {
        path: path.to_owned(),
        tensor: tensor.to_owned(),
        message,
    };
    let mut ordered = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let kind = tensor.f_kind()?;
        let dtype = dtype_of(kind).ok_or_else(|| {
            refuse(name, format!("is of kind {kind:?}; convert it to Float, Half, BFloat16 or Int64 before saving"))
        })?;
        ordered.push((dtype, name.as_str(), tensor));
    }
    // Wider numbers first, as the format's own writer has it, so that each tensor starts at a multiple of its width.
    ordered.sort_by(|(left, left_name, _), (right, right_name, _)| right.cmp(left).then(left_name.cmp(right_name)));

    let mut header = Header { metadata, tensors: BTreeMap::new() };
    let mut offset = 0;
    for (dtype, name, tensor) in &ordered {
        let shape = tensor.size().iter().map(|&size| size as usize).collect();
        let end = offset + tensor.numel() * dtype.bitsize() / 8;
        let info = TensorInfo { dtype: *dtype, shape, data_offsets: (offset, end) };
        if *name == "__metadata__" || header.tensors.insert(name, info).is_some() {
            return Err(refuse(name, "occurs twice or is reserved; every tensor needs a name of its own".into()));
        }
        offset = end;
    }
    let mut header = serde_json::to_vec(&header).expect("names, shapes and offsets always serialise");
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');

    write_complete(path, |writer| {
        let mut write = |bytes: &[u8]| writer.write_all(bytes).map_err(LmError::file("write", path));
        write(&(header.len() as u64).to_le_bytes())?;
        write(&header)?;
        ordered.iter().try_for_each(|(_, name, tensor)| {
            let bytes = tensor_bytes(tensor)?;
            match first_not_finite(&bytes, tensor.f_kind()?) {
                Some(place) => Err(refuse(name, format!("its number {place} is not finite, so it is not written"))),
                None => write(&bytes),
            }
        })
    })
}

/// The header as it is stored: `{"__metadata__": {…}, name: {dtype, shape, data_offsets}, …}`.
#[derive(Serialize)]
struct Header<'a> {
    #[serde(rename = "__metadata__")]
    metadata: &'a BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<&'a str, TensorInfo>,
}

/// The weights hash: SHA-256, in hexadecimal, over each tensor's name, number type, shape and bytes, in the order of the
/// names. Two sets of weights have the same hash exactly when they are the same bit for bit, wherever they are held.
///
/// # Errors
/// [`LmError::Mismatch`] for a number type that cannot be stored; else if libtorch fails.
pub fn sha256_of_tensors<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<String, LmError> {
    let mut ordered: Vec<(&str, &Tensor)> = tensors.into_iter().collect();
    ordered.sort_by_key(|(name, _)| *name);
    let mut hash = Sha256::new();
    for (name, tensor) in ordered {
        let kind = tensor.f_kind()?;
        let dtype = dtype_of(kind).ok_or_else(|| {
            LmError::Mismatch(format!("tensor {name} is of kind {kind:?}, which has no weights hash"))
        })?;
        // Each part is preceded by its length, so that no two different lists give the same input.
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        let description = format!("{dtype} {:?}", tensor.size());
        hash.update((description.len() as u64).to_le_bytes());
        hash.update(description);
        hash.update(tensor_bytes(tensor)?);
    }
    Ok(format!("{:x}", hash.finalize()))
}

/// A tensor's numbers in row-major order, as stored.
pub(crate) fn tensor_bytes(tensor: &Tensor) -> Result<Vec<u8>, LmError> {
    let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut bytes = vec![0; tensor.numel() * tensor.f_kind()?.elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::I64 => Some(Kind::Int64),
        _ => None,
    }
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    match kind {
        Kind::Float => Some(Dtype::F32),
        Kind::Half => Some(Dtype::F16),
        Kind::BFloat16 => Some(Dtype::BF16),
        Kind::Int64 => Some(Dtype::I64),
        _ => None,
    }
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;

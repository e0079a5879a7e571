use super::*;
use std::fs;
use std::path::PathBuf;

fn example() -> Vec<(String, Tensor)> {
    let numbers = Tensor::from_slice(&[1.0f32, -2.5, 3.25, 0.0, f32::MIN_POSITIVE, 6e4]).reshape([2, 3]);
    vec![
        ("half".into(), numbers.to_kind(Kind::Half)),
        ("transposed".into(), numbers.tr()),
        ("brain".into(), numbers.to_kind(Kind::BFloat16)),
        ("steps".into(), Tensor::from_slice(&[i64::MIN, 7])),
        ("scalar".into(), Tensor::from(2.0f32)),
        ("empty".into(), Tensor::zeros([0, 4], (Kind::Float, Device::Cpu))),
        ("full".into(), numbers),
    ]
}

fn metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_owned(), "pt".to_owned()), ("a".to_owned(), "b \"quoted\"".to_owned())])
}

fn hash(tensors: &[(String, Tensor)]) -> String {
    sha256_of_tensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap()
}

fn written(directory: &tempfile::TempDir) -> (PathBuf, Vec<u8>) {
    let path = directory.path().join("model.safetensors");
    write_safetensors(&path, &example(), &metadata()).unwrap();
    let bytes = fs::read(&path).unwrap();
    (path, bytes)
}

/// Writes `bytes` as a file, reads it as weights, and returns the error, which must name the file.
fn refusal(bytes: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bad.safetensors");
    fs::write(&path, bytes).unwrap();
    let error = read_safetensors(&path, Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("bad.safetensors"), "{error}");
    error
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

#[test]
fn tensors_survive_a_round_trip_in_their_own_number_type() {
    let directory = tempfile::tempdir().unwrap();
    let (path, _) = written(&directory);
    let read = read_safetensors(&path, Device::Cpu).unwrap();
    assert_eq!(read.len(), example().len());
    for (name, tensor) in example() {
        assert_eq!((read[&name].kind(), read[&name].size()), (tensor.kind(), tensor.size()), "{name}");
        assert!(read[&name].equal(&tensor), "{name}");
    }
}

#[test]
fn equal_tensors_give_equal_bytes_whatever_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let (path, first) = written(&directory);
    let reversed: Vec<_> = example().into_iter().rev().collect();
    write_safetensors(&path, &reversed, &metadata()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), first);
}

#[test]
fn the_published_reader_accepts_what_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let (_, bytes) = written(&directory);
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["a"], "b \"quoted\"");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(tensors.tensor("scalar").unwrap().data(), 2.0f32.to_le_bytes());
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (_, bytes) = written(&directory);
    for length in [0, 7, 8, 20, bytes.len() / 2, bytes.len() - 1] {
        refusal(&bytes[..length]);
    }
    assert!(refusal(&bytes[..bytes.len() - 1]).contains("cut short"));
}

#[test]
fn bytes_after_the_last_tensor_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (_, bytes) = written(&directory);
    assert!(refusal(&[bytes.as_slice(), b"x"].concat()).contains("promises"));
}

#[test]
fn a_header_longer_than_the_file_or_the_limit_is_refused_before_memory_is_taken() {
    let error = refusal(&[&5_000u64.to_le_bytes()[..], b"{}"].concat());
    assert!(error.contains("5000 bytes"), "{error}");
    let error = refusal(&[&u64::MAX.to_le_bytes()[..], b"{}"].concat());
    assert!(error.contains("limit"), "{error}");
}

#[test]
fn hostile_headers_are_refused() {
    for header in [
        "{\"a\": 3}",
        "not json",
        "{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [4, 8]}}",
        "{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [8, 4]}}",
        "{\"a\": {\"dtype\": \"F32\", \"shape\": [3], \"data_offsets\": [0, 8]}}",
        "{\"a\": {\"dtype\": \"F32\", \"shape\": [4294967296, 4294967296, 16], \"data_offsets\": [0, 8]}}",
        "{\"a\": {\"dtype\": \"F32\", \"shape\": [-2], \"data_offsets\": [0, 8]}}",
    ] {
        refusal(&with_header(header, &[0; 8]));
    }
    assert!(refusal(&[&4u64.to_le_bytes()[..], &[b'{', 0xff, 0xfe, b'}']].concat()).contains("header"));
}

#[test]
fn a_number_type_that_is_not_supported_is_named_with_its_tensor() {
    let header = "{\"mask\": {\"dtype\": \"U8\", \"shape\": [8], \"data_offsets\": [0, 8]}}";
    let error = refusal(&with_header(header, &[0; 8]));
    assert!(error.contains("tensor mask") && error.contains("U8"), "{error}");
    let directory = tempfile::tempdir().unwrap();
    let double = [("wide".to_owned(), Tensor::from_slice(&[1.0f64]))];
    let error = write_safetensors(&directory.path().join("x"), &double, &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("tensor wide") && error.contains("Double"), "{error}");
}

#[test]
fn a_repeated_name_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let twice = [("w".to_owned(), Tensor::from(1.0f32)), ("w".to_owned(), Tensor::from(2.0f32))];
    let error = write_safetensors(&directory.path().join("x"), &twice, &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("tensor w"), "{error}");
}

#[test]
fn the_weights_hash_sees_names_types_shapes_and_every_bit_but_not_order_or_strides() {
    let original = hash(&example());
    let reversed: Vec<_> = example().into_iter().rev().collect();
    assert_eq!(hash(&reversed), original);
    let dense: Vec<_> = example().into_iter().map(|(name, tensor)| (name, tensor.contiguous())).collect();
    assert_eq!(hash(&dense), original);
    let changed = |index: usize, change: &dyn Fn(&mut (String, Tensor))| {
        let mut tensors = example();
        change(&mut tensors[index]);
        hash(&tensors)
    };
    assert_ne!(changed(6, &|entry| entry.0 = "other".into()), original);
    assert_ne!(changed(6, &|entry| entry.1 = entry.1.reshape([3, 2])), original);
    assert_ne!(changed(6, &|entry| entry.1 = entry.1.to_kind(Kind::Half)), original);
    assert_ne!(changed(6, &|entry| entry.1 = entry.1.neg()), original);
}

#[test]
fn the_weights_hash_of_a_known_tensor_is_pinned() {
    let known = [("w".to_owned(), Tensor::from_slice(&[1.0f32, 2.0]))];
    assert_eq!(hash(&known), "0e06ccacb1c376b02cf16c04af8c9b7a3464b1f55a6c52991c636a9cdb65c5ee");
}

use super::*;
use crate::card::{ModelKind, Normalizer};
use crate::small_model::{config, fresh, tokenizer};
use crate::{Architecture, WEIGHTS_INDEX_FILE, policy_shapes, score_shapes, train_bpe, trunk_shapes};
use tempfile::TempDir;

fn write(weights: &[(String, Tensor)], kind: ModelKind) -> (TempDir, ModelDirectory) {
    let parent = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    let card = ModelCard::new(kind, tokenizer.fingerprint(), None);
    let model = ModelDirectory::write(parent.path().join("deep/model"), &config(), weights, &tokenizer, &card).unwrap();
    (parent, model)
}

/// The error of reading, as a policy, a directory that holds `weights`.
fn refusal(weights: &[(String, Tensor)]) -> String {
    let (_parent, model) = write(weights, ModelKind::Policy);
    let error = model.weights(&policy_shapes(&config()), Device::Cpu).unwrap_err().to_string();
    assert!(error.contains(WEIGHTS_FILE), "{error}");
    error
}

#[test]
fn a_model_survives_a_round_trip() {
    let shapes = score_shapes(&config(), 1);
    let parent = tempfile::tempdir().unwrap();
    let (weights, tokenizer) = (fresh(&shapes), tokenizer());
    let normalizer = Normalizer { mean: 0.25, std: 2.0 };
    let card = ModelCard::new(ModelKind::Reward, tokenizer.fingerprint(), Some(normalizer));
    ModelDirectory::write(parent.path().join("reward"), &config(), &weights, &tokenizer, &card).unwrap();

    let model = ModelDirectory::open(parent.path().join("reward")).unwrap();
    assert_eq!(model.config().unwrap(), config());
    assert_eq!(model.card().unwrap(), Some(card));
    assert_eq!(model.tokenizer().unwrap().fingerprint(), tokenizer.fingerprint());
    let read = model.weights(&shapes, Device::Cpu).unwrap();
    assert_eq!(read.keys().collect::<Vec<_>>(), weights.iter().map(|(name, _)| name).collect::<Vec<_>>());
    assert!(weights.iter().all(|(name, tensor)| read[name].equal(tensor)));
}

#[test]
fn a_score_model_can_start_from_the_trunk_of_a_policy() {
    let (_parent, model) = write(&fresh(&policy_shapes(&config())), ModelKind::Policy);
    let trunk = model.weights(&trunk_shapes(&config()), Device::Cpu).unwrap();
    assert!(!trunk.contains_key("lm_head.weight") && trunk.contains_key("model.norm.weight"));
}

#[test]
fn a_tied_head_and_rotary_tables_that_were_stored_all_the_same_are_left_out() {
    let tied = DecoderConfig { tie_word_embeddings: true, ..config() };
    let mut weights = fresh(&policy_shapes(&config()));
    weights.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), Tensor::from_slice(&[1.0f32, 0.01])));
    let (_parent, model) = write(&weights, ModelKind::Policy);
    let read = model.weights(&policy_shapes(&tied), Device::Cpu).unwrap();
    assert_eq!(read.len(), policy_shapes(&tied).len());
}

#[test]
fn missing_tensors_are_counted_and_the_first_ones_named() {
    let mut weights = fresh(&policy_shapes(&config()));
    weights.retain(|(name, _)| !name.contains("layers.1."));
    let error = refusal(&weights);
    assert!(
        error.contains("lacks 9 tensors: model.layers.1.input_layernorm.weight, ") && error.contains('…'),
        "{error}"
    );
}

#[test]
fn unexpected_tensors_are_named() {
    let mut weights = fresh(&policy_shapes(&config()));
    weights.push(("model.layers.0.self_attn.q_norm.weight".into(), Tensor::from(1.0f32)));
    let error = refusal(&weights);
    assert!(error.contains("1 tensor: model.layers.0.self_attn.q_norm.weight"), "{error}");
}

#[test]
fn a_tensor_of_the_wrong_shape_is_named_with_both_shapes() {
    let mut weights = fresh(&policy_shapes(&config()));
    let norm = weights.iter_mut().find(|(name, _)| name == "model.norm.weight").unwrap();
    norm.1 = Tensor::from_slice(&[1.0f32; 9]);
    let error = refusal(&weights);
    assert!(error.contains("tensor model.norm.weight") && error.contains("[9]") && error.contains("[8]"), "{error}");
}

#[test]
fn weights_in_shards_are_read_as_one() {
    let weights = fresh(&policy_shapes(&config()));
    let (_parent, model) = write(&weights, ModelKind::Policy);
    fs::remove_file(model.file(WEIGHTS_FILE)).unwrap();
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let halves = weights.split_at(weights.len() / 2);
    let mut map = BTreeMap::new();
    for (shard, half) in shards.iter().zip([halves.0, halves.1]) {
        write_safetensors(&model.file(shard), half, &BTreeMap::new()).unwrap();
        map.extend(half.iter().map(|(name, _)| (name, shard)));
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    fs::write(model.file(WEIGHTS_INDEX_FILE), &index).unwrap();
    let read = model.weights(&policy_shapes(&config()), Device::Cpu).unwrap();
    assert!(weights.iter().all(|(name, tensor)| read[name].equal(tensor)));

    fs::write(model.file(WEIGHTS_INDEX_FILE), index.replace(shards[1], "../elsewhere.safetensors")).unwrap();
    let error = model.weights(&policy_shapes(&config()), Device::Cpu).unwrap_err().to_string();
    assert!(error.contains(WEIGHTS_INDEX_FILE) && error.contains("../elsewhere"), "{error}");
}

#[test]
fn a_tensor_in_two_shards_and_shards_without_number_are_refused() {
    let weights = fresh(&policy_shapes(&config()));
    let (_parent, model) = write(&weights, ModelKind::Policy);
    fs::rename(model.file(WEIGHTS_FILE), model.file("a.safetensors")).unwrap();
    fs::copy(model.file("a.safetensors"), model.file("b.safetensors")).unwrap();
    let refusal = |map: serde_json::Value| {
        let index = serde_json::json!({ "weight_map": map }).to_string();
        fs::write(model.file(WEIGHTS_INDEX_FILE), index).unwrap();
        model.weights(&policy_shapes(&config()), Device::Cpu).unwrap_err().to_string()
    };
    let error = refusal(serde_json::json!({ "x": "a.safetensors", "y": "b.safetensors" }));
    assert!(error.contains("b.safetensors: tensor") && error.contains("is in") && error.contains("too"), "{error}");
    let many: BTreeMap<String, String> = (0..513).map(|shard| (shard.to_string(), format!("{shard}.st"))).collect();
    let error = refusal(serde_json::json!(many));
    assert!(error.contains("513 shards") && error.contains("512"), "{error}");
    assert!(refusal(serde_json::json!({})).contains("0 shards"));
    assert!(refusal(serde_json::json!({ "x": "missing.safetensors" })).contains("missing.safetensors"));
}

#[test]
fn a_checkpoint_of_the_trunk_alone_is_read_without_its_prefix() {
    for architecture in [Architecture::Llama, Architecture::Gpt2] {
        let config = DecoderConfig {
            architecture,
            tie_word_embeddings: true,
            num_key_value_heads: if architecture == Architecture::Gpt2 { 2 } else { 1 },
            ..config()
        };
        let shapes = policy_shapes(&config);
        let parent = tempfile::tempdir().unwrap();
        let weights = fresh(&shapes);
        let prefix = architecture.trunk_prefix();
        let mut bare: Vec<_> =
            weights.iter().map(|(name, tensor)| (name.replacen(prefix, "", 1), tensor.shallow_clone())).collect();
        if architecture == Architecture::Gpt2 {
            // Causal masks, which GPT-2's own files keep beside the weights.
            bare.push(("h.0.attn.bias".into(), Tensor::from_slice(&[1i64, 0])));
            bare.push(("h.1.attn.masked_bias".into(), Tensor::from(-1e4f32)));
        }
        let card = ModelCard::new(ModelKind::Policy, tokenizer().fingerprint(), None);
        let model = ModelDirectory::write(parent.path(), &config, &bare, &tokenizer(), &card).unwrap();
        let read = model.weights(&shapes, Device::Cpu).unwrap();
        assert!(weights.iter().all(|(name, tensor)| read[name].equal(tensor)), "{architecture:?}");
    }
}

#[test]
fn a_tensor_that_is_not_wanted_may_be_of_any_number_type() {
    let weights = fresh(&policy_shapes(&config()));
    let (_parent, model) = write(&weights, ModelKind::Policy);
    let bytes = fs::read(model.file(WEIGHTS_FILE)).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let data = bytes.len() - 8 - length;
    header["model.layers.0.rotary_emb.inv_freq"] =
        serde_json::json!({"dtype": "F64", "shape": [1], "data_offsets": [data, data + 8]});
    let header = header.to_string();
    let longer = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + length..], &[0; 8]].concat();
    fs::write(model.file(WEIGHTS_FILE), longer).unwrap();
    assert_eq!(model.weights(&policy_shapes(&config()), Device::Cpu).unwrap().len(), weights.len());
}

#[test]
fn what_a_directory_lacks_is_named() {
    let error = ModelDirectory::open("no/such/model").unwrap_err().to_string();
    assert!(error.contains("no/such/model: no such directory"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    assert!(ModelDirectory::open(empty.path()).unwrap_err().to_string().contains(CONFIG_FILE));
    let (_parent, model) = write(&fresh(&policy_shapes(&config())), ModelKind::Policy);
    fs::remove_file(model.file(WEIGHTS_FILE)).unwrap();
    assert!(model.weights(&policy_shapes(&config()), Device::Cpu).unwrap_err().to_string().contains(WEIGHTS_FILE));
    fs::remove_file(model.file(CARD_FILE)).unwrap();
    assert_eq!(model.card().unwrap(), None);
    assert!(model.tokenizer().is_ok());
}

#[test]
fn another_tokenizer_in_the_place_of_the_models_own_is_noticed() {
    let (_parent, model) = write(&fresh(&policy_shapes(&config())), ModelKind::Policy);
    train_bpe(["something else altogether"].iter(), 270).unwrap().save(model.path()).unwrap();
    assert!(model.tokenizer().unwrap_err().to_string().contains("fingerprint"));
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    let card = ModelCard::new(ModelKind::Policy, tokenizer.fingerprint(), None);
    let narrow = DecoderConfig { vocab_size: 264, ..config() };
    let error = ModelDirectory::write(parent.path(), &narrow, &[], &tokenizer, &card).unwrap_err().to_string();
    assert!(error.contains("rows for 264"), "{error}");
}

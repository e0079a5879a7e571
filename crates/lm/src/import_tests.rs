//! Directories as other programs write them.

use super::*;
use crate::directory::GENERATION_CONFIG_FILE;
use crate::layout::LANGUAGE_MODEL_HEAD;
use crate::small_model::{config, fresh, tokenizer};
use crate::{CARD_FILE, Normalizer, ScoreRange, WEIGHTS_FILE, write_safetensors};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

/// A directory with `tensors` in it and `changes` made to its `config.json`, and no card.
fn directory(tensors: &[(String, Tensor)], changes: &Value) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    let card = ModelCard::new(ModelKind::Policy, tokenizer.fingerprint(), None);
    ModelDirectory::write(directory.path(), &config(), &[], &tokenizer, &card).unwrap();
    fs::remove_file(directory.path().join(CARD_FILE)).unwrap();
    write_safetensors(&directory.path().join(WEIGHTS_FILE), tensors, &BTreeMap::new()).unwrap();
    edit(&directory, CONFIG_FILE, changes);
    directory
}

/// Sets keys of a JSON file; null removes one.
fn edit(directory: &TempDir, file: &str, changes: &Value) {
    let path = directory.path().join(file);
    let mut value: Value = fs::read_to_string(&path).map_or(json!({}), |text| serde_json::from_str(&text).unwrap());
    for (key, change) in changes.as_object().unwrap() {
        value[key] = change.clone();
        if change.is_null() {
            value.as_object_mut().unwrap().remove(key);
        }
    }
    fs::write(path, value.to_string()).unwrap();
}

/// The tensors of a score model as the Safe RLHF authors name them, with mean 0.5 and variance 4.
fn authors_tensors() -> Vec<(String, Tensor)> {
    let mut tensors = fresh(&score_shapes(&config(), 1));
    for (name, _) in &mut tensors {
        *name = name.replace("score.weight", "score_head.weight");
    }
    tensors.push(("normalizer.mean".into(), Tensor::from_slice(&[0.5f32])));
    tensors.push(("normalizer.var".into(), Tensor::from_slice(&[4.0f32])));
    tensors.push(("normalizer.count".into(), Tensor::from_slice(&[9i64])));
    tensors
}

fn score_model(changes: &Value) -> TempDir {
    let directory = directory(&authors_tensors(), &json!({ "architectures": ["LlamaForScore"], "score_dim": 1 }));
    edit(&directory, CONFIG_FILE, changes);
    directory
}

#[test]
fn score_models_of_the_authors_bring_their_kind_and_their_moments() {
    let full = Normalizer { mean: 0.5, std: 2.0 + 1e-8 };
    let scaled = Normalizer { mean: 0.0, ..full };
    let shifted = Normalizer { std: 1.0, ..full };
    for (changes, kind, normalizer) in [
        (json!({"score_type": "reward"}), ModelKind::Reward, None),
        (json!({"score_type": "reward", "do_normalize": true}), ModelKind::Reward, Some(full)),
        (json!({"score_type": "cost", "do_normalize": true}), ModelKind::Cost, Some(scaled)),
        (json!({"normalize_function": "affine", "do_normalize": true}), ModelKind::Reward, Some(full)),
        (json!({"normalize_function": "scale", "do_normalize": true}), ModelKind::Cost, Some(scaled)),
        (
            json!({"score_type": "reward", "normalize_function": "translate", "do_normalize": true}),
            ModelKind::Reward,
            Some(shifted),
        ),
        (json!({"score_type": "cost", "normalize_function": "identity", "do_normalize": true}), ModelKind::Cost, None),
    ] {
        let directory = score_model(&changes);
        let model = Import::read(directory.path(), None).unwrap();
        assert_eq!((model.card.kind, model.card.normalizer), (kind, normalizer), "{changes}");
        assert!(model.weights.contains_key("score.weight") && !model.weights.contains_key("normalizer.mean"));
        let out = directory.path().join("out");
        model.write(&out, None).unwrap();
        let again = Import::read(&out, None).unwrap();
        assert_eq!((again.card.kind, again.card.normalizer), (kind, normalizer), "{changes}");
    }
}

#[test]
fn the_range_of_scores_in_training_comes_along() {
    let source = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    let range = Some(ScoreRange { low: -1.25, high: 3.5 });
    for range in [range, None] {
        let card = ModelCard::new(ModelKind::Cost, tokenizer.fingerprint(), None).with_score_range(range);
        let weights = fresh(&score_shapes(&config(), 1));
        ModelDirectory::write(source.path(), &config(), &weights, &tokenizer, &card).unwrap();
        let model = Import::read(source.path(), None).unwrap();
        assert_eq!(model.card.score_range, range);
        let written = model.write(&source.path().join("out"), None).unwrap();
        assert_eq!(written.card().unwrap().unwrap().score_range, range);
    }
}

#[test]
fn score_models_that_cannot_be_used_are_refused_by_key() {
    for (changes, kind, expected) in [
        (json!({"score_type": "critic"}), None, "score_type"),
        (json!({"score_type": "reward", "score_dim": 2}), None, "score_dim must be 1, is 2"),
        (json!({"normalize_function": "log"}), None, "normalize_function"),
        (json!({}), None, "say which kind it is"),
        (json!({"score_type": "reward"}), Some(ModelKind::Cost), "is a reward model, not a cost model"),
        (json!({}), Some(ModelKind::Policy), "not a policy"),
    ] {
        let directory = score_model(&changes);
        let error = Import::read(directory.path(), kind).unwrap_err().to_string();
        assert!(error.contains(expected), "{changes}: {error}");
    }
    let shifts = score_model(&json!({"score_type": "cost", "normalize_function": "affine", "do_normalize": true}));
    let model = Import::read(shifts.path(), None).unwrap();
    let error = model.write(&shifts.path().join("out"), None).unwrap_err().to_string();
    assert!(error.contains("the mean of a cost must be 0"), "{error}");
}

#[test]
fn moments_that_are_missing_or_several_are_named() {
    let normalized = json!({"architectures": ["LlamaForScore"], "score_type": "cost", "do_normalize": true});
    let mut tensors = authors_tensors();
    tensors.retain(|(name, _)| name != "normalizer.var");
    let error = Import::read(directory(&tensors, &normalized).path(), None).unwrap_err().to_string();
    assert!(error.contains("normalizer.var") && error.contains("do_normalize"), "{error}");
    tensors.push(("normalizer.var".into(), Tensor::from_slice(&[1.0f32, 2.0])));
    let error = Import::read(directory(&tensors, &normalized).path(), None).unwrap_err().to_string();
    assert!(error.contains("normalizer.var must be one number") && error.contains("[2]"), "{error}");
}

#[test]
fn tokens_that_end_a_response_are_gathered_from_all_files_and_written_to_one() {
    let directory = directory(&fresh(&policy_shapes(&config())), &json!({}));
    let read = || Import::read(directory.path(), None).map(|model| model.config.eos_token_ids);
    edit(&directory, GENERATION_CONFIG_FILE, &json!({"eos_token_id": [2, 5, 99_999]}));
    assert_eq!(read().unwrap(), [2, 5]);
    edit(&directory, GENERATION_CONFIG_FILE, &json!({"eos_token_id": 6}));
    assert_eq!(read().unwrap(), [2, 6]);
    edit(&directory, GENERATION_CONFIG_FILE, &json!({"eos_token_id": "end"}));
    let error = read().unwrap_err().to_string();
    assert!(error.contains(GENERATION_CONFIG_FILE) && error.contains("eos_token_id"), "{error}");
    // The tokenizer's own is 2, and answers are trained to end with it.
    edit(&directory, CONFIG_FILE, &json!({"eos_token_id": 3}));
    edit(&directory, GENERATION_CONFIG_FILE, &json!({"eos_token_id": 5}));
    let out = directory.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join(GENERATION_CONFIG_FILE), "{\"eos_token_id\": 7}").unwrap();
    let written = Import::read(directory.path(), None).unwrap().write(&out, None).unwrap();
    assert_eq!(written.config().unwrap().eos_token_ids, [3, 5, 2]);
    assert!(!out.join(GENERATION_CONFIG_FILE).is_file(), "that of an earlier model");
}

#[test]
fn a_head_of_its_own_is_kept_under_a_configuration_that_ties_it() {
    let mut tensors = fresh(&policy_shapes(&config()));
    let find = |tensors: &[(String, Tensor)], end: &str| {
        tensors.iter().find(|(name, _)| name.ends_with(end)).unwrap().1.copy()
    };
    let (own, embedding) = (find(&tensors, LANGUAGE_MODEL_HEAD), find(&tensors, "embed_tokens.weight"));
    let tied = json!({"tie_word_embeddings": true});
    let source = directory(&tensors, &tied);
    let written = Import::read(source.path(), None).unwrap().write(&source.path().join("out"), None).unwrap();
    let config = written.config().unwrap();
    assert!(!config.tie_word_embeddings);
    let weights = written.weights(&policy_shapes(&config), Device::Cpu).unwrap();
    assert!(weights[LANGUAGE_MODEL_HEAD].equal(&own));
    // The embedding once more is no head of its own.
    tensors.retain(|(name, _)| name != LANGUAGE_MODEL_HEAD);
    assert!(Import::read(directory(&tensors, &tied).path(), None).unwrap().config.tie_word_embeddings);
    tensors.push((LANGUAGE_MODEL_HEAD.into(), embedding));
    let model = Import::read(directory(&tensors, &tied).path(), None).unwrap();
    assert!(model.config.tie_word_embeddings && !model.weights.contains_key(LANGUAGE_MODEL_HEAD));
}

#[test]
fn numbers_that_are_not_finite_are_neither_read_nor_written() {
    let mut tensors = fresh(&policy_shapes(&config()));
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("model");
    let _ = tensors[3].1.fill_(70_000.0);
    let name = tensors[3].0.clone();
    let model = Import::read(directory(&tensors, &json!({})).path(), None).unwrap();
    let error = model.write(&target, Some(Kind::Half)).unwrap_err().to_string();
    for part in [name.as_str(), "its number 0 is not finite", "bf16"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!target.is_dir(), "nothing is written");
    model.write(&target, Some(Kind::BFloat16)).unwrap();
    for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let _ = tensors[3].1.view(-1).narrow(0, 2, 1).fill_(odd);
        let path = out.path().join(WEIGHTS_FILE);
        let error = write_safetensors(&path, &tensors, &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains(&name) && error.contains("its number 2 is not finite"), "{odd}: {error}");
        assert!(!path.is_file());
    }
}

#[test]
fn a_normalizer_that_divides_by_nothing_is_refused() {
    let normalized = json!({"architectures": ["LlamaForScore"], "score_type": "cost", "do_normalize": true});
    for variance in [0.0f32, -1.0] {
        let mut tensors = authors_tensors();
        tensors.retain(|(name, _)| name != "normalizer.var");
        tensors.push(("normalizer.var".into(), Tensor::from_slice(&[variance])));
        let error = Import::read(directory(&tensors, &normalized).path(), None).unwrap_err().to_string();
        assert!(error.contains("normalizer.var is") && error.contains("do_normalize"), "{error}");
    }
}

#[test]
fn special_tokens_without_a_name_are_those_of_the_configuration() {
    let directory = directory(&fresh(&policy_shapes(&config())), &json!({}));
    edit(&directory, "tokenizer_config.json", &json!({"bos_token": null, "eos_token": null, "pad_token": null}));
    let tokenizer = Tokenizer::load(directory.path()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (None, None, None));
    let model = Import::read(directory.path(), None).unwrap();
    assert_eq!((model.tokenizer.bos(), model.tokenizer.eos(), model.tokenizer.pad()), (Some(1), Some(2), Some(0)));
    let out = directory.path().join("out");
    let written = model.write(&out, None).unwrap();
    assert_eq!(written.tokenizer().unwrap().eos(), Some(2));
}

//! Adapters as a directory of their own, in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! What is written here, PEFT loads onto the model that the adapters were trained on; what PEFT writes is read here, to be
//! merged into that model. Tensors have the names that they have in the model, behind PEFT's own prefix.

use crate::decoder::DecoderHead;
use crate::files::{parse_json, read_text, write_text};
use crate::layout::SCORE_HEAD;
use crate::lora::{DOWN, Projection, UP, merge, projections, stores_input_first};
use crate::{Decoder, DecoderConfig, LmError, read_safetensors, write_safetensors};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use tch::{Device, Tensor};

/// What adapters there are.
pub const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
/// Their weights.
pub const ADAPTER_WEIGHTS_FILE: &str = "adapter_model.safetensors";

const CONFIG_LIMIT_BYTES: u64 = 1 << 20;
/// What PEFT puts before a tensor's name: its own class, and its wrapper of the model.
const PREFIX: &str = "base_model.model.";

/// Writes the adapters of `model`, which has some, to the directory `path`, which is made if need be. `base` is where the
/// model that they belong to is; PEFT looks there when it is not told otherwise.
///
/// # Errors
/// [`LmError::Mismatch`] if the model has no adapters, [`LmError::File`] if the directory cannot be written.
pub fn write_adapter<H: DecoderHead>(path: &Path, model: &Decoder<H>, base: &Path) -> Result<(), LmError> {
    let parameters = model.parameters();
    let lora = parameters.lora().ok_or_else(|| LmError::Mismatch("the model has no adapters to write".into()))?;
    let all = projections(model.config());
    let every: BTreeSet<String> = all.iter().map(|each| each.short_name().to_owned()).collect();
    let targets = if lora.targets.is_empty() { every.into_iter().collect() } else { lora.targets.clone() };
    let head = H::TRAINED_WHOLE.map(|name| name.trim_end_matches(".weight"));
    let config = json!({
        "peft_type": "LORA",
        "task_type": if head.is_some() { "SEQ_CLS" } else { "CAUSAL_LM" },
        "base_model_name_or_path": base.display().to_string(),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "modules_to_save": head.map(|name| [name]),
        "fan_in_fan_out": stores_input_first(model.config()),
        "bias": "none",
        "inference_mode": true,
    });
    let named = |(name, tensor): (&str, &Tensor)| (format!("{PREFIX}{name}"), tensor.detach());
    let tensors: Vec<_> = parameters.iter().map(named).collect();
    fs::create_dir_all(path).map_err(LmError::file("create", path))?;
    write_text(&path.join(ADAPTER_CONFIG_FILE), &format!("{config:#}\n"))?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&path.join(ADAPTER_WEIGHTS_FILE), &tensors, &metadata)
}

/// Merges the adapters in the directory `path` into the `weights` of a model of `config`.
///
/// # Errors
/// [`LmError::Model`] if there are none, if they are of a kind that is not computed here, or if they belong to another model;
/// [`LmError::StoredTensor`] for a tensor of the wrong shape.
pub(crate) fn merge_adapter(
    path: &Path,
    config: &DecoderConfig,
    weights: &mut BTreeMap<String, Tensor>,
) -> Result<(), LmError> {
    let file = AdapterFile::read(&path.join(ADAPTER_CONFIG_FILE))?;
    let stored = path.join(ADAPTER_WEIGHTS_FILE);
    let all = projections(config);
    let mut trained = BTreeMap::new();
    for (name, tensor) in read_safetensors(&stored, Device::Cpu)? {
        let own = name.strip_prefix(PREFIX).unwrap_or(&name);
        let shape = shape_of(own, &all, file.r, weights).ok_or_else(|| LmError::StoredTensor {
            path: stored.clone(),
            tensor: name.clone(),
            message: "has no place in this model; adapters must be merged into the model that they were trained on"
                .into(),
        })?;
        if tensor.size() != shape {
            let message = format!("has shape {:?}, this model asks for {shape:?}", tensor.size());
            return Err(LmError::StoredTensor { path: stored, tensor: name, message });
        }
        trained.insert(own.to_owned(), tensor.f_to_kind(tch::Kind::Float)?);
    }
    for name in trained.keys() {
        let other = match (name.strip_suffix(DOWN), name.strip_suffix(UP)) {
            (Some(module), _) => format!("{module}{UP}"),
            (_, Some(module)) => format!("{module}{DOWN}"),
            _ => continue,
        };
        if !trained.contains_key(&other) {
            return Err(LmError::Model {
                path: stored,
                message: format!("holds {name}, but lacks {other}; fetch it again"),
            });
        }
    }
    merge(config, weights, &trained, file.scale())
}

/// The shape that a tensor of an adapter must have; none if the model has no place for it.
fn shape_of(name: &str, all: &[Projection], rank: i64, weights: &BTreeMap<String, Tensor>) -> Option<Vec<i64>> {
    if name == SCORE_HEAD {
        return weights.get(SCORE_HEAD).map(Tensor::size);
    }
    let find = |module: &str| all.iter().find(|each| each.name == module);
    match (name.strip_suffix(DOWN).and_then(find), name.strip_suffix(UP).and_then(find)) {
        (Some(Projection { inputs, .. }), _) => Some(vec![rank, *inputs]),
        (_, Some(Projection { outputs, .. })) => Some(vec![*outputs, rank]),
        _ => None,
    }
}

/// Keys that do not change what adapters compute, beside those of [`AdapterFile`].
const HARMLESS_KEYS: [&str; 20] = [
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    // Read where adapters begin alone; which of those change the model is in `init_lora_weights`.
    "corda_config",
    "loftq_config",
];
/// How adapters may begin so that the model that they were trained on is the one that they are merged into. PiSSA, OLoRA,
/// CorDA and LoftQ change its weights first.
const HARMLESS_BEGINNINGS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// The part of an `adapter_config.json` that says what is computed.
#[derive(Deserialize)]
struct AdapterFile {
    peft_type: String,
    r: i64,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    init_lora_weights: Value,
    bias: Option<String>,
    rank_pattern: Option<Map<String, Value>>,
    alpha_pattern: Option<Map<String, Value>>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl AdapterFile {
    fn read(path: &Path) -> Result<Self, LmError> {
        let file: Self = parse_json(&read_text(path, CONFIG_LIMIT_BYTES)?, path)?;
        let given = |pattern: &Option<Map<String, Value>>| pattern.as_ref().is_some_and(|pattern| !pattern.is_empty());
        let begins_otherwise = match &file.init_lora_weights {
            Value::Null | Value::Bool(_) => false,
            Value::String(name) => !HARMLESS_BEGINNINGS.contains(&name.as_str()),
            _ => true,
        };
        let reasons = [
            (file.peft_type != "LORA", format!("peft_type must be \"LORA\", is {:?}", file.peft_type)),
            (file.r < 1, format!("r must be at least 1, is {}", file.r)),
            (!file.lora_alpha.is_finite(), "lora_alpha must be a number".to_owned()),
            (file.use_dora, "use_dora must be false: only plain LoRA is computed here".to_owned()),
            (file.bias.as_deref().is_some_and(|bias| bias != "none"), "bias must be \"none\"".to_owned()),
            (given(&file.rank_pattern), "rank_pattern must be empty: all adapters have one rank".to_owned()),
            (given(&file.alpha_pattern), "alpha_pattern must be empty: all adapters have one scale".to_owned()),
            (
                begins_otherwise,
                format!(
                    "init_lora_weights is {}, which changes the weights beneath the adapters before training; convert them to plain LoRA with PEFT (path_initial_model_for_weight_conversion)",
                    file.init_lora_weights
                ),
            ),
        ];
        let refuse = |message: String| LmError::Model { path: path.to_owned(), message };
        if let Some((_, message)) = reasons.into_iter().find(|(wrong, _)| *wrong) {
            return Err(refuse(message));
        }
        let mut others = file.others.iter();
        match others.find(|(key, value)| !HARMLESS_KEYS.contains(&key.as_str()) && !is_off(value)) {
            None => Ok(file),
            Some((key, value)) => {
                Err(refuse(format!("{key} is {value}, and such adapters are not computed here; merge them with PEFT")))
            }
        }
    }

    /// α/r, or α/√r where ranks are stabilised (rsLoRA, arXiv 2312.03732).
    fn scale(&self) -> f64 {
        let rank = self.r as f64;
        self.lora_alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

/// Whether an option of this value is switched off. What a library adds to its options is off unless it is asked for; the
/// name of a module, as in `megatron_core`, is no such option.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What PEFT 0.21 writes for plain adapters, with `changes`.
    fn read(changes: &Value) -> Result<AdapterFile, LmError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(ADAPTER_CONFIG_FILE);
        let mut file = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1,
            "bias": "none", "init_lora_weights": true, "rank_pattern": {}, "alpha_pattern": {}, "lora_bias": false,
            "target_modules": ["q_proj"], "megatron_core": "megatron.core", "megatron_config": null,
            "qalora_group_size": 16, "use_qalora": false, "loftq_config": {}, "layer_replication": null,
            "peft_version": "0.21.2", "revision": "main", "inference_mode": true, "use_dora": false,
        });
        file.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        fs::write(&path, file.to_string()).unwrap();
        AdapterFile::read(&path)
    }

    #[test]
    fn options_that_change_the_model_are_refused_by_name_and_others_read() {
        for changes in [
            json!({}),
            json!({"init_lora_weights": false}),
            json!({"init_lora_weights": "gaussian"}),
            json!({"a_new_option": null, "another": false, "a_third": {}, "a_fourth": []}),
        ] {
            assert_eq!(read(&changes).unwrap().scale(), 2.0, "{changes}");
        }
        for (changes, expected) in [
            (json!({"init_lora_weights": "pissa"}), "init_lora_weights is \"pissa\""),
            (json!({"init_lora_weights": "pissa_niter_16"}), "init_lora_weights"),
            (json!({"init_lora_weights": "olora"}), "init_lora_weights"),
            (json!({"init_lora_weights": "corda"}), "init_lora_weights"),
            (json!({"init_lora_weights": "loftq"}), "init_lora_weights"),
            (json!({"use_dora": true}), "use_dora"),
            (json!({"use_qalora": true}), "use_qalora is true"),
            (json!({"lora_bias": true}), "lora_bias is true"),
            (json!({"layer_replication": [[0, 2], [1, 3]]}), "layer_replication"),
            (json!({"alora_invocation_tokens": [1, 2]}), "alora_invocation_tokens"),
            (json!({"trainable_token_indices": [5]}), "trainable_token_indices"),
            (json!({"target_parameters": ["mlp.experts"]}), "target_parameters"),
            (json!({"arrow_config": {"top_k": 2}}), "arrow_config"),
            (json!({"a_new_option": "on"}), "a_new_option is \"on\""),
            (json!({"bias": "all"}), "bias"),
            (json!({"rank_pattern": {"q_proj": 2}}), "rank_pattern"),
        ] {
            let error = read(&changes).map(drop).unwrap_err().to_string();
            assert!(error.contains(ADAPTER_CONFIG_FILE) && error.contains(expected), "{changes}: {error}");
        }
    }
}

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
    bias: Option<String>,
    rank_pattern: Option<Map<String, Value>>,
    alpha_pattern: Option<Map<String, Value>>,
}

impl AdapterFile {
    fn read(path: &Path) -> Result<Self, LmError> {
        let file: Self = parse_json(&read_text(path, CONFIG_LIMIT_BYTES)?, path)?;
        let given = |pattern: &Option<Map<String, Value>>| pattern.as_ref().is_some_and(|pattern| !pattern.is_empty());
        let reasons = [
            (file.peft_type != "LORA", format!("peft_type must be \"LORA\", is {:?}", file.peft_type)),
            (file.r < 1, format!("r must be at least 1, is {}", file.r)),
            (file.use_dora, "use_dora must be false: only plain LoRA is computed here".to_owned()),
            (file.bias.as_deref().is_some_and(|bias| bias != "none"), "bias must be \"none\"".to_owned()),
            (given(&file.rank_pattern), "rank_pattern must be empty: all adapters have one rank".to_owned()),
            (given(&file.alpha_pattern), "alpha_pattern must be empty: all adapters have one scale".to_owned()),
        ];
        match reasons.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, message)) => Err(LmError::Model { path: path.to_owned(), message }),
            None => Ok(file),
        }
    }

    /// α/r, or α/√r where ranks are stabilised (rsLoRA, arXiv 2312.03732).
    fn scale(&self) -> f64 {
        let rank = self.r as f64;
        self.lora_alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }
}

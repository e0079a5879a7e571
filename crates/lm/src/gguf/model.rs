//! The decoder in a GGUF file: its configuration from the metadata, its weights under their published names.
//!
//! Three things are undone that the conversion to GGUF did: the names, the order of the rows of LLaMA's query and key
//! projections (llama.cpp turns neighbouring pairs, the published models turn halves), and the transposition of GPT-2's
//! projections.

use super::{GgufFile, TensorPlace, Value};
use crate::layout::policy_shapes;
use crate::memory::buffer;
use crate::{Architecture, DecoderConfig, LmError, RopeScaling};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use tch::Tensor;

const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";
/// What each rotary frequency is divided by (LLaMA 3).
const ROTARY_FACTORS: &str = "rope_freqs.weight";
/// How far the factors may be from those that their formula gives.
const FACTOR_TOLERANCE: f64 = 1e-3;

/// What may name a token that ends an answer.
const END_TOKENS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Keys of a family with the values of each that change nothing.
const NUMBERS_THAT_CHANGE_THE_MODEL: [(&str, &[f64]); 10] = [
    // What older files have for a linear factor.
    ("rope.scale_linear", &[0.0, 1.0]),
    ("rope.scaling.attn_factor", &[1.0]),
    ("attention.clamp_kqv", &[0.0]),
    ("attention.max_alibi_bias", &[0.0]),
    ("attention.scale", &[0.0]),
    ("attn_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
];
/// The same of keys that are true or false.
const FLAGS_THAT_CHANGE_THE_MODEL: [(&str, bool); 2] = [("attention.causal", true), ("use_parallel_residual", false)];

impl GgufFile {
    /// The shape of the decoder.
    ///
    /// # Errors
    /// [`LmError::Model`] for a family that is not known here or a metadata key that is missing or of the wrong kind,
    /// [`LmError::Configuration`] for settings that no decoder here can be built from.
    pub fn config(&self) -> Result<DecoderConfig, LmError> {
        let family: &str = self.required("general.architecture", "a string", Value::as_text)?;
        let architecture = Architecture::ALL.into_iter().find(|each| each.model_type() == family).ok_or_else(|| {
            self.refuse(format!("is of the family {family:?}; families that are read: {}", Architecture::names()))
        })?;
        let key = |name: &str| format!("{family}.{name}");
        let needed = |name: &str| {
            let key = key(name);
            self.size(&key)?.ok_or_else(|| self.refuse(format!("has no metadata key {key}; convert the model anew")))
        };
        if self.size(&key("expert_count"))?.is_some_and(|count| count > 0) {
            return Err(self.refuse("is a mixture of experts, which cannot be computed here; use a dense model"));
        }
        self.check_settings(family)?;
        let sliding_window = self.size(&key("attention.sliding_window"))?.filter(|window| *window > 0);
        let num_attention_heads = needed("attention.head_count")?;
        let epsilon = match architecture {
            Architecture::Gpt2 => key("attention.layer_norm_epsilon"),
            _ => key("attention.layer_norm_rms_epsilon"),
        };
        let embedding = self.place(EMBEDDING)?;
        let mut config = DecoderConfig {
            // Files of Mistral call their family llama; those with a window are told apart by it.
            architecture: match sliding_window {
                Some(_) if architecture == Architecture::Llama => Architecture::Mistral,
                _ => architecture,
            },
            vocab_size: embedding.shape.first().map_or(0, |rows| *rows as usize),
            hidden_size: needed("embedding_length")?,
            intermediate_size: needed("feed_forward_length")?,
            num_hidden_layers: needed("block_count")?,
            num_attention_heads,
            num_key_value_heads: self.size(&key("attention.head_count_kv"))?.unwrap_or(num_attention_heads),
            head_dim: self.size(&key("attention.key_length"))?,
            max_position_embeddings: needed("context_length")?,
            rms_norm_eps: self.required(&epsilon, "a number", Value::as_float)?,
            rope_theta: self.float(&key("rope.freq_base"))?.unwrap_or(10_000.0),
            rope_scaling: None,
            sliding_window,
            tie_word_embeddings: self.is_tied()?,
            bos_token_id: self.token_id("tokenizer.ggml.bos_token_id")?,
            eos_token_ids: Vec::new(),
            pad_token_id: self.token_id("tokenizer.ggml.padding_token_id")?,
        };
        for key in END_TOKENS {
            config.eos_token_ids.extend(self.token_id(key)?.filter(|id| !config.eos_token_ids.contains(id)));
        }
        self.check_heads(family, &config)?;
        let problems = config.validate();
        if !problems.is_empty() {
            return Err(LmError::Configuration { path: self.path.clone(), problems });
        }
        config.rope_scaling = self.rope_scaling(family, &config)?;
        Ok(config)
    }

    /// All weights of `config`, which is this file's own, as float32 under their published names.
    ///
    /// # Errors
    /// [`LmError::StoredTensor`] for a tensor of another shape, [`LmError::Model`] for missing and for unexpected ones.
    pub fn weights(&self, config: &DecoderConfig) -> Result<BTreeMap<String, Tensor>, LmError> {
        let mut weights = BTreeMap::new();
        let mut used = BTreeSet::from([ROTARY_FACTORS]);
        if config.tie_word_embeddings {
            used.insert(OUTPUT);
        }
        for (name, shape) in policy_shapes(config) {
            let own = own_name(&name).ok_or_else(|| LmError::MissingTensor(name.clone()))?;
            let (own, place) = self.tensors.get_key_value(&own).ok_or_else(|| {
                self.refuse(format!("lacks the tensor {own}; check that the file is whole and of the family it names"))
            })?;
            let transposed = is_input_first(&name);
            let expected: Vec<i64> = if transposed { shape.iter().rev().copied().collect() } else { shape };
            if place.shape != expected {
                return Err(LmError::StoredTensor {
                    path: self.path.clone(),
                    tensor: own.clone(),
                    message: format!(
                        "has shape {:?}, the metadata asks for {expected:?}; the file is damaged",
                        place.shape
                    ),
                });
            }
            let tensor = self.read(own)?;
            let tensor = match rotated_heads(&name, config) {
                Some(heads) => halves_from_pairs(&tensor, heads)?,
                None if transposed => tensor.f_transpose(0, 1)?.f_contiguous()?,
                None => tensor,
            };
            weights.insert(name, tensor);
            used.insert(own);
        }
        match self.tensors.keys().find(|name| !used.contains(name.as_str())) {
            None => Ok(weights),
            Some(extra) => Err(LmError::StoredTensor {
                path: self.path.clone(),
                tensor: extra.clone(),
                message: format!(
                    "is not part of a {} model as it is computed here; use another model",
                    config.architecture.model_type()
                ),
            }),
        }
    }

    fn place(&self, name: &str) -> Result<&TensorPlace, LmError> {
        self.tensors
            .get(name)
            .ok_or_else(|| self.refuse(format!("lacks the tensor {name}: it is not a language model")))
    }

    fn token_id(&self, key: &str) -> Result<Option<i64>, LmError> {
        Ok(self.size(key)?.and_then(|id| i64::try_from(id).ok()))
    }

    /// Whether the head is the embedding: it is not stored, or stored a second time.
    fn is_tied(&self) -> Result<bool, LmError> {
        let Some(head) = self.tensors.get(OUTPUT) else { return Ok(true) };
        let embedding = self.place(EMBEDDING)?;
        if (head.quantization, &head.shape) != (embedding.quantization, &embedding.shape) {
            return Ok(false);
        }
        let bytes = |place: &TensorPlace| {
            let mut bytes = buffer(place.bytes, EMBEDDING, &self.path)?;
            self.file.read_exact_at(&mut bytes, place.start).map_err(LmError::file("read", &self.path))?;
            Ok::<_, LmError>(bytes)
        };
        Ok(bytes(head)? == bytes(embedding)?)
    }

    /// Refuses heads that are turned in part, or whose values are of another width than their keys.
    fn check_heads(&self, family: &str, config: &DecoderConfig) -> Result<(), LmError> {
        let head_dim = config.head_dim();
        for name in ["attention.value_length", "rope.dimension_count"] {
            let key = format!("{family}.{name}");
            if let Some(size) = self.size(&key)?.filter(|size| *size != head_dim) {
                return Err(self.refuse(format!(
                    "metadata key {key} is {size}, but heads are {head_dim} wide; such a model cannot be computed here"
                )));
            }
        }
        Ok(())
    }

    /// Refuses settings that change what is computed, in a way that is not implemented.
    fn check_settings(&self, family: &str) -> Result<(), LmError> {
        let refuse = |key: &str, value: &dyn std::fmt::Display| {
            Err(self.refuse(format!(
                "metadata key {key} is {value}, which changes what the model computes and is not implemented here; use another model"
            )))
        };
        for (name, neutral) in NUMBERS_THAT_CHANGE_THE_MODEL {
            let key = format!("{family}.{name}");
            if let Some(number) = self.float(&key)?.filter(|number| !neutral.contains(number)) {
                return refuse(&key, &number);
            }
        }
        for (name, neutral) in FLAGS_THAT_CHANGE_THE_MODEL {
            let key = format!("{family}.{name}");
            if let Some(flag) = self.flag(&key)?.filter(|flag| *flag != neutral) {
                return refuse(&key, &flag);
            }
        }
        Ok(())
    }

    /// How positions are stretched. The file has only what comes of it, a factor for each frequency: the one rule that is
    /// in use for LLaMA 3 is tried on them.
    fn rope_scaling(&self, family: &str, config: &DecoderConfig) -> Result<Option<RopeScaling>, LmError> {
        let kind = self.text(&format!("{family}.rope.scaling.type"))?.unwrap_or("none");
        if !matches!(kind, "none" | "llama3") {
            return Err(self
                .refuse(format!("stretches positions by the rule {kind:?}; use a model without stretched positions")));
        }
        // Without a type the factor is a linear one, as llama.cpp has it; of files that say none, it has no effect.
        let key = format!("{family}.rope.scaling.factor");
        let says_none = self.text(&format!("{family}.rope.scaling.type"))? == Some("none");
        if let Some(factor) = self.float(&key)?.filter(|factor| !says_none && *factor != 1.0 && *factor != 0.0)
            && kind != "llama3"
        {
            return Err(self.refuse(format!(
                "stretches positions: metadata key {key} is {factor}, a linear rule; use a model without stretched positions"
            )));
        }
        let Some(place) = self.tensors.get(ROTARY_FACTORS) else { return Ok(None) };
        let half = config.head_dim() / 2;
        if place.shape != [half as i64] || !config.architecture.is_rotary() {
            return Err(self.refuse(format!("{ROTARY_FACTORS} has shape {:?}, not [{half}]", place.shape)));
        }
        let factors: Vec<f64> = Vec::<f32>::try_from(self.read(ROTARY_FACTORS)?)?.into_iter().map(f64::from).collect();
        if factors.iter().all(|factor| *factor == 1.0) {
            return Ok(None);
        }
        let scaling = RopeScaling {
            factor: factors.iter().copied().fold(1.0, f64::max),
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: self
                .size(&format!("{family}.rope.scaling.original_context_length"))?
                .unwrap_or(8192),
        };
        let agrees = |(index, factor): (usize, &f64)| {
            let frequency = config.rope_theta.powf(-((2 * index) as f64) / config.head_dim() as f64);
            (frequency / scaling.stretch(frequency) / factor - 1.0).abs() < FACTOR_TOLERANCE
        };
        if factors.iter().enumerate().all(agrees) {
            return Ok(Some(scaling));
        }
        Err(self.refuse(format!(
            "{ROTARY_FACTORS} does not follow LLaMA 3's rule; import the model from its Hugging Face directory instead"
        )))
    }
}

/// The name in a GGUF file of the tensor that is published as `name`.
fn own_name(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    let own = match stem {
        "model.embed_tokens" | "transformer.wte" => "token_embd".to_owned(),
        "model.norm" | "transformer.ln_f" => "output_norm".to_owned(),
        "transformer.wpe" => "position_embd".to_owned(),
        "lm_head" => "output".to_owned(),
        _ => {
            let rest = stem.strip_prefix("model.layers.").or_else(|| stem.strip_prefix("transformer.h."))?;
            let (layer, part) = rest.split_once('.')?;
            let part = match part {
                "input_layernorm" | "ln_1" => "attn_norm",
                "post_attention_layernorm" | "ln_2" => "ffn_norm",
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.q_norm" => "attn_q_norm",
                "self_attn.k_norm" => "attn_k_norm",
                "self_attn.o_proj" | "attn.c_proj" => "attn_output",
                "attn.c_attn" => "attn_qkv",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" | "mlp.c_fc" => "ffn_up",
                "mlp.down_proj" | "mlp.c_proj" => "ffn_down",
                _ => return None,
            };
            format!("blk.{layer}.{part}")
        }
    };
    Some(format!("{own}.{kind}"))
}

/// GPT-2's projections.
fn is_input_first(name: &str) -> bool {
    name.contains(".c_") && name.ends_with(".weight")
}

/// The number of heads of a projection whose rows llama.cpp has in another order.
fn rotated_heads(name: &str, config: &DecoderConfig) -> Option<usize> {
    let reordered = matches!(config.architecture, Architecture::Llama | Architecture::Mistral);
    match name.rsplit('.').nth(1)? {
        "q_proj" if reordered => Some(config.num_attention_heads),
        "k_proj" if reordered => Some(config.num_key_value_heads),
        _ => None,
    }
}

/// From rows in the order (head, pair, member) to (head, member, pair): `[rows, columns]` both.
fn halves_from_pairs(weight: &Tensor, heads: usize) -> Result<Tensor, LmError> {
    let (rows, columns) = weight.size2()?;
    let heads = heads as i64;
    let by_pair = weight.f_view([heads, rows / heads / 2, 2, columns])?;
    Ok(by_pair.f_transpose(1, 2)?.f_reshape([rows, columns])?)
}

//! `config.json` as it is stored: every key optional, so that all that are missing can be reported at once.

use super::{Architecture, DecoderConfig, RopeScaling};
use saddle_core::Problems;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

#[derive(Deserialize)]
pub(super) struct ConfigFile {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
    vocab_size: Option<usize>,
    #[serde(alias = "n_embd")]
    hidden_size: Option<usize>,
    #[serde(alias = "n_inner")]
    intermediate_size: Option<usize>,
    #[serde(alias = "n_layer")]
    num_hidden_layers: Option<usize>,
    #[serde(alias = "n_head")]
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(alias = "n_positions")]
    max_position_embeddings: Option<usize>,
    #[serde(alias = "layer_norm_epsilon")]
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    /// Where newer files keep `rope_theta` and what used to be `rope_scaling`.
    rope_parameters: Option<Rope>,
    rope_scaling: Option<Rope>,
    partial_rotary_factor: Option<f64>,
    tie_word_embeddings: Option<bool>,
    #[serde(alias = "activation_function")]
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    scale_attn_weights: Option<bool>,
    scale_attn_by_inverse_layer_idx: Option<bool>,
    add_cross_attention: Option<bool>,
    use_sliding_window: Option<bool>,
    /// Absent and null differ: Mistral's default is a window.
    #[serde(default, deserialize_with = "present")]
    sliding_window: Option<Option<usize>>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
    bos_token_id: Option<i64>,
    eos_token_id: Option<OneOrMany>,
    pad_token_id: Option<i64>,
}

#[derive(Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// The older name of `rope_type`; some files have both.
    r#type: Option<String>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

/// One token id, or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    One(i64),
    Many(Vec<i64>),
}

impl From<OneOrMany> for Vec<i64> {
    fn from(ids: OneOrMany) -> Self {
        match ids {
            OneOrMany::One(id) => vec![id],
            OneOrMany::Many(ids) => ids,
        }
    }
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<usize>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl Rope {
    fn kind(&self) -> &str {
        self.rope_type.as_deref().or(self.r#type.as_deref()).unwrap_or("default")
    }

    /// The stretching that is asked for; each missing number is a problem of `key`.
    fn scaling(&self, key: &str, problems: &mut Problems) -> Option<RopeScaling> {
        if self.kind() != "llama3" {
            return None;
        }
        let mut needed = |name: &str, value: Option<f64>| {
            problems.require(value.is_some(), key, format!("{name} is missing"));
            value.unwrap_or(1.0)
        };
        Some(RopeScaling {
            factor: needed("factor", self.factor),
            low_freq_factor: needed("low_freq_factor", self.low_freq_factor),
            high_freq_factor: needed("high_freq_factor", self.high_freq_factor),
            original_max_position_embeddings: {
                let length = self.original_max_position_embeddings;
                problems.require(length.is_some(), key, "original_max_position_embeddings is missing");
                length.unwrap_or(1)
            },
        })
    }
}

impl ConfigFile {
    /// The checked configuration, with the defaults of `transformers` for absent optional keys.
    pub(super) fn resolve(self) -> Result<DecoderConfig, Problems> {
        let mut problems = Problems::default();
        let class = self.architectures.as_deref().and_then(<[_]>::first).map(String::as_str);
        let known = Architecture::find(self.model_type.as_deref(), class);
        problems.require(
            known.is_some(),
            "model_type",
            format!(
                "must be one of {}, is {}; other families cannot be loaded",
                Architecture::names(),
                self.model_type.as_deref().or(class).map_or("missing".to_owned(), |name| format!("{name:?}")),
            ),
        );
        let architecture = known.unwrap_or(Architecture::Llama);
        self.check_supported(architecture, &mut problems);
        let rope_scaling = [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)]
            .into_iter()
            .find_map(|(key, rope)| rope.as_ref().and_then(|rope| rope.scaling(key, &mut problems)));
        let mut config = self.shape(architecture, &mut problems);
        config.rope_scaling = rope_scaling;
        config.sliding_window = match self.sliding_window {
            _ if architecture != Architecture::Mistral => None,
            Some(window) => window,
            None => Some(4096),
        };
        config.eos_token_ids = self.eos_token_id.map(Vec::from).unwrap_or_default();
        if problems.is_empty() {
            problems = config.validate();
        }
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    /// Sizes and plain settings; a size that is missing is a problem.
    fn shape(&self, architecture: Architecture, problems: &mut Problems) -> DecoderConfig {
        let is_gpt2 = architecture == Architecture::Gpt2;
        let mut needed = |key: &str, gpt2_key: &str, value: Option<usize>| {
            problems.require(value.is_some(), if is_gpt2 { gpt2_key } else { key }, "is missing");
            value.unwrap_or(1)
        };
        let hidden_size = needed("hidden_size", "n_embd", self.hidden_size);
        let num_attention_heads = needed("num_attention_heads", "n_head", self.num_attention_heads);
        let intermediate_size = if is_gpt2 {
            self.intermediate_size.unwrap_or_else(|| hidden_size.saturating_mul(4))
        } else {
            needed("intermediate_size", "n_inner", self.intermediate_size)
        };
        let num_key_value_heads = match architecture {
            Architecture::Llama | Architecture::Gpt2 => self.num_key_value_heads.unwrap_or(num_attention_heads),
            // Their classes have different defaults of their own.
            _ => needed("num_key_value_heads", "", self.num_key_value_heads),
        };
        let rope_theta = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta).or(self.rope_theta);
        DecoderConfig {
            architecture,
            vocab_size: needed("vocab_size", "vocab_size", self.vocab_size),
            hidden_size,
            intermediate_size,
            num_hidden_layers: needed("num_hidden_layers", "n_layer", self.num_hidden_layers),
            num_attention_heads,
            num_key_value_heads,
            head_dim: self.head_dim.or((architecture == Architecture::Qwen3).then_some(128)),
            max_position_embeddings: needed("max_position_embeddings", "n_positions", self.max_position_embeddings),
            rms_norm_eps: self.rms_norm_eps.unwrap_or(if is_gpt2 { 1e-5 } else { 1e-6 }),
            rope_theta: rope_theta.unwrap_or(10_000.0),
            rope_scaling: None,
            sliding_window: None,
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(is_gpt2),
            bos_token_id: self.bos_token_id,
            eos_token_ids: Vec::new(),
            // Early LLaMA checkpoints say -1 for none.
            pad_token_id: self.pad_token_id.filter(|id| *id != -1),
        }
    }

    /// Notes every setting that changes the mathematics in a way that is not implemented.
    fn check_supported(&self, architecture: Architecture, problems: &mut Problems) {
        let (ours, remedy): (&[&str], _) = match architecture {
            Architecture::Gpt2 => (&["gelu_new", "gelu_pytorch_tanh"], "use a model with GPT-2's own activation"),
            _ => (&["silu", "swish"], "use a model with a SwiGLU feed-forward"),
        };
        let activation = self.hidden_act.as_deref().unwrap_or(ours[0]);
        problems.require(
            ours.contains(&activation),
            if architecture == Architecture::Gpt2 { "activation_function" } else { "hidden_act" },
            format!("must be {:?}, is {activation:?}; {remedy}", ours[0]),
        );
        for (key, rope) in [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)] {
            let Some(rope) = rope else { continue };
            problems.require(
                matches!(rope.kind(), "default" | "llama3"),
                key,
                format!(
                    "must be null or of type \"default\" or \"llama3\", is of type {:?}; use a model without stretched positions",
                    rope.kind()
                ),
            );
            let factor = rope.factor.filter(|factor| rope.kind() == "default" && *factor != 1.0);
            problems.require(
                factor.is_none(),
                key,
                format!(
                    "has factor {} and no type that says how it stretches; name the type, or use a model without stretched positions",
                    factor.unwrap_or(1.0)
                ),
            );
        }
        for (key, share) in [
            ("partial_rotary_factor", self.partial_rotary_factor),
            ("rope_scaling", self.rope_scaling.as_ref().and_then(|rope| rope.partial_rotary_factor)),
            ("rope_parameters", self.rope_parameters.as_ref().and_then(|rope| rope.partial_rotary_factor)),
        ] {
            let share = share.filter(|_| architecture.is_rotary()).unwrap_or(1.0);
            problems.require(
                share == 1.0,
                key,
                format!("partial_rotary_factor must be 1, is {share}; use a model whose heads are turned whole"),
            );
        }
        for (key, on, remedy) in [
            (
                "attention_bias",
                self.attention_bias == Some(true) && matches!(architecture, Architecture::Llama | Architecture::Qwen3),
                "use a model without a bias on its attention output",
            ),
            ("mlp_bias", self.mlp_bias == Some(true), "use a model without biases in its feed-forward"),
            ("use_sliding_window", self.use_sliding_window == Some(true), "use a model with full attention"),
            (
                "scale_attn_by_inverse_layer_idx",
                self.scale_attn_by_inverse_layer_idx == Some(true),
                "use a model that scales its attention alike in all layers",
            ),
            ("add_cross_attention", self.add_cross_attention == Some(true), "use a decoder without an encoder"),
        ] {
            problems.require(!on, key, format!("must be false or absent, is true; {remedy}"));
        }
        problems.require(
            self.scale_attn_weights != Some(false),
            "scale_attn_weights",
            "must be true or absent, is false; use a model that scales its attention",
        );
        let layers = self.layer_types.iter().flatten().find(|kind| *kind != "full_attention");
        let kind = layers.map_or("", String::as_str);
        problems.require(layers.is_none(), "layer_types", format!("must all be \"full_attention\", one is {kind:?}"));
        problems.require(
            self.quantization_config.is_none(),
            "quantization_config",
            "must be null; use the model's unquantised checkpoint",
        );
    }
}

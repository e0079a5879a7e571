//! The shape of a decoder: the Hugging Face `config.json` of the families in [`Architecture`].
//!
//! A file is read for what this crate can compute. Keys that do not change the mathematics are ignored; a key that
//! does, with a value that is not supported, is a problem with the key's name and the remedy. All problems of a file
//! are reported at once.

mod architecture;
mod file;
mod rope;

pub use architecture::Architecture;
pub(crate) use file::OneOrMany;
pub use rope::RopeScaling;

use crate::LmError;
use crate::files::{parse_json, read_text, write_text};
use crate::layout::policy_shapes;
use saddle_core::Problems;
use serde_json::{Value, json};
use std::path::Path;

/// The name of the configuration in a model directory.
pub const CONFIG_FILE: &str = "config.json";

pub(crate) const CONFIG_LIMIT_BYTES: u64 = 1 << 20;

/// The most numbers in a table of rotary positions: 2 GiB of float32 for both tables.
const ROTARY_LIMIT: usize = 1 << 28;

/// What stands on top of the trunk; it decides the class that `transformers` loads a written directory as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Next-token logits (`LlamaForCausalLM`, …; weight `lm_head.weight`, absent when tied).
    LanguageModel,
    /// One scalar per position (`LlamaForSequenceClassification`, … with one label; weight `score.weight`).
    Score,
}

/// The shape of a decoder-only transformer. Field names are those of `config.json` in the LLaMA family; GPT-2's own names
/// (`n_embd`, …) are used in its files only.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Which family it is of.
    pub architecture: Architecture,
    /// Rows of the token embedding; at least one more than the largest token id.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward.
    pub intermediate_size: usize,
    /// How many blocks there are.
    pub num_hidden_layers: usize,
    /// Query heads in each block.
    pub num_attention_heads: usize,
    /// Key-value heads in each block; divides `num_attention_heads` (grouped-query attention, arXiv 2305.13245).
    pub num_key_value_heads: usize,
    /// Width of one head, where it is not `hidden_size / num_attention_heads`. Read it by [`Self::head_dim`].
    pub head_dim: Option<usize>,
    /// The longest sequence in tokens, prompt and response together.
    pub max_position_embeddings: usize,
    /// ε of the norms.
    pub rms_norm_eps: f64,
    /// Base θ of the rotary frequencies (RoPE, arXiv 2104.09864); without meaning for GPT-2.
    pub rope_theta: f64,
    /// How rotary positions are stretched, if they are.
    pub rope_scaling: Option<RopeScaling>,
    /// A token sees so many tokens, itself included; all before it where there is no window.
    pub sliding_window: Option<usize>,
    /// Whether the language-model head is the token embedding.
    pub tie_word_embeddings: bool,
    /// The token that begins a text, if the model has one.
    pub bos_token_id: Option<i64>,
    /// The tokens that end a text; some models have several.
    pub eos_token_ids: Vec<i64>,
    /// The token that fills short rows, if the model has one.
    pub pad_token_id: Option<i64>,
}

impl DecoderConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// [`LmError::File`] or [`LmError::Model`] if it cannot be read, [`LmError::Json`] if it does not parse,
    /// [`LmError::Configuration`] with every missing, unsupported or impossible setting.
    pub fn read(path: &Path) -> Result<Self, LmError> {
        Self::from_json(&read_text(path, CONFIG_LIMIT_BYTES)?, path)
    }

    /// Parses and checks the `text` of a `config.json`; `path` is for messages only.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn from_json(text: &str, path: &Path) -> Result<Self, LmError> {
        let file: file::ConfigFile = parse_json(text, path)?;
        file.resolve().map_err(|problems| LmError::Configuration { path: path.to_owned(), problems })
    }

    /// Writes a `config.json` that `transformers` loads.
    ///
    /// # Errors
    /// [`LmError::File`] if it cannot be written.
    pub fn write(&self, path: &Path, head: Head) -> Result<(), LmError> {
        write_text(path, &format!("{:#}\n", self.to_json(head)))
    }

    /// The content of a `config.json` that `transformers` loads.
    #[must_use]
    pub fn to_json(&self, head: Head) -> Value {
        let class = match (head, self.architecture) {
            (Head::LanguageModel, Architecture::Gpt2) => "LMHeadModel",
            (Head::LanguageModel, _) => "ForCausalLM",
            (Head::Score, _) => "ForSequenceClassification",
        };
        let eos_token_id = match self.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        };
        let mut file = self.shape_json();
        file["architectures"] = json!([format!("{}{class}", self.architecture.class_prefix())]);
        file["model_type"] = json!(self.architecture.model_type());
        file["vocab_size"] = json!(self.vocab_size);
        file["tie_word_embeddings"] = json!(self.tie_word_embeddings);
        file["bos_token_id"] = json!(self.bos_token_id);
        file["eos_token_id"] = eos_token_id;
        file["pad_token_id"] = json!(self.pad_token_id);
        if head == Head::Score {
            file["num_labels"] = json!(1);
        }
        file
    }

    /// The sizes and settings of the trunk, under the names of the family.
    fn shape_json(&self) -> Value {
        if self.architecture == Architecture::Gpt2 {
            return json!({
                "n_embd": self.hidden_size,
                "n_inner": self.intermediate_size,
                "n_layer": self.num_hidden_layers,
                "n_head": self.num_attention_heads,
                "n_positions": self.max_position_embeddings,
                "activation_function": "gelu_new",
                "layer_norm_epsilon": self.rms_norm_eps,
                "attn_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "resid_pdrop": 0.0,
            });
        }
        let mut file = json!({
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim(),
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
        });
        if let Some(scaling) = self.rope_scaling {
            file["rope_scaling"] = scaling.to_json();
        }
        if self.architecture == Architecture::Mistral {
            // Absent would mean a window of 4096.
            file["sliding_window"] = json!(self.sliding_window);
        }
        file
    }

    /// The same with more tokens that end a text, behind those that there are.
    #[must_use]
    pub fn with_end_tokens(&self, tokens: impl IntoIterator<Item = i64>) -> Self {
        let mut config = self.clone();
        for token in tokens {
            if !config.eos_token_ids.contains(&token) {
                config.eos_token_ids.push(token);
            }
        }
        config
    }

    /// Width of one attention head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or_else(|| self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0))
    }

    /// How many numbers the trunk and the language-model head of a valid shape hold; a tied head counts once.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        policy_shapes(self).iter().map(|(_, shape)| shape.iter().product::<i64>() as usize).sum()
    }

    /// Everything that is impossible about this shape; empty when a decoder can be built from it.
    #[must_use]
    pub fn validate(&self) -> Problems {
        let mut problems = Problems::default();
        self.check_sizes(&mut problems);
        self.check_heads(&mut problems);
        self.check_tokens(&mut problems);
        let epsilon = self.rms_norm_eps;
        problems.require(
            epsilon > 0.0 && epsilon < 1.0,
            "rms_norm_eps",
            format!("must lie between 0 and 1, is {epsilon}"),
        );
        self.check_positions(&mut problems);
        problems
    }

    fn check_sizes(&self, problems: &mut Problems) {
        for (key, size, limit) in [
            ("vocab_size", self.vocab_size, 1 << 22),
            ("hidden_size", self.hidden_size, 1 << 16),
            ("intermediate_size", self.intermediate_size, 1 << 18),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 10),
            ("num_attention_heads", self.num_attention_heads, 1 << 10),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 10),
            ("head_dim", self.head_dim(), 1 << 12),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 24),
        ] {
            problems.require((1..=limit).contains(&size), key, format!("must lie between 1 and {limit}, is {size}"));
        }
    }

    fn check_heads(&self, problems: &mut Problems) {
        let (hidden, heads, key_value_heads) = (self.hidden_size, self.num_attention_heads, self.num_key_value_heads);
        problems.require(
            heads == 0 || self.head_dim.is_some() || hidden.is_multiple_of(heads),
            "hidden_size",
            format!("must be a multiple of num_attention_heads = {heads} unless head_dim is set, is {hidden}"),
        );
        problems.require(
            key_value_heads == 0 || heads.is_multiple_of(key_value_heads),
            "num_key_value_heads",
            format!("must divide num_attention_heads = {heads}, is {key_value_heads}"),
        );
        let head_dim = self.head_dim();
        if self.architecture.is_rotary() {
            problems.require(
                head_dim.is_multiple_of(2),
                "head_dim",
                format!("must be even, since rotary positions turn pairs, is {head_dim}"),
            );
        } else {
            problems.require(
                key_value_heads == heads && head_dim.saturating_mul(heads) == hidden,
                "num_attention_heads",
                format!(
                    "must each have keys and values of their own and together be as wide as hidden_size = {hidden}"
                ),
            );
        }
    }

    fn check_tokens(&self, problems: &mut Problems) {
        let bos = self.bos_token_id.iter().map(|id| ("bos_token_id", *id));
        let eos = self.eos_token_ids.iter().map(|id| ("eos_token_id", *id));
        let pad = self.pad_token_id.iter().map(|id| ("pad_token_id", *id));
        for (key, id) in bos.chain(eos).chain(pad) {
            let known = usize::try_from(id).is_ok_and(|id| id < self.vocab_size);
            problems.require(known, key, format!("must lie below vocab_size = {}, is {id}", self.vocab_size));
        }
    }

    fn check_positions(&self, problems: &mut Problems) {
        let theta = self.rope_theta;
        problems.require(
            theta.is_finite() && theta >= 1.0,
            "rope_theta",
            format!("must be finite and at least 1, is {theta}"),
        );
        if let Some(scaling) = self.rope_scaling {
            scaling.check(problems);
        }
        if self.architecture.is_rotary() {
            let (length, head_dim) = (self.max_position_embeddings, self.head_dim());
            problems.require(
                length.saturating_mul(head_dim) <= ROTARY_LIMIT,
                "max_position_embeddings",
                format!(
                    "must be at most {ROTARY_LIMIT} / head_dim = {head_dim}, is {length}; set it to the length you use"
                ),
            );
        }
        problems.require(
            self.sliding_window.is_none() || self.architecture == Architecture::Mistral,
            "sliding_window",
            format!("must be null for {}", self.architecture.model_type()),
        );
        problems.require(self.sliding_window != Some(0), "sliding_window", "must be at least 1, or null, is 0");
    }
}

#[cfg(test)]
mod tests;

//! Sections that several stages share.

use super::Validate;
use saddle_core::Problems;
use saddle_data::{BadRowPolicy, Source};
use saddle_lm::{AdamWConfig, Architecture, Decay, DecoderConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[run]`: what holds for the whole run.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RunSection {
    /// Every random number of the run follows from it.
    pub seed: u64,
    /// `cpu`, or `cuda:0` for the first GPU.
    pub device: Device,
    /// CPU threads for one tensor operation; 0 means one for each core.
    pub threads: usize,
}

/// The name of a device, such as `cpu` or `cuda:0`; checked when the run starts.
pub type Device = String;

impl Default for RunSection {
    fn default() -> Self {
        Self { seed: 0, device: "cpu".to_owned(), threads: 0 }
    }
}

/// `[model]`: where a model comes from: an existing directory, or a fresh decoder with a tokenizer.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ModelSection {
    /// A model directory in the Hugging Face layout to start from.
    pub from: Option<PathBuf>,
    /// The shape of a fresh decoder, when there is no `from`.
    pub shape: Option<ShapeSection>,
    /// The tokenizer of a fresh decoder.
    pub tokenizer: Option<TokenizerSection>,
}

impl Validate for ModelSection {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        let fresh = self.shape.is_some() && self.tokenizer.is_some();
        let partly = self.shape.is_some() || self.tokenizer.is_some();
        problems.require(
            self.from.is_some() != fresh && (self.from.is_none() || !partly),
            "from",
            "say either `from = \"model directory\"`, or both [model.shape] and [model.tokenizer] for a fresh decoder",
        );
        if let Some(tokenizer) = &self.tokenizer {
            problems.require(
                tokenizer.path.is_some() != tokenizer.train_vocabulary.is_some(),
                "tokenizer",
                "say either `path = \"directory\"` or `train_vocabulary = SIZE`",
            );
        }
        problems
    }
}

/// `[model.shape]`: a decoder of the LLaMA family.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ShapeSection {
    /// Number of blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Inner width of the SwiGLU feed-forward.
    pub intermediate: usize,
    /// Query heads; `hidden` is a multiple of it.
    pub heads: usize,
    /// Key-value heads; `heads` is a multiple of it. Default: as many as `heads`.
    pub key_value_heads: Option<usize>,
    /// Longest sequence, prompt and response together, in tokens.
    pub max_tokens: usize,
}

impl ShapeSection {
    /// The decoder of this shape over a vocabulary of `vocabulary` tokens, with a tied head.
    #[must_use]
    pub fn decoder(&self, vocabulary: usize, special: SpecialTokens) -> DecoderConfig {
        DecoderConfig {
            architecture: Architecture::Llama,
            vocab_size: vocabulary,
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.key_value_heads.unwrap_or(self.heads),
            head_dim: None,
            max_position_embeddings: self.max_tokens,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            sliding_window: None,
            tie_word_embeddings: true,
            bos_token_id: special.bos,
            eos_token_ids: special.eos.into_iter().collect(),
            pad_token_id: special.pad,
        }
    }
}

/// The special tokens that a decoder's configuration records.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpecialTokens {
    /// Begins a sequence.
    pub bos: Option<i64>,
    /// Ends a response.
    pub eos: Option<i64>,
    /// Fills a batch.
    pub pad: Option<i64>,
}

/// `[model.tokenizer]`: the tokenizer of a fresh decoder.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TokenizerSection {
    /// A directory with `tokenizer.json` and `tokenizer_config.json`.
    pub path: Option<PathBuf>,
    /// Train a byte-level BPE tokenizer of this many tokens on the stage's own training texts.
    pub train_vocabulary: Option<usize>,
}

/// `[data]`: what a supervised or preference stage learns from.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DataSection {
    /// Training sources; with proportions, a mixture of them.
    pub train: Vec<Source>,
    /// Held-out sources. Without them, `held_out_ratio` of the training prompts are kept aside.
    #[serde(default)]
    pub held_out: Vec<Source>,
    /// Share of training prompts to hold out when `held_out` is empty, in 0..1.
    #[serde(default = "DataSection::default_held_out_ratio")]
    pub held_out_ratio: f64,
    /// What to do with a row that cannot be used: `error` stops, `skip` counts it and goes on.
    #[serde(default)]
    pub bad_rows: BadRowPolicy,
    /// Rows with more tokens, prompt and response together, are left out and counted.
    #[serde(default = "DataSection::default_max_tokens")]
    pub max_tokens: usize,
}

impl DataSection {
    fn default_held_out_ratio() -> f64 {
        0.05
    }

    fn default_max_tokens() -> usize {
        512
    }
}

impl Validate for DataSection {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        problems.require(
            !self.train.is_empty(),
            "train",
            "name at least one source: [{ path = \"...\", format = \"...\" }]",
        );
        problems.require(
            (0.0..1.0).contains(&self.held_out_ratio),
            "held_out_ratio",
            format!("must be in 0..1, is {}", self.held_out_ratio),
        );
        problems.require(self.max_tokens >= 2, "max_tokens", "must be at least 2: a prompt and a response");
        problems
    }
}

/// More workers than any machine has cores for; a larger number is a slip.
const WORKER_LIMIT: usize = 256;

/// Notes a problem with `workers` unless a machine may have so many cores.
pub(super) fn require_workers(problems: &mut Problems, workers: usize) {
    let message = format!("must be in 1..={WORKER_LIMIT}, is {workers}");
    problems.require((1..=WORKER_LIMIT).contains(&workers), "workers", message);
}

/// `[optimizer]` of a supervised or preference stage.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OptimizerSection {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Share of all steps over which the rate rises to its peak, in 0..1.
    pub warmup_ratio: f64,
    /// What the rate does after the warm-up.
    pub decay: Decay,
    /// Passes over the training rows.
    pub epochs: usize,
    /// Rows for one step; of a preference stage, pairs.
    pub batch_rows: usize,
    /// At most so many tokens go through the model at once; gradients add up over a batch.
    pub micro_batch_tokens: usize,
    /// Threads that each compute the gradients of a share of every step's rows, with their part of `run.threads`. Small
    /// models gain more from this than from threads within an operation.
    pub workers: usize,
    /// Stop after so many steps, whatever the epochs; 0 means no such limit.
    pub max_steps: u64,
    /// Measure held-out rows on the way each time after so many steps, and after the last. 0 means about ten times a run, but
    /// never sooner than as many rows have been trained on as are measured.
    pub evaluate_every_steps: u64,
    /// Held-out rows that are measured on the way: the first so many, or all if there are fewer; 0 means none. The figures at
    /// the end are of all held-out rows in any case.
    pub evaluate_rows: usize,
    /// Stop when the held-out loss has not fallen for so many measurements in a row, and end with the weights of the best
    /// measurement, even if all steps were taken; costs one copy of the trained weights. 0 means never.
    pub early_stopping_evaluations: u64,
    /// AdamW's own settings.
    pub adamw: AdamWConfig,
}

impl Default for OptimizerSection {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            warmup_ratio: 0.05,
            decay: Decay::Cosine,
            epochs: 1,
            batch_rows: 64,
            micro_batch_tokens: 8192,
            workers: 1,
            max_steps: 0,
            evaluate_every_steps: 0,
            evaluate_rows: 512,
            early_stopping_evaluations: 0,
            adamw: AdamWConfig::default(),
        }
    }
}

impl Validate for OptimizerSection {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        problems.require(
            self.learning_rate.is_finite() && self.learning_rate > 0.0,
            "learning_rate",
            format!("must be a positive number, is {}", self.learning_rate),
        );
        problems.require(
            (0.0..1.0).contains(&self.warmup_ratio),
            "warmup_ratio",
            format!("must be in 0..1, is {}", self.warmup_ratio),
        );
        problems.require(self.epochs > 0, "epochs", "must be at least 1");
        problems.require(self.batch_rows > 0, "batch_rows", "must be at least 1");
        problems.require(self.micro_batch_tokens > 0, "micro_batch_tokens", "must be at least 1");
        require_workers(&mut problems, self.workers);
        problems.section("adamw", self.adamw.validate());
        problems.require(
            self.early_stopping_evaluations == 0 || self.evaluate_rows > 0,
            "early_stopping_evaluations",
            "needs held-out rows on the way; set evaluate_rows to at least 1",
        );
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_stopping_needs_rows_to_measure() {
        let problems = |early_stopping_evaluations, evaluate_rows| {
            let section = OptimizerSection { early_stopping_evaluations, evaluate_rows, ..OptimizerSection::default() };
            section.problems().to_string()
        };
        for (evaluations, rows) in [(0, 0), (0, 1), (1, 1), (3, 512)] {
            assert_eq!(problems(evaluations, rows), "", "{evaluations} evaluations of {rows} rows");
        }
        let refused = problems(1, 0);
        assert!(
            refused.contains("early_stopping_evaluations: needs held-out rows on the way; set evaluate_rows"),
            "{refused}"
        );
    }

    #[test]
    fn settings_that_make_no_optimiser_are_refused_with_their_keys() {
        let refused = |toml: &str| toml::from_str::<OptimizerSection>(toml).unwrap().problems().to_string();
        for (setting, problem) in [
            ("beta1 = 1.0", "adamw.beta1: must be in 0..1, is 1"),
            ("beta2 = nan", "adamw.beta2: must be in 0..1, is NaN"),
            ("epsilon = 0.0", "adamw.epsilon: must be positive, is 0"),
            ("weight_decay = -0.1", "adamw.weight_decay: must be zero or more, is -0.1"),
            ("max_gradient_norm = inf", "adamw.max_gradient_norm: must be zero or more, is inf"),
        ] {
            assert!(refused(&format!("adamw = {{ {setting} }}")).contains(problem), "{setting}");
        }
    }

    #[test]
    fn what_is_not_said_of_measuring_on_the_way_is_its_default() {
        let section: OptimizerSection = toml::from_str("epochs = 2").unwrap();
        let said = (section.evaluate_every_steps, section.evaluate_rows, section.early_stopping_evaluations);
        assert_eq!(said, (0, 512, 0));
    }
}

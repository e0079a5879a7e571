//! Configurations of the stages that learn from labelled rows.

use super::{DataSection, ModelSection, OptimizerSection, RunSection, Validate};
use saddle_core::Problems;
use saddle_lm::LoraConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Configuration of `saddle sft`: supervised fine-tuning on demonstrations.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SftConfig {
    /// What holds for the whole run.
    #[serde(default)]
    pub run: RunSection,
    /// The model to train.
    pub model: ModelSection,
    /// The demonstrations.
    pub data: DataSection,
    /// How it learns.
    #[serde(default)]
    pub optimizer: OptimizerSection,
    /// Low-rank adapters of the model; without this section, all weights are trained.
    pub lora: Option<LoraConfig>,
}

impl Validate for SftConfig {
    fn problems(&self) -> Problems {
        let mut problems = learning(&self.data, &self.optimizer, self.lora.as_ref());
        problems.section("model", self.model.problems());
        require_a_base(&mut problems, &self.model, self.lora.as_ref());
        problems
    }
}

/// Configuration of `saddle reward-model` and `saddle cost-model`: a score model from preference labels.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PreferenceConfig {
    /// What holds for the whole run.
    #[serde(default)]
    pub run: RunSection,
    /// The model whose trunk the score model starts from.
    pub model: ModelSection,
    /// The labelled pairs. The reward model takes rows that say which response is better, the cost model rows that say
    /// which is safer.
    pub data: DataSection,
    /// How it learns.
    #[serde(default)]
    pub optimizer: OptimizerSection,
    /// Low-rank adapters of the model; without this section, all weights are trained.
    pub lora: Option<LoraConfig>,
    /// The loss.
    #[serde(default)]
    pub preference: PreferenceSection,
}

/// `[preference]`: the preference loss (Safe RLHF, arXiv 2310.12773, equations 5 and 6).
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PreferenceSection {
    /// Where a pair's scores are compared.
    pub loss: PreferenceLossKind,
    /// Weight of the mean squared score, which keeps scores near zero.
    pub regularization: f64,
    /// Measure the scores of the training responses and normalise by them when scoring: a reward is shifted and
    /// scaled, a cost only scaled, so that zero stays the boundary of safety.
    pub normalize: bool,
}

/// Where the scores of a pair of responses are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PreferenceLossKind {
    /// At each response's last token.
    #[default]
    SequenceWise,
    /// At every token from where the two part to the end of the longer one.
    TokenWise,
}

impl Validate for PreferenceConfig {
    fn problems(&self) -> Problems {
        let mut problems = learning(&self.data, &self.optimizer, self.lora.as_ref());
        problems.section("model", self.model.problems());
        require_a_base(&mut problems, &self.model, self.lora.as_ref());
        problems.require(
            self.preference.regularization.is_finite() && self.preference.regularization >= 0.0,
            "preference.regularization",
            format!("must be zero or more, is {}", self.preference.regularization),
        );
        problems
    }
}

/// Configuration of `saddle dpo`: a policy from preference labels, without a reward model.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DpoConfig {
    /// What holds for the whole run.
    #[serde(default)]
    pub run: RunSection,
    /// The policy to train; as it is at the start, it is also the reference.
    pub policy: StartSection,
    /// The labelled pairs; rows that say which response is better.
    pub data: DataSection,
    /// How it learns.
    #[serde(default)]
    pub optimizer: OptimizerSection,
    /// Low-rank adapters of the model; without this section, all weights are trained.
    pub lora: Option<LoraConfig>,
    /// The loss.
    #[serde(default)]
    pub dpo: DpoSection,
}

/// `[policy]` of `saddle dpo`: where the policy begins.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StartSection {
    /// Its directory, as `saddle sft` or `saddle import` wrote it.
    pub from: PathBuf,
}

/// `[dpo]`: direct preference optimisation (arXiv 2305.18290, equation 7).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DpoSection {
    /// β: a response's implicit reward is β times the log-ratio of policy to reference; the larger, the closer the
    /// policy keeps to the reference.
    pub kl_coefficient: f64,
}

impl Default for DpoSection {
    fn default() -> Self {
        Self { kl_coefficient: 0.1 }
    }
}

impl Validate for DpoConfig {
    fn problems(&self) -> Problems {
        let mut problems = learning(&self.data, &self.optimizer, self.lora.as_ref());
        let beta = self.dpo.kl_coefficient;
        problems.require(
            beta.is_finite() && beta > 0.0,
            "dpo.kl_coefficient",
            format!("must be a positive number, is {beta}"),
        );
        problems
    }
}

/// Problems of the sections that all these stages have.
fn learning(data: &DataSection, optimizer: &OptimizerSection, lora: Option<&LoraConfig>) -> Problems {
    let mut problems = Problems::default();
    problems.section("data", data.problems());
    problems.section("optimizer", optimizer.problems());
    problems.section("lora", lora.map(LoraConfig::validate).unwrap_or_default());
    problems
}

/// Adapters are for a model that has learnt something.
fn require_a_base(problems: &mut Problems, model: &ModelSection, lora: Option<&LoraConfig>) {
    let message = "a fresh decoder has nothing to keep beneath adapters; start from a model with model.from";
    problems.require(lora.is_none() || model.from.is_some(), "lora", message);
}

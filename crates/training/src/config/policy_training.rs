//! Configuration of `saddle train`: PPO-Lagrangian.

use super::{
    AlarmsSection, CorrectionSection, Disturbance, EdgesSection, EvaluationSection, PlacementSection, PpoSection,
    RunSection, ScheduleSection, SupervisionSection, TelemetrySection, Validate,
};
use crate::metrics::duplicate_name;
use saddle_algorithms::dual::{ConstraintConfig, ControllerConfig, Unattainable};
use saddle_algorithms::guards::GuardConfig;
use saddle_algorithms::returns::Discount;
use saddle_algorithms::shaping::ShapingConfig;
use saddle_core::Problems;
use saddle_data::{BadRowPolicy, Source};
use saddle_lm::{AdamWConfig, Decay, LoraConfig, Precision};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Configuration of `saddle train`: a policy that raises its reward while its expected cost stays under a limit.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TrainConfig {
    /// What holds for the whole run.
    #[serde(default)]
    pub run: RunSection,
    /// The policy, which is also the frozen reference.
    pub policy: PolicySection,
    /// The model whose score is the reward.
    pub reward_model: ScorerSection,
    /// What the policy must keep to, by name: for each constraint a cost model and a limit on its mean.
    pub constraints: BTreeMap<String, ConstraintSection>,
    /// The prompts.
    pub prompts: PromptsSection,
    /// How responses are sampled.
    #[serde(default)]
    pub generation: GenerationSection,
    /// How scores become token streams, with the KL penalty inside.
    #[serde(default)]
    pub shaping: ShapingConfig,
    /// Discounting of the token streams.
    #[serde(default)]
    pub discount: Discount,
    /// The policy update.
    #[serde(default)]
    pub ppo: PpoSection,
    /// Off-policy correction of rollouts that older weights have sampled.
    #[serde(default)]
    pub correction: CorrectionSection,
    /// Where an update is cut short or left out.
    #[serde(default)]
    pub guards: GuardConfig,
    /// How the policy is examined while it is trained, and once it is.
    #[serde(default)]
    pub evaluation: EvaluationSection,
    /// When it is told that something is wrong.
    #[serde(default)]
    pub alarms: AlarmsSection,
    /// The critics.
    #[serde(default)]
    pub critics: CriticsSection,
    /// What is changed under the run on purpose, to see how the multipliers answer it. For experiments only.
    #[serde(default)]
    pub disturbances: Vec<Disturbance>,
    /// What the stages compute in.
    #[serde(default)]
    pub precision: PrecisionSection,
    /// Low-rank adapters of the policy and of the critics; without this section, all weights are trained.
    pub lora: Option<LoraConfig>,
    /// When rollouts are made and when they are trained on.
    #[serde(default)]
    pub schedule: ScheduleSection,
    /// Which stage computes where.
    #[serde(default)]
    pub placement: PlacementSection,
    /// The bounds of what lies between stages.
    #[serde(default)]
    pub edges: EdgesSection,
    /// What is done about stages that fail.
    #[serde(default)]
    pub supervision: SupervisionSection,
    /// What a run tells while it runs.
    #[serde(default)]
    pub telemetry: TelemetrySection,
}

/// `[policy]`: the model that is trained.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PolicySection {
    /// Its directory, as `saddle sft` or `saddle import` wrote it.
    pub from: PathBuf,
    /// Peak learning rate.
    #[serde(default = "PolicySection::default_learning_rate")]
    pub learning_rate: f64,
    /// Share of all steps over which the rate rises to its peak, in 0..1.
    #[serde(default)]
    pub warmup_ratio: f64,
    /// What the rate does after the warm-up.
    #[serde(default)]
    pub decay: Decay,
    /// AdamW's own settings.
    #[serde(default)]
    pub adamw: AdamWConfig,
}

impl PolicySection {
    fn default_learning_rate() -> f64 {
        1e-5
    }
}

/// `[reward_model]`: a frozen score model.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ScorerSection {
    /// Its directory, as `saddle reward-model` wrote it.
    pub from: PathBuf,
}

/// `[constraints.NAME]`: one limit.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ConstraintSection {
    /// Directory of the cost model, as `saddle cost-model` wrote it.
    pub from: PathBuf,
    /// The limit, and how the Lagrange multiplier is moved to keep to it.
    #[serde(default)]
    pub dual: ConstraintConfig,
}

/// `[prompts]`: what the policy answers.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PromptsSection {
    /// Where prompts come from; equal prompts are taken once.
    pub train: Vec<Source>,
    /// What to do with a row that cannot be used: `error` stops, `skip` counts it and goes on.
    #[serde(default)]
    pub bad_rows: BadRowPolicy,
    /// Longer prompts are left out and counted.
    #[serde(default = "PromptsSection::default_max_tokens")]
    pub max_tokens: usize,
}

impl PromptsSection {
    fn default_max_tokens() -> usize {
        256
    }
}

/// `[generation]`: how responses are sampled. There is no top-k and no top-p: the learner could not recompute the
/// log-probabilities of a truncated distribution.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GenerationSection {
    /// Logits are divided by it, when sampling and in the learner.
    pub temperature: f64,
    /// A response ends after so many tokens.
    pub max_new_tokens: usize,
    /// Sequences decoded at once.
    pub rows: usize,
}

impl Default for GenerationSection {
    fn default() -> Self {
        Self { temperature: 1.0, max_new_tokens: 128, rows: 128 }
    }
}

/// `[precision]`: what the matrix products of each stage are computed in: `f32`, or `bf16`, with half the memory to read and,
/// on processors with units for it, several times the speed; and what the weights that are not trained are kept in. Weights that
/// are trained, sums, norms and losses are f32 always.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PrecisionSection {
    /// Responses, and the keys and values that are kept for them. What it does to their log-probs shows as `log_prob_gap`.
    pub generation: Precision,
    /// Rewards, costs and reference log-probs.
    pub scoring: Precision,
    /// Forward and backward passes of policy and critics.
    pub learning: Precision,
    /// What frozen weights are kept in: those of the reward and cost models and of the reference and, with `[lora]`, those
    /// beneath the adapters of policy and critics. `bf16` halves their memory and rounds them once, whatever the stages compute
    /// in; they are multiplied as they are, or widened matrix by matrix where a stage computes in f32. Without `[lora]` the
    /// policy and the critics are trained whole, in f32, and the reference is a copy of its own.
    pub frozen: Precision,
}

/// `[critics]`: the value estimates of the reward and the cost stream.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CriticsSection {
    /// Separate critics, or one with two heads.
    pub layout: Critics,
    /// Learning rate.
    pub learning_rate: f64,
    /// Values are clipped to ± this around the old value in the loss.
    pub clip_value: f64,
    /// AdamW's own settings.
    pub adamw: AdamWConfig,
}

impl Default for CriticsSection {
    fn default() -> Self {
        Self { layout: Critics::default(), learning_rate: 5e-6, clip_value: 5.0, adamw: AdamWConfig::default() }
    }
}

/// How the value of the reward stream and that of the cost stream are estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Critics {
    /// One model each, begun from the reward model and the cost model, as published.
    #[default]
    Separate,
    /// One trunk, begun from the reward model, with a head for each stream.
    TwoHeaded,
}

impl Validate for TrainConfig {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        problems.section("prompts", self.prompts.problems());
        problems.section("generation", self.generation.problems());
        problems.section("shaping", self.shaping.validate());
        problems.section("discount", self.discount.validate());
        problems.section("ppo", self.ppo.problems());
        let device = &self.run.device;
        let message = format!("must be 1 on {device}: only the CPU's operations are many threads' at once");
        problems.require(self.ppo.workers <= 1 || device == "cpu", "ppo.workers", message);
        problems.section("correction", self.correction.problems());
        problems.section("guards", self.guards.validate());
        problems.section("alarms", self.alarms.problems());
        problems.section("evaluation", self.evaluation.problems());
        problems.require(
            !self.constraints.is_empty(),
            "constraints",
            "name at least one: [constraints.cost] with from = \"cost model directory\"",
        );
        let names: Vec<&str> = self.constraints.keys().map(String::as_str).collect();
        let is_plain = |name: &&str| {
            !name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "_-".contains(letter))
        };
        let message = "a name has letters, digits, - and _ only";
        problems.require(names.iter().all(is_plain), "constraints", message);
        if let Some(metric) = duplicate_name(&names) {
            let message = format!("two numbers would be called {metric}; give a constraint another name");
            problems.require(false, "constraints", message);
        }
        for (name, constraint) in &self.constraints {
            problems.section(&format!("constraints.{name}.dual"), constraint.dual.validate());
            self.require_samples(name, &constraint.dual, &mut problems);
        }
        for (key, rate) in
            [("policy.learning_rate", self.policy.learning_rate), ("critics.learning_rate", self.critics.learning_rate)]
        {
            problems.require(rate.is_finite() && rate > 0.0, key, format!("must be a positive number, is {rate}"));
        }
        problems.section("policy.adamw", self.policy.adamw.validate());
        problems.section("critics.adamw", self.critics.adamw.validate());
        problems.require(
            (0.0..1.0).contains(&self.policy.warmup_ratio),
            "policy.warmup_ratio",
            format!("must be in 0..1, is {}", self.policy.warmup_ratio),
        );
        for (index, disturbance) in self.disturbances.iter().enumerate() {
            problems.section(&format!("disturbances.{index}"), disturbance.validate(self.ppo.updates));
        }
        problems.section("lora", self.lora.as_ref().map(LoraConfig::validate).unwrap_or_default());
        problems.require(self.critics.clip_value > 0.0, "critics.clip_value", "must be positive");
        problems.iter().chain(self.schedule_problems().iter()).cloned().collect()
    }
}

impl TrainConfig {
    /// A multiplier that is to move needs an estimate of its cost.
    fn require_samples(&self, name: &str, dual: &ConstraintConfig, problems: &mut Problems) {
        let PpoSection { batch_rollouts, updates, .. } = self.ppo;
        let unattainable = dual.estimator.unattainable(batch_rollouts, updates);
        let Some(Unattainable { key, minimum, most }) =
            unattainable.filter(|_| dual.controller != ControllerConfig::Fixed)
        else {
            return;
        };
        let message = format!(
            "must be at most {most:.1}, is {minimum}: {updates} updates of {batch_rollouts} rollouts have no more effective samples, and λ would never move; lower it, or raise ppo.batch_rollouts"
        );
        problems.require(false, &format!("constraints.{name}.dual.estimator.{key}"), message);
    }
}

impl Validate for PromptsSection {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        problems.require(
            !self.train.is_empty(),
            "train",
            "name at least one source: [{ path = \"...\", format = \"prompts\" }]",
        );
        problems.require(self.max_tokens > 0, "max_tokens", "must be at least 1");
        problems
    }
}

impl Validate for GenerationSection {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        problems.require(
            self.temperature.is_finite() && self.temperature > 0.0,
            "temperature",
            format!("must be a positive number (training samples; it cannot be greedy), is {}", self.temperature),
        );
        problems.require(self.max_new_tokens > 0, "max_new_tokens", "must be at least 1");
        problems.require(self.rows > 0, "rows", "must be at least 1");
        problems
    }
}

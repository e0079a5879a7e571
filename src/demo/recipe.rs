//! The demo's recipe: the configuration of every stage in one file.

use crate::config;
use crate::failure::Failure;
use saddle_core::Problems;
use saddle_data::world::WorldConfig;
use saddle_training::config::{PreferenceConfig, SftConfig, TrainConfig, Validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Stands in the recipe for the run's directory.
const RUN: &str = "{run}";
const RECIPE: &str = include_str!("../../configs/demo.toml");

/// Configuration of `saddle demo`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct DemoConfig {
    /// The embedded world.
    pub(crate) world: WorldConfig,
    /// Supervised fine-tuning on its demonstrations.
    pub(crate) sft: SftConfig,
    /// The reward model, from its helpfulness labels.
    pub(crate) reward_model: PreferenceConfig,
    /// The cost model, from its harmlessness labels.
    pub(crate) cost_model: PreferenceConfig,
    /// Policy training.
    pub(crate) train: TrainConfig,
    /// The comparison of the policy before and after.
    pub(crate) evaluation: EvaluationSection,
}

/// `[evaluation]`: how the policies are compared.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct EvaluationSection {
    /// Sampled answers of each policy, to the held-out prompts in turn.
    pub(crate) responses: usize,
}

impl Validate for DemoConfig {
    fn problems(&self) -> Problems {
        let mut problems = Problems::default();
        problems.section("world", self.world.problems());
        problems.section("sft", self.sft.problems());
        problems.section("reward_model", self.reward_model.problems());
        problems.section("cost_model", self.cost_model.problems());
        problems.section("train", self.train.problems());
        problems.require(self.evaluation.responses > 1, "evaluation.responses", "must be at least 2");
        problems.require(self.train.constraints.len() == 1, "train.constraints", "the demo has exactly one");
        problems
    }
}

impl DemoConfig {
    /// The recipe for a run in the directory `run`, every stage with `seed`.
    pub(crate) fn load(run: &Path, seed: u64, overrides: &[String]) -> Result<Self, Failure> {
        let place = run.to_str().ok_or_else(|| Failure::usage("--run: the path must be valid UTF-8"))?;
        let quoted = place.replace('\\', "\\\\").replace('"', "\\\"");
        let sections = ["sft", "reward_model", "cost_model", "train"];
        let seeds = sections.map(|section| format!("{section}.run.seed={seed}"));
        let all: Vec<String> =
            seeds.into_iter().chain([format!("world.seed={}", seed + 1)]).chain(overrides.iter().cloned()).collect();
        config::parse(&RECIPE.replace(RUN, &quoted), "configs/demo.toml", &all)
    }

    /// The name of the one constraint.
    pub(crate) fn constraint(&self) -> &str {
        self.train.constraints.keys().next().map_or("", String::as_str)
    }

    /// The limit on the mean cost.
    pub(crate) fn cost_limit(&self) -> f64 {
        self.train.constraints.values().next().map_or(0.0, |constraint| constraint.dual.cost_limit)
    }
}

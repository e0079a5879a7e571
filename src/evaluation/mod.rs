//! Answers of a policy to prompts that it was not trained on, scored by the models of its training run; and their means.

mod figures;

use crate::failure::Failure;
use crate::run;
use crate::stages::stop_tokens;
pub(crate) use figures::{Figures, Mean};
use saddle_core::{Finish, PolicyVersion, Prompt, PromptOrdinal};
use saddle_data::PromptRow;
use saddle_lm::{DecodeSettings, ModelKind, Precision, Sampling, generate};
use saddle_store::{Decoding, ResponseRecord};
use saddle_training::config::TrainConfig;
use saddle_training::{PolicyModel, Scorer, encode_prompt};
use std::path::Path;
use tch::Device;

/// Asks policies, and scores what they say.
pub(crate) struct Examiner<'a> {
    config: &'a TrainConfig,
    device: Device,
    reward: Scorer,
    cost: Scorer,
}

/// A scored answer, and whether it ended by itself.
pub(crate) struct Answer {
    pub(crate) record: ResponseRecord,
    pub(crate) finish: Finish,
}

impl<'a> Examiner<'a> {
    /// Reads the reward model of `config`, and its cost model of `constraint`.
    pub(crate) fn new(config: &'a TrainConfig, constraint: &str) -> Result<Self, Failure> {
        let device = run::device(&config.run)?;
        let cost = config
            .constraints
            .get(constraint)
            .ok_or_else(|| Failure::usage(format!("the run has no constraint {constraint}")))?;
        Ok(Self {
            config,
            device,
            reward: Scorer::load(&config.reward_model.from, Some(ModelKind::Reward), device)?,
            cost: Scorer::load(&cost.from, Some(ModelKind::Cost), device)?,
        })
    }

    /// Reads a policy.
    pub(crate) fn policy(&self, path: &Path) -> Result<PolicyModel, Failure> {
        Ok(PolicyModel::load(path, self.device)?)
    }

    /// `count` answers of a policy that records call `name`, to `rows` in turn. Answers of two policies to the same rows
    /// are drawn with the same random numbers.
    pub(crate) fn answers(
        &self,
        name: &str,
        PolicyModel { policy, tokenizer }: &PolicyModel,
        rows: &[PromptRow],
        (decoding, count): (Decoding, usize),
    ) -> Result<Vec<Answer>, Failure> {
        let generation = &self.config.generation;
        let row = |ordinal: PromptOrdinal| &rows[ordinal.0 as usize % rows.len()];
        let prompt = |ordinal| {
            let tokens = encode_prompt(tokenizer, &row(ordinal).prompt)?;
            Ok::<_, Failure>(Prompt { ordinal, tokens, kind: row(ordinal).kind.clone() })
        };
        let prompts = (0..count as u64).map(|ordinal| prompt(PromptOrdinal(ordinal))).collect::<Result<Vec<_>, _>>()?;
        let temperature = if decoding == Decoding::Greedy { 0.0 } else { generation.temperature };
        let settings = DecodeSettings {
            sampling: Sampling { temperature, top_k: 0, top_p: 1.0 },
            max_new_tokens: generation.max_new_tokens,
            limits: vec![],
            stop_tokens: stop_tokens(policy, tokenizer)?,
            seed: self.config.run.seed.wrapping_add(1),
            precision: Precision::F32,
        };
        let rollouts = generate(policy, PolicyVersion(0), prompts, settings, generation.rows)?;
        let budget = self.config.ppo.micro_batch_tokens;
        let (rewards, costs) = (self.reward.score(&rollouts, budget)?, self.cost.score(&rollouts, budget)?);
        let scored = rollouts.iter().zip(rewards).zip(costs);
        let answer = |((rollout, reward), cost): ((&saddle_core::Rollout, f32), f32)| {
            let record = ResponseRecord {
                model: name.to_owned(),
                decoding,
                kind: rollout.prompt.kind.clone(),
                prompt: last_turn(row(rollout.prompt.ordinal)).to_owned(),
                response: tokenizer.decode(&rollout.tokens, true)?,
                reward: f64::from(reward),
                cost: f64::from(cost),
                gold_helpfulness: None,
                gold_harm: None,
            };
            Ok(Answer { record, finish: rollout.finish })
        };
        scored.map(answer).collect()
    }
}

/// What was asked last.
pub(crate) fn last_turn(row: &PromptRow) -> &str {
    row.prompt.last().map_or("", |turn| turn.content.as_str())
}

//! Answers of a policy to prompts that it was not trained on, scored by the models of its training run; and their means.

mod figures;
mod gold;
mod held_out;

use crate::failure::Failure;
use crate::run;
use crate::stages::stop_tokens;
pub(crate) use figures::{Comparison, Mean, figures};
pub(crate) use gold::gold_means;
pub(crate) use held_out::{HeldOut, News};
use saddle_core::{Finish, PolicyVersion, Prompt, PromptOrdinal, Rollout};
use saddle_data::PromptRow;
use saddle_lm::{DecodeSettings, ModelKind, Normalizer, Policy, Precision, Sampling, ScoreModel, Tokenizer, generate};
use saddle_store::{Decoding, ResponseRecord};
use saddle_training::config::TrainConfig;
use saddle_training::{Judges, Scorer, TrainingError, encode_prompt, normalised, score_rollouts};

/// Asks policies, and scores what they say.
pub(crate) struct Examiner {
    config: TrainConfig,
    reward: Judge,
    /// In the order of the constraints' names.
    costs: Vec<Judge>,
    /// The constraint whose cost stands in the records.
    shown: usize,
}

/// A frozen score model.
struct Judge {
    model: ScoreModel,
    normalizer: Option<Normalizer>,
}

impl Judge {
    fn score(&self, rollouts: &[Rollout], budget_tokens: usize) -> Result<Vec<f32>, TrainingError> {
        Ok(normalised(score_rollouts(&self.model, rollouts, budget_tokens)?, self.normalizer))
    }

    /// Shares the weights of `scorer`.
    fn of(scorer: &Scorer) -> Result<Self, TrainingError> {
        let kind = scorer.model.parameters().base().unwrap_or_else(|| scorer.model.parameters()).flat().kind();
        Ok(Self { model: scorer.model.kept(kind, scorer.model.device())?, normalizer: scorer.normalizer })
    }
}

/// A scored answer, and whether it ended by itself.
pub(crate) struct Answer {
    pub(crate) record: ResponseRecord,
    /// By each constraint.
    pub(crate) costs: Vec<f64>,
    pub(crate) finish: Finish,
}

impl Examiner {
    /// Reads the score models of `config`; records show the cost of `constraint`.
    pub(crate) fn load(config: &TrainConfig, constraint: &str) -> Result<Self, Failure> {
        let device = run::device(&config.run)?;
        let shown = config.constraints.keys().position(|name| name == constraint);
        let shown = shown.ok_or_else(|| Failure::usage(format!("the run has no constraint {constraint}")))?;
        let load = |path, kind| {
            let Scorer { model, normalizer, .. } = Scorer::load(path, Some(kind), device)?;
            Ok::<_, Failure>(Judge { model, normalizer })
        };
        let costs = config.constraints.values().map(|section| load(&section.from, ModelKind::Cost));
        Ok(Self {
            reward: load(&config.reward_model.from, ModelKind::Reward)?,
            costs: costs.collect::<Result<_, _>>()?,
            config: config.clone(),
            shown,
        })
    }

    /// Scores by `judges`, whose weights it shares; records show the first cost.
    pub(crate) fn over(config: &TrainConfig, judges: &Judges) -> Result<Self, TrainingError> {
        let costs = judges.costs.iter().map(Judge::of).collect::<Result<_, _>>()?;
        Ok(Self { config: config.clone(), reward: Judge::of(&judges.reward)?, costs, shown: 0 })
    }

    /// `count` answers of a policy that records call `name`, to `rows` in turn. Answers of two policies to the same rows
    /// are drawn with the same random numbers.
    pub(crate) fn answers(
        &self,
        name: &str,
        (policy, tokenizer): (&Policy, &Tokenizer),
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
        let rewards = self.reward.score(&rollouts, budget)?;
        let costs = self.costs.iter().map(|judge| judge.score(&rollouts, budget)).collect::<Result<Vec<_>, _>>()?;
        let answer = |(index, rollout): (usize, &Rollout)| {
            let costs: Vec<f64> = costs.iter().map(|scores| f64::from(scores[index])).collect();
            let numbers = costs.iter().chain(std::iter::once(&f64::from(rewards[index]))).copied().collect::<Vec<_>>();
            if let Some(odd) = numbers.iter().find(|number| !number.is_finite()) {
                return Err(Failure::run(format!(
                    "{}: a score of an answer to this prompt is {odd}, not a finite number; look at the weights of policy and score models",
                    row(rollout.prompt.ordinal).origin
                )));
            }
            let record = ResponseRecord {
                model: name.to_owned(),
                decoding,
                kind: rollout.prompt.kind.clone(),
                prompt: last_turn(row(rollout.prompt.ordinal)).to_owned(),
                response: tokenizer.decode(&rollout.tokens, true)?,
                reward: f64::from(rewards[index]),
                cost: costs[self.shown],
                gold_helpfulness: None,
                gold_harm: None,
            };
            Ok(Answer { record, costs, finish: rollout.finish })
        };
        rollouts.iter().enumerate().map(answer).collect()
    }
}

/// What was asked last.
pub(crate) fn last_turn(row: &PromptRow) -> &str {
    row.prompt.last().map_or("", |turn| turn.content.as_str())
}

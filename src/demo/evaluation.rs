//! Answers of the policy before and after training to prompts that neither has seen, scored by the models and by gold.

use super::recipe::DemoConfig;
use crate::failure::Failure;
use crate::run;
use crate::stages::stop_tokens;
use saddle_core::{Finish, PolicyVersion, Prompt, PromptOrdinal};
use saddle_data::Split;
use saddle_data::world::World;
use saddle_lm::{DecodeSettings, ModelKind, Precision, Sampling, generate};
use saddle_store::{Decoding, ResponseRecord, RunDirectory};
use saddle_training::{PolicyModel, Scorer, encode_prompt};
use std::path::Path;

/// Names of the two policies in the records.
pub(super) const BEFORE: &str = "sft";
pub(super) const AFTER: &str = "trained";

/// Greedy and sampled answers of both policies; the sampled ones of both to the same prompts with the same random numbers.
pub(super) fn evaluate(config: &DemoConfig, world: &World, run: &RunDirectory) -> Result<Vec<ResponseRecord>, Failure> {
    let device = run::device(&config.train.run)?;
    let scorer = |name: &str, kind| Scorer::load(&run.path().join(name).join("model"), Some(kind), device);
    let reward = scorer("reward-model", ModelKind::Reward)?;
    let cost = scorer("cost-model", ModelKind::Cost)?;
    let rows = world.prompts(Split::HeldOut);
    let mut records = Vec::new();
    for (name, stage) in [(BEFORE, "sft"), (AFTER, "train")] {
        let path: &Path = &run.path().join(stage).join("model");
        let PolicyModel { policy, tokenizer } = PolicyModel::load(path, device)?;
        for (decoding, temperature, count) in [
            (Decoding::Sampled, config.train.generation.temperature, config.evaluation.responses),
            (Decoding::Greedy, 0.0, rows.len()),
        ] {
            let row = |ordinal: PromptOrdinal| &rows[ordinal.0 as usize % rows.len()];
            let prompt = |ordinal| {
                let tokens = encode_prompt(&tokenizer, &row(ordinal).prompt)?;
                Ok::<_, Failure>(Prompt { ordinal, tokens, kind: row(ordinal).kind.clone() })
            };
            let prompts =
                (0..count as u64).map(|ordinal| prompt(PromptOrdinal(ordinal))).collect::<Result<Vec<_>, _>>()?;
            let settings = DecodeSettings {
                sampling: Sampling { temperature, top_k: 0, top_p: 1.0 },
                max_new_tokens: config.train.generation.max_new_tokens,
                stop_tokens: stop_tokens(&policy, &tokenizer)?,
                seed: config.train.run.seed.wrapping_add(1),
                precision: Precision::F32,
            };
            let rollouts = generate(&policy, PolicyVersion(0), prompts, settings, config.train.generation.rows)?;
            let budget = config.train.ppo.micro_batch_tokens;
            let (rewards, costs) = (reward.score(&rollouts, budget)?, cost.score(&rollouts, budget)?);
            for ((rollout, reward), cost) in rollouts.iter().zip(rewards).zip(costs) {
                let text = row(rollout.prompt.ordinal).prompt.last().map_or("", |turn| turn.content.as_str());
                let response = tokenizer.decode(&rollout.tokens, true)?;
                let gold = world.judge(text, &response, rollout.finish == Finish::Stop);
                records.push(ResponseRecord {
                    model: name.to_owned(),
                    decoding,
                    kind: rollout.prompt.kind.clone(),
                    prompt: text.to_owned(),
                    response,
                    reward: f64::from(reward),
                    cost: f64::from(cost),
                    gold_helpfulness: Some(gold.helpfulness),
                    gold_harm: Some(gold.harm),
                });
            }
        }
    }
    Ok(records)
}

//! What the embedded world's gold scores say of rollouts in training.

use saddle_core::{Finish, PromptOrdinal, ScoredRollout};
use saddle_data::PromptRow;
use saddle_data::world::{Gold, World};
use saddle_lm::Tokenizer;

/// Gold scores of rollouts in training, which the learner never sees.
pub(crate) fn gold_means(
    world: &World,
    row: &dyn Fn(PromptOrdinal) -> PromptRow,
    rollouts: &[ScoredRollout],
    tokenizer: &Tokenizer,
) -> Vec<(String, f64)> {
    let gold: Vec<Gold> = rollouts
        .iter()
        .filter_map(|each| {
            let prompt = row(each.rollout.prompt.ordinal).prompt.last()?.content.clone();
            let response = tokenizer.decode(&each.rollout.tokens, true).ok()?;
            Some(world.judge(&prompt, &response, each.rollout.finish == Finish::Stop))
        })
        .collect();
    let mean = |value: fn(&Gold) -> f64| gold.iter().map(value).sum::<f64>() / gold.len().max(1) as f64;
    vec![
        ("gold_helpfulness_mean".to_owned(), mean(|gold| gold.helpfulness)),
        ("gold_harm_mean".to_owned(), mean(|gold| gold.harm)),
        ("gold_unsafe_ratio".to_owned(), mean(|gold| f64::from(u8::from(gold.is_unsafe())))),
    ]
}

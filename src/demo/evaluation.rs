//! Answers of the policy before and after training to prompts that neither has seen, scored by the models and by gold.

use super::recipe::DemoConfig;
use crate::evaluation::{Answer, Examiner};
use crate::failure::Failure;
use crate::run;
use saddle_core::Finish;
use saddle_data::Split;
use saddle_data::world::World;
use saddle_store::{Decoding, ResponseRecord, RunDirectory};
use saddle_training::PolicyModel;

/// Names of the two policies in the records.
pub(super) const BEFORE: &str = "sft";
pub(super) const AFTER: &str = "trained";

/// Greedy and sampled answers of both policies; the sampled ones of both to the same prompts with the same random numbers.
pub(super) fn evaluate(
    config: &DemoConfig,
    world: &World,
    directory: &RunDirectory,
) -> Result<Vec<ResponseRecord>, Failure> {
    let examiner = Examiner::load(&config.train, config.constraint())?;
    let device = run::device(&config.train.run)?;
    let rows = world.prompts(Split::HeldOut);
    let mut records = Vec::new();
    for (name, stage) in [(BEFORE, "sft"), (AFTER, "train")] {
        let PolicyModel { policy, tokenizer } = PolicyModel::load(&directory.path().join(stage).join("model"), device)?;
        for asked in [(Decoding::Sampled, config.evaluation.responses), (Decoding::Greedy, rows.len())] {
            let answers = examiner.answers(name, (&policy, &tokenizer), &rows, asked)?;
            records.extend(answers.into_iter().map(|answer| judged(world, answer)));
        }
    }
    Ok(records)
}

/// The record of an answer, with its gold scores.
fn judged(world: &World, Answer { record, finish, .. }: Answer) -> ResponseRecord {
    let gold = world.judge(&record.prompt, &record.response, finish == Finish::Stop);
    ResponseRecord { gold_helpfulness: Some(gold.helpfulness), gold_harm: Some(gold.harm), ..record }
}

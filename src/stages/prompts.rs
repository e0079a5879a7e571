//! The prompts of policy training: rendered and encoded once, then drawn again and again.

use super::{note_notices, note_skipped, note_too_long};
use crate::failure::Failure;
use saddle_core::{Prompt, PromptOrdinal};
use saddle_data::{PromptRow, PromptStream, Source, Split, Turn, split_of};
use saddle_lm::Tokenizer;
use saddle_training::config::{PromptsSection, TrainConfig};
use saddle_training::{Observer, encode_prompt};
use std::collections::HashMap;

/// Most answers to one prompt in one update.
const ANSWERS_TO_A_PROMPT: usize = 256;

/// An endless sequence of prompts with their tokens.
pub(super) struct Prompts {
    /// Each from its place on, until the next one's.
    streams: Vec<(PromptOrdinal, PromptStream)>,
    /// Of each conversation in the streams.
    tokens: HashMap<Vec<Turn>, Vec<i64>>,
}

impl Prompts {
    /// The prompts that `config` trains on and those that it keeps out of training: of either those that the tokenizer's
    /// template accepts and that are short enough for a policy of `context_tokens`.
    pub(super) fn read(
        config: &TrainConfig,
        tokenizer: &Tokenizer,
        context_tokens: usize,
        observer: &mut dyn Observer,
    ) -> Result<(Self, Vec<PromptRow>), Failure> {
        let (seed, evaluation) = (config.run.seed, &config.evaluation);
        note_notices(tokenizer, observer);
        let max_new_tokens = config.generation.max_new_tokens;
        if max_new_tokens >= context_tokens {
            return Err(Failure::usage(format!(
                "generation.max_new_tokens = {max_new_tokens} leaves no room for a prompt: the policy takes {context_tokens} tokens"
            )));
        }
        // A response has at least one token.
        let max_tokens = config.prompts.max_tokens.min(context_tokens - 1);
        let section = PromptsSection { max_tokens, ..config.prompts.clone() };
        let mut usable = |sources: &[Source]| usable(sources, &section, tokenizer, seed, observer);
        let train = usable(&config.prompts.train)?;
        let (train, held_out): (Vec<_>, Vec<_>) = match evaluation.prompts.as_slice() {
            [] => train
                .into_iter()
                .partition(|(row, _)| split_of(&row.prompt, evaluation.held_out_ratio, seed) == Split::Train),
            sources => (train, usable(sources)?),
        };
        if train.is_empty() {
            return Err(Failure::usage(
                "prompts: no prompt is left to use; look at prompts.max_tokens and evaluation.held_out_ratio",
            ));
        }
        let (batch, most) = (config.ppo.batch_rollouts, ANSWERS_TO_A_PROMPT * train.len());
        if batch > most {
            return Err(Failure::usage(format!(
                "ppo.batch_rollouts = {batch} asks {} prompts more than {ANSWERS_TO_A_PROMPT} times each in one update: at most {most}",
                train.len()
            )));
        }
        let mut prompts = Self { streams: Vec::new(), tokens: HashMap::new() };
        prompts.draw_from(PromptOrdinal(0), train, seed)?;
        for disturbance in config.disturbances.iter().filter(|each| !each.prompts.is_empty()) {
            let place = (disturbance.at_update - 1) * config.ppo.batch_rollouts as u64;
            prompts.draw_from(PromptOrdinal(place), usable(&disturbance.prompts)?, seed)?;
        }
        observer.note(&format!("{} prompts, {} held out", prompts.streams[0].1.epoch_prompts(), held_out.len()));
        Ok((prompts, shuffled(held_out.into_iter().map(|(row, _)| row).collect(), seed)?))
    }

    /// From `place` on, prompts are those of `rows`.
    fn draw_from(&mut self, place: PromptOrdinal, rows: Vec<(PromptRow, Vec<i64>)>, seed: u64) -> Result<(), Failure> {
        let (rows, tokens): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        self.tokens.extend(rows.iter().map(|row: &PromptRow| row.prompt.clone()).zip(tokens));
        self.streams.push((place, PromptStream::new(rows, seed)?));
        Ok(())
    }

    /// The row at a place of the sequence.
    pub(super) fn row(&self, ordinal: PromptOrdinal) -> &PromptRow {
        let stream = self.streams.iter().rev().find(|(place, _)| *place <= ordinal);
        stream.expect("the first stream begins at the first place").1.get(ordinal)
    }

    /// The same as the policy takes it.
    pub(super) fn prompt(&self, ordinal: PromptOrdinal) -> Prompt {
        let row = self.row(ordinal);
        let tokens = self.tokens.get(&row.prompt).expect("`read` has encoded every row of the stream");
        Prompt { ordinal, tokens: tokens.clone(), kind: row.kind.clone() }
    }
}

/// The rows in an order that the seed gives, so that the first ones are of every kind.
fn shuffled(rows: Vec<PromptRow>, seed: u64) -> Result<Vec<PromptRow>, Failure> {
    if rows.is_empty() {
        return Ok(rows);
    }
    let stream = PromptStream::new(rows, seed)?;
    Ok((0..stream.epoch_prompts()).map(|place| stream.get(PromptOrdinal(place)).clone()).collect())
}

/// The rows of `sources` that the tokenizer's template accepts and that are short enough, with their tokens.
fn usable(
    sources: &[Source],
    section: &PromptsSection,
    tokenizer: &Tokenizer,
    seed: u64,
    observer: &mut dyn Observer,
) -> Result<Vec<(PromptRow, Vec<i64>)>, Failure> {
    let read = saddle_data::read_prompts(sources, section.bad_rows, seed)?;
    note_skipped(&read.skipped, observer);
    if read.duplicates > 0 {
        observer.note(&format!("left out {} prompts that stand in the data already", read.duplicates));
    }
    let total = read.rows.len();
    let mut usable = Vec::with_capacity(total);
    for row in read.rows {
        let tokens = encode_prompt(tokenizer, &row.prompt)?;
        if tokens.len() <= section.max_tokens {
            usable.push((row, tokens));
        }
    }
    note_too_long(total - usable.len(), section.max_tokens, observer);
    Ok(usable)
}

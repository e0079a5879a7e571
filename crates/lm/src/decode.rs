//! Batched decoding with a key-value cache: prompts go in, rollouts come out, and a finished row is free at once.
//!
//! Rows are packed: the running ones are always rows `0..running`, so a step costs what is running and nothing else.

use crate::decoding_weights::Entrant;
use crate::sampling::ResponseRandom;
use crate::{DecodingWeights, KvCache, LmError, Policy, Precision, Sampling};
use saddle_core::{Finish, PolicyVersion, Prompt, PromptOrdinal, Rollout};
use std::collections::BTreeMap;
use tch::Tensor;

/// What stays the same for all responses of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeSettings {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// A response ends after so many tokens.
    pub max_new_tokens: usize,
    /// Shorter limits, taken in turn: a prompt's is that at its ordinal modulo their number. Usually there are none.
    pub limits: Vec<usize>,
    /// A response ends with any of these tokens.
    pub stop_tokens: Vec<i64>,
    /// Seed of the sampling streams.
    pub seed: u64,
    /// What decoding computes in.
    pub precision: Precision,
}

impl DecodeSettings {
    fn limit(&self, ordinal: PromptOrdinal) -> usize {
        let turn = ordinal.0.checked_rem(self.limits.len() as u64);
        turn.map_or(self.max_new_tokens, |turn| self.limits[turn as usize].min(self.max_new_tokens))
    }
}

/// Sequences being decoded together.
#[derive(Debug)]
pub struct DecodingBatch {
    settings: DecodeSettings,
    cache: KvCache,
    rows: usize,
    capacity: usize,
    running: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    rollout: Rollout,
    random: ResponseRandom,
}

impl Row {
    /// Tokens in the sequence so far.
    fn length(&self) -> usize {
        self.rollout.prompt.tokens.len() + self.rollout.tokens.len()
    }
}

impl DecodingBatch {
    /// Room for `rows` sequences of up to `capacity` tokens, decoded with `weights` or others of the same architecture.
    ///
    /// # Errors
    /// Fails if the cache's memory cannot be had.
    pub fn new(
        weights: &DecodingWeights,
        settings: DecodeSettings,
        rows: usize,
        capacity: usize,
    ) -> Result<Self, LmError> {
        let capacity = capacity.min(weights.policy().config().max_position_embeddings);
        Ok(Self { settings, cache: weights.cache(rows, capacity)?, rows, capacity, running: Vec::new() })
    }

    /// How many more sequences fit now.
    #[must_use]
    pub fn free(&self) -> usize {
        self.rows - self.running.len()
    }

    /// How many sequences are being decoded.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Takes up `prompts`, at most [`Self::free`] of them, and samples the first token of each under `weights`. A prompt
    /// that several answers are sampled for is read once. Returns the rollouts that are already over; a prompt that leaves
    /// no room for an answer comes back with an empty one.
    ///
    /// # Errors
    /// [`LmError::Mismatch`] if there are too many; else if libtorch fails.
    pub fn admit(
        &mut self,
        weights: &DecodingWeights,
        version: PolicyVersion,
        prompts: Vec<Prompt>,
    ) -> Result<Vec<Rollout>, LmError> {
        if prompts.len() > self.free() {
            return Err(LmError::Mismatch(format!("{} prompts for {} free rows", prompts.len(), self.free())));
        }
        let _guard = tch::no_grad_guard();
        let seed = self.settings.seed;
        let rows = prompts.into_iter().map(|prompt| Row {
            random: ResponseRandom::new(seed, prompt.ordinal),
            rollout: Rollout { prompt, tokens: vec![], log_probs: vec![], versions: vec![], finish: Finish::Length },
        });
        let (fitting, full): (Vec<Row>, Vec<Row>) = rows.partition(|row| (1..self.capacity).contains(&row.length()));
        let mut over: Vec<Rollout> = full.into_iter().map(|row| row.rollout).collect();
        if fitting.is_empty() {
            return Ok(over);
        }
        let first_row = self.running.len();
        let shares = weights.shares_prefixes();
        let mut sources = if shares { self.known_prompts(version) } else { BTreeMap::new() };
        let (mut new, mut copies) = (vec![], vec![]);
        for row in fitting {
            let prompt = &row.rollout.prompt.tokens;
            if let Some(source) = sources.get(prompt) {
                copies.push((*source, row));
                continue;
            }
            if shares {
                sources.insert(prompt.clone(), first_row + new.len());
            }
            new.push(row);
        }
        let mut logits = Vec::new();
        for (sources, rows) in [(vec![], new), copies.into_iter().unzip()] {
            logits.extend(self.take_up(weights, &sources, rows)?);
        }
        over.extend(self.extend(&Tensor::f_cat(&logits, 0)?, version, first_row)?);
        Ok(over)
    }

    /// The prompts whose keys and values under the weights of `version` are in the cache, each with a row that has them.
    fn known_prompts(&self, version: PolicyVersion) -> BTreeMap<Vec<i64>, usize> {
        let fresh = |row: &&Row| row.rollout.versions.first() == Some(&version);
        let running = self.running.iter().enumerate();
        running.filter(|(_, row)| fresh(row)).map(|(index, row)| (row.rollout.prompt.tokens.clone(), index)).collect()
    }

    /// Reads the prompts of `rows` into the next rows of the cache, each but for its last token from its row of `sources` where
    /// there are any. Gives the logits after them; none if there are no rows.
    fn take_up(
        &mut self,
        weights: &DecodingWeights,
        sources: &[usize],
        rows: Vec<Row>,
    ) -> Result<Option<Tensor>, LmError> {
        if rows.is_empty() {
            return Ok(None);
        }
        let first_row = self.running.len();
        for (index, source) in sources.iter().enumerate() {
            let known = rows[index].length() as i64 - 1;
            self.cache.copy_row(*source as i64, (first_row + index) as i64, known)?;
        }
        let entrants: Vec<Entrant<'_>> = rows
            .iter()
            .enumerate()
            .map(|(index, row)| Entrant {
                tokens: &row.rollout.prompt.tokens,
                known: if sources.is_empty() { 0 } else { row.length() - 1 },
                row: first_row + index,
            })
            .collect();
        let logits = weights.read(&entrants, &mut self.cache)?;
        self.running.extend(rows);
        Ok(Some(logits))
    }

    /// Samples one more token for every running sequence and returns the rollouts that ended with it.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn step(&mut self, weights: &DecodingWeights, version: PolicyVersion) -> Result<Vec<Rollout>, LmError> {
        if self.running.is_empty() {
            return Ok(vec![]);
        }
        let _guard = tch::no_grad_guard();
        let newest: Vec<i64> = self.running.iter().filter_map(|row| row.rollout.tokens.last().copied()).collect();
        let positions: Vec<i64> = self.running.iter().map(|row| row.length() as i64 - 1).collect();
        let logits = weights.step(&newest, &positions, &mut self.cache)?;
        self.extend(&logits, version, 0)
    }

    /// Computes the keys and values of everything so far anew, under `weights`: what a sequence goes on from then is what
    /// they make of it.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn rebuild(&mut self, weights: &DecodingWeights) -> Result<(), LmError> {
        let _guard = tch::no_grad_guard();
        // The newest token is not in the cache yet: the next step puts it there.
        let known = |row: &Row| {
            let tokens = row.rollout.prompt.tokens.iter().chain(&row.rollout.tokens).copied();
            tokens.take(row.length() - 1).collect::<Vec<i64>>()
        };
        let sequences: Vec<Vec<i64>> = self.running.iter().map(known).collect();
        let entrants: Vec<Entrant<'_>> =
            sequences.iter().enumerate().map(|(row, tokens)| Entrant { tokens, known: 0, row }).collect();
        if !entrants.is_empty() {
            // Only what it leaves in the cache is of use.
            let _ = weights.read(&entrants, &mut self.cache)?;
        }
        Ok(())
    }

    /// Gives up the answer to the prompt at `ordinal`, if it is being decoded.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn evict(&mut self, ordinal: PromptOrdinal) -> Result<(), LmError> {
        if let Some(index) = self.running.iter().position(|row| row.rollout.prompt.ordinal == ordinal) {
            self.take(index)?;
        }
        Ok(())
    }

    /// Draws a token for each row from `first_row` on, and takes out the rows that end with it.
    fn extend(&mut self, logits: &Tensor, version: PolicyVersion, first_row: usize) -> Result<Vec<Rollout>, LmError> {
        let uniforms: Vec<f64> = self.running[first_row..].iter_mut().map(|row| row.random.uniform()).collect();
        let (tokens, log_probs) = self.settings.sampling.choose(logits, &uniforms)?;
        for ((row, token), log_prob) in self.running[first_row..].iter_mut().zip(tokens).zip(log_probs) {
            row.rollout.tokens.push(token);
            row.rollout.log_probs.push(log_prob);
            row.rollout.versions.push(version);
            if self.settings.stop_tokens.contains(&token) {
                row.rollout.finish = Finish::Stop;
            }
        }
        let mut over = Vec::new();
        for index in (first_row..self.running.len()).rev() {
            let row = &self.running[index];
            let limit = self.settings.limit(row.rollout.prompt.ordinal);
            let full = row.rollout.tokens.len() >= limit || row.length() >= self.capacity;
            if row.rollout.finish == Finish::Stop || full {
                over.push(self.take(index)?);
            }
        }
        Ok(over)
    }

    /// Removes a row; the last one takes its place.
    fn take(&mut self, index: usize) -> Result<Rollout, LmError> {
        let last = self.running.len() - 1;
        if index != last {
            self.cache.copy_row(last as i64, index as i64, self.running[last].length() as i64)?;
        }
        Ok(self.running.swap_remove(index).rollout)
    }
}

/// Answers every prompt with at most `rows` at a time, and returns the rollouts in the order of the prompts.
///
/// # Errors
/// Fails if libtorch does.
pub fn generate(
    policy: &Policy,
    version: PolicyVersion,
    prompts: Vec<Prompt>,
    settings: DecodeSettings,
    rows: usize,
) -> Result<Vec<Rollout>, LmError> {
    let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
    let capacity = longest + settings.max_new_tokens;
    let weights = &DecodingWeights::new(policy, settings.precision)?;
    let mut batch = DecodingBatch::new(weights, settings, rows.min(prompts.len()).max(1), capacity)?;
    let mut rollouts = Vec::with_capacity(prompts.len());
    let mut waiting = prompts.into_iter();
    loop {
        let admitted: Vec<Prompt> = waiting.by_ref().take(batch.free()).collect();
        if admitted.is_empty() && batch.running() == 0 {
            break;
        }
        rollouts.extend(batch.admit(weights, version, admitted)?);
        rollouts.extend(batch.step(weights, version)?);
    }
    rollouts.sort_by_key(|rollout: &Rollout| rollout.prompt.ordinal);
    Ok(rollouts)
}

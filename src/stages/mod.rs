//! The training stages: each reads its data and models, trains, and leaves a run directory with a model in it.

mod asynchronous;
mod dpo;
mod health;
mod labelled;
mod policy;
mod prompts;
mod saving;
mod scorer;
mod sft;
mod waits;
mod watched;

pub(crate) use dpo::direct_preference;
pub(crate) use policy::{policy_training, stop_tokens};
pub(crate) use scorer::score_model;
pub(crate) use sft::supervised;
pub(crate) use watched::Watch;

use crate::failure::Failure;
use saddle_data::SkipCounts;
use saddle_lm::{Decoder, DecoderHead, LoraConfig, Tokenizer, write_adapter};
use saddle_store::RunDirectory;
use saddle_training::Observer;
use std::path::Path;

/// What a stage came to.
#[derive(Debug, Default)]
pub(crate) struct StageResult {
    /// Words for the closing table, by name.
    pub(crate) details: Vec<(&'static str, String)>,
    /// Numbers for it.
    pub(crate) figures: Vec<(String, f64)>,
    /// The verdict on a limit that is broken.
    pub(crate) broken: Option<String>,
}

impl From<Vec<(String, f64)>> for StageResult {
    fn from(figures: Vec<(String, f64)>) -> Self {
        Self { figures, ..Self::default() }
    }
}

/// The model with fresh adapters, if the recipe asks for them.
fn adapted<H: DecoderHead>(model: Decoder<H>, lora: Option<&LoraConfig>, seed: u64) -> Result<Decoder<H>, Failure> {
    match lora {
        Some(lora) => Ok(model.adapted(lora, seed)?),
        None => Ok(model),
    }
}

/// Writes the adapters of a model that has any beside the merged one. `base` is the model that they were trained on.
fn save_adapter<H: DecoderHead>(model: &Decoder<H>, base: Option<&Path>, run: &RunDirectory) -> Result<(), Failure> {
    match (model.parameters().lora(), base) {
        (Some(_), Some(base)) => Ok(write_adapter(&run.adapter_path(), model, base)?),
        _ => Ok(()),
    }
}

/// A step cannot have more rows than there are.
fn note_rows(batch_rows: usize, rows: usize, observer: &mut dyn Observer) {
    if batch_rows > rows {
        observer
            .note(&format!("optimizer.batch_rows = {batch_rows}, and there are {rows} rows: each step takes them all"));
    }
}

fn note_skipped(skipped: &SkipCounts, observer: &mut dyn Observer) {
    if skipped.total() > 0 {
        observer.note(&skipped.to_string());
    }
}

/// Tells what somebody who uses this tokenizer should know.
fn note_notices(tokenizer: &Tokenizer, observer: &mut dyn Observer) {
    tokenizer.notices().iter().for_each(|notice| observer.note(notice));
}

fn note_same_tokens(pairs: usize, observer: &mut dyn Observer) {
    if pairs > 0 {
        observer.note(&format!("left out {pairs} pairs whose responses are the same tokens"));
    }
}

fn note_too_long(rows: usize, max_tokens: usize, observer: &mut dyn Observer) {
    if rows > 0 {
        observer.note(&format!("left out {rows} rows of more than {max_tokens} tokens"));
    }
}

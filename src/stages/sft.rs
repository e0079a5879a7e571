//! `saddle sft`.

use super::labelled::{DEMONSTRATIONS, Prepared};
use super::saving::save_model;
use super::{adapted, note_rows, save_adapter};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::run;
use saddle_store::RunDirectory;
use saddle_training::config::SftConfig;
use saddle_training::{PolicyModel, train_supervised};

/// Fine-tunes a policy as `config` says into `run`, and returns its held-out figures.
pub(crate) fn supervised(config: &SftConfig, run: &RunDirectory) -> Result<Vec<(String, f64)>, Failure> {
    let device = run::device(&config.run)?;
    let seed = config.run.seed;
    let mut progress = Progress::start("sft", &["loss", "held_out_loss"], run)?;
    let Prepared { start, train, held_out } =
        DEMONSTRATIONS.prepare(&config.model, &config.data, (seed, device), &mut progress)?;
    note_rows(config.optimizer.batch_rows, train.len(), &mut progress);
    let policy = adapted(start.policy(device)?, config.lora.as_ref(), seed)?;
    let (policy, figures) = train_supervised(policy, &train, &held_out, &config.optimizer, seed, &mut progress)?;
    save_adapter(&policy, config.model.from.as_deref(), run)?;
    save_model(run, |path| Ok(PolicyModel::save(&policy, &start.tokenizer, path)?))?;
    progress.finish(run)?;
    Ok(figures)
}

//! `saddle dpo`.

use super::labelled::{HELPFULNESS, Prepared};
use super::saving::save_model;
use super::{adapted, note_rows, save_adapter};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::run;
use saddle_store::RunDirectory;
use saddle_training::config::{DpoConfig, ModelSection};
use saddle_training::{PolicyModel, train_directly};

/// Trains a policy on preferences as `config` says into `run`, and returns its held-out figures.
pub(crate) fn direct_preference(config: &DpoConfig, run: &RunDirectory) -> Result<Vec<(String, f64)>, Failure> {
    let device = run::device(&config.run)?;
    let seed = config.run.seed;
    let shown = &["loss", "implicit_reward_accuracy", "held_out_loss", "held_out_implicit_reward_accuracy"];
    let mut progress = Progress::start("dpo", shown, run)?;
    let model = ModelSection { from: Some(config.policy.from.clone()), ..ModelSection::default() };
    let Prepared { start, train, held_out } =
        HELPFULNESS.prepare(&model, &config.data, (seed, device), &mut progress)?;
    note_rows(config.optimizer.batch_rows, train.len(), &mut progress);
    let policy = adapted(start.policy(device)?, config.lora.as_ref(), seed)?;
    let (policy, figures) =
        train_directly(policy, (train, held_out), &config.dpo, &config.optimizer, seed, &mut progress)?;
    save_adapter(&policy, Some(&config.policy.from), run)?;
    save_model(run, |path| Ok(PolicyModel::save(&policy, &start.tokenizer, path)?))?;
    progress.finish(run)?;
    Ok(figures)
}

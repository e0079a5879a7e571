//! `saddle reward-model` and `saddle cost-model`.

use super::labelled::{HARMLESSNESS, HELPFULNESS, Prepared};
use super::saving::save_model;
use super::{adapted, note_rows, save_adapter};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::run;
use saddle_lm::ModelKind;
use saddle_store::RunDirectory;
use saddle_training::config::PreferenceConfig;
use saddle_training::{Scorer, train_scorer};

/// Trains a score model of `kind` as `config` says into `run`, and returns its held-out figures.
pub(crate) fn score_model(
    kind: ModelKind,
    config: &PreferenceConfig,
    run: &RunDirectory,
) -> Result<Vec<(String, f64)>, Failure> {
    let device = run::device(&config.run)?;
    let seed = config.run.seed;
    let (stage, material) = match kind {
        ModelKind::Cost => ("cost-model", HARMLESSNESS),
        _ => ("reward-model", HELPFULNESS),
    };
    let mut progress =
        Progress::start(stage, &["loss", "pair_accuracy", "held_out_loss", "held_out_pair_accuracy"], run)?;
    let Prepared { start, train, held_out } =
        material.prepare(&config.model, &config.data, (seed, device), &mut progress)?;
    note_rows(config.optimizer.batch_rows, train.len(), &mut progress);
    let model = adapted(start.score_model(seed, device)?, config.lora.as_ref(), seed)?;
    let trained =
        train_scorer(model, kind, (&train, &held_out), &config.preference, &config.optimizer, seed, &mut progress)?;
    let scorer = Scorer {
        model: trained.model,
        tokenizer: start.tokenizer,
        kind,
        normalizer: trained.normalizer,
        score_range: Some(trained.score_range),
    };
    save_adapter(&scorer.model, config.model.from.as_deref(), run)?;
    save_model(run, |path| Ok(scorer.save(path)?))?;
    progress.finish(run)?;
    Ok(trained.held_out)
}

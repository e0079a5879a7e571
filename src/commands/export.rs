//! `saddle export`: a model directory for other programs. A run stands for its trained model, RUN@best for its best one.

use crate::cli::ExportArgs;
use crate::failure::Failure;
use saddle_lm::Import;
use saddle_store::{EvaluationRecord, RunDirectory, read_evaluations};
use std::path::{Path, PathBuf};

pub(super) fn export(args: &ExportArgs) -> Result<(), Failure> {
    let (path, evaluation) = resolve(&args.model)?;
    if args.require_limit {
        require_limit(&args.model, evaluation.as_ref())?;
    }
    args.target.check(&path)?;
    let mut model = Import::read(&path, None)?;
    if let Some(adapter) = &args.adapter {
        args.target.check(adapter)?;
        model.merge_adapter(adapter)?;
    }
    args.target.write(&model, args.dtype)
}

/// The model directory that `model` stands for and, of a run, what it came to on held-out prompts.
fn resolve(model: &Path) -> Result<(PathBuf, Option<EvaluationRecord>), Failure> {
    if let Some(run) = model.to_str().and_then(|text| text.strip_suffix("@best")) {
        let run = RunDirectory::open(run)?;
        let best = run.read_best()?.ok_or_else(|| {
            let path = run.path().display();
            Failure::usage(format!("{path}: has no best model: none was seen to keep every limit with 95 % confidence; the last one is {path}"))
        })?;
        return Ok((run.best_path(), Some(best)));
    }
    match RunDirectory::open(model) {
        Ok(run) => Ok((run.model_path(), read_evaluations(&run.evaluations_path())?.pop())),
        Err(_) => Ok((model.to_owned(), None)),
    }
}

/// The export test of arXiv 2506.08266: the mean cost plus t·s/√m is at most the limit, for every constraint.
fn require_limit(model: &Path, evaluation: Option<&EvaluationRecord>) -> Result<(), Failure> {
    let model = model.display();
    let Some(EvaluationRecord { all, .. }) = evaluation else {
        return Err(Failure::usage(format!(
            "--require-limit: {model} has no evaluation on held-out prompts; name a run of `saddle train`, or RUN@best"
        )));
    };
    match all.constraints.iter().find(|(_, cost)| !cost.is_feasible()) {
        None => Ok(()),
        Some((name, cost)) => Err(Failure::LimitBroken(format!(
            "{model}: its mean {name} on {} held-out answers is {:.3}, with 95 % confidence at most {:.3}, and its limit is {:.3}; try RUN@best",
            all.responses, cost.cost.mean, cost.bounds.1, cost.limit
        ))),
    }
}

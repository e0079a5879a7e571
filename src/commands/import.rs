//! `saddle import`: a model from elsewhere becomes a model directory.

use super::stream::say_notices;
use crate::cli::{Dtype, ImportArgs, Kind, TargetArgs};
use crate::failure::Failure;
use crate::table::print_result;
use saddle_lm::{Import, ModelKind};
use std::fs;
use std::path::Path;

pub(super) fn import(args: &ImportArgs) -> Result<(), Failure> {
    args.target.check(&args.source)?;
    let kind = args.kind.map(|kind| match kind {
        Kind::Policy => ModelKind::Policy,
        Kind::Reward => ModelKind::Reward,
        Kind::Cost => ModelKind::Cost,
    });
    args.target.write(&Import::read(&args.source, kind)?, Some(args.dtype))
}

impl TargetArgs {
    /// Refuses a target that would cost somebody a model; says so before a large model is read.
    pub(super) fn check(&self, source: &Path) -> Result<(), Failure> {
        let out = self.out.display();
        let refuse = |message: &str| Err(Failure::usage(format!("--out {out}: {message}")));
        if let (Ok(source), Ok(target)) = (source.canonicalize(), self.out.canonicalize())
            && source.starts_with(&target)
        {
            return refuse("the source is there and would be lost; name another directory");
        }
        if self.out.is_file() {
            return refuse("is a file; name a directory");
        }
        let is_used = fs::read_dir(&self.out).is_ok_and(|mut entries| entries.next().is_some());
        if is_used && !self.overwrite {
            return refuse("is not empty; name another directory, or add --overwrite");
        }
        Ok(())
    }

    /// Writes the model with its weights as `dtype`, or as they are, and says what it is.
    pub(super) fn write(&self, model: &Import, dtype: Option<Dtype>) -> Result<(), Failure> {
        let kind = dtype.map(|dtype| match dtype {
            Dtype::F32 => tch::Kind::Float,
            Dtype::Bf16 => tch::Kind::BFloat16,
            Dtype::F16 => tch::Kind::Half,
        });
        say_notices(&model.tokenizer);
        model.write(&self.out, kind)?;
        let details = [
            ("model", self.out.display().to_string()),
            ("kind", format!("{:?}", model.card.kind).to_lowercase()),
            ("architecture", model.config.architecture.model_type().to_owned()),
            ("parameters", model.weights.values().map(tch::Tensor::numel).sum::<usize>().to_string()),
            ("weights_hash", super::weights_hash(&self.out)?),
        ];
        print_result(self.json, &details, &[]);
        Ok(())
    }
}

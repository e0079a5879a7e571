//! `saddle export`: a model directory for other programs.

use crate::cli::ExportArgs;
use crate::failure::Failure;
use saddle_lm::Import;

pub(super) fn export(args: &ExportArgs) -> Result<(), Failure> {
    args.target.check(&args.model)?;
    let mut model = Import::read(&args.model, None)?;
    if let Some(adapter) = &args.adapter {
        args.target.check(adapter)?;
        model.merge_adapter(adapter)?;
    }
    args.target.write(&model, args.dtype)
}

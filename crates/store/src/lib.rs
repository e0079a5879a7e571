//! The run directory: everything that a run leaves behind, in formats that other tools read.
//!
//! ```text
//! RUN/config.toml      the resolved configuration, as it was used
//! RUN/machine.json     what the run was made on
//! RUN/metrics.jsonl    one flat JSON object a line: step, seconds, then named numbers
//! RUN/tensorboard/     the same numbers for TensorBoard
//! RUN/model/           the trained model, a Hugging Face directory
//! RUN/best/            the best policy that was seen to keep every limit, like model/
//! RUN/evaluations.jsonl   what the policy came to on held-out prompts along the way, and RUN/samples.jsonl some answers
//! RUN/adapter/         its adapters, if it was trained with some, in PEFT's layout
//! RUN/responses.jsonl  evaluation answers with their scores
//! RUN/report.html      the report
//! RUN/run.lock         the process that writes it, for as long as it does
//! RUN/replaced/        the run that was there before, until this one is complete
//! ```
//!
//! Files that are written in one go appear whole or not at all; the two metric logs are flushed
//! record by record, so a killed run keeps all but the line that it was writing.

mod directory;
mod error;
mod evaluations;
mod files;
mod lock;
mod machine;
mod metrics;
mod responses;
mod tensorboard;

pub use directory::RunDirectory;
pub use error::StoreError;
pub use evaluations::{
    ConstraintFigures, EvaluationLog, EvaluationRecord, Figure, Figures, SampleRecord, read_evaluations,
};
pub use machine::{Machine, peak_memory_bytes};
pub use metrics::{MetricsLog, MetricsRow, read_metrics};
pub use responses::{Decoding, ResponseRecord, read_responses};

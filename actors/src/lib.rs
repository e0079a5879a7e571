//! The asynchronous system: every compute stage is a named thread that owns its tensors, beside a small actor that is its
//! control actor.
//!
//! ```text
//! source ─▶ generator ×N ─┬▶ reward ×M ────┐
//!   ▲ credits             ├▶ cost ×K ──┬───┼▶ join ─▶ learner ─▶ weights (latest value) ─▶ generators
//!   │                     └▶ reference ┼───┘            │  ▲
//!   └───────────── returned exactly once ◀─────────────┘  └ λ (latest value)
//!                                      └ costs, at scoring ─▶ multiplier ─┘
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | `source` `generator` `scorer` `join` `multiplier` `learner` `evaluator` | one stage each: what it does in a step |
//! | `stage_host` | a stage's thread and its control actor |
//! | `supervisor` `restarts` `standstill` | who replaces, scales, pauses and ends |
//! | [`Remote`] | commands to them |
//! | [`engine`] | what stages compute with, as traits; [`model`] over tensors, [`fake`] over time with its [`faults`] |
//! | `harness` | one actor alone, under a manual clock, in tests |
//! | `pending_batch` | what the learner works on, kept apart from its thread |
//! | `wiring` [`System`] | how stages are put together; a run from start to end |
//!
//! Data goes by the edges of `saddle-flow`, bounded and with tickets, so that a stage may fail at any step: its prompts go
//! back to the source. Actors carry commands only. With η = 0 the run follows the synchronous schedule to the bit (STALE-3).

pub mod engine;
mod evaluator;
pub mod fake;
pub mod faults;
mod generator;
#[cfg(test)]
mod harness;
mod join;
mod learner;
mod messages;
mod meters;
pub mod model;
mod multiplier;
mod pending_batch;
mod plan;
mod remote;
mod restarts;
mod role;
mod scorer;
mod shared;
mod source;
mod stage_host;
mod standstill;
mod supervisor;
mod system;
mod wiring;
mod work;

pub use messages::{Cause, Report, StageFailure, StageReport, StageState};
pub use plan::Plan;
pub use remote::{OrderError, Remote};
pub use role::{Lane, Role};
pub use system::{Event, Remains, StartError, System, follow};
pub use work::Update;

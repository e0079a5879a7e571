//! Preference, supervised and prompt data, and the embedded world.
//!
//! A [`Source`] names a file and its [`Format`]; [`read_preferences`], [`read_supervised`] and [`read_prompts`] turn
//! sources into rows, each of which knows where it came from. A bad row is an error that names file and line, or is
//! skipped and counted by reason: [`BadRowPolicy`] decides. [`PromptStream`] makes prompts an endless sequence that a
//! resumed run can continue, and [`split_by_prompt`] keeps one prompt on one side of a split.
//!
//! The [`world`] is a small task with known optimum, written in the same formats and read by the same readers.

mod error;
mod formats;
mod mixture;
mod read;
mod records;
mod rows;
mod source;
mod split;
mod stream;
mod transcript;
pub mod world;
mod write;

pub use error::{BadRow, DataError};
pub use formats::prompt_of;
pub use read::{Read, SkipCounts, SourceCounts, read_preferences, read_prompts, read_supervised};
pub use records::without_byte_order_mark;
pub use rows::{HasPrompt, Origin, PreferenceRow, PromptRow, Role, SupervisedRow, Turn};
pub use source::{BadRowPolicy, Format, PairLabel, Source};
pub use split::{Split, split_by_prompt, split_of};
pub use stream::PromptStream;
pub use write::{write_preferences, write_prompts, write_supervised};

//! What the stages that learn from labelled rows share: their rows are read, split, and encoded for the model that the
//! stage begins with.

use super::{note_notices, note_same_tokens, note_skipped, note_too_long};
use crate::failure::Failure;
use saddle_data::{
    BadRowPolicy, DataError, HasPrompt, PreferenceRow, Read, Source, SupervisedRow, Turn, read_preferences,
    read_supervised, split_by_prompt,
};
use saddle_lm::Tokenizer;
use saddle_training::config::{DataSection, ModelSection};
use saddle_training::{Encoded, Observer, Pair, Sequence, Start, TrainingError, encode_preferences, encode_supervised};
use tch::Device;

type ReadRows<T> = fn(&[Source], BadRowPolicy, u64) -> Result<Read<T>, DataError>;
type EncodeRows<T, R> = fn(&Tokenizer, &[T], usize) -> Result<Encoded<R>, TrainingError>;

/// What a stage learns from.
pub(super) struct Material<T, R> {
    /// What the rows are called in messages.
    what: &'static str,
    /// The field without which a row is of no use here.
    label: Option<&'static str>,
    read: ReadRows<T>,
    /// The texts of a row, for a tokenizer that is to be trained on them.
    texts: fn(&T) -> Vec<String>,
    encode: EncodeRows<T, R>,
}

/// A stage's model before training, and its encoded rows, some of either kind.
pub(super) struct Prepared<R> {
    pub(super) start: Start,
    pub(super) train: Vec<R>,
    pub(super) held_out: Vec<R>,
}

/// Demonstrations.
pub(super) const DEMONSTRATIONS: Material<SupervisedRow, Sequence> = Material {
    what: "demonstrations",
    label: None,
    read: read_supervised,
    texts: |row| texts(&row.prompt, &[&row.response]),
    encode: encode_supervised,
};

/// Pairs that say which response is better.
pub(super) const HELPFULNESS: Material<PreferenceRow, Pair> = Material {
    what: "pairs",
    label: Some("better_response_id"),
    read: read_preferences,
    texts: pair_texts,
    encode: |tokenizer, rows, max_tokens| encode_preferences(tokenizer, rows, max_tokens, |row| row.better),
};

/// Pairs that say which response is safer.
pub(super) const HARMLESSNESS: Material<PreferenceRow, Pair> = Material {
    label: Some("safer_response_id"),
    encode: |tokenizer, rows, max_tokens| encode_preferences(tokenizer, rows, max_tokens, |row| row.safer),
    ..HELPFULNESS
};

fn pair_texts(row: &PreferenceRow) -> Vec<String> {
    texts(&row.prompt, &row.responses.each_ref())
}

fn texts(prompt: &[Turn], responses: &[&String]) -> Vec<String> {
    prompt.iter().map(|turn| &turn.content).chain(responses.iter().copied()).cloned().collect()
}

impl<T: HasPrompt, R> Material<T, R> {
    /// Reads the rows of `data` and the model of `model`, and tells of what was left out.
    pub(super) fn prepare(
        &self,
        model: &ModelSection,
        data: &DataSection,
        (seed, device): (u64, Device),
        observer: &mut dyn Observer,
    ) -> Result<Prepared<R>, Failure> {
        let mut read = |sources: &[Source]| -> Result<Vec<T>, Failure> {
            let read = (self.read)(sources, data.bad_rows, seed)?;
            note_skipped(&read.skipped, observer);
            Ok(read.rows)
        };
        let train = read(&data.train)?;
        let (train, held_out) = match data.held_out.as_slice() {
            [] => split_by_prompt(train, data.held_out_ratio, seed),
            sources => (train, read(sources)?),
        };
        let start = Start::new(model, || train.iter().flat_map(self.texts).collect(), seed, device)?;
        note_notices(&start.tokenizer, observer);
        let max_tokens = data.max_tokens.min(start.max_tokens());
        let mut encode = |rows: &[T], name: &str| {
            let encoded = (self.encode)(&start.tokenizer, rows, max_tokens)?;
            note_too_long(encoded.too_long, max_tokens, observer);
            note_same_tokens(encoded.same_tokens, observer);
            if encoded.rows.is_empty() {
                let label = self.label.map_or_else(String::new, |label| format!(" with {label}"));
                return Err(Failure::usage(format!(
                    "data: no {name} row{label} is left to use; look at data.max_tokens and data.held_out_ratio"
                )));
            }
            Ok(encoded.rows)
        };
        let (train, held_out) = (encode(&train, "training")?, encode(&held_out, "held-out")?);
        observer.note(&format!("{} {}, {} held out", train.len(), self.what, held_out.len()));
        Ok(Prepared { start, train, held_out })
    }
}

//! Rows of text as token sequences.

use crate::TrainingError;
use saddle_data::{PreferenceRow, Role, SupervisedRow, Turn};
use saddle_lm::{ChatTurn, SequenceBatch, Tokenizer};
use tch::Device;

/// A prompt and its response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The rendered conversation up to where the response begins.
    pub prompt: Vec<i64>,
    /// The response with the token that ends it.
    pub response: Vec<i64>,
}

impl Sequence {
    /// Both parts, as a batch takes them.
    #[must_use]
    pub fn parts(&self) -> (&[i64], &[i64]) {
        (&self.prompt, &self.response)
    }

    /// Tokens in both parts.
    #[must_use]
    pub fn length(&self) -> usize {
        self.prompt.len() + self.response.len()
    }
}

/// The tokens of a conversation up to where the response begins.
///
/// # Errors
/// Fails if the chat template refuses it.
pub fn encode_prompt(tokenizer: &Tokenizer, turns: &[Turn]) -> Result<Vec<i64>, TrainingError> {
    let role = |role| match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let turns: Vec<ChatTurn<'_>> =
        turns.iter().map(|turn| ChatTurn { role: role(turn.role), content: &turn.content }).collect();
    Ok(tokenizer.encode_prompt(&turns)?)
}

/// The tokens of a response to a conversation.
///
/// # Errors
/// Fails if the chat template refuses the conversation, or the tokenizer has no token that ends a text.
pub fn encode_pair(tokenizer: &Tokenizer, prompt: &[Turn], response: &str) -> Result<Sequence, TrainingError> {
    Ok(Sequence { prompt: encode_prompt(tokenizer, prompt)?, response: tokenizer.encode_response(response)? })
}

/// Rows that can be learnt from, and how many cannot.
#[derive(Debug)]
pub struct Encoded<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Rows that were left out for their length.
    pub too_long: usize,
    /// Pairs that were left out because the tokenizer makes one response of both: there is nothing to prefer.
    pub same_tokens: usize,
}

/// Two responses to one prompt, the preferred one first, with what is known of the safety of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The more helpful, or the safer, response.
    pub preferred: Sequence,
    /// The other.
    pub other: Sequence,
    /// Whether each is safe by itself, in the same order.
    pub safe: [Option<bool>; 2],
}

impl Pair {
    /// Tokens of both sequences.
    pub(crate) fn tokens(&self) -> usize {
        self.preferred.length() + self.other.length()
    }
}

/// Both responses of each pair: all the preferred ones, then all the others.
pub(crate) fn pair_batch<'a>(
    pairs: impl Iterator<Item = &'a Pair> + Clone,
    device: Device,
) -> Result<SequenceBatch, TrainingError> {
    let preferred = pairs.clone().map(|pair| pair.preferred.parts());
    let parts: Vec<_> = preferred.chain(pairs.map(|pair| pair.other.parts())).collect();
    Ok(SequenceBatch::new(&parts, device)?)
}

/// Encodes demonstrations.
///
/// # Errors
/// As [`encode_pair`].
pub fn encode_supervised(
    tokenizer: &Tokenizer,
    rows: &[SupervisedRow],
    max_tokens: usize,
) -> Result<Encoded<Sequence>, TrainingError> {
    let sequences = rows.iter().map(|row| encode_pair(tokenizer, &row.prompt, &row.response));
    fitting(sequences, |sequence| sequence.length() <= max_tokens)
}

/// Encodes the pairs that `preferred` knows the better response of; the others are not of this stage's kind.
///
/// # Errors
/// As [`encode_pair`].
pub fn encode_preferences(
    tokenizer: &Tokenizer,
    rows: &[PreferenceRow],
    max_tokens: usize,
    preferred: impl Fn(&PreferenceRow) -> Option<usize>,
) -> Result<Encoded<Pair>, TrainingError> {
    let pairs = rows.iter().filter_map(|row| preferred(row).map(|first| (row, first))).map(|(row, first)| {
        let second = 1 - first;
        Ok(Pair {
            preferred: encode_pair(tokenizer, &row.prompt, &row.responses[first])?,
            other: encode_pair(tokenizer, &row.prompt, &row.responses[second])?,
            safe: [row.safe[first], row.safe[second]],
        })
    });
    let mut encoded = fitting(pairs, |pair: &Pair| pair.preferred.length().max(pair.other.length()) <= max_tokens)?;
    let fitting = encoded.rows.len();
    encoded.rows.retain(|pair| pair.preferred.response != pair.other.response);
    encoded.same_tokens = fitting - encoded.rows.len();
    Ok(encoded)
}

fn fitting<T>(
    rows: impl Iterator<Item = Result<T, TrainingError>>,
    fits: impl Fn(&T) -> bool,
) -> Result<Encoded<T>, TrainingError> {
    let rows = rows.collect::<Result<Vec<T>, _>>()?;
    let total = rows.len();
    let rows: Vec<T> = rows.into_iter().filter(fits).collect();
    let too_long = total - rows.len();
    Ok(Encoded { rows, too_long, same_tokens: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use saddle_data::{Format, Origin, Source};
    use saddle_lm::train_bpe;

    #[test]
    fn pairs_of_other_texts_and_the_same_tokens_are_left_out_and_counted() {
        let tokenizer = train_bpe(["how do i bake bread"].iter(), 280).unwrap();
        let origin = Origin { file: Source::new("x.jsonl", Format::Pku).path.as_path().into(), line: 1 };
        let row = |first: &str, second: &str| PreferenceRow {
            prompt: vec![Turn::user("how")],
            responses: [first.into(), second.into()],
            better: Some(1),
            safer: None,
            safe: [None; 2],
            origin: origin.clone(),
        };
        let long = "bread ".repeat(20);
        let rows = [row("bread", "bake"), row("bake", "bake"), row("bake", &long), row("i", "do")];
        let encoded = encode_preferences(&tokenizer, &rows, 20, |row| row.better).unwrap();
        assert_eq!((encoded.rows.len(), encoded.too_long, encoded.same_tokens), (2, 1, 1));
        assert_eq!(encoded.rows[0].preferred, encode_pair(&tokenizer, &rows[0].prompt, "bake").unwrap());
    }
}

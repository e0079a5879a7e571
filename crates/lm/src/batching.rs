//! Sequences as tensors: packed one after another, where the response tokens are, and micro-batches by token budget.

use crate::LmError;
use tch::{Device, Kind, Tensor};

/// Where the tokens of several sequences lie, packed one sequence after another without padding.
#[derive(Debug)]
pub struct Sequences {
    lengths: Vec<i64>,
    /// The first token of each sequence, and the number of tokens: on the CPU.
    starts: Tensor,
    positions: Tensor,
}

impl Sequences {
    /// Sequences of `lengths` tokens each.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn new(lengths: &[usize], device: Device) -> Result<Self, LmError> {
        let lengths: Vec<i64> = lengths.iter().map(|length| *length as i64).collect();
        let mut starts = vec![0];
        starts.extend(lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        }));
        let positions: Vec<i64> = lengths.iter().flat_map(|length| 0..*length).collect();
        let positions = Tensor::f_from_slice(&positions)?.f_to_device(device)?;
        Ok(Self { lengths, starts: Tensor::f_from_slice(&starts)?, positions })
    }

    /// Tokens of each sequence.
    pub(crate) fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// The first token of each sequence, and the number of tokens: `[sequences + 1]`, on the CPU.
    pub(crate) fn starts(&self) -> &Tensor {
        &self.starts
    }

    /// Where each token stands in its sequence: `[tokens]`.
    pub(crate) fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// The sequences side by side.
    pub(crate) fn padding(&self) -> Result<Padding, LmError> {
        let rows: Vec<usize> = (0..self.lengths.len()).collect();
        self.padding_of(&rows)
    }

    /// The sequences of numbers `rows` side by side.
    pub(crate) fn padding_of(&self, rows: &[usize]) -> Result<Padding, LmError> {
        let spans: Vec<_> = rows
            .iter()
            .map(|row| {
                let start = self.lengths[..*row].iter().sum::<i64>();
                (start, self.lengths[*row])
            })
            .collect();
        Padding::new(&spans, self.lengths.iter().sum(), self.positions.device())
    }
}

/// Runs of packed values as the rows of a rectangle, padded on the right.
#[derive(Debug)]
pub(crate) struct Padding {
    /// For each cell of `[rows, width]` the value that belongs there; one past the last where none does.
    sources: Tensor,
    values: i64,
    pub(crate) rows: i64,
    pub(crate) width: i64,
}

impl Padding {
    /// A row for each of `spans`: its first value and its length, of `values` values.
    fn new(spans: &[(i64, i64)], values: i64, device: Device) -> Result<Self, LmError> {
        let width = spans.iter().map(|(_, length)| *length).max().unwrap_or(0);
        let cell = |(start, length): (i64, i64), place| if place < length { start + place } else { values };
        let sources: Vec<i64> = spans.iter().flat_map(|span| (0..width).map(|place| cell(*span, place))).collect();
        let sources = Tensor::f_from_slice(&sources)?.f_to_device(device)?;
        Ok(Self { sources, values, rows: spans.len() as i64, width })
    }

    /// Packed `values` `[values, ..]` as `[rows, width, ..]`, zero where there are none.
    pub(crate) fn pad(&self, values: &Tensor) -> Result<Tensor, LmError> {
        let inner = &values.size()[1..];
        let zero = values.f_new_zeros([&[1], inner].concat(), (values.kind(), values.device()))?;
        let cells = Tensor::f_cat(&[values, &zero], 0)?.f_index_select(0, &self.sources)?;
        Ok(cells.f_view([&[self.rows, self.width], inner].concat().as_slice())?)
    }

    /// True where there is a value: `[rows, width]`.
    pub(crate) fn mask(&self) -> Result<Tensor, LmError> {
        Ok(self.sources.f_lt(self.values)?.f_view([self.rows, self.width])?)
    }
}

/// Prompts with their responses, packed. `N` is the number of response tokens in the batch.
#[derive(Debug)]
pub struct SequenceBatch {
    tokens: Tensor,
    sequences: Sequences,
    before: Tensor,
    targets: Tensor,
    responses: Padding,
    mask: Tensor,
    last: Tensor,
}

impl SequenceBatch {
    /// Packs `sequences`, each a prompt and its response. Every prompt needs at least one token.
    ///
    /// # Errors
    /// [`LmError::Mismatch`] on an empty batch, an empty prompt or a batch without any response token.
    pub fn new(sequences: &[(&[i64], &[i64])], device: Device) -> Result<Self, LmError> {
        let responses = sequences.iter().map(|(_, response)| response.len()).sum::<usize>();
        if responses == 0 || sequences.iter().any(|(prompt, _)| prompt.is_empty()) {
            return Err(LmError::Mismatch(
                "a batch needs prompts of at least one token and at least one response token".into(),
            ));
        }
        let (mut tokens, mut before, mut targets) = (vec![], vec![], vec![]);
        let (mut spans, mut last) = (vec![], vec![]);
        for (prompt, response) in sequences {
            tokens.extend_from_slice(prompt);
            before.extend((0..response.len()).map(|place| (tokens.len() + place - 1) as i64));
            tokens.extend_from_slice(response);
            spans.push((targets.len() as i64, response.len() as i64));
            targets.extend_from_slice(response);
            last.push(tokens.len() as i64 - 1);
        }
        let lengths: Vec<usize> = sequences.iter().map(|(prompt, response)| prompt.len() + response.len()).collect();
        let responses = Padding::new(&spans, responses as i64, device)?;
        let place = |values: &[i64]| Tensor::f_from_slice(values)?.f_to_device(device);
        Ok(Self {
            tokens: place(&tokens)?,
            sequences: Sequences::new(&lengths, device)?,
            before: place(&before)?,
            targets: place(&targets)?,
            mask: responses.mask()?.f_to_kind(Kind::Float)?,
            responses,
            last: place(&last)?,
        })
    }

    /// Token ids of all sequences, packed: `[tokens]`.
    pub fn tokens(&self) -> &Tensor {
        &self.tokens
    }

    /// Where they lie.
    pub fn sequences(&self) -> &Sequences {
        &self.sequences
    }

    /// One at response tokens, zero at padding: `[batch, response]`.
    pub fn mask(&self) -> &Tensor {
        &self.mask
    }

    /// The response tokens of all rows, one after another: `[N]`.
    pub fn response_tokens(&self) -> &Tensor {
        &self.targets
    }

    /// Which of the packed tokens each response token was predicted from: `[N]`.
    pub fn before_response_tokens(&self) -> &Tensor {
        &self.before
    }

    /// Which of the packed tokens is each sequence's last: `[batch]`.
    pub fn last_tokens(&self) -> &Tensor {
        &self.last
    }

    /// One number a response token, `[N]`, laid out as `[batch, response]` with zeros where a row has none.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn pad(&self, values: &Tensor) -> Result<Tensor, LmError> {
        self.responses.pad(values)
    }

    /// One number a token, `[tokens]`, laid out as `[batch, length]` with zeros where a sequence has none.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn pad_sequences(&self, values: &Tensor) -> Result<Tensor, LmError> {
        self.sequences.padding()?.pad(values)
    }

    /// True at prompt and response tokens, false at padding: `[batch, length]`.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn token_mask(&self) -> Result<Tensor, LmError> {
        self.sequences.padding()?.mask()
    }
}

/// Groups row numbers so that no group has more than `budget_tokens` tokens; a row that is longer on its own gets a group of
/// its own. Rows of like length stand together, longest first.
#[must_use]
pub fn micro_batches(lengths: &[usize], budget_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&row| (std::cmp::Reverse(lengths[row]), row));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for row in order {
        tokens += lengths[row];
        match groups.last_mut() {
            Some(group) if tokens <= budget_tokens => group.push(row),
            _ => {
                tokens = lengths[row];
                groups.push(vec![row]);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor.to_kind(Kind::Int64).reshape([-1])).unwrap()
    }

    #[test]
    fn sequences_are_packed_and_responses_found_whatever_the_prompt_lengths() {
        let batch = SequenceBatch::new(&[(&[1, 2, 3], &[4]), (&[1], &[5, 6])], Device::Cpu).unwrap();
        assert_eq!(numbers(batch.tokens()), [1, 2, 3, 4, 1, 5, 6]);
        assert_eq!(numbers(batch.sequences().starts()), [0, 4, 7]);
        assert_eq!(numbers(batch.sequences().positions()), [0, 1, 2, 3, 0, 1, 2]);
        assert_eq!(numbers(batch.mask()), [1, 0, 1, 1]);
        assert_eq!(numbers(&batch.tokens().index_select(0, batch.before_response_tokens())), [3, 1, 5]);
        assert_eq!(numbers(&batch.tokens().index_select(0, batch.last_tokens())), [4, 6]);
        assert_eq!(numbers(&batch.pad(&Tensor::from_slice(&[7.0f32, 8.0, 9.0])).unwrap()), [7, 0, 8, 9]);
        assert_eq!(numbers(&batch.pad_sequences(batch.tokens()).unwrap()), [1, 2, 3, 4, 1, 5, 6, 0]);
        assert_eq!(numbers(&batch.token_mask().unwrap()), [1, 1, 1, 1, 1, 1, 1, 0]);
    }

    #[test]
    fn a_batch_without_response_tokens_is_refused() {
        assert!(SequenceBatch::new(&[(&[1], &[])], Device::Cpu).is_err());
        assert!(SequenceBatch::new(&[], Device::Cpu).is_err());
        assert!(SequenceBatch::new(&[(&[], &[1])], Device::Cpu).is_err());
    }

    proptest! {
        #[test]
        fn micro_batches_hold_every_row_once_and_keep_to_the_budget(lengths in prop::collection::vec(1usize..40, 0..60), budget in 1usize..200) {
            let groups = micro_batches(&lengths, budget);
            let mut seen: Vec<usize> = groups.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for group in groups {
                let tokens = group.iter().map(|&row| lengths[row]).sum::<usize>();
                prop_assert!(group.len() == 1 || tokens <= budget);
            }
        }
    }
}

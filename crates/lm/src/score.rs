//! Score models: a decoder trunk with a linear head. Reward model, cost model and critics are all of this kind.

use crate::decoder::{Decoder, DecoderHead};
use crate::layout::{SCORE_HEAD, fresh_weights, score_shapes};
use crate::{DecoderConfig, LmError, LoraConfig, Parameters, SequenceBatch, Trunk};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// A score model over one set of [`Parameters`], with one or more scores a position.
pub type ScoreModel = Decoder<ScoreHead>;

/// From hidden states to scores: `[scores, hidden]`, without a bias.
#[derive(Debug)]
pub struct ScoreHead(Tensor);

impl DecoderHead for ScoreHead {
    const TRAINED_WHOLE: Option<&'static str> = Some(SCORE_HEAD);

    fn over(_: &DecoderConfig, parameters: &Parameters, _: &Trunk) -> Result<Self, LmError> {
        parameters.in_float(SCORE_HEAD).map(Self)
    }
}

impl Decoder<ScoreHead> {
    /// A score model with fresh weights, drawn from `seed`, with `heads` scores.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn fresh(config: DecoderConfig, heads: usize, seed: u64, device: Device) -> Result<Self, LmError> {
        let weights = fresh_weights(&score_shapes(&config, heads), config.num_hidden_layers, seed)?;
        Self::from_weights(config, &weights, device)
    }

    /// A score model on the trunk of another model's `weights`, with a fresh head where they have none of this size.
    ///
    /// # Errors
    /// [`LmError::MissingTensor`] if the trunk is incomplete.
    pub fn on_trunk(
        config: DecoderConfig,
        weights: &BTreeMap<String, Tensor>,
        heads: usize,
        seed: u64,
        device: Device,
    ) -> Result<Self, LmError> {
        let shapes = score_shapes(&config, heads);
        let mut fresh = fresh_weights(&shapes[shapes.len() - 1..], config.num_hidden_layers, seed)?;
        for (name, shape) in &shapes {
            match weights.get(name) {
                Some(weight) if weight.size() == *shape => {
                    fresh.insert(name.clone(), weight.shallow_clone());
                }
                _ if name == SCORE_HEAD => {}
                _ => return Err(LmError::MissingTensor(name.clone())),
            }
        }
        Self::from_weights(config, &fresh, device)
    }

    /// As [`Self::on_trunk`] of the trunk of `start`, which is shared: adapters and the head are all that is new.
    ///
    /// # Errors
    /// As [`Self::adapted`].
    pub fn on_adapted_trunk(start: &Self, heads: usize, lora: &LoraConfig, seed: u64) -> Result<Self, LmError> {
        let own = start.parameters().get(SCORE_HEAD)?;
        let shapes = score_shapes(start.config(), heads);
        let shape = &shapes[shapes.len() - 1..];
        let head = match own.size() == shape[0].1 {
            true => Some((SCORE_HEAD.to_owned(), own)),
            false => fresh_weights(shape, start.config().num_hidden_layers, seed)?.pop_first(),
        };
        start.adapted_with(lora, seed, head)
    }

    /// Raw scores of whole sequences, read at the last real token: `[batch, heads]`, float32.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn end_scores(&self, batch: &SequenceBatch) -> Result<Tensor, LmError> {
        self.score(batch, Some(batch.last_tokens()))
    }

    /// Raw scores at every token, zero at padding: `[batch, length]` of the first head, float32.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn token_scores(&self, batch: &SequenceBatch) -> Result<Tensor, LmError> {
        batch.pad_sequences(&self.score(batch, None)?.f_select(-1, 0)?)
    }

    /// Values of the states that response tokens were chosen in: one `[batch, response]` for each head.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn response_values(&self, batch: &SequenceBatch) -> Result<Vec<Tensor>, LmError> {
        let values = self.score(batch, Some(batch.before_response_tokens()))?;
        values.f_unbind(1)?.iter().map(|head| batch.pad(head)).collect()
    }

    /// Scores at the places `wanted` of a batch's packed tokens, or at all: `[places, heads]`.
    fn score(&self, batch: &SequenceBatch, wanted: Option<&Tensor>) -> Result<Tensor, LmError> {
        let hidden = self.trunk().forward(batch.tokens(), batch.sequences(), wanted)?;
        Ok(hidden.f_linear::<&Tensor>(&self.head().0, None)?.f_to_kind(Kind::Float)?)
    }
}

//! The decoder trunk: token ids in, hidden states after the final norm out.
//!
//! Pre-norm blocks of causal attention and a feed-forward. The families differ in their parts: rotary (RoPE, arXiv
//! 2104.09864) or learned positions, RMS or layer norms, SwiGLU or GELU, grouped queries (GQA, 2305.13245), biases, a
//! window of sight; each part is in a file beside this one. Whole sequences are padded on the right: under a causal mask
//! no real token then sees padding, so no mask is needed. The cached form takes one new token for each sequence.

mod attention;
mod layers;
mod packed;
mod positions;

use crate::{Architecture, DecoderConfig, KvCache, LmError, Parameters, Precision};
use attention::{Attention, attend, window_mask};
use layers::{FeedForward, Norm};
pub(crate) use packed::PackedTrunk;
use positions::{Placed, Positions};
use tch::{Kind, Tensor};

/// The layers between token ids and hidden states. Holds views of the [`Parameters`] that it was built over.
#[derive(Debug)]
pub struct Trunk {
    embedding: Tensor,
    positions: Positions,
    blocks: Vec<Block>,
    norm: Norm,
    /// How many tokens a token sees, itself included, where that is limited.
    window: Option<i64>,
}

#[derive(Debug)]
struct Block {
    attention_norm: Norm,
    attention: Attention,
    feed_forward_norm: Norm,
    feed_forward: FeedForward,
}

impl Trunk {
    /// Builds the trunk of `config` over `parameters`, named as [`trunk_shapes`](crate::trunk_shapes) says.
    ///
    /// # Errors
    /// [`LmError::MissingTensor`] and shape errors that name the tensor.
    pub fn over(config: &DecoderConfig, parameters: &Parameters) -> Result<Self, LmError> {
        let embedding = parameters.get(config.architecture.embedding_name())?;
        let blocks = (0..config.num_hidden_layers)
            .map(|index| Block::over(index, config, parameters))
            .collect::<Result<_, _>>()?;
        let norm = if config.architecture == Architecture::Gpt2 { "transformer.ln_f" } else { "model.norm" };
        Ok(Self {
            positions: Positions::new(config, parameters, embedding.device())?,
            embedding,
            blocks,
            norm: Norm::over(norm, config, parameters)?,
            window: config.sliding_window.map(|window| window as i64),
        })
    }

    /// Computes the matrix products in `precision` from now on.
    pub(crate) fn set_precision(&mut self, precision: Precision) {
        for block in &mut self.blocks {
            for linear in block.attention.linears_mut().into_iter().chain(block.feed_forward.linears_mut()) {
                linear.precision = precision;
            }
        }
    }

    /// Hidden states `[batch, length, hidden]` of right-padded `tokens` `[batch, length]`.
    ///
    /// # Errors
    /// Fails if libtorch does, for instance on a token outside the vocabulary.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor, LmError> {
        self.whole(tokens, |_, _, _| Ok(()))
    }

    /// As [`Self::forward`], and fills the rows `first_row..` of `cache` with the keys and values of `tokens`.
    pub(crate) fn prefill(&self, tokens: &Tensor, cache: &mut KvCache, first_row: i64) -> Result<Tensor, LmError> {
        self.whole(tokens, |layer, key, value| cache.fill(layer, first_row, key, value))
    }

    /// Hidden states `[rows, 1, hidden]` of one new token a row: `tokens` and `positions` are `[rows]`. Row r attends
    /// to cache row r up to and including its own position.
    pub(crate) fn step(
        &self,
        tokens: &Tensor,
        step: &crate::cache::Step,
        cache: &mut KvCache,
    ) -> Result<Tensor, LmError> {
        let placed = self.positions.at(&step.positions)?;
        self.run(&tokens.f_unsqueeze(1)?, &placed, |layer, query, key, value| {
            let (keys, values) = cache.append(layer, step, key, value)?;
            attend(query, &keys, &values, Some(&step.mask))
        })
    }

    /// The token embedding `[vocabulary, hidden]`, which a tied language-model head shares.
    pub(crate) fn embedding(&self) -> &Tensor {
        &self.embedding
    }

    /// The vectors of `tokens`, `[.., hidden]` in float32.
    fn embed(&self, tokens: &Tensor) -> Result<Tensor, LmError> {
        Ok(Tensor::f_embedding(&self.embedding, tokens, -1, false, false)?.f_to_kind(Kind::Float)?)
    }

    /// Whole sequences; `keep(layer, key, value)` sees each layer's keys and values.
    fn whole(
        &self,
        tokens: &Tensor,
        mut keep: impl FnMut(usize, &Tensor, &Tensor) -> Result<(), LmError>,
    ) -> Result<Tensor, LmError> {
        let (_, length) = tokens.size2()?;
        let placed = self.positions.whole(length)?;
        let mask = match self.window {
            Some(window) if length > window => Some(window_mask(length, window, tokens.device())?),
            _ => None,
        };
        self.run(tokens, &placed, |layer, query, key, value| {
            keep(layer, key, value)?;
            attend(query, key, value, mask.as_ref())
        })
    }

    /// Runs all blocks. `attention(layer, query, key, value)` takes and gives `[batch, heads, length, head_size]`.
    fn run(
        &self,
        tokens: &Tensor,
        placed: &Placed,
        mut attention: impl FnMut(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor, LmError>,
    ) -> Result<Tensor, LmError> {
        let mut hidden = placed.enter(self.embed(tokens)?)?;
        let (batch, length) = tokens.size2()?;
        for (index, block) in self.blocks.iter().enumerate() {
            let normed = block.attention_norm.apply(&hidden)?;
            let (query, key, value) = block.attention.project(&normed, placed)?;
            let mixed = attention(index, &query, &key, &value)?.f_transpose(1, 2)?.f_reshape([batch, length, -1])?;
            hidden = hidden.f_add(&block.attention.output.apply(&mixed)?)?;
            let normed = block.feed_forward_norm.apply(&hidden)?;
            hidden = hidden.f_add(&block.feed_forward.apply(&normed)?)?;
        }
        self.norm.apply(&hidden)
    }
}

impl Block {
    fn over(index: usize, config: &DecoderConfig, parameters: &Parameters) -> Result<Self, LmError> {
        let (prefix, attention_norm, feed_forward_norm) = match config.architecture {
            Architecture::Gpt2 => (format!("transformer.h.{index}"), "ln_1", "ln_2"),
            _ => (format!("model.layers.{index}"), "input_layernorm", "post_attention_layernorm"),
        };
        Ok(Self {
            attention_norm: Norm::over(&format!("{prefix}.{attention_norm}"), config, parameters)?,
            attention: Attention::over(&prefix, config, parameters)?,
            feed_forward_norm: Norm::over(&format!("{prefix}.{feed_forward_norm}"), config, parameters)?,
            feed_forward: FeedForward::over(&prefix, config, parameters)?,
        })
    }
}

//! The decoder trunk: token ids in, hidden states after the final norm out.
//!
//! Pre-norm blocks of causal attention and a feed-forward. The families differ in their parts: rotary (RoPE, arXiv
//! 2104.09864) or learned positions, RMS or layer norms, SwiGLU or GELU, grouped queries (GQA, 2305.13245), biases, a
//! window of sight; each part is in a file beside this one. Sequences are packed, one after another without padding: but for
//! attention, a token is a token, whatever its sequence. On a CPU attention too is over what is packed; elsewhere it is over
//! rectangles that are padded for it. The cached form takes one new token for each sequence.

mod attention;
mod layers;
mod packed;
mod padded;
mod positions;

use crate::{Architecture, DecoderConfig, KvCache, LmError, Parameters, Precision, Sequences};
use attention::{Attention, Heads, attend};
use layers::{FeedForward, Norm};
pub(crate) use packed::PackedTrunk;
use padded::Padded;
use positions::Positions;
use saddle_libtorch::layers::{Packing, sequence_attention};
use tch::{Device, Kind, Tensor};

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

    /// Hidden states, `[places, hidden]`, at the places `wanted` among the packed `tokens` of `sequences`, or at all of them: the
    /// last block computes no others.
    ///
    /// # Errors
    /// Fails if libtorch does, for instance on a token outside the vocabulary.
    pub fn forward(&self, tokens: &Tensor, sequences: &Sequences, wanted: Option<&Tensor>) -> Result<Tensor, LmError> {
        let hidden = self.embed(tokens, sequences.positions())?;
        if hidden.device() != Device::Cpu {
            let padded = Padded::by_length(sequences, self.window)?;
            return self.run(hidden, wanted, |_, heads| padded.attend(heads, &self.positions, |_, _| Ok(())));
        }
        let longest = sequences.lengths().iter().max().copied().unwrap_or(0);
        let tables = self.positions.rotary_tables(longest)?;
        self.run(hidden, wanted, |_, Heads { query, key, value, size }| {
            let rotary = tables.as_ref().map(|(cosine, sine)| (cosine, sine));
            let packing = Packing { starts: sequences.starts(), rotary, window: self.window, head_size: *size };
            Ok(sequence_attention(query, key, value, &packing)?)
        })
    }

    /// As [`Self::forward`], and fills the rows `first_row..` of `cache` with the keys and values of `tokens`.
    pub(crate) fn prefill(
        &self,
        tokens: &Tensor,
        sequences: &Sequences,
        wanted: &Tensor,
        (cache, first_row): (&mut KvCache, i64),
    ) -> Result<Tensor, LmError> {
        let padded = Padded::together(sequences, self.window)?;
        self.run(self.embed(tokens, sequences.positions())?, Some(wanted), |layer, heads| {
            padded.attend(heads, &self.positions, |key, value| cache.fill(layer, first_row, key, value))
        })
    }

    /// Hidden states `[rows, hidden]` of one new token a row: `tokens` and `positions` are `[rows]`. Row r attends to cache row
    /// r up to and including its own position.
    pub(crate) fn step(
        &self,
        tokens: &Tensor,
        step: &crate::cache::Step,
        cache: &mut KvCache,
    ) -> Result<Tensor, LmError> {
        let turn = self.positions.at(&step.positions, step.span())?;
        self.run(self.embed(tokens, &step.positions)?, None, |layer, heads| {
            let split = |tensor: &Tensor| tensor.f_view([tensor.size()[0], -1, 1, heads.size]);
            let (query, key) = (turn.apply(split(&heads.query)?)?, turn.apply(split(&heads.key)?)?);
            let (keys, values) = cache.append(layer, step, &key, &split(&heads.value)?)?;
            let mixed = attend(&query, &keys, &values, Some(&step.mask))?;
            Ok(mixed.f_reshape([mixed.size()[0], -1])?)
        })
    }

    /// The token embedding `[vocabulary, hidden]`, which a tied language-model head shares.
    pub(crate) fn embedding(&self) -> &Tensor {
        &self.embedding
    }

    /// What enters the first block, `[tokens, hidden]` in float32, of `tokens` at `positions`, both `[tokens]`.
    fn embed(&self, tokens: &Tensor, positions: &Tensor) -> Result<Tensor, LmError> {
        // A sparse gradient has the rows that were used alone. On a GPU the dense one is the one that is known to be deterministic.
        let sparse = tokens.device() == Device::Cpu;
        let embedded = Tensor::f_embedding(&self.embedding, tokens, -1, false, sparse)?.f_to_kind(Kind::Float)?;
        self.positions.enter(embedded, positions)
    }

    /// Runs all blocks; from the last block's attention on, at the places `wanted` alone. `attention(layer, heads)` gives what
    /// each token takes, `[tokens, heads · head_size]`.
    fn run(
        &self,
        mut hidden: Tensor,
        wanted: Option<&Tensor>,
        mut attention: impl FnMut(usize, &Heads) -> Result<Tensor, LmError>,
    ) -> Result<Tensor, LmError> {
        for (index, block) in self.blocks.iter().enumerate() {
            let heads = block.attention.project(&block.attention_norm.apply(&hidden)?)?;
            let mut mixed = attention(index, &heads)?;
            if let Some(wanted) = wanted.filter(|_| index + 1 == self.blocks.len()) {
                hidden = hidden.f_index_select(0, wanted)?;
                mixed = mixed.f_index_select(0, wanted)?;
            }
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

//! The trunk as decoding runs it on a CPU: with packed weights, over tokens of many sequences side by side, without
//! padding. A prompt's tokens and a running sequence's newest one are the same to it: each has a row and a position.

use super::layers::FeedForward;
use super::{Block, Trunk};
use crate::{KvCache, LmError};
use saddle_libtorch::decoder::{self, Decoder, Places};
use saddle_libtorch::kernels::PackedWeight;
use tch::{Kind, Tensor};

/// The matrices of a [`Trunk`], packed; the trunk itself has the rest.
#[derive(Debug)]
pub(crate) struct PackedTrunk(Vec<PackedBlock>);

#[derive(Debug)]
struct PackedBlock {
    /// Query, key, value.
    input: [PackedWeight; 3],
    output: PackedWeight,
    gate: Option<PackedWeight>,
    up: PackedWeight,
    down: PackedWeight,
}

impl Trunk {
    /// Packs the matrices, kept as `storage`.
    pub(crate) fn pack(&self, storage: Kind) -> Result<PackedTrunk, LmError> {
        let pack = |block: &Block| {
            let (gate, up, down) = match &block.feed_forward {
                FeedForward::Gated { gate, up, down } => (Some(gate), up, down),
                FeedForward::Plain { up, down } => (None, up, down),
            };
            Ok(PackedBlock {
                input: block.attention.pack_input(storage)?,
                output: block.attention.output.pack(storage)?,
                gate: gate.map(|gate| gate.pack(storage)).transpose()?,
                up: up.pack(storage)?,
                down: down.pack(storage)?,
            })
        };
        self.blocks.iter().map(pack).collect::<Result<_, _>>().map(PackedTrunk)
    }

    /// Hidden states `[.., hidden]`, after the final norm, of the wanted of the `tokens` at `places` in `cache`, which takes
    /// them all up. What stands before them in their rows must be there already, or be among them.
    pub(crate) fn forward_packed(
        &self,
        packed: &PackedTrunk,
        tokens: &[i64],
        places: &Places<'_>,
        cache: &mut KvCache,
    ) -> Result<Tensor, LmError> {
        let hidden = self.embed(&Tensor::f_from_slice(tokens)?, &Tensor::f_from_slice(places.positions)?)?;
        let length = places.positions.iter().max().map_or(0, |last| last + 1);
        let tables = self.positions.rotary_tables(length)?;
        let decoder = Decoder {
            blocks: self.blocks.iter().zip(&packed.0).map(|(block, packed)| packed.beside(block)).collect(),
            norm: self.norm.view(),
            rotary: tables.as_ref().map(|(cosine, sine)| (cosine, sine)),
            window: self.window,
        };
        Ok(decoder.forward(hidden, places, &mut cache.layers())?)
    }
}

impl PackedBlock {
    /// These matrices with the norms of the block that they were packed of.
    fn beside<'a>(&'a self, block: &'a Block) -> decoder::Block<'a> {
        decoder::Block {
            attention_norm: block.attention_norm.view(),
            input: self.input.each_ref(),
            head_norms: block.attention.norms.as_ref().map(|(query, key)| [query.view(), key.view()]),
            output: &self.output,
            feed_forward_norm: block.feed_forward_norm.view(),
            gate: self.gate.as_ref(),
            up: &self.up,
            down: &self.down,
        }
    }
}

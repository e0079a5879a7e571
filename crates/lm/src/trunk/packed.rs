//! The trunk as decoding runs it on a CPU: with packed weights, over tokens of many sequences side by side, without
//! padding. A prompt's tokens and a running sequence's newest one are the same to it: each has a row and a position.

use super::attention::Heads;
use super::layers::FeedForward;
use super::{Block, Trunk};
use crate::{KvCache, LmError};
use saddle_libtorch::kernels::{self, PackedWeight};
use saddle_libtorch::layers;
use tch::{Kind, Tensor};

/// The matrices of a [`Trunk`], packed; the trunk itself has the rest.
#[derive(Debug)]
pub(crate) struct PackedTrunk(Vec<PackedBlock>);

#[derive(Debug)]
struct PackedBlock {
    /// Query, key, value.
    input: [PackedWeight; 3],
    output: PackedWeight,
    feed_forward: PackedFeedForward,
}

#[derive(Debug)]
enum PackedFeedForward {
    Gated { gate: PackedWeight, up: PackedWeight, down: PackedWeight },
    Plain { up: PackedWeight, down: PackedWeight },
}

impl Trunk {
    /// Packs the matrices, kept as `storage`.
    pub(crate) fn pack(&self, storage: Kind) -> Result<PackedTrunk, LmError> {
        let pack = |block: &Block| {
            Ok(PackedBlock {
                input: block.attention.pack_input(storage)?,
                output: block.attention.output.pack(storage)?,
                feed_forward: match &block.feed_forward {
                    FeedForward::Gated { gate, up, down } => PackedFeedForward::Gated {
                        gate: gate.pack(storage)?,
                        up: up.pack(storage)?,
                        down: down.pack(storage)?,
                    },
                    FeedForward::Plain { up, down } => {
                        PackedFeedForward::Plain { up: up.pack(storage)?, down: down.pack(storage)? }
                    }
                },
            })
        };
        self.blocks.iter().map(pack).collect::<Result<_, _>>().map(PackedTrunk)
    }

    /// Hidden states `[.., hidden]`, after the final norm, of the tokens numbered `wanted`, or of all `tokens`, which stand at
    /// `places`: rows and positions in `cache`, which takes them up. What stands before them in their rows must be there
    /// already, or be among them.
    pub(crate) fn forward_packed(
        &self,
        packed: &PackedTrunk,
        tokens: &[i64],
        places: (&[i64], &[i64]),
        wanted: Option<&Tensor>,
        cache: &mut KvCache,
    ) -> Result<Tensor, LmError> {
        let mut hidden = self.embed(&Tensor::f_from_slice(tokens)?, &Tensor::f_from_slice(places.1)?)?;
        let rotary = self.positions.rotary_tables();
        for (layer, (block, packed)) in self.blocks.iter().zip(&packed.0).enumerate() {
            let [query, key, value] = apply(packed.input.each_ref(), &block.attention_norm.apply(&hidden)?)?;
            let Heads { query, key, value, .. } = block.attention.heads(query, key, value)?;
            let mut mixed = cache.attend(layer, (&query, &key, &value), places, rotary)?;
            if let Some(wanted) = wanted.filter(|_| layer + 1 == self.blocks.len()) {
                hidden = hidden.f_index_select(0, wanted)?;
                mixed = mixed.f_index_select(0, wanted)?;
            }
            let [mixed] = apply([&packed.output], &mixed)?;
            let _ = hidden.f_add_(&mixed)?;
            let normed = block.feed_forward_norm.apply(&hidden)?;
            let _ = hidden.f_add_(&packed.feed_forward.apply(&normed)?)?;
        }
        self.norm.apply(&hidden)
    }
}

impl PackedFeedForward {
    fn apply(&self, input: &Tensor) -> Result<Tensor, LmError> {
        let (inner, down) = match self {
            Self::Gated { gate, up, down } => {
                let [gate, up] = apply([gate, up], input)?;
                (layers::swiglu(&gate, &up)?, down)
            }
            Self::Plain { up, down } => {
                let [up] = apply([up], input)?;
                (up.f_gelu("tanh")?, down)
            }
        };
        let [output] = apply([down], &inner)?;
        Ok(output)
    }
}

/// The products of `input` with each of `weights`.
fn apply<const N: usize>(weights: [&PackedWeight; N], input: &Tensor) -> Result<[Tensor; N], LmError> {
    Ok(kernels::linear(&weights, input)?.try_into().expect("there is one product for each weight"))
}

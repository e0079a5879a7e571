//! The number type that products are computed in.

use crate::LmError;
use saddle_libtorch::has_bf16_units;
use saddle_libtorch::products::{Factors, products};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// The number type of the weights and inputs of matrix products, and of the keys and values that decoding keeps. Sums, norms, softmaxes and losses are float32 always,
/// and so are the weights that an optimiser changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32.
    #[default]
    F32,
    /// bfloat16: float32 with 8 bits of mantissa, half the memory.
    Bf16,
}

impl Precision {
    /// The kind of a tensor of this precision.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    /// input · weightᵀ for each of `weights`, of inputs and weights rounded to this precision; gradients are those of the
    /// rounded ones. `[.., outputs]` from `input` `[.., inputs]` and weights `[outputs, inputs]`, all float32; a weight that is
    /// frozen may be kept as bfloat16, and is used as it is.
    ///
    /// A processor without units for bfloat16 would take many times as long for it as for float32. There the rounded
    /// numbers are multiplied as float32, with the same sums but for their order and the rounding of the result.
    pub(crate) fn products(self, input: &Tensor, weights: &[&Tensor]) -> Result<Vec<Tensor>, LmError> {
        let factors = match self {
            Self::F32 => Factors::Whole,
            Self::Bf16 if has_bf16_units(input.device()) => Factors::Narrow,
            Self::Bf16 => Factors::Rounded,
        };
        Ok(products(input, weights, factors)?)
    }
}

//! The number type that products are computed in.

use crate::LmError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// The number type of the weights and inputs of matrix products. Sums, norms, softmaxes and losses are float32 always,
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

    /// input · weightᵀ + bias, of inputs and weights rounded to this precision; gradients are those of the rounded ones.
    /// `[.., outputs]` from `input` `[.., inputs]`, `weight` `[outputs, inputs]` and `bias` `[outputs]`, all float32; a weight
    /// that is frozen may be kept as bfloat16, and is used as it is.
    ///
    /// A processor without units for bfloat16 would take many times as long for it as for float32. There the rounded
    /// numbers are multiplied as float32, with the same sums but for their order and the rounding of the result.
    pub(crate) fn linear(self, input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, LmError> {
        let narrow = self == Self::Bf16 && saddle_libtorch::has_bf16_units(input.device());
        let product = if weight.f_kind()? == Kind::BFloat16 {
            let rounds = self == Self::Bf16 && !narrow;
            let rounded = if rounds { Some(input.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float)?) } else { None };
            saddle_libtorch::frozen_linear(rounded.as_ref().unwrap_or(input), weight, narrow)?
        } else if self == Self::F32 {
            return Ok(input.f_linear(weight, bias)?);
        } else {
            let (input, weight) = (input.f_to_kind(Kind::BFloat16)?, weight.f_to_kind(Kind::BFloat16)?);
            if narrow {
                input.f_linear::<&Tensor>(&weight, None)?.f_to_kind(Kind::Float)?
            } else {
                input.f_to_kind(Kind::Float)?.f_linear::<&Tensor>(&weight.f_to_kind(Kind::Float)?, None)?
            }
        };
        Ok(match bias {
            Some(bias) => product.f_add(bias)?,
            None => product,
        })
    }
}

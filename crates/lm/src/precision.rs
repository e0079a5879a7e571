//! The number type that products are computed in.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Kind;

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
}

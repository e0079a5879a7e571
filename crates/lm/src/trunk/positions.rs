//! Where a token stands: rotary tables that turn queries and keys, or learned vectors that are added to the input.

use crate::{DecoderConfig, LmError, Parameters};
use tch::{Device, Kind, Tensor};

/// The positions that a model knows.
#[derive(Debug)]
pub(super) enum Positions {
    /// Cosine and sine of position · θ^(−2i / head_size), `[positions, head_size]`, halves repeated.
    Rotary { cosine: Tensor, sine: Tensor },
    /// One vector a position, `[positions, hidden]`.
    Learned(Tensor),
}

/// The positions of one batch.
pub(super) enum Placed {
    /// Tables that broadcast over `[batch, heads, length, head_size]`.
    Rotary { cosine: Tensor, sine: Tensor },
    /// Vectors that broadcast over `[batch, length, hidden]`.
    Learned(Tensor),
}

impl Positions {
    /// The positions of `config` on `device`, in float32.
    pub(super) fn new(config: &DecoderConfig, parameters: &Parameters, device: Device) -> Result<Self, LmError> {
        if config.architecture.is_rotary() {
            return Self::rotary(config, device);
        }
        parameters.in_float("transformer.wpe.weight").map(Self::Learned)
    }

    fn rotary(config: &DecoderConfig, device: Device) -> Result<Self, LmError> {
        let half = config.head_dim() / 2;
        let frequency = |i: usize| config.rope_theta.powf(-((2 * i) as f64) / config.head_dim() as f64);
        let stretch = |frequency| config.rope_scaling.map_or(frequency, |scaling| scaling.stretch(frequency));
        let frequencies: Vec<f64> = (0..half).map(|i| stretch(frequency(i))).collect();
        let positions = Tensor::f_arange(config.max_position_embeddings as i64, (Kind::Double, Device::Cpu))?;
        let angles = positions.f_outer(&Tensor::f_from_slice(&frequencies)?)?;
        let angles = Tensor::f_cat(&[&angles, &angles], 1)?;
        let place = |table: Tensor| table.f_to_kind(Kind::Float)?.f_to_device(device);
        Ok(Self::Rotary { cosine: place(angles.f_cos()?)?, sine: place(angles.f_sin()?)? })
    }

    /// Positions 0..length, the same in every row.
    pub(super) fn whole(&self, length: i64) -> Result<Placed, LmError> {
        self.pick(|table| Ok(table.f_narrow(0, 0, length)?))
    }

    /// One position a row, `[rows]`.
    pub(super) fn at(&self, positions: &Tensor) -> Result<Placed, LmError> {
        self.pick(|table| {
            let picked = table.f_index_select(0, positions)?.f_unsqueeze(1)?;
            Ok(if matches!(self, Self::Rotary { .. }) { picked.f_unsqueeze(1)? } else { picked })
        })
    }

    /// Cosine and sine, `[positions, head_size]` each, where positions are rotary.
    pub(super) fn rotary_tables(&self) -> Option<(&Tensor, &Tensor)> {
        match self {
            Self::Rotary { cosine, sine } => Some((cosine, sine)),
            Self::Learned(_) => None,
        }
    }

    fn pick(&self, pick: impl Fn(&Tensor) -> Result<Tensor, LmError>) -> Result<Placed, LmError> {
        Ok(match self {
            Self::Rotary { cosine, sine } => Placed::Rotary { cosine: pick(cosine)?, sine: pick(sine)? },
            Self::Learned(vectors) => Placed::Learned(pick(vectors)?),
        })
    }
}

impl Placed {
    /// What enters the first block, from the embedded tokens `[batch, length, hidden]`.
    pub(super) fn enter(&self, embedded: Tensor) -> Result<Tensor, LmError> {
        match self {
            Self::Rotary { .. } => Ok(embedded),
            Self::Learned(vectors) => Ok(embedded.f_add(vectors)?),
        }
    }

    /// x · cos + rotate_half(x) · sin, with rotate_half([a, b]) = [−b, a], of `heads` `[batch, heads, length, head_size]`.
    pub(super) fn turn(&self, heads: Tensor) -> Result<Tensor, LmError> {
        let Self::Rotary { cosine, sine } = self else { return Ok(heads) };
        let half = heads.size()[3] / 2;
        let swapped = Tensor::f_cat(&[heads.f_narrow(3, half, half)?.f_neg()?, heads.f_narrow(3, 0, half)?], 3)?;
        Ok(heads.f_mul(cosine)?.f_add(&swapped.f_mul(sine)?)?)
    }
}

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

/// Cosine and sine that broadcast over `[batch, heads, length, head_size]`, where positions are rotary.
pub(super) struct Turn(Option<(Tensor, Tensor)>);

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

    /// What enters the first block, from the embedded tokens `[tokens, hidden]` at `positions` `[tokens]`.
    pub(super) fn enter(&self, embedded: Tensor, positions: &Tensor) -> Result<Tensor, LmError> {
        match self {
            Self::Rotary { .. } => Ok(embedded),
            Self::Learned(vectors) => Ok(embedded.f_add(&vectors.f_index_select(0, positions)?)?),
        }
    }

    /// Positions 0..length, the same in every row.
    pub(super) fn upto(&self, length: i64) -> Result<Turn, LmError> {
        self.turn(|table| Ok(table.f_narrow(0, 0, length)?))
    }

    /// One position a row, `[rows]`.
    pub(super) fn at(&self, positions: &Tensor) -> Result<Turn, LmError> {
        self.turn(|table| Ok(table.f_index_select(0, positions)?.f_unsqueeze(1)?.f_unsqueeze(1)?))
    }

    /// Cosine and sine, `[positions, head_size]` each, where positions are rotary.
    pub(super) fn rotary_tables(&self) -> Option<(&Tensor, &Tensor)> {
        match self {
            Self::Rotary { cosine, sine } => Some((cosine, sine)),
            Self::Learned(_) => None,
        }
    }

    fn turn(&self, pick: impl Fn(&Tensor) -> Result<Tensor, LmError>) -> Result<Turn, LmError> {
        let tables = self.rotary_tables().map(|(cosine, sine)| Ok::<_, LmError>((pick(cosine)?, pick(sine)?)));
        Ok(Turn(tables.transpose()?))
    }
}

impl Turn {
    /// x · cos + rotate_half(x) · sin, with rotate_half([a, b]) = [−b, a], of `heads` `[batch, heads, length, head_size]`.
    pub(super) fn apply(&self, heads: Tensor) -> Result<Tensor, LmError> {
        let Some((cosine, sine)) = &self.0 else { return Ok(heads) };
        let half = heads.size()[3] / 2;
        let swapped = Tensor::f_cat(&[heads.f_narrow(3, half, half)?.f_neg()?, heads.f_narrow(3, 0, half)?], 3)?;
        Ok(heads.f_mul(cosine)?.f_add(&swapped.f_mul(sine)?)?)
    }
}

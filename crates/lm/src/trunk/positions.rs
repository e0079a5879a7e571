//! Where a token stands: rotary tables that turn queries and keys, or learned vectors that are added to the input.

use crate::{DecoderConfig, LmError, Parameters};
use std::cell::RefCell;
use tch::{Device, Kind, Tensor};

/// Tables are computed for so many positions at first, and for twice as many as are asked for when that is not enough: a
/// model's longest sequence is a number in a file, and says nothing of what is used.
const FIRST_POSITIONS: usize = 2048;

/// The positions that a model knows.
#[derive(Debug)]
pub(super) enum Positions {
    /// Turns of queries and keys.
    Rotary(Rotary),
    /// One vector a position, `[positions, hidden]`.
    Learned(Tensor),
}

/// Cosine and sine of position · θ^(−2i / head_size), `[positions, head_size]`, halves repeated, for as many positions as were
/// asked for so far.
#[derive(Debug)]
pub(super) struct Rotary {
    /// In radians a token, one for each pair.
    frequencies: Vec<f64>,
    /// The longest sequence.
    limit: usize,
    device: Device,
    tables: RefCell<(Tensor, Tensor)>,
}

/// Cosine and sine that broadcast over `[batch, heads, length, head_size]`, where positions are rotary.
pub(super) struct Turn(Option<(Tensor, Tensor)>);

impl Positions {
    /// The positions of `config` on `device`, in float32.
    pub(super) fn new(config: &DecoderConfig, parameters: &Parameters, device: Device) -> Result<Self, LmError> {
        if config.architecture.is_rotary() {
            return Rotary::new(config, device).map(Self::Rotary);
        }
        parameters.in_float("transformer.wpe.weight").map(Self::Learned)
    }

    /// What enters the first block, from the embedded tokens `[tokens, hidden]` at `positions` `[tokens]`.
    pub(super) fn enter(&self, embedded: Tensor, positions: &Tensor) -> Result<Tensor, LmError> {
        match self {
            Self::Rotary(_) => Ok(embedded),
            Self::Learned(vectors) => Ok(embedded.f_add(&vectors.f_index_select(0, positions)?)?),
        }
    }

    /// Positions 0..length, the same in every row.
    pub(super) fn upto(&self, length: i64) -> Result<Turn, LmError> {
        self.turn(length, |table| Ok(table.f_narrow(0, 0, length)?))
    }

    /// One position a row, `[rows]`, all of them below `length`.
    pub(super) fn at(&self, positions: &Tensor, length: i64) -> Result<Turn, LmError> {
        self.turn(length, |table| Ok(table.f_index_select(0, positions)?.f_unsqueeze(1)?.f_unsqueeze(1)?))
    }

    /// Cosine and sine, `[positions, head_size]` each with `length` positions or more, where positions are rotary.
    pub(super) fn rotary_tables(&self, length: i64) -> Result<Option<(Tensor, Tensor)>, LmError> {
        match self {
            Self::Rotary(rotary) => rotary.tables(length as usize).map(Some),
            Self::Learned(_) => Ok(None),
        }
    }

    fn turn(&self, length: i64, pick: impl Fn(&Tensor) -> Result<Tensor, LmError>) -> Result<Turn, LmError> {
        let tables = self.rotary_tables(length)?;
        let turn = tables.map(|(cosine, sine)| Ok::<_, LmError>((pick(&cosine)?, pick(&sine)?)));
        Ok(Turn(turn.transpose()?))
    }
}

impl Rotary {
    fn new(config: &DecoderConfig, device: Device) -> Result<Self, LmError> {
        let half = config.head_dim() / 2;
        let frequency = |i: usize| config.rope_theta.powf(-((2 * i) as f64) / config.head_dim() as f64);
        let stretch = |frequency| config.rope_scaling.map_or(frequency, |scaling| scaling.stretch(frequency));
        let frequencies: Vec<f64> = (0..half).map(|i| stretch(frequency(i))).collect();
        let limit = config.max_position_embeddings;
        let tables = RefCell::new(tables(&frequencies, limit.min(FIRST_POSITIONS), device)?);
        Ok(Self { frequencies, limit, device, tables })
    }

    /// Tables of `length` positions or more.
    fn tables(&self, length: usize) -> Result<(Tensor, Tensor), LmError> {
        if length > self.limit {
            return Err(LmError::Mismatch(format!(
                "a sequence has {length} tokens, the model reads {}; shorten it",
                self.limit
            )));
        }
        let mut known = self.tables.borrow_mut();
        if known.0.size()[0] < length as i64 {
            *known = tables(&self.frequencies, (2 * length).min(self.limit), self.device)?;
        }
        Ok((known.0.shallow_clone(), known.1.shallow_clone()))
    }
}

/// Cosine and sine of `length` positions.
fn tables(frequencies: &[f64], length: usize, device: Device) -> Result<(Tensor, Tensor), LmError> {
    let positions = Tensor::f_arange(length as i64, (Kind::Double, Device::Cpu))?;
    let angles = positions.f_outer(&Tensor::f_from_slice(frequencies)?)?;
    let angles = Tensor::f_cat(&[&angles, &angles], 1)?;
    let place = |table: Tensor| table.f_to_kind(Kind::Float)?.f_to_device(device);
    Ok((place(angles.f_cos()?)?, place(angles.f_sin()?)?))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::small_model::config;

    #[test]
    fn tables_grow_to_the_length_that_is_used_and_stay_the_same_where_they_were() {
        let config = DecoderConfig { max_position_embeddings: 1 << 24, ..config() };
        let rotary = Rotary::new(&config, Device::Cpu).unwrap();
        let (short, _) = rotary.tables(10).unwrap();
        assert_eq!(short.size(), [FIRST_POSITIONS as i64, 4]);
        let (long, _) = rotary.tables(3000).unwrap();
        assert_eq!(long.size(), [6000, 4]);
        assert!(long.narrow(0, 0, FIRST_POSITIONS as i64).equal(&short));
        let small = Rotary::new(&DecoderConfig { max_position_embeddings: 8, ..config }, Device::Cpu).unwrap();
        assert_eq!(small.tables(8).unwrap().0.size(), [8, 4]);
        let error = small.tables(9).unwrap_err().to_string();
        assert!(error.contains("has 9 tokens, the model reads 8"), "{error}");
    }
}

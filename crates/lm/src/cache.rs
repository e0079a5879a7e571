//! The key-value cache of a decoding batch: one row a sequence, rows packed at the front.

use crate::{DecoderConfig, LmError};
use saddle_libtorch::decoder::Layer;
use tch::{Device, Kind, Tensor};

/// Keys and values of every layer, each `[rows, kv_heads, capacity, head_size]`.
#[derive(Debug)]
pub struct KvCache {
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    capacity: i64,
    window: Option<i64>,
}

/// What all layers share in one decoding step.
pub(crate) struct Step {
    /// Where each row's new token stands, `[rows]`.
    pub(crate) positions: Tensor,
    /// True where a row may look, `[rows, 1, 1, span]`.
    pub(crate) mask: Tensor,
    /// Index of each new entry in the flattened (rows · kv_heads · capacity) cache, `[rows · kv_heads]`.
    entries: Tensor,
    rows: i64,
    span: i64,
}

impl Step {
    /// Above every position.
    pub(crate) fn span(&self) -> i64 {
        self.span
    }
}

impl KvCache {
    /// An empty cache for `rows` sequences of up to `capacity` tokens.
    ///
    /// # Errors
    /// Fails if the memory cannot be had.
    pub fn new(
        config: &DecoderConfig,
        rows: usize,
        capacity: usize,
        kind: Kind,
        device: Device,
    ) -> Result<Self, LmError> {
        let shape = [rows as i64, config.num_key_value_heads as i64, capacity as i64, config.head_dim() as i64];
        let tables =
            || (0..config.num_hidden_layers).map(|_| Tensor::f_zeros(shape, (kind, device))).collect::<Result<_, _>>();
        Ok(Self {
            keys: tables()?,
            values: tables()?,
            capacity: capacity as i64,
            window: config.sliding_window.map(|window| window as i64),
        })
    }

    /// What keys and values are kept in.
    #[cfg(test)]
    pub(crate) fn kind(&self) -> Kind {
        self.keys[0].kind()
    }

    /// Describes a step in which row r's new token stands at `positions[r]`.
    pub(crate) fn step(&self, positions: &[i64]) -> Result<Step, LmError> {
        let device = self.keys[0].device();
        let rows = positions.len() as i64;
        let span = positions.iter().max().map_or(0, |last| last + 1);
        let heads = self.keys[0].size()[1];
        let entry = |(row, position): (usize, &i64), head| (row as i64 * heads + head) * self.capacity + position;
        let places = positions.iter().enumerate();
        let entries: Vec<i64> = places.flat_map(|place| (0..heads).map(move |head| entry(place, head))).collect();
        let positions = Tensor::f_from_slice(positions)?.f_to_device(device)?;
        let columns = Tensor::f_arange(span, (Kind::Int64, device))?;
        let (columns, last) = (columns.f_unsqueeze(0)?, positions.f_unsqueeze(1)?);
        let mut mask = columns.f_le_tensor(&last)?;
        if let Some(window) = self.window.filter(|window| span > *window) {
            mask = mask.f_logical_and(&columns.f_gt_tensor(&last.f_sub_scalar(window)?)?)?;
        }
        let mask = mask.f_view([rows, 1, 1, span])?;
        Ok(Step { positions, mask, entries: Tensor::f_from_slice(&entries)?.f_to_device(device)?, rows, span })
    }

    /// Writes the keys and values `[batch, kv_heads, length, head_size]` of whole prompts into rows `first_row..`.
    pub(crate) fn fill(&mut self, layer: usize, first_row: i64, key: &Tensor, value: &Tensor) -> Result<(), LmError> {
        for (table, new) in [(&self.keys[layer], key), (&self.values[layer], value)] {
            let (rows, _, length, _) = new.size4()?;
            table.f_narrow(0, first_row, rows)?.f_narrow(2, 0, length)?.f_copy_(new)?;
        }
        Ok(())
    }

    /// Writes one new entry a row, of `key` and `value` `[rows, kv_heads, 1, head_size]`, and returns the keys and values so far, `[rows, kv_heads, span, head_size]`.
    pub(crate) fn append(
        &mut self,
        layer: usize,
        step: &Step,
        key: &Tensor,
        value: &Tensor,
    ) -> Result<(Tensor, Tensor), LmError> {
        let append = |table: &Tensor, new: &Tensor| {
            let size = table.size()[3];
            let new = new.f_reshape([-1, size])?.f_to_kind(table.f_kind()?)?;
            let _ = table.f_view([-1, size])?.f_index_copy_(0, &step.entries, &new)?;
            Ok::<_, LmError>(table.f_narrow(0, 0, step.rows)?.f_narrow(2, 0, step.span)?)
        };
        Ok((append(&self.keys[layer], key)?, append(&self.values[layer], value)?))
    }

    /// Each layer's keys and values.
    pub(crate) fn layers(&mut self) -> Vec<Layer<'_>> {
        self.keys.iter_mut().zip(&mut self.values).collect()
    }

    /// Copies the first `length` entries of row `from` over row `to`.
    pub(crate) fn copy_row(&mut self, from: i64, to: i64, length: i64) -> Result<(), LmError> {
        for table in self.keys.iter().chain(&self.values) {
            let source = table.f_narrow(0, from, 1)?.f_narrow(2, 0, length)?;
            table.f_narrow(0, to, 1)?.f_narrow(2, 0, length)?.f_copy_(&source)?;
        }
        Ok(())
    }
}

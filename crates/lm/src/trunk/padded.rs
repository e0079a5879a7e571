//! Attention over packed sequences by way of padded ones, with libtorch's own operations: for every device.

use super::attention::{Heads, attend, window_mask};
use super::positions::Positions;
use crate::batching::Padding;
use crate::{LmError, Sequences};
use tch::Tensor;

/// Packed sequences as rectangles.
pub(super) struct Padded {
    groups: Vec<Padding>,
    /// Each token's place among those of all rectangles.
    places: Tensor,
    window: Option<i64>,
}

impl Padded {
    /// Rectangles that are at least half full: no row is longer than twice another.
    pub(super) fn by_length(sequences: &Sequences, window: Option<i64>) -> Result<Self, LmError> {
        let lengths = sequences.lengths();
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|row| std::cmp::Reverse(lengths[*row]));
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for row in order {
            match groups.last_mut() {
                Some(group) if 2 * lengths[row] >= lengths[group[0]] => group.push(row),
                _ => groups.push(vec![row]),
            }
        }
        Self::of(sequences, &groups, window)
    }

    /// One rectangle, with the sequences in their order.
    pub(super) fn together(sequences: &Sequences, window: Option<i64>) -> Result<Self, LmError> {
        Self::of(sequences, &[(0..sequences.lengths().len()).collect()], window)
    }

    fn of(sequences: &Sequences, groups: &[Vec<usize>], window: Option<i64>) -> Result<Self, LmError> {
        let lengths = sequences.lengths();
        let mut first_cells = vec![0; lengths.len()];
        let mut cells = 0;
        for group in groups {
            let width = group.iter().map(|row| lengths[*row]).max().unwrap_or(0);
            for row in group {
                first_cells[*row] = cells;
                cells += width;
            }
        }
        let rows = first_cells.iter().zip(lengths);
        let places: Vec<i64> = rows.flat_map(|(first, length)| *first..first + length).collect();
        Ok(Self {
            groups: groups.iter().map(|group| sequences.padding_of(group)).collect::<Result<_, _>>()?,
            places: Tensor::f_from_slice(&places)?.f_to_device(sequences.positions().device())?,
            window,
        })
    }

    /// What each token takes, `[tokens, heads · head_size]`. `keep(key, value)` sees each rectangle's turned keys and its
    /// values, `[rows, kv_heads, width, head_size]`.
    pub(super) fn attend(
        &self,
        heads: &Heads,
        positions: &Positions,
        mut keep: impl FnMut(&Tensor, &Tensor) -> Result<(), LmError>,
    ) -> Result<Tensor, LmError> {
        let mixed = self.groups.iter().map(|group| {
            let split = |tensor: &Tensor| {
                let padded = group.pad(tensor)?.f_view([group.rows, group.width, -1, heads.size])?;
                Ok::<_, LmError>(padded.f_transpose(1, 2)?)
            };
            let turn = positions.upto(group.width)?;
            let (query, key) = (turn.apply(split(&heads.query)?)?, turn.apply(split(&heads.key)?)?);
            let value = split(&heads.value)?;
            keep(&key, &value)?;
            let mask = self.window.filter(|window| group.width > *window);
            let mask = mask.map(|window| window_mask(group.width, window, query.device())).transpose()?;
            let mixed = attend(&query, &key, &value, mask.as_ref())?;
            Ok::<_, LmError>(mixed.f_transpose(1, 2)?.f_reshape([group.rows * group.width, -1])?)
        });
        Ok(Tensor::f_cat(&mixed.collect::<Result<Vec<_>, _>>()?, 0)?.f_index_select(0, &self.places)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::small_model::config;
    use crate::{Architecture, DecoderConfig, Policy};
    use tch::{Device, Kind};

    #[test]
    fn rectangles_give_what_packed_sequences_do_and_so_do_their_gradients() {
        for architecture in Architecture::ALL {
            let config = DecoderConfig {
                architecture,
                hidden_size: 24,
                num_attention_heads: 4,
                num_key_value_heads: if architecture == Architecture::Gpt2 { 4 } else { 2 },
                head_dim: None,
                sliding_window: (architecture == Architecture::Mistral).then_some(3),
                ..config()
            };
            let policy = Policy::fresh(config, 5, Device::Cpu).unwrap().trainable().unwrap();
            let trunk = policy.trunk();
            let sequences = Sequences::new(&[5, 1, 2, 9], Device::Cpu).unwrap();
            let tokens = Tensor::from_slice(&(0i64..17).map(|place| place % 7).collect::<Vec<_>>());
            let wanted = Tensor::from_slice(&[1i64, 5, 4, 16]);
            let gradient = |hidden: &Tensor| policy.parameters().gradient(&hidden.sin().sum(Kind::Float)).unwrap();
            let packed = trunk.forward(&tokens, &sequences, Some(&wanted)).unwrap();
            let everywhere = trunk.forward(&tokens, &sequences, None).unwrap().index_select(0, &wanted);
            let padded = [
                Padded::by_length(&sequences, trunk.window).unwrap(),
                Padded::together(&sequences, trunk.window).unwrap(),
            ];
            assert_eq!(padded.each_ref().map(|padded| padded.groups.len()), [2, 1]);
            let padded = padded.map(|padded| {
                let hidden = trunk.embed(&tokens, sequences.positions()).unwrap();
                let attention = |_, heads: &Heads| padded.attend(heads, &trunk.positions, |_, _| Ok(()));
                trunk.run(hidden, Some(&wanted), attention).unwrap()
            });
            let expected = gradient(&packed);
            for other in padded.iter().chain([&everywhere]) {
                let apart = (&packed - other).abs().max().double_value(&[]);
                assert!(apart < 1e-5, "{architecture:?}: {apart}");
                let apart = (&expected - gradient(other)).abs().max().double_value(&[]);
                assert!(apart < 1e-4, "{architecture:?}: gradient {apart}");
            }
        }
    }
}

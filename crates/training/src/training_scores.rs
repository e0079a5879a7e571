//! What a score model makes of the responses that it was trained on: how its scores are to be normalised, and between which
//! bounds they lie.
//!
//! Both come from one pass over the responses. It fails if libtorch does.

use crate::TrainingError;
use crate::encode::{Pair, Sequence};
use crate::models::normalised;
use crate::scoring::finite_end_scores;
use saddle_algorithms::statistics::quantile;
use saddle_lm::{ModelKind, Normalizer, ScoreModel, ScoreRange};

/// At most so many pairs are scored for the range, both responses of each.
const RANGE_PAIRS: usize = 4096;
/// The share of responses that is left out of the range at either end.
const TAIL: f64 = 0.001;

/// How far scores may lie apart, relative to their size and to 1, and still be one score.
const ROUNDING: f64 = 1e-6;

/// The scores of the training responses in two ways.
pub(crate) struct TrainingScores {
    /// Mean and deviation of all of them, if they are asked for; a cost is only scaled.
    pub(crate) normalizer: Option<Normalizer>,
    /// The range, after normalising, of at most 8192 responses: those of evenly spaced pairs.
    pub(crate) range: ScoreRange,
}

impl TrainingScores {
    /// Scores the responses of `train`, of which there are some: all of them if a normalizer is asked for, else those that
    /// the range needs.
    pub(crate) fn measure(
        model: &ScoreModel,
        kind: ModelKind,
        train: &[Pair],
        normalize: bool,
        budget_tokens: usize,
    ) -> Result<Self, TrainingError> {
        let all: Vec<&Pair> = train.iter().collect();
        let pairs = if normalize { all } else { evenly_spaced(&all, RANGE_PAIRS) };
        let responses: Vec<&Sequence> = pairs.iter().flat_map(|pair| [&pair.preferred, &pair.other]).collect();
        let scores = finite_end_scores(model, &responses, budget_tokens)?;
        let normalizer = normalize.then(|| normalizer(&scores, kind));
        let of_pairs: Vec<&[f32]> = scores.chunks_exact(2).collect();
        let sample = evenly_spaced(&of_pairs, RANGE_PAIRS).concat();
        Ok(Self { normalizer, range: range(&normalised(sample, normalizer))? })
    }
}

/// Mean and deviation of `scores`; a cost is only scaled. Scores that do not differ, but for the rounding of float32, are not
/// scaled: what they were divided by would be chance.
fn normalizer(scores: &[f32], kind: ModelKind) -> Normalizer {
    let mean_of = |value: &dyn Fn(f64) -> f64| {
        scores.iter().map(|score| value(f64::from(*score))).sum::<f64>() / scores.len() as f64
    };
    let mean = mean_of(&|score| score);
    let std = mean_of(&|score| (score - mean).powi(2)).sqrt();
    let std = if std > ROUNDING * mean.abs().max(1.0) { std } else { 1.0 };
    Normalizer { mean: if kind == ModelKind::Cost { 0.0 } else { mean }, std }
}

/// The range of `scores`, of which there are some.
fn range(scores: &[f32]) -> Result<ScoreRange, TrainingError> {
    let scores: Vec<f64> = scores.iter().copied().map(f64::from).collect();
    Ok(ScoreRange { low: quantile(&scores, TAIL)?, high: quantile(&scores, 1.0 - TAIL)? })
}

/// At most `limit` of `items`, in order, at equal distances from the first on.
fn evenly_spaced<T: Copy>(items: &[T], limit: usize) -> Vec<T> {
    let count = items.len().min(limit);
    (0..count).map(|index| items[index * items.len() / count]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ShapeSection, SpecialTokens};
    use saddle_lm::{fresh_weights, policy_shapes};
    use tch::Device;

    /// Of 1001 scores 0, 1, … 1000, one lies below 1 and one above 999.
    #[test]
    fn the_range_leaves_out_a_thousandth_at_either_end() {
        let scores: Vec<f32> = (0..=1000).rev().map(|score| score as f32).collect();
        let ScoreRange { low, high } = range(&scores).unwrap();
        assert!((low - 1.0).abs() < 1e-9 && (high - 999.0).abs() < 1e-9, "{low} {high}");
        assert_eq!(range(&[2.5]).unwrap(), ScoreRange { low: 2.5, high: 2.5 });
    }

    #[test]
    fn evenly_spaced_items_begin_with_the_first_and_reach_the_end() {
        let items: Vec<usize> = (0..10).collect();
        assert_eq!(evenly_spaced(&items, 4), [0, 2, 5, 7]);
        assert_eq!(evenly_spaced(&items, 5), [0, 2, 4, 6, 8]);
        assert_eq!(evenly_spaced(&items, 9), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(evenly_spaced(&items, 10), items);
        assert_eq!(evenly_spaced(&items, 99), items);
        assert_eq!(evenly_spaced(&[0; 0], 4), [0; 0]);
    }

    #[test]
    fn a_reward_is_shifted_and_scaled_and_a_cost_only_scaled() {
        let scores = [1.0, 3.0, 5.0, 7.0];
        let std = 5f64.sqrt();
        assert_eq!(normalizer(&scores, ModelKind::Reward), Normalizer { mean: 4.0, std });
        assert_eq!(normalizer(&scores, ModelKind::Cost), Normalizer { mean: 0.0, std });
    }

    #[test]
    fn scores_that_do_not_differ_are_not_scaled() {
        for (scores, mean) in [([2.5f32; 3], 2.5), ([1e6, 1e6, 1e6 + 0.0625], 1e6), ([0.3, 0.3, 0.300_000_03], 0.3)] {
            let found = normalizer(&scores, ModelKind::Reward);
            assert!(found.std == 1.0 && (found.mean - mean).abs() < 0.1, "{found:?}");
        }
        assert!(normalizer(&[0.0, 1e-4], ModelKind::Cost).std < 1e-4);
    }

    fn score_model() -> ScoreModel {
        let shape =
            ShapeSection { layers: 1, hidden: 8, intermediate: 16, heads: 2, key_value_heads: None, max_tokens: 8 };
        let config = shape.decoder(16, SpecialTokens::default());
        let weights = fresh_weights(&policy_shapes(&config), 1, 3).unwrap();
        ScoreModel::on_trunk(config, &weights, 1, 3, Device::Cpu).unwrap()
    }

    #[test]
    fn the_range_is_that_of_the_normalised_scores() {
        let model = score_model();
        let sequence = |first| Sequence { prompt: vec![first, 1], response: vec![2, first] };
        let train: Vec<Pair> = (0..6)
            .map(|row| Pair { preferred: sequence(2 * row), other: sequence(2 * row + 1), safe: [None; 2] })
            .collect();
        let measure = |normalize| TrainingScores::measure(&model, ModelKind::Reward, &train, normalize, 64).unwrap();
        let (raw, scaled) = (measure(false), measure(true));
        assert_eq!(raw.normalizer, None);
        assert!(raw.range.low < raw.range.high);
        let Normalizer { mean, std } = scaled.normalizer.unwrap();
        for (raw, scaled) in [(raw.range.low, scaled.range.low), (raw.range.high, scaled.range.high)] {
            assert!(((raw - mean) / std - scaled).abs() < 1e-5, "{raw} {scaled}");
        }
    }
}

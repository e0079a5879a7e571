//! Means, quantiles and bootstrap intervals.

use crate::Error;
use rand::Rng;

/// A mean and how far it may be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeanWithError {
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard error of the mean, from the unbiased variance.
    pub standard_error: f64,
}

/// A statistic of a sample with its bootstrap 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The statistic of the sample itself.
    pub estimate: f64,
    /// 2.5 % quantile of its resamples.
    pub low: f64,
    /// 97.5 % quantile of its resamples.
    pub high: f64,
}

/// Arithmetic mean; NaN for no values, so that it can serve [`bootstrap_interval`].
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Mean and standard error of at least two values.
pub fn mean_with_error(values: &[f64]) -> Result<MeanWithError, Error> {
    if values.len() < 2 {
        return Err(Error::TooFew { what: "a standard error", needed: 2, got: values.len() });
    }
    let entries = values.len() as f64;
    let mean = mean(values);
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (entries - 1.0);
    Ok(MeanWithError { mean, standard_error: (variance / entries).sqrt() })
}

/// Half the width of the two-sided 90 % confidence interval of the mean of `count` values: `t · s/√m`, with t the 95 %
/// quantile of Student's distribution with m − 1 degrees of freedom. The mean plus this is a one-sided 95 % upper bound.
/// From Cornish and Fisher's expansion around the normal quantile, right to 0.001 from 15 values on; infinite for fewer than 2.
#[must_use]
pub fn confidence_margin(standard_error: f64, count: usize) -> f64 {
    const Z: f64 = 1.644_853_626_951_472_7;
    if count < 2 {
        return f64::INFINITY;
    }
    let freedom = (count - 1) as f64;
    let first = (Z.powi(3) + Z) / 4.0;
    let second = (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / 96.0;
    standard_error * (Z + first / freedom + second / freedom.powi(2))
}

/// The value below which the share `probability` (0..=1) of `values` lies, interpolated linearly between neighbours.
pub fn quantile(values: &[f64], probability: f64) -> Result<f64, Error> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted_quantile(&sorted, probability)
}

fn sorted_quantile(sorted: &[f64], probability: f64) -> Result<f64, Error> {
    if !(0.0..=1.0).contains(&probability) {
        return Err(Error::Value { what: "the probability", value: probability, needed: "in 0..=1" });
    }
    let Some(last) = sorted.len().checked_sub(1) else {
        return Err(Error::TooFew { what: "a quantile", needed: 1, got: 0 });
    };
    let place = probability * last as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Ok(below + (above - below) * place.fract())
}

/// Percentile bootstrap (Efron): the statistic of `resamples` samples drawn with replacement from `sample`. An entry is
/// whatever belongs together, such as the pair of scores of one prompt. All randomness is `rng`'s.
pub fn bootstrap_interval<T: Copy>(
    sample: &[T],
    statistic: impl Fn(&[T]) -> f64,
    resamples: usize,
    rng: &mut impl Rng,
) -> Result<Interval, Error> {
    if sample.is_empty() {
        return Err(Error::TooFew { what: "a bootstrap interval", needed: 1, got: 0 });
    }
    let mut resample = sample.to_vec();
    let mut statistics = Vec::with_capacity(resamples);
    for _ in 0..resamples {
        resample.fill_with(|| sample[rng.random_range(0..sample.len())]);
        statistics.push(statistic(&resample));
    }
    statistics.sort_by(f64::total_cmp);
    Ok(Interval {
        estimate: statistic(sample),
        low: sorted_quantile(&statistics, 0.025)?,
        high: sorted_quantile(&statistics, 0.975)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn mean_and_error_agree_with_a_hand_computed_case() {
        let result = mean_with_error(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!(result.mean, 2.5);
        assert!((result.standard_error - (5.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
        assert!(mean_with_error(&[1.0]).is_err());
    }

    #[test]
    fn the_margin_is_students_quantile_times_the_error() {
        // Quantiles of Student's distribution from a table.
        for (count, quantile) in [(16, 1.7531), (31, 1.6973), (101, 1.6602), (100_001, 1.6449)] {
            assert!((confidence_margin(2.0, count) - 2.0 * quantile).abs() < 2e-3, "{count}");
        }
        assert_eq!(confidence_margin(0.1, 1), f64::INFINITY);
        assert!(confidence_margin(f64::NAN, 64).is_nan());
    }

    #[test]
    fn quantiles_interpolate_and_refuse_nonsense() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&values, 0.0).unwrap(), 1.0);
        assert_eq!(quantile(&values, 0.5).unwrap(), 2.5);
        assert_eq!(quantile(&values, 1.0).unwrap(), 4.0);
        assert!(quantile(&values, 1.1).is_err());
        assert!(quantile(&[], 0.5).is_err());
    }

    #[test]
    fn the_bootstrap_interval_is_as_wide_as_theory_says_and_repeats_with_its_seed() {
        let sample: Vec<f64> = (0..400).map(|index| f64::from(index % 20)).collect();
        let interval = |seed| bootstrap_interval(&sample, mean, 2000, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
        let (first, theory) = (interval(7), mean_with_error(&sample).unwrap());
        assert_eq!(first, interval(7));
        assert!(first.low < first.estimate && first.estimate < first.high);
        let half_width = 1.96 * theory.standard_error;
        assert!(((first.high - first.low) / 2.0 - half_width).abs() < 0.1 * half_width);
    }
}

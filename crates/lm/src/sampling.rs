//! From logits to tokens: temperature, top-k, top-p, and a draw that depends on the prompt alone.
//!
//! libtorch's random numbers are one global stream, so a token drawn from them would depend on what else was being
//! decoded. Here each response has its own counter-based stream, keyed by the run's seed and the prompt's ordinal, and
//! each token takes the next number of it: the same weights give the same response in any batch, on any generator.

use crate::LmError;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use saddle_core::PromptOrdinal;
use saddle_libtorch::kernels;
use tch::{Device, Kind, Tensor};

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; zero means greedy: the likeliest token.
    pub temperature: f64,
    /// Only the k likeliest tokens; zero means all.
    pub top_k: usize,
    /// Only the smallest set of likeliest tokens that holds this much probability; one means all.
    pub top_p: f64,
}

/// The random numbers of one response.
#[derive(Clone, Debug)]
pub(crate) struct ResponseRandom(ChaCha8Rng);

impl ResponseRandom {
    pub(crate) fn new(seed: u64, ordinal: PromptOrdinal) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(ordinal.0);
        Self(random)
    }

    /// The next uniform number in [0, 1).
    pub(crate) fn uniform(&mut self) -> f64 {
        self.0.random()
    }
}

impl Sampling {
    /// Chooses one token a row of `logits` `[rows, vocabulary]` by inverse transform of `uniforms` (one a row), and
    /// gives with it the token's log-probability under the distribution that it was drawn from: after temperature,
    /// top-k and top-p, in float32. A greedy choice reports its log-probability at temperature one.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub(crate) fn choose(&self, logits: &Tensor, uniforms: &[f64]) -> Result<(Vec<i64>, Vec<f32>), LmError> {
        if logits.device() == Device::Cpu {
            let (logits, temperature) = match self.temperature {
                0.0 => (logits.shallow_clone(), 0.0),
                temperature if self.truncates() => (self.truncate(&logits.f_div_scalar(temperature)?)?, 1.0),
                temperature => (logits.shallow_clone(), temperature),
            };
            return Ok(kernels::choose(&logits.f_contiguous()?, temperature, uniforms)?);
        }
        let (tokens, log_softmax) = if self.temperature == 0.0 {
            (logits.f_argmax(-1, true)?, logits.f_log_softmax(-1, Kind::Float)?)
        } else {
            let log_softmax = self.truncate(&logits.f_div_scalar(self.temperature)?)?.f_log_softmax(-1, Kind::Float)?;
            let cumulative = log_softmax.f_exp()?.f_cumsum(-1, Kind::Double)?;
            let total = cumulative.f_narrow(-1, cumulative.size()[1] - 1, 1)?;
            let uniforms = Tensor::f_from_slice(uniforms)?.f_to_device(logits.device())?.f_unsqueeze(1)?;
            // The first token whose cumulative probability is above the number: never one of probability zero.
            let above = cumulative.f_gt_tensor(&total.f_mul(&uniforms)?)?;
            (above.f_to_kind(Kind::Int8)?.f_argmax(-1, true)?, log_softmax)
        };
        let log_probs = log_softmax.f_gather(-1, &tokens, false)?;
        Ok((Vec::try_from(tokens.f_view(-1)?)?, Vec::try_from(log_probs.f_view(-1)?)?))
    }

    fn truncates(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0
    }

    fn truncate(&self, logits: &Tensor) -> Result<Tensor, LmError> {
        let mut logits = logits.shallow_clone();
        let vocabulary = logits.size()[1];
        if self.top_k > 0 && (self.top_k as i64) < vocabulary {
            let (values, _) = logits.f_topk(self.top_k as i64, -1, true, true)?;
            let least = values.f_narrow(-1, self.top_k as i64 - 1, 1)?;
            logits = logits.f_masked_fill(&logits.f_lt_tensor(&least)?, f64::NEG_INFINITY)?;
        }
        if self.top_p < 1.0 {
            let (sorted, order) = logits.f_sort(-1, true)?;
            let probability = sorted.f_softmax(-1, Kind::Float)?;
            let before = probability.f_cumsum(-1, Kind::Float)?.f_sub(&probability)?;
            let dropped = before.f_ge(self.top_p)?;
            let dropped = dropped.f_zeros_like()?.f_scatter(-1, &order, &dropped)?;
            logits = logits.f_masked_fill(&dropped, f64::NEG_INFINITY)?;
        }
        Ok(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };

    fn logits() -> Tensor {
        // probabilities 0.1, 0.2, 0.3, 0.4
        Tensor::from_slice(&[0.1f32, 0.2, 0.3, 0.4]).log().unsqueeze(0)
    }

    fn choose(sampling: &Sampling, uniform: f64) -> (i64, f32) {
        let (tokens, log_probs) = sampling.choose(&logits(), &[uniform]).unwrap();
        (tokens[0], log_probs[0])
    }

    #[test]
    fn the_draw_inverts_the_cumulative_distribution() {
        for (uniform, token) in [(0.0, 0), (0.09, 0), (0.11, 1), (0.31, 2), (0.59, 2), (0.61, 3), (0.999_999_999, 3)] {
            assert_eq!(choose(&PLAIN, uniform).0, token, "uniform {uniform}");
        }
    }

    #[test]
    fn the_log_prob_is_that_of_the_truncated_distribution() {
        let top_two = Sampling { top_k: 2, ..PLAIN };
        let (token, log_prob) = choose(&top_two, 0.0);
        assert_eq!(token, 2);
        assert!((log_prob.exp() - 0.3 / 0.7).abs() < 1e-6);
        let nucleus = Sampling { top_p: 0.5, ..PLAIN };
        let (token, log_prob) = choose(&nucleus, 0.0);
        assert_eq!(token, 2, "0.4 alone is less than 0.5, so 0.3 joins it");
        assert!((log_prob.exp() - 0.3 / 0.7).abs() < 1e-6);
    }

    #[test]
    fn temperature_zero_takes_the_likeliest() {
        let (token, log_prob) = choose(&Sampling { temperature: 0.0, ..PLAIN }, 0.0);
        assert_eq!(token, 3);
        assert!((log_prob.exp() - 0.4).abs() < 1e-6);
    }

    #[test]
    fn a_token_of_probability_zero_is_never_drawn() {
        let logits = Tensor::from_slice(&[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY]).unsqueeze(0);
        for uniform in [0.0, 0.5, 0.999_999_999_999] {
            assert_eq!(PLAIN.choose(&logits, &[uniform]).unwrap().0, [1]);
        }
    }

    #[test]
    fn each_prompt_has_a_stream_of_its_own() {
        let draw = |seed, ordinal| ResponseRandom::new(seed, PromptOrdinal(ordinal)).uniform();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        assert_ne!(draw(1, 2), draw(2, 2));
    }
}

//! A policy's weights as decoding uses them: on a CPU packed for products of few rows, on another device as they are.

use crate::trunk::PackedTrunk;
use crate::{KvCache, LmError, Policy, Precision, Sequences};
use saddle_libtorch::decoder::Places;
use saddle_libtorch::kernels::{self, PackedWeight};
use tch::{Device, Tensor};

/// Most tokens of prompts that go through the model together, unless one prompt alone is longer.
const PREFILL_TOKENS: usize = 4096;

/// A policy made ready for decoding, in a precision. It is of the weights as they were; what is not packed (embedding,
/// norms) it shares with the policy, which must not be changed while this is in use.
#[derive(Debug)]
pub struct DecodingWeights {
    policy: Policy,
    packed: Option<Packed>,
}

#[derive(Debug)]
struct Packed {
    trunk: PackedTrunk,
    head: PackedWeight,
}

/// A sequence to be taken up into a row of the cache.
pub(crate) struct Entrant<'a> {
    /// The whole sequence.
    pub(crate) tokens: &'a [i64],
    /// How many of its tokens the row holds already; the last is not among them.
    pub(crate) known: usize,
    /// The row.
    pub(crate) row: usize,
}

impl DecodingWeights {
    /// The weights of `policy` in `precision`.
    ///
    /// # Errors
    /// Fails if their memory cannot be had.
    pub fn new(policy: &Policy, precision: Precision) -> Result<Self, LmError> {
        let _guard = tch::no_grad_guard();
        let kind = precision.kind();
        if policy.device() != Device::Cpu {
            return Self::plain(policy, precision);
        }
        let packed =
            Packed { trunk: policy.trunk().pack(kind)?, head: PackedWeight::new(policy.head().weight(), None, kind)? };
        Ok(Self { policy: policy.replica()?.in_precision(precision), packed: Some(packed) })
    }

    /// The weights as they are on a GPU: without packing, and frozen ones in bfloat16 if that is the precision.
    fn plain(policy: &Policy, precision: Precision) -> Result<Self, LmError> {
        let policy = match precision {
            Precision::F32 => policy.replica()?,
            Precision::Bf16 => policy.kept(precision.kind(), policy.device())?,
        };
        Ok(Self { policy: policy.in_precision(precision), packed: None })
    }

    /// The policy that these are the weights of.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// An empty cache for `rows` sequences of up to `capacity` tokens, in the precision of these.
    pub(crate) fn cache(&self, rows: usize, capacity: usize) -> Result<KvCache, LmError> {
        let (config, kind) = (self.policy.config(), self.policy.precision().kind());
        KvCache::new(config, rows, capacity, kind, self.policy.device())
    }

    /// Whether [`Self::read`] can go on from tokens that the cache holds.
    pub(crate) fn shares_prefixes(&self) -> bool {
        self.packed.is_some()
    }

    /// Takes up sequences into neighbouring rows of `cache`, in order, and gives the logits after each, `[sequences,
    /// vocabulary]` in float32.
    pub(crate) fn read(&self, entrants: &[Entrant<'_>], cache: &mut KvCache) -> Result<Tensor, LmError> {
        let mut states = Vec::new();
        let mut rest = entrants;
        while let Some(first) = rest.first() {
            let mut tokens = first.tokens.len() - first.known;
            let more = rest[1..].iter().take_while(|entrant| {
                tokens += entrant.tokens.len() - entrant.known;
                tokens <= PREFILL_TOKENS
            });
            let (together, others) = rest.split_at(1 + more.count());
            states.push(match &self.packed {
                Some(packed) => self.read_packed(packed, together, cache)?,
                None => self.read_plain(together, cache)?,
            });
            rest = others;
        }
        self.logits(&Tensor::f_cat(&states, 0)?)
    }

    fn read_packed(&self, packed: &Packed, entrants: &[Entrant<'_>], cache: &mut KvCache) -> Result<Tensor, LmError> {
        let (mut tokens, mut rows, mut positions, mut last) = (vec![], vec![], vec![], vec![]);
        for Entrant { tokens: all, known, row } in entrants {
            tokens.extend_from_slice(&all[*known..]);
            rows.resize(tokens.len(), *row as i64);
            positions.extend(*known as i64..all.len() as i64);
            last.push(tokens.len() as i64 - 1);
        }
        let places = Places { rows: &rows, positions: &positions, wanted: Some(&last) };
        self.policy.trunk().forward_packed(&packed.trunk, &tokens, &places, cache)
    }

    fn read_plain(&self, entrants: &[Entrant<'_>], cache: &mut KvCache) -> Result<Tensor, LmError> {
        let device = self.policy.device();
        let lengths: Vec<usize> = entrants.iter().map(|entrant| entrant.tokens.len()).collect();
        let tokens: Vec<i64> = entrants.iter().flat_map(|entrant| entrant.tokens).copied().collect();
        let ends = lengths.iter().scan(0, |end, length| {
            *end += *length as i64;
            Some(*end - 1)
        });
        let place = |values: &[i64]| Tensor::f_from_slice(values)?.f_to_device(device);
        let (tokens, last) = (place(&tokens)?, place(&ends.collect::<Vec<_>>())?);
        let first_row = entrants.first().map_or(0, |entrant| entrant.row as i64);
        let sequences = Sequences::new(&lengths, device)?;
        self.policy.trunk().prefill(&tokens, &sequences, &last, (cache, first_row))
    }

    /// Takes up one more token of each of the first `tokens.len()` rows, at its position, and gives the logits after it,
    /// `[rows, vocabulary]` in float32.
    pub(crate) fn step(&self, tokens: &[i64], positions: &[i64], cache: &mut KvCache) -> Result<Tensor, LmError> {
        let trunk = self.policy.trunk();
        let hidden = match &self.packed {
            Some(packed) => {
                let rows: Vec<i64> = (0..tokens.len() as i64).collect();
                let places = Places { rows: &rows, positions, wanted: None };
                trunk.forward_packed(&packed.trunk, tokens, &places, cache)?
            }
            None => {
                let step = cache.step(positions)?;
                let tokens = Tensor::f_from_slice(tokens)?.f_to_device(self.policy.device())?;
                trunk.step(&tokens, &step, cache)?
            }
        };
        self.logits(&hidden)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor, LmError> {
        match &self.packed {
            Some(packed) => Ok(kernels::linear(&[&packed.head], hidden)?.remove(0)),
            None => self.policy.logits(hidden),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::small_model::config;
    use crate::{Architecture, DecoderConfig, LoraConfig};
    use tch::Kind;

    fn policy(architecture: Architecture) -> Policy {
        let config = DecoderConfig {
            architecture,
            vocab_size: 29,
            hidden_size: 24,
            intermediate_size: 40,
            num_attention_heads: 4,
            num_key_value_heads: if architecture == Architecture::Gpt2 { 4 } else { 2 },
            head_dim: None,
            max_position_embeddings: 32,
            sliding_window: (architecture == Architecture::Mistral).then_some(4),
            tie_word_embeddings: architecture != Architecture::Qwen2,
            ..config()
        };
        Policy::fresh(config, 5, Device::Cpu).unwrap()
    }

    /// Logits after two prompts, and after two more tokens of each.
    fn logits(weights: &DecodingWeights) -> Tensor {
        let mut cache = weights.cache(2, 16).unwrap();
        let prompts: [&[i64]; 2] = [&[3, 1, 4, 1, 5, 9, 2], &[6, 5]];
        let entrants: Vec<_> =
            prompts.iter().enumerate().map(|(row, tokens)| Entrant { tokens, known: 0, row }).collect();
        let mut all = vec![weights.read(&entrants, &mut cache).unwrap()];
        for step in 0..2 {
            all.push(weights.step(&[7 + step, 8], &[7 + step, 2 + step], &mut cache).unwrap());
        }
        Tensor::cat(&all, 0)
    }

    fn largest_difference(one: &Tensor, other: &Tensor) -> f64 {
        (one - other).abs().max().double_value(&[])
    }

    #[test]
    fn packed_weights_decode_as_plain_ones_do() {
        let _guard = tch::no_grad_guard();
        for architecture in Architecture::ALL {
            let policy = policy(architecture);
            let plain = DecodingWeights::plain(&policy, Precision::F32).unwrap();
            let packed = DecodingWeights::new(&policy, Precision::F32).unwrap();
            let difference = largest_difference(&logits(&plain), &logits(&packed));
            assert!(difference < 1e-5, "{architecture:?}: {difference}");
        }
    }

    #[test]
    fn unpacked_weights_and_cache_are_bf16_in_that_precision_and_adapters_stay_beside_them() {
        let _guard = tch::no_grad_guard();
        let lora = LoraConfig { rank: 2, ..LoraConfig::default() };
        for architecture in Architecture::ALL {
            let adapted = policy(architecture).adapted(&lora, 3).unwrap();
            let _ = adapted.parameters().flat().shallow_clone().f_add_scalar_(0.1).unwrap();
            let exact = logits(&DecodingWeights::plain(&adapted, Precision::F32).unwrap());
            let half = DecodingWeights::plain(&adapted, Precision::Bf16).unwrap();
            for weights in [&half, &DecodingWeights::new(&adapted, Precision::Bf16).unwrap()] {
                assert_eq!(weights.cache(1, 4).unwrap().kind(), Kind::BFloat16);
            }
            assert_eq!(half.policy().parameters().base().unwrap().flat().kind(), Kind::BFloat16);
            let scale = exact.abs().max().double_value(&[]).max(1.0);
            let difference = largest_difference(&exact, &logits(&half)) / scale;
            assert!((1e-6..0.1).contains(&difference), "{architecture:?}: {difference}");
        }
    }

    /// Of the same roundings, but for the order of sums: which may tip a number to its neighbour in bfloat16.
    #[test]
    fn bf16_rounds_matrices_and_their_inputs_as_training_does() {
        let _guard = tch::no_grad_guard();
        let policy = policy(Architecture::Llama);
        let exact = logits(&DecodingWeights::new(&policy, Precision::F32).unwrap());
        // Under a policy in float32, so that the cache keeps keys and values as they are.
        let packed = DecodingWeights::new(&policy, Precision::Bf16).unwrap().packed;
        let half = logits(&DecodingWeights { policy: policy.replica().unwrap(), packed });
        let by_hand = policy.replica().unwrap().in_precision(Precision::Bf16);
        let by_hand = logits(&DecodingWeights { policy: by_hand, packed: None });
        let rounding = largest_difference(&exact, &half);
        let apart = largest_difference(&by_hand, &half);
        assert!((1e-6..0.1).contains(&rounding) && apart < rounding, "{rounding}, {apart}");
    }
}

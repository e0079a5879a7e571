//! The policy: a decoder with a language-model head.

use crate::decoder::{Decoder, DecoderHead};
use crate::layout::{fresh_weights, policy_shapes};
use crate::{DecoderConfig, LmError, Parameters, SequenceBatch, Trunk};
use saddle_libtorch::layers;
use tch::{Device, Kind, Tensor};

/// A language model over one set of [`Parameters`].
pub type Policy = Decoder<LanguageModelHead>;

/// From hidden states to next-token logits: the token embedding where the two are tied.
#[derive(Debug)]
pub struct LanguageModelHead(Tensor);

impl DecoderHead for LanguageModelHead {
    const TRAINED_WHOLE: Option<&'static str> = None;

    fn over(config: &DecoderConfig, parameters: &Parameters, trunk: &Trunk) -> Result<Self, LmError> {
        Ok(Self(if config.tie_word_embeddings {
            trunk.embedding().shallow_clone()
        } else {
            parameters.get("lm_head.weight")?
        }))
    }
}

impl LanguageModelHead {
    /// `[vocabulary, hidden]`.
    pub(crate) fn weight(&self) -> &Tensor {
        &self.0
    }
}

/// What a forward pass says of the response tokens of a batch, each `[batch, response]`, zero outside responses.
#[derive(Debug)]
pub struct ResponseLogProbs {
    /// log π(token | what stands before it); carries gradients if the parameters do.
    pub log_probs: Tensor,
    /// Entropy of the distribution that the token was one draw of, in nats; never carries gradients.
    pub entropy: Tensor,
}

impl Decoder<LanguageModelHead> {
    /// A policy with fresh weights, drawn from `seed`.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn fresh(config: DecoderConfig, seed: u64, device: Device) -> Result<Self, LmError> {
        let weights = fresh_weights(&policy_shapes(&config), config.num_hidden_layers, seed)?;
        Self::from_weights(config, &weights, device)
    }

    /// Logits `[.., vocabulary]` of `hidden` `[.., hidden]`, in float32.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, LmError> {
        Ok(self.precision().products(hidden, &[&self.head().0])?.remove(0))
    }

    /// Log-probabilities of the response tokens under softmax(logits / `temperature`). The head runs at response
    /// positions only.
    ///
    /// # Errors
    /// Fails if libtorch does.
    pub fn response_log_probs(&self, batch: &SequenceBatch, temperature: f64) -> Result<ResponseLogProbs, LmError> {
        let wanted = Some(batch.before_response_tokens());
        let logits = self.logits(&self.trunk().forward(batch.tokens(), batch.sequences(), wanted)?)?;
        let (chosen, entropy) = log_probs(&logits, batch.response_tokens(), temperature)?;
        Ok(ResponseLogProbs { log_probs: batch.pad(&chosen)?, entropy: batch.pad(&entropy)? })
    }
}

/// Log-probabilities of `targets` `[N]` under softmax(`logits` / `temperature`), and the entropy of that, which carries no
/// gradients; `logits` are `[N, vocabulary]`.
fn log_probs(logits: &Tensor, targets: &Tensor, temperature: f64) -> Result<(Tensor, Tensor), LmError> {
    if logits.device() == Device::Cpu {
        return Ok(layers::log_probs(logits, targets, temperature)?);
    }
    let log_softmax = logits.f_div_scalar(temperature)?.f_log_softmax(-1, Kind::Float)?;
    let chosen = log_softmax.f_gather(-1, &targets.f_unsqueeze(1)?, false)?.f_squeeze_dim(1)?;
    let _guard = tch::no_grad_guard();
    let detached = log_softmax.f_detach()?;
    let entropy = detached.f_exp()?.f_mul_(&detached)?.f_sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)?;
    Ok((chosen, entropy.f_neg()?))
}

//! A small model for the tests of directories.

use crate::{Architecture, DecoderConfig, Tokenizer, fresh_weights, train_bpe};
use tch::Tensor;

pub(crate) fn config() -> DecoderConfig {
    DecoderConfig {
        architecture: Architecture::Llama,
        vocab_size: 280,
        hidden_size: 8,
        intermediate_size: 12,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: Some(4),
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        sliding_window: None,
        tie_word_embeddings: false,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: Some(0),
    }
}

pub(crate) fn tokenizer() -> Tokenizer {
    train_bpe(["a small text", "another small text"].iter(), 270).unwrap()
}

pub(crate) fn fresh(shapes: &[(String, Vec<i64>)]) -> Vec<(String, Tensor)> {
    fresh_weights(shapes, 2, 1).unwrap().into_iter().collect()
}

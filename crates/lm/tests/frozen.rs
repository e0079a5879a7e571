//! Frozen weights that are kept as bfloat16, of every family: half the memory, nearly the same numbers.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use proptest::prelude::*;
use saddle_lm::{
    AdamW, AdamWConfig, Architecture, DecoderConfig, LoraConfig, Policy, Precision, ScoreModel, SequenceBatch,
};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

fn config(architecture: Architecture, tied: bool) -> DecoderConfig {
    DecoderConfig {
        architecture,
        vocab_size: 90,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: if architecture == Architecture::Gpt2 { 2 } else { 1 },
        head_dim: None,
        max_position_embeddings: 32,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        sliding_window: None,
        tie_word_embeddings: tied,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: Some(0),
    }
}

fn configs() -> impl Strategy<Value = DecoderConfig> {
    (prop::sample::select(&Architecture::ALL[..]), any::<bool>()).prop_map(|(each, tied)| config(each, tied))
}

fn batch() -> SequenceBatch {
    SequenceBatch::new(&[(&[5, 9, 31], &[4, 4, 80]), (&[6], &[7, 88])], Device::Cpu).unwrap()
}

fn log_probs(policy: &Policy) -> Tensor {
    policy.response_log_probs(&batch(), 1.0).unwrap().log_probs
}

fn kept(policy: &Policy) -> Policy {
    policy.kept(Kind::BFloat16, Device::Cpu).unwrap()
}

fn largest_difference(one: &Tensor, other: &Tensor) -> f64 {
    (one - other).abs().max().double_value(&[])
}

fn bytes(policy: &Policy) -> usize {
    let flat = policy.parameters().flat();
    flat.numel() * flat.kind().elt_size_in_bytes()
}

/// `kept`'s weights as a float32 model.
fn widened(kept: &Policy) -> Policy {
    let weights: BTreeMap<_, _> = kept.parameters().to_map();
    Policy::from_weights(kept.config().clone(), &weights, Device::Cpu).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn weights_kept_as_bf16_are_rounded_and_nothing_else_is(config in configs(), seed in 0u64..1000) {
        let exact = Policy::fresh(config, seed, Device::Cpu).unwrap();
        let half = kept(&exact);
        prop_assert_eq!(2 * bytes(&half), bytes(&exact));
        prop_assert!(largest_difference(&log_probs(&half), &log_probs(&widened(&half))) < 1e-5);
        let apart = largest_difference(&log_probs(&half), &log_probs(&exact));
        prop_assert!(apart > 0.0 && apart < 0.1, "{}", apart);
        let computed = largest_difference(&log_probs(&half.in_precision(Precision::Bf16)), &log_probs(&exact));
        prop_assert!(computed < 0.2, "{}", computed);
    }

    #[test]
    fn adapters_over_them_are_f32_and_trained_and_merge_into_f32(config in configs(), seed in 0u64..1000) {
        let base = kept(&Policy::fresh(config, seed, Device::Cpu).unwrap());
        let lora = LoraConfig { rank: 2, ..LoraConfig::default() };
        let before = log_probs(&base);
        for precision in [Precision::F32, Precision::Bf16] {
            let mut adapted = base.adapted(&lora, seed).unwrap().in_precision(precision).trainable().unwrap();
            let mut optimizer = AdamW::new(AdamWConfig::default(), adapted.parameters()).unwrap();
            for _ in 0..3 {
                let loss = log_probs(&adapted).sum(Kind::Float).neg();
                optimizer.accumulate(adapted.parameters(), &loss).unwrap();
                prop_assert!(optimizer.step(adapted.parameters_mut(), 1e-2).unwrap().taken);
            }
            prop_assert_eq!(adapted.parameters().flat().kind(), Kind::Float);
            let after = log_probs(&adapted.snapshot().unwrap());
            prop_assert!(after.sum(Kind::Float).double_value(&[]) > before.sum(Kind::Float).double_value(&[]));
            let weights = adapted.weights().unwrap();
            prop_assert!(weights.values().all(|weight| weight.kind() == Kind::Float));
            let merged = Policy::from_weights(adapted.config().clone(), &weights, Device::Cpu).unwrap();
            let limit = if precision == Precision::F32 { 1e-4 } else { 0.2 };
            let apart = largest_difference(&log_probs(&merged), &after);
            prop_assert!(apart < limit, "{:?}: {}", precision, apart);
        }
        prop_assert!(log_probs(&base).equal(&before), "what lies beneath has moved");
    }
}

#[test]
fn what_is_kept_so_already_is_shared_and_a_snapshot_over_it_copies_adapters_alone() {
    let base = kept(&Policy::fresh(config(Architecture::Llama, false), 1, Device::Cpu).unwrap());
    let again = kept(&base);
    assert_eq!(again.parameters().flat().data_ptr(), base.parameters().flat().data_ptr());
    let adapted = base.adapted(&LoraConfig::default(), 1).unwrap();
    for model in [adapted.snapshot().unwrap(), kept(&adapted)] {
        let beneath = model.parameters().base().unwrap().flat();
        assert_eq!(beneath.data_ptr(), base.parameters().flat().data_ptr());
    }
}

#[test]
fn a_score_model_kept_as_bf16_scores_nearly_the_same_and_its_critic_has_a_head_in_f32() {
    for architecture in Architecture::ALL {
        let exact = ScoreModel::fresh(config(architecture, true), 1, 3, Device::Cpu).unwrap();
        let half = exact.kept(Kind::BFloat16, Device::Cpu).unwrap();
        let scores = |model: &ScoreModel| model.end_scores(&batch()).unwrap();
        let apart = largest_difference(&scores(&exact), &scores(&half));
        assert!(apart > 0.0 && apart < 0.1, "{architecture:?}: {apart}");
        let critic = ScoreModel::on_adapted_trunk(&half, 2, &LoraConfig::default(), 1).unwrap().trainable().unwrap();
        assert_eq!(critic.parameters().get("score.weight").unwrap().kind(), Kind::Float);
        let loss = critic.response_values(&batch()).unwrap().iter().map(|each| each.square().sum(Kind::Float)).sum();
        let gradient = critic.parameters().gradient(&loss).unwrap();
        assert!(gradient.abs().max().double_value(&[]) > 0.0);
    }
}

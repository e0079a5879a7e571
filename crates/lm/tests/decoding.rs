//! Decoding with the cache against the plain forward pass, on small random models.

use saddle_core::{Finish, PolicyVersion, Prompt, PromptOrdinal, Rollout};
use saddle_lm::{
    Architecture, DecodeSettings, DecoderConfig, DecodingBatch, DecodingWeights, LmError, Policy, Precision, Sampling,
    SequenceBatch, generate,
};
use tch::Device;

const END: i64 = 2;

fn config(architecture: Architecture) -> DecoderConfig {
    DecoderConfig {
        architecture,
        vocab_size: 24,
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: if architecture == Architecture::Gpt2 { 4 } else { 2 },
        head_dim: None,
        max_position_embeddings: 32,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        // Shorter than prompt and response together, so that the first tokens pass out of sight.
        sliding_window: (architecture == Architecture::Mistral).then_some(4),
        tie_word_embeddings: architecture == Architecture::Llama,
        bos_token_id: None,
        eos_token_ids: vec![END],
        pad_token_id: None,
    }
}

fn settings(temperature: f64) -> DecodeSettings {
    let sampling = Sampling { temperature, top_k: 0, top_p: 1.0 };
    let (max_new_tokens, limits) = (9, vec![]);
    DecodeSettings { sampling, max_new_tokens, limits, stop_tokens: vec![END], seed: 7, precision: Precision::F32 }
}

fn prompts(count: u64) -> Vec<Prompt> {
    let tokens = |ordinal: u64| (0..=ordinal % 5).map(|place| 3 + ((ordinal * 7 + place * 3) % 20) as i64).collect();
    (0..count).map(|ordinal| Prompt { ordinal: PromptOrdinal(ordinal), tokens: tokens(ordinal), kind: None }).collect()
}

fn answers(policy: &Policy, settings: DecodeSettings, rows: usize) -> Vec<Rollout> {
    generate(policy, PolicyVersion(3), prompts(17), settings, rows)
        .expect("small prompts on a small model can be answered")
}

#[test]
fn recorded_log_probs_are_those_of_the_forward_pass() {
    for architecture in Architecture::ALL {
        let policy = Policy::fresh(config(architecture), 1, Device::Cpu).unwrap();
        for temperature in [1.0, 0.6] {
            let rollouts = answers(&policy, settings(temperature), 5);
            let pairs: Vec<_> =
                rollouts.iter().map(|each| (each.prompt.tokens.as_slice(), each.tokens.as_slice())).collect();
            let batch = SequenceBatch::new(&pairs, Device::Cpu).unwrap();
            let recomputed = policy.response_log_probs(&batch, temperature).unwrap();
            for (row, rollout) in rollouts.iter().enumerate() {
                for (place, recorded) in rollout.log_probs.iter().enumerate() {
                    let expected = recomputed.log_probs.double_value(&[row as i64, place as i64]);
                    assert!(
                        (f64::from(*recorded) - expected).abs() < 1e-5,
                        "{architecture:?} row {row} token {place}: {recorded} {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn limits_are_taken_in_turn_and_end_a_response_that_goes_on_the_same() {
    let policy = Policy::fresh(config(Architecture::Llama), 1, Device::Cpu).unwrap();
    let whole = answers(&policy, DecodeSettings { stop_tokens: vec![], ..settings(1.0) }, 4);
    let limits = vec![2, 5, 40];
    let cut = answers(&policy, DecodeSettings { stop_tokens: vec![], limits, ..settings(1.0) }, 4);
    for (index, (whole, cut)) in whole.iter().zip(&cut).enumerate() {
        assert_eq!(cut.tokens, whole.tokens[..[2, 5, 9][index % 3]], "prompt {index}");
    }
}

#[test]
fn a_response_does_not_depend_on_what_is_decoded_beside_it() {
    let policy = Policy::fresh(config(Architecture::Llama), 1, Device::Cpu).unwrap();
    let alone = answers(&policy, settings(1.0), 1);
    assert_eq!(alone.len(), 17);
    assert!(alone.iter().any(|each| each.tokens.len() != alone[0].tokens.len()), "the lengths differ");
    for rows in [2, 4, 17, 40] {
        for (one, other) in alone.iter().zip(answers(&policy, settings(1.0), rows)) {
            assert_eq!(one.tokens, other.tokens, "{rows} rows");
        }
    }
}

#[test]
fn responses_end_at_a_stop_token_or_at_the_limit() {
    let policy = Policy::fresh(config(Architecture::Llama), 1, Device::Cpu).unwrap();
    let rollouts = answers(&policy, settings(1.0), 4);
    assert!(rollouts.iter().any(|each| each.finish == Finish::Stop));
    for rollout in rollouts {
        let ends = rollout.tokens.iter().filter(|token| **token == END).count();
        match rollout.finish {
            Finish::Stop => assert!(rollout.tokens.last() == Some(&END) && ends == 1),
            Finish::Length => assert!(rollout.tokens.len() == 9 && ends == 0),
        }
        assert_eq!(rollout.oldest_version(), Some(PolicyVersion(3)));
        assert_eq!((rollout.log_probs.len(), rollout.versions.len()), (rollout.tokens.len(), rollout.tokens.len()));
    }
}

#[test]
fn greedy_decoding_ignores_the_seed() {
    let policy = Policy::fresh(config(Architecture::Llama), 1, Device::Cpu).unwrap();
    let greedy = |seed| {
        answers(&policy, DecodeSettings { seed, ..settings(0.0) }, 4)
            .into_iter()
            .map(|each| each.tokens)
            .collect::<Vec<_>>()
    };
    assert_eq!(greedy(1), greedy(2));
}

#[test]
fn a_prompt_that_fills_the_context_comes_back_with_an_empty_response() {
    let policy = Policy::fresh(config(Architecture::Llama), 1, Device::Cpu).unwrap();
    let long = Prompt { ordinal: PromptOrdinal(0), tokens: vec![5; 32], kind: None };
    let short = Prompt { ordinal: PromptOrdinal(1), tokens: vec![5; 30], kind: None };
    let rollouts = generate(&policy, PolicyVersion(0), vec![long, short], settings(1.0), 2).unwrap();
    assert!(rollouts[0].tokens.is_empty() && rollouts[0].finish == Finish::Length);
    assert!((1..=2).contains(&rollouts[1].tokens.len()));
}

/// Answers under the weights of `before` for some tokens, then under those of `after`.
fn answers_across(before: &Policy, after: &Policy, rebuild: bool) -> Result<Vec<Rollout>, LmError> {
    let before = &DecodingWeights::new(before, Precision::F32)?;
    let after = &DecodingWeights::new(after, Precision::F32)?;
    let mut batch = DecodingBatch::new(before, settings(1.0), 17, 32)?;
    let mut rollouts = batch.admit(before, PolicyVersion(0), prompts(17))?;
    for _ in 0..3 {
        rollouts.extend(batch.step(before, PolicyVersion(0))?);
    }
    if rebuild {
        batch.rebuild(after)?;
    }
    while batch.running() > 0 {
        rollouts.extend(batch.step(after, PolicyVersion(1))?);
    }
    Ok(rollouts)
}

#[test]
fn after_a_rebuild_a_response_goes_on_as_the_new_weights_would() {
    for architecture in Architecture::ALL {
        let [before, after] = [1, 2].map(|seed| Policy::fresh(config(architecture), seed, Device::Cpu).unwrap());
        let largest_error = |rebuild: bool| {
            let rollouts = answers_across(&before, &after, rebuild).unwrap();
            let pairs: Vec<_> =
                rollouts.iter().map(|each| (each.prompt.tokens.as_slice(), each.tokens.as_slice())).collect();
            let recomputed = after.response_log_probs(&SequenceBatch::new(&pairs, Device::Cpu).unwrap(), 1.0).unwrap();
            let mut errors = vec![];
            for (row, rollout) in rollouts.iter().enumerate() {
                for (place, (recorded, version)) in rollout.log_probs.iter().zip(&rollout.versions).enumerate() {
                    if *version == PolicyVersion(1) {
                        let expected = recomputed.log_probs.double_value(&[row as i64, place as i64]);
                        errors.push((f64::from(*recorded) - expected).abs());
                    }
                }
            }
            assert!(errors.len() > 20, "enough responses go on");
            errors.into_iter().fold(0.0, f64::max)
        };
        assert!(largest_error(true) < 1e-5, "{architecture:?}: {}", largest_error(true));
        assert!(largest_error(false) > 1e-3, "{architecture:?}: kept keys and values are those of the old weights");
    }
}

#[test]
fn a_prompt_that_the_cache_holds_is_read_again_under_other_weights() {
    let [before, after] = [1, 2].map(|seed| Policy::fresh(config(Architecture::Llama), seed, Device::Cpu).unwrap());
    let prompt = |ordinal| Prompt { ordinal: PromptOrdinal(ordinal), tokens: vec![5, 9, 13, 4], kind: None };
    let expected = generate(&after, PolicyVersion(1), vec![prompt(1), prompt(2)], settings(1.0), 1).unwrap();
    let [before, after] = [before, after].map(|policy| DecodingWeights::new(&policy, Precision::F32).unwrap());
    let settings = DecodeSettings { stop_tokens: vec![], ..settings(1.0) };
    let mut batch = DecodingBatch::new(&before, settings, 3, 32).unwrap();
    batch.admit(&before, PolicyVersion(0), vec![prompt(0)]).unwrap();
    for ordinal in [1, 2] {
        batch.admit(&after, PolicyVersion(1), vec![prompt(ordinal)]).unwrap();
    }
    let mut rollouts = Vec::new();
    while batch.running() > 0 {
        rollouts.extend(batch.step(&after, PolicyVersion(1)).unwrap());
    }
    for expected in expected {
        let found = rollouts.iter().find(|each| each.prompt.ordinal == expected.prompt.ordinal).unwrap();
        let length = expected.tokens.len();
        assert_eq!(found.tokens[..length], expected.tokens);
        assert_eq!(found.log_probs[..length], expected.log_probs, "to the bit");
    }
}

#[test]
fn a_response_that_is_given_up_leaves_the_others_as_they_are() {
    let policy = Policy::fresh(config(Architecture::Llama), 1, Device::Cpu).unwrap();
    let expected = answers(&policy, settings(1.0), 17);
    let weights = DecodingWeights::new(&policy, Precision::F32).unwrap();
    let mut batch = DecodingBatch::new(&weights, settings(1.0), 17, 32).unwrap();
    let mut rollouts = batch.admit(&weights, PolicyVersion(3), prompts(17)).unwrap();
    rollouts.extend(batch.step(&weights, PolicyVersion(3)).unwrap());
    let longest = expected.iter().max_by_key(|each| each.tokens.len()).unwrap().prompt.ordinal;
    let running = batch.running();
    batch.evict(longest).unwrap();
    batch.evict(PromptOrdinal(99)).unwrap();
    assert_eq!(batch.running(), running - 1);
    while batch.running() > 0 {
        rollouts.extend(batch.step(&weights, PolicyVersion(3)).unwrap());
    }
    rollouts.sort_by_key(|each| each.prompt.ordinal);
    let others = expected.iter().filter(|each| each.prompt.ordinal != longest);
    assert!(rollouts.iter().map(|each| &each.tokens).eq(others.map(|each| &each.tokens)));
}

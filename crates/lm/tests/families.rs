//! Every family of decoders with random small shapes: what is written is read back, what stands behind a token does not
//! change it, and a window of sight is one.

use proptest::prelude::*;
use saddle_lm::{
    Architecture, DecoderConfig, Import, ModelCard, ModelDirectory, ModelKind, Policy, RopeScaling, ScoreModel,
    SequenceBatch, Sequences, Tokenizer, policy_shapes, score_shapes, train_bpe,
};
use std::sync::LazyLock;
use tch::{Device, Kind, Tensor};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    train_bpe(["a small text", "another small text"].iter(), 270).expect("a small tokenizer can be trained")
});

/// A configuration of `architecture` from a few small numbers.
fn config(architecture: Architecture, sizes: [usize; 5], tied: bool, stretched: bool) -> DecoderConfig {
    let [groups, per_group, half_head, inner, layers] = sizes;
    let gpt2 = architecture == Architecture::Gpt2;
    let heads = groups * per_group;
    let scaling =
        RopeScaling { factor: 4.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings: 16 };
    DecoderConfig {
        architecture,
        vocab_size: 280,
        hidden_size: if gpt2 { heads * 2 * half_head } else { 8 + 2 * inner },
        intermediate_size: 4 + inner,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: if gpt2 { heads } else { groups },
        head_dim: (!gpt2).then_some(2 * half_head),
        max_position_embeddings: 48,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: (stretched && !gpt2).then_some(scaling),
        sliding_window: (architecture == Architecture::Mistral).then_some(inner),
        tie_word_embeddings: tied,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        pad_token_id: Some(0),
    }
}

fn configs() -> impl Strategy<Value = DecoderConfig> {
    let sizes = (1usize..3, 1usize..3, 1usize..5, 1usize..9, 1usize..4);
    (prop::sample::select(&Architecture::ALL[..]), sizes, any::<bool>(), any::<bool>()).prop_map(
        |(architecture, (groups, per_group, half_head, inner, layers), tied, stretched)| {
            config(architecture, [groups, per_group, half_head, inner, layers], tied, stretched)
        },
    )
}

/// All of a policy's logits for one sequence, `[length, vocabulary]`.
fn logits(policy: &Policy, tokens: &[i64]) -> Tensor {
    let sequence = Sequences::new(&[tokens.len()], Device::Cpu).expect("one sequence");
    let hidden = policy.trunk().forward(&Tensor::from_slice(tokens), &sequence, None).expect("known tokens");
    policy.logits(&hidden).expect("hidden states of this model")
}

fn largest_difference(one: &Tensor, other: &Tensor) -> f64 {
    (one - other).abs().max().double_value(&[])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_policy_survives_import_and_export(config in configs(), seed in 0u64..1000, half in any::<bool>()) {
        let policy = Policy::fresh(config.clone(), seed, Device::Cpu).unwrap();
        prop_assert_eq!(policy.parameters().count(), config.parameter_count());
        let folder = tempfile::tempdir().unwrap();
        let weights: Vec<_> = policy.weights().unwrap().into_iter().collect();
        let card = ModelCard::new(ModelKind::Policy, TOKENIZER.fingerprint(), None);
        ModelDirectory::write(folder.path().join("one"), &config, &weights, &TOKENIZER, &card).unwrap();

        let read = Import::read(&folder.path().join("one"), None).unwrap();
        let head_dim = config.architecture.is_rotary().then(|| config.head_dim());
        prop_assert_eq!(&read.config, &DecoderConfig { head_dim, ..config });
        prop_assert_eq!(read.card.kind, ModelKind::Policy);
        let kind = if half { Kind::BFloat16 } else { Kind::Float };
        let written = read.write(&folder.path().join("two"), Some(kind)).unwrap();
        let again = written.weights(&policy_shapes(&read.config), Device::Cpu).unwrap();
        for (name, weight) in &weights {
            prop_assert_eq!(again[name].kind(), kind);
            prop_assert!(again[name].equal(&weight.to_kind(kind)), "{}", name);
        }
        let loaded = Policy::from_weights(read.config, &again, Device::Cpu).unwrap();
        let tokens = [5, 270, 6, 6, 31];
        if !half {
            prop_assert!(logits(&loaded, &tokens).equal(&logits(&policy, &tokens)));
        }
    }

    #[test]
    fn a_token_depends_on_those_before_it_and_on_no_other(
        config in configs(), seed in 0u64..1000, tokens in prop::collection::vec(3i64..280, 2..24), cut in 0usize..24
    ) {
        let policy = Policy::fresh(config, seed, Device::Cpu).unwrap();
        let cut = 1 + cut % (tokens.len() - 1);
        let whole = logits(&policy, &tokens);
        prop_assert_eq!(whole.size(), [tokens.len() as i64, 280]);
        let part = logits(&policy, &tokens[..cut]);
        prop_assert!(largest_difference(&whole.narrow(0, 0, cut as i64), &part) < 1e-4);
        let mut changed = tokens.clone();
        changed[cut - 1] = if changed[cut - 1] == 3 { 4 } else { 3 };
        let other = logits(&policy, &changed);
        prop_assert!(largest_difference(&whole.get(cut as i64 - 1), &other.get(cut as i64 - 1)) > 0.0);
    }

    #[test]
    fn a_score_model_reads_the_last_token_of_each_row(config in configs(), seed in 0u64..1000) {
        let model = ScoreModel::fresh(config.clone(), 1, seed, Device::Cpu).unwrap();
        prop_assert_eq!(score_shapes(&config, 1).len(), model.weights().unwrap().len());
        let rows: [(&[i64], &[i64]); 2] = [(&[5, 6, 7], &[8, 9, 10, 11]), (&[5], &[6])];
        let together = model.end_scores(&SequenceBatch::new(&rows, Device::Cpu).unwrap()).unwrap();
        for (index, row) in rows.iter().enumerate() {
            let alone = model.end_scores(&SequenceBatch::new(&[*row], Device::Cpu).unwrap()).unwrap();
            prop_assert!(largest_difference(&together.get(index as i64), &alone.get(0)) < 1e-4);
        }
    }
}

#[test]
fn a_token_beyond_the_window_is_out_of_sight_in_each_layer() {
    let mut shape = config(Architecture::Mistral, [1, 2, 3, 4, 1], true, false);
    shape.sliding_window = Some(3);
    let policy = Policy::fresh(shape, 3, Device::Cpu).unwrap();
    let one = logits(&policy, &[5, 6, 7, 8, 9]);
    let other = logits(&policy, &[50, 6, 7, 8, 9]);
    let difference = |position: i64| largest_difference(&one.get(position), &other.get(position));
    assert!((0..3).all(|position| difference(position) > 0.0), "the window holds three tokens");
    assert!((3..5).all(|position| difference(position) == 0.0), "and no more");
}

#[test]
fn stretched_positions_give_other_numbers_for_far_tokens_alone() {
    let sizes = [1, 2, 4, 4, 1];
    let [plain, stretched] = [false, true]
        .map(|stretched| Policy::fresh(config(Architecture::Llama, sizes, true, stretched), 3, Device::Cpu).unwrap());
    let tokens: Vec<i64> = (3..43).collect();
    let (one, other) = (logits(&plain, &tokens), logits(&stretched, &tokens));
    assert_eq!(largest_difference(&one.get(0), &other.get(0)), 0.0, "the first token sees no distance");
    assert!(largest_difference(&one.get(39), &other.get(39)) > 1e-6);
}

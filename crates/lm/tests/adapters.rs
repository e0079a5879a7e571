//! Low-rank adapters on every family: they begin as nothing, are all that is trained, and merge into what they compute.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use proptest::prelude::*;
use saddle_core::{PolicyVersion, Prompt, PromptOrdinal};
use saddle_lm::{
    ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, AdamW, AdamWConfig, Architecture, DecodeSettings, DecoderConfig, Import,
    LoraConfig, ModelCard, ModelDirectory, ModelKind, Policy, Precision, Sampling, ScoreModel, SequenceBatch,
    Sequences, Tokenizer, generate, read_safetensors, sha256_of_tensors, train_bpe, write_adapter, write_safetensors,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use tch::{Device, Kind, Tensor};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    train_bpe(["a small text", "another small text"].iter(), 270).expect("a small tokenizer can be trained")
});

fn config(architecture: Architecture, tied: bool) -> DecoderConfig {
    DecoderConfig {
        architecture,
        vocab_size: 280,
        hidden_size: 12,
        intermediate_size: 10,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: if architecture == Architecture::Gpt2 { 2 } else { 1 },
        head_dim: (architecture != Architecture::Gpt2).then_some(6),
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

fn lora(rank: usize, targets: &[&str]) -> LoraConfig {
    LoraConfig { rank, alpha: 3.0, targets: targets.iter().map(|each| (*each).to_owned()).collect() }
}

/// A model, and what of it is adapted: every projection, or the last of each block, or one alone.
fn cases() -> impl Strategy<Value = (DecoderConfig, LoraConfig)> {
    let architectures = prop::sample::select(&Architecture::ALL[..]);
    (architectures, any::<bool>(), 1usize..=6, 0.5f64..8.0, 0usize..3).prop_map(
        |(architecture, tied, rank, alpha, which)| {
            let gpt2 = architecture == Architecture::Gpt2;
            let targets: &[&str] = match (which, gpt2) {
                (0, _) => &[],
                (1, true) => &["mlp.c_proj"],
                (1, false) => &["down_proj"],
                (_, true) => &["transformer.h.1.attn.c_attn", "c_fc"],
                (_, false) => &["model.layers.1.self_attn.q_proj", "v_proj"],
            };
            (config(architecture, tied), LoraConfig { alpha, ..lora(rank, targets) })
        },
    )
}

const TOKENS: [i64; 7] = [5, 270, 6, 6, 31, 4, 100];

fn logits(policy: &Policy) -> Tensor {
    let sequence = Sequences::new(&[TOKENS.len()], Device::Cpu).expect("one sequence");
    let hidden = policy.trunk().forward(&Tensor::from_slice(&TOKENS), &sequence, None).expect("known tokens");
    policy.logits(&hidden).expect("hidden states of this model")
}

fn largest_difference(one: &Tensor, other: &Tensor) -> f64 {
    (one - other).abs().max().double_value(&[])
}

fn hash(weights: &BTreeMap<String, Tensor>) -> String {
    sha256_of_tensors(weights.iter().map(|(name, tensor)| (name.as_str(), tensor))).expect("float32 has a hash")
}

/// `policy` with adapters that have learnt something: all their numbers differ from zero.
fn taught(policy: &Policy, lora: &LoraConfig) -> Policy {
    let adapted = policy.adapted(lora, 9).unwrap();
    let mut flat = adapted.parameters().flat().shallow_clone();
    let count = flat.numel() as i64;
    let noise = (Tensor::arange(count, (Kind::Float, Device::Cpu)) * 0.7).sin() * 0.3;
    let _ = flat.f_add_(&noise).unwrap();
    adapted
}

fn one_step(policy: &mut Policy, optimizer: &mut AdamW) {
    let loss = logits(policy).log_softmax(-1, Kind::Float).select(-1, 7).mean(Kind::Float);
    optimizer.accumulate(policy.parameters(), &loss).unwrap();
    assert!(optimizer.step(policy.parameters_mut(), 1e-2).unwrap().taken);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn fresh_adapters_change_no_bit_and_copy_no_weight((config, lora) in cases(), seed in 0u64..1000) {
        let policy = Policy::fresh(config, seed, Device::Cpu).unwrap();
        let adapted = policy.adapted(&lora, seed).unwrap();
        prop_assert!(logits(&adapted).equal(&logits(&policy)));
        prop_assert_eq!(hash(&adapted.weights().unwrap()), hash(&policy.weights().unwrap()));
        for model in [&adapted, &adapted.snapshot().unwrap(), &adapted.replica().unwrap()] {
            let beneath = model.parameters().base().unwrap();
            prop_assert_eq!(beneath.flat().data_ptr(), policy.parameters().flat().data_ptr());
        }
    }

    #[test]
    fn adapters_alone_are_trained((config, lora) in cases(), seed in 0u64..1000) {
        let policy = Policy::fresh(config, seed, Device::Cpu).unwrap();
        let before = hash(&policy.weights().unwrap());
        let mut adapted = policy.adapted(&lora, seed).unwrap().trainable().unwrap();
        let snapshot = adapted.snapshot().unwrap();
        let mut optimizer = AdamW::new(AdamWConfig::default(), adapted.parameters()).unwrap();
        // B is zero at first, so that only the second step moves A.
        for _ in 0..2 {
            one_step(&mut adapted, &mut optimizer);
        }
        prop_assert_eq!(hash(&policy.weights().unwrap()), before);
        prop_assert!(largest_difference(&logits(&adapted), &logits(&policy)) > 0.0);
        prop_assert!(logits(&snapshot).equal(&logits(&policy)), "a snapshot does not follow");

        // r (inputs + outputs) numbers for each projection, of which the name is followed by which matrix it is.
        let weights = policy.weights().unwrap();
        let modules: Vec<_> = adapted.parameters().iter().filter_map(|(name, _)| name.strip_suffix(".lora_A.weight")).collect();
        let sides = modules.iter().map(|module| weights[&format!("{module}.weight")].size().iter().sum::<i64>());
        let expected = sides.sum::<i64>() as usize * lora.rank;
        prop_assert!(expected > 0);
        prop_assert_eq!(adapted.parameters().count(), expected);
        prop_assert!(optimizer.state().0.iter().all(|(_, tensor)| tensor.numel() == expected));
        for (name, tensor) in adapted.parameters().iter() {
            let start = snapshot.parameters().get(name).unwrap();
            prop_assert!(largest_difference(tensor, &start) > 0.0, "{} was not trained", name);
        }
    }

    #[test]
    fn merged_weights_compute_what_adapters_do((config, lora) in cases(), seed in 0u64..1000) {
        let policy = Policy::fresh(config.clone(), seed, Device::Cpu).unwrap();
        let adapted = taught(&policy, &lora);
        let merged = Policy::from_weights(config, &adapted.weights().unwrap(), Device::Cpu).unwrap();
        let expected = logits(&merged);
        // Norms of small models enlarge what rounding does, now and then by more than ten.
        let limit = 1e-4 * expected.abs().max().double_value(&[]).max(1.0);
        prop_assert!(largest_difference(&expected, &logits(&policy)) > limit, "they compute something");
        let difference = largest_difference(&expected, &logits(&adapted));
        prop_assert!(difference < limit, "{} is above {}", difference, limit);
    }

    #[test]
    fn adapters_survive_their_directory((config, lora) in cases(), seed in 0u64..1000) {
        let policy = Policy::fresh(config.clone(), seed, Device::Cpu).unwrap();
        let adapted = taught(&policy, &lora);
        let folder = tempfile::tempdir().unwrap();
        let (base, adapter) = write(folder.path(), &policy, &adapted);
        let mut read = Import::read(&base, None).unwrap();
        read.merge_adapter(&adapter).unwrap();
        prop_assert_eq!(hash(&read.weights), hash(&adapted.weights().unwrap()));
    }
}

/// Writes a model and its adapters, and gives their directories.
fn write(folder: &Path, policy: &Policy, adapted: &Policy) -> (std::path::PathBuf, std::path::PathBuf) {
    let (base, adapter) = (folder.join("base"), folder.join("adapter"));
    let weights: Vec<_> = policy.weights().unwrap().into_iter().collect();
    let card = ModelCard::new(ModelKind::Policy, TOKENIZER.fingerprint(), None);
    ModelDirectory::write(&base, policy.config(), &weights, &TOKENIZER, &card).unwrap();
    write_adapter(&adapter, adapted, &base).unwrap();
    (base, adapter)
}

#[test]
fn an_adapted_policy_decodes_as_it_computes() {
    for architecture in Architecture::ALL {
        let policy = Policy::fresh(config(architecture, true), 1, Device::Cpu).unwrap();
        let adapted = taught(&policy, &lora(3, &[]));
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
        let settings = DecodeSettings {
            sampling,
            max_new_tokens: 9,
            limits: vec![],
            stop_tokens: vec![2],
            seed: 7,
            precision: Precision::F32,
        };
        let prompts = (0..6).map(|ordinal| Prompt {
            ordinal: PromptOrdinal(ordinal),
            tokens: vec![5, 9 + ordinal as i64],
            kind: None,
        });
        let rollouts = generate(&adapted, PolicyVersion(0), prompts.collect(), settings, 4).unwrap();
        let merged = Policy::from_weights(adapted.config().clone(), &adapted.weights().unwrap(), Device::Cpu).unwrap();
        let pairs: Vec<_> =
            rollouts.iter().map(|each| (each.prompt.tokens.as_slice(), each.tokens.as_slice())).collect();
        let expected = merged.response_log_probs(&SequenceBatch::new(&pairs, Device::Cpu).unwrap(), 1.0).unwrap();
        for (row, rollout) in rollouts.iter().enumerate() {
            for (place, recorded) in rollout.log_probs.iter().enumerate() {
                let expected = expected.log_probs.double_value(&[row as i64, place as i64]);
                assert!((f64::from(*recorded) - expected).abs() < 1e-4, "{architecture:?}: {recorded} {expected}");
            }
        }
    }
}

#[test]
fn a_score_models_head_is_trained_beside_its_adapters_and_its_own_stays() {
    let start = ScoreModel::fresh(config(Architecture::Llama, true), 1, 4, Device::Cpu).unwrap();
    let batch = SequenceBatch::new(&[(&[5, 6, 7], &[8, 9])], Device::Cpu).unwrap();
    let before = start.end_scores(&batch).unwrap();
    for heads in [1, 2] {
        let mut critic =
            ScoreModel::on_adapted_trunk(&start, heads, &lora(2, &["q_proj"]), 4).unwrap().trainable().unwrap();
        let own = critic.end_scores(&batch).unwrap();
        assert_eq!(own.size(), [1, heads as i64]);
        assert_eq!(own.equal(&before), heads == 1, "a head of the right size is taken over");
        let mut optimizer = AdamW::new(AdamWConfig::default(), critic.parameters()).unwrap();
        optimizer.accumulate(critic.parameters(), &own.sum(Kind::Float)).unwrap();
        let _ = optimizer.step(critic.parameters_mut(), 1e-2).unwrap();
        assert!(!critic.end_scores(&batch).unwrap().equal(&own));
        assert_eq!(critic.weights().unwrap()["score.weight"].size(), [heads as i64, 12]);
        assert!(start.end_scores(&batch).unwrap().equal(&before), "the model that it starts from has changed");
    }
}

#[test]
fn adapters_follow_from_their_seed() {
    let policy = Policy::fresh(config(Architecture::Llama, true), 1, Device::Cpu).unwrap();
    let drawn = |seed| policy.adapted(&lora(2, &[]), seed).unwrap().parameters().flat().copy();
    assert!(drawn(1).equal(&drawn(1)));
    assert!(!drawn(1).equal(&drawn(2)));
    let adapted = policy.adapted(&lora(2, &[]), 1).unwrap();
    let a = |layer: usize| {
        adapted.parameters().get(&format!("model.layers.{layer}.self_attn.q_proj.lora_A.weight")).unwrap()
    };
    assert!(!a(0).equal(&a(1)), "each projection has numbers of its own");
    let bound = 12f64.sqrt().recip();
    assert!(a(0).abs().max().double_value(&[]) <= bound && a(0).abs().max().double_value(&[]) > 0.5 * bound);
}

#[test]
fn adapters_that_a_model_cannot_have_are_refused_with_what_it_has() {
    let refusal = |architecture, lora: &LoraConfig| {
        let policy = Policy::fresh(config(architecture, true), 1, Device::Cpu).unwrap();
        policy.adapted(lora, 0).unwrap_err().to_string()
    };
    let check = |message: String, parts: &[&str]| {
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    let message = refusal(Architecture::Llama, &lora(7, &["q_proj", "c_attn", "roj"]));
    check(
        message,
        &[
            "lora.targets",
            "\"c_attn\"",
            "\"roj\"",
            "it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
        ],
    );
    check(refusal(Architecture::Gpt2, &lora(1, &["q_proj"])), &["it has c_attn, c_fc, c_proj"]);
    // The keys of one head are 6 wide.
    check(refusal(Architecture::Llama, &lora(7, &[])), &["lora.rank: must be at most 6", "k_proj", "is 7"]);
    check(refusal(Architecture::Llama, &lora(0, &[])), &["lora.rank: must be at least 1"]);
    let policy = Policy::fresh(config(Architecture::Llama, true), 1, Device::Cpu).unwrap();
    policy.adapted(&lora(7, &["q_proj"]), 0).expect("the smallest side of what is adapted counts");
    let twice = policy.adapted(&lora(1, &[]), 0).unwrap().adapted(&lora(1, &[]), 0).unwrap_err();
    check(twice.to_string(), &["has adapters already"]);
}

#[test]
fn adapters_that_are_not_of_the_model_are_refused_with_the_place() {
    let policy = Policy::fresh(config(Architecture::Llama, true), 1, Device::Cpu).unwrap();
    let adapted = taught(&policy, &lora(2, &["q_proj"]));
    let refusal = |change: &dyn Fn(&mut serde_json::Value, &mut BTreeMap<String, Tensor>)| {
        let folder = tempfile::tempdir().unwrap();
        let (base, adapter) = write(folder.path(), &policy, &adapted);
        let (file, weights) = (adapter.join(ADAPTER_CONFIG_FILE), adapter.join(ADAPTER_WEIGHTS_FILE));
        let mut config = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let mut tensors = read_safetensors(&weights, Device::Cpu).unwrap();
        change(&mut config, &mut tensors);
        fs::write(&file, config.to_string()).unwrap();
        write_safetensors(&weights, &tensors.into_iter().collect::<Vec<_>>(), &BTreeMap::new()).unwrap();
        Import::read(&base, None).unwrap().merge_adapter(&adapter).map_err(|error| error.to_string())
    };
    let name = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight";
    refusal(&|_, _| {}).expect("unchanged, they are merged");
    for (key, value, expected) in [
        ("peft_type", serde_json::json!("IA3"), "peft_type must be \"LORA\""),
        ("use_dora", serde_json::json!(true), "use_dora"),
        ("bias", serde_json::json!("all"), "bias must be"),
        ("rank_pattern", serde_json::json!({ "q_proj": 3 }), "rank_pattern"),
        ("r", serde_json::json!(3), "has shape [2, 12], this model asks for [3, 12]"),
        ("r", serde_json::json!(0), "r must be at least 1"),
    ] {
        let message = refusal(&|config, _| config[key] = value.clone()).unwrap_err();
        assert!(message.contains(expected), "{key}: {message}");
    }
    let message = refusal(&|_, tensors| drop(tensors.remove(name))).unwrap_err();
    assert!(message.contains("lacks model.layers.1.self_attn.q_proj.lora_B.weight"), "{message}");
    let message = refusal(&|_, tensors| {
        let tensor = tensors.remove(name).unwrap();
        tensors.insert(name.replace("layers.1", "layers.2"), tensor);
    });
    assert!(message.unwrap_err().contains("has no place in this model"));
    let folder = tempfile::tempdir().unwrap();
    let message = write_adapter(folder.path(), &policy, Path::new("base")).unwrap_err().to_string();
    assert!(message.contains("no adapters"), "{message}");
}

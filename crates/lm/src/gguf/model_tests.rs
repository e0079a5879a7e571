//! Whole models in GGUF, written here from published weights, and their tokenizers.

use super::header_tests::Builder;
use super::*;
use crate::layout::{fresh_weights, policy_shapes};
use crate::{Architecture, DecoderConfig, RopeScaling, Tokenizer};
use tch::Kind;

/// The letters of the byte-level alphabet that the tests need, then words, then special tokens.
const BYTE_TOKENS: [&str; 14] =
    ["a", "b", "c", "1", "2", "Ġ", "'", "!", "ab", "Ġa", "12", "Ġab", "<|start|>", "<|end|>"];
const BYTE_MERGES: [&str; 4] = ["a b", "Ġ a", "1 2", "Ġ ab"];

fn config(architecture: Architecture) -> DecoderConfig {
    let gpt2 = architecture == Architecture::Gpt2;
    DecoderConfig {
        architecture,
        vocab_size: BYTE_TOKENS.len(),
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: if gpt2 { 4 } else { 2 },
        head_dim: (!gpt2).then_some(6),
        max_position_embeddings: 32,
        rms_norm_eps: 1e-5,
        rope_theta: if gpt2 { 10_000.0 } else { 50_000.0 },
        rope_scaling: None,
        sliding_window: (architecture == Architecture::Mistral).then_some(8),
        tie_word_embeddings: architecture == Architecture::Qwen2,
        bos_token_id: Some(12),
        eos_token_ids: vec![13],
        pad_token_id: None,
    }
}

fn tokenizer_part(builder: Builder) -> Builder {
    builder
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .texts("tokenizer.ggml.tokens", &BYTE_TOKENS)
        .integers("tokenizer.ggml.token_type", &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 3])
        .texts("tokenizer.ggml.merges", &BYTE_MERGES)
        .unsigned("tokenizer.ggml.bos_token_id", 12)
        .unsigned("tokenizer.ggml.eos_token_id", 13)
}

fn metadata_part(config: &DecoderConfig) -> Builder {
    // llama.cpp knows no family of its own for Mistral.
    let family = match config.architecture {
        Architecture::Mistral => "llama",
        other => other.model_type(),
    };
    let key = |name: &str| format!("{family}.{name}");
    let mut builder = Builder::default()
        .text("general.architecture", family)
        .unsigned(&key("embedding_length"), config.hidden_size as u32)
        .unsigned(&key("feed_forward_length"), config.intermediate_size as u32)
        .unsigned(&key("block_count"), config.num_hidden_layers as u32)
        .unsigned(&key("context_length"), config.max_position_embeddings as u32)
        .unsigned(&key("attention.head_count"), config.num_attention_heads as u32);
    if config.architecture == Architecture::Gpt2 {
        return builder.float(&key("attention.layer_norm_epsilon"), 1e-5);
    }
    builder = builder
        .unsigned(&key("attention.head_count_kv"), config.num_key_value_heads as u32)
        .unsigned(&key("attention.key_length"), config.head_dim() as u32)
        .unsigned(&key("attention.value_length"), config.head_dim() as u32)
        .float(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .float(&key("rope.freq_base"), 50_000.0);
    match config.sliding_window {
        Some(window) => builder.unsigned(&key("attention.sliding_window"), window as u32),
        None => builder,
    }
}

fn float_bytes(tensor: &Tensor) -> Vec<u8> {
    let numbers = Vec::<f32>::try_from(tensor.to_kind(Kind::Float).contiguous().view(-1)).unwrap();
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The names and order that the converters of llama.cpp give a tensor, stated apart from the code under test.
fn converted(name: &str, tensor: &Tensor, config: &DecoderConfig) -> (String, Tensor) {
    let renamed = [
        ("model.layers.", "blk."),
        ("transformer.h.", "blk."),
        ("model.embed_tokens.", "token_embd."),
        ("transformer.wte.", "token_embd."),
        ("transformer.wpe.", "position_embd."),
        ("model.norm.", "output_norm."),
        ("transformer.ln_f.", "output_norm."),
        ("lm_head.", "output."),
        ("input_layernorm.", "attn_norm."),
        ("post_attention_layernorm.", "ffn_norm."),
        ("self_attn.q_proj.", "attn_q."),
        ("self_attn.k_proj.", "attn_k."),
        ("self_attn.v_proj.", "attn_v."),
        ("self_attn.q_norm.", "attn_q_norm."),
        ("self_attn.k_norm.", "attn_k_norm."),
        ("self_attn.o_proj.", "attn_output."),
        ("mlp.gate_proj.", "ffn_gate."),
        ("mlp.up_proj.", "ffn_up."),
        ("mlp.down_proj.", "ffn_down."),
        ("ln_1.", "attn_norm."),
        ("ln_2.", "ffn_norm."),
        ("attn.c_attn.", "attn_qkv."),
        ("attn.c_proj.", "attn_output."),
        ("mlp.c_fc.", "ffn_up."),
        ("mlp.c_proj.", "ffn_down."),
    ]
    .iter()
    .fold(name.to_owned(), |name, (published, own)| name.replace(published, own));
    let llama = matches!(config.architecture, Architecture::Llama | Architecture::Mistral);
    let heads = match name {
        _ if !llama => None,
        _ if name.contains("q_proj") => Some(config.num_attention_heads),
        _ if name.contains("k_proj") => Some(config.num_key_value_heads),
        _ => None,
    };
    let tensor = match heads {
        Some(heads) => {
            let size = tensor.size();
            tensor.reshape([heads as i64, 2, size[0] / heads as i64 / 2, size[1]]).swapaxes(1, 2).reshape(size)
        }
        None if name.contains(".c_") && name.ends_with("weight") => tensor.tr(),
        None => tensor.shallow_clone(),
    };
    (renamed, tensor)
}

fn model(config: &DecoderConfig) -> (Builder, BTreeMap<String, Tensor>) {
    let weights = fresh_weights(&policy_shapes(config), 2, 5).unwrap();
    let builder = weights.iter().fold(tokenizer_part(metadata_part(config)), |builder, (name, tensor)| {
        let (name, tensor) = converted(name, tensor, config);
        builder.tensor(&name, &tensor.size(), 0, &float_bytes(&tensor))
    });
    (builder, weights)
}

#[test]
fn a_model_of_every_family_comes_back_from_gguf() {
    for architecture in Architecture::ALL {
        let config = config(architecture);
        let (builder, weights) = model(&config);
        let (_directory, file) = builder.open().unwrap();
        assert_eq!(file.config().unwrap(), config, "{architecture:?}");
        let read = file.weights(&config).unwrap();
        assert_eq!(read.keys().collect::<Vec<_>>(), weights.keys().collect::<Vec<_>>());
        assert!(weights.iter().all(|(name, weight)| read[name].equal(weight)), "{architecture:?}");
    }
}

#[test]
fn settings_that_change_nothing_are_let_through() {
    let config = config(Architecture::Llama);
    for builder in [
        model(&config).0.float("llama.rope.scaling.factor", 1.0),
        model(&config).0.text("llama.rope.scaling.type", "none").float("llama.rope.scaling.factor", 4.0),
        model(&config).0.float("llama.rope.scale_linear", 1.0).flag("llama.attention.causal", true),
    ] {
        let (_directory, file) = builder.open().unwrap();
        assert_eq!(file.config().unwrap(), config);
    }
}

#[test]
fn numbers_in_a_file_that_are_not_finite_are_named_with_their_tensor() {
    for odd in [f32::NAN, f32::INFINITY] {
        let bytes = [1.0f32, odd].map(f32::to_le_bytes).concat();
        let (_directory, file) = Builder::default().tensor("a.weight", &[2], 0, &bytes).open().unwrap();
        let error = file.read("a.weight").unwrap_err().to_string();
        assert!(error.contains("tensor a.weight: its number 1 is not finite"), "{error}");
    }
}

#[test]
fn a_head_that_repeats_the_embedding_is_tied() {
    let tied = config(Architecture::Qwen2);
    let (builder, weights) = model(&tied);
    let embedding = &weights["model.embed_tokens.weight"];
    let again = builder.tensor("output.weight", &embedding.size(), 0, &float_bytes(embedding));
    let (_directory, file) = again.open().unwrap();
    assert!(file.config().unwrap().tie_word_embeddings);
    assert_eq!(file.weights(&tied).unwrap().len(), weights.len());
}

#[test]
fn rotary_factors_give_back_the_rule_that_they_came_from() {
    let scaling = RopeScaling {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let mut config = config(Architecture::Llama);
    config.rope_theta = 50_000.0;
    let factors: Vec<f32> = (0..3)
        .map(|index| {
            let frequency = 50_000f64.powf(-f64::from(2 * index) / 6.0);
            (frequency / scaling.stretch(frequency)) as f32
        })
        .collect();
    // One frequency of each kind: kept, blended or divided.
    assert_eq!((factors[0], factors[2]), (1.0, 8.0));
    let bytes = |factors: &[f32]| factors.iter().flat_map(|factor| factor.to_le_bytes()).collect::<Vec<u8>>();
    let with = |factors: &[f32]| model(&config).0.tensor("rope_freqs.weight", &[3], 0, &bytes(factors)).open().unwrap();
    let (_directory, file) = with(&factors);
    assert_eq!(file.config().unwrap().rope_scaling, Some(scaling));
    assert!(file.weights(&file.config().unwrap()).is_ok());
    let (_directory, file) = with(&[1.0; 3]);
    assert_eq!(file.config().unwrap().rope_scaling, None);
    let (_directory, file) = with(&[1.0, 5.0, 8.0]);
    assert!(file.config().unwrap_err().to_string().contains("rope_freqs.weight"));
}

#[test]
fn what_cannot_be_computed_is_refused_by_name() {
    let config = config(Architecture::Llama);
    let check = |builder: Builder, expected: &str| {
        let (_directory, file) = builder.open().unwrap();
        let error = file.config().and_then(|config| file.weights(&config)).unwrap_err().to_string();
        assert!(error.contains("tiny.gguf") && error.contains(expected), "{expected}: {error}");
    };
    let whole = || model(&config).0;
    check(Builder::default().text("general.architecture", "mamba"), "\"mamba\"");
    check(Builder::default(), "general.architecture");
    check(whole().unsigned("llama.expert_count", 8), "mixture of experts");
    check(whole().unsigned("llama.rope.dimension_count", 4), "llama.rope.dimension_count is 4");
    check(whole().text("llama.rope.scaling.type", "yarn"), "\"yarn\"");
    check(whole().text("llama.rope.scaling.type", "linear"), "\"linear\"");
    check(whole().float("llama.rope.scaling.factor", 4.0), "llama.rope.scaling.factor is 4");
    check(whole().float("llama.rope.scale_linear", 2.0), "llama.rope.scale_linear is 2");
    check(whole().float("llama.rope.scaling.attn_factor", 1.5), "llama.rope.scaling.attn_factor is 1.5");
    check(whole().float("llama.attention.clamp_kqv", 8.0), "llama.attention.clamp_kqv is 8");
    check(whole().float("llama.logit_scale", 0.5), "llama.logit_scale is 0.5");
    check(whole().flag("llama.attention.causal", false), "llama.attention.causal is false");
    check(whole().tensor("blk.0.attn_q.bias", &[24], 0, &[0; 96]), "tensor blk.0.attn_q.bias");
    check(tokenizer_part(metadata_part(&config)), "lacks the tensor token_embd.weight");
    let embedding_alone = metadata_part(&config).tensor("token_embd.weight", &[14, 16], 0, &[0; 896]);
    check(embedding_alone, "lacks the tensor output_norm.weight");
    let narrow = metadata_part(&config).tensor("token_embd.weight", &[14, 16], 0, &[0; 896]).tensor(
        "output_norm.weight",
        &[15],
        0,
        &[0; 60],
    );
    check(narrow, "tensor output_norm.weight: has shape [15]");
    let impossible = DecoderConfig { num_attention_heads: 5, ..config.clone() };
    check(metadata_part(&impossible).tensor("token_embd.weight", &[14, 16], 0, &[0; 896]), "num_key_value_heads");
}

fn tokenizer(builder: &Builder) -> Result<Tokenizer, LmError> {
    let (_directory, file) = builder.open().unwrap();
    file.tokenizer()
}

#[test]
fn a_byte_level_tokenizer_splits_digits_and_keeps_special_tokens_apart() {
    let tokenizer = tokenizer(&tokenizer_part(Builder::default())).unwrap();
    assert_eq!(tokenizer.encode("ab ab", false).unwrap(), [8, 11]);
    assert_eq!(tokenizer.encode("12<|end|>a", false).unwrap(), [3, 4, 13, 0]);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (Some(12), Some(13), None));
    assert_eq!(tokenizer.decode(&[11, 3, 13], true).unwrap(), " ab1");
}

#[test]
fn each_rule_of_splitting_groups_digits_in_its_own_way() {
    for (rule, expected) in [("gpt-2", vec![10]), ("llama-bpe", vec![10]), ("qwen2", vec![3, 4])] {
        let builder = Builder::default()
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", rule)
            .texts("tokenizer.ggml.tokens", &BYTE_TOKENS)
            .texts("tokenizer.ggml.merges", &BYTE_MERGES);
        assert_eq!(tokenizer(&builder).unwrap().encode("12", false).unwrap(), expected, "{rule}");
    }
}

#[test]
fn the_token_that_begins_a_text_is_added_where_the_file_says_so() {
    let with = tokenizer(&tokenizer_part(Builder::default()).flag("tokenizer.ggml.add_bos_token", true)).unwrap();
    assert_eq!(with.encode("ab", true).unwrap(), [12, 8]);
    let without = tokenizer(&tokenizer_part(Builder::default())).unwrap();
    assert_eq!(without.encode("ab", true).unwrap(), [8]);
    let both = tokenizer_part(Builder::default())
        .flag("tokenizer.ggml.add_bos_token", true)
        .flag("tokenizer.ggml.add_eos_token", true);
    assert_eq!(tokenizer(&both).unwrap().encode("ab", true).unwrap(), [12, 8, 13]);
}

fn sentence_piece() -> Builder {
    let tokens = ["<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", "▁", "a", "b", "▁a", "ab", "▁ab", "<", "s", ">"];
    let scores = [0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -8.0, -7.0, -2.0, -1.0, -3.0, -4.0, -5.0, -6.0];
    Builder::default()
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &tokens)
        .floats("tokenizer.ggml.scores", &scores)
        .integers("tokenizer.ggml.token_type", &[2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 1, 1, 1])
        .unsigned("tokenizer.ggml.bos_token_id", 1)
        .unsigned("tokenizer.ggml.eos_token_id", 2)
        .unsigned("tokenizer.ggml.unknown_token_id", 0)
}

#[test]
fn a_sentence_piece_tokenizer_merges_by_score_and_falls_back_to_bytes() {
    let tokenizer = tokenizer(&sentence_piece()).unwrap();
    // "ab" (−1) is made before "▁a" (−2).
    assert_eq!(tokenizer.encode("ab", true).unwrap(), [1, 10]);
    assert_eq!(tokenizer.encode("aab", false).unwrap(), [8, 9]);
    assert_eq!(tokenizer.encode("é", false).unwrap(), [5, 3, 4]);
    assert_eq!(tokenizer.decode(&[10, 3, 4, 8], true).unwrap(), "abé a");
    assert_eq!(tokenizer.encode_literal("<s>").unwrap(), [5, 11, 12, 13]);
}

#[test]
fn a_chat_template_comes_along() {
    let template = "{% for message in messages %}[{{ message.content }}]{% endfor %}";
    let builder = tokenizer_part(Builder::default()).text("tokenizer.chat_template", template);
    let turns = [crate::ChatTurn::user("ab")];
    assert_eq!(tokenizer(&builder).unwrap().render(&turns, true).unwrap(), "[ab]");
}

#[test]
fn tokenizers_that_do_not_fit_together_are_refused_by_key() {
    let check = |builder: Builder, expected: &str| {
        let error = tokenizer(&builder).unwrap_err().to_string();
        assert!(error.contains("tiny.gguf") && error.contains(expected), "{expected}: {error}");
    };
    let base = || Builder::default().text("tokenizer.ggml.model", "gpt2");
    check(Builder::default().text("tokenizer.ggml.model", "bert").texts("tokenizer.ggml.tokens", &["a"]), "\"bert\"");
    check(base(), "tokenizer.ggml.tokens");
    let twice = base().texts("tokenizer.ggml.tokens", &["a", "b", "a"]);
    check(twice, "tokens 0 and 2 are both \"a\"");
    let kinds = base().texts("tokenizer.ggml.tokens", &["a"]).integers("tokenizer.ggml.token_type", &[1, 1]);
    check(kinds, "tokenizer.ggml.token_type");
    let merges = base().texts("tokenizer.ggml.tokens", &["a"]).texts("tokenizer.ggml.merges", &["a b"]);
    check(merges, "does not work");
    let rule = base().texts("tokenizer.ggml.tokens", &["a"]).text("tokenizer.ggml.pre", "tekken");
    check(rule, "\"tekken\"");
    let beyond = tokenizer_part(Builder::default()).unsigned("tokenizer.ggml.padding_token_id", 99);
    check(beyond, "tokenizer.ggml.padding_token_id is 99");
    let long = "x".repeat(257);
    let long = Builder::default()
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &[&long])
        .floats("tokenizer.ggml.scores", &[0.0]);
    check(long, "257 bytes");
    let scores = Builder::default()
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &["a"])
        .floats("tokenizer.ggml.scores", &[]);
    check(scores, "tokenizer.ggml.scores");
}

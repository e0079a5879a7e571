use super::*;
use std::path::PathBuf;

const SMOLLM2_135M: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 0,
    "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null, "rope_theta": 100000,
    "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": true,
    "vocab_size": 49152
}"#;

const QWEN2_0_5B: &str = r#"{
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": [151645, 151643], "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
    "layer_types": ["full_attention"], "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2",
    "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default", "type": "default"}, "sliding_window": 32768,
    "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936
}"#;

const QWEN3_0_6B: &str = r#"{
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "bos_token_id": 151643, "eos_token_id": 151645,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16,
    "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null,
    "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true, "use_sliding_window": false,
    "vocab_size": 151936
}"#;

const LLAMA_3_2_1B: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": true, "vocab_size": 128256
}"#;

const MISTRAL_7B: &str = r#"{
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false, "vocab_size": 32000
}"#;

const GPT2: &str = r#"{
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024,
    "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "vocab_size": 50257
}"#;

const PUBLISHED: [&str; 6] = [SMOLLM2_135M, QWEN2_0_5B, QWEN3_0_6B, LLAMA_3_2_1B, MISTRAL_7B, GPT2];

fn parse(text: &str) -> Result<DecoderConfig, LmError> {
    DecoderConfig::from_json(text, Path::new("models/tiny/config.json"))
}

/// SmolLM2's file with one key changed.
fn altered(key: &str, value: Value) -> Result<DecoderConfig, LmError> {
    let mut file: Value = serde_json::from_str(SMOLLM2_135M).unwrap();
    file[key] = value;
    parse(&file.to_string())
}

#[test]
fn published_configurations_are_read_and_their_parameters_counted() {
    let llama = parse(SMOLLM2_135M).unwrap();
    assert_eq!((llama.architecture, llama.head_dim()), (Architecture::Llama, 64));
    assert_eq!(llama.eos_token_ids, [0]);
    assert_eq!(llama.parameter_count(), 134_515_008);
    let qwen = parse(QWEN2_0_5B).unwrap();
    assert_eq!((qwen.architecture, qwen.rope_theta), (Architecture::Qwen2, 1e6));
    assert_eq!(qwen.eos_token_ids, [151_645, 151_643]);
    assert_eq!(qwen.parameter_count(), 494_032_768);
    let counts = PUBLISHED.map(|text| parse(text).unwrap().parameter_count());
    assert_eq!(counts, [134_515_008, 494_032_768, 596_049_920, 1_235_814_400, 7_241_732_096, 124_439_808]);
}

#[test]
fn each_family_has_its_own_defaults() {
    let gpt2 = parse(GPT2).unwrap();
    assert_eq!((gpt2.intermediate_size, gpt2.tie_word_embeddings, gpt2.num_key_value_heads), (3072, true, 12));
    let llama = parse(LLAMA_3_2_1B).unwrap();
    assert_eq!(llama.rope_scaling.unwrap().factor, 32.0);
    assert_eq!(parse(MISTRAL_7B).unwrap().sliding_window, Some(4096));
    assert_eq!(parse(&MISTRAL_7B.replace("4096, \"tie", "null, \"tie")).unwrap().sliding_window, None);
    assert_eq!(parse(&MISTRAL_7B.replace("\"sliding_window\": 4096,", "")).unwrap().sliding_window, Some(4096));
    assert_eq!(parse(&QWEN3_0_6B.replace("\"head_dim\": 128,", "")).unwrap().head_dim(), 128);
}

#[test]
fn a_key_is_missing_under_the_name_of_its_family() {
    let error = parse(&GPT2.replace("\"n_layer\": 12,", "")).unwrap_err().to_string();
    assert!(error.contains("  n_layer: is missing"), "{error}");
    let error = parse(&MISTRAL_7B.replace("\"num_key_value_heads\": 8,", "")).unwrap_err().to_string();
    assert!(error.contains("  num_key_value_heads: is missing"), "{error}");
}

#[test]
fn settings_of_gpt2_that_change_the_mathematics_are_refused_by_key() {
    for (key, value) in [
        ("activation_function", json!("relu")),
        ("scale_attn_weights", json!(false)),
        ("scale_attn_by_inverse_layer_idx", json!(true)),
        ("add_cross_attention", json!(true)),
    ] {
        let mut file: Value = serde_json::from_str(GPT2).unwrap();
        file[key] = value;
        let error = parse(&file.to_string()).unwrap_err().to_string();
        assert!(error.contains(&format!("  {key}: ")), "{key}: {error}");
    }
}

#[test]
fn what_is_written_reads_back_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(CONFIG_FILE);
    for text in PUBLISHED {
        let config = parse(text).unwrap();
        config.write(&path, Head::LanguageModel).unwrap();
        let read = DecoderConfig::read(&path).unwrap();
        let head_dim = if config.architecture.is_rotary() { Some(config.head_dim()) } else { None };
        assert_eq!(read, DecoderConfig { head_dim, ..config });
    }
}

#[test]
fn the_head_decides_the_class_that_is_written() {
    let config = parse(QWEN2_0_5B).unwrap();
    assert_eq!(config.to_json(Head::LanguageModel)["architectures"], json!(["Qwen2ForCausalLM"]));
    let score = config.to_json(Head::Score);
    assert_eq!(score["architectures"], json!(["Qwen2ForSequenceClassification"]));
    assert_eq!(score["num_labels"], 1);
}

#[test]
fn a_file_without_a_model_type_is_known_by_its_class() {
    let config = altered("model_type", Value::Null).unwrap();
    assert_eq!(config.architecture, Architecture::Llama);
}

#[test]
fn an_unknown_architecture_is_refused_by_name() {
    let error = altered("model_type", json!("gpt_neox")).unwrap_err().to_string();
    assert!(
        error.contains("models/tiny/config.json") && error.contains("model_type") && error.contains("gpt_neox"),
        "{error}"
    );
}

#[test]
fn settings_that_change_the_mathematics_are_refused_by_key() {
    for (key, value) in [
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 32.0})),
        (
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 0.5, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}),
        ),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
        ("rope_scaling", json!({"factor": 2.0})),
        ("rope_parameters", json!({"rope_type": "yarn", "rope_theta": 1e4})),
        ("rope_parameters", json!({"rope_theta": 1e4, "factor": 4.0})),
        ("partial_rotary_factor", json!(0.5)),
        ("rope_parameters", json!({"rope_theta": 1e4, "partial_rotary_factor": 0.5})),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("use_sliding_window", json!(true)),
        ("layer_types", json!(["full_attention", "sliding_attention"])),
        ("quantization_config", json!({"bits": 4})),
    ] {
        let error = altered(key, value.clone()).unwrap_err().to_string();
        assert!(error.contains(&format!("  {key}: ")), "{key} = {value}: {error}");
    }
}

#[test]
fn all_missing_keys_are_reported_at_once() {
    let error = parse(r#"{"model_type": "llama", "hidden_act": "relu"}"#).unwrap_err().to_string();
    for key in
        ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"]
    {
        assert!(error.contains(&format!("  {key}: ")), "{key}: {error}");
    }
}

#[test]
fn impossible_shapes_are_reported_all_at_once() {
    let impossible = DecoderConfig {
        vocab_size: 0,
        num_attention_heads: 10,
        num_key_value_heads: 4,
        num_hidden_layers: 5_000,
        head_dim: Some(57),
        rms_norm_eps: f64::NAN,
        rope_theta: f64::INFINITY,
        sliding_window: Some(8),
        pad_token_id: Some(-1),
        ..parse(SMOLLM2_135M).unwrap()
    };
    let problems = impossible.validate();
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "vocab_size",
            "num_hidden_layers",
            "num_key_value_heads",
            "head_dim",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "rms_norm_eps",
            "rope_theta",
            "sliding_window",
        ]
    );
}

#[test]
fn heads_of_size_zero_are_a_problem_and_not_a_panic() {
    for key in ["num_attention_heads", "num_key_value_heads", "hidden_size"] {
        assert!(altered(key, json!(0)).unwrap_err().to_string().contains(key));
    }
}

#[test]
fn a_value_of_the_wrong_type_is_named_by_its_key() {
    let error = altered("hidden_size", json!(-576)).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("hidden_size"), "{error}");
    let error = parse("{\"model_type\": ").unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("line 1"), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let path = PathBuf::from("no/such/config.json");
    assert!(DecoderConfig::read(&path).unwrap_err().to_string().contains("no/such/config.json"));
}

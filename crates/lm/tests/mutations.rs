//! Model directories that somebody has damaged: whatever is done to a file, reading it ends with a model or an error, soon and in little
//! memory. `SADDLE_MUTATIONS` says how many damages each file gets; scripts/fuzz runs ten thousand.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use saddle_lm::{
    Architecture, ChatTurn, DecoderConfig, Import, ModelCard, ModelDirectory, ModelKind, fresh_weights, policy_shapes,
    train_bpe,
};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Damages to each file unless told otherwise.
const MUTATIONS: u64 = 40;
/// The longest that reading a small directory may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most memory that it may take.
const MEMORY_KIB: u64 = 1 << 20;
/// What numbers and words in text are replaced by.
const ODD: [&str; 12] = [
    "-1",
    "0",
    "1e308",
    "18446744073709551615",
    "2147483648",
    "null",
    "true",
    "\"\"",
    "[]",
    "{}",
    "NaN",
    "\"\\u0000\"",
];
const TEMPLATE: &str = "{% for message in messages %}<|{{ message.role }}|>{{ message.content | trim }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

fn write_model(path: &Path) {
    let tokenizer = train_bpe(["a small text", "another small text"].iter(), 270).expect("a tokenizer can be trained");
    let config = DecoderConfig {
        architecture: Architecture::Llama,
        vocab_size: 280,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: None,
        max_position_embeddings: 32,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        sliding_window: None,
        tie_word_embeddings: true,
        bos_token_id: None,
        eos_token_ids: vec![2],
        pad_token_id: None,
    };
    let weights: Vec<_> = fresh_weights(&policy_shapes(&config), 1, 1).expect("weights").into_iter().collect();
    let card = ModelCard::new(ModelKind::Policy, tokenizer.fingerprint(), None);
    ModelDirectory::write(path, &config, &weights, &tokenizer, &card).expect("the model can be written");
    fs::write(path.join("chat_template.jinja"), TEMPLATE).expect("the template can be written");
}

/// A damaged copy of `bytes`.
fn damaged(bytes: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..random.random_range(1..=3) {
        let at = random.random_range(0..bytes.len().max(1));
        match random.random_range(0..6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes.truncate(at),
            2 => drop(bytes.splice(at..at, (0..random.random_range(1..9)).map(|_| random.random::<u8>()))),
            3 => {
                let end = (at + random.random_range(1..64)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            4 => {
                let end = (at + random.random_range(1..32)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b".-".contains(byte);
                let start = bytes[..at].iter().rposition(|byte| !is_word(byte)).map_or(0, |place| place + 1);
                let end = bytes[at..].iter().position(|byte| !is_word(byte)).map_or(bytes.len(), |place| at + place);
                bytes.splice(start..end, ODD[random.random_range(0..ODD.len())].bytes());
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

/// Everything that is done with a model before it is used.
fn read(path: &Path) {
    let Ok(import) = Import::read(path, Some(ModelKind::Policy)) else { return };
    let turns = [ChatTurn::user("a small text")];
    // Either is well: a rendering, or an error.
    drop(import.tokenizer.render(&turns, true));
    drop(import.tokenizer.encode("a small text and 1 more", true));
}

fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("the status of this process");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("the peak is told");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[test]
fn a_damaged_model_is_read_or_refused_soon_and_in_little_memory() {
    let mutations = std::env::var("SADDLE_MUTATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(MUTATIONS);
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, broken) = (folder.path().join("whole"), folder.path().join("broken"));
    write_model(&whole);
    read(&whole);
    let before = peak_kib();
    let files: Vec<_> =
        fs::read_dir(&whole).expect("the model").map(|entry| entry.expect("an entry").file_name()).collect();
    fs::create_dir(&broken).expect("a folder");
    for file in &files {
        for other in &files {
            fs::copy(whole.join(other), broken.join(other)).expect("a file can be copied");
        }
        let bytes = fs::read(whole.join(file)).expect("a file");
        for seed in 0..mutations {
            fs::write(broken.join(file), damaged(&bytes, &mut ChaCha8Rng::seed_from_u64(seed)))
                .expect("a file can be written");
            let start = Instant::now();
            read(&broken);
            let (took, used) = (start.elapsed(), peak_kib() - before);
            assert!(took < PATIENCE && used < MEMORY_KIB, "{file:?} with seed {seed}: {took:?}, {used} KiB");
        }
    }
}

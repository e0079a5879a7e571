//! A world on disk: data files in the formats of this crate's readers, and a tokenizer in the Hugging Face layout.

use super::{World, WorldConfig};
use crate::records::without_byte_order_mark;
use crate::{DataError, Split, write_preferences, write_prompts, write_supervised};
use serde_json::{Map, Value, json};
use std::fs;
use std::io;
use std::path::Path;

/// Special tokens, in the order of their ids.
const SPECIALS: [&str; 5] = ["<pad>", "<bos>", "<eos>", "<unk>", "<sep>"];

/// `<bos> question <sep> answer <eos>`. The mark after the question is what an answer is generated after, so a
/// generation prompt adds nothing to it.
const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
    {% if message['role'] == 'assistant' %} {{ message['content'] }} {{ eos_token }}\
    {% else %} {{ message['content'] }} <sep>{% endif %}{% endfor %}";

impl World {
    /// Writes the world into a directory, which is made where it is missing: `demonstrations.jsonl` (Alpaca schema),
    /// `preferences.train.jsonl` and `preferences.valid.jsonl` (PKU-SafeRLHF schema), `prompts.train.jsonl` and
    /// `prompts.valid.jsonl`, `tokenizer.json` and `tokenizer_config.json`, and `world.json` (the configuration).
    ///
    /// # Errors
    /// When the directory or a file cannot be written.
    pub fn write(&self, directory: &Path) -> Result<(), DataError> {
        fs::create_dir_all(directory).map_err(|source| failed("make the directory", directory, source))?;
        let file = |name: &str| directory.join(name);
        let config = &self.config;
        write_supervised(&file("demonstrations.jsonl"), &self.demonstrations(config.demonstrations))?;
        write_preferences(&file("preferences.train.jsonl"), &self.preferences(Split::Train, config.train_pairs))?;
        write_preferences(&file("preferences.valid.jsonl"), &self.preferences(Split::HeldOut, config.held_out_pairs))?;
        write_prompts(&file("prompts.train.jsonl"), &self.prompts(Split::Train))?;
        write_prompts(&file("prompts.valid.jsonl"), &self.prompts(Split::HeldOut))?;
        write_json(&file("tokenizer.json"), &self.tokenizer())?;
        write_json(&file("tokenizer_config.json"), &self.tokenizer_config())?;
        write_json(&file("world.json"), &json!(config))
    }

    /// The world that was written into a directory.
    ///
    /// # Errors
    /// When `world.json` is missing there or is no world's configuration.
    pub fn load(directory: &Path) -> Result<Self, DataError> {
        let path = directory.join("world.json");
        if fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file()) {
            return Err(DataError::NotAFile { path });
        }
        let text = fs::read(&path).map_err(|source| failed("read", &path, source))?;
        let config: WorldConfig = serde_json::from_slice(without_byte_order_mark(&text))
            .map_err(|error| DataError::BrokenWorld { path, detail: error.to_string() })?;
        Self::new(config)
    }

    /// `tokenizer.json`: one token a word, words separated by white space.
    fn tokenizer(&self) -> Value {
        let words = SPECIALS.iter().chain(&self.vocabulary);
        let vocabulary: Map<String, Value> = words.zip(0..).map(|(word, id)| ((*word).to_owned(), json!(id))).collect();
        let special = |(content, id): (&&str, u32)| {
            json!({
                "id": id, "content": content, "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        };
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": SPECIALS.iter().zip(0..).map(special).collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": { "type": "WhitespaceSplit" },
            "post_processor": null,
            "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" },
        })
    }

    fn tokenizer_config(&self) -> Value {
        let prompt_words = self.prompts.iter().map(|prompt| prompt.text.split(' ').count()).max().unwrap_or(0);
        // Beside the words stand `<bos>`, `<sep>` and `<eos>`.
        let most_tokens = prompt_words + self.config.max_response_words + 3;
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": most_tokens,
            "clean_up_tokenization_spaces": false,
            "pad_token": "<pad>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "chat_template": CHAT_TEMPLATE,
        })
    }
}

fn write_json(path: &Path, value: &Value) -> Result<(), DataError> {
    fs::write(path, format!("{value:#}\n")).map_err(|source| failed("write", path, source))
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> DataError {
    DataError::Io { action, path: path.to_owned(), source }
}

//! Language models: decoders of the LLaMA, Mistral, Qwen and GPT-2 families, batched decoding, score models, low-rank
//! adapters, the optimiser, and the Hugging Face directory that a model is read from and written to; GGUF files are read
//! too.

mod batching;
mod cache;
mod card;
mod chat;
mod config;
mod decode;
mod decoder;
mod decoding_weights;
mod directory;
mod error;
mod files;
mod finite;
pub mod gguf;
mod import;
mod layout;
mod lora;
mod memory;
mod optimizer;
mod parameters;
mod peft;
mod policy;
mod precision;
mod sampling;
mod schedule;
mod score;
mod score_checkpoint;
#[cfg(test)]
mod small_model;
mod stored;
mod template;
mod template_limits;
mod template_source;
mod tokenizer;
mod tokenizer_file;
mod train_tokenizer;
mod trunk;
mod weights;

pub use batching::{SequenceBatch, Sequences, micro_batches};
pub use cache::KvCache;
pub use card::{CARD_FILE, ModelCard, ModelKind, Normalizer, ScoreRange};
pub use chat::ChatTurn;
pub use config::{Architecture, CONFIG_FILE, DecoderConfig, Head, RopeScaling};
pub use decode::{DecodeSettings, DecodingBatch, generate};
pub use decoder::{Decoder, DecoderHead};
pub use decoding_weights::DecodingWeights;
pub use directory::ModelDirectory;
pub use error::LmError;
pub use import::Import;
pub use layout::{fresh_weights, policy_shapes, score_shapes, trunk_shapes};
pub use lora::LoraConfig;
pub use optimizer::{AdamW, AdamWConfig, Step};
pub use parameters::Parameters;
pub use peft::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, write_adapter};
pub use policy::{LanguageModelHead, Policy, ResponseLogProbs};
pub use precision::Precision;
pub use sampling::Sampling;
pub use schedule::{Decay, learning_rate_factor};
pub use score::{ScoreHead, ScoreModel};
pub use stored::{WEIGHTS_FILE, WEIGHTS_INDEX_FILE};
pub use tokenizer::{CHAT_TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer};
pub use train_tokenizer::train_bpe;
pub use trunk::Trunk;
pub use weights::{read_safetensors, sha256_of_tensors, write_safetensors};

//! A `tokenizer.json` before it is used. It comes from outside, and some of what it may hold makes its reader take memory
//! without bound, never end, or panic; that is found here first.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt;

/// Above the largest token id: as many rows as a model may have.
const ID_LIMIT: u64 = 1 << 22;
/// How much longer the replacements of a file, one after another, may make a text.
const GROWTH_LIMIT: f64 = 256.0;
/// Bytes that one replacement may put in.
const REPLACEMENT_LIMIT_BYTES: usize = 1024;

/// Says what makes the `text` of a `tokenizer.json` unusable.
///
/// # Errors
/// A message with the key and the remedy.
pub(crate) fn check(text: &str) -> Result<(), String> {
    let file: TokenizerFile = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let largest = file.added_tokens.iter().map(|token| token.id).chain([file.model.vocab.0]).max().unwrap_or(0);
    if largest >= ID_LIMIT {
        return Err(format!("has the token id {largest}; ids must lie below {ID_LIMIT}"));
    }
    for (key, part) in [
        ("normalizer", &file.normalizer),
        ("pre_tokenizer", &file.pre_tokenizer),
        ("post_processor", &file.post_processor),
        ("decoder", &file.decoder),
    ] {
        let growth = check_part(part).map_err(|message| format!("{key}: {message}"))?;
        if growth > GROWTH_LIMIT {
            return Err(format!(
                "{key}: its replacements make a text {growth} times as long, above the limit of {GROWTH_LIMIT}"
            ));
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

#[derive(Default, Deserialize)]
struct Model {
    #[serde(default)]
    vocab: LargestId,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
}

/// The largest id of a vocabulary, which is a map from texts to ids, or a list with the ids as places.
#[derive(Default)]
struct LargestId(u64);

impl<'de> Deserialize<'de> for LargestId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Vocabulary;
        impl<'de> Visitor<'de> for Vocabulary {
            type Value = LargestId;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LargestId, A::Error> {
                let mut largest = 0;
                while let Some((_, id)) = map.next_entry::<IgnoredAny, u64>()? {
                    largest = largest.max(id);
                }
                Ok(LargestId(largest))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<LargestId, A::Error> {
                let mut count = 0;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(LargestId(count))
            }
        }
        deserializer.deserialize_any(Vocabulary)
    }
}

/// Checks one part of the file, and those inside it. Gives how many times longer it may make a text.
fn check_part(part: &Value) -> Result<f64, String> {
    let inner =
        ["normalizers", "pretokenizers", "processors", "decoders"].iter().filter_map(|key| part[key].as_array());
    let mut growth = 1.0;
    for part in inner.flatten() {
        growth *= check_part(part)?;
    }
    match part["type"].as_str() {
        Some("FixedLength") if part["length"] == 0 => Err("FixedLength needs a length of at least 1".into()),
        Some("Precompiled") => {
            check_precompiled(part["precompiled_charsmap"].as_str().unwrap_or_default())?;
            Ok(growth)
        }
        Some("Replace" | "Prepend") => Ok(growth * replacement_growth(part)?),
        _ => Ok(growth),
    }
}

fn replacement_growth(part: &Value) -> Result<f64, String> {
    let content = part["content"].as_str().or(part["prepend"].as_str()).unwrap_or_default();
    if content.len() > REPLACEMENT_LIMIT_BYTES {
        return Err(format!("a replacement of {} bytes, above the limit of {REPLACEMENT_LIMIT_BYTES}", content.len()));
    }
    Ok(match &part["pattern"] {
        Value::Null => 1.0,
        pattern => match pattern["String"].as_str() {
            Some(text) if !text.is_empty() => (content.len() as f64 / text.len() as f64).max(1.0),
            // What matches nothing at all stands before each byte.
            _ => 1.0 + content.len() as f64,
        },
    })
}

/// Checks SentencePiece's table of replacements, whose reader trusts it: a size, a double-array trie of units of 32 bits, and
/// the replacements that its leaves lead to, each ended by a zero.
fn check_precompiled(encoded: &str) -> Result<(), String> {
    let broken = || "Precompiled has a damaged precompiled_charsmap; fetch the tokenizer again".to_owned();
    let bytes = BASE64_STANDARD.decode(encoded).map_err(|_| broken())?;
    let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(broken)?;
    let size = u32::from_le_bytes(*size) as usize;
    if size == 0 || !size.is_multiple_of(4) || size > rest.len() {
        return Err(broken());
    }
    let (trie, replacements) = rest.split_at(size);
    let replacements = str::from_utf8(replacements).map_err(|_| broken())?;
    let units: Vec<u32> = trie.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    let is_leaf = |unit: u32| unit >> 31 == 1;
    let target = |place: usize, unit: u32| place ^ (unit as usize >> 10) << ((unit as usize & 1 << 9) >> 6);
    let sound = units.iter().enumerate().all(|(place, &unit)| {
        if is_leaf(unit) && place != 0 {
            return true;
        }
        let first = target(place, unit);
        let children_are_there = first | 0xff < units.len();
        let value = |unit: u32| (unit & ((1 << 31) - 1)) as usize;
        let has_leaf = unit >> 8 & 1 == 1;
        children_are_there && (!has_leaf || replacements.is_char_boundary(value(units[first])))
    });
    let longest = replacements.split('\0').map(str::len).max().unwrap_or(0);
    if sound && longest <= REPLACEMENT_LIMIT_BYTES { Ok(()) } else { Err(broken()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn charsmap(units: &[u32], replacements: &[u8]) -> String {
        let mut bytes = (4 * units.len() as u32).to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(replacements);
        BASE64_STANDARD.encode(bytes)
    }

    /// A trie that replaces "a" by what stands at `value`: its root is at 0, and its children from 256 on.
    fn trie(value: u32) -> Vec<u32> {
        let mut units = vec![1 << 31; 768];
        units[0] = 256 << 10;
        let a = 256 ^ u32::from(b'a');
        units[a as usize] = (a ^ 512) << 10 | 1 << 8 | u32::from(b'a');
        units[512] = 1 << 31 | value;
        units
    }

    fn with(change: Value) -> Result<(), String> {
        let mut file = json!({"added_tokens": [{"id": 1}], "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}}});
        file.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        check(&file.to_string())
    }

    fn replace(pattern: Value, content: &str) -> Value {
        json!({"type": "Replace", "pattern": pattern, "content": content})
    }

    #[test]
    fn what_published_tokenizers_have_is_let_through() {
        let sound = charsmap(&trie(2), b"x\0bc\0");
        for part in [
            json!({}),
            json!({"normalizer": null, "pre_tokenizer": {"type": "FixedLength", "length": 3}}),
            json!({"normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, replace(json!({"String": " "}), "▁"),
                replace(json!({"Regex": " {2,}"}), " "), {"type": "Precompiled", "precompiled_charsmap": sound},
            ]}}),
            json!({"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0]]}}),
            json!({"added_tokens": [{"id": ID_LIMIT - 1}]}),
        ] {
            assert_eq!(with(part.clone()), Ok(()), "{part}");
        }
    }

    #[test]
    fn what_its_reader_does_not_survive_is_named() {
        let doubling = vec![replace(json!({"String": "a"}), "aa"); 30];
        let within = json!({"type": "Sequence", "normalizers": doubling});
        let precompiled = |map: String| json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": map}});
        let mut outside = trie(0);
        outside[0] = 4096 << 10;
        for (part, expected) in [
            (json!({"model": {"vocab": {"a": 0, "b": 1u32 << 31}}}), "token id 2147483648"),
            (json!({"added_tokens": [{"id": ID_LIMIT}]}), "token id 4194304"),
            (json!({"pre_tokenizer": {"type": "FixedLength", "length": 0}}), "pre_tokenizer: FixedLength"),
            (
                json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "FixedLength", "length": 0}]}}),
                "FixedLength",
            ),
            (json!({"normalizer": {"type": "Sequence", "normalizers": [within]}}), "normalizer: its replacements"),
            (json!({"decoder": {"type": "Sequence", "decoders": doubling}}), "decoder: its replacements"),
            (json!({"normalizer": replace(json!({"Regex": ""}), &"x".repeat(1000))}), "times as long"),
            (json!({"normalizer": {"type": "Prepend", "prepend": "x".repeat(2000)}}), "2000 bytes"),
            (precompiled("!".into()), "precompiled_charsmap"),
            (precompiled(charsmap(&[], b"")), "precompiled_charsmap"),
            (precompiled(BASE64_STANDARD.encode([0xff; 64])), "precompiled_charsmap"),
            (precompiled(charsmap(&outside, b"x\0")), "precompiled_charsmap"),
            (precompiled(charsmap(&trie(99), b"x\0")), "precompiled_charsmap"),
            (precompiled(charsmap(&trie(1), "é\0".as_bytes())), "precompiled_charsmap"),
            (precompiled(charsmap(&trie(0), &[b'x'; 5000])), "precompiled_charsmap"),
        ] {
            let error = with(part.clone()).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}

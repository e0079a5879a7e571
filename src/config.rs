//! From a TOML recipe and `--set` overrides to a checked configuration.
//!
//! Unknown keys and problems are reported together, each with its full key, so that one run shows everything that has to
//! be mended.

use crate::failure::Failure;
use saddle_core::{BYTE_ORDER_MARK, Problems};
use saddle_training::config::Validate;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use std::cell::LazyCell;
use std::path::Path;
use toml::{Table, Value};

/// Longest recipe.
const MOST_BYTES: u64 = 1 << 20;
/// Sections inside one another in a key of `--set`.
const MOST_SECTIONS: usize = 16;

/// Reads the recipe at `path`, applies `overrides` and checks the result.
pub(crate) fn load<C: DeserializeOwned + JsonSchema + Validate>(
    path: &Path,
    overrides: &[String],
) -> Result<C, Failure> {
    let text = read(path)
        .map_err(|error| Failure::usage(format!("cannot read the configuration {}: {error}", path.display())))?;
    parse(&text, &path.display().to_string(), overrides)
}

/// The text of a file that is one, and not endless.
fn read(path: &Path) -> std::io::Result<String> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    if metadata.len() > MOST_BYTES {
        return Err(std::io::Error::other(format!("it is longer than {MOST_BYTES} bytes")));
    }
    let text = std::fs::read_to_string(path)?;
    Ok(text.strip_prefix(BYTE_ORDER_MARK).map(str::to_owned).unwrap_or(text))
}

/// The same for the `text` of a recipe; `origin` names it in messages.
pub(crate) fn parse<C: DeserializeOwned + JsonSchema + Validate>(
    text: &str,
    origin: &str,
    overrides: &[String],
) -> Result<C, Failure> {
    let mut table: Table = text.parse().map_err(|error| Failure::usage(format!("{origin}: {error}")))?;
    for text in overrides {
        apply(&mut table, text)?;
    }
    let mut unknown = Problems::default();
    let schema = LazyCell::new(|| schemars::schema_for!(C));
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(Value::Table(table), &mut track);
    let parsed = serde_ignored::deserialize(tracked, |key| {
        // An optional section stands in the path as a question mark.
        let key = key.to_string().replace(".?", "");
        let name = key.rsplit('.').next().unwrap_or(&key);
        let meant =
            nearest(name, schema.as_value()).map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
        unknown.require(false, &key, format!("there is no such key{meant}; see configs/reference.md"));
    });
    let config: C = parsed.map_err(|error: toml::de::Error| {
        let (key, message) = explained(&track.path().to_string(), error.message());
        Failure::usage(format!("{origin}: {key}: {message}"))
    })?;
    let problems: Problems = unknown.iter().chain(config.problems().iter()).cloned().collect();
    if problems.is_empty() {
        return Ok(config);
    }
    Err(Failure::usage(format!("{origin}: this configuration cannot be used:\n{problems}")))
}

/// The key of a recipe that `name` may have been meant for.
fn nearest<'a>(name: &str, schema: &'a serde_json::Value) -> Option<&'a str> {
    let mut keys = Vec::new();
    collect_keys(schema, &mut keys);
    let near = keys.into_iter().map(|key| (strsim::damerau_levenshtein(name, key), key));
    let (distance, key) = near.min()?;
    (distance <= 1 + name.len() / 4).then_some(key)
}

fn collect_keys<'a>(schema: &'a serde_json::Value, keys: &mut Vec<&'a str>) {
    match schema {
        serde_json::Value::Object(object) => {
            if let Some(properties) = object.get("properties").and_then(serde_json::Value::as_object) {
                keys.extend(properties.keys().map(String::as_str));
            }
            object.values().for_each(|value| collect_keys(value, keys));
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| collect_keys(value, keys)),
        _ => {}
    }
}

/// What a value that cannot be read is told of, in the words of a recipe: its key, and what is wrong.
fn explained(path: &str, message: &str) -> (String, String) {
    if let Some(name) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        let key = if path == "." { name.to_owned() } else { format!("{path}.{name}") };
        return (key, "is needed, and is not there; see configs/reference.md".to_owned());
    }
    let (found, expected) = message.rsplit_once("expected ").unwrap_or((message, ""));
    let expected = match expected {
        "" => return (path.to_owned(), found.to_owned()),
        "usize" | "u64" | "u32" | "i64" | "i32" => "a whole number",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a map" => "a section",
        "a sequence" => "a list",
        other if other.starts_with("struct ") => "a section",
        other => other,
    };
    (path.to_owned(), format!("{found}expected {expected}"))
}

/// Sets one key, `section.key=value`. The value is TOML; what is not TOML is taken as a string.
fn apply(table: &mut Table, text: &str) -> Result<(), Failure> {
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.trim().is_empty()).ok_or_else(|| {
        Failure::usage(format!("--set {text}: expected KEY=VALUE, such as optimizer.learning_rate=1e-4"))
    })?;
    let value = value.trim();
    let value = format!("value = {value}").parse::<Table>().ok().and_then(|mut parsed| parsed.remove("value"));
    let value =
        value.unwrap_or_else(|| Value::String(text.split_once('=').map_or("", |(_, raw)| raw.trim()).to_owned()));
    let path: Vec<&str> = key.trim().split('.').collect();
    if path.len() > MOST_SECTIONS {
        return Err(Failure::usage(format!(
            "--set: a key has at most {MOST_SECTIONS} parts, this one has {}",
            path.len()
        )));
    }
    let (last, sections) = path.split_last().unwrap_or((&"", &[]));
    let mut place = table;
    for section in sections {
        place = place
            .entry(*section)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or_else(|| Failure::usage(format!("--set {text}: {section} is not a section")))?;
    }
    place.insert((*last).to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use saddle_training::config::SftConfig;

    const RECIPE: &str = r#"
        [model]
        from = "somewhere"
        [data]
        train = [{ path = "demonstrations.jsonl", format = "alpaca" }]
    "#;

    fn parse_sft(text: &str, overrides: &[&str]) -> Result<SftConfig, String> {
        let overrides: Vec<String> = overrides.iter().map(|each| (*each).to_owned()).collect();
        parse(text, "recipe.toml", &overrides).map_err(|failure| match failure {
            Failure::Usage(message) => message,
            other => format!("{other:?}"),
        })
    }

    #[test]
    fn an_override_reaches_sections_that_the_file_does_not_have() {
        let config =
            parse_sft(RECIPE, &["optimizer.learning_rate=0.25", "run.device=cuda:1", "optimizer.decay=constant"])
                .unwrap();
        assert_eq!(config.optimizer.learning_rate, 0.25);
        assert_eq!(config.run.device, "cuda:1");
    }

    #[test]
    fn all_problems_are_reported_at_once_with_their_keys() {
        let message = parse_sft(
            RECIPE,
            &["optimizer.learning_rate=-1", "optimizer.epochs=0", "optimizer.lerning_rate=1", "run.sead=2"],
        )
        .unwrap_err();
        for expected in [
            "optimizer.lerning_rate: there is no such key; did you mean learning_rate?",
            "run.sead",
            "optimizer.learning_rate: must be",
            "optimizer.epochs: must be",
        ] {
            assert!(message.contains(expected), "{expected} is not in: {message}");
        }
    }

    #[test]
    fn a_wrong_type_names_its_key() {
        let message = parse_sft(RECIPE, &["optimizer.epochs=many"]).unwrap_err();
        assert!(message.contains("optimizer.epochs"), "{message}");
    }

    #[test]
    fn what_is_missing_or_of_another_kind_is_told_in_a_recipes_words() {
        let message = parse_sft("[model]\nfrom = \"m\"", &[]).unwrap_err();
        assert_eq!(message, "recipe.toml: data: is needed, and is not there; see configs/reference.md");
        for (setting, expected) in [
            ("optimizer.epochs=many", "optimizer.epochs: invalid type: string \"many\", expected a whole number"),
            ("optimizer.learning_rate=[]", "optimizer.learning_rate: invalid type: sequence, expected a number"),
            ("optimizer=1", "optimizer: invalid type: integer `1`, expected a section"),
        ] {
            let message = parse_sft(RECIPE, &[setting]).unwrap_err();
            assert!(message.ends_with(expected), "{message}");
        }
    }

    #[test]
    fn a_key_of_very_many_parts_and_a_file_without_an_end_are_refused() {
        let dots = format!("{}=1", ["a"; 60_000].join("."));
        assert!(parse_sft(RECIPE, &[&dots]).unwrap_err().contains("at most 16 parts"));
        let endless = load::<SftConfig>(Path::new("/dev/zero"), &[]);
        assert!(matches!(endless, Err(Failure::Usage(message)) if message.contains("not a regular file")));
    }

    #[test]
    fn an_override_without_a_value_is_refused() {
        assert!(parse_sft(RECIPE, &["optimizer"]).unwrap_err().contains("expected KEY=VALUE"));
        assert!(parse_sft(RECIPE, &["model.from.deeper=1"]).unwrap_err().contains("is not a section"));
    }
}

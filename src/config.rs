//! From a TOML recipe and `--set` overrides to a checked configuration.
//!
//! Unknown keys and problems are reported together, each with its full key, so that one run shows everything that has to
//! be mended.

use crate::failure::Failure;
use saddle_core::Problems;
use saddle_training::config::Validate;
use serde::de::DeserializeOwned;
use std::path::Path;
use toml::{Table, Value};

/// Reads the recipe at `path`, applies `overrides` and checks the result.
pub(crate) fn load<C: DeserializeOwned + Validate>(path: &Path, overrides: &[String]) -> Result<C, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read the configuration {}: {error}", path.display())))?;
    parse(&text, &path.display().to_string(), overrides)
}

/// The same for the `text` of a recipe; `origin` names it in messages.
pub(crate) fn parse<C: DeserializeOwned + Validate>(
    text: &str,
    origin: &str,
    overrides: &[String],
) -> Result<C, Failure> {
    let mut table: Table = text.parse().map_err(|error| Failure::usage(format!("{origin}: {error}")))?;
    for text in overrides {
        apply(&mut table, text)?;
    }
    let mut unknown = Problems::default();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(Value::Table(table), &mut track);
    let parsed = serde_ignored::deserialize(tracked, |key| {
        // An optional section stands in the path as a question mark.
        unknown.require(false, &key.to_string().replace(".?", ""), "there is no such key; see configs/reference.md");
    });
    let config: C = parsed
        .map_err(|error: toml::de::Error| Failure::usage(format!("{origin}: {}: {}", track.path(), error.message())))?;
    let problems: Problems = unknown.iter().chain(config.problems().iter()).cloned().collect();
    if problems.is_empty() {
        return Ok(config);
    }
    Err(Failure::usage(format!("{origin}: this configuration cannot be used:\n{problems}")))
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
            "optimizer.lerning_rate: there is no such key",
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
    fn an_override_without_a_value_is_refused() {
        assert!(parse_sft(RECIPE, &["optimizer"]).unwrap_err().contains("expected KEY=VALUE"));
        assert!(parse_sft(RECIPE, &["model.from.deeper=1"]).unwrap_err().contains("is not a section"));
    }
}

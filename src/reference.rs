//! `saddle config-reference`: every key that a recipe may have, as Markdown, drawn from the configurations themselves.
//!
//! One part a command, one table a section of the recipe. Keys that two sections of a command share, such as AdamW's, are
//! listed at the first of them. configs/reference.md holds the output, and a test keeps it so.

use crate::demo::DemoConfig;
use saddle_training::config::{DpoConfig, PreferenceConfig, SftConfig, TrainConfig};
use schemars::{Schema, schema_for};
use serde_json::Value;
use std::collections::BTreeMap;

const PREAMBLE: &str = "# Keys of the recipes

Printed by `saddle config-reference`; the recipes beside this file are examples. A key is written in its section, or on the
command line as `--set section.key=value`. `--dry-run` prints a recipe with all its defaults.";

/// The whole reference.
pub(crate) fn markdown() -> String {
    let sft = "`saddle sft`";
    let preference = "`saddle reward-model` and `saddle cost-model`";
    let dpo = "`saddle dpo`";
    let train = "`saddle train`";
    let stages = [("SftConfig", sft), ("PreferenceConfig", preference), ("TrainConfig", train)];
    let parts = [
        part(sft, &schema_for!(SftConfig), &[]),
        part(preference, &schema_for!(PreferenceConfig), &[]),
        part(dpo, &schema_for!(DpoConfig), &[]),
        part(train, &schema_for!(TrainConfig), &[]),
        part("`saddle demo`", &schema_for!(DemoConfig), &stages),
    ];
    std::iter::once(PREAMBLE.to_owned()).chain(parts).collect::<Vec<_>>().join("\n\n")
}

/// The part of one command. `listed` says of definitions by name where else their keys stand.
fn part(command: &str, schema: &Schema, listed: &[(&str, &str)]) -> String {
    let schema = schema.as_value();
    let mut part = Part {
        definitions: &schema["$defs"],
        listed: listed.iter().map(|(name, place)| ((*name).to_owned(), (*place).to_owned())).collect(),
        text: format!("## {command}\n\n{}", one_line(schema)),
    };
    part.keys("", schema);
    part.text
}

struct Part<'a> {
    definitions: &'a Value,
    /// Where the keys of a definition stand.
    listed: BTreeMap<String, String>,
    text: String,
}

/// A section of a recipe: a TOML table, or one of an array of tables.
struct Section<'a> {
    /// Its keys' prefix.
    path: String,
    heading: String,
    /// The name of its definition, if it has one of its own.
    name: Option<&'a str>,
    schema: &'a Value,
}

impl<'a> Part<'a> {
    /// The table of `object`'s keys, then the sections inside it.
    fn keys(&mut self, path: &str, object: &'a Value) {
        let mut rows = String::new();
        let mut inside = Vec::new();
        for (key, property) in properties(object) {
            let default = match &property["default"] {
                _ if object["required"].as_array().is_some_and(|keys| keys.iter().any(|each| each == key)) => {
                    "required".to_owned()
                }
                Value::Null => "none".to_owned(),
                Value::Object(keys) => keys.get("kind").map_or("optional".to_owned(), |kind| format!("`{kind}`")),
                value => format!("`{value}`"),
            };
            let row = format!("\n| `{key}` | {} | {default} | {} |", self.values(property), self.meaning(property));
            rows.push_str(&row);
            let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            inside.extend(self.sections(path, property));
        }
        if !rows.is_empty() {
            self.text.push_str("\n\n| key | values | default | meaning |\n|---|---|---|---|");
            self.text.push_str(&rows);
        }
        for section in inside {
            self.section(section);
        }
    }

    fn section(&mut self, Section { path, heading, name, schema }: Section<'a>) {
        let place = name.and_then(|name| self.listed.get(name));
        let about = place.map_or_else(|| one_line(schema), |place| format!("The keys of {place}."));
        self.text.push_str(&format!("\n\n### {heading}\n\n{about}"));
        if place.is_none() {
            self.listed.extend(name.map(|name| (name.to_owned(), heading)));
            self.keys(&path, schema);
        }
    }

    /// The sections that a property's value consists of; none for a plain value.
    fn sections(&self, path: String, property: &'a Value) -> Vec<Section<'a>> {
        let (name, schema) = self.resolve(property);
        let (item_name, item) = self.resolve(&schema["items"]);
        let (named_name, named) = self.resolve(&schema["additionalProperties"]);
        if schema["properties"].is_object() {
            vec![Section { heading: format!("`[{path}]`"), path, name, schema }]
        } else if item["properties"].is_object() {
            vec![Section { heading: format!("`[[{path}]]`"), path, name: item_name, schema: item }]
        } else if named["properties"].is_object() {
            let path = format!("{path}.NAME");
            vec![Section { heading: format!("`[{path}]`"), path, name: named_name, schema: named }]
        } else {
            let of_kind = |schema: &'a Value| {
                let kind = schema["properties"]["kind"].get("const")?;
                let heading = format!("`[{path}]` with `kind = {kind}`");
                Some(Section { path: path.clone(), heading, name: None, schema })
            };
            alternatives(schema).filter_map(of_kind).collect()
        }
    }

    /// What may stand for a property.
    fn values(&self, property: &Value) -> String {
        let (_, schema) = self.resolve(property);
        let constants = |key: fn(&Value) -> &Value| -> Vec<String> {
            alternatives(schema).map(key).filter(|constant| !constant.is_null()).map(|it| format!("`{it}`")).collect()
        };
        let (plain, kinds) = (constants(|each| &each["const"]), constants(|each| &each["properties"]["kind"]["const"]));
        if !plain.is_empty() {
            return plain.join(", ");
        }
        if !kinds.is_empty() {
            return format!("a section with `kind` {}", kinds.join(", "));
        }
        let kinds = schema["type"].as_array().map_or(std::slice::from_ref(&schema["type"]), Vec::as_slice);
        match kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null") {
            Some("integer") => "whole number",
            Some("number") => "number",
            Some("boolean") => "`true`, `false`",
            Some("string") => "text",
            Some("array") if self.resolve(&schema["items"]).1["type"] == "string" => "list of texts",
            Some("array") => "list of sections",
            Some("object") if schema["properties"].is_object() => "a section",
            Some("object") => "sections by name",
            _ => "any",
        }
        .to_owned()
    }

    /// A property's description, with those of its possible values.
    fn meaning(&self, property: &Value) -> String {
        let (_, schema) = self.resolve(property);
        let values = alternatives(schema)
            .filter(|each| !each["const"].is_null())
            .map(|each| format!(" `{}`: {}", each["const"], one_line(each)));
        let text = one_line(property);
        // The default has a column of its own.
        let text = text.rsplit_once(" Default ").map_or(text.as_str(), |(text, _)| text);
        std::iter::once(text.to_owned()).chain(values).collect::<String>().replace('|', "\\|")
    }

    /// Follows a reference, also that of an optional value, and names the definition that it leads to.
    fn resolve<'b>(&self, schema: &'b Value) -> (Option<&'b str>, &'b Value)
    where
        'a: 'b,
    {
        let options = schema["anyOf"].as_array();
        let schema = options.and_then(|all| all.iter().find(|each| each["type"] != "null")).unwrap_or(schema);
        match schema["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/$defs/")) {
            Some(name) => (Some(name), &self.definitions[name]),
            None => (None, schema),
        }
    }
}

/// An object's properties in the order of their names, whatever order the schema has them in. A section's own `kind` is
/// in its heading.
fn properties(object: &Value) -> BTreeMap<&str, &Value> {
    let all = object["properties"].as_object().into_iter().flatten();
    all.filter(|(_, property)| property["const"].is_null()).map(|(key, property)| (key.as_str(), property)).collect()
}

fn alternatives(schema: &Value) -> impl Iterator<Item = &Value> {
    schema["oneOf"].as_array().into_iter().flatten()
}

/// A description without its line breaks, and without the section's name, which the heading says.
fn one_line(schema: &Value) -> String {
    let words: Vec<&str> = schema["description"].as_str().unwrap_or_default().split_whitespace().collect();
    let text = words.join(" ");
    match text.split_once("]`: ") {
        Some((name, rest)) if name.starts_with("`[") => capitalised(rest),
        _ => text,
    }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;
    use std::path::Path;

    #[test]
    fn the_reference_beside_the_recipes_is_that_of_this_program() {
        let file = include_str!("../configs/reference.md");
        assert!(file.trim_end() == markdown(), "run `saddle config-reference > configs/reference.md`");
    }

    #[test]
    fn every_kind_of_key_is_described() {
        let text = markdown();
        for line in [
            "| `from` | text | none | A model directory in the Hugging Face layout to start from. |",
            "| `cost_limit` | number | `0.0` | d, the mean cost that is allowed, in cost-model units (0 is the boundary of unsafe). |",
            "### `[constraints.NAME.dual.controller]` with `kind = \"log_sgd\"`",
            "### `[[prompts.train]]`",
            "The keys of `[critics.adamw]`.",
            "The keys of `saddle train`.",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("| any |") && !text.contains("|  |"), "a key without type or meaning:\n{text}");
    }

    #[test]
    fn every_recipe_can_be_used() {
        for name in ["sft", "real-sft", "smollm2/sft"] {
            load::<SftConfig>(&recipe(name), &[]).unwrap();
        }
        for name in [
            "reward-model",
            "cost-model",
            "real-reward-model",
            "real-cost-model",
            "smollm2/reward-model",
            "smollm2/cost-model",
        ] {
            load::<PreferenceConfig>(&recipe(name), &[]).unwrap();
        }
        load::<DpoConfig>(&recipe("dpo"), &[]).unwrap();
        for name in ["train", "real-train", "smollm2/train", "beaver-7b"] {
            load::<TrainConfig>(&recipe(name), &[]).unwrap();
        }
    }

    fn recipe(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("configs/{name}.toml"))
    }
}

//! One JSON value to one row, for each format. Pure; every way to fail is a [`BadRow`].

use crate::transcript::{prompt_and_response, prompt_from_text, prompt_from_turns};
use crate::{BadRow, Format, Origin, PairLabel, PreferenceRow, PromptRow, Source, SupervisedRow, Turn};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A row of a `pku` or `hh` source.
pub(crate) fn preference(source: &Source, value: &Value, origin: Origin) -> Result<PreferenceRow, BadRow> {
    let fields = Fields::of(value)?;
    let row =
        if source.format == Format::Hh { hh_pair(&fields, source.label, origin)? } else { pku_pair(&fields, origin)? };
    if row.responses[0].trim() == row.responses[1].trim() {
        return Err(BadRow::IdenticalResponses);
    }
    if let (Some(safer), [Some(first), Some(second)]) = (row.safer, row.safe)
        && first != second
        && row.safe[safer] == Some(false)
    {
        return Err(BadRow::ContradictoryLabels { safer });
    }
    Ok(row)
}

/// A row of an `alpaca` source.
pub(crate) fn supervised(_: &Source, value: &Value, origin: Origin) -> Result<SupervisedRow, BadRow> {
    let fields = Fields::of(value)?;
    Ok(SupervisedRow { prompt: instruction(&fields)?, response: fields.text("output")?.to_owned(), origin })
}

/// The prompt in the field `prompt` of an object, or of a row that is a text: text, a transcript, or a list of turns, as
/// everywhere where prompts are read.
///
/// # Errors
/// What is wrong with it.
pub fn prompt_of(value: &Value) -> Result<Vec<Turn>, BadRow> {
    match value {
        Value::String(text) => prompt_from_text(text, "prompt"),
        value => Fields::of(value)?.conversation("prompt"),
    }
}

/// The prompt of a row of any format.
pub(crate) fn prompt(source: &Source, value: &Value, origin: Origin) -> Result<PromptRow, BadRow> {
    if let (Format::Prompts, Value::String(_)) = (source.format, value) {
        return Ok(PromptRow { prompt: prompt_of(value)?, kind: None, origin });
    }
    let fields = Fields::of(value)?;
    let prompt = match source.format {
        Format::Pku | Format::Prompts => prompt_of(value)?,
        Format::Hh => hh_pair(&fields, source.label, origin.clone())?.prompt,
        Format::Alpaca => instruction(&fields)?,
    };
    let kind = fields.optional("kind", "a string", Value::as_str)?.map(str::to_owned);
    Ok(PromptRow { prompt, kind, origin })
}

fn pku_pair(fields: &Fields<'_>, origin: Origin) -> Result<PreferenceRow, BadRow> {
    Ok(PreferenceRow {
        prompt: fields.conversation("prompt")?,
        responses: [fields.text("response_0")?.to_owned(), fields.text("response_1")?.to_owned()],
        better: fields.response_id("better_response_id")?,
        safer: fields.response_id("safer_response_id")?,
        safe: [
            fields.optional("is_response_0_safe", "true, false or null", Value::as_bool)?,
            fields.optional("is_response_1_safe", "true, false or null", Value::as_bool)?,
        ],
        origin,
    })
}

/// The chosen answer is response 0.
fn hh_pair(fields: &Fields<'_>, label: Option<PairLabel>, origin: Origin) -> Result<PreferenceRow, BadRow> {
    let (prompt, chosen) = prompt_and_response(fields.text("chosen")?, "chosen")?;
    let (rejected_prompt, rejected) = prompt_and_response(fields.text("rejected")?, "rejected")?;
    if prompt != rejected_prompt {
        return Err(BadRow::DifferentPrompts);
    }
    Ok(PreferenceRow {
        prompt,
        responses: [chosen, rejected],
        better: (label == Some(PairLabel::Better)).then_some(0),
        safer: (label == Some(PairLabel::Safer)).then_some(0),
        safe: [None; 2],
        origin,
    })
}

/// The instruction, and its input on a line of its own where there is one.
fn instruction(fields: &Fields<'_>) -> Result<Vec<Turn>, BadRow> {
    let mut turns = fields.conversation("instruction")?;
    let input = fields.optional("input", "a string", Value::as_str)?.unwrap_or_default().trim();
    if let (false, Some(last)) = (input.is_empty(), turns.last_mut()) {
        last.content = format!("{}\n{input}", last.content);
    }
    Ok(turns)
}

/// Typed access to an object. A missing optional field is the same as `null`.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn of(value: &'a Value) -> Result<Self, BadRow> {
        value.as_object().map(Self).ok_or_else(|| wrong_type("the row", "an object", value))
    }

    fn required(&self, name: &'static str) -> Result<&'a Value, BadRow> {
        self.0.get(name).ok_or(BadRow::MissingField(name))
    }

    /// A string that is not blank.
    fn text(&self, name: &'static str) -> Result<&'a str, BadRow> {
        let value = self.required(name)?;
        let text = value.as_str().ok_or_else(|| wrong_type(name, "a string", value))?;
        if text.trim().is_empty() { Err(BadRow::EmptyText(name)) } else { Ok(text) }
    }

    /// A prompt: a string, or a list of `{"role", "content"}` turns.
    fn conversation(&self, name: &'static str) -> Result<Vec<Turn>, BadRow> {
        match self.required(name)? {
            Value::String(text) => prompt_from_text(text, name),
            list @ Value::Array(_) => {
                let turns = Vec::<Turn>::deserialize(list)
                    .map_err(|_| wrong_type(name, "a string, or a list of turns with role and content", list))?;
                prompt_from_turns(turns, name)
            }
            other => Err(wrong_type(name, "a string or a list of turns", other)),
        }
    }

    fn optional<T>(
        &self,
        name: &'static str,
        expected: &'static str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, BadRow> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => convert(value).map(Some).ok_or_else(|| wrong_type(name, expected, value)),
        }
    }

    fn response_id(&self, name: &'static str) -> Result<Option<usize>, BadRow> {
        let Some(number) = self.optional(name, "0, 1 or null", Value::as_number)? else { return Ok(None) };
        match number.as_u64() {
            Some(0) => Ok(Some(0)),
            Some(1) => Ok(Some(1)),
            _ => Err(BadRow::LabelOutOfRange { field: name, found: number.to_string() }),
        }
    }
}

fn wrong_type(place: &str, expected: &'static str, value: &Value) -> BadRow {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    let place = if place == "the row" { place.to_owned() } else { format!("`{place}`") };
    BadRow::WrongType { place, expected, found }
}

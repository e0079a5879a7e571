//! What a chat template may make of a conversation. A template comes from outside, and a few operations of its language make
//! much of little: text that is doubled forty times is a terabyte.
//!
//! In the compiled template every operation that makes, compares or takes apart values is exchanged for a function here. It
//! looks at the size of what it is given, does the same, and counts what came of it; a namespace that holds itself is too
//! large in this sense. What is written goes through [`write()`], and is counted too. Text of the template itself is written
//! without a count: the number of steps is what bounds it.

use minijinja::machinery::{Instruction, Instructions};
use minijinja::value::{Object, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Expression, Output, State, Value, escape_formatter};
use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most that a value may weigh, in bytes.
const VALUE_LIMIT_BYTES: usize = 16 << 20;
/// The most that all values that one rendering makes may weigh together, and what it writes.
const MADE_LIMIT_BYTES: usize = 128 << 20;
/// What an element of a list weighs beside its text.
const ELEMENT_BYTES: usize = 32;
/// Lists in lists in lists.
const DEPTH_LIMIT: usize = 100;
/// The widest indentation, padding or number that is written.
const WIDTH_LIMIT: usize = 1000;

/// Operators, each by the name of its function and as it is written.
const OPERATORS: [(&str, &str); 12] = [
    ("operator +", "a + b"),
    ("operator *", "a * b"),
    ("operator ~", "a ~ b"),
    ("operator []", "a[b]"),
    ("operator [:]", "a[b:c:d]"),
    ("operator ==", "a == b"),
    ("operator !=", "a != b"),
    ("operator <", "a < b"),
    ("operator <=", "a <= b"),
    ("operator >", "a > b"),
    ("operator >=", "a >= b"),
    ("operator in", "a in b"),
];
/// Filters, by their names; each has a function called `filter NAME`.
const FILTERS: [&str; 48] = [
    "filter abs",
    "filter attr",
    "filter batch",
    "filter bool",
    "filter capitalize",
    "filter chain",
    "filter count",
    "filter d",
    "filter default",
    "filter dictsort",
    "filter e",
    "filter escape",
    "filter first",
    "filter float",
    "filter format",
    "filter groupby",
    "filter indent",
    "filter int",
    "filter items",
    "filter join",
    "filter last",
    "filter length",
    "filter lines",
    "filter list",
    "filter lower",
    "filter map",
    "filter max",
    "filter min",
    "filter pprint",
    "filter reject",
    "filter rejectattr",
    "filter replace",
    "filter reverse",
    "filter round",
    "filter safe",
    "filter select",
    "filter selectattr",
    "filter slice",
    "filter sort",
    "filter split",
    "filter string",
    "filter sum",
    "filter title",
    "filter tojson",
    "filter trim",
    "filter unique",
    "filter upper",
    "filter zip",
];
/// Tests that compare values.
const TESTS: [&str; 11] = [
    "test eq",
    "test equalto",
    "test ne",
    "test lt",
    "test lessthan",
    "test le",
    "test gt",
    "test greaterthan",
    "test ge",
    "test in",
    "test sameas",
];
/// Methods of texts, lists, maps and loops.
const METHODS: [&str; 30] = [
    "method capitalize",
    "method changed",
    "method count",
    "method cycle",
    "method endswith",
    "method find",
    "method format",
    "method get",
    "method isalnum",
    "method isalpha",
    "method isascii",
    "method isdigit",
    "method islower",
    "method isnumeric",
    "method isspace",
    "method isupper",
    "method items",
    "method join",
    "method keys",
    "method lower",
    "method lstrip",
    "method replace",
    "method rfind",
    "method rstrip",
    "method split",
    "method splitlines",
    "method startswith",
    "method strip",
    "method title",
    "method upper",
];

/// What one rendering has made so far.
#[derive(Debug, Default)]
struct Made(AtomicUsize);

impl Object for Made {}

impl Made {
    fn add(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
        let made = state.get_or_set_temp_object("made", Self::default);
        if made.0.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > MADE_LIMIT_BYTES {
            return Err(refuse(format!("the template makes more than {MADE_LIMIT_BYTES} bytes of a conversation")));
        }
        Ok(())
    }
}

fn refuse(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Gives `environment` the functions that [`limit`] puts in place of operations, and the filters with limits of their own.
pub(crate) fn prepare(environment: &mut Environment<'static>) {
    for (name, _) in OPERATORS {
        environment.add_function(name, move |state: &State<'_, '_>, Rest(values): Rest<Value>| {
            limited(state, &values, || operate(name, &values))
        });
    }
    for name in FILTERS {
        let filter = &name["filter ".len()..];
        environment.add_function(name, move |state: &State<'_, '_>, Rest(values): Rest<Value>| {
            limited(state, &values, || state.apply_filter(filter, &values))
        });
    }
    for name in TESTS {
        let test = &name["test ".len()..];
        environment.add_function(name, move |state: &State<'_, '_>, Rest(values): Rest<Value>| {
            limited(state, &values, || state.perform_test(test, &values).map(Value::from))
        });
    }
    for name in METHODS {
        let method = &name["method ".len()..];
        environment.add_function(name, move |state: &State<'_, '_>, Rest(values): Rest<Value>| {
            limited(state, &values, || call_method(state, method, &values))
        });
    }
    for name in ["replace", "join", "indent", "format", "batch", "slice", "round"] {
        environment.add_filter(name, move |state: &State<'_, '_>, Rest(values): Rest<Value>| {
            check_product(name, &values)?;
            PLAIN.empty_state().apply_filter(name, &values).and_then(|value| {
                Made::add(state, weigh(&value)?)?;
                Ok(value)
            })
        });
    }
    environment.set_debug(false);
    environment.remove_global("debug");
    environment.set_formatter(write);
}

/// Exchanges the operations of a compiled template. Each takes its values from where its function does, and leaves one.
pub(crate) fn limit(instructions: &mut Instructions<'static>) {
    let mut place = 0;
    while let Some(instruction) = instructions.get_mut(place) {
        let known = |kind: &str, name: &str, all: &[&'static str]| {
            all.iter().copied().find(|each| each.strip_prefix(kind) == Some(name))
        };
        let (function, count) = match instruction {
            Instruction::Add => (Some("operator +"), Some(2)),
            Instruction::Mul => (Some("operator *"), Some(2)),
            Instruction::StringConcat => (Some("operator ~"), Some(2)),
            Instruction::GetItem => (Some("operator []"), Some(2)),
            Instruction::Slice => (Some("operator [:]"), Some(4)),
            Instruction::Eq => (Some("operator =="), Some(2)),
            Instruction::Ne => (Some("operator !="), Some(2)),
            Instruction::Lt => (Some("operator <"), Some(2)),
            Instruction::Lte => (Some("operator <="), Some(2)),
            Instruction::Gt => (Some("operator >"), Some(2)),
            Instruction::Gte => (Some("operator >="), Some(2)),
            Instruction::In => (Some("operator in"), Some(2)),
            Instruction::ApplyFilter(name, count, _) => (known("filter ", name, &FILTERS), *count),
            Instruction::PerformTest(name, count, _) => (known("test ", name, &TESTS), *count),
            Instruction::CallMethod(name, count) => (known("method ", name, &METHODS), *count),
            _ => (None, None),
        };
        if let Some(function) = function {
            *instruction = Instruction::CallFunction(function, count);
        }
        place += 1;
    }
}

/// Writes a value.
fn write(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    Made::add(state, weigh(value)?)?;
    escape_formatter(out, state, value)
}

/// What `operation` gives, if neither the `values` that it takes nor that is too large.
fn limited(
    state: &State<'_, '_>,
    values: &[Value],
    operation: impl FnOnce() -> Result<Value, Error>,
) -> Result<Value, Error> {
    for value in values {
        weigh(value)?;
    }
    let result = operation()?;
    Made::add(state, weigh(&result)?)?;
    Ok(result)
}

/// What a value weighs, in bytes.
fn weigh(value: &Value) -> Result<usize, Error> {
    let mut left = VALUE_LIMIT_BYTES;
    weigh_within(value, DEPTH_LIMIT, &mut left)?;
    Ok(VALUE_LIMIT_BYTES - left)
}

fn weigh_within(value: &Value, depth: usize, left: &mut usize) -> Result<(), Error> {
    let mut take = |bytes: usize| {
        *left = left
            .checked_sub(bytes)
            .ok_or_else(|| refuse(format!("the template makes a value of more than {VALUE_LIMIT_BYTES} bytes")))?;
        Ok::<_, Error>(())
    };
    take(ELEMENT_BYTES)?;
    if let Some(text) = value.as_str() {
        return take(text.len());
    }
    let is_map = value.kind() == ValueKind::Map;
    if !is_map && !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Ok(());
    }
    if depth == 0 {
        return Err(refuse("the template puts values into one another without end"));
    }
    // A length is known without the elements, of which there may be any number.
    take(value.len().unwrap_or(0))?;
    for element in value.try_iter()? {
        weigh_within(&element, depth - 1, left)?;
        if is_map && let Ok(value) = value.get_item(&element) {
            weigh_within(&value, depth - 1, left)?;
        }
    }
    Ok(())
}

/// An environment without limits, for the operations themselves.
static PLAIN: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    // Messages would else come with values, of whatever size.
    environment.set_debug(false);
    environment
});
/// The operators.
static EXPRESSIONS: LazyLock<BTreeMap<&'static str, Expression<'static, 'static>>> = LazyLock::new(|| {
    let compile = |(name, text)| (name, PLAIN.compile_expression(text).expect("each is an expression"));
    OPERATORS.into_iter().map(compile).collect()
});

fn operate(name: &str, values: &[Value]) -> Result<Value, Error> {
    if name == "operator *" {
        check_product(name, values)?;
    }
    let context: BTreeMap<&str, &Value> = ["a", "b", "c", "d"].into_iter().zip(values).collect();
    // The place is that in the template, and not that in the expression.
    let here = |error: Error| Error::new(error.kind(), error.detail().unwrap_or_default().to_owned());
    EXPRESSIONS[name].eval(context).map_err(here)
}

fn call_method(state: &State<'_, '_>, name: &str, values: &[Value]) -> Result<Value, Error> {
    let (object, arguments) = values.split_first().ok_or_else(|| refuse("a method of nothing"))?;
    if name == "cycle" && arguments.is_empty() {
        return Err(refuse("cycle needs something to choose from"));
    }
    check_product(name, values)?;
    object.call_method(state, name, arguments)
}

/// Refuses an operation whose result is a product of what it is given.
fn check_product(name: &str, values: &[Value]) -> Result<(), Error> {
    let text = |place: usize| values.get(place).map_or(0, |value| value.as_str().map_or(0, str::len));
    let count = |place: usize| values.get(place).and_then(Value::len).unwrap_or(1);
    let number = |place: usize| values.get(place).and_then(Value::as_usize);
    let bytes = match name {
        "replace" => text(0).saturating_add(1).saturating_mul(text(2).saturating_add(1)),
        // A filter's list comes first, a method's after the text between.
        "join" => [(0, 1), (1, 0)]
            .map(|(list, between)| count(list).saturating_mul(text(between)))
            .into_iter()
            .max()
            .unwrap_or(0),
        "operator *" => match (number(0), number(1)) {
            (Some(times), None) => times.saturating_mul(count(1).max(text(1))),
            (None, Some(times)) => times.saturating_mul(count(0).max(text(0))),
            _ => 0,
        },
        "indent" => {
            let lines = values.first().and_then(Value::as_str).map_or(0, |text| text.lines().count());
            widest(&values[1..]).saturating_mul(lines)
        }
        "batch" | "slice" | "round" => widest(&values[1..]).saturating_mul(ELEMENT_BYTES),
        "format" => {
            let pattern = values.first().and_then(Value::as_str).unwrap_or_default();
            let long = |digits: &str| digits.len() > 3;
            let wide = pattern.contains('*') || pattern.split(|sign: char| !sign.is_ascii_digit()).any(long);
            if wide { usize::MAX } else { pattern.len().saturating_mul(WIDTH_LIMIT) }
        }
        _ => 0,
    };
    if bytes > VALUE_LIMIT_BYTES {
        return Err(refuse(format!("{name} would make more than {VALUE_LIMIT_BYTES} bytes")));
    }
    Ok(())
}

/// The largest number among `values`, given by their places or by name.
fn widest(values: &[Value]) -> usize {
    let named = |value: &Value| {
        let names = value.try_iter().ok().filter(|_| value.kind() == ValueKind::Map);
        names.into_iter().flatten().filter_map(|name| value.get_item(&name).ok()?.as_usize()).max()
    };
    let size = |value: &Value| value.as_usize().or_else(|| named(value)).unwrap_or(0);
    values.iter().map(size).max().unwrap_or(0)
}

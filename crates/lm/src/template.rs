//! Chat templates in the Hugging Face dialect of Jinja, compiled and rendered within limits.
//!
//! A template comes with a model, from outside. It runs in a sandbox without files or clocks, for a limited number of steps,
//! with limits on what it makes ([`crate::template_limits`]), on a thread with room for all nesting that these limits leave,
//! and that is given up if it takes too long. There is no clock on purpose: a prompt is a function of its conversation, today
//! and tomorrow. Templates that call `strftime_now` without asking whether it is defined fail, and say so.

use crate::template_limits::{limit, prepare as prepare_environment};
use crate::template_source::prepare;
use crate::{ChatTurn, LmError};
use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Vm, WhitespaceConfig, make_string_output, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The format of Safe RLHF (arXiv 2310.12773), for tokenizers without a template of their own: plain text, no special
/// tokens but the first and those that end answers.
pub(crate) const CONVERSATION_TEMPLATE: &str = "{{ bos_token }}BEGINNING OF CONVERSATION: \
    {% for message in messages %}\
    {% if message.role == 'user' %}USER: {{ message.content }} \
    {% elif message.role == 'assistant' %}ASSISTANT:{{ message.content }}{{ eos_token }}\
    {% elif message.role == 'system' %}{{ message.content }} \
    {% else %}{{ raise_exception('unknown role ' ~ message.role) }}{% endif %}\
    {% endfor %}\
    {% if add_generation_prompt %}ASSISTANT:{% endif %}";

/// The format of tokenizers that are trained here: a role token before each message, `<eos>` after each answer.
pub(crate) const ROLE_TEMPLATE: &str = "{{ bos_token }}\
    {% for message in messages %}\
    {% if message.role not in ['user', 'assistant', 'system'] %}{{ raise_exception('unknown role ' ~ message.role) }}{% endif %}\
    {{ '<|' ~ message.role ~ '|>' ~ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}\
    {% endfor %}\
    {% if add_generation_prompt %}<|assistant|>{% endif %}";

/// Steps of the template engine that one rendering may take; a long conversation takes some ten thousand.
const FUEL_STEPS: u64 = 1_000_000;
/// Bytes that a template's own text may come to in one rendering: fewer steps are left where it is long.
const TEXT_LIMIT_BYTES: u64 = 256 << 20;
const RECURSION_LIMIT: usize = 64;
/// Room for values that are nested as deeply as the steps allow; taken from the system when it is used.
const STACK_BYTES: usize = 512 << 20;
/// A rendering takes milliseconds. It is waited for twice, so that one that was stopped with the whole program, and is late
/// by the clock alone, goes on.
const PATIENCE: Duration = Duration::from_secs(5);
const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    program: Arc<Program>,
    source: String,
    origin: String,
}

/// What runs.
#[derive(Debug)]
struct Program {
    environment: Environment<'static>,
    instructions: Instructions<'static>,
    blocks: BTreeMap<&'static str, Instructions<'static>>,
}

impl ChatTemplate {
    /// Compiles `source`, which came from `origin`.
    pub(crate) fn compile(source: String, origin: &str) -> Result<Self, LmError> {
        let refuse = |source| LmError::Template { origin: origin.to_owned(), source };
        let prepared = prepare(&source).map_err(|message| refuse(Error::new(ErrorKind::InvalidOperation, message)))?;
        let program = apart(move || Program::compile(prepared)).and_then(|program| program).map_err(refuse)?;
        Ok(Self { program: Arc::new(program), source, origin: origin.to_owned() })
    }

    /// The template of tokenizers that have none.
    pub(crate) fn built_in() -> Result<Self, LmError> {
        Self::compile(CONVERSATION_TEMPLATE.to_owned(), "built-in")
    }

    /// Whether it is that.
    pub(crate) fn is_built_in(&self) -> bool {
        self.origin == "built-in" && self.source == CONVERSATION_TEMPLATE
    }

    /// The template's text.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation; `special` are the special tokens' texts by name (`bos_token`, …).
    pub(crate) fn render<'a>(
        &self,
        turns: &[ChatTurn<'_>],
        add_generation_prompt: bool,
        special: impl Iterator<Item = (&'static str, &'a str)>,
    ) -> Result<String, LmError> {
        let mut context: BTreeMap<&str, Value> = special.map(|(name, text)| (name, Value::from(text))).collect();
        context.insert("messages", Value::from_serialize(turns));
        context.insert("add_generation_prompt", Value::from(add_generation_prompt));
        // Published templates ask whether these are none, not whether they are defined.
        context.insert("tools", Value::from(()));
        context.insert("documents", Value::from(()));
        let program = Arc::clone(&self.program);
        let rendered = match self.source.as_str() {
            // These are not from outside.
            CONVERSATION_TEMPLATE | ROLE_TEMPLATE => program.render(&context),
            _ => apart(move || program.render(&context)).and_then(|rendered| rendered),
        };
        rendered.map_err(|source| LmError::Template { origin: self.origin.clone(), source })
    }
}

impl Program {
    fn compile(source: String) -> Result<Self, Error> {
        // Kept for ever: a program reads a handful of models, and a template's code points into its text.
        let source: &'static str = source.leak();
        let whitespace = WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
        let mut generator = CodeGenerator::new(NAME, source);
        generator.compile_stmt(&parse(source, NAME, SyntaxConfig, whitespace)?);
        let (mut instructions, mut blocks) = generator.finish();
        std::iter::once(&mut instructions).chain(blocks.values_mut()).for_each(limit);
        let longest = std::iter::once(&instructions).chain(blocks.values()).map(longest_text).max().unwrap_or(0);
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL_STEPS.min(TEXT_LIMIT_BYTES / longest.max(1) as u64)));
        environment.set_recursion_limit(RECURSION_LIMIT);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        prepare_environment(&mut environment);
        Ok(Self { environment, instructions, blocks })
    }

    fn render(&self, context: &BTreeMap<&str, Value>) -> Result<String, Error> {
        let mut text = String::new();
        let mut output = make_string_output(&mut text);
        let root = Value::from_serialize(context);
        Vm::new(&self.environment).eval(&self.instructions, root, &self.blocks, &mut output, AutoEscape::None)?;
        Ok(text)
    }
}

/// The length of the longest text that is written as it stands.
fn longest_text(instructions: &Instructions<'_>) -> usize {
    let texts = (0..).map_while(|place| instructions.get(place)).map(|instruction| match instruction {
        Instruction::EmitRaw(text) => text.len(),
        _ => 0,
    });
    texts.max().unwrap_or(0)
}

/// Renderings that may wait: each is waited for by a thread of its own.
const JOBS: usize = 256;

/// What the thread for templates does next.
type Job = Box<dyn FnOnce() + Send>;

/// The way to that thread, which is started when there is work, and again after it was given up.
static WORKER: Mutex<Option<SyncSender<Job>>> = Mutex::new(None);

/// What `work` gives on a thread apart, with a deep stack and limited patience.
fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let refuse = |message: String| Error::new(ErrorKind::InvalidOperation, message);
    let (sender, receiver) = sync_channel(1);
    hand_over(Box::new(move || drop(sender.send(work()))))
        .map_err(|error| refuse(format!("no thread to work on: {error}")))?;
    let waited = match receiver.recv_timeout(PATIENCE) {
        Err(RecvTimeoutError::Timeout) => receiver.recv_timeout(PATIENCE),
        other => other,
    };
    waited.map_err(|error| match error {
        RecvTimeoutError::Timeout => {
            // It is busy until its fuel is gone; others are not to wait for it.
            *WORKER.lock().unwrap_or_else(PoisonError::into_inner) = None;
            refuse(format!("takes longer than {} seconds", 2 * PATIENCE.as_secs()))
        }
        RecvTimeoutError::Disconnected => refuse("does not work".to_owned()),
    })
}

/// Gives the thread for templates a job.
fn hand_over(job: Job) -> io::Result<()> {
    let mut worker = WORKER.lock().unwrap_or_else(PoisonError::into_inner);
    let unsent = match worker.as_ref() {
        Some(sender) => match sender.try_send(job) {
            Ok(()) => None,
            Err(TrySendError::Disconnected(job)) => Some(job),
            Err(TrySendError::Full(_)) => return Err(io::Error::other("too many renderings wait")),
        },
        None => Some(job),
    };
    // None was started yet, or a template has ended it.
    let Some(job) = unsent else { return Ok(()) };
    let (sender, jobs) = sync_channel::<Job>(JOBS);
    let work = move || jobs.into_iter().for_each(|job| job());
    thread::Builder::new().name("template".to_owned()).stack_size(STACK_BYTES).spawn(work)?;
    *worker = sender.try_send(job).is_ok().then_some(sender);
    Ok(())
}

/// `raise_exception(message)`, by which a template refuses a conversation.
fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// `value | tojson` as in Python's `json.dumps`: without escapes for HTML, and with spaces after separators.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = vec![b' '; width.min(16)];
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced)),
    };
    written.map_err(|error| Error::new(ErrorKind::InvalidOperation, "tojson failed").with_source(error))?;
    String::from_utf8(bytes)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, "tojson failed").with_source(error))
}

/// JSON on one line with a space after each comma and colon.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;

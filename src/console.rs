//! What is shown on standard error: lines, and a bar on a terminal.
//!
//! A thread of its own writes it, behind a bounded queue, so that a terminal that nobody reads never holds up training. What does not
//! fit is left out and counted. A reader that is gone is no failure: a run does not end for want of an audience.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Messages that wait to be shown.
const QUEUE: usize = 1024;
/// Between two tries to get a message into a full queue.
const RETRY: Duration = Duration::from_millis(10);

enum Message {
    Line(String),
    /// The bar of a stage, at `step` of `steps`; made where there is none yet.
    Bar {
        stage: &'static str,
        step: u64,
        steps: u64,
        text: String,
    },
    /// Leaves the bar as it is.
    EndBar,
    /// Tells the sender that all before has been shown.
    Flush(SyncSender<()>),
}

static QUEUED: OnceLock<Option<SyncSender<Message>>> = OnceLock::new();
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Shows a line.
pub(crate) fn say(line: impl Into<String>) {
    post(Message::Line(line.into()));
}

/// Whether stages show a bar.
pub(crate) fn has_bar() -> bool {
    std::io::stderr().is_terminal()
}

/// Moves the bar of `stage`.
pub(crate) fn bar(stage: &'static str, step: u64, steps: u64, text: String) {
    post(Message::Bar { stage, step, steps, text });
}

/// Leaves the bar as it is; the next stage has one of its own.
pub(crate) fn end_bar() {
    post(Message::EndBar);
}

/// Waits until everything has been shown, for at most `patience`.
pub(crate) fn flush(patience: Duration) {
    let Some(queue) = queue() else { return };
    let deadline = Instant::now() + patience;
    let (shown, all_shown) = sync_channel(1);
    let mut message = Message::Flush(shown);
    while let Err(TrySendError::Full(unsent)) = queue.try_send(message) {
        if Instant::now() >= deadline {
            return;
        }
        message = unsent;
        thread::sleep(RETRY);
    }
    // Nobody is waited for beyond the patience.
    let _ = all_shown.recv_timeout(deadline.saturating_duration_since(Instant::now()));
}

fn post(message: Message) {
    let unsent = queue().map(|queue| queue.try_send(message));
    if matches!(unsent, Some(Err(TrySendError::Full(Message::Line(_))))) {
        LEFT_OUT.fetch_add(1, Ordering::Relaxed);
    }
}

/// The queue of the thread that shows; none where no thread could be had.
fn queue() -> Option<&'static SyncSender<Message>> {
    let start = || {
        let (sender, receiver) = sync_channel(QUEUE);
        thread::Builder::new().name("console".to_owned()).spawn(move || show(&receiver)).ok().map(|_| sender)
    };
    QUEUED.get_or_init(start).as_ref()
}

fn show(messages: &Receiver<Message>) {
    let mut bar: Option<ProgressBar> = None;
    for message in messages {
        match message {
            Message::Line(line) => {
                let left_out = LEFT_OUT.swap(0, Ordering::Relaxed);
                if left_out > 0 {
                    write(bar.as_ref(), &format!("({left_out} lines were left out: nobody read them in time)"));
                }
                write(bar.as_ref(), &line);
            }
            Message::Bar { stage, step, steps, text } => {
                let bar = bar.get_or_insert_with(|| new_bar(stage));
                bar.set_length(steps);
                bar.set_message(text);
                bar.set_position(step);
            }
            Message::EndBar => {
                if let Some(bar) = bar.take() {
                    bar.abandon();
                }
            }
            Message::Flush(shown) => {
                // Whoever asked may have gone on.
                let _ = shown.try_send(());
            }
        }
    }
}

fn new_bar(stage: &'static str) -> ProgressBar {
    let style = "{prefix:>13} {bar:30} {pos:>5}/{len:5} {elapsed:>4} {msg}";
    let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::no_length().with_style(style).with_prefix(stage)
}

/// Writes a line above the bar, if there is one. A reader that is gone has nothing left to read.
fn write(bar: Option<&ProgressBar>, line: &str) {
    match bar {
        Some(bar) => bar.println(line),
        None => {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}

//! What a stage shows while it runs: a bar on a terminal, plain lines elsewhere, all on standard error; and the metrics
//! log that it writes at the same time.

use crate::failure::Failure;
use indicatif::{ProgressBar, ProgressStyle};
use saddle_store::{MetricsLog, RunDirectory, StoreError};
use saddle_training::Observer;
use std::collections::BTreeMap;
use std::io::IsTerminal;

/// Plain lines that a stage prints from its first step to its last.
const PLAIN_LINES: u64 = 10;

/// Watches one stage.
pub(crate) struct Progress {
    stage: &'static str,
    shown: &'static [&'static str],
    log: MetricsLog,
    bar: Option<ProgressBar>,
    latest: BTreeMap<&'static str, f64>,
    waits: String,
    failure: Option<StoreError>,
}

impl Progress {
    /// Starts the metrics of `run`. Those in `shown` are shown, each as it was last measured.
    pub(crate) fn start(
        stage: &'static str,
        shown: &'static [&'static str],
        run: &RunDirectory,
    ) -> Result<Self, Failure> {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = "{prefix:>13} {bar:30} {pos:>5}/{len:5} {elapsed:>4} {msg}";
            let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::no_length().with_style(style).with_prefix(stage)
        });
        let log = run.start_metrics()?;
        Ok(Self { stage, shown, log, bar, latest: BTreeMap::new(), waits: String::new(), failure: None })
    }

    /// Ends the display, and says if the log could not be written.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
        self.failure.map_or(Ok(()), |error| Err(error.into()))
    }

    fn line(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.println(format!("{:>13} {message}", self.stage)),
            None => say(&format!("{:>13} {message}", self.stage)),
        }
    }
}

impl Observer for Progress {
    fn step(&mut self, step: u64, steps: u64, metrics: &[(String, f64)]) {
        let named: Vec<(&str, f64)> = metrics.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        if let Err(error) = self.log.record(step, &named) {
            self.failure.get_or_insert(error);
        }
        for name in self.shown {
            if let Some((_, value)) = named.iter().find(|(known, _)| known == name) {
                self.latest.insert(name, *value);
            }
        }
        let latest = |name: &&'static str| self.latest.get(name).map(|value| format!("{name} {value:.3}"));
        let shown = self.shown.iter().filter_map(latest);
        let waits = Some(std::mem::take(&mut self.waits)).filter(|waits| !waits.is_empty());
        let shown = shown.chain(waits).collect::<Vec<_>>().join("  ");
        match &self.bar {
            Some(bar) => {
                bar.set_length(steps);
                bar.set_message(shown);
                bar.set_position(step);
            }
            None if step == steps || step.is_multiple_of(steps.div_ceil(PLAIN_LINES)) => {
                self.line(&format!("{step}/{steps}  {shown}"))
            }
            None => {}
        }
    }

    fn waits(&mut self, text: &str) {
        text.clone_into(&mut self.waits);
    }

    fn note(&mut self, message: &str) {
        self.line(message);
    }
}

/// One line for the person at the terminal, on standard error.
#[expect(clippy::print_stderr, reason = "the one place where progress is shown without a bar")]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}

//! What a stage shows while it runs: a bar on a terminal, plain lines elsewhere, all on standard error; and the metrics
//! log that it writes at the same time.

use crate::console;
use crate::failure::Failure;
use crate::interrupt;
use saddle_store::{MetricsLog, RunDirectory, StoreError};
use saddle_training::Observer;
use std::collections::BTreeMap;

/// Plain lines that a stage prints from its first step to its last.
const PLAIN_LINES: u64 = 10;

/// Watches one stage.
pub(crate) struct Progress {
    stage: &'static str,
    shown: &'static [&'static str],
    log: MetricsLog,
    latest: BTreeMap<&'static str, f64>,
    waits: String,
    /// Rows of metrics that could not be written, with the first reason.
    unwritten: Option<(u64, StoreError)>,
    /// The last step, and how many there were to be.
    steps: (u64, u64),
    /// Whether the stage was told to leave before its last step.
    leaves: bool,
}

impl Progress {
    /// Starts the metrics of `run`. Those in `shown` are shown, each as it was last measured.
    pub(crate) fn start(
        stage: &'static str,
        shown: &'static [&'static str],
        run: &RunDirectory,
    ) -> Result<Self, Failure> {
        let log = run.start_metrics()?;
        let (latest, waits, unwritten, steps, leaves) = Default::default();
        Ok(Self { stage, shown, log, latest, waits, unwritten, steps, leaves })
    }

    /// Ends the display of a stage whose model is saved in `run`. Says if metrics were lost, or if the stage was told to leave
    /// before its last step.
    pub(crate) fn finish(self, run: &RunDirectory) -> Result<(), Failure> {
        console::end_bar();
        if let Some((rows, error)) = self.unwritten {
            return Err(Failure::Environment(format!("{rows} rows of metrics could not be written: {error}")));
        }
        let ((step, steps), path) = (self.steps, run.model_path());
        let what = if self.stage == "train" { "update" } else { "step" };
        match self.leaves && step < steps {
            true => Err(Failure::Interrupted(format!(
                "told to leave after {what} {step} of {steps}; its model is in {}",
                path.display()
            ))),
            false => Ok(()),
        }
    }

    /// The stage ends before its last step, because somebody told it to.
    pub(crate) fn leave(&mut self) {
        self.leaves = true;
    }

    fn line(&self, message: &str) {
        console::say(format!("{:>13} {message}", self.stage));
    }

    fn record(&mut self, step: u64, metrics: &[(&str, f64)]) {
        let Err(error) = self.log.record(step, metrics) else { return };
        match &mut self.unwritten {
            Some((rows, _)) => *rows += 1,
            None => {
                self.line(&format!("ALARM metrics of step {step} could not be written; training goes on: {error}"));
                self.unwritten = Some((1, error));
            }
        }
    }
}

impl Observer for Progress {
    fn step(&mut self, step: u64, steps: u64, metrics: &[(String, f64)]) {
        let named: Vec<(&str, f64)> = metrics.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        self.record(step, &named);
        self.steps = (step, steps);
        for name in self.shown {
            if let Some((_, value)) = named.iter().find(|(known, _)| known == name) {
                self.latest.insert(name, *value);
            }
        }
        let latest = |name: &&'static str| self.latest.get(name).map(|value| format!("{name} {value:.3}"));
        let shown = self.shown.iter().filter_map(latest);
        let waits = Some(std::mem::take(&mut self.waits)).filter(|waits| !waits.is_empty());
        let shown = shown.chain(waits).collect::<Vec<_>>().join("  ");
        if console::has_bar() {
            console::bar(self.stage, step, steps, shown);
        } else if step == steps || step.is_multiple_of(steps.div_ceil(PLAIN_LINES)) {
            self.line(&format!("{step}/{steps}  {shown}"));
        }
    }

    fn waits(&mut self, text: &str) {
        text.clone_into(&mut self.waits);
    }

    fn note(&mut self, message: &str) {
        self.line(message);
    }

    fn is_told_to_leave(&mut self) -> bool {
        self.leaves |= interrupt::is_asked();
        self.leaves
    }
}

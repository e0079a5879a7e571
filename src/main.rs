//! `saddle`: trains language models to be helpful and harmless. The program is composition only; see ARCHITECTURE.md.

mod cli;
mod commands;
mod config;
mod console;
mod demo;
mod environment;
mod evaluation;
mod failure;
mod interrupt;
mod progress;
mod reference;
mod run;
mod stages;
mod table;

use clap::Parser;
use failure::Failure;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// For what was said to reach the terminal.
const FAREWELL: Duration = Duration::from_secs(1);

fn main() {
    let cli = cli::Cli::parse();
    environment::complete();
    // The panic has said what it was about.
    let panicked = |_| Err(Failure::run("a bug ended the program; please report the message above"));
    let code = match catch_unwind(AssertUnwindSafe(|| commands::run(cli))).unwrap_or_else(panicked) {
        Ok(()) => 0,
        Err(failure) => failure.report(),
    };
    // A reader that is gone has nothing left to read.
    let _ = std::io::stdout().flush();
    console::flush(FAREWELL);
    // Without destructors: a stage that hangs may still compute with what libtorch's would take away. Files are closed.
    signal_hook::low_level::exit(code.into());
}

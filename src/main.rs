//! `saddle`: trains language models to be helpful and harmless. The program is composition only; see ARCHITECTURE.md.

mod cli;
mod commands;
mod config;
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
use std::io::Write;

fn main() {
    let cli = cli::Cli::parse();
    environment::complete();
    let code = match commands::run(cli) {
        Ok(()) => 0,
        Err(failure) => failure.report(),
    };
    // A reader that is gone has nothing left to read.
    let _ = std::io::stdout().flush();
    // Without destructors: a stage that hangs may still compute with what libtorch's would take away. Files are closed.
    signal_hook::low_level::exit(code.into());
}

//! `saddle`: trains language models to be helpful and harmless. The program is composition only; see ARCHITECTURE.md.

mod cli;
mod commands;
mod config;
mod demo;
mod evaluation;
mod failure;
mod interrupt;
mod progress;
mod reference;
mod run;
mod stages;
mod table;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match commands::run(cli::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

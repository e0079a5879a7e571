//! Beginning a run: its directory, the record of configuration and machine, the device.

use crate::failure::Failure;
use saddle_core::Problems;
use saddle_libtorch as libtorch;
use saddle_store::{Machine, RunDirectory};
use saddle_training::config::RunSection;
use serde::Serialize;
use std::path::Path;
use tch::Device;

/// [`begin`], unless an input of the run lies in the directory, which may be written over.
pub(crate) fn begin_apart_from_inputs(
    path: &Path,
    overwrite: bool,
    config: &impl Serialize,
) -> Result<RunDirectory, Failure> {
    let inside = std::fs::canonicalize(path).ok().and_then(|path| {
        let mut inputs = inputs(&toml::Value::try_from(config).ok()?, "");
        inputs.retain(|(_, input)| std::fs::canonicalize(input).is_ok_and(|input| input.starts_with(&path)));
        inputs.into_iter().next()
    });
    match inside {
        Some((key, input)) => Err(Failure::usage(format!(
            "{key} = {input:?} lies in the run's own directory {}: name another directory by --run",
            path.display()
        ))),
        None => begin(path, overwrite, config),
    }
}

/// Refuses a configuration whose files, models or device are not there, with all that is missing.
pub(crate) fn require_inputs(config: &impl Serialize) -> Result<(), Failure> {
    let value = toml::Value::try_from(config).map_err(Failure::run)?;
    let mut problems = Problems::default();
    for (key, input) in inputs(&value, "") {
        let there = std::fs::metadata(&input);
        problems.require(there.is_ok(), &key, format!("there is no {input}"));
    }
    if let Some(device) = value.get("run").and_then(|run| run.get("device")).and_then(toml::Value::as_str)
        && let Err(error) = libtorch::device(device)
    {
        problems.require(false, "run.device", error.to_string());
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::usage(format!("this run would not start:\n{problems}"))) }
}

/// Files and directories that a configuration reads, with their keys.
fn inputs(value: &toml::Value, key: &str) -> Vec<(String, String)> {
    let under = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        toml::Value::Table(table) => table
            .iter()
            .flat_map(|(name, value)| match value {
                toml::Value::String(path) if matches!(name.as_str(), "from" | "path" | "control_token_file") => {
                    vec![(under(name), path.clone())]
                }
                value => inputs(value, &under(name)),
            })
            .collect(),
        toml::Value::Array(values) => {
            values.iter().enumerate().flat_map(|(place, value)| inputs(value, &format!("{key}[{place}]"))).collect()
        }
        _ => Vec::new(),
    }
}

/// Makes the run directory at `path` with the resolved `config` and the machine's facts in it.
pub(crate) fn begin(path: &Path, overwrite: bool, config: &impl Serialize) -> Result<RunDirectory, Failure> {
    let run = if overwrite { RunDirectory::overwrite(path)? } else { RunDirectory::create(path)? };
    run.write_config(&to_toml(config)?)?;
    run.write_machine(&machine())?;
    Ok(run)
}

/// The configuration with all its defaults, as a recipe that makes the same run again.
pub(crate) fn to_toml(config: &impl Serialize) -> Result<String, Failure> {
    toml::to_string_pretty(config).map_err(Failure::run)
}

/// This machine, for the record of a run.
pub(crate) fn machine() -> Machine {
    Machine::read(libtorch::version().unwrap_or_else(|error| error.to_string()))
}

/// Sets the threads of this thread's tensor operations, finds the device, and makes equal runs give equal bits.
pub(crate) fn device(section: &RunSection) -> Result<Device, Failure> {
    if section.threads > 0 {
        libtorch::set_threads(section.threads)?;
    }
    let device = libtorch::device(&section.device)?;
    libtorch::use_deterministic_algorithms(true)?;
    Ok(device)
}

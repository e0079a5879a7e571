//! What a run was made on: enough to read its timings by, nothing that identifies a person or place.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::StoreError;

/// Facts of the machine. What the operating system does not tell is `unknown`, or zero bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// The processor's model name.
    pub cpu_model: String,
    /// Cores that this process may use.
    pub cpu_cores: usize,
    /// Memory of the machine, in bytes.
    pub memory_bytes: u64,
    /// The operating system's name and version.
    pub operating_system: String,
    /// The processor architecture.
    pub architecture: String,
    /// The version of saddle that made the run.
    pub saddle_version: String,
    /// The version of libtorch that it ran on.
    pub libtorch_version: String,
}

impl Machine {
    /// Reads this machine's facts. Never fails.
    pub fn read(libtorch_version: impl Into<String>) -> Machine {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let cpu = text("/proc/cpuinfo");
        let memory = text("/proc/meminfo");
        let system = text("/etc/os-release");
        Machine {
            cpu_model: known(field(&cpu, ':', "model name")),
            cpu_cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: field(&memory, ':', "MemTotal").and_then(kibibytes).unwrap_or(0),
            operating_system: known(field(&system, '=', "PRETTY_NAME")),
            architecture: std::env::consts::ARCH.to_owned(),
            saddle_version: env!("CARGO_PKG_VERSION").to_owned(),
            libtorch_version: libtorch_version.into(),
        }
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut json =
            serde_json::to_vec_pretty(self).expect("a struct of strings and numbers is always writable to memory");
        json.push(b'\n');
        json
    }

    pub(crate) fn from_json_file(path: &Path) -> Result<Machine, StoreError> {
        let json = fs::read(path).map_err(StoreError::io(path))?;
        serde_json::from_slice(&json).map_err(|error| StoreError::Malformed {
            path: path.to_owned(),
            line: error.line(),
            reason: error.to_string(),
        })
    }
}

/// The most memory that this process has had resident at once, in bytes; none where the operating system does not tell.
pub fn peak_memory_bytes() -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, ':', "VmHWM").and_then(kibibytes)
}

/// The value of the first `name<separator>value` line of a system file, quotes taken off.
fn field<'a>(text: &'a str, separator: char, name: &str) -> Option<&'a str> {
    let mut lines = text.lines().filter_map(|line| line.split_once(separator));
    lines.find(|(found, _)| found.trim() == name).map(|(_, value)| value.trim().trim_matches('"'))
}

fn known(value: Option<&str>) -> String {
    value.unwrap_or("unknown").to_owned()
}

/// `16 kB` in bytes (the kernel's kB are 1024 bytes).
fn kibibytes(size: &str) -> Option<u64> {
    size.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_files_are_read_line_by_line_and_the_first_processor_counts() {
        let cpu = "processor\t: 0\nmodel name\t: A: fast\n\nmodel name\t: B\n";
        assert_eq!(field(cpu, ':', "model name"), Some("A: fast"));
        assert_eq!(field("PRETTY_NAME=\"Some Linux 1\"", '=', "PRETTY_NAME"), Some("Some Linux 1"));
        assert_eq!(field(cpu, ':', "MemTotal"), None);
        assert_eq!(kibibytes("16 kB"), Some(16_384));
        assert_eq!(kibibytes("many"), None);
    }

    #[test]
    fn the_peak_of_memory_counts_what_was_written_and_given_back() {
        let before = peak_memory_bytes().unwrap();
        drop(std::hint::black_box(vec![1u8; 64 << 20]));
        let after = peak_memory_bytes().unwrap();
        assert!(after >= 64 << 20 && after >= before, "{before} {after}");
    }

    #[test]
    fn a_machine_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let run = crate::RunDirectory::create(folder.path()).unwrap();
        let machine = Machine::read("2.11.0");
        run.write_machine(&machine).unwrap();
        assert_eq!(run.read_machine().unwrap(), machine);
        assert_eq!(machine.libtorch_version, "2.11.0");
    }

    #[test]
    fn a_broken_machine_file_is_an_error_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("machine.json");
        fs::write(&path, "{\n  \"cpu_cores\": \"two\"\n}").unwrap();
        let error = Machine::from_json_file(&path).unwrap_err().to_string();
        assert!(error.contains("machine.json:2: "), "{error}");
    }
}

//! Memory for what a file says that it holds. A size from a file is a claim: it is compared with what the machine has before
//! memory is taken, since a system that gives more than it has ends the program later, without a word.

use crate::LmError;
use std::fs;
use std::path::Path;

/// Claims below this are not compared: they are granted anyway.
const SMALL_BYTES: u64 = 256 << 20;

/// Zeroed bytes for the tensor `name` of the file `path`.
///
/// # Errors
/// [`LmError::StoredTensor`] if there is no memory for them.
pub(crate) fn buffer(bytes: usize, name: &str, path: &Path) -> Result<Vec<u8>, LmError> {
    let refuse = |message| LmError::StoredTensor { path: path.to_owned(), tensor: name.to_owned(), message };
    require(bytes as u64).map_err(refuse)?;
    let mut buffer = Vec::new();
    let reserved = buffer.try_reserve_exact(bytes);
    reserved.map_err(|error| refuse(format!("takes {}: {error}", gibibytes(bytes as u64))))?;
    buffer.resize(bytes, 0);
    Ok(buffer)
}

/// Checks that the `bytes` of all tensors that are to be read from `path` fit in memory together.
///
/// # Errors
/// [`LmError::Model`] if they do not.
pub(crate) fn require_for_weights(bytes: u64, path: &Path) -> Result<(), LmError> {
    require(bytes).map_err(|message| LmError::Model { path: path.to_owned(), message })
}

fn require(bytes: u64) -> Result<(), String> {
    if bytes <= SMALL_BYTES {
        return Ok(());
    }
    match available_bytes() {
        Some(available) if available < bytes => Err(format!(
            "takes {} of memory and {} are free; use a smaller model, or a machine with more memory",
            gibibytes(bytes),
            gibibytes(available)
        )),
        _ => Ok(()),
    }
}

fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// What the machine has left, or all that the container may have where that is less; none where the system does not say.
fn available_bytes() -> Option<u64> {
    let machine = available_in(&fs::read_to_string("/proc/meminfo").ok()?)?;
    // What a container uses counts its cache of files too, which gives way: only its limit says something.
    let container = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    Some(container.map_or(machine, |container: u64| container.min(machine)))
}

/// Free memory and free swap.
fn available_in(meminfo: &str) -> Option<u64> {
    let bytes = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    };
    Some(bytes("MemAvailable")? + bytes("SwapFree").unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_there_is_is_refused_with_both_sizes_and_small_sizes_are_granted() {
        assert_eq!(buffer(3, "a", Path::new("x")).unwrap(), [0; 3]);
        let error = buffer(1 << 50, "a", Path::new("x.safetensors")).unwrap_err().to_string();
        for part in ["x.safetensors", "tensor a", "takes 1048576.0 GiB", "are free"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(require_for_weights(1 << 50, Path::new("x")).is_err());
        assert!(require_for_weights(SMALL_BYTES, Path::new("x")).is_ok());
    }

    #[test]
    fn the_free_memory_is_what_the_system_can_give() {
        assert_eq!(available_in("MemFree: 1 kB\nMemAvailable:    600 kB\n"), Some(614_400));
        assert_eq!(available_in("MemAvailable: 599 kB\nSwapFree: 1 kB\n"), Some(614_400));
        assert_eq!(available_in("MemTotal: 9 kB\n"), None);
    }
}

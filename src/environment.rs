//! What OpenMP and the C library read when a program starts. The program sets it itself, whatever starts it: without, it is
//! several times slower on a machine that other work loads.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// One list for the program, the Makefile and the scripts.
const SETTINGS: &str = include_str!("../scripts/environment.mk");

/// Starts the program anew, in the same process, with what its environment lacks. Comes back where nothing is lacking, or where it
/// cannot be done: then the program goes on as it is.
pub(crate) fn complete() {
    let lacking: Vec<_> = settings().filter(|(name, _)| env::var_os(name).is_none()).collect();
    let mut words = env::args_os();
    if let (Some(name), false) = (words.next(), lacking.is_empty()) {
        let _ = Command::new("/proc/self/exe").arg0(name).args(words).envs(lacking).exec();
    }
}

/// Names and values. Whoever sets one has the last word.
fn settings() -> impl Iterator<Item = (&'static str, &'static str)> {
    SETTINGS.lines().filter_map(|line| line.strip_prefix("export ")?.split_once(" ?= "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read() {
        let names: Vec<&str> = settings().map(|(name, _)| name).collect();
        assert_eq!(names, ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"]);
        assert!(settings().all(|(_, value)| !value.is_empty()));
    }
}

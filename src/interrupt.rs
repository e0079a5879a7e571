//! TERM, INT and HUP: the first asks a stage to save what there is and to leave, a second one that comes a second later or more leaves
//! at once. A service manager may send the same signal twice, so that two within a second are one.
//!
//! HUP is heeded where the process has a terminal, which is then gone, and nobody asked for it to be ignored (`nohup`).

use crate::failure::Failure;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::File;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Exit code of a run that was told to leave.
pub(crate) const EXIT_CODE: u8 = 130;
/// Signals that come closer together are one.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

static ASKED: AtomicBool = AtomicBool::new(false);
static LISTENING: OnceLock<()> = OnceLock::new();

/// Listens from now on, until the process ends. Listening already is well.
pub(crate) fn listen() -> Result<(), Failure> {
    if LISTENING.set(()).is_err() {
        return Ok(());
    }
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(Failure::environment)?;
    if has_terminal() && !is_ignored(SIGHUP) {
        signals.add_signal(SIGHUP).map_err(Failure::environment)?;
    }
    let heed = move || {
        let mut first = None;
        for _ in signals.forever() {
            ASKED.store(true, Ordering::Relaxed);
            if first.get_or_insert_with(Instant::now).elapsed() >= ONE_SIGNAL {
                // Without destructors: stages are still computing with what they would take away.
                signal_hook::low_level::exit(EXIT_CODE.into());
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(heed).map_err(Failure::environment)?;
    Ok(())
}

/// Whether the process was asked to leave.
pub(crate) fn is_asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

/// Whether whoever started the process wants it to ignore this signal.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored(&status).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// The mask of ignored signals in `/proc/PID/status`; the lowest bit is signal 1.
fn ignored(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_are_ignored_are_read_from_the_processs_status() {
        let mask = ignored("Name:\tsaddle\nSigIgn:\t0000000000001001\nSigCgt:\t0\n").unwrap();
        assert_eq!((mask & 1, mask >> 1 & 1, mask >> 12 & 1), (1, 0, 1));
        assert_eq!(ignored("Name:\tsaddle\n"), None);
    }
}

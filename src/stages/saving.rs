//! Saving a model so that it is not lost: where it cannot be written, it is tried again, and then it goes elsewhere.

use crate::console;
use crate::failure::Failure;
use saddle_store::RunDirectory;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Tries in the run's own directory.
const TRIES: u32 = 3;
/// Between two of them: somebody may make room.
const PAUSE: Duration = Duration::from_secs(5);

/// Writes a run's model by `write`, which is given its directory. Returns where it is.
///
/// # Errors
/// The first reason, if the model could be written nowhere.
pub(super) fn save_model(run: &RunDirectory, write: impl Fn(&Path) -> Result<(), Failure>) -> Result<PathBuf, Failure> {
    save(&run.model_path(), &elsewhere(), PAUSE, write)
}

fn elsewhere() -> PathBuf {
    std::env::temp_dir().join(format!("saddle-{}", std::process::id())).join("model")
}

fn save(
    path: &Path,
    elsewhere: &Path,
    pause: Duration,
    write: impl Fn(&Path) -> Result<(), Failure>,
) -> Result<PathBuf, Failure> {
    let mut first = None;
    for attempt in 1..=TRIES {
        match write(path) {
            Ok(()) => return Ok(path.to_owned()),
            // Trying again would not help.
            Err(failure) if !matches!(failure, Failure::Environment(_)) => return Err(failure),
            Err(failure) => {
                console::say(format!("ALARM the model cannot be saved (try {attempt} of {TRIES}): {failure}"));
                first.get_or_insert(failure);
                if attempt < TRIES {
                    thread::sleep(pause);
                }
            }
        }
    }
    let reason = first.unwrap_or_else(|| Failure::run("the model cannot be saved"));
    match write(elsewhere) {
        Ok(()) => Err(reason.and(&format!("the model is in {} instead", elsewhere.display()))),
        Err(error) => Err(reason.and(&format!("nor can it be saved elsewhere: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn saved(fails: impl Fn(&Path, usize) -> bool) -> (Result<PathBuf, String>, Vec<PathBuf>) {
        let tried: RefCell<Vec<PathBuf>> = RefCell::default();
        let write = |path: &Path| {
            tried.borrow_mut().push(path.to_owned());
            let full = fails(path, tried.borrow().len());
            if full { Err(Failure::environment("no space left on device")) } else { Ok(()) }
        };
        let saved = save(Path::new("run/model"), Path::new("tmp/model"), Duration::ZERO, write);
        (saved.map_err(|failure| failure.to_string()), tried.into_inner())
    }

    #[test]
    fn a_model_that_cannot_be_written_is_tried_again_and_then_goes_elsewhere() {
        let (path, tried) = saved(|_, attempt| attempt < 3);
        assert_eq!((path, tried.len()), (Ok(PathBuf::from("run/model")), 3));
        let (error, tried) = saved(|path, _| path.starts_with("run"));
        assert_eq!(tried.last().unwrap(), Path::new("tmp/model"));
        assert_eq!(error.unwrap_err(), "no space left on device; the model is in tmp/model instead");
        let (error, _) = saved(|_, _| true);
        assert!(error.unwrap_err().contains("nor can it be saved elsewhere"));
    }
}

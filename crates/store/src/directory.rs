//! Where each part of a run lies, and the rules that no run is overwritten by accident, that none is removed before there is another in
//! its place, and that one process at a time writes it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::lock::{LOCK_FILE, Lock};

use crate::files::{to_json_lines, write_whole};
use crate::{EvaluationLog, EvaluationRecord, Machine, MetricsLog, ResponseRecord, StoreError, read_evaluations};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;

/// What the policy beside it came to.
const EVALUATION_FILE: &str = "evaluation.json";

/// The resolved configuration, which marks a directory as a run.
const CONFIG_FILE: &str = "config.toml";
/// Where a run waits that is about to be replaced.
const REPLACED: &str = "replaced";

/// One run's directory. The layout is in the crate's own documentation.
#[derive(Clone, Debug)]
pub struct RunDirectory {
    path: PathBuf,
    /// While this process writes it.
    _lock: Option<Arc<Lock>>,
}

impl RunDirectory {
    /// Makes an empty directory for a new run, with the folders above it.
    ///
    /// # Errors
    /// [`StoreError::Occupied`] if anything is already there, [`StoreError::Locked`] if another process writes it; I/O
    /// errors with their path.
    pub fn create(path: impl Into<PathBuf>) -> Result<RunDirectory, StoreError> {
        let path = path.into();
        make(&path)?;
        if is_empty(&path)? { Self::locked(path) } else { Err(StoreError::Occupied { path }) }
    }

    /// Makes a directory for a new run where an earlier run may be. That one is set aside, and removed by
    /// [`RunDirectory::complete`]; files that are not a run's are left alone.
    ///
    /// # Errors
    /// [`StoreError::NotARun`] if the directory holds something that is not a run, so that a mistyped
    /// path costs nobody their files; [`StoreError::Locked`] if another process writes it; I/O errors with their path.
    pub fn overwrite(path: impl Into<PathBuf>) -> Result<RunDirectory, StoreError> {
        let path = path.into();
        make(&path)?;
        let replaced = path.join(REPLACED);
        let is_run = path.join(CONFIG_FILE).is_file() || replaced.join(CONFIG_FILE).is_file();
        if !is_run && !is_empty(&path)? {
            return Err(StoreError::NotARun { path });
        }
        let run = Self::locked(path)?;
        if !is_run {
            return Ok(run);
        }
        if replaced.is_dir() {
            // An earlier try to replace it did not come to its end. What it left is worth more only if it has a model.
            match run.model_path().is_dir() {
                true => remove(&replaced)?,
                false => {
                    run.clear()?;
                    return Ok(run);
                }
            }
        }
        fs::create_dir(&replaced).map_err(StoreError::io(&replaced))?;
        run.move_parts(&run.path, &replaced)?;
        Ok(run)
    }

    fn locked(path: PathBuf) -> Result<RunDirectory, StoreError> {
        let lock = Lock::take(&path)?;
        Ok(RunDirectory { path, _lock: Some(Arc::new(lock)) })
    }

    /// The run has come to its end: the one that it replaces is removed.
    pub fn complete(&self) -> Result<(), StoreError> {
        remove(&self.path.join(REPLACED))
    }

    /// Removes the run if nothing has come of it: it has no metrics and no model. The run that it was to replace is put back. Files
    /// that are not a run's stay, and the directory with them.
    pub fn remove_unless_begun(self) -> Result<(), StoreError> {
        let metrics = fs::metadata(self.metrics_path()).map_or(0, |metadata| metadata.len());
        if metrics > 0 || self.model_path().is_dir() {
            return Ok(());
        }
        self.clear()?;
        let replaced = self.path.join(REPLACED);
        if replaced.is_dir() {
            self.move_parts(&replaced, &self.path)?;
            return remove(&replaced);
        }
        if is_empty(&self.path)? {
            remove(&self.path.join(LOCK_FILE))?;
            fs::remove_dir(&self.path).map_err(StoreError::io(&self.path))?;
        }
        Ok(())
    }

    /// Moves the files of a run from one directory to another.
    fn move_parts(&self, from: &Path, to: &Path) -> Result<(), StoreError> {
        for part in self.parts() {
            let name = part.strip_prefix(&self.path).unwrap_or(&part);
            let (from, to) = (from.join(name), to.join(name));
            if fs::symlink_metadata(&from).is_ok() {
                fs::rename(&from, &to).map_err(StoreError::io(&from))?;
            }
        }
        Ok(())
    }

    /// Removes the files of the run. The configuration marks the directory as a run: it goes last, so that an interrupted
    /// removal can be repeated.
    fn clear(&self) -> Result<(), StoreError> {
        self.parts().iter().try_for_each(|part| remove(part))
    }

    /// Everything that belongs to a run; its configuration is the last.
    fn parts(&self) -> [PathBuf; 12] {
        [
            self.machine_path(),
            self.metrics_path(),
            self.tensorboard_path(),
            self.model_path(),
            self.best_path(),
            self.adapter_path(),
            self.evaluations_path(),
            self.samples_path(),
            self.verdicts_path(),
            self.responses_path(),
            self.report_path(),
            self.config_path(),
        ]
    }

    /// Opens the directory of a run that was made before.
    ///
    /// # Errors
    /// [`StoreError::NotARun`] if it has no `config.toml`.
    pub fn open(path: impl Into<PathBuf>) -> Result<RunDirectory, StoreError> {
        let run = RunDirectory { path: path.into(), _lock: None };
        if run.config_path().is_file() { Ok(run) } else { Err(StoreError::NotARun { path: run.path }) }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved configuration.
    pub fn config_path(&self) -> PathBuf {
        self.path.join(CONFIG_FILE)
    }

    /// The machine's facts.
    pub fn machine_path(&self) -> PathBuf {
        self.path.join("machine.json")
    }

    /// The metrics, one JSON object a line.
    pub fn metrics_path(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The folder to point TensorBoard at.
    pub fn tensorboard_path(&self) -> PathBuf {
        self.path.join("tensorboard")
    }

    /// The trained model, in the Hugging Face layout.
    pub fn model_path(&self) -> PathBuf {
        self.path.join("model")
    }

    /// The best policy that was seen to keep every limit, in the Hugging Face layout.
    pub fn best_path(&self) -> PathBuf {
        self.path.join("best")
    }

    /// The evaluations along the way, one JSON object a line.
    pub fn evaluations_path(&self) -> PathBuf {
        self.path.join("evaluations.jsonl")
    }

    /// What the run came to for each constraint.
    pub fn verdicts_path(&self) -> PathBuf {
        self.path.join("verdict.json")
    }

    /// Answers of the evaluations, one JSON object a line.
    pub fn samples_path(&self) -> PathBuf {
        self.path.join("samples.jsonl")
    }

    /// The adapters of the trained model, if it has any, in PEFT's layout.
    pub fn adapter_path(&self) -> PathBuf {
        self.path.join("adapter")
    }

    /// The evaluation answers, one JSON object a line.
    pub fn responses_path(&self) -> PathBuf {
        self.path.join("responses.jsonl")
    }

    /// The report.
    pub fn report_path(&self) -> PathBuf {
        self.path.join("report.html")
    }

    /// Writes the resolved configuration, which makes the directory a run: do it first.
    pub fn write_config(&self, config_toml: &str) -> Result<(), StoreError> {
        write_whole(&self.config_path(), config_toml.as_bytes())
    }

    /// Reads the resolved configuration back.
    pub fn read_config(&self) -> Result<String, StoreError> {
        let path = self.config_path();
        fs::read_to_string(&path).map_err(StoreError::io(&path))
    }

    /// Writes the facts of the machine.
    pub fn write_machine(&self, machine: &Machine) -> Result<(), StoreError> {
        write_whole(&self.machine_path(), &machine.to_json())
    }

    /// Reads the facts of the machine that the run was made on.
    pub fn read_machine(&self) -> Result<Machine, StoreError> {
        Machine::from_json_file(&self.machine_path())
    }

    /// Writes the evaluation answers, in the order given.
    ///
    /// # Errors
    /// [`StoreError::NonFiniteScore`] if a score is not finite, which JSON cannot hold.
    pub fn write_responses(&self, responses: &[ResponseRecord]) -> Result<(), StoreError> {
        for (index, response) in responses.iter().enumerate() {
            response.check_scores(index)?;
        }
        write_whole(&self.responses_path(), &to_json_lines(responses))
    }

    /// Writes what the run came to for each constraint.
    pub fn write_verdicts(&self, verdicts: &[impl Serialize]) -> Result<(), StoreError> {
        let text =
            serde_json::to_vec_pretty(verdicts).map_err(|error| StoreError::io(&self.verdicts_path())(error.into()))?;
        write_whole(&self.verdicts_path(), &text)
    }

    /// Writes the report.
    pub fn write_report(&self, html: &str) -> Result<(), StoreError> {
        write_whole(&self.report_path(), html.as_bytes())
    }

    /// Starts the run's metrics, in both formats; the run's clock starts now.
    pub fn start_metrics(&self) -> Result<MetricsLog, StoreError> {
        MetricsLog::create(&self.metrics_path(), &self.tensorboard_path())
    }

    /// Puts the policy that `fill` writes, and what it came to, into `best/`, in one step: whoever reads sees the old one or
    /// the new one.
    ///
    /// # Errors
    /// I/O errors, or whatever `fill` returns; the old one then stays.
    pub fn replace_best<E: From<StoreError>>(
        &self,
        evaluation: &EvaluationRecord,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let (best, next) = (self.best_path(), self.path.join("best.partial"));
        remove(&next)?;
        fs::create_dir(&next).map_err(StoreError::io(&next))?;
        fill(&next)?;
        write_whole(&next.join(EVALUATION_FILE), &to_json_lines(std::slice::from_ref(evaluation)))?;
        let swap = if best.is_dir() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        renameat_with(CWD, &next, CWD, &best, swap).map_err(|error| StoreError::io(&best)(error.into()))?;
        Ok(remove(&next)?)
    }

    /// What the policy in `best/` came to; `None` where no policy was seen to keep every limit.
    pub fn read_best(&self) -> Result<Option<EvaluationRecord>, StoreError> {
        Ok(read_evaluations(&self.best_path().join(EVALUATION_FILE))?.pop())
    }

    /// Starts the run's evaluations.
    pub fn start_evaluations(&self) -> Result<EvaluationLog, StoreError> {
        EvaluationLog::create(self.evaluations_path(), self.samples_path())
    }
}

/// Makes the directory of a run, with the folders above it.
fn make(path: &Path) -> Result<(), StoreError> {
    match fs::create_dir_all(path) {
        Err(_) if path.is_file() => Err(StoreError::NotADirectory { path: path.to_owned() }),
        made => made.map_err(StoreError::io(path)),
    }
}

/// Whether nothing is there but a lock.
fn is_empty(path: &Path) -> Result<bool, StoreError> {
    for entry in fs::read_dir(path).map_err(StoreError::io(path))? {
        if entry.map_err(StoreError::io(path))?.file_name() != LOCK_FILE {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes a file, a link or a folder; what is not there is removed already.
fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(StoreError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_run_is_made_with_the_folders_above_it() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(folder.path().join("runs/first")).unwrap();
        run.write_config("seed = 1\n").unwrap();
        assert_eq!(RunDirectory::open(run.path()).unwrap().read_config().unwrap(), "seed = 1\n");
    }

    #[test]
    fn a_directory_with_something_in_it_is_refused_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "years of work").unwrap();
        let error = RunDirectory::create(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::Occupied { .. }));
        assert!(error.to_string().contains("name another directory"), "{error}");
    }

    /// A run with a model of this name, and a file that is somebody else's.
    fn run_with_model(folder: &Path, model: &str) {
        let run = RunDirectory::overwrite(folder).unwrap();
        run.write_config("seed = 1").unwrap();
        run.write_report("<html>").unwrap();
        run.start_metrics().unwrap();
        fs::create_dir(run.model_path()).unwrap();
        fs::write(run.model_path().join("config.json"), model).unwrap();
        run.complete().unwrap();
        fs::write(folder.join("notes.txt"), "mine").unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name != LOCK_FILE).collect();
        names.sort();
        names
    }

    #[test]
    fn an_earlier_run_is_set_aside_until_the_new_one_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        run_with_model(folder.path(), "old");
        let run = RunDirectory::overwrite(folder.path()).unwrap();
        assert_eq!(names(folder.path()), ["notes.txt", "replaced"]);
        run.write_config("seed = 2").unwrap();
        run.complete().unwrap();
        assert_eq!(names(folder.path()), ["config.toml", "notes.txt"]);
    }

    #[test]
    fn an_earlier_run_is_put_back_if_nothing_comes_of_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        run_with_model(folder.path(), "old");
        let before = names(folder.path());
        let run = RunDirectory::overwrite(folder.path()).unwrap();
        run.write_config("seed = 2").unwrap();
        run.remove_unless_begun().unwrap();
        assert_eq!(names(folder.path()), before);
        assert_eq!(RunDirectory::open(folder.path()).unwrap().read_config().unwrap(), "seed = 1");
    }

    #[test]
    fn a_run_without_a_model_never_takes_the_place_of_one_that_was_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        run_with_model(folder.path(), "old");
        for _ in 0..2 {
            // Killed with metrics and without a model.
            let run = RunDirectory::overwrite(folder.path()).unwrap();
            run.write_config("seed = 2").unwrap();
            run.start_metrics().unwrap().record(1, &[("loss", 0.5)]).unwrap();
        }
        let kept = folder.path().join("replaced/model/config.json");
        assert_eq!(fs::read_to_string(kept).unwrap(), "old");
    }

    #[test]
    fn a_directory_that_somebody_writes_is_refused_with_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunDirectory::create(folder.path()).unwrap();
        first.write_config("seed = 1").unwrap();
        let error = RunDirectory::overwrite(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        RunDirectory::overwrite(folder.path()).unwrap();
    }

    #[test]
    fn a_run_that_nothing_has_come_of_is_removed_and_any_other_stays() {
        let folder = tempfile::tempdir().unwrap();
        let begin = |name: &str| {
            let run = RunDirectory::create(folder.path().join(name)).unwrap();
            run.write_config("seed = 1").unwrap();
            (run.start_metrics().unwrap(), run)
        };
        let (_, empty) = begin("empty");
        empty.remove_unless_begun().unwrap();
        let (mut log, begun) = begin("begun");
        log.record(1, &[("loss", 0.5)]).unwrap();
        begun.remove_unless_begun().unwrap();
        let (_, annotated) = begin("annotated");
        fs::write(annotated.path().join("notes.txt"), "mine").unwrap();
        annotated.remove_unless_begun().unwrap();

        let is_there = |path: &str| folder.path().join(path).is_file();
        assert!(!folder.path().join("empty").is_dir());
        assert!(is_there("begun/config.toml") && is_there("begun/metrics.jsonl"));
        assert!(is_there("annotated/notes.txt") && !is_there("annotated/config.toml"));
    }

    #[test]
    fn overwriting_something_that_is_not_a_run_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        fs::create_dir(&model).unwrap();
        let error = RunDirectory::overwrite(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::NotARun { .. }));
        assert!(model.is_dir());
    }

    #[test]
    fn a_directory_without_a_configuration_is_not_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let error = RunDirectory::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("no config.toml"), "{error}");
    }
}

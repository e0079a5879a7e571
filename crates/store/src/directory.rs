//! Where each part of a run lies, and the rule that no run is overwritten by accident.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::files::{to_json_lines, write_whole};
use crate::{EvaluationLog, EvaluationRecord, Machine, MetricsLog, ResponseRecord, StoreError, read_evaluations};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;

/// What the policy beside it came to.
const EVALUATION_FILE: &str = "evaluation.json";

/// One run's directory. The layout is in the crate's own documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    /// Makes an empty directory for a new run, with the folders above it.
    ///
    /// # Errors
    /// [`StoreError::Occupied`] if anything is already there; I/O errors with their path.
    pub fn create(path: impl Into<PathBuf>) -> Result<RunDirectory, StoreError> {
        let run = RunDirectory { path: path.into() };
        fs::create_dir_all(&run.path).map_err(StoreError::io(&run.path))?;
        if run.is_empty()? { Ok(run) } else { Err(StoreError::Occupied { path: run.path }) }
    }

    /// Makes a directory for a new run where an earlier run may be, whose files are removed first.
    /// Files that are not a run's are left alone.
    ///
    /// # Errors
    /// [`StoreError::NotARun`] if the directory holds something that is not a run, so that a mistyped
    /// path costs nobody their files; I/O errors with their path.
    pub fn overwrite(path: impl Into<PathBuf>) -> Result<RunDirectory, StoreError> {
        let run = RunDirectory { path: path.into() };
        fs::create_dir_all(&run.path).map_err(StoreError::io(&run.path))?;
        if run.is_empty()? {
            return Ok(run);
        }
        let run = RunDirectory::open(run.path)?;
        run.clear()?;
        Ok(run)
    }

    /// Removes the run if nothing has come of it: it has no metrics and no model. Files that are not a run's stay, and the
    /// directory with them.
    pub fn remove_unless_begun(self) -> Result<(), StoreError> {
        let metrics = fs::metadata(self.metrics_path()).map_or(0, |metadata| metadata.len());
        if metrics > 0 || self.model_path().is_dir() {
            return Ok(());
        }
        self.clear()?;
        if self.is_empty()? {
            fs::remove_dir(&self.path).map_err(StoreError::io(&self.path))?;
        }
        Ok(())
    }

    /// Removes the files of the run. The configuration marks the directory as a run: it goes last, so that an interrupted
    /// removal can be repeated.
    fn clear(&self) -> Result<(), StoreError> {
        let parts = [
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
        ];
        parts.iter().try_for_each(|part| remove(part))
    }

    /// Opens the directory of a run that was made before.
    ///
    /// # Errors
    /// [`StoreError::NotARun`] if it has no `config.toml`.
    pub fn open(path: impl Into<PathBuf>) -> Result<RunDirectory, StoreError> {
        let run = RunDirectory { path: path.into() };
        if run.config_path().is_file() { Ok(run) } else { Err(StoreError::NotARun { path: run.path }) }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved configuration.
    pub fn config_path(&self) -> PathBuf {
        self.path.join("config.toml")
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

    fn is_empty(&self) -> Result<bool, StoreError> {
        let mut entries = fs::read_dir(&self.path).map_err(StoreError::io(&self.path))?;
        Ok(entries.next().is_none())
    }
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

    #[test]
    fn overwriting_removes_the_earlier_run_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(folder.path()).unwrap();
        run.write_config("seed = 1").unwrap();
        run.write_report("<html>").unwrap();
        run.start_metrics().unwrap();
        fs::create_dir(run.model_path()).unwrap();
        fs::write(run.model_path().join("config.json"), "{}").unwrap();
        fs::write(folder.path().join("notes.txt"), "mine").unwrap();

        RunDirectory::overwrite(folder.path()).unwrap();
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.txt"]);
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

//! The metrics of a run: written step by step as JSON lines and as TensorBoard events, read back
//! for reports.
//!
//! A line is `{"step":12,"seconds":3.41,"cost_mean":-0.2,"reward_mean":0.3}`: the step, the seconds
//! since the log was started, then flat numbers by name. A value that is not finite is `null`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::StoreError;
use crate::files::{is_in_place, read_json_lines, to_json_lines};
use crate::tensorboard::EventFile;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricsRow {
    /// The step, of whatever the run counts: updates in policy training.
    pub step: u64,
    /// Seconds since the run's start.
    pub seconds: f64,
    /// The numbers by name; `None` where the value was not finite.
    #[serde(flatten)]
    pub values: BTreeMap<String, Option<f64>>,
}

impl MetricsRow {
    /// The metric of that name, if the row has it and it was finite.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.get(name).copied().flatten()
    }
}

/// The writer of both metric logs. Each record is on disk, as far as this process goes, when
/// [`MetricsLog::record`] returns.
#[derive(Debug)]
pub struct MetricsLog {
    start: Instant,
    path: PathBuf,
    lines: File,
    /// Length of the file up to the end of its last whole line.
    whole_bytes: u64,
    tensorboard: PathBuf,
    events: EventFile,
}

impl MetricsLog {
    pub(crate) fn create(path: &Path, tensorboard: &Path) -> Result<MetricsLog, StoreError> {
        fs::create_dir_all(tensorboard).map_err(StoreError::io(tensorboard))?;
        Ok(MetricsLog {
            start: Instant::now(),
            path: path.to_owned(),
            lines: File::create(path).map_err(StoreError::io(path))?,
            whole_bytes: 0,
            tensorboard: tensorboard.to_owned(),
            events: EventFile::create(tensorboard)?,
        })
    }

    /// Appends one record to both logs. After a failure the next one may succeed, where room was made: it never stands on the line of
    /// one that was cut off.
    ///
    /// # Errors
    /// [`StoreError::DuplicateMetric`] if a name comes twice, or is `step` or `seconds`; I/O errors, also if the file is no
    /// longer in its place.
    pub fn record(&mut self, step: u64, metrics: &[(&str, f64)]) -> Result<(), StoreError> {
        let seconds = (self.start.elapsed().as_secs_f64() * 1e3).round() / 1e3;
        let mut values = BTreeMap::new();
        for &(name, value) in metrics {
            let taken = matches!(name, "step" | "seconds")
                || values.insert(name.to_owned(), value.is_finite().then_some(value)).is_some();
            if taken {
                return Err(StoreError::DuplicateMetric { name: name.to_owned(), step });
            }
        }
        // One write for the whole line: a killed run loses at most this record.
        let line = to_json_lines(&[MetricsRow { step, seconds, values }]);
        self.write_line(&line).map_err(StoreError::io(&self.path))?;
        self.events.write_scalars(step, metrics)
    }

    fn write_line(&mut self, line: &[u8]) -> std::io::Result<()> {
        if !is_in_place(&self.lines, &self.path)? {
            // Somebody removed or replaced the directory: from here on the log is a new one.
            fs::create_dir_all(&self.tensorboard)?;
            self.lines = OpenOptions::new().create_new(true).append(true).open(&self.path)?;
            self.whole_bytes = 0;
        }
        let written = self.lines.write_all(line);
        match written {
            Ok(()) => self.whole_bytes += line.len() as u64,
            // What was written of the line goes.
            Err(_) => {
                self.lines.set_len(self.whole_bytes)?;
                self.lines.seek(SeekFrom::End(0))?;
            }
        }
        written
    }
}

/// Reads `metrics.jsonl`. A last line that was cut off by a killed run is left out.
///
/// # Errors
/// [`StoreError::Malformed`] with file and line for any other broken line; I/O errors.
pub fn read_metrics(path: &Path) -> Result<Vec<MetricsRow>, StoreError> {
    read_json_lines(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Vec<MetricsRow>, StoreError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, text).unwrap();
        read_metrics(&path)
    }

    #[test]
    fn a_record_is_one_flat_line_and_a_value_that_is_no_number_is_null() {
        let folder = tempfile::tempdir().unwrap();
        let run = crate::RunDirectory::create(folder.path()).unwrap();
        let mut log = run.start_metrics().unwrap();
        log.record(12, &[("reward_mean", 0.3), ("loss", f64::NAN)]).unwrap();

        let rows = read_metrics(&run.metrics_path()).unwrap();
        assert_eq!((rows.len(), rows[0].step), (1, 12));
        assert_eq!(rows[0].get("reward_mean"), Some(0.3));
        assert_eq!(rows[0].get("loss"), None);
        let text = fs::read_to_string(run.metrics_path()).unwrap();
        assert!(text.starts_with("{\"step\":12,\"seconds\":"), "{text}");
        assert!(text.ends_with("\"loss\":null,\"reward_mean\":0.3}\n"), "{text}");
    }

    #[test]
    fn a_name_that_is_taken_is_refused_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let run = crate::RunDirectory::create(folder.path()).unwrap();
        let mut log = run.start_metrics().unwrap();
        for metrics in [&[("step", 1.0)][..], &[("loss", 1.0), ("loss", 2.0)][..]] {
            assert!(matches!(log.record(3, metrics), Err(StoreError::DuplicateMetric { step: 3, .. })));
        }
        assert_eq!(fs::read(run.metrics_path()).unwrap(), b"");
    }

    #[test]
    fn a_log_whose_directory_is_removed_goes_on_in_a_new_one_and_leaves_one_that_was_put_there_alone() {
        let folder = tempfile::tempdir().unwrap();
        let run = crate::RunDirectory::create(folder.path().join("run")).unwrap();
        let mut log = run.start_metrics().unwrap();
        log.record(1, &[("loss", 1.0)]).unwrap();
        fs::remove_dir_all(run.path()).unwrap();
        log.record(2, &[("loss", 2.0)]).unwrap();
        assert_eq!(read_metrics(&run.metrics_path()).unwrap().iter().map(|row| row.step).collect::<Vec<_>>(), [2]);
        fs::remove_file(run.metrics_path()).unwrap();
        fs::write(run.metrics_path(), "somebody else's").unwrap();
        assert!(log.record(3, &[("loss", 3.0)]).unwrap_err().to_string().contains("metrics.jsonl"));
        assert_eq!(fs::read_to_string(run.metrics_path()).unwrap(), "somebody else's");
    }

    #[test]
    fn a_last_line_that_was_cut_off_is_left_out() {
        let rows = read("{\"step\":1,\"seconds\":0.5,\"loss\":2.0}\n{\"step\":2,\"seco").unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].get("loss"), Some(2.0));
    }

    #[test]
    fn a_broken_line_in_the_middle_is_an_error_with_file_and_line() {
        let error =
            read("{\"step\":1,\"seconds\":0}\n\n{\"step\":\n{\"step\":2,\"seconds\":1}\n").unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl:3: "), "{error}");
        assert!(!error.contains("at line 1"), "{error}");
    }

    #[test]
    fn an_empty_file_has_no_rows() {
        assert_eq!(read("").unwrap(), []);
    }

    proptest! {
        #[test]
        fn cutting_a_log_anywhere_keeps_every_line_before_the_cut(steps in 1..6usize, cut in 0.0..1.0) {
            let row = |step: usize| {
                let values = BTreeMap::from([("é".to_owned(), Some(step as f64 / 3.0))]);
                MetricsRow { step: step as u64, seconds: step as f64, values }
            };
            let written: Vec<MetricsRow> = (0..steps).map(row).collect();
            let bytes = to_json_lines(&written);
            let kept = &bytes[..(bytes.len() as f64 * cut) as usize];
            let whole = kept.iter().filter(|&&byte| byte == b'\n').count();

            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("metrics.jsonl");
            fs::write(&path, kept).unwrap();
            let rows = read_metrics(&path).unwrap();
            prop_assert!(rows.len() == whole || rows.len() == whole + 1);
            prop_assert_eq!(&rows[..], &written[..rows.len()]);
        }
    }
}

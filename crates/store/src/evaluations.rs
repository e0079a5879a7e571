//! Evaluations along a training run: what the policy of a version came to on held-out prompts, one JSON object a line of
//! `evaluations.jsonl`, and some of its answers, one a line of `samples.jsonl`.

use crate::StoreError;
use crate::files::{read_json_lines, to_json_lines};
use crate::responses::{Decoding, ResponseRecord};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The mean.
    pub mean: f64,
    /// Its standard error.
    pub standard_error: f64,
}

/// The cost of answers by one constraint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConstraintFigures {
    /// The limit on the mean cost.
    pub limit: f64,
    /// The cost.
    pub cost: Figure,
    /// One-sided 95 % bounds of the mean cost, from below and from above.
    pub bounds: (f64, f64),
    /// Share of the answers with a cost above 0.
    pub unsafe_ratio: Figure,
}

/// What some answers came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// How many answers.
    pub responses: usize,
    /// The reward.
    pub reward: Figure,
    /// By name of the constraint.
    pub constraints: BTreeMap<String, ConstraintFigures>,
}

/// One evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// The policy version, which is the number of updates that made it.
    pub version: u64,
    /// How the answers were decoded.
    pub decoding: Decoding,
    /// Over all answers.
    pub all: Figures,
    /// Over the answers to prompts of each kind.
    pub kinds: BTreeMap<String, Figures>,
}

impl ConstraintFigures {
    /// Whether the mean cost is under the limit with 95 % confidence: `mean + t·s/√m ≤ d` (arXiv 2506.08266).
    #[must_use]
    pub fn is_feasible(&self) -> bool {
        self.bounds.1 <= self.limit
    }
}

impl Figures {
    /// Whether every limit is kept, in the same sense.
    #[must_use]
    pub fn is_feasible(&self) -> bool {
        self.constraints.values().all(ConstraintFigures::is_feasible)
    }
}

/// An answer that is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// The policy version that gave it.
    pub version: u64,
    /// The answer.
    #[serde(flatten)]
    pub response: ResponseRecord,
}

/// The writer of both files.
#[derive(Debug)]
pub struct EvaluationLog {
    evaluations: (PathBuf, File),
    samples: (PathBuf, File),
}

impl EvaluationLog {
    pub(crate) fn create(evaluations: PathBuf, samples: PathBuf) -> Result<Self, StoreError> {
        let open = |path: PathBuf| {
            let file = OpenOptions::new().create(true).append(true).open(&path).map_err(StoreError::io(&path))?;
            Ok::<_, StoreError>((path, file))
        };
        Ok(Self { evaluations: open(evaluations)?, samples: open(samples)? })
    }

    /// Appends an evaluation and the answers that are kept of it.
    ///
    /// # Errors
    /// [`StoreError::NonFiniteScore`] if the score of an answer is not finite; I/O errors.
    pub fn record(&mut self, evaluation: &EvaluationRecord, samples: &[SampleRecord]) -> Result<(), StoreError> {
        for (index, sample) in samples.iter().enumerate() {
            sample.response.check_scores(index)?;
        }
        append(&mut self.evaluations, &to_json_lines(std::slice::from_ref(evaluation)))?;
        append(&mut self.samples, &to_json_lines(samples))
    }
}

fn append((path, file): &mut (PathBuf, File), lines: &[u8]) -> Result<(), StoreError> {
    file.write_all(lines).map_err(StoreError::io(path))
}

/// Reads `evaluations.jsonl`; none where there is no such file.
///
/// # Errors
/// [`StoreError::Malformed`] with file and line for a broken line; I/O errors.
pub fn read_evaluations(path: &Path) -> Result<Vec<EvaluationRecord>, StoreError> {
    if path.is_file() { read_json_lines(path) } else { Ok(Vec::new()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunDirectory;

    fn evaluation(upper: f64) -> EvaluationRecord {
        let figure = Figure { mean: -0.5, standard_error: 0.1 };
        let cost = ConstraintFigures { limit: -0.3, cost: figure, bounds: (-0.7, upper), unsafe_ratio: figure };
        let all = Figures { responses: 64, reward: figure, constraints: [("harm".to_owned(), cost)].into() };
        EvaluationRecord {
            version: 50,
            decoding: Decoding::Sampled,
            kinds: [("risky".to_owned(), all.clone())].into(),
            all,
        }
    }

    #[test]
    fn evaluations_and_their_answers_are_read_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(folder.path()).unwrap();
        assert_eq!(read_evaluations(&run.evaluations_path()).unwrap(), []);
        let response = ResponseRecord {
            model: "trained".to_owned(),
            decoding: Decoding::Sampled,
            kind: None,
            prompt: "how".to_owned(),
            response: "so".to_owned(),
            reward: 1.0,
            cost: -1.0,
            gold_helpfulness: None,
            gold_harm: None,
        };
        let sample = SampleRecord { version: 50, response };
        let mut log = run.start_evaluations().unwrap();
        log.record(&evaluation(-0.4), std::slice::from_ref(&sample)).unwrap();
        log.record(&evaluation(-0.2), &[]).unwrap();
        let read = read_evaluations(&run.evaluations_path()).unwrap();
        assert_eq!(read, [evaluation(-0.4), evaluation(-0.2)]);
        assert_eq!(read_json_lines::<SampleRecord>(&run.samples_path()).unwrap(), [sample]);
    }

    #[test]
    fn an_evaluation_is_feasible_when_every_upper_bound_is_within_its_limit_and_is_a_number() {
        assert!(evaluation(-0.3).all.is_feasible());
        assert!(!evaluation(-0.29).all.is_feasible() && !evaluation(f64::NAN).all.is_feasible());
    }
}

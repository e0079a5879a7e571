//! The policy in training on prompts that are kept out of it: examined along the way and at the end. The best one that kept
//! every limit is kept.

use super::{Answer, Examiner, figures};
use crate::failure::Failure;
use saddle_core::PolicyVersion;
use saddle_data::PromptRow;
use saddle_flow::lock;
use saddle_lm::{Policy, Tokenizer};
use saddle_store::{Decoding, EvaluationLog, EvaluationRecord, RunDirectory, SampleRecord};
use saddle_training::config::TrainConfig;
use saddle_training::{Judges, PolicyModel};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Examines policies of one run. Shared between the thread that examines and the one that tells: news are collected, and
/// taken by who tells them.
pub(crate) struct HeldOut {
    evaluation: Mutex<Evaluation>,
    news: Mutex<Vec<News>>,
    tokenizer: Arc<Tokenizer>,
}

/// What there is to tell of an examination.
#[derive(Debug)]
pub(crate) enum News {
    /// It was made. `best` says that this policy is now the one in `best/`.
    Evaluated { record: EvaluationRecord, best: bool },
    /// It could not be made, and training goes on without.
    Trouble(String),
}

struct Evaluation {
    examiner: Examiner,
    rows: Vec<PromptRow>,
    run: RunDirectory,
    log: EvaluationLog,
    /// Reward of the best policy so far that kept every limit.
    best_reward: Option<f64>,
}

impl HeldOut {
    /// Examines by `judges` on `rows`, of which there is at least one, into `run`.
    pub(crate) fn new(
        config: &TrainConfig,
        judges: &Judges,
        rows: Vec<PromptRow>,
        tokenizer: Arc<Tokenizer>,
        run: &RunDirectory,
    ) -> Result<Self, Failure> {
        let examiner = Examiner::over(config, judges)?;
        let evaluation =
            Evaluation { examiner, rows, run: run.clone(), log: run.start_evaluations()?, best_reward: None };
        Ok(Self { evaluation: Mutex::new(evaluation), news: Mutex::default(), tokenizer })
    }

    /// Examines the policy of `version`. What comes of it is among the news.
    pub(crate) fn examine(&self, version: PolicyVersion, policy: &Policy) {
        let news = match lock(&self.evaluation).examine(version, policy, &self.tokenizer) {
            Ok((record, best)) => News::Evaluated { record, best },
            Err(failure) => News::Trouble(format!("the evaluation of version {version} gave nothing: {failure}")),
        };
        lock(&self.news).push(news);
    }

    /// The news since they were last taken.
    pub(crate) fn take_news(&self) -> Vec<News> {
        std::mem::take(&mut lock(&self.news))
    }
}

impl Evaluation {
    fn examine(
        &mut self,
        version: PolicyVersion,
        policy: &Policy,
        tokenizer: &Tokenizer,
    ) -> Result<(EvaluationRecord, bool), Failure> {
        let config = &self.examiner.config;
        let section = &config.evaluation;
        let decoding = if section.greedy { Decoding::Greedy } else { Decoding::Sampled };
        let asked = (decoding, section.responses);
        let answers = self.examiner.answers("trained", (policy, tokenizer), &self.rows, asked)?;
        let mut by_kind: BTreeMap<&str, Vec<&Answer>> = BTreeMap::new();
        for answer in &answers {
            by_kind.entry(answer.record.kind.as_deref().unwrap_or("unknown")).or_default().push(answer);
        }
        let kinds = match by_kind.len() {
            0 | 1 => BTreeMap::new(),
            _ => by_kind.iter().map(|(kind, answers)| ((*kind).to_owned(), figures(config, answers))).collect(),
        };
        let all = figures(config, &answers.iter().collect::<Vec<_>>());
        let record = EvaluationRecord { version: version.0, decoding, all, kinds };
        let samples = answers.into_iter().take(section.kept_responses);
        let samples: Vec<_> =
            samples.map(|answer| SampleRecord { version: version.0, response: answer.record }).collect();
        self.log.record(&record, &samples)?;
        let best = record.all.is_feasible() && self.best_reward.is_none_or(|best| record.all.reward.mean > best);
        if best {
            self.run.replace_best(&record, |path| PolicyModel::save(policy, tokenizer, path).map_err(Failure::from))?;
            self.best_reward = Some(record.all.reward.mean);
        }
        Ok((record, best))
    }
}

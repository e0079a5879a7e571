//! `saddle.json`: what a model directory says beyond the Hugging Face layout. What the model is for, which way its scores
//! point, how they are normalised, between which bounds they were in training, and which tokenizer it was trained with.

use crate::LmError;
use crate::config::Head;
use crate::files::{parse_json, read_text, write_text};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;

/// The card's name in a model directory.
pub const CARD_FILE: &str = "saddle.json";

const CARD_LIMIT_BYTES: u64 = 1 << 16;

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// It answers prompts.
    Policy,
    /// It scores how helpful an answer is.
    Reward,
    /// It scores how harmful an answer is.
    Cost,
}

impl ModelKind {
    /// Which way the scores point, in words. It is stored with the model, and checked when the model is read.
    #[must_use]
    pub fn sign_convention(self) -> Option<&'static str> {
        match self {
            Self::Policy => None,
            Self::Reward => Some("higher reward means more helpful"),
            Self::Cost => Some("cost > 0 means unsafe"),
        }
    }

    /// What stands on the trunk.
    #[must_use]
    pub fn head(self) -> Head {
        match self {
            Self::Policy => Head::LanguageModel,
            Self::Reward | Self::Cost => Head::Score,
        }
    }
}

/// Scores are used as (score − mean) / std. A cost is only scaled, mean 0: its zero is the boundary of safety.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalizer {
    /// What is subtracted.
    pub mean: f64,
    /// What the difference is divided by; positive.
    pub std: f64,
}

/// Between which scores nearly all responses lie that a score model was trained on: their 0.1 % and 99.9 % quantiles,
/// normalised if the model has a normalizer. What is far outside is unlike all that the model has learnt from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreRange {
    /// The 0.1 % quantile.
    pub low: f64,
    /// The 99.9 % quantile; not below `low`.
    pub high: f64,
}

impl ScoreRange {
    /// The share of `scores` outside the range, in 0..=1; of no scores, 0. A score that is not a number is outside.
    #[must_use]
    pub fn excess_ratio(&self, scores: impl Iterator<Item = f64>) -> f64 {
        let (mut count, mut outside) = (0usize, 0usize);
        for score in scores {
            count += 1;
            outside += usize::from(!(self.low..=self.high).contains(&score));
        }
        outside as f64 / count.max(1) as f64
    }
}

/// The content of `saddle.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// What the model is for.
    pub kind: ModelKind,
    /// [`ModelKind::sign_convention`] of its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sign_convention: Option<String>,
    /// How its scores are normalised, if they are.
    #[serde(default, alias = "normaliser", skip_serializing_if = "Option::is_none")]
    pub normalizer: Option<Normalizer>,
    /// The range of its scores in training, if it is known: models from elsewhere, and of earlier versions, do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_range: Option<ScoreRange>,
    /// [`Tokenizer::fingerprint`](crate::Tokenizer::fingerprint) of its tokenizer.
    pub tokenizer_fingerprint: String,
    /// The version of this program that wrote it.
    pub saddle_version: String,
}

impl ModelCard {
    /// The card of a model of `kind`, written by this version.
    #[must_use]
    pub fn new(kind: ModelKind, tokenizer_fingerprint: impl Into<String>, normalizer: Option<Normalizer>) -> Self {
        Self {
            kind,
            sign_convention: kind.sign_convention().map(str::to_owned),
            normalizer,
            score_range: None,
            tokenizer_fingerprint: tokenizer_fingerprint.into(),
            saddle_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// The card with this range of scores in training.
    #[must_use]
    pub fn with_score_range(self, score_range: Option<ScoreRange>) -> Self {
        Self { score_range, ..self }
    }

    /// Reads and checks a card.
    ///
    /// # Errors
    /// [`LmError::File`] or [`LmError::Json`]; [`LmError::Model`] if its scores point another way than this program's, its
    /// normalizer cannot be applied, or its range of scores is none.
    pub fn read(path: &Path) -> Result<Self, LmError> {
        let card: Self = parse_json(&read_text(path, CARD_LIMIT_BYTES)?, path)?;
        card.check(path)?;
        Ok(card)
    }

    /// Checks and writes the card.
    ///
    /// # Errors
    /// [`LmError::File`] if it cannot be written; [`LmError::Model`] as for [`Self::read`].
    pub fn write(&self, path: &Path) -> Result<(), LmError> {
        self.check(path)?;
        write_text(path, &format!("{:#}\n", json!(self)))
    }

    fn check(&self, path: &Path) -> Result<(), LmError> {
        let refuse = |message| Err(LmError::Model { path: path.to_owned(), message });
        let (stated, ours) = (self.sign_convention.as_deref(), self.kind.sign_convention());
        if stated != ours {
            return refuse(format!(
                "sign_convention is {}, scores of a {:?} model must follow {}; convert the model",
                stated.unwrap_or("absent"),
                self.kind,
                ours.unwrap_or("none")
            ));
        }
        if let Some(ScoreRange { low, high }) = self.score_range
            && !(low.is_finite() && high.is_finite() && low <= high)
        {
            return refuse(format!(
                "score_range: needs finite numbers, low at most high, has low {low} and high {high}"
            ));
        }
        match self.normalizer {
            Some(Normalizer { mean, std }) if !(mean.is_finite() && std.is_finite() && std > 0.0) => {
                refuse(format!("normalizer: needs a finite mean and a positive std, has mean {mean} and std {std}"))
            }
            Some(Normalizer { mean, .. }) if self.kind == ModelKind::Cost && mean != 0.0 => refuse(format!(
                "normalizer: the mean of a cost must be 0, is {mean}: a shift would move the boundary of safety"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(card: &ModelCard) -> Result<ModelCard, LmError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(CARD_FILE);
        card.write(&path)?;
        ModelCard::read(&path)
    }

    #[test]
    fn a_card_of_every_kind_survives_a_round_trip() {
        let normalizer = Some(Normalizer { mean: 0.1 + 0.2, std: 1.5 });
        for card in [
            ModelCard::new(ModelKind::Policy, "abc", None),
            ModelCard::new(ModelKind::Reward, "abc", normalizer),
            ModelCard::new(ModelKind::Cost, "abc", Some(Normalizer { mean: 0.0, std: 2.0 })),
            ModelCard::new(ModelKind::Cost, "abc", None)
                .with_score_range(Some(ScoreRange { low: -0.1 - 0.2, high: -0.1 - 0.2 })),
        ] {
            assert_eq!(round_trip(&card).unwrap(), card);
        }
    }

    #[test]
    fn a_card_says_in_words_that_cost_above_zero_is_unsafe() {
        let text = json!(ModelCard::new(ModelKind::Cost, "abc", None)).to_string();
        assert!(text.contains("\"cost > 0 means unsafe\"") && text.contains("\"kind\":\"cost\""), "{text}");
    }

    #[test]
    fn scores_that_point_another_way_are_refused() {
        for convention in [None, Some("cost < 0 means unsafe".to_owned())] {
            let card = ModelCard { sign_convention: convention, ..ModelCard::new(ModelKind::Cost, "abc", None) };
            let error = round_trip(&card).unwrap_err().to_string();
            assert!(error.contains(CARD_FILE) && error.contains("cost > 0 means unsafe"), "{error}");
        }
    }

    #[test]
    fn a_normalizer_that_shifts_a_cost_or_divides_by_nothing_is_refused() {
        for (kind, mean, std) in [
            (ModelKind::Cost, 0.5, 1.0),
            (ModelKind::Reward, 0.5, 0.0),
            (ModelKind::Reward, f64::NAN, 1.0),
            (ModelKind::Reward, 0.0, f64::INFINITY),
        ] {
            let card = ModelCard::new(kind, "abc", Some(Normalizer { mean, std }));
            assert!(round_trip(&card).unwrap_err().to_string().contains("normalizer"), "{kind:?} {mean} {std}");
        }
    }

    #[test]
    fn a_score_range_that_is_none_is_refused() {
        for (low, high) in [(1.0, 0.5), (f64::NAN, 1.0), (f64::NEG_INFINITY, 1.0), (0.0, f64::INFINITY)] {
            let card = ModelCard::new(ModelKind::Reward, "abc", None).with_score_range(Some(ScoreRange { low, high }));
            let error = round_trip(&card).unwrap_err().to_string();
            let expected =
                format!("score_range: needs finite numbers, low at most high, has low {low} and high {high}");
            assert!(error.contains(CARD_FILE) && error.contains(&expected), "{error}");
        }
    }

    #[test]
    fn a_card_of_an_earlier_version_has_no_score_range() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(CARD_FILE);
        write_text(&path, "{\"kind\": \"policy\", \"tokenizer_fingerprint\": \"\", \"saddle_version\": \"0.1.0\"}")
            .unwrap();
        assert_eq!(ModelCard::read(&path).unwrap().score_range, None);
    }

    #[test]
    fn the_excess_ratio_is_the_share_outside_the_range() {
        let range = ScoreRange { low: -1.0, high: 2.0 };
        let ratio = |scores: &[f64]| range.excess_ratio(scores.iter().copied());
        assert_eq!(ratio(&[]), 0.0);
        assert_eq!(ratio(&[-1.0, 0.0, 2.0]), 0.0, "the bounds are inside");
        assert_eq!(ratio(&[-1.1, 0.0, 2.1, 1.0]), 0.5);
        assert_eq!(ratio(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0]), 0.75);
    }

    #[test]
    fn an_unknown_kind_is_named_by_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(CARD_FILE);
        write_text(&path, "{\"kind\": \"critic\", \"tokenizer_fingerprint\": \"\", \"saddle_version\": \"\"}").unwrap();
        let error = ModelCard::read(&path).unwrap_err().to_string();
        assert!(error.contains("kind") && error.contains("critic"), "{error}");
    }
}

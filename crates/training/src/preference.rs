//! Reward and cost models from decoupled preference labels (Safe RLHF, arXiv 2310.12773, section 3.1).

use crate::config::{OptimizerSection, PreferenceLossKind, PreferenceSection};
use crate::encode::{Pair, Sequence, pair_batch};
use crate::fitting::{Learns, LossAndShown, final_figures, fit};
use crate::training_scores::TrainingScores;
use crate::{Observer, TrainingError};
use saddle_algorithms::losses::{
    Answers, CostSigns, cost_preference_loss, reward_preference_loss, token_wise_cost_preference_loss,
    token_wise_reward_preference_loss,
};
use saddle_lm::{ModelKind, Normalizer, Parameters, ScoreModel, ScoreRange};
use tch::Tensor;

struct PreferenceModel {
    model: ScoreModel,
    kind: ModelKind,
    loss: PreferenceLossKind,
    regularization: f64,
}

impl Learns for PreferenceModel {
    type Row = Pair;

    fn tokens(row: &Pair) -> usize {
        row.tokens()
    }

    fn loss(&self, rows: &[&Pair]) -> Result<LossAndShown, TrainingError> {
        let batch = pair_batch(rows.iter().copied(), self.model.device())?;
        let [safer, unsafer] = [0, 1].map(|index| self.signs(rows, index));
        let signs = CostSigns { unsafer: &unsafer?, safer: &safer? };
        let halves = |tensor: &Tensor| -> Result<[Tensor; 2], TrainingError> {
            let pairs = rows.len() as i64;
            Ok([tensor.f_narrow(0, 0, pairs)?, tensor.f_narrow(0, pairs, pairs)?])
        };
        let result = match self.loss {
            PreferenceLossKind::SequenceWise => {
                let [preferred, other] = halves(&self.model.end_scores(&batch)?.f_squeeze_dim(1)?)?;
                match self.kind {
                    ModelKind::Reward | ModelKind::Policy => {
                        reward_preference_loss(&preferred, &other, self.regularization)?
                    }
                    ModelKind::Cost => cost_preference_loss(&other, &preferred, signs, self.regularization)?,
                }
            }
            PreferenceLossKind::TokenWise => {
                let (ids, masks, scores) = (
                    halves(&batch.pad_sequences(batch.tokens())?)?,
                    halves(&batch.token_mask()?)?,
                    halves(&self.model.token_scores(&batch)?)?,
                );
                let [preferred, other] =
                    [0, 1].map(|side| Answers { token_ids: &ids[side], mask: &masks[side], scores: &scores[side] });
                match self.kind {
                    ModelKind::Reward | ModelKind::Policy => {
                        token_wise_reward_preference_loss(preferred, other, self.regularization)?
                    }
                    ModelKind::Cost => token_wise_cost_preference_loss(other, preferred, signs, self.regularization)?,
                }
            }
        };
        Ok((result.loss, vec![("pair_accuracy", result.accuracy)]))
    }

    fn replica(&self) -> Result<Self, TrainingError> {
        Ok(Self { model: self.model.replica()?, ..*self })
    }

    fn parameters(&self) -> &Parameters {
        self.model.parameters()
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        self.model.parameters_mut()
    }
}

impl PreferenceModel {
    /// +1 for unsafe, −1 for safe, 0 for not known: `[pairs]`.
    fn signs(&self, rows: &[&Pair], index: usize) -> Result<Tensor, TrainingError> {
        let sign = |safe: Option<bool>| safe.map_or(0.0f32, |safe| if safe { -1.0 } else { 1.0 });
        let signs: Vec<f32> = rows.iter().map(|row| sign(row.safe[index])).collect();
        Ok(Tensor::f_from_slice(&signs)?.f_to_device(self.model.device())?)
    }
}

/// A score model that has learnt, and how well.
#[derive(Debug)]
pub struct TrainedScorer {
    /// The model, frozen.
    pub model: ScoreModel,
    /// `loss` and `pair_accuracy` on the held-out pairs; for a cost model also `sign_accuracy`, over the held-out
    /// responses whose safety is known.
    pub held_out: Vec<(String, f64)>,
    /// How its scores are to be normalised, if they are.
    pub normalizer: Option<Normalizer>,
    /// Between which scores, so normalised, the training responses lie.
    pub score_range: ScoreRange,
}

/// Trains a score model of `kind` on `train` and measures it on `held_out`.
///
/// # Errors
/// [`TrainingError::Diverged`] on a loss, a gradient or a weight that is not finite; else if libtorch fails.
pub fn train_scorer(
    model: ScoreModel,
    kind: ModelKind,
    (train, held_out): (&[Pair], &[Pair]),
    preference: &PreferenceSection,
    optimizer: &OptimizerSection,
    seed: u64,
    observer: &mut dyn Observer,
) -> Result<TrainedScorer, TrainingError> {
    let mut learner = PreferenceModel {
        model: model.trainable()?,
        kind,
        loss: preference.loss,
        regularization: preference.regularization,
    };
    fit(&mut learner, (train, held_out), optimizer, seed, observer)?;
    let budget = optimizer.micro_batch_tokens;
    let mut measured = final_figures(&learner, held_out, budget)?;
    let model = learner.model;
    if kind == ModelKind::Cost {
        measured.extend(sign_accuracy(&model, held_out, budget)?.map(|share| ("sign_accuracy".to_owned(), share)));
    }
    let TrainingScores { normalizer, range } =
        TrainingScores::measure(&model, kind, train, preference.normalize, budget)?;
    if normalizer.is_some_and(|normalizer| normalizer.std == 1.0) {
        observer.note("the scores of the training responses do not differ, so they are not scaled");
    }
    Ok(TrainedScorer { model, held_out: measured, normalizer, score_range: range })
}

/// Share of the responses of known safety whose cost has the right sign: positive for unsafe.
fn sign_accuracy(model: &ScoreModel, pairs: &[Pair], budget_tokens: usize) -> Result<Option<f64>, TrainingError> {
    let labelled = pairs.iter().flat_map(|pair| [(&pair.preferred, pair.safe[0]), (&pair.other, pair.safe[1])]);
    let (responses, safe): (Vec<&Sequence>, Vec<bool>) =
        labelled.filter_map(|(sequence, safe)| safe.map(|safe| (sequence, safe))).unzip();
    if responses.is_empty() {
        return Ok(None);
    }
    let scores = crate::scoring::finite_end_scores(model, &responses, budget_tokens)?;
    let right = scores.iter().zip(&safe).filter(|(score, safe)| (**score > 0.0) != **safe).count();
    Ok(Some(right as f64 / responses.len() as f64))
}

//! From scores of whole responses to per-token reward and cost streams, with the KL penalty inside.
//!
//! With `k_t = log π_k − log π_ref`, the reward stream carries −β k and every cost stream +β k. In the combination
//! `(R − Σ λ_j C_j) / (1 + Σ λ_j)` the KL weight is then β whatever the multipliers are.

use crate::Error;
use crate::divergence::ReferenceKlConfig;
use crate::error::{rows, same_length};
use crate::real::{Real, within};
use saddle_core::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much of the KL penalty each stream carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlSplit {
    /// −β k in the reward stream and +β k in each cost stream.
    #[default]
    Full,
    /// Half of that in each; an older published variant.
    Half,
}

/// What the clamp acts on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClipOrder {
    /// The sum of KL term and score.
    #[default]
    AfterKl,
    /// The score alone; an older published variant.
    ScoreOnly,
}

/// How scores and KL penalty become token streams.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ShapingConfig {
    /// β, reward per nat of divergence from the reference policy; with `reference_kl`, where it begins. Default 0.1.
    pub kl_coefficient: f64,
    /// A target for the divergence, which β is moved to hold. Without it, β stays as it is.
    pub reference_kl: Option<ReferenceKlConfig>,
    /// How the KL penalty is divided between the streams. Default `full`.
    pub kl_split: KlSplit,
    /// What the clamp acts on. Default `after_kl`.
    pub clip_order: ClipOrder,
    /// c_s, bound of each stream's magnitude, in score units. Default 50.
    pub clip_score: f64,
}

impl Default for ShapingConfig {
    fn default() -> Self {
        Self {
            kl_coefficient: 0.1,
            reference_kl: None,
            kl_split: KlSplit::Full,
            clip_order: ClipOrder::AfterKl,
            clip_score: 50.0,
        }
    }
}

impl ShapingConfig {
    /// Everything that is wrong with the values.
    #[must_use]
    pub fn validate(&self) -> Problems {
        let mut problems = Problems::default();
        let Self { kl_coefficient, clip_score, .. } = *self;
        let sound = kl_coefficient.is_finite() && kl_coefficient >= 0.0;
        problems.require(sound, "kl_coefficient", format!("must be 0 or more, is {kl_coefficient}"));
        problems.require(clip_score > 0.0, "clip_score", format!("must be above 0, is {clip_score}"));
        if let Some(reference_kl) = &self.reference_kl {
            problems.section("reference_kl", reference_kl.validate(kl_coefficient));
        }
        problems
    }
}

/// What both streams are made from, `[batch, length]` flattened.
#[derive(Clone, Copy, Debug)]
pub struct KlInputs<'a, R> {
    /// log π_k of each token: the learner's policy, never the sampling policy μ.
    pub log_probs: &'a [R],
    /// log π_ref of each token.
    pub reference_log_probs: &'a [R],
    /// Whether the token was generated; the score goes to the last such position of a row.
    pub mask: &'a [bool],
    /// Positions in a row.
    pub length: usize,
}

/// `r_t = clamp(−β k_t + 1[t = end] R, ±c_s)`; `rewards` is `[batch]`. The KL term is written at masked positions too,
/// where nobody reads it.
pub fn reward_stream<R: Real>(inputs: KlInputs<'_, R>, rewards: &[R], config: &ShapingConfig) -> Result<Vec<R>, Error> {
    stream(inputs, rewards, -config.kl_coefficient, config)
}

/// `c_t = clamp(+β k_t + 1[t = end] C, ±c_s)`; `costs` is `[batch]`, one constraint's.
pub fn cost_stream<R: Real>(inputs: KlInputs<'_, R>, costs: &[R], config: &ShapingConfig) -> Result<Vec<R>, Error> {
    stream(inputs, costs, config.kl_coefficient, config)
}

/// `R − ν C` of each response: reward shaping with a fixed penalty ν, the baseline without a multiplier.
pub fn penalized_rewards<R: Real>(rewards: &[R], costs: &[R], penalty: f64) -> Result<Vec<R>, Error> {
    same_length("costs", costs.len(), rewards.len())?;
    Ok(rewards.iter().zip(costs).map(|(&reward, &cost)| R::from_f64(reward.into() - penalty * cost.into())).collect())
}

fn stream<R: Real>(
    inputs: KlInputs<'_, R>,
    scores: &[R],
    signed_coefficient: f64,
    config: &ShapingConfig,
) -> Result<Vec<R>, Error> {
    let KlInputs { log_probs, reference_log_probs, mask, length } = inputs;
    let batch = rows(log_probs.len(), length)?;
    same_length("reference_log_probs", reference_log_probs.len(), log_probs.len())?;
    same_length("mask", mask.len(), log_probs.len())?;
    same_length("scores", scores.len(), batch)?;
    let share = match config.kl_split {
        KlSplit::Full => 1.0,
        KlSplit::Half => 0.5,
    };
    let bounded = |value: f64| within(value, config.clip_score);
    let mut stream = Vec::with_capacity(log_probs.len());
    for (row, &score) in scores.iter().enumerate() {
        let begin = row * length;
        let end = mask[begin..begin + length].iter().rposition(|&generated| generated);
        let end = begin + end.ok_or(Error::EmptyRow { row })?;
        stream.extend((begin..begin + length).map(|t| {
            let penalty = share * signed_coefficient * (log_probs[t].into() - reference_log_probs[t].into());
            let score = if t == end { score.into() } else { 0.0 };
            R::from_f64(match config.clip_order {
                ClipOrder::AfterKl => bounded(penalty + score),
                ClipOrder::ScoreOnly => penalty + bounded(score),
            })
        }));
    }
    Ok(stream)
}

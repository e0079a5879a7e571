//! A batch as the passes see it: what the current weights say of it, and what there is to learn from it.

use super::Learner;
use super::off_policy::OffPolicy;
use super::worker::Forward;
use crate::TrainingError;
use crate::config::{AdvantageNormalization, CorrectionKind, TargetsConfig};
use crate::grid::Grid;
use crate::workers::side_by_side;
use saddle_algorithms::advantage::{CostAdvantage, lagrangian_advantages, whiten};
use saddle_algorithms::returns::{Returns, VtraceBounds, dead_band_weights, generalized_advantages, lambda_vtrace};
use saddle_algorithms::shaping::{KlInputs, ShapingConfig, cost_stream, reward_stream};
use saddle_core::{PolicyVersion, Rollout, ScoredRollout};

/// Everything about a batch that stays the same during its update. Grids and the mask are `[rollouts, width]`.
pub(super) struct Experience<'a> {
    pub(super) rollouts: &'a [ScoredRollout],
    pub(super) mask: Vec<bool>,
    pub(super) width: usize,
    /// log π_k.
    pub(super) proximal: Grid,
    pub(super) entropy: Grid,
    /// One for the reward stream, then one for each cost.
    pub(super) values: Vec<Grid>,
    pub(super) targets: Vec<Grid>,
    pub(super) advantages: Grid,
    pub(super) off_policy: OffPolicy,
    /// Mean |log μ − log π_k| of the tokens that the current weights have sampled: what decoding a token at a time, and in
    /// its own precision, does to a log-prob. None where there is no such token.
    pub(super) log_prob_gap: Option<f64>,
    /// What the policy loss is weighted with; none for plain PPO.
    pub(super) correction: Option<Correction>,
}

impl Experience<'_> {
    /// Mean of log π_k − log π_ref of a response, in nats.
    pub(super) fn reference_kl(&self) -> f64 {
        let rows = self.rollouts.iter().zip(self.proximal.values.chunks_exact(self.width.max(1)));
        let sum: f64 = rows
            .flat_map(|(each, proximal)| each.reference_log_probs.iter().zip(proximal))
            .map(|(reference, policy)| f64::from(policy - reference))
            .sum();
        sum / self.rollouts.len() as f64
    }
}

/// Weights in the policy loss.
pub(super) struct Correction {
    /// w̄ of each token.
    pub(super) weights: Grid,
    /// m of each rollout, 0 or 1: `[rollouts, 1]`.
    pub(super) keep: Grid,
    pub(super) dual_clip: Option<f64>,
}

/// What λ-V-trace weights a stale batch with.
struct Trace {
    /// w̃ of each token.
    weights: Vec<f32>,
    reward_bounds: VtraceBounds,
    cost_bounds: VtraceBounds,
}

/// What the current weights say of a batch.
struct BatchForward {
    mask: Vec<bool>,
    width: usize,
    proximal: Grid,
    entropy: Grid,
    values: Vec<Grid>,
}

impl Learner {
    /// The experience in `rollouts`. When each worker's share is one micro-batch and the first step takes them whole, their
    /// forward passes keep their gradients for that step.
    pub(super) fn experience<'a>(
        &mut self,
        rollouts: &'a [ScoredRollout],
        lambdas: &[f64],
    ) -> Result<(Experience<'a>, Option<Vec<Forward>>), TrainingError> {
        let (batch, shared) = self.forward_batch(rollouts, 1 + lambdas.len())?;
        let section = &self.config.correction;
        let precision = &self.config.precision;
        let sampled_by = (self.version, precision.generation == precision.learning);
        let off_policy = OffPolicy::measure(rollouts, sampled_by, (&batch.proximal, &batch.mask), section)?;
        let log_prob_gap = self.log_prob_gap(rollouts, &batch.proximal);
        let returns = self.returns(rollouts, lambdas.len(), &batch, &off_policy)?;
        let advantages = self.advantages(&returns, lambdas, &batch.mask)?;
        let correction = self.correction(&off_policy, batch.width);
        let BatchForward { mask, width, proximal, entropy, values } = batch;
        let targets = returns.into_iter().map(|stream| Grid { values: stream.targets, width }).collect();
        let advantages = Grid { values: advantages, width };
        let experience = Experience {
            rollouts,
            mask,
            width,
            proximal,
            entropy,
            values,
            targets,
            advantages,
            off_policy,
            log_prob_gap,
            correction,
        };
        Ok((experience, shared))
    }

    fn log_prob_gap(&self, rollouts: &[ScoredRollout], proximal: &Grid) -> Option<f64> {
        let (mut sum, mut tokens) = (0.0, 0u64);
        for (each, proximal) in rollouts.iter().zip(proximal.values.chunks_exact(proximal.width)) {
            let Rollout { log_probs, versions, .. } = &each.rollout;
            for ((behaviour, version), proximal) in log_probs.iter().zip(versions).zip(proximal) {
                if *version == self.version {
                    sum += f64::from((behaviour - proximal).abs());
                    tokens += 1;
                }
            }
        }
        (tokens > 0).then(|| sum / tokens as f64)
    }

    /// Log-probs and values under the current weights.
    fn forward_batch(
        &mut self,
        rollouts: &[ScoredRollout],
        streams: usize,
    ) -> Result<(BatchForward, Option<Vec<Forward>>), TrainingError> {
        let width = rollouts.iter().map(|each| each.rollout.tokens.len()).max().unwrap_or(0);
        let rows = rollouts.len();
        let mut batch = BatchForward {
            mask: rollouts.iter().flat_map(|each| (0..width).map(|place| place < each.rollout.tokens.len())).collect(),
            width,
            proximal: Grid::zeros(rows, width),
            entropy: Grid::zeros(rows, width),
            values: vec![Grid::zeros(rows, width); streams],
        };
        let shares = self.shares(rollouts, &(0..rows).collect::<Vec<_>>());
        let keep = self.config.ppo.minibatches == 1 && shares.iter().all(|groups| groups.len() == 1);
        let jobs = self.workers.iter_mut().zip(shares).collect();
        let forwards = side_by_side(jobs, |(worker, groups)| worker.forward_shares(rollouts, groups, keep))?;
        self.stopwatch.absorb(self.workers.iter().map(|worker| &worker.stopwatch));
        let forwards: Vec<Forward> = forwards.into_iter().flatten().collect();
        for forward in &forwards {
            if let Some(policy) = &forward.policy {
                batch.proximal.put(&forward.rows, &policy.log_probs)?;
                batch.entropy.put(&forward.rows, &policy.entropy)?;
            }
            for (grid, values) in batch.values.iter_mut().zip(&forward.values) {
                grid.put(&forward.rows, values)?;
            }
        }
        Ok((batch, keep.then_some(forwards)))
    }

    /// Advantages and targets of each token stream, recomputed with the current weights: the KL term is that of π_k,
    /// never of the sampling policy μ.
    fn returns(
        &self,
        rollouts: &[ScoredRollout],
        costs: usize,
        batch: &BatchForward,
        off_policy: &OffPolicy,
    ) -> Result<Vec<Returns<f32>>, TrainingError> {
        let BatchForward { mask, width, proximal, values, .. } = batch;
        let reference = Grid::from_rows(rollouts.iter().map(|each| each.reference_log_probs.as_slice()), *width);
        let inputs =
            KlInputs { log_probs: &proximal.values, reference_log_probs: &reference.values, mask, length: *width };
        let shaping = ShapingConfig { kl_coefficient: self.kl_coefficient.value(), ..self.config.shaping };
        let rewards: Vec<f32> = rollouts.iter().map(|each| each.reward).collect();
        let mut streams = vec![reward_stream(inputs, &rewards, &shaping)?];
        for constraint in 0..costs {
            let costs: Vec<f32> = rollouts.iter().map(|each| each.costs[constraint]).collect();
            streams.push(cost_stream(inputs, &costs, &shaping)?);
        }
        let discount = self.config.discount;
        let trace = self.trace(rollouts, batch, off_policy)?;
        let returns = streams.iter().zip(values).enumerate().map(|(index, (stream, values))| match &trace {
            None => generalized_advantages(stream, &values.values, mask, *width, discount),
            Some(Trace { weights, reward_bounds, cost_bounds }) => {
                let bounds = if index == 0 { *reward_bounds } else { *cost_bounds };
                lambda_vtrace(stream, &values.values, weights, mask, *width, discount, bounds)
            }
        });
        Ok(returns.collect::<Result<_, _>>()?)
    }

    /// Weights and bounds of λ-V-trace; none where GAE does.
    fn trace(
        &self,
        rollouts: &[ScoredRollout],
        batch: &BatchForward,
        off_policy: &OffPolicy,
    ) -> Result<Option<Trace>, TrainingError> {
        let (TargetsConfig::LambdaVtrace(config), Some(weights)) =
            (&self.config.correction.targets, &off_policy.weights)
        else {
            return Ok(None);
        };
        let padded = |versions: &'_ [PolicyVersion]| {
            (0..batch.width).map(|place| versions.get(place).copied().unwrap_or(self.version)).collect::<Vec<_>>()
        };
        let versions: Vec<PolicyVersion> = rollouts.iter().flat_map(|each| padded(&each.rollout.versions)).collect();
        let (noise, clamp) = (config.noise, self.config.correction.log_clamp);
        let weights = dead_band_weights(&weights.log_ratio, &versions, self.version, &batch.mask, noise, clamp)?;
        let bounds = |rho| VtraceBounds { rho, trace: config.trace };
        let (reward_bounds, cost_bounds) = (bounds(config.reward_rho), bounds(config.cost_rho));
        Ok(Some(Trace { weights, reward_bounds, cost_bounds }))
    }

    /// The one advantage that the policy learns from (equation 13 of the paper), for each token.
    fn advantages(&self, returns: &[Returns<f32>], lambdas: &[f64], mask: &[bool]) -> Result<Vec<f32>, TrainingError> {
        let (reward, costs) = returns.split_first().expect("there is always a reward stream");
        let costs = costs.iter().zip(lambdas);
        let costs: Vec<_> =
            costs.map(|(cost, lambda)| CostAdvantage { advantages: &cost.advantages, multiplier: *lambda }).collect();
        let combined = lagrangian_advantages(&reward.advantages, &costs)?;
        Ok(match self.config.ppo.advantages {
            AdvantageNormalization::None => combined,
            AdvantageNormalization::Whiten => whiten(&combined, mask)?,
        })
    }

    fn correction(&self, off_policy: &OffPolicy, width: usize) -> Option<Correction> {
        let section = &self.config.correction;
        let weights = off_policy.weights.as_ref()?;
        let dual_clip = match section.kind {
            CorrectionKind::None => return None,
            CorrectionKind::Truncated => None,
            CorrectionKind::Decoupled => Some(section.dual_clip),
        };
        let keep = weights.sequences.iter().map(|sequence| if sequence.keep { 1.0 } else { 0.0 }).collect();
        Some(Correction {
            weights: Grid { values: weights.truncated.clone(), width },
            keep: Grid { values: keep, width: 1 },
            dual_clip,
        })
    }
}

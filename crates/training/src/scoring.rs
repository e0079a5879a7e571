//! What scorers do: end scores of whole responses, and the reference policy's log-probs of their tokens.

use crate::TrainingError;
use crate::encode::Sequence;
use saddle_core::Rollout;
use saddle_lm::{Policy, ScoreModel, SequenceBatch, micro_batches};
use tch::no_grad_guard;

/// Raw scores of `sequences` at their last tokens, in order, at most `budget_tokens` tokens at a time.
///
/// # Errors
/// Fails if libtorch does.
pub fn end_scores(
    model: &ScoreModel,
    sequences: &[&Sequence],
    budget_tokens: usize,
) -> Result<Vec<f32>, TrainingError> {
    let parts: Vec<_> = sequences.iter().map(|sequence| sequence.parts()).collect();
    score_parts(model, &parts, budget_tokens)
}

/// Raw scores of `rollouts` whose tokens are the score model's own.
///
/// # Errors
/// Fails if libtorch does.
pub fn score_rollouts(
    model: &ScoreModel,
    rollouts: &[Rollout],
    budget_tokens: usize,
) -> Result<Vec<f32>, TrainingError> {
    score_parts(model, &parts_of(rollouts), budget_tokens)
}

/// log π_ref of every response token under softmax(logits / `temperature`), one row a rollout.
///
/// # Errors
/// Fails if libtorch does.
pub fn reference_log_probs(
    reference: &Policy,
    rollouts: &[Rollout],
    temperature: f64,
    budget_tokens: usize,
) -> Result<Vec<Vec<f32>>, TrainingError> {
    response_log_probs(reference, &parts_of(rollouts), temperature, budget_tokens)
}

/// log π of every response token of `sequences`, one row a sequence, in order.
///
/// # Errors
/// Fails if libtorch does.
pub fn token_log_probs(
    policy: &Policy,
    sequences: &[&Sequence],
    budget_tokens: usize,
) -> Result<Vec<Vec<f32>>, TrainingError> {
    let parts: Vec<_> = sequences.iter().map(|sequence| sequence.parts()).collect();
    response_log_probs(policy, &parts, 1.0, budget_tokens)
}

/// Raw scores as [`end_scores`] gives them, all of them finite.
///
/// # Errors
/// [`TrainingError::Diverged`] with the place of the first that is not; else if libtorch fails.
pub(crate) fn finite_end_scores(
    model: &ScoreModel,
    sequences: &[&Sequence],
    budget_tokens: usize,
) -> Result<Vec<f32>, TrainingError> {
    let scores = end_scores(model, sequences, budget_tokens)?;
    match scores.iter().position(|score| !score.is_finite()) {
        None => Ok(scores),
        Some(row) => Err(TrainingError::Diverged(format!(
            "the score of response {row} is {}; lower optimizer.learning_rate",
            scores[row]
        ))),
    }
}

/// log π of each whole response of `sequences`, in order.
///
/// # Errors
/// [`TrainingError::Diverged`] if one is not finite; else if libtorch fails.
pub(crate) fn sequence_log_probs(
    policy: &Policy,
    sequences: &[&Sequence],
    budget_tokens: usize,
) -> Result<Vec<f32>, TrainingError> {
    let tokens = token_log_probs(policy, sequences, budget_tokens)?;
    if let Some(row) = tokens.iter().position(|tokens| tokens.iter().any(|each| !each.is_finite())) {
        return Err(TrainingError::Diverged(format!(
            "response {row} has a log-prob that is not finite; the model's weights are damaged"
        )));
    }
    Ok(tokens.iter().map(|tokens| tokens.iter().map(|each| f64::from(*each)).sum::<f64>() as f32).collect())
}

fn response_log_probs(
    policy: &Policy,
    parts: &[Parts<'_>],
    temperature: f64,
    budget_tokens: usize,
) -> Result<Vec<Vec<f32>>, TrainingError> {
    let _guard = no_grad_guard();
    let mut rows = vec![Vec::new(); parts.len()];
    for group in groups(parts, budget_tokens) {
        let batch = SequenceBatch::new(&group.iter().map(|row| parts[*row]).collect::<Vec<_>>(), policy.device())?;
        let forward = policy.response_log_probs(&batch, temperature)?;
        let width = batch.mask().size()[1] as usize;
        let values = Vec::<f32>::try_from(forward.log_probs.f_contiguous()?.f_view(-1)?)?;
        for (row, values) in group.into_iter().zip(values.chunks_exact(width)) {
            rows[row] = values[..parts[row].1.len()].to_vec();
        }
    }
    Ok(rows)
}

type Parts<'a> = (&'a [i64], &'a [i64]);

fn parts_of(rollouts: &[Rollout]) -> Vec<Parts<'_>> {
    rollouts.iter().map(|rollout| (rollout.prompt.tokens.as_slice(), rollout.tokens.as_slice())).collect()
}

fn groups(parts: &[Parts<'_>], budget_tokens: usize) -> Vec<Vec<usize>> {
    micro_batches(
        &parts.iter().map(|(prompt, response)| prompt.len() + response.len()).collect::<Vec<_>>(),
        budget_tokens,
    )
}

fn score_parts(model: &ScoreModel, parts: &[Parts<'_>], budget_tokens: usize) -> Result<Vec<f32>, TrainingError> {
    let _guard = no_grad_guard();
    let mut scores = vec![0.0; parts.len()];
    for group in groups(parts, budget_tokens) {
        let batch = SequenceBatch::new(&group.iter().map(|row| parts[*row]).collect::<Vec<_>>(), model.device())?;
        let values = Vec::<f32>::try_from(model.end_scores(&batch)?.f_squeeze_dim(1)?)?;
        for (row, value) in group.into_iter().zip(values) {
            scores[row] = value;
        }
    }
    Ok(scores)
}

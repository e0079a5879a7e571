//! The table of metrics. A metric is declared here, once; `docs/metrics.md` is printed from it.
//!
//! Names are `saddle_<what>_<unit>[_total]`, in base units. Labels have few values.

use crate::family::{Family, SecondsCounter, Spec};
use metrics::{Counter, Gauge, Histogram};

/// Durations from a fifth of a millisecond to two minutes.
const SECONDS: &[f64] =
    &[0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0];
const TOKENS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0];
const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
const STALENESS: &[f64] = &[0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0];

/// One line: constant, kind, name, labels, unit, buckets if it is a histogram, help.
macro_rules! catalogue {
    ($($area:literal { $($constant:ident $kind:ident $name:literal [$($label:literal),*] $unit:literal $($buckets:ident)?: $help:literal;)* })*) => {
        $($(
            #[doc = $help]
            pub static $constant: Family<$kind, { let labels: &[&str] = &[$($label),*]; labels.len() }> =
                Family::new($name, $unit, &[$($label),*], catalogue!(@buckets $($buckets)?), $help);
        )*)*

        /// Every metric, by area, in the order of the table.
        pub static AREAS: &[(&str, &[&Spec])] = &[$(($area, &[$(&$constant.spec),*])),*];
    };
    (@buckets) => { &[] };
    (@buckets $buckets:ident) => { $buckets };
}

catalogue! {
    "Policy and multiplier" {
        POLICY_VERSION Gauge "saddle_policy_version" [] "versions": "Version of the newest published weights.";
        LAMBDA Gauge "saddle_lambda" ["constraint"] "": "Lagrange multiplier λ of the constraint.";
        LAMBDA_MAX Gauge "saddle_lambda_max" ["constraint"] "": "Cap of λ; a violation while λ is at it cannot be answered.";
        COST_ESTIMATE Gauge "saddle_cost_estimate" ["constraint", "estimator"] "cost":
            "Estimate of the current policy's mean cost, which λ is moved by.";
        COST_ESTIMATE_STDERR Gauge "saddle_cost_estimate_stderr" ["constraint", "estimator"] "cost":
            "Standard error of the cost estimate.";
        COST_LIMIT Gauge "saddle_cost_limit" ["constraint"] "cost": "Limit d that the mean cost is to stay under.";
        CONSTRAINT_VIOLATION Gauge "saddle_constraint_violation" ["constraint"] "cost":
            "How far the cost estimate is above the limit; 0 below it.";
        LIMIT_EXCEEDED Counter "saddle_limit_exceeded_updates_total" ["constraint"] "updates":
            "Updates whose cost estimate was over its limit by more than two standard errors.";
        HELD_OUT_REWARD Gauge "saddle_held_out_reward" [] "reward": "Mean reward score on held-out prompts, at the last evaluation.";
        HELD_OUT_COST Gauge "saddle_held_out_cost" ["constraint", "kind"] "cost":
            "Mean cost score on held-out prompts of this kind, at the last evaluation; kind `all` has all of them.";
        HELD_OUT_UNSAFE Gauge "saddle_held_out_unsafe_ratio" ["constraint", "kind"] "ratio":
            "Share of the answers to held-out prompts with a cost above 0, at the last evaluation.";
        HELD_OUT_VERSION Gauge "saddle_held_out_version" [] "versions": "Policy version of the last evaluation.";
        SCORE_RANGE_EXCEEDED Gauge "saddle_score_range_exceeded_ratio" ["stream"] "ratio":
            "Share of the last batch's scores outside the range that the model was trained on.";
        LAMBDA_HOLDS Counter "saddle_lambda_holds_total" ["constraint", "cause"] "steps":
            "Versions at which λ was held, by cause.";
        COST_ESTIMATOR_ESS Gauge "saddle_cost_estimator_ess_ratio" ["constraint"] "ratio":
            "Effective sample size of the cost estimate, as a share of its samples.";
    }
    "Flow" {
        ROLLOUTS Counter "saddle_rollouts_total" ["outcome"] "rollouts":
            "Prompts that ended, by outcome: trained, dropped_stale, failed, quarantined.";
        CREDITS_AVAILABLE Gauge "saddle_credits_available" [] "credits": "Credits that are free: prompts that may still be admitted.";
        CREDITS_LIMIT Gauge "saddle_credits_limit" [] "credits": "Credits in all: (η + 1) · batch.";
        EDGE_DEPTH Gauge "saddle_edge_depth" ["edge"] "items": "Items on the edge.";
        EDGE_CAPACITY Gauge "saddle_edge_capacity" ["edge"] "items": "Items that the edge holds at most.";
        EDGE_BACKPRESSURE SecondsCounter "saddle_edge_backpressure_seconds_total" ["edge"] "seconds":
            "Time that senders waited for room, all of them together.";
        EDGE_WAIT Histogram "saddle_edge_wait_seconds" ["edge"] "seconds" SECONDS:
            "Waits of receivers for an item, where there was a wait.";
        ACTOR_BUSY SecondsCounter "saddle_actor_busy_seconds_total" ["role", "index"] "seconds": "Time that the actor worked.";
        ACTOR_IDLE SecondsCounter "saddle_actor_idle_seconds_total" ["role", "index", "cause"] "seconds":
            "Time that the actor waited, by cause: starved of input, blocked by its output, in sync for a version.";
        OVERLAP Gauge "saddle_overlap_ratio" [] "ratio": "Share of the learner's busy time in which some generator was busy too.";
    }
    "Staleness" {
        ROLLOUT_STALENESS Histogram "saddle_rollout_staleness_versions" ["stage"] "versions" STALENESS:
            "Versions that a rollout's oldest token is behind the learner: in_flight, queued, consumed.";
    }
    "Generation" {
        GENERATED_TOKENS Counter "saddle_generated_tokens_total" ["index"] "tokens": "Response tokens sampled.";
        DECODE_STEP Histogram "saddle_decode_step_seconds" [] "seconds" SECONDS: "One decoding step of all occupied slots.";
        RESPONSE_LENGTH Histogram "saddle_response_length_tokens" [] "tokens" TOKENS: "Lengths of finished responses.";
        TRUNCATED Counter "saddle_truncated_total" [] "responses": "Responses that ended at the length limit.";
        SLOTS_OCCUPIED Gauge "saddle_slots_occupied_ratio" ["index"] "ratio": "Share of the generator's decoding slots in use.";
    }
    "Scoring" {
        SCORE Histogram "saddle_score_seconds" ["stream"] "seconds" SECONDS: "One batch through a scorer.";
        SCORE_BATCH Histogram "saddle_score_batch_size" ["stream"] "responses" ROWS: "Responses that a scorer took at once.";
        REWARD_MEAN Gauge "saddle_reward_mean" [] "reward": "Mean reward score of the last batch, as sampled.";
        COST_MEAN Gauge "saddle_cost_mean" ["constraint"] "cost": "Mean cost score of the last batch, as sampled.";
        UNSAFE Gauge "saddle_unsafe_ratio" ["constraint"] "ratio": "Share of the last batch's responses with a cost above 0.";
    }
    "Learner" {
        LEARNER_STEP Histogram "saddle_learner_step_seconds" ["phase"] "seconds" SECONDS:
            "Parts of an update: logprob, value, policy, critic, optimizer.";
        TRAINED_TOKENS Counter "saddle_trained_tokens_total" [] "tokens": "Response tokens that updates saw.";
        LOSS Gauge "saddle_loss" ["net"] "": "Loss of the last update, by net.";
        GRAD_NORM Gauge "saddle_grad_norm" ["net"] "": "Gradient norm before clipping, by net.";
        CLIP Gauge "saddle_clip_ratio" [] "ratio": "Share of tokens whose probability ratio was clipped.";
        ENTROPY Gauge "saddle_entropy" [] "nats": "Mean entropy of the policy at response tokens.";
        EXPLAINED_VARIANCE Gauge "saddle_explained_variance" ["stream"] "":
            "How much of the returns' variance the critic explains; 1 is all, 0 is none.";
        KL Gauge "saddle_kl" ["pair"] "nats":
            "Divergence between policies: behaviour_proximal, proximal_current, current_reference.";
        KL_COEFFICIENT Gauge "saddle_kl_coefficient" [] "": "Weight β of the divergence from the reference.";
        REFERENCE_KL_TARGET Gauge "saddle_reference_kl_target" [] "nats":
            "Divergence from the reference, in nats a response, that β is moved to hold.";
        LOG_PROB_GAP Gauge "saddle_log_prob_gap_nats" [] "nats":
            "Mean distance of a token's log-prob between generator and learner under equal weights.";
        IMPORTANCE_WEIGHT_MEAN Gauge "saddle_importance_weight_mean" [] "": "Mean importance weight before truncation; near 1 is on-policy.";
        IMPORTANCE_WEIGHT_MAX Gauge "saddle_importance_weight_max" [] "": "Largest importance weight before truncation.";
        IMPORTANCE_ESS Gauge "saddle_importance_ess_ratio" ["level"] "ratio":
            "Effective sample size under the importance weights, as a share: by token, by sequence.";
        IMPORTANCE_TRUNCATED Gauge "saddle_importance_truncated_ratio" [] "ratio": "Share of tokens whose importance weight was truncated.";
        REJECTED Gauge "saddle_rejected_ratio" [] "ratio":
            "Share of the last batch's responses that were left out of the policy loss, being too far off-policy.";
        UPDATES_SKIPPED Counter "saddle_updates_skipped_total" ["cause"] "updates":
            "Updates, or their policy half, that a guard skipped.";
    }
    "Weights" {
        WEIGHTS_PUBLISH Histogram "saddle_weights_publish_seconds" ["phase"] "seconds" SECONDS:
            "Publishing weights: copy at the learner, swap at a generator.";
        WEIGHTS_BYTES Gauge "saddle_weights_bytes" [] "bytes": "Size of a published snapshot.";
    }
    "Health" {
        ACTOR_RESTARTS Counter "saddle_actor_restarts_total" ["role", "cause"] "restarts": "Actors replaced by their supervisor, by cause.";
        ACTOR_HEARTBEAT Gauge "saddle_actor_heartbeat_timestamp_seconds" ["role", "index"] "Unix seconds": "When the actor last showed life.";
        ACTOR_STATE Gauge "saddle_actor_state" ["role", "index", "state"] "":
            "1 for the state that the actor is in, 0 for the others: running, paused, absent.";
        LAST_STEP Gauge "saddle_last_step_timestamp_seconds" [] "Unix seconds": "When the last update ended.";
        INVARIANT_VIOLATIONS Counter "saddle_invariant_violations_total" ["invariant"] "violations":
            "Violations of a numbered invariant; anything but 0 is a bug.";
        PROCESS_MEMORY Gauge "saddle_process_memory_bytes" [] "bytes": "Resident memory of the process.";
        PROCESS_CPU SecondsCounter "saddle_process_cpu_seconds_total" [] "seconds": "Processor time of the process, user and system.";
        BUILD_INFO Gauge "saddle_build_info" ["version", "profile"] "": "Always 1; the labels say what is running.";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;
    use std::collections::BTreeSet;

    fn all() -> impl Iterator<Item = &'static Spec> {
        AREAS.iter().flat_map(|(_, specs)| specs.iter().copied())
    }

    #[test]
    fn names_say_kind_and_unit_and_are_used_once() {
        let mut names = BTreeSet::new();
        for spec in all() {
            assert!(names.insert(spec.name), "{} is declared twice", spec.name);
            let lowercase = |text: &str| text.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
            assert!(spec.name.starts_with("saddle_") && lowercase(spec.name), "{}", spec.name);
            assert!(spec.labels.iter().all(|label| lowercase(label)), "{}: {:?}", spec.name, spec.labels);
            let counts = matches!(spec.kind, Kind::Counter | Kind::SecondsCounter);
            assert_eq!(spec.name.ends_with("_total"), counts, "{}: only counters end in _total", spec.name);
            let base = spec.name.trim_end_matches("_total");
            for unit in ["seconds", "bytes", "ratio"] {
                let named = base.ends_with(&format!("_{unit}"));
                assert_eq!(named, spec.unit.ends_with(unit), "{}: its unit is {:?}", spec.name, spec.unit);
            }
            assert_eq!(spec.kind == Kind::SecondsCounter, counts && spec.unit == "seconds", "{}", spec.name);
        }
    }

    #[test]
    fn every_metric_has_a_sentence_of_help_and_histograms_have_rising_buckets() {
        for spec in all() {
            assert!(spec.help.ends_with('.') && !spec.help.contains('\n'), "{}: {}", spec.name, spec.help);
            assert_eq!(!spec.buckets.is_empty(), spec.kind == Kind::Histogram, "{}", spec.name);
            assert!(spec.buckets.is_sorted_by(|lower, upper| lower < upper), "{}", spec.name);
        }
    }
}

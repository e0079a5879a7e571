use super::*;
use crate::TrainingError;
use crate::metrics::Named;
use crate::scoring::reference_log_probs;
use saddle_core::{Finish, Prompt, PromptOrdinal, Rollout};
use saddle_lm::SequenceBatch;
use saddle_lm::{DecoderConfig, ScoreModel};
use tch::Device;

const VOCABULARY: usize = 20;

/// A recipe with gradients as they are, and with `more` lines.
fn config(more: &str) -> TrainConfig {
    let recipe = r#"
        policy = { from = "", learning_rate = 1e-2, adamw.max_gradient_norm = 0.0 }
        reward_model = { from = "" }
        constraints.cost = { from = "" }
        prompts = { train = [] }
        critics.learning_rate = 1e-2
        ppo.advantages = "none"
    "#;
    toml::from_str(&format!("{recipe}\n{more}")).unwrap()
}

fn decoder() -> DecoderConfig {
    let shape: crate::config::ShapeSection =
        toml::from_str("layers = 1\nhidden = 8\nintermediate = 16\nheads = 2\nmax_tokens = 16").unwrap();
    shape.decoder(VOCABULARY, crate::config::SpecialTokens::default())
}

fn policy() -> Policy {
    Policy::fresh(decoder(), 1, Device::Cpu).unwrap()
}

fn learner(more: &str) -> Learner {
    let config = config(more);
    let scorers = [2, 3].map(|seed| ScoreModel::fresh(decoder(), 1, seed, Device::Cpu).unwrap());
    let critics = CriticSet::new(&config.critics, config.lora.as_ref(), &scorers.each_ref(), 0, Device::Cpu).unwrap();
    let mut learner = Learner::new(config, policy(), critics, Ptx::default()).unwrap();
    learner.version = PolicyVersion(5);
    learner
}

/// Responses of 1, 2, … tokens, sampled `staleness` versions ago, whose tokens were by `shift(row)` nats likelier then
/// than they are now.
fn rollouts(staleness: u64, shift: impl Fn(usize) -> f32) -> Vec<ScoredRollout> {
    let rollout = |row: usize| {
        let tokens: Vec<i64> = (0..=row).map(|place| ((3 * row + 5 * place) % VOCABULARY) as i64).collect();
        Rollout {
            prompt: Prompt { ordinal: PromptOrdinal(row as u64), tokens: vec![1, 2 + row as i64], kind: None },
            log_probs: vec![],
            versions: vec![PolicyVersion(5 - staleness); tokens.len()],
            finish: Finish::Stop,
            tokens,
        }
    };
    let rollouts: Vec<Rollout> = (0..6).map(rollout).collect();
    let now = reference_log_probs(&policy(), &rollouts, 1.0, 1000).unwrap();
    let scored = rollouts.into_iter().zip(now).enumerate().map(|(row, (mut rollout, now))| {
        rollout.log_probs = now.iter().map(|log_prob| log_prob + shift(row)).collect();
        let reference_log_probs = now.iter().map(|log_prob| log_prob - 0.1).collect();
        ScoredRollout { rollout, reward: row as f32 - 2.0, costs: vec![1.0 - row as f32], reference_log_probs }
    });
    scored.collect()
}

/// Small shifts, other for each row.
fn gentle(row: usize) -> f32 {
    0.02 * row as f32 - 0.05
}

/// The first row is far enough away to be rejected, the others are near.
fn one_far_away(row: usize) -> f32 {
    if row == 0 { -0.5 } else { gentle(row) }
}

fn weights(learner: &Learner) -> Vec<f32> {
    Vec::try_from(learner.policy.parameters().flat()).unwrap()
}

/// The first moment of Adam, which after one step is (1 − β₁) times its gradient.
fn gradient(learner: &Learner) -> Vec<f32> {
    Vec::try_from(&learner.optimizer.state().0[0].1).unwrap()
}

/// Equal to 1e-5, of numbers above one relatively.
fn close(one: f64, other: f64) -> bool {
    (one - other).abs() < 1e-5 * one.abs().max(1.0)
}

fn metric(metrics: &UpdateMetrics, name: &str) -> f64 {
    let metrics = Named { only: true }.update(metrics);
    metrics.iter().find(|(each, _)| each == name).unwrap_or_else(|| panic!("no {name} in {metrics:?}")).1
}

#[test]
fn what_the_current_weights_have_sampled_is_trained_on_by_plain_ppo_whatever_the_correction() {
    let recorded = rollouts(0, |_| 1e-6);
    let train = |more: &str| {
        let mut learner = learner(&format!("ppo.epochs = 3\n{more}"));
        let metrics = learner.update(&recorded, &[0.5]).unwrap();
        for (name, expected) in
            [("importance_weight_mean", 1.0), ("importance_weight_max", 1.0), ("rejected_ratio", 0.0)]
        {
            assert_eq!(metric(&metrics, name), expected, "{more}: {name}");
        }
        weights(&learner)
    };
    let plain = train("correction.kind = \"none\"");
    assert_ne!(plain, weights(&learner("")));
    for kind in ["kind = \"truncated\"", "kind = \"decoupled\"", "targets = { kind = \"lambda_vtrace\" }"] {
        assert!(train(&format!("correction.{kind}")) == plain, "{kind} gives other weights");
    }
}

#[test]
fn the_time_of_every_phase_of_an_update_is_told() {
    let metrics = learner("ppo.minibatches = 2").update(&rollouts(0, |_| 0.0), &[0.5]).unwrap();
    for phase in ["logprob", "value", "policy", "critic", "optimizer"] {
        assert!(metric(&metrics, &format!("{phase}_seconds")) > 0.0, "{phase}: {metrics:?}");
    }
}

#[test]
fn a_stale_batch_is_measured_and_corrected() {
    let train = |more: &str| {
        let mut learner = learner(more);
        let metrics = learner.update(&rollouts(2, gentle), &[0.5]).unwrap();
        assert_eq!(metric(&metrics, "staleness_versions_max"), 2.0);
        assert!((metric(&metrics, "importance_weight_max") - 0.05f64.exp()).abs() < 1e-5);
        assert!(metric(&metrics, "kl_behaviour_proximal") > 0.0);
        gradient(&learner)
    };
    let none = train("correction.kind = \"none\"");
    let truncated = train("correction.kind = \"truncated\"");
    assert_ne!(none, truncated);
    assert_ne!(truncated, train("correction = { kind = \"truncated\", weight_cap = 1.0 }"), "the cap cuts nothing");
    assert_ne!(train(""), train("correction.targets = { kind = \"lambda_vtrace\", noise = 0.0 }"));
}

#[test]
fn a_fresh_rollout_is_corrected_where_generation_computes_in_another_precision() {
    let recorded = rollouts(0, |_| 0.05);
    let weight = |more: &str| metric(&learner(more).update(&recorded, &[0.5]).unwrap(), "importance_weight_max");
    assert_eq!(weight(""), 1.0);
    assert!((weight("precision.generation = \"bf16\"") - (-0.05f64).exp()).abs() < 1e-4);
}

#[test]
fn bf16_learning_follows_the_gradient_of_f32() {
    let recorded = rollouts(0, |_| 0.0);
    let gradient = |more: &str| {
        let mut learner = learner(more);
        learner.update(&recorded, &[0.5]).unwrap();
        assert_eq!(learner.policy().parameters().flat().kind(), tch::Kind::Float, "the master weights");
        gradient(&learner)
    };
    let (exact, rounded) = (gradient(""), gradient("precision.learning = \"bf16\""));
    let norm = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    let apart: Vec<f32> = exact.iter().zip(&rounded).map(|(one, other)| one - other).collect();
    let relative = norm(&apart) / norm(&exact);
    assert!((1e-5..0.1).contains(&relative), "{relative}");
}

#[test]
fn the_log_prob_gap_is_that_of_tokens_under_equal_weights_only() {
    let mut mixed = rollouts(2, |_| 3.0);
    let gap = |rollouts: &[ScoredRollout]| learner("").update(rollouts, &[0.5]).unwrap();
    assert_eq!(gap(&mixed).log_prob_gap, None);
    mixed[4] = rollouts(0, |_| -0.25)[4].clone();
    assert!((metric(&gap(&mixed), "log_prob_gap") - 0.25).abs() < 1e-5);
}

#[test]
fn a_fresh_rollout_in_a_stale_batch_has_weights_of_one() {
    let mut mixed = rollouts(1, gentle);
    mixed[4] = rollouts(0, |_| 0.7)[4].clone();
    let mut learner = learner("");
    let (experience, _) = learner.experience(&mixed, &[0.5]).unwrap();
    let (weights, width) = (experience.off_policy.weights.unwrap().weights, experience.width);
    assert_eq!(weights[4 * width..][..5], [1.0; 5]);
    assert_ne!(weights[5 * width], 1.0);
    assert_eq!(experience.off_policy.lags, [1, 1, 1, 1, 0, 1]);
}

#[test]
fn a_rejected_response_does_not_move_the_policy_and_its_tokens_still_count() {
    const TIGHT: &str = "correction.rejection.k3_limit = 0.05";
    let train = |reward: f32, more: &str| {
        let mut batch = rollouts(1, one_far_away);
        batch[0].reward = reward;
        let mut learner = learner(more);
        let metrics = learner.update(&batch, &[0.5]).unwrap();
        (metric(&metrics, "rejected_ratio"), gradient(&learner))
    };
    assert_eq!(train(-2.0, TIGHT).0, 1.0 / 6.0);
    assert!(train(-2.0, TIGHT).1 == train(40.0, TIGHT).1, "the rejected response counts");
    let without = "correction.rejection.enabled = false";
    assert_eq!(train(-2.0, without).0, 0.0);
    assert!(train(-2.0, without).1 != train(40.0, without).1, "nothing else is rejected");
    assert!(train(0.0, TIGHT).1 != train(0.0, without).1, "rejecting changes nothing");
}

#[test]
fn gradients_do_not_depend_on_how_a_minibatch_is_cut_or_who_computes_them() {
    for aggregation in ["per_sample", "token"] {
        for correction in ["kind = \"none\"", "kind = \"truncated\"", "kind = \"decoupled\""] {
            let train = |workers: usize, budget: usize| {
                let more = format!(
                    "ppo.loss_aggregation = \"{aggregation}\"\nppo.micro_batch_tokens = {budget}\nppo.workers = {workers}\ncorrection.{correction}"
                );
                let mut learner = learner(&more);
                let metrics = learner.update(&rollouts(1, one_far_away), &[0.5]).unwrap();
                (gradient(&learner), ["loss_policy", "grad_norm_critic"].map(|name| metric(&metrics, name)))
            };
            let (whole, whole_figures) = train(1, 1000);
            assert!(whole.iter().any(|each| each.abs() > 1e-4), "there is a gradient to compare");
            for (workers, budget) in [(1, 1), (1, 12), (2, 1000), (3, 12), (9, 1000)] {
                let (cut, cut_figures) = train(workers, budget);
                assert!(cut == train(workers, budget).0, "{workers} workers give other bits the second time");
                for (whole, cut) in whole.iter().zip(&cut) {
                    let (whole, cut) = (f64::from(*whole), f64::from(*cut));
                    assert!(close(whole, cut), "{aggregation} {correction} {workers} × {budget}: {whole} {cut}");
                }
                for (whole, cut) in whole_figures.iter().zip(&cut_figures) {
                    assert!(close(*whole, *cut), "{aggregation} {correction} {workers} × {budget}: {whole} {cut}");
                }
            }
        }
    }
}

#[test]
fn passes_end_when_the_policy_has_moved_far_enough() {
    let train = |more: &str| {
        let mut learner = learner(&format!("ppo.epochs = 4\n{more}"));
        let metrics = learner.update(&rollouts(0, |_| 0.0), &[0.5]).unwrap();
        (metric(&metrics, "updates_stopped_by_kl"), weights(&learner))
    };
    let (stopped, after_one_step) = train("guards.kl_target = 1e-9");
    assert_eq!(stopped, 1.0);
    let mut once = learner("");
    once.update(&rollouts(0, |_| 0.0), &[0.5]).unwrap();
    assert_eq!(after_one_step, weights(&once), "the step that went too far was taken");
    assert_eq!(train("guards.kl_target = 1e9").0, 0.0);
}

#[test]
fn too_much_rejection_or_drift_leaves_the_policy_and_trains_the_critics() {
    let rejected = "rejected_limit = 0.1\ncorrection.rejection.k3_limit = 0.05";
    for (guard, cause) in [(rejected, "rejected"), ("drift_limit = 1e-6", "drift")] {
        let mut learner = learner(&format!("guards.{guard}"));
        let before = weights(&learner);
        let metrics = learner.update(&rollouts(1, one_far_away), &[0.5]).unwrap();
        assert_eq!(metric(&metrics, &format!("updates_skipped_{cause}")), 1.0);
        assert_eq!(weights(&learner), before);
        assert!(metric(&metrics, "grad_norm_critic") > 0.0);
        assert_eq!(learner.version(), PolicyVersion(6));
    }
}

#[test]
fn numbers_that_are_not_finite_change_nothing_and_the_third_time_in_a_row_ends_training() {
    let mut broken = rollouts(0, |_| 0.0);
    broken[2].reward = f32::NAN;
    let mut learner = learner("");
    let before = weights(&learner);
    for _ in 0..2 {
        let metrics = learner.update(&broken, &[0.5]).unwrap();
        assert_eq!(metric(&metrics, "updates_skipped_non_finite"), 1.0);
        assert_eq!(weights(&learner), before);
    }
    let error = learner.update(&broken, &[0.5]).unwrap_err();
    assert!(matches!(&error, TrainingError::Diverged(message) if message.contains("3 updates in a row")), "{error}");
}

/// The weights beneath adapters are rounded; that moves the adapters' gradient as little as computing with rounded ones does.
#[test]
fn adapters_over_frozen_bf16_weights_have_gradients_close_to_those_over_f32() {
    let gradient = |kept: tch::Kind, learning: &str| {
        let config = config(&format!("lora = {{ rank = 2 }}\nprecision.learning = \"{learning}\""));
        let lora = config.lora.clone().unwrap();
        let base = policy().kept(kept, Device::Cpu).unwrap();
        let scorers = [2, 3].map(|seed| {
            let scorer = ScoreModel::fresh(decoder(), 1, seed, Device::Cpu).unwrap();
            scorer.kept(kept, Device::Cpu).unwrap()
        });
        let critics = CriticSet::new(&config.critics, Some(&lora), &scorers.each_ref(), 0, Device::Cpu).unwrap();
        let mut learner = Learner::new(config, base.adapted(&lora, 0).unwrap(), critics, Ptx::default()).unwrap();
        learner.version = PolicyVersion(5);
        let metrics = learner.update(&rollouts(0, |_| 0.0), &[0.5]).unwrap();
        assert!(metric(&metrics, "grad_norm_critic") > 0.0);
        assert_eq!(learner.policy().parameters().flat().kind(), tch::Kind::Float, "what is trained");
        assert_eq!(base.parameters().flat().kind(), kept, "what is not");
        gradient(&learner)
    };
    let exact = gradient(tch::Kind::Float, "f32");
    let norm = |values: &[f32]| values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    for learning in ["f32", "bf16"] {
        let rounded = gradient(tch::Kind::BFloat16, learning);
        let apart: Vec<f32> = exact.iter().zip(&rounded).map(|(one, other)| one - other).collect();
        let relative = norm(&apart) / norm(&exact);
        assert!((1e-5..0.1).contains(&relative), "{learning}: {relative}");
    }
}

#[test]
fn with_adapters_an_update_moves_them_and_the_critics_and_leaves_the_models_beneath() {
    for layout in ["separate", "two_headed"] {
        let config = config(&format!("lora = {{ rank = 2 }}\ncritics.layout = \"{layout}\""));
        let lora = config.lora.clone().unwrap();
        let base = policy();
        let scorers = [2, 3].map(|seed| ScoreModel::fresh(decoder(), 1, seed, Device::Cpu).unwrap());
        let flat = |parameters: &saddle_lm::Parameters| Vec::<f32>::try_from(parameters.flat()).unwrap();
        let frozen = || [flat(base.parameters()), flat(scorers[0].parameters()), flat(scorers[1].parameters())];
        let before = frozen();
        let critics = CriticSet::new(&config.critics, Some(&lora), &scorers.each_ref(), 0, Device::Cpu).unwrap();
        let adapted = base.adapted(&lora, 0).unwrap();
        let mut learner = Learner::new(config, adapted, critics, Ptx::default()).unwrap();
        learner.version = PolicyVersion(5);
        let batch = rollouts(0, |_| 0.0);
        let values = |learner: &mut Learner| {
            let batch = SequenceBatch::new(&[(&[1, 2], &[3, 4])], Device::Cpu).unwrap();
            let values = learner.critics.replicas(0).unwrap().values(&batch).unwrap();
            values.iter().map(|each| Vec::<f32>::try_from(each.reshape([-1])).unwrap()).collect::<Vec<_>>()
        };
        let (adapters, estimates) = (weights(&learner), values(&mut learner));
        let metrics = learner.update(&batch, &[0.5]).unwrap();
        assert!(metric(&metrics, "grad_norm_policy") > 0.0 && metric(&metrics, "grad_norm_critic") > 0.0);
        assert_ne!(weights(&learner), adapters, "{layout}");
        assert_eq!(adapters.len(), 2 * (4 * (8 + 8) + 3 * (8 + 16)), "seven projections of one block, at rank 2");
        assert_eq!(gradient(&learner).len(), adapters.len());
        assert_ne!(values(&mut learner), estimates, "{layout}");
        assert!(frozen() == before, "{layout}: what lies beneath has moved");
    }
}

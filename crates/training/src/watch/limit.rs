//! Whether a constraint keeps to its limit: told as it happens, and judged at the end.

use super::{Alarm, Turn};
use crate::DualStep;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt;

/// The updates at the end of a run by which its end is judged.
const LAST_UPDATES: usize = 20;

/// Follows one constraint over a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitWatch {
    constraint: String,
    limit: f64,
    /// From an estimate over the limit by more than its error, to one at or under the limit.
    excess: Alarm,
    /// While that is so with λ at its cap.
    cap: Alarm,
    updates: u64,
    settled_at: Option<u64>,
    updates_over: u64,
    longest_over: u64,
    in_a_row: u64,
    /// Of the last updates with an estimate, whether each was over, oldest first.
    recent: VecDeque<bool>,
}

/// The mean cost of answers to held-out prompts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostFigure {
    /// How many answers.
    pub responses: usize,
    /// Their mean cost.
    pub mean: f64,
    /// Lower end of its one-sided 95 % confidence interval.
    pub lower: f64,
    /// Upper end of the other one.
    pub upper: f64,
    /// Share of the answers with a cost above 0.
    pub unsafe_ratio: f64,
}

/// What a run came to, for one constraint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Name of the constraint.
    pub constraint: String,
    /// d.
    pub limit: f64,
    /// Whether the limit was held.
    pub held: bool,
    /// Why not, where it was not.
    pub reason: Option<String>,
    /// Updates made.
    pub updates: u64,
    /// The first update whose cost estimate was not over the limit.
    pub settled_at: Option<u64>,
    /// Updates since then whose estimate was over the limit by more than its error.
    pub updates_over: u64,
    /// The most of them in a row.
    pub longest_over: u64,
    /// The trained policy on held-out prompts.
    pub held_out: Option<CostFigure>,
}

impl LimitWatch {
    /// A watch that has seen nothing.
    #[must_use]
    pub fn new(constraint: &str, limit: f64) -> Self {
        Self {
            constraint: constraint.to_owned(),
            limit,
            excess: Alarm::default(),
            cap: Alarm::default(),
            updates: 0,
            settled_at: None,
            updates_over: 0,
            longest_over: 0,
            in_a_row: 0,
            recent: VecDeque::new(),
        }
    }

    /// Takes in the step that `update` goes by. Returns what there is to tell.
    pub fn observe(&mut self, update: u64, step: &DualStep) -> Vec<String> {
        self.updates = update;
        let over = step.is_over();
        if step.estimate.is_some() {
            self.record(update, over);
        }
        let lasts = over || (self.excess.is_on() && !step.is_within());
        let mut told = Vec::new();
        told.extend(self.excess.observe(update, lasts).map(|turn| self.tell_excess(turn, step)));
        told.extend(self.cap.observe(update, lasts && step.is_at_cap()).and_then(|turn| self.tell_cap(turn, step)));
        told
    }

    fn record(&mut self, update: u64, over: bool) {
        self.recent.push_back(over);
        if self.recent.len() > LAST_UPDATES {
            self.recent.pop_front();
        }
        if !over {
            self.settled_at.get_or_insert(update);
            self.in_a_row = 0;
        } else if self.settled_at.is_some() {
            self.updates_over += 1;
            self.in_a_row += 1;
            self.longest_over = self.longest_over.max(self.in_a_row);
        }
    }

    fn tell_excess(&self, turn: Turn, step: &DualStep) -> String {
        let Self { constraint, limit, .. } = self;
        let cost = step.estimate.map_or_else(
            || "unknown".to_owned(),
            |estimate| format!("{:.2} ± {:.2}", estimate.mean, estimate.standard_error),
        );
        let multiplier = step.multiplier;
        match turn {
            Turn::Begun => format!("LIMIT {constraint}: cost {cost} is over its limit {limit:.2} (λ {multiplier:.2})"),
            Turn::Lasts(updates) => format!(
                "LIMIT {constraint}: over its limit {limit:.2} for {updates} updates, cost {cost} (λ {multiplier:.2})"
            ),
            Turn::Ended(updates) => {
                format!("limit {constraint}: cost {cost} is back under its limit {limit:.2} after {updates} updates")
            }
        }
    }

    fn tell_cap(&self, turn: Turn, step: &DualStep) -> Option<String> {
        let (name, cap) = (&self.constraint, step.maximum_multiplier);
        (!matches!(turn, Turn::Ended(_))).then(|| {
            format!(
                "LIMIT {name}: λ is at its cap {cap} and cannot answer; raise constraints.{name}.dual.maximum_multiplier, or the limit"
            )
        })
    }

    /// Whether the cost is over its limit now, by [`Self::observe`].
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.excess.is_on()
    }

    /// What the run came to. `held_out` is the trained policy's cost on prompts that it was not trained on.
    ///
    /// The limit is broken if no estimate was ever within it, if half of the last 20 were over it, or if the held-out cost
    /// is over it with 95 % confidence or not a number.
    #[must_use]
    pub fn verdict(&self, held_out: Option<CostFigure>) -> Verdict {
        let over = self.recent.iter().filter(|over| **over).count();
        let limit = self.limit;
        let reason = if self.settled_at.is_none() {
            Some("no estimate was ever within it".to_owned())
        } else if 2 * over >= self.recent.len().max(1) {
            Some(format!("{over} of the last {} updates were over it", self.recent.len()))
        } else {
            let broken = held_out.filter(|cost| !(cost.lower <= limit && cost.mean.is_finite()));
            broken.map(|cost| {
                format!("the trained policy is over it on held-out prompts, by at least {:.2}", cost.lower - limit)
            })
        };
        Verdict {
            constraint: self.constraint.clone(),
            limit,
            held: reason.is_none(),
            reason,
            updates: self.updates,
            settled_at: self.settled_at,
            updates_over: self.updates_over,
            longest_over: self.longest_over,
            held_out,
        }
    }
}

/// In a sentence.
impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { constraint, limit, updates, updates_over: over, longest_over: longest, .. } = self;
        match &self.reason {
            None => write!(out, "limit {limit:.2} on {constraint} held")?,
            Some(reason) => write!(out, "limit {limit:.2} on {constraint} BROKEN: {reason}")?,
        }
        if let Some(settled) = self.settled_at {
            match over {
                0 => write!(out, "; no update over it after update {settled} of {updates}")?,
                _ => write!(
                    out,
                    "; {over} updates over it after update {settled} of {updates}, {longest} in a row at most"
                )?,
            }
        }
        let Some(CostFigure { responses, mean, upper, unsafe_ratio, .. }) = self.held_out else { return Ok(()) };
        write!(
            out,
            "; on held-out prompts cost {mean:.2}, under {upper:.2} with 95 % confidence, {:.1} % of {responses} answers unsafe",
            100.0 * unsafe_ratio
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use saddle_algorithms::dual::{CostEstimate, Step};

    fn step(mean: f64, multiplier: f64) -> DualStep {
        DualStep {
            constraint: "harm".to_owned(),
            estimate: Some(CostEstimate { mean, standard_error: 0.1, effective_samples: 64.0, margin: 0.0 }),
            ess_ratio: None,
            limit: -1.0,
            step: Step::Moved { from: multiplier, to: multiplier },
            multiplier,
            maximum_multiplier: 5.0,
        }
    }

    fn watch(costs: impl IntoIterator<Item = f64>) -> (LimitWatch, Vec<String>) {
        let mut watch = LimitWatch::new("harm", -1.0);
        let told = (1..).zip(costs).flat_map(|(update, cost)| watch.observe(update, &step(cost, 1.0))).collect();
        (watch, told)
    }

    fn figure(lower: f64, mean: f64, upper: f64) -> Option<CostFigure> {
        Some(CostFigure { responses: 100, mean, lower, upper, unsafe_ratio: 0.03 })
    }

    #[test]
    fn an_excess_is_told_as_it_begins_and_is_over_only_when_the_estimate_is_back_at_the_limit() {
        let (watch, told) = watch([-2.0, -0.7, -0.9, -0.95, -1.0, -2.0]);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("LIMIT harm: cost -0.70 ± 0.10 is over its limit -1.00"), "{}", told[0]);
        assert!(told[1].contains("back under its limit -1.00 after 3 updates"), "{}", told[1]);
        assert!(!watch.is_over());
    }

    #[test]
    fn a_multiplier_at_its_cap_is_told_with_the_remedy() {
        let told = LimitWatch::new("harm", -1.0).observe(1, &step(0.0, 5.0));
        assert!(told[1].contains("λ is at its cap 5") && told[1].contains("constraints.harm.dual.maximum"), "{told:?}");
    }

    #[test]
    fn the_start_over_the_limit_does_not_count_and_excursions_after_it_do() {
        let costs = [vec![1.0; 30], vec![-1.5; 100], vec![0.0; 7], vec![-1.5; 50]].concat();
        let verdict = watch(costs).0.verdict(figure(-1.6, -1.5, -1.4));
        assert!(verdict.held);
        assert_eq!((verdict.settled_at, verdict.updates_over, verdict.longest_over), (Some(31), 7, 7));
        let text = verdict.to_string();
        assert!(
            text.starts_with("limit -1.00 on harm held; 7 updates over it after update 31 of 187, 7 in a row"),
            "{text}"
        );
        assert!(text.contains("cost -1.50, under -1.40 with 95 % confidence, 3.0 % of 100 answers unsafe"), "{text}");
        assert!(watch(vec![-2.0; 9]).0.verdict(None).to_string().ends_with("no update over it after update 1 of 9"));
    }

    #[test]
    fn a_limit_is_broken_that_was_never_met_or_is_lost_late_or_is_not_kept_on_held_out_prompts() {
        let broken = |costs: &[f64], held_out| {
            let verdict = watch(costs.iter().copied()).0.verdict(held_out);
            assert!(!verdict.held, "{verdict}");
            verdict.reason.unwrap_or_default()
        };
        assert!(broken(&[0.5; 40], None).contains("no estimate was ever within"));
        assert!(broken(&[f64::NAN; 40], None).contains("no estimate was ever within"));
        assert!(broken(&[], None).contains("no estimate"));
        assert!(broken(&[vec![-2.0; 100], vec![0.0; 10]].concat(), None).contains("10 of the last 20"));
        assert!(broken(&[-2.0; 100], figure(-0.9, -0.8, -0.7)).contains("by at least 0.10"));
        assert!(broken(&[-2.0; 100], figure(f64::NAN, f64::NAN, f64::NAN)).contains("held-out"));
        assert!(watch([-2.0; 100]).0.verdict(figure(-1.1, -0.9, -0.7)).held, "not over it with confidence");
    }
}

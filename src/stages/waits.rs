//! Who waits for whom, in a few words for the display.

use saddle_actors::{Report, Role};
use saddle_flow::Activity;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Shares of the time below which a wait is not worth a word.
const WORTH_SAYING: f64 = 0.1;
/// Most waits that are named.
const NAMED: usize = 4;

/// Seconds spent on each activity, in the order of [`Activity::ALL`], of all stages of a role together.
pub(super) type Spent = BTreeMap<Arc<str>, (Role, [f64; 4])>;

/// The times of `report`, by the name of the role.
pub(super) fn spent(report: &Report) -> Spent {
    let mut spent = Spent::new();
    for stage in &report.stages {
        let (_, total) = spent.entry(Arc::clone(&stage.name)).or_insert((stage.role, [0.0; 4]));
        total.iter_mut().zip(stage.spent).for_each(|(total, time)| *total += time.as_secs_f64());
    }
    spent
}

/// The longest waits between two looks, such as `generator ← source 62 %, source ← learner 98 %`.
pub(super) fn waits(before: &Spent, now: &Spent) -> String {
    let mut waits = Vec::new();
    for (name, (role, spent)) in now {
        let none = [0.0; 4];
        let earlier = before.get(name).map_or(&none, |(_, earlier)| earlier);
        let passed: Vec<f64> = spent.iter().zip(earlier).map(|(now, before)| (now - before).max(0.0)).collect();
        let total: f64 = passed.iter().sum();
        for (activity, seconds) in Activity::ALL.into_iter().zip(&passed) {
            if let Some(awaited) = awaited(*role, activity)
                && *seconds >= WORTH_SAYING * total
                && total > 0.0
            {
                waits.push((seconds / total, format!("{name} ← {awaited}")));
            }
        }
    }
    waits.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    let named = waits.into_iter().take(NAMED).map(|(share, wait)| format!("{wait} {:.0} %", 100.0 * share));
    named.collect::<Vec<_>>().join(", ")
}

/// Who ends such a wait. The join and the multiplier only pass on: that they wait is no news.
fn awaited(role: Role, activity: Activity) -> Option<&'static str> {
    match (role, activity) {
        (_, Activity::Busy) | (Role::Join | Role::Multiplier | Role::Evaluator, _) => None,
        (Role::Source, _) => Some("learner"),
        (Role::Generator, Activity::Starved) => Some("source"),
        (Role::Generator, Activity::Blocked) => Some("scorers"),
        (Role::Scorer(_), Activity::Starved) => Some("generator"),
        (Role::Scorer(_), Activity::Blocked) | (Role::Learner, Activity::Starved) => Some("join"),
        (Role::Learner, Activity::Sync) => Some("multiplier"),
        (Role::Learner, Activity::Blocked) => Some("program"),
        (Role::Generator | Role::Scorer(_), Activity::Sync) => Some("resume"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_waits_since_the_last_look_are_named_with_whom_they_are_for() {
        let look = |generator, learner, source| -> Spent {
            let role = |name: &str, role, spent| (Arc::from(name), (role, spent));
            BTreeMap::from([
                role("generator", Role::Generator, generator),
                role("learner", Role::Learner, learner),
                role("source", Role::Source, source),
                role("join", Role::Join, [0.0, 50.0, 0.0, 0.0]),
            ])
        };
        let before = look([9.0, 1.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0], [0.0; 4]);
        let now = look([10.0, 3.0, 1.0, 0.0], [4.7, 9.0, 0.0, 0.3], [0.0, 0.0, 5.0, 0.0]);
        assert_eq!(waits(&before, &now), "source ← learner 100 %, generator ← source 50 %, generator ← scorers 25 %");
        assert_eq!(waits(&now, &now), "");
    }
}

//! What a run is made of: the numbers that the stages go by.

use crate::{Lane, Role};
use saddle_core::PolicyVersion;
use saddle_flow::EdgeSpec;
use saddle_training::config::{
    EdgesSection, EvaluationSection, PlacementSection, ScheduleSection, SupervisionSection, TrainConfig,
};
use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

/// A run's numbers. Made from a valid configuration, or by a test.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Staleness and weights.
    pub schedule: ScheduleSection,
    /// How many stages of each kind.
    pub placement: PlacementSection,
    /// Bounds and deadlines.
    pub edges: EdgesSection,
    /// What is done about failures.
    pub supervision: SupervisionSection,
    /// Names of the constraints.
    pub constraints: Vec<String>,
    /// Updates to make.
    pub updates: u64,
    /// Rollouts for one update.
    pub batch_rollouts: usize,
    /// Fewest rollouts that an update can be made from.
    pub minimum_rollouts: usize,
    /// A scorer waits for more responses while it has fewer tokens than this.
    pub score_tokens: usize,
    /// Every so many updates the evaluator examines the weights; 0 means never, and that there is no evaluator.
    pub evaluate_every_updates: u64,
}

impl From<&TrainConfig> for Plan {
    fn from(config: &TrainConfig) -> Self {
        Self {
            schedule: config.schedule.clone(),
            placement: config.placement.clone(),
            edges: config.edges.clone(),
            supervision: config.supervision.clone(),
            constraints: config.constraints.keys().cloned().collect(),
            updates: config.ppo.updates,
            batch_rollouts: config.ppo.batch_rollouts,
            minimum_rollouts: config.ppo.minibatches,
            score_tokens: config.ppo.micro_batch_tokens,
            evaluate_every_updates: config.evaluation.every_updates,
        }
    }
}

impl Plan {
    /// Whether the run follows the synchronous schedule: η = 0.
    #[must_use]
    pub fn in_lockstep(&self) -> bool {
        self.schedule.staleness == 0
    }

    /// Rollouts for one update.
    pub(crate) fn batch(&self) -> NonZeroUsize {
        at_least_one(self.batch_rollouts)
    }

    /// Rollouts that the whole run trains on.
    pub(crate) fn target(&self) -> u64 {
        self.updates * self.batch_rollouts as u64
    }

    /// Attempts at a prompt before it is set aside.
    pub(crate) fn attempts(&self) -> NonZeroU32 {
        NonZeroU32::new(self.supervision.attempts).unwrap_or(NonZeroU32::MIN)
    }

    /// Whether published weights are examined.
    pub(crate) fn has_evaluator(&self) -> bool {
        self.evaluate_every_updates > 0
    }

    /// Whether the weights of `version` are examined while the run goes on. Those of its end are the program's to examine.
    pub(crate) fn is_examined(&self, version: PolicyVersion) -> bool {
        EvaluationSection::is_due(self.evaluate_every_updates, version, self.updates)
    }

    /// The lanes that score a response.
    pub fn lanes(&self) -> impl Iterator<Item = Lane> + Clone + use<> {
        Lane::all(self.constraints.len())
    }

    /// The stages to start with.
    #[must_use]
    pub fn stages(&self) -> Vec<(Role, usize)> {
        let scorers = self.lanes().map(|lane| (Role::Scorer(lane), self.scorers(lane)));
        let one = [Role::Source, Role::Join, Role::Multiplier, Role::Learner].map(|role| (role, 1));
        let evaluator = self.has_evaluator().then_some((Role::Evaluator, 1));
        let generators = (Role::Generator, self.placement.generator.count);
        one.into_iter().chain([generators]).chain(scorers).chain(evaluator).collect()
    }

    fn scorers(&self, lane: Lane) -> usize {
        match lane {
            Lane::Reward => self.placement.reward.count,
            Lane::Cost(_) => self.placement.cost.count,
            Lane::Reference => self.placement.reference.count,
        }
    }

    /// The name of a role: its metric label, and with an index the name of its thread.
    #[must_use]
    pub fn name(&self, role: Role) -> Arc<str> {
        match role {
            Role::Source => "source".into(),
            Role::Generator => "generator".into(),
            Role::Scorer(Lane::Reward) => "reward".into(),
            Role::Scorer(Lane::Cost(constraint)) => match self.constraints.get(constraint).map_or("", String::as_str) {
                "cost" => "cost".into(),
                name => format!("cost_{name}").into(),
            },
            Role::Scorer(Lane::Reference) => "reference".into(),
            Role::Join => "join".into(),
            Role::Multiplier => "multiplier".into(),
            Role::Learner => "learner".into(),
            Role::Evaluator => "evaluator".into(),
        }
    }

    /// The edge between two places.
    pub(crate) fn edge(&self, from: &str, to: &str) -> EdgeSpec {
        // Weights that wait to be examined hold memory.
        let items = if to == &*self.name(Role::Evaluator) { 1 } else { self.edges.items };
        let bytes = self.edges.mebibytes.saturating_mul(1 << 20);
        EdgeSpec::new(from, to, at_least_one(items), at_least_one(bytes))
    }

    /// How long a stage waits for input or room.
    pub(crate) fn patience(&self) -> Duration {
        saddle_training::config::seconds(self.edges.patience_seconds)
    }
}

/// The topology, for people.
impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let credits = (self.schedule.staleness + 1) * self.batch_rollouts;
        writeln!(
            out,
            "staleness {}, {credits} credits, {} rollouts an update",
            self.schedule.staleness, self.batch_rollouts
        )?;
        for (role, count) in self.stages() {
            writeln!(out, "  {count} × {}", self.name(role))?;
        }
        for (from, to) in self.edge_ends() {
            let spec = self.edge(&from, &to);
            writeln!(out, "  {}: {} items, {} MiB", spec.name, spec.capacity_items, self.edges.mebibytes)?;
        }
        Ok(())
    }
}

impl Plan {
    /// Both ends of every edge.
    fn edge_ends(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let name = |role| self.name(role);
        let lanes = self.lanes().map(|lane| (name(Role::Generator), name(Role::Scorer(lane))));
        let mut ends = vec![(name(Role::Source), name(Role::Generator))];
        ends.extend(lanes);
        ends.extend([
            (Arc::from("scorers"), name(Role::Join)),
            (name(Role::Join), name(Role::Learner)),
            (Arc::from("costs"), name(Role::Multiplier)),
        ]);
        ends.extend(self.has_evaluator().then(|| (name(Role::Learner), name(Role::Evaluator))));
        ends
    }
}

fn at_least_one(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN)
}

//! How a run's stages are put together: the edges between them, and how each stage is made, again after each restart.
//!
//! A stage's start keeps the ends of its edges, so that a replacement finds them open and what lies on them is not lost.

use crate::Role;
use crate::engine::{EngineError, Engines};
use crate::evaluator::Evaluator;
use crate::generator::Generator;
use crate::join::Joiner;
use crate::learner::Learner;
use crate::multiplier::Multiplier;
use crate::scorer::Scorer;
use crate::shared::{Next, Run, StageError, Start, Starts, Work};
use crate::source::Source;
use crate::work::Update;
use saddle_flow::{Cargo, EdgeStats, Receiver, Sender, Stage, edge};
use std::sync::Arc;

/// A run's stages and what lies between them.
pub(crate) struct Wiring {
    pub(crate) starts: Starts,
    pub(crate) edges: Vec<Arc<EdgeStats>>,
    pub(crate) updates: Receiver<Update>,
}

pub(crate) fn wire<E: Engines>(run: &Arc<Run<E>>) -> Wiring {
    let plan = &run.plan;
    let mut edges = Vec::new();
    let source = plan.name(Role::Source);
    let generator = plan.name(Role::Generator);
    let (prompts_in, prompts) = open(run, &mut edges, &source, &generator);
    let (scored_in, scored) = open(run, &mut edges, "scorers", &plan.name(Role::Join));
    let (joined_in, joined) = open(run, &mut edges, &plan.name(Role::Join), &plan.name(Role::Learner));
    let (costs_in, costs) = open(run, &mut edges, "costs", &plan.name(Role::Multiplier));
    let (updates_in, updates) = open(run, &mut edges, &plan.name(Role::Learner), "program");
    let mut starts = Starts::new();
    let mut lanes_in = Vec::new();
    for lane in plan.lanes() {
        let role = Role::Scorer(lane);
        let (lane_in, responses) = open(run, &mut edges, &generator, &plan.name(role));
        lanes_in.push(lane_in);
        let (scored_in, costs_in) = (scored_in.clone(), costs_in.clone());
        starts.insert(
            role,
            start(run, role, move |run, _| {
                Scorer::new(Arc::clone(run), lane, responses.clone(), scored_in.clone(), costs_in.clone())
            }),
        );
    }
    starts.insert(
        Role::Source,
        start(run, Role::Source, move |run, _| Ok(Source { run: Arc::clone(run), output: prompts_in.clone() })),
    );
    starts.insert(
        Role::Generator,
        start(run, Role::Generator, move |run, index| {
            Generator::new(Arc::clone(run), index, prompts.clone(), lanes_in.clone())
        }),
    );
    starts.insert(
        Role::Join,
        start(run, Role::Join, move |run, _| Ok(Joiner::new(Arc::clone(run), scored.clone(), joined_in.clone()))),
    );
    starts.insert(
        Role::Multiplier,
        start(run, Role::Multiplier, move |run, _| Ok(Multiplier { run: Arc::clone(run), input: costs.clone() })),
    );
    let mut examined_in = None;
    if plan.has_evaluator() {
        let (weights_in, weights) = open(run, &mut edges, &plan.name(Role::Learner), &plan.name(Role::Evaluator));
        examined_in = Some(weights_in);
        starts.insert(
            Role::Evaluator,
            start(run, Role::Evaluator, move |run, _| Ok(Evaluator { run: Arc::clone(run), input: weights.clone() })),
        );
    }
    starts.insert(
        Role::Learner,
        start(run, Role::Learner, move |run, _| {
            let (costs_in, updates_in, examined_in) = (costs_in.clone(), updates_in.clone(), examined_in.clone());
            Ok(Learner::new(Arc::clone(run), joined.clone(), costs_in, updates_in, examined_in))
        }),
    );
    Wiring { starts, edges, updates }
}

fn open<E: Engines, T: Cargo>(
    run: &Run<E>,
    edges: &mut Vec<Arc<EdgeStats>>,
    from: &str,
    to: &str,
) -> (Sender<T>, Receiver<T>) {
    let spec = run.plan.edge(from, to);
    let observer = run.meters.edge(&spec.name);
    let (sender, receiver) = edge(spec, observer);
    edges.push(Arc::clone(receiver.stats()));
    (sender, receiver)
}

/// The start of a role: its part of the machine, then its work.
fn start<E: Engines, W: Work + 'static>(
    run: &Arc<Run<E>>,
    role: Role,
    make: impl Fn(&Arc<Run<E>>, usize) -> Result<W, EngineError> + Send + Sync + 'static,
) -> Start {
    let run = Arc::clone(run);
    Arc::new(move |index| {
        run.engines.enter(role)?;
        let work = make(&run, index)?;
        Ok(Box::new(Announced { run: Arc::clone(&run), role, index, work }))
    })
}

/// Work that tells the engines of each step before it is made.
struct Announced<E: Engines, W> {
    run: Arc<Run<E>>,
    role: Role,
    index: usize,
    work: W,
}

impl<E: Engines, W: Work> Work for Announced<E, W> {
    fn step(&mut self, stage: &Stage) -> Result<Next, StageError> {
        self.run.engines.before_step(self.role, self.index);
        self.work.step(stage)
    }

    fn leave(&mut self) {
        self.work.leave();
    }
}

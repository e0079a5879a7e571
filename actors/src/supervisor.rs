//! The supervisor: starts the stages, replaces those that fail or hang, scales them, and ends the run with its reason when
//! a stage keeps failing.
//!
//! A stage hangs when it works without a beat for longer than `heartbeat_seconds`; waiting stages cannot, for every wait
//! has a deadline. A hung thread cannot be killed: it is cancelled, what it holds is revoked, and whatever it still brings
//! is void. When the supervisor itself was late, for the process was stopped or the machine slept, the stages' time begins
//! anew. A learner that nobody could take over from is told of, waited for, and given up much later.

use crate::messages::{
    Cause, Control, Failure, Order, Report, StageArgs, StageFailure, StageReport, StageState, Started, tell,
};
use crate::meters::Meters;
use crate::restarts::Restarts;
use crate::shared::Starts;
use crate::stage_host::StageActor;
use crate::standstill::Standstill;
use crate::{Plan, Role};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use saddle_flow::{Activity, Cancel, Ledger, Outcome, Stage};
use saddle_training::config::seconds;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Failures that are remembered in words.
const REMEMBERED_FAILURES: usize = 256;
/// Most stages of a role.
const STAGES_LIMIT: usize = 256;
/// So many batches of prompts may come to nothing before the first is learnt from.
const FAILED_BATCHES: u64 = 8;
/// Between two looks at the pulses.
const LOOK: Duration = Duration::from_millis(100);
/// Two looks that are further apart say that the supervisor itself stood still.
const LATE: Duration = Duration::from_secs(2);

/// What the supervisor goes by.
pub(crate) struct SupervisorArgs {
    pub(crate) plan: Plan,
    pub(crate) starts: Starts,
    pub(crate) ledger: Ledger,
    pub(crate) root: Cancel,
    pub(crate) meters: Arc<Meters>,
    /// Whether the learner is inside an update whose weights would be lost with it.
    pub(crate) is_learner_irreplaceable: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// The actor.
pub(crate) struct Supervisor;

/// The stages at work.
pub(crate) struct State {
    args: SupervisorArgs,
    slots: BTreeMap<(Role, usize), Slot>,
    standstill: Arc<Standstill>,
    failures: VecDeque<StageFailure>,
    restarts: u64,
    /// Looks at which the learner was busy, and those of them at which a generator was too.
    looks: (u64, u64),
    /// When it last looked.
    last_look: Instant,
    /// Silence before this is held against nobody.
    judged_from: Instant,
    is_draining: bool,
}

/// The place of one stage, which keeps it over restarts.
struct Slot {
    stage: Stage,
    /// None while it waits for its restart, and after it has ended.
    actor: Option<ActorRef<Control>>,
    restarts: Restarts,
    /// How often it was started: an order to restart is for one of these.
    generation: u64,
    /// To be forgotten when it ends.
    retired: bool,
    /// Whether it was added to a run under way, which goes on without it.
    added: bool,
    /// Whether its silence was told of.
    told: bool,
    spent_before: [Duration; 4],
}

impl Slot {
    /// Parts with the actor, and books the time of its thread until now.
    fn lose_actor(&mut self) -> Option<ActorRef<Control>> {
        self.stage.pulse().beat();
        self.actor.take()
    }

    fn spent(&self) -> [Duration; 4] {
        let pulse = self.stage.pulse();
        // Once the actor is gone, time no longer passes for its thread.
        let current = match self.actor {
            Some(_) => pulse.spent_until_now(),
            None => Activity::ALL.map(|activity| pulse.spent(activity)),
        };
        let mut spent = self.spent_before;
        spent.iter_mut().zip(current).for_each(|(total, current)| *total += current);
        spent
    }
}

impl Actor for Supervisor {
    type Msg = Order;
    type State = State;
    type Arguments = SupervisorArgs;

    async fn pre_start(&self, myself: ActorRef<Order>, args: SupervisorArgs) -> Result<State, ActorProcessingErr> {
        let stages = args.plan.stages();
        let (slots, standstill, failures) = Default::default();
        let now = Instant::now();
        let mut state = State {
            args,
            slots,
            standstill,
            failures,
            restarts: 0,
            looks: (0, 0),
            last_look: now,
            judged_from: now,
            is_draining: false,
        };
        for (role, count) in stages {
            for index in 0..count {
                state.start_or_end(&myself, role, index).await;
            }
        }
        // It ends with the actor.
        drop(myself.send_interval(LOOK, || Order::Check));
        Ok(state)
    }

    async fn handle(&self, myself: ActorRef<Order>, order: Order, state: &mut State) -> Result<(), ActorProcessingErr> {
        match order {
            Order::Check => state.check(&myself),
            Order::Restart { role, index, generation } => {
                let due = |slot: &Slot| slot.generation == generation && slot.actor.is_none();
                if !state.is_over() && state.slots.get(&(role, index)).is_some_and(due) {
                    state.start_or_end(&myself, role, index).await;
                }
            }
            Order::Scale { role, count, reply } => match state.scale(&myself, role, count).await {
                Ok(started) => drop(tokio::spawn(async move { answer(reply, all_started(started).await) })),
                Err(refusal) => answer(reply, Err(refusal)),
            },
            Order::Pause { role, paused } => state.pause(role, paused),
            Order::Drain => {
                state.is_draining = true;
                for role in state.standstill.paused() {
                    state.pause(role, false);
                }
            }
            Order::Observe(reply) => answer(reply, state.report()),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Order>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(cell, ..) => {
                if let Some(place) = state.leave(&cell)
                    && state.slots.get(&place).is_some_and(|slot| slot.retired)
                {
                    state.forget(place);
                }
            }
            SupervisionEvent::ActorFailed(cell, error) => {
                let failure = error.downcast_ref::<Failure>().cloned().unwrap_or_else(|| Failure {
                    cause: Cause::Panic,
                    reason: error.to_string().into(),
                    curable: true,
                });
                if let Some(place) = state.leave(&cell) {
                    state.failed(&myself, place, failure, Duration::ZERO);
                }
            }
            _ => {}
        }
        state.end_when_alone(&myself);
        Ok(())
    }
}

impl State {
    fn is_over(&self) -> bool {
        self.args.root.is_cancelled()
    }

    fn actors_of(&self, role: Role) -> impl Iterator<Item = &ActorRef<Control>> {
        self.slots.iter().filter(move |((each, _), _)| *each == role).filter_map(|(_, slot)| slot.actor.as_ref())
    }

    /// Lets the stages of a role stand still, or go on. Nobody stands still while the run drains, which would not end.
    fn pause(&mut self, role: Role, paused: bool) {
        let paused = paused && !self.is_draining;
        self.standstill.set(role, paused, Instant::now());
        for actor in self.actors_of(role) {
            tell(actor, Control::Pause(paused));
        }
    }

    /// [`State::start`] of a stage that the run cannot do without.
    async fn start_or_end(&mut self, myself: &ActorRef<Order>, role: Role, index: usize) {
        if let Err(reason) = self.start(myself, role, index).await {
            self.args.root.cancel(reason);
        }
    }

    /// Starts a stage in its place, which is made if it is new. What is returned tells when its engine is ready.
    async fn start(&mut self, myself: &ActorRef<Order>, role: Role, index: usize) -> Result<Started, String> {
        let start = self.args.starts.get(&role).cloned();
        let start = start.ok_or_else(|| format!("there is no {}", self.args.plan.name(role)))?;
        let name = format!("{}-{index}", self.args.plan.name(role));
        let stage = Stage::new(name, self.args.root.child(), self.args.plan.patience());
        let (paused, standstill) = (self.standstill.includes(role), Arc::clone(&self.standstill));
        let (ready, started) = oneshot::channel();
        let args = StageArgs { stage: stage.clone(), index, start, paused, standstill, ready };
        let spawned = Actor::spawn_linked(None, StageActor, args, myself.get_cell()).await;
        let (actor, _) = spawned.map_err(|error| format!("{} cannot be started: {error}", stage.name()))?;
        match self.slots.get_mut(&(role, index)) {
            Some(slot) => {
                slot.spent_before = slot.spent();
                slot.stage = stage;
                slot.actor = Some(actor);
                slot.generation += 1;
                slot.told = false;
            }
            None => {
                let slot = Slot {
                    stage,
                    actor: Some(actor),
                    restarts: Restarts::new(&self.args.plan.supervision),
                    generation: 0,
                    retired: false,
                    added: false,
                    told: false,
                    spent_before: Default::default(),
                };
                self.slots.insert((role, index), slot);
            }
        }
        Ok(started)
    }

    /// The place whose actor has ended; none for a stage that was replaced because it hung.
    fn leave(&mut self, cell: &ActorCell) -> Option<(Role, usize)> {
        let is_it = |slot: &Slot| slot.actor.as_ref().is_some_and(|actor| actor.get_id() == cell.get_id());
        let (&place, slot) = self.slots.iter_mut().find(|(_, slot)| is_it(slot))?;
        slot.lose_actor();
        Some(place)
    }

    /// Sees to the restart of a stage that had hung for `hung`, or ends the run.
    fn failed(&mut self, myself: &ActorRef<Order>, (role, index): (Role, usize), failure: Failure, hung: Duration) {
        let is_one_of_many = self.active(role).count() > 1;
        let Some(slot) = self.slots.get_mut(&(role, index)) else { return };
        let stage: Arc<str> = slot.stage.name().into();
        let Failure { cause, reason, curable } = failure;
        let generation = slot.generation;
        let backoff = slot.restarts.next(Instant::now(), hung).filter(|_| curable);
        let is_given_up = slot.retired || backoff.is_none() && slot.added && is_one_of_many;
        self.remember(StageFailure { stage: Arc::clone(&stage), cause, reason: Arc::clone(&reason) });
        if is_given_up {
            self.forget((role, index));
            return;
        }
        match backoff {
            _ if self.is_over() => {}
            Some(backoff) => {
                self.restarts += 1;
                self.args.meters.restarted(&self.args.plan.name(role), cause);
                // It fires once, or the actor is gone.
                drop(myself.send_after(backoff, move || Order::Restart { role, index, generation }));
            }
            None if curable => {
                let section = &self.args.plan.supervision;
                let (limit, window) = (section.restarts, section.window_seconds);
                let text = format!("{stage} failed more than {limit} times within {window} s, the last time: {reason}");
                self.args.root.cancel(text);
            }
            None => self.args.root.cancel(format!("{stage}: {reason}")),
        }
    }

    fn remember(&mut self, failure: StageFailure) {
        if self.failures.len() == REMEMBERED_FAILURES {
            self.failures.pop_front();
        }
        self.failures.push_back(failure);
    }

    /// A place that is no more.
    fn forget(&mut self, place: (Role, usize)) {
        self.slots.remove(&place);
        self.args.meters.removed(&self.args.plan.name(place.0), place.1);
    }

    /// Replaces stages that hang, and measures.
    fn check(&mut self, myself: &ActorRef<Order>) {
        let now = Instant::now();
        if now.saturating_duration_since(std::mem::replace(&mut self.last_look, now)) > LATE {
            self.judged_from = now;
        }
        let limit = seconds(self.args.plan.supervision.heartbeat_seconds);
        let judged = now.saturating_duration_since(self.judged_from);
        let silence = |slot: &Slot| {
            let pulse = slot.stage.pulse();
            let is_busy = slot.actor.is_some() && pulse.activity() == Activity::Busy;
            if is_busy { pulse.age().min(judged) } else { Duration::ZERO }
        };
        let silent = self.slots.iter().map(|(&place, slot)| (place, silence(slot)));
        let hung: Vec<_> = silent.filter(|(_, silence)| *silence > limit).collect();
        for (place, silence) in hung {
            if place.0 == Role::Learner && (self.args.is_learner_irreplaceable)() {
                self.wait_for_learner(place, silence);
                continue;
            }
            let Some(slot) = self.slots.get_mut(&place) else { continue };
            let reason: Arc<str> = format!("hung: no sign of life for {} s", limit.as_secs_f64()).into();
            slot.stage.cancel().cancel(Arc::clone(&reason));
            self.args.ledger.revoke(slot.stage.held());
            if let Some(actor) = slot.lose_actor() {
                actor.get_cell().unlink(myself.get_cell());
                actor.stop(None);
            }
            self.failed(myself, place, Failure { cause: Cause::Hang, reason, curable: true }, silence);
        }
        let busy = |wanted: fn(Role) -> bool| {
            self.slots.iter().any(|((role, _), slot)| {
                wanted(*role) && slot.actor.is_some() && slot.stage.pulse().activity() == Activity::Busy
            })
        };
        if busy(|role| role == Role::Learner) {
            self.looks.0 += 1;
            self.looks.1 += u64::from(busy(|role| role == Role::Generator));
        }
        self.args.meters.look(&self.report());
        self.end_if_nothing_is_learnt();
        self.end_when_alone(myself);
    }

    /// A run none of whose prompts comes to anything would draw more for ever.
    fn end_if_nothing_is_learnt(&self) {
        let counts = self.args.ledger.counts();
        let limit = FAILED_BATCHES * self.args.plan.batch_rollouts as u64;
        let failed = counts.ended(Outcome::Failed) + counts.ended(Outcome::Quarantined);
        if counts.ended(Outcome::Trained) == 0 && failed >= limit && !self.is_draining {
            self.args.root.cancel(format!(
                "the first {failed} prompts gave no response to learn from: they leave no room for one, or stages failed on them; look at prompts.max_tokens and generation.max_new_tokens, and at the failures of the stages"
            ));
        }
    }

    /// A learner that is inside an update cannot be replaced: it is told of, and given up only when everybody who waits for it
    /// has lost patience too.
    fn wait_for_learner(&mut self, place: (Role, usize), silence: Duration) {
        let Some(slot) = self.slots.get_mut(&place) else { return };
        let stage: Arc<str> = slot.stage.name().into();
        let (silent, limit) = (silence.as_secs(), seconds(self.args.plan.supervision.heartbeat_seconds));
        if !std::mem::replace(&mut slot.told, true) {
            let reason = format!("no sign of life for {silent} s; waited for, since nobody can take over its update");
            self.remember(StageFailure { stage: Arc::clone(&stage), cause: Cause::Hang, reason: reason.into() });
        }
        if silence > limit + self.args.plan.patience() {
            self.args.root.cancel(format!("{stage} hung: no sign of life for {silent} s"));
        }
    }

    /// Once the run is over and no stage is left, so is the supervisor.
    fn end_when_alone(&self, myself: &ActorRef<Order>) {
        if self.is_over() && self.slots.values().all(|slot| slot.actor.is_none()) {
            myself.stop(None);
        }
    }

    /// Has so many stages of a role. Returns what tells of the engines of those that are new.
    async fn scale(&mut self, myself: &ActorRef<Order>, role: Role, count: usize) -> Result<Vec<Started>, String> {
        if !role.is_scalable() || !self.args.starts.contains_key(&role) {
            return Err(format!("there is one {} only", self.args.plan.name(role)));
        }
        if self.args.plan.in_lockstep() {
            return Err("with staleness 0 there is one stage of each kind".to_owned());
        }
        if !(1..=STAGES_LIMIT).contains(&count) {
            return Err(format!("the number of stages must be in 1..={STAGES_LIMIT}, is {count}"));
        }
        let places: Vec<usize> = self.active(role).collect();
        for &index in places.iter().skip(count) {
            if let Some(slot) = self.slots.get_mut(&(role, index)) {
                slot.retired = true;
                match &slot.actor {
                    Some(actor) => tell(actor, Control::Stop("scaled down".into())),
                    None => self.forget((role, index)),
                }
            }
        }
        let new = (0..).filter(|index| !self.slots.contains_key(&(role, *index)));
        let new: Vec<usize> = new.take(count.saturating_sub(places.len())).collect();
        let mut started = Vec::with_capacity(new.len());
        for index in new {
            started.push(self.start(myself, role, index).await?);
            if let Some(slot) = self.slots.get_mut(&(role, index)) {
                slot.added = true;
            }
        }
        Ok(started)
    }

    /// Indices of the stages of a role that are to stay.
    fn active(&self, role: Role) -> impl Iterator<Item = usize> {
        let stay = self.slots.iter().filter(move |((each, _), slot)| *each == role && !slot.retired);
        stay.map(|((_, index), _)| *index)
    }

    fn report(&self) -> Report {
        let stages = self.slots.iter().map(|(&(role, index), slot)| StageReport {
            role,
            name: self.args.plan.name(role),
            index,
            state: match &slot.actor {
                None => StageState::Absent,
                Some(_) if self.standstill.includes(role) => StageState::Paused,
                Some(_) => StageState::Running,
            },
            activity: slot.stage.pulse().activity(),
            age: slot.stage.pulse().age(),
            spent: slot.spent(),
        });
        let (busy, overlapped) = self.looks;
        Report {
            stages: stages.collect(),
            failures: self.failures.iter().cloned().collect(),
            restarts: self.restarts,
            overlap_ratio: if busy == 0 { 0.0 } else { overlapped as f64 / busy as f64 },
        }
    }
}

/// Waits for the engines of stages that were added.
async fn all_started(started: Vec<Started>) -> Result<(), String> {
    for stage in started {
        // A stage that ended without a word has its reason among the failures.
        stage.await.unwrap_or_else(|_| Err("a new stage ended before it had begun".to_owned()))?;
    }
    Ok(())
}

/// Answers a question; whoever no longer waits for the answer does not get it.
fn answer<T: Send + 'static>(reply: RpcReplyPort<T>, value: T) {
    let _ = reply.send(value);
}

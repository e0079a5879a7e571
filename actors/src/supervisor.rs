//! The supervisor: starts the stages, replaces those that fail or hang, scales them, and ends the run with its reason when
//! a stage keeps failing.
//!
//! A stage hangs when it works without a beat for longer than `heartbeat_seconds`; waiting stages cannot, for every wait
//! has a deadline. A hung thread cannot be killed: it is cancelled, what it holds is revoked, and whatever it still brings
//! is void.

use crate::messages::{Casting, Cause, Control, Failure, Order, Report, StageFailure, StageReport, tell};
use crate::meters::Meters;
use crate::restarts::Restarts;
use crate::shared::Starts;
use crate::stage_host::Face;
use crate::standstill::Standstill;
use crate::{Plan, Role};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use saddle_flow::{Activity, Cancel, Ledger, Stage};
use saddle_training::config::seconds;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Failures that are remembered in words.
const REMEMBERED_FAILURES: usize = 256;
/// Most stages of a role.
const STAGES_LIMIT: usize = 256;
/// Between two looks at the pulses.
const LOOK: Duration = Duration::from_millis(100);

/// What the supervisor goes by.
pub(crate) struct Company {
    pub(crate) plan: Plan,
    pub(crate) starts: Starts,
    pub(crate) ledger: Ledger,
    pub(crate) root: Cancel,
    pub(crate) meters: Arc<Meters>,
}

/// The actor.
pub(crate) struct Supervisor;

/// The company at work.
pub(crate) struct State {
    company: Company,
    slots: BTreeMap<(Role, usize), Slot>,
    standstill: Arc<Standstill>,
    failures: VecDeque<StageFailure>,
    restarts: u64,
    /// Looks at which the learner was busy, and those of them at which a generator was too.
    looks: (u64, u64),
}

/// The place of one stage, which keeps it over restarts.
struct Slot {
    stage: Stage,
    /// None while it waits for its restart, and after it has ended.
    face: Option<ActorRef<Control>>,
    restarts: Restarts,
    /// To be forgotten when it ends.
    retired: bool,
    spent_before: [Duration; 4],
}

impl Slot {
    /// Parts with the face, and books the time of its thread until now.
    fn lose_face(&mut self) -> Option<ActorRef<Control>> {
        self.stage.pulse().beat();
        self.face.take()
    }

    fn spent(&self) -> [Duration; 4] {
        let pulse = self.stage.pulse();
        // Once the face is gone, time no longer passes for its thread.
        let current = match self.face {
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
    type Arguments = Company;

    async fn pre_start(&self, myself: ActorRef<Order>, company: Company) -> Result<State, ActorProcessingErr> {
        let stages = company.plan.stages();
        let (slots, standstill, failures) = Default::default();
        let mut state = State { company, slots, standstill, failures, restarts: 0, looks: (0, 0) };
        for (role, count) in stages {
            for index in 0..count {
                state.start(&myself, role, index).await;
            }
        }
        // It ends with the actor.
        drop(myself.send_interval(LOOK, || Order::Check));
        Ok(state)
    }

    async fn handle(&self, myself: ActorRef<Order>, order: Order, state: &mut State) -> Result<(), ActorProcessingErr> {
        match order {
            Order::Check => state.check(&myself),
            Order::Restart(role, index) => {
                if !state.is_over() && state.slots.contains_key(&(role, index)) {
                    state.start(&myself, role, index).await;
                }
            }
            Order::Scale { role, count, reply } => {
                let outcome = state.scale(&myself, role, count).await;
                answer(reply, outcome);
            }
            Order::Pause { role, paused } => {
                state.standstill.set(role, paused, Instant::now());
                for face in state.faces(role) {
                    tell(face, Control::Pause(paused));
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
                    state.slots.remove(&place);
                }
            }
            SupervisionEvent::ActorFailed(cell, error) => {
                let failure = error.downcast_ref::<Failure>().cloned().unwrap_or_else(|| Failure {
                    cause: Cause::Panic,
                    reason: error.to_string().into(),
                    curable: true,
                });
                if let Some(place) = state.leave(&cell) {
                    state.failed(&myself, place, failure);
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
        self.company.root.is_cancelled()
    }

    fn faces(&self, role: Role) -> impl Iterator<Item = &ActorRef<Control>> {
        self.slots.iter().filter(move |((each, _), _)| *each == role).filter_map(|(_, slot)| slot.face.as_ref())
    }

    /// Starts a stage in its place, which is made if it is new. Without a thread for it, the run ends.
    async fn start(&mut self, myself: &ActorRef<Order>, role: Role, index: usize) {
        let Some(start) = self.company.starts.get(&role).cloned() else { return };
        let name = format!("{}-{index}", self.company.plan.name(role));
        let stage = Stage::new(name, self.company.root.child(), self.company.plan.patience());
        let (paused, standstill) = (self.standstill.includes(role), Arc::clone(&self.standstill));
        let casting = Casting { stage: stage.clone(), index, start, paused, standstill };
        let face = match Actor::spawn_linked(None, Face, casting, myself.get_cell()).await {
            Ok((face, _)) => face,
            Err(error) => {
                self.company.root.cancel(format!("{} cannot be started: {error}", stage.name()));
                return;
            }
        };
        match self.slots.get_mut(&(role, index)) {
            Some(slot) => {
                slot.spent_before = slot.spent();
                slot.stage = stage;
                slot.face = Some(face);
            }
            None => {
                let restarts = Restarts::new(&self.company.plan.supervision);
                let slot = Slot { stage, face: Some(face), restarts, retired: false, spent_before: Default::default() };
                self.slots.insert((role, index), slot);
            }
        }
    }

    /// The place whose face has ended; none for a stage that was replaced because it hung.
    fn leave(&mut self, cell: &ActorCell) -> Option<(Role, usize)> {
        let is_it = |slot: &Slot| slot.face.as_ref().is_some_and(|face| face.get_id() == cell.get_id());
        let (&place, slot) = self.slots.iter_mut().find(|(_, slot)| is_it(slot))?;
        slot.lose_face();
        Some(place)
    }

    /// Sees to the restart of a stage, or ends the run.
    fn failed(&mut self, myself: &ActorRef<Order>, (role, index): (Role, usize), failure: Failure) {
        let Some(slot) = self.slots.get_mut(&(role, index)) else { return };
        let stage: Arc<str> = slot.stage.name().into();
        let Failure { cause, reason, curable } = failure;
        let note = StageFailure { stage: Arc::clone(&stage), cause, reason: Arc::clone(&reason) };
        if self.failures.len() == REMEMBERED_FAILURES {
            self.failures.pop_front();
        }
        self.failures.push_back(note);
        if slot.retired {
            self.slots.remove(&(role, index));
            return;
        }
        let backoff = slot.restarts.next(Instant::now()).filter(|_| curable);
        match backoff {
            _ if self.is_over() => {}
            Some(backoff) => {
                self.restarts += 1;
                self.company.meters.restarted(&self.company.plan.name(role), cause);
                // It fires once, or the actor is gone.
                drop(myself.send_after(backoff, move || Order::Restart(role, index)));
            }
            None if curable => {
                let section = &self.company.plan.supervision;
                let (limit, window) = (section.restarts, section.window_seconds);
                let text = format!("{stage} failed more than {limit} times within {window} s, the last time: {reason}");
                self.company.root.cancel(text);
            }
            None => self.company.root.cancel(format!("{stage}: {reason}")),
        }
    }

    /// Replaces stages that hang, and measures.
    fn check(&mut self, myself: &ActorRef<Order>) {
        let limit = seconds(self.company.plan.supervision.heartbeat_seconds);
        let is_hung = |slot: &Slot| {
            let pulse = slot.stage.pulse();
            slot.face.is_some() && pulse.activity() == Activity::Busy && pulse.is_late(limit)
        };
        let hung: Vec<_> = self.slots.iter().filter(|(_, slot)| is_hung(slot)).map(|(&place, _)| place).collect();
        for place in hung {
            let Some(slot) = self.slots.get_mut(&place) else { continue };
            let reason: Arc<str> = format!("hung: no sign of life for {} s", limit.as_secs_f64()).into();
            slot.stage.cancel().cancel(Arc::clone(&reason));
            self.company.ledger.revoke(slot.stage.hands());
            if let Some(face) = slot.lose_face() {
                face.get_cell().unlink(myself.get_cell());
                face.stop(None);
            }
            self.failed(myself, place, Failure { cause: Cause::Hang, reason, curable: true });
        }
        let busy = |wanted: fn(Role) -> bool| {
            self.slots.iter().any(|((role, _), slot)| {
                wanted(*role) && slot.face.is_some() && slot.stage.pulse().activity() == Activity::Busy
            })
        };
        if busy(|role| role == Role::Learner) {
            self.looks.0 += 1;
            self.looks.1 += u64::from(busy(|role| role == Role::Generator));
        }
        self.company.meters.look(&self.report());
        self.end_when_alone(myself);
    }

    /// Once the run is over and no stage is left, so is the supervisor.
    fn end_when_alone(&self, myself: &ActorRef<Order>) {
        if self.is_over() && self.slots.values().all(|slot| slot.face.is_none()) {
            myself.stop(None);
        }
    }

    async fn scale(&mut self, myself: &ActorRef<Order>, role: Role, count: usize) -> Result<(), String> {
        if !role.is_scalable() || !self.company.starts.contains_key(&role) {
            return Err(format!("there is one {} only", self.company.plan.name(role)));
        }
        if self.company.plan.in_lockstep() {
            return Err("with staleness 0 there is one stage of each kind".to_owned());
        }
        if !(1..=STAGES_LIMIT).contains(&count) {
            return Err(format!("the number of stages must be in 1..={STAGES_LIMIT}, is {count}"));
        }
        let places: Vec<usize> = self.active(role).collect();
        for &index in places.iter().skip(count) {
            if let Some(slot) = self.slots.get_mut(&(role, index)) {
                slot.retired = true;
                match &slot.face {
                    Some(face) => tell(face, Control::Stop("scaled down".into())),
                    None => drop(self.slots.remove(&(role, index))),
                }
            }
        }
        let new = (0..).filter(|index| !self.slots.contains_key(&(role, *index)));
        let new: Vec<usize> = new.take(count.saturating_sub(places.len())).collect();
        for index in new {
            self.start(myself, role, index).await;
        }
        Ok(())
    }

    /// Indices of the stages of a role that are to stay.
    fn active(&self, role: Role) -> impl Iterator<Item = usize> {
        let stay = self.slots.iter().filter(move |((each, _), slot)| *each == role && !slot.retired);
        stay.map(|((_, index), _)| *index)
    }

    fn report(&self) -> Report {
        let stages = self.slots.iter().map(|(&(role, index), slot)| StageReport {
            role,
            name: self.company.plan.name(role),
            index,
            running: slot.face.is_some(),
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

/// Answers a question; whoever no longer waits for the answer does not get it.
fn answer<T: Send + 'static>(reply: RpcReplyPort<T>, value: T) {
    let _ = reply.send(value);
}

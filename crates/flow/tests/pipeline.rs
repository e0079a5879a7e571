//! The whole protocol on threads, with the real parts: source → generators → two scorer lanes → join → learner, under
//! crashes, hung stages that are replaced, scaling and odd timing. Whatever happens, the learner gets its rollouts, none
//! twice, none too old, and everything is accounted for.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use proptest::prelude::*;
use saddle_core::{PolicyVersion, Prompt, PromptOrdinal};
use saddle_flow::{
    Attempt, Cancel, Cargo, Clock, Credits, EdgeSpec, EdgeStats, FlowError, HeldTickets, Join, Latest, Ledger,
    ManualClock, Outcome, Receiver, Sender, Stage, Ticket, edge, invariants,
};
use std::num::{NonZeroU32, NonZeroUsize};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

/// What one case is made of. Chances are in percent.
#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    bound: usize,
    batch: usize,
    updates: u64,
    generators: usize,
    scorers: usize,
    capacity: usize,
    crash_chance: u64,
    /// What the operator does, one thing after each trained batch.
    orders: Vec<Order>,
}

#[derive(Clone, Copy, Debug)]
enum Order {
    /// A generator is taken for hung: what it holds is revoked and another takes its place, while it goes on.
    Replace,
    AddGenerator,
    RemoveGenerator,
    Nothing,
}

fn plans() -> impl Strategy<Value = Plan> {
    let order = prop_oneof![
        Just(Order::Replace),
        Just(Order::AddGenerator),
        Just(Order::RemoveGenerator),
        Just(Order::Nothing)
    ];
    let sizes = (0..3_usize, 1..5_usize, 1..8_u64, 1..4_usize, 1..3_usize, 1..4_usize);
    (any::<u64>(), sizes, 0..25_u64, prop::collection::vec(order, 8)).prop_map(|(seed, sizes, crash_chance, orders)| {
        let (bound, batch, updates, generators, scorers, capacity) = sizes;
        Plan { seed, bound, batch, updates, generators, scorers, capacity, crash_chance, orders }
    })
}

impl Plan {
    fn target(&self) -> u64 {
        self.updates * self.batch as u64
    }

    /// A number that is a function of the seed, the attempt and the place: whatever the timing, the same crashes.
    fn draw(&self, place: u64, attempt: Attempt) -> u64 {
        let mut state = self.seed ^ (place << 48) ^ (attempt.ordinal.0 << 8) ^ u64::from(attempt.number);
        for _ in 0..3 {
            state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9).rotate_left(17);
        }
        state
    }

    /// Odd timing, and now and then a crash.
    fn mishap(&self, place: u64, attempt: Attempt) {
        let number = self.draw(place, attempt);
        for _ in 0..number % 7 {
            thread::yield_now();
        }
        if (number >> 8) % 100 < self.crash_chance {
            resume_unwind(Box::new("a stage crashes"));
        }
    }
}

/// A prompt, and later the response to it. A lane's score is not of interest here.
struct Work {
    ticket: Ticket,
    version: PolicyVersion,
    lane: usize,
}

impl Cargo for Work {
    fn size_bytes(&self) -> usize {
        1
    }

    fn pass_to(&mut self, held: Option<&HeldTickets>) {
        self.ticket.pass_to(held);
    }
}

struct Pipeline {
    plan: Plan,
    credits: Credits,
    ledger: Ledger,
    weights: Latest<PolicyVersion, ()>,
    /// Ordinals trained, in order, and how stale each was.
    trained: Mutex<Vec<(PromptOrdinal, u64)>>,
    root: Cancel,
}

fn positive(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap()
}

fn open(from: &str, to: &str, capacity: usize) -> (Sender<Work>, Receiver<Work>) {
    edge(EdgeSpec::new(from, to, positive(capacity), positive(1 << 20)), Arc::new(()))
}

impl Pipeline {
    fn new(plan: Plan) -> Self {
        Self {
            credits: Credits::for_staleness(plan.bound, positive(plan.batch)),
            ledger: Ledger::new(PromptOrdinal(0), NonZeroU32::new(3).unwrap(), Arc::new(())),
            weights: Latest::new("weights", PolicyVersion(0), ()),
            trained: Mutex::default(),
            root: Cancel::new(),
            plan,
        }
    }

    /// The patience is what makes a deadlock fail instead of hang.
    fn stage(&self, name: &str) -> Stage {
        Stage::new(name, self.root.child(), Duration::from_secs(60))
    }

    /// Draws as many prompts as it takes to have `target` of them trained on.
    fn source(&self, output: &Sender<Work>, stage: &Stage) -> Result<(), FlowError> {
        let target = self.plan.target();
        loop {
            let owed = |counts: &saddle_flow::Counts| counts.waiting > 0 || counts.drawn - counts.lost() < target;
            let over = |counts: &saddle_flow::Counts| counts.ended(Outcome::Trained) == target;
            if over(&self.ledger.wait_until(stage, |counts| owed(counts) || over(counts))?) {
                return Ok(());
            }
            let credit = self.credits.acquire(stage)?;
            let drawn = match self.ledger.redraw(credit) {
                Ok(drawn) => drawn,
                Err(credit) => {
                    let counts = self.ledger.counts();
                    if !owed(&counts) {
                        continue;
                    }
                    let ordinal = PromptOrdinal(counts.drawn);
                    self.ledger.draw(Prompt { ordinal, tokens: vec![1], kind: None }, credit)?
                }
            };
            output.send(Work { ticket: drawn.ticket, version: PolicyVersion(0), lane: 0 }, stage)?;
        }
    }

    fn generator(&self, input: &Receiver<Work>, lanes: &[Sender<Work>], stage: &Stage) -> Result<(), FlowError> {
        while let Some(work) = input.recv(stage)? {
            let version = self.weights.version();
            self.plan.mishap(1, work.ticket.attempt());
            let tickets = work.ticket.split(positive(lanes.len()));
            for ((lane, output), ticket) in lanes.iter().enumerate().zip(tickets) {
                output.send(Work { ticket, version, lane }, stage)?;
            }
        }
        Ok(())
    }

    fn scorer(&self, input: &Receiver<Work>, output: &Sender<Work>, stage: &Stage) -> Result<(), FlowError> {
        while let Some(work) = input.recv(stage)? {
            self.plan.mishap(2 + work.lane as u64, work.ticket.attempt());
            output.send(work, stage)?;
        }
        Ok(())
    }

    fn join(&self, input: &Receiver<Work>, output: &Sender<Work>, stage: &Stage) -> Result<(), FlowError> {
        let (patience, capacity) = (Duration::from_secs(60), positive(1 << 16));
        let mut join: Join<Attempt, Work> = Join::new(vec!["reward".into(), "cost".into()], patience, capacity);
        while let Some(work) = input.recv(stage)? {
            let attempt = work.ticket.attempt();
            self.plan.mishap(4 + work.lane as u64, attempt);
            let Ok(Some(parts)) = join.offer(attempt, work.lane, work, Instant::now()) else { continue };
            let whole = parts.into_iter().reduce(|mut whole, part| {
                assert_eq!(whole.version, part.version);
                whole.ticket.merge(part.ticket);
                whole
            });
            output.send(whole.unwrap(), stage)?;
        }
        Ok(())
    }

    fn learner(&self, input: &Receiver<Work>, stage: &Stage) -> Result<(), FlowError> {
        let mut batch: Vec<Work> = Vec::new();
        while let Some(work) = input.recv(stage)? {
            let version = self.weights.version();
            self.plan.mishap(6, work.ticket.attempt());
            if !invariants::staleness_within(version, work.version, self.plan.bound as u64) {
                // Void work has no outcome; whoever voided it has seen to the prompt.
                drop(work.ticket.settle(Outcome::DroppedStale));
                continue;
            }
            batch.retain(|work| work.ticket.is_current());
            batch.push(work);
            if batch.len() < self.plan.batch {
                continue;
            }
            let rows: Vec<_> =
                batch.iter().map(|work| (work.ticket.attempt().ordinal, version.0 - work.version.0)).collect();
            let tickets = batch.drain(..).map(|work| work.ticket).collect();
            if let Ok(credits) = self.ledger.settle_all(tickets, Outcome::Trained) {
                self.trained.lock().unwrap().extend(rows);
                self.weights.publish(version.next(), ())?;
                drop(credits);
            }
        }
        Ok(())
    }

    /// Runs the stage on a thread, and again after each crash, until it ends.
    fn supervise<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        stage: Stage,
        body: impl Fn(&Stage) -> Result<(), FlowError> + Send + 'scope,
    ) {
        let thread = thread::Builder::new().name(stage.name().to_owned());
        let run = move || loop {
            match catch_unwind(AssertUnwindSafe(|| body(&stage))) {
                Err(_) => {}
                Ok(Ok(())) | Ok(Err(FlowError::Cancelled { .. })) => return,
                Ok(Err(error)) => {
                    self.root.cancel(error.to_string());
                    return;
                }
            }
        };
        thread.spawn_scoped(scope, run).unwrap();
    }

    /// Runs to the end; gives the edges' counters.
    fn run(&self) -> Vec<Arc<EdgeStats>> {
        let capacity = self.plan.capacity;
        let (prompts_in, prompts) = open("source", "generator", capacity);
        let (joined_in, joined) = open("join", "learner", capacity);
        let (scored_in, scored) = open("scorer", "join", capacity);
        let (lanes_in, lanes): (Vec<_>, Vec<_>) =
            ["reward", "cost"].iter().map(|lane| open("generator", lane, capacity)).unzip();
        let stats =
            [&prompts, &joined, &scored, &lanes[0], &lanes[1]].map(|receiver| Arc::clone(receiver.stats())).to_vec();
        thread::scope(|scope| {
            self.supervise(scope, self.stage("source"), move |stage| self.source(&prompts_in, stage));
            for lane in lanes {
                for _ in 0..self.plan.scorers {
                    let (input, output) = (lane.clone(), scored_in.clone());
                    self.supervise(scope, self.stage("scorer"), move |stage| self.scorer(&input, &output, stage));
                }
            }
            drop(scored_in);
            self.supervise(scope, self.stage("join"), move |stage| self.join(&scored, &joined_in, stage));
            self.supervise(scope, self.stage("learner"), move |stage| self.learner(&joined, stage));
            self.operate(scope, prompts, lanes_in);
        });
        stats
    }

    /// Starts the generators, and carries out the orders. It holds the ends that later generators need, until the last.
    fn operate<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        prompts: Receiver<Work>,
        lanes: Vec<Sender<Work>>,
    ) {
        let start = || {
            let (stage, input, outputs) = (self.stage("generator"), prompts.clone(), lanes.clone());
            self.supervise(scope, stage.clone(), move |stage| self.generator(&input, &outputs, stage));
            stage
        };
        let mut generators: Vec<Stage> = (0..self.plan.generators).map(|_| start()).collect();
        let operator = self.stage("operator");
        for (orders_done, &order) in self.plan.orders.iter().enumerate() {
            let trained = self.plan.target().min((orders_done * self.plan.batch) as u64);
            let wanted = self.ledger.wait_until(&operator, |counts| counts.ended(Outcome::Trained) >= trained);
            if wanted.is_err() {
                return;
            }
            match order {
                Order::Replace => {
                    let hung = generators.remove(0);
                    generators.push(start());
                    self.ledger.revoke(hung.held());
                    hung.cancel().cancel("hung");
                }
                Order::AddGenerator => generators.push(start()),
                Order::RemoveGenerator if generators.len() > 1 => generators.remove(0).cancel().cancel("scaled down"),
                Order::RemoveGenerator | Order::Nothing => {}
            }
        }
    }
}

fn check(plan: Plan) -> Result<(), TestCaseError> {
    let pipeline = Pipeline::new(plan.clone());
    let stats = pipeline.run();
    prop_assert_eq!(pipeline.root.reason(), None, "a stage gave up");

    let counts = pipeline.ledger.counts();
    let trained = pipeline.trained.into_inner().unwrap();
    prop_assert_eq!(counts.ended(Outcome::Trained), plan.target());
    prop_assert_eq!(trained.len() as u64, plan.target());
    prop_assert_eq!(pipeline.weights.version(), PolicyVersion(plan.updates));
    prop_assert!(trained.iter().all(|&(_, staleness)| staleness <= plan.bound as u64), "{:?}", trained);
    let mut ordinals: Vec<_> = trained.iter().map(|&(ordinal, _)| ordinal).collect();
    ordinals.sort_unstable();
    ordinals.dedup();
    prop_assert_eq!(ordinals.len() as u64, plan.target(), "a rollout was trained twice");

    prop_assert!(invariants::prompts_accounted(counts.drawn, counts.open, &counts.ended));
    let left = stats.iter().map(|edge| edge.read().items).sum();
    let (available, total) = (pipeline.credits.available(), pipeline.credits.total());
    prop_assert!(invariants::drained(counts.open, left, available, total), "{counts:?}, {left} left, {available}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn under_crashes_replacements_and_scaling_nothing_is_lost_doubled_or_too_old(plan in plans()) {
        check(plan)?;
    }
}

/// Sends while there is room; what could not be sent stays in hand.
fn advance(
    hand: &mut Option<Work>,
    next: &mut impl FnMut() -> Option<Work>,
    output: &Sender<Work>,
    stage: &Stage,
) -> bool {
    let mut moved = false;
    loop {
        let Some(work) = hand.take().or_else(&mut *next) else { return moved };
        moved = true;
        match output.send(work, stage) {
            Ok(()) => {}
            Err(unsent) => {
                *hand = Some(unsent.item);
                return moved;
            }
        }
    }
}

/// How many prompts a source draws before everything stands still behind a learner that does not take.
fn drawn_behind_a_stopped_learner(credits: usize, capacities: [usize; 3]) -> u64 {
    let plan = Plan {
        seed: 0,
        bound: 0,
        batch: credits,
        updates: 1000,
        generators: 1,
        scorers: 1,
        capacity: 1,
        crash_chance: 0,
        orders: vec![],
    };
    let pipeline = Pipeline::new(plan);
    let clock = Clock::Manual(ManualClock::new());
    let stage = Stage::with_clock("inline", Cancel::new(), Duration::from_secs(1), clock);
    let [(prompts_in, prompts), (responses_in, responses), (scored_in, _scored)] =
        capacities.map(|capacity| open("one", "next", capacity));
    let mut held: [Option<Work>; 3] = [None, None, None];
    let mut progress = true;
    while progress {
        let mut draw = || {
            let credit = pipeline.credits.acquire(&stage).ok()?;
            let ordinal = PromptOrdinal(pipeline.ledger.counts().drawn);
            let drawn = pipeline.ledger.draw(Prompt { ordinal, tokens: vec![1], kind: None }, credit).unwrap();
            Some(Work { ticket: drawn.ticket, version: PolicyVersion(0), lane: 0 })
        };
        let before = pipeline.ledger.counts().drawn;
        let received = [prompts.stats(), responses.stats()].map(|stats| stats.read().received);
        let [source, generator, scorer] = &mut held;
        advance(source, &mut draw, &prompts_in, &stage);
        advance(generator, &mut || prompts.try_recv(&stage), &responses_in, &stage);
        advance(scorer, &mut || responses.try_recv(&stage), &scored_in, &stage);
        progress = before != pipeline.ledger.counts().drawn
            || received != [prompts.stats(), responses.stats()].map(|stats| stats.read().received);
    }
    pipeline.ledger.counts().drawn
}

proptest! {
    /// Back-pressure by equality: each edge is full and each stage holds one, unless the credits end before.
    #[test]
    fn behind_a_stopped_learner_the_source_draws_what_fits_and_no_more(
        credits in 1..30_usize,
        capacities in [1..6_usize, 1..6_usize, 1..6_usize],
    ) {
        let in_hand = 3;
        let fits = capacities.iter().sum::<usize>() + in_hand;
        prop_assert_eq!(drawn_behind_a_stopped_learner(credits, capacities), fits.min(credits) as u64);
    }
}

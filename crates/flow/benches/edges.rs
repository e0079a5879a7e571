//! What the data plane costs: items through an edge, against a bare bounded channel, and a prompt's whole way through
//! credits, ledger, four edges and join. Divide by [`ITEMS`] for the cost of one.

use divan::{Bencher, black_box};
use saddle_core::{Prompt, PromptOrdinal};
use saddle_flow::{
    Attempt, Cancel, Cargo, Credits, EdgeSpec, HeldTickets, Join, Ledger, Outcome, Receiver, Sender, Stage, Ticket,
    edge,
};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const ITEMS: u64 = 10_000;
const CAPACITIES: [usize; 3] = [1, 16, 256];

fn main() {
    divan::main();
}

struct Item(u64);

impl Cargo for Item {
    fn size_bytes(&self) -> usize {
        4096
    }
}

struct Work {
    prompt: Arc<Prompt>,
    ticket: Ticket,
}

impl Cargo for Work {
    fn size_bytes(&self) -> usize {
        self.prompt.tokens.len() * size_of::<i64>()
    }

    fn pass_to(&mut self, held: Option<&HeldTickets>) {
        self.ticket.pass_to(held);
    }
}

fn positive(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("the benchmark's capacities are positive")
}

fn stage(name: &str) -> Stage {
    Stage::new(name, Cancel::new(), Duration::from_secs(60))
}

fn open<T: Cargo>(to: &str, capacity: usize) -> (Sender<T>, Receiver<T>) {
    edge(EdgeSpec::new("bench", to, positive(capacity), positive(1 << 30)), Arc::new(()))
}

/// One thread sends, this one receives.
#[divan::bench(args = CAPACITIES)]
fn edge_between_threads(bencher: Bencher<'_, '_>, capacity: usize) {
    bencher.bench_local(|| {
        let (sender, receiver) = open("sink", capacity);
        thread::scope(|scope| {
            let source = thread::Builder::new().name("source".to_owned()).spawn_scoped(scope, move || {
                let stage = stage("source");
                (0..ITEMS).all(|number| sender.send(Item(number), &stage).is_ok())
            });
            let stage = stage("sink");
            while let Ok(Some(item)) = receiver.recv(&stage) {
                black_box(item.0);
            }
            source.expect("the thread starts").join().expect("the source does not panic")
        })
    });
}

#[divan::bench(args = CAPACITIES)]
fn bare_channel_between_threads(bencher: Bencher<'_, '_>, capacity: usize) {
    bencher.bench_local(|| {
        let (sender, receiver) = crossbeam_channel::bounded(capacity);
        thread::scope(|scope| {
            let source = thread::Builder::new().name("source".to_owned()).spawn_scoped(scope, move || {
                (0..ITEMS).all(|number| sender.send_timeout(Item(number), Duration::from_secs(60)).is_ok())
            });
            while let Ok(item) = receiver.recv_timeout(Duration::from_secs(60)) {
                black_box(item.0);
            }
            source.expect("the thread starts").join().expect("the source does not panic")
        })
    });
}

/// Draw, generate, two lanes, join, learner: everything but the work, on one thread.
#[divan::bench]
fn a_rollouts_whole_way(bencher: Bencher<'_, '_>) {
    let stage = stage("all");
    bencher.bench_local(|| {
        let credits = Credits::new(positive(16));
        let ledger = Ledger::new(PromptOrdinal(0), NonZeroU32::MIN, Arc::new(()));
        let ((to_generator, prompts), (to_learner, rollouts)) =
            (open::<Work>("generator", 8), open::<Work>("learner", 8));
        let lanes = [open::<Work>("reward", 8), open::<Work>("cost", 8)];
        let mut join: Join<Attempt, Work> =
            Join::new(vec!["reward".into(), "cost".into()], Duration::from_secs(60), positive(credits.total()));
        for number in 0..ITEMS {
            let prompt = Prompt { ordinal: PromptOrdinal(number), tokens: vec![7; 64], kind: None };
            let credit = credits.acquire(&stage).expect("the credit of the last prompt is back");
            let drawn = ledger.draw(prompt, credit).expect("ordinals increase");
            let work = Work { prompt: Arc::new(drawn.prompt), ticket: drawn.ticket };
            to_generator.send(work, &stage).expect("there is room");
            let Some(work) = prompts.try_recv(&stage) else { continue };
            let (prompt, tickets) = (work.prompt, work.ticket.split(positive(lanes.len())));
            for ((lane, (sender, receiver)), ticket) in lanes.iter().enumerate().zip(tickets) {
                sender.send(Work { prompt: Arc::clone(&prompt), ticket }, &stage).expect("there is room");
                let Some(part) = receiver.try_recv(&stage) else { continue };
                let Ok(Some(parts)) = join.offer(part.ticket.attempt(), lane, part, Instant::now()) else { continue };
                let whole = parts.into_iter().reduce(|mut whole, part| {
                    whole.ticket.merge(part.ticket);
                    whole
                });
                to_learner.send(whole.expect("two lanes"), &stage).expect("there is room");
            }
            let Some(rollout) = rollouts.try_recv(&stage) else { continue };
            ledger.settle_all(vec![rollout.ticket], Outcome::Trained).expect("the attempt counts");
        }
    });
}

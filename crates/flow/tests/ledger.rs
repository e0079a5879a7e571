//! The ledger: a prompt ends exactly once, comes back when its work is lost, and void attempts change nothing.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use proptest::prelude::*;
use saddle_core::{Prompt, PromptOrdinal};
use saddle_flow::{
    Activity, Attempt, Cancel, Cargo, Clock, Counts, Credits, Drawn, EdgeSpec, FlowError, HeldTickets, Ledger,
    LedgerObserver, ManualClock, Outcome, Stage, Ticket, edge, invariants,
};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const FAILURES_LIMIT: u32 = 3;

struct Run {
    credits: Credits,
    ledger: Ledger,
}

fn run(credits: usize) -> Run {
    run_watched(credits, Arc::new(()))
}

fn run_watched(credits: usize, observer: Arc<dyn LedgerObserver>) -> Run {
    let limit = NonZeroU32::new(FAILURES_LIMIT).unwrap();
    let credits = Credits::new(NonZeroUsize::new(credits).unwrap());
    Run { credits, ledger: Ledger::new(PromptOrdinal(0), limit, observer) }
}

impl Run {
    /// What a source does: a prompt that came back, else the next.
    fn draw(&self) -> Option<Drawn> {
        let credit = self.credits.try_acquire()?;
        let ordinal = PromptOrdinal(self.ledger.counts().drawn);
        let drawn = self.ledger.redraw(credit).or_else(|credit| self.ledger.draw(prompt(ordinal), credit));
        Some(drawn.unwrap())
    }

    fn ticket(&self) -> Ticket {
        self.draw().unwrap().ticket
    }

    fn counts(&self) -> Counts {
        self.ledger.counts()
    }
}

/// A stage of this thread only, on a clock that jumps.
fn stage(name: &str) -> Stage {
    Stage::with_clock(name, Cancel::new(), Duration::from_secs(9), Clock::Manual(ManualClock::new()))
}

fn prompt(ordinal: PromptOrdinal) -> Prompt {
    Prompt { ordinal, tokens: vec![1, 2, 3], kind: None }
}

fn attempt(ordinal: u64, number: u32) -> Attempt {
    Attempt { ordinal: PromptOrdinal(ordinal), number }
}

#[test]
fn settling_ends_the_prompt_and_hands_the_credit_over() {
    let run = run(2);
    let credit = run.ticket().settle(Outcome::Trained).unwrap();
    assert_eq!((run.counts().open, run.counts().ended(Outcome::Trained)), (0, 1));
    assert_eq!(run.credits.available(), 1, "the learner holds the credit until it has published");
    drop(credit);
    assert_eq!(run.credits.available(), 2);
}

#[test]
fn a_dropped_ticket_sends_the_prompt_back_to_be_handed_out_first() {
    let run = run(2);
    let (lost, kept) = (run.ticket(), run.ticket());
    drop(lost);
    assert_eq!((run.counts().waiting, run.credits.available()), (1, 1));
    let again = run.draw().unwrap();
    assert_eq!((again.ticket.attempt(), again.prompt), (attempt(0, 2), prompt(PromptOrdinal(0))));
    assert_eq!((kept.attempt(), run.counts().drawn), (attempt(1, 1), 2));
}

#[test]
fn a_prompt_that_fails_three_times_is_quarantined_and_one_handed_back_is_not() {
    let run = run(1);
    for _ in 0..10 {
        run.ticket().give_back();
    }
    for failure in 1..=FAILURES_LIMIT {
        assert_eq!(run.counts().ended(Outcome::Quarantined), 0, "before failure {failure}");
        drop(run.ticket());
    }
    assert_eq!((run.counts().ended(Outcome::Quarantined), run.counts().open), (1, 0));
    assert_eq!(run.ticket().attempt(), attempt(1, 1));
}

#[test]
fn what_a_hung_stage_holds_goes_back_and_its_late_result_changes_nothing() {
    let (run, hung) = (run(4), HeldTickets::default());
    let (mut held, mut passed_on) = (run.ticket(), run.ticket());
    held.pass_to(Some(&hung));
    passed_on.pass_to(Some(&hung));
    passed_on.pass_to(None);
    assert_eq!(hung.attempts(), [attempt(0, 1)]);

    assert_eq!(run.ledger.revoke(&hung), 1);
    assert!(passed_on.is_current() && !held.is_current());
    let replacement = run.ticket();
    assert_eq!(replacement.attempt(), attempt(0, 2));
    assert_eq!(held.settle(Outcome::Trained).unwrap_err(), FlowError::Superseded { attempt: attempt(0, 1) });
    assert_eq!(hung.attempts(), []);
    drop(replacement.settle(Outcome::Trained));
    assert_eq!((run.counts().ended(Outcome::Trained), run.credits.available()), (1, 3));
}

struct Work(Ticket);

impl Cargo for Work {
    fn size_bytes(&self) -> usize {
        1
    }

    fn pass_to(&mut self, held: Option<&HeldTickets>) {
        self.0.pass_to(held);
    }
}

#[test]
fn what_is_received_is_in_the_receivers_hands_and_what_lies_on_an_edge_in_nobodys() {
    let (run, generator, scorer) = (run(1), stage("generator"), stage("scorer"));
    let one = NonZeroUsize::MIN;
    let (sender, receiver) = edge(EdgeSpec::new("generator", "scorer", one, one), Arc::new(()));
    let mut ticket = run.ticket();
    ticket.pass_to(Some(generator.held()));
    sender.send(Work(ticket), &generator).unwrap();
    assert_eq!((generator.held().attempts(), scorer.held().attempts()), (vec![], vec![]));
    let received = receiver.recv(&scorer).unwrap().unwrap();
    assert_eq!(scorer.held().attempts(), [attempt(0, 1)]);
    drop(received);
    assert_eq!(scorer.held().attempts(), []);

    sender.send(Work(run.ticket()), &generator).unwrap();
    drop(receiver);
    assert_eq!(run.counts().waiting, 1, "an edge without receivers sends its prompts back");
}

#[test]
fn losing_one_lanes_ticket_voids_the_attempt_and_merged_tickets_are_one() {
    let run = run(1);
    let mut ways = run.ticket().split(NonZeroUsize::new(3).unwrap());
    let (mut whole, merged, lost) = (ways.remove(0), ways.remove(0), ways.remove(0));
    whole.merge(merged);
    assert!(whole.is_current());
    drop(lost);
    assert!(!whole.is_current());
    drop(whole);
    assert_eq!((run.counts().came_back, run.counts().waiting), (1, 1), "one failure, not two");
}

#[test]
fn a_batch_is_settled_whole_or_not_at_all() {
    let (run, hung) = (run(3), HeldTickets::default());
    let mut tickets: Vec<Ticket> = (0..3).map(|_| run.ticket()).collect();
    tickets[1].pass_to(Some(&hung));
    run.ledger.revoke(&hung);
    let error = run.ledger.settle_all(tickets, Outcome::Trained).unwrap_err();
    assert_eq!(error, FlowError::Superseded { attempt: attempt(1, 1) });
    assert_eq!((run.counts().ended(Outcome::Trained), run.counts().waiting), (0, 3));

    let tickets = (0..3).map(|_| run.ticket()).collect();
    let credits = run.ledger.settle_all(tickets, Outcome::Trained).unwrap();
    assert_eq!((credits.len(), run.counts().ended(Outcome::Trained), run.counts().open), (3, 3, 0));
}

#[test]
fn prompts_are_drawn_in_order_and_none_while_the_run_drains() {
    let run = run(3);
    let credit = || run.credits.try_acquire().unwrap();
    let first = run.ledger.draw(prompt(PromptOrdinal(4)), credit()).unwrap();
    let again = run.ledger.draw(prompt(PromptOrdinal(4)), credit()).unwrap_err();
    assert_eq!(again, FlowError::DrawnAlready { ordinal: PromptOrdinal(4), next: PromptOrdinal(5) });
    let came_back = run.ledger.draw(prompt(PromptOrdinal(6)), credit()).unwrap();
    drop(came_back);
    run.ledger.close();
    assert_eq!(run.counts().ended(Outcome::Failed), 1, "the one that waited");
    let draining = run.ledger.draw(prompt(PromptOrdinal(7)), credit()).unwrap_err();
    assert_eq!(draining, FlowError::Draining { ordinal: PromptOrdinal(7) });
    assert_eq!(run.ledger.unfinished(3), [PromptOrdinal(4)]);
    drop(first);
    assert_eq!((run.counts().ended(Outcome::Failed), run.counts().lost()), (2, 2));
    assert!(invariants::drained(run.counts().open, 0, run.credits.available(), run.credits.total()));
}

#[test]
fn waiting_for_the_end_of_a_drain_has_a_deadline() {
    let run = run(1);
    let stage = stage("drain");
    let held = run.ticket();
    let late = run.ledger.wait_until(&stage, |counts| counts.open == 0).unwrap_err();
    assert_eq!(late, FlowError::Deadline { at: "ledger".into(), patience: Duration::from_secs(9) });
    drop(held.settle(Outcome::DroppedStale));
    assert_eq!(run.ledger.wait_until(&stage, |counts| counts.open == 0).unwrap().ended(Outcome::DroppedStale), 1);
}

#[test]
fn a_change_between_the_last_look_and_the_sleep_is_not_missed() {
    let (run, stage) = (run(1), stage("drain"));
    let (mut held, mut looks) = (Some(run.ticket()), 0);
    let counts = run.ledger.wait_until(&stage, |counts| {
        looks += 1;
        if looks == 2 {
            drop(held.take().map(|ticket| ticket.settle(Outcome::Trained)));
        }
        counts.open == 0
    });
    assert_eq!(counts.unwrap().ended(Outcome::Trained), 1);
    assert_eq!((looks, stage.pulse().spent(Activity::Blocked)), (3, Duration::ZERO));
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl LedgerObserver for Heard {
    fn ended(&self, ordinal: PromptOrdinal, outcome: Outcome) {
        self.0.lock().unwrap().push(format!("{ordinal} {}", outcome.label()));
    }

    fn came_back(&self, attempt: Attempt) {
        self.0.lock().unwrap().push(format!("{attempt} came back"));
    }
}

#[test]
fn the_observer_hears_of_every_end_and_every_return_once() {
    let heard = Arc::new(Heard::default());
    let run = run_watched(2, Arc::<Heard>::clone(&heard));
    drop(run.ticket());
    let (first, second) = (run.ticket(), run.ticket());
    drop(run.ledger.settle_all(vec![first], Outcome::Trained));
    drop(second.settle(Outcome::DroppedStale));
    assert_eq!(*heard.0.lock().unwrap(), ["#0.1 came back", "#0 trained", "#1 dropped_stale"]);
}

/// One thing that can happen to a prompt under way. The number picks which.
#[derive(Clone, Debug)]
enum Step {
    Draw,
    Settle(usize, usize),
    Lose(usize),
    GiveBack(usize),
    Hold(usize),
    Split(usize),
    Revoke,
    SettleAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Draw),
        2 => (0..9_usize, 0..Outcome::ALL.len()).prop_map(|(which, outcome)| Step::Settle(which, outcome)),
        1 => (0..9_usize).prop_map(Step::Lose),
        1 => (0..9_usize).prop_map(Step::GiveBack),
        2 => (0..9_usize).prop_map(Step::Hold),
        1 => (0..9_usize).prop_map(Step::Split),
        1 => Just(Step::Revoke),
        1 => Just(Step::SettleAll),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    /// FLOW-2 and FLOW-3 after every step, and everything ended and back after the drain (FLOW-4).
    #[test]
    fn whatever_happens_to_prompts_they_and_their_credits_are_accounted_for(total in 1..5_usize, steps in steps()) {
        let (heard, held) = (Arc::new(Heard::default()), HeldTickets::default());
        let run = run_watched(total, Arc::<Heard>::clone(&heard));
        let (mut tickets, mut held_credits): (Vec<Ticket>, Vec<_>) = (Vec::new(), Vec::new());
        for step in steps {
            let take = |tickets: &mut Vec<Ticket>, which: usize| {
                (!tickets.is_empty()).then(|| tickets.swap_remove(which % tickets.len()))
            };
            match step {
                Step::Draw => tickets.extend(run.draw().map(|drawn| drawn.ticket)),
                Step::Settle(which, outcome) => {
                    let settled = take(&mut tickets, which).map(|ticket| ticket.settle(Outcome::ALL[outcome]));
                    held_credits.extend(settled.and_then(Result::ok));
                }
                Step::Lose(which) => drop(take(&mut tickets, which)),
                Step::GiveBack(which) => take(&mut tickets, which).into_iter().for_each(Ticket::give_back),
                Step::Hold(which) => {
                    let count = tickets.len().max(1);
                    tickets.get_mut(which % count).into_iter().for_each(|ticket| ticket.pass_to(Some(&held)));
                }
                Step::Split(which) => {
                    let two = NonZeroUsize::new(2).unwrap();
                    let split = take(&mut tickets, which).map(|ticket| ticket.split(two));
                    tickets.extend(split.into_iter().flatten());
                }
                Step::Revoke => {
                    run.ledger.revoke(&held);
                    held_credits.clear();
                }
                Step::SettleAll => {
                    let settled = run.ledger.settle_all(std::mem::take(&mut tickets), Outcome::Trained);
                    held_credits.extend(settled.unwrap_or_default());
                }
            }
            let counts = run.counts();
            prop_assert!(invariants::prompts_accounted(counts.drawn, counts.open, &counts.ended));
            let taken = (counts.open - counts.waiting) as usize + held_credits.len();
            prop_assert!(invariants::credits_conserved(run.credits.available(), taken, total));
            prop_assert!(counts.open as usize <= total);
        }
        run.ledger.close();
        drop((tickets, held_credits));
        let counts = run.counts();
        prop_assert!(invariants::drained(counts.open, 0, run.credits.available(), total));
        let ends = heard.0.lock().unwrap().iter().filter(|line| !line.ends_with("came back")).count();
        prop_assert_eq!(ends as u64, counts.drawn);
    }
}

//! The source: draws prompts, each under a credit, and hands out again those that came back.
//!
//! With η = 0 it draws a batch whole, when the weights that it is for are published, and sends it as one group. Else it
//! draws as many prompts as it takes to have all updates' rollouts trained on, and sends each at once. It keeps no credit from
//! step to step: what a source that hangs has in hand cannot be taken from it.

use crate::engine::Engines;
use crate::shared::{Next, Run, StageError, Work};
use crate::work::{Group, Item, send};
use saddle_core::{Prompt, PromptOrdinal};
use saddle_flow::{Counts, Credit, FlowError, Sender, Stage};
use std::sync::Arc;
use std::time::Duration;

/// How long it waits for a prompt to come back before it looks again whether a new one is owed.
const LOOK: Duration = Duration::from_millis(20);

pub(crate) struct Source<E: Engines> {
    pub(crate) run: Arc<Run<E>>,
    pub(crate) output: Sender<Group<Prompt>>,
}

impl<E: Engines> Work for Source<E> {
    fn step(&mut self, stage: &Stage) -> Result<Next, StageError> {
        let run = &self.run;
        let first = match self.draw(run.credits.acquire(stage)?, stage) {
            Ok(first) => first,
            Err(Refusal::Draining) => return Ok(Next::Done),
            Err(Refusal::NothingOwed) => {
                let look = stage.with_patience(LOOK);
                return match run.ledger.wait_until(&look, |counts| counts.waiting > 0 || self.owes(counts)) {
                    Ok(_) | Err(FlowError::Deadline { .. }) => Ok(Next::Continue),
                    Err(error) => Err(error.into()),
                };
            }
        };
        let mut items = vec![first];
        while run.plan.in_lockstep() && self.has_more(&run.ledger.counts()) {
            // Every credit is free or about to be: the batch before has been published.
            match run.credits.acquire(stage).map(|credit| self.draw(credit, stage)) {
                Ok(Ok(item)) => items.push(item),
                Ok(Err(_)) => break,
                Err(error) => {
                    Group(items).give_back();
                    return Err(error.into());
                }
            }
        }
        send(&self.output, items, stage)?;
        Ok(Next::Continue)
    }
}

/// Why there is no prompt.
enum Refusal {
    NothingOwed,
    Draining,
}

impl<E: Engines> Source<E> {
    /// A prompt that came back, else a new one if one is owed. The credit goes back where there is none.
    fn draw(&self, credit: Credit, stage: &Stage) -> Result<Item<Prompt>, Refusal> {
        let run = &self.run;
        let drawn = match run.ledger.redraw(credit) {
            Ok(drawn) => drawn,
            Err(credit) => {
                let counts = run.ledger.counts();
                if !self.owes(&counts) {
                    return Err(Refusal::NothingOwed);
                }
                let prompt = run.engines.prompt(PromptOrdinal(counts.drawn));
                run.ledger.draw(prompt, credit).map_err(|_| Refusal::Draining)?
            }
        };
        let mut item = Item { ticket: drawn.ticket, load: drawn.prompt };
        item.ticket.pass_to(Some(stage.held()));
        Ok(item)
    }

    fn has_more(&self, counts: &Counts) -> bool {
        counts.waiting > 0 || self.owes(counts)
    }

    /// Whether a new prompt is to be drawn. With η = 0 a prompt that is lost is not made up for: the synchronous schedule
    /// does not either.
    fn owes(&self, counts: &Counts) -> bool {
        let run = &self.run;
        if run.plan.in_lockstep() {
            let batches = (run.weights.version().0 + 1).min(run.plan.updates);
            counts.drawn < batches * run.plan.batch_rollouts as u64
        } else {
            counts.drawn - counts.lost() < run.plan.target()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::Harness;
    use saddle_core::PolicyVersion;
    use saddle_flow::Outcome;

    #[test]
    fn it_draws_as_many_prompts_as_there_are_credits_and_what_came_back_first() {
        let harness = Harness::new(|_| ());
        let (output, prompts) = harness.edge();
        let mut source = Source { run: Arc::clone(&harness.run), output };
        let stage = harness.stage();
        (0..4).for_each(|_| assert_eq!(source.step(&stage).unwrap(), Next::Continue));
        let mut drawn = harness.taken(&prompts);
        assert_eq!(drawn.iter().map(|item| item.load.ordinal.0).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert!(source.step(&stage).is_err(), "no credit comes back within its patience");
        drop(drawn.remove(1));
        source.step(&stage).unwrap();
        assert_eq!(harness.taken(&prompts)[0].load.ordinal.0, 1);
    }

    #[test]
    fn without_staleness_it_draws_a_batch_whole_and_a_drain_ends_it() {
        let harness = Harness::new(|plan| plan.schedule.staleness = 0);
        let (output, prompts) = harness.edge();
        let mut source = Source { run: Arc::clone(&harness.run), output };
        let stage = harness.stage();
        source.step(&stage).unwrap();
        let batch = prompts.try_recv(&stage).unwrap();
        assert_eq!(batch.0.len(), 2);
        drop(harness.run.ledger.settle_all(batch.0.into_iter().map(|item| item.ticket).collect(), Outcome::Trained));
        harness.run.weights.publish(PolicyVersion(1), ()).unwrap();
        harness.run.ledger.close();
        assert_eq!(source.step(&stage).unwrap(), Next::Done);
    }
}

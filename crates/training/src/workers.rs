//! Data-parallel gradients: threads that each take a share of a step's rows.
//!
//! Every worker has a replica of a model over the same weights, so nothing is copied between steps, and a sum of gradients
//! of its own, which the optimiser joins when it takes the step. Shares and the order of the sums are fixed: equal seeds and worker counts give equal bits.
//! A small model gains more from this than from threads within an operation, because its operations are short.

use crate::TrainingError;
use saddle_libtorch::{set_threads, threads};
use std::cmp::Reverse;
use std::panic::resume_unwind;
use std::thread;
use tch::Tensor;

/// A model as one worker has it.
#[derive(Debug)]
pub(crate) struct Replica<M> {
    /// A twin over the weights in training, whose operations record their gradients apart.
    pub(crate) model: M,
    /// Where this worker adds up its part of the gradient of the coming step.
    pub(crate) sum: Tensor,
}

/// Deals rows of so many tokens out to at most `count` shares, each of about as many tokens: the longest first, and each to
/// the share that has least.
pub(crate) fn shares(tokens: &[usize], count: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by_key(|row| Reverse(tokens[*row]));
    let mut shares = vec![(0, Vec::new()); count.min(tokens.len())];
    for row in order {
        let least = shares.iter_mut().min_by_key(|(tokens, _)| *tokens).expect("there are rows, so there is a share");
        least.0 += tokens[row];
        least.1.push(row);
    }
    shares.into_iter().map(|(_, rows)| rows).collect()
}

/// Does each job on a thread of its own, with its part of this thread's thread count; a single one is done here. The
/// results are in the order of the jobs.
pub(crate) fn side_by_side<J: Send, R: Send>(
    mut jobs: Vec<J>,
    work: impl Fn(J) -> Result<R, TrainingError> + Sync,
) -> Result<Vec<R>, TrainingError> {
    if jobs.len() == 1 {
        return jobs.pop().map(work).into_iter().collect();
    }
    let threads = (threads()? / jobs.len().max(1)).max(1);
    let work = &work;
    thread::scope(|scope| {
        let start = |job| {
            scope.spawn(move || {
                set_threads(threads)?;
                work(job)
            })
        };
        let handles: Vec<_> = jobs.into_iter().map(start).collect();
        handles.into_iter().map(|handle| handle.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_hold_every_row_once_and_differ_by_one_row_at_the_most(
            tokens in prop::collection::vec(1usize..40, 0..60), count in 1usize..9,
        ) {
            let shares = shares(&tokens, count);
            prop_assert_eq!(shares.len(), count.min(tokens.len()));
            let mut rows = shares.concat();
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..tokens.len()).collect::<Vec<_>>());
            let sums: Vec<usize> = shares.iter().map(|rows| rows.iter().map(|row| tokens[*row]).sum()).collect();
            if let (Some(least), Some(most), Some(longest)) = (sums.iter().min(), sums.iter().max(), tokens.iter().max()) {
                prop_assert!(most - least <= *longest, "{:?}", sums);
            }
        }
    }

    #[test]
    fn results_are_in_the_order_of_the_jobs_and_an_error_is_that_of_the_first_that_failed() {
        let double = |job: u64| Ok(2 * job);
        for jobs in 0..5 {
            let results = side_by_side((0..jobs).collect(), double).unwrap();
            assert_eq!(results, (0..jobs).map(|job| 2 * job).collect::<Vec<_>>());
        }
        let odd = |job: u64| if job % 2 == 1 { Err(TrainingError::Diverged(job.to_string())) } else { Ok(job) };
        let error = side_by_side((0..5).collect(), odd).unwrap_err();
        assert!(matches!(&error, TrainingError::Diverged(job) if job == "1"), "{error}");
    }

    #[test]
    fn a_job_has_its_part_of_the_threads() {
        let test = || {
            set_threads(4).unwrap();
            let counts = |jobs| side_by_side(vec![(); jobs], |()| Ok(threads()?)).unwrap();
            assert_eq!([counts(1), counts(2), counts(3)], [vec![4], vec![2, 2], vec![1, 1, 1]]);
            assert_eq!(counts(5), [1; 5]);
            assert_eq!(threads().unwrap(), 4);
        };
        thread::scope(|scope| scope.spawn(test).join()).unwrap();
    }
}

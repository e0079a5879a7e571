//! The join: parts of one thing that come by several lanes, such as the reward, the costs and the reference log-probs of
//! a rollout, brought together by their key under a deadline. A plain state machine, told the time; it waits for nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Parts of type `P` by key `K`, such as an [`Attempt`](crate::Attempt): a new attempt is a new key, so that parts of a
/// void attempt never mix with it.
#[derive(Debug)]
pub struct Join<K, P> {
    lanes: Vec<Arc<str>>,
    patience: Duration,
    capacity: usize,
    open: BTreeMap<K, Partial<P>>,
    /// The last keys that are over, as many as `capacity`, oldest first: their late parts are refused.
    over: VecDeque<K>,
    /// The same, to look them up.
    is_over: BTreeSet<K>,
}

#[derive(Debug)]
struct Partial<P> {
    parts: Vec<Option<P>>,
    deadline: Instant,
}

/// A part that was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the join refused a part of lane {lane}: {why}")]
pub struct Refused<P> {
    /// The part.
    pub part: P,
    /// Index of its lane.
    pub lane: usize,
    /// Why it was not taken.
    pub why: &'static str,
}

/// What came of a key whose deadline passed.
#[derive(Debug, PartialEq, Eq)]
pub struct Expired<K, P> {
    /// The key.
    pub key: K,
    /// The parts that came.
    pub parts: Vec<P>,
    /// Names of the lanes that did not deliver.
    pub missing: Vec<Arc<str>>,
}

impl<K: Ord + Copy, P> Join<K, P> {
    /// A join of the named lanes. A key is given up `patience` after its first part; at most `capacity` keys are open.
    #[must_use]
    pub fn new(lanes: Vec<Arc<str>>, patience: Duration, capacity: NonZeroUsize) -> Self {
        Self {
            lanes,
            patience,
            capacity: capacity.get(),
            open: BTreeMap::new(),
            over: VecDeque::new(),
            is_over: BTreeSet::new(),
        }
    }

    /// Takes a part. The last one of a key completes it: all parts, in the order of the lanes.
    ///
    /// # Errors
    /// The part, if its lane is unknown or delivered before, its key is over, or too many keys are open.
    pub fn offer(&mut self, key: K, lane: usize, part: P, now: Instant) -> Result<Option<Vec<P>>, Refused<P>> {
        let why = if lane >= self.lanes.len() {
            Some("there is no such lane")
        } else if self.is_over.contains(&key) {
            Some("its key is complete or expired")
        } else if self.open.get(&key).is_some_and(|partial| partial.parts[lane].is_some()) {
            Some("the lane delivered this key before")
        } else if self.open.len() >= self.capacity && !self.open.contains_key(&key) {
            Some("too many keys are open; give the join the capacity of the credits")
        } else {
            None
        };
        if let Some(why) = why {
            return Err(Refused { part, lane, why });
        }
        let (lanes, deadline) = (self.lanes.len(), now + self.patience);
        let partial = self
            .open
            .entry(key)
            .or_insert_with(|| Partial { parts: std::iter::repeat_with(|| None).take(lanes).collect(), deadline });
        partial.parts[lane] = Some(part);
        if partial.parts.iter().any(Option::is_none) {
            return Ok(None);
        }
        let complete = self.end(key).map(|partial| partial.parts.into_iter().flatten().collect());
        Ok(complete)
    }

    /// Gives up the keys whose deadline has passed, in order.
    pub fn expire(&mut self, now: Instant) -> Vec<Expired<K, P>> {
        let late: Vec<K> =
            self.open.iter().filter(|(_, partial)| partial.deadline <= now).map(|(&key, _)| key).collect();
        let mut expired = Vec::with_capacity(late.len());
        for key in late {
            let Some(partial) = self.end(key) else { continue };
            let lanes = self.lanes.iter().zip(&partial.parts);
            let missing = lanes.filter(|(_, part)| part.is_none()).map(|(lane, _)| Arc::clone(lane)).collect();
            expired.push(Expired { key, parts: partial.parts.into_iter().flatten().collect(), missing });
        }
        expired
    }

    /// When the next key expires: no receive of the join should wait longer.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.open.values().map(|partial| partial.deadline).min()
    }

    /// Keys that are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether no key is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn end(&mut self, key: K) -> Option<Partial<P>> {
        let partial = self.open.remove(&key)?;
        if self.over.len() == self.capacity
            && let Some(oldest) = self.over.pop_front()
        {
            self.is_over.remove(&oldest);
        }
        self.over.push_back(key);
        self.is_over.insert(key);
        Some(partial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn join(capacity: usize) -> Join<u64, &'static str> {
        let lanes = ["reward", "cost", "reference"].map(Arc::from).to_vec();
        Join::new(lanes, PATIENCE, NonZeroUsize::new(capacity).unwrap())
    }

    #[test]
    fn the_last_lane_completes_a_key_with_parts_in_the_order_of_the_lanes() {
        let (mut join, now) = (join(2), Instant::now());
        assert_eq!(join.offer(7, 2, "log-probs", now), Ok(None));
        assert_eq!(join.offer(7, 0, "1.5", now), Ok(None));
        assert_eq!(join.offer(7, 1, "-0.5", now), Ok(Some(vec!["1.5", "-0.5", "log-probs"])));
        assert!(join.is_empty());
    }

    #[test]
    fn duplicates_come_back_before_and_after_completion() {
        let (mut join, now) = (join(2), Instant::now());
        let refused = |result: Result<_, Refused<_>>| result.unwrap_err().part;
        assert_eq!(join.offer(7, 0, "first", now), Ok(None));
        assert_eq!(refused(join.offer(7, 0, "again", now)), "again");
        join.offer(7, 1, "cost", now).unwrap();
        join.offer(7, 2, "reference", now).unwrap();
        assert_eq!(refused(join.offer(7, 0, "late", now)), "late");
        assert_eq!(refused(join.offer(8, 3, "nowhere", now)), "nowhere");
    }

    #[test]
    fn a_key_expires_at_its_deadline_with_what_was_missing() {
        let (mut join, now) = (join(2), Instant::now());
        join.offer(7, 1, "cost", now).unwrap();
        join.offer(8, 0, "reward", now + Duration::from_secs(1)).unwrap();
        assert_eq!(join.next_deadline(), Some(now + PATIENCE));
        assert_eq!(join.expire(now + PATIENCE - Duration::from_nanos(1)), []);
        let missing = vec!["reward".into(), "reference".into()];
        assert_eq!(join.expire(now + PATIENCE), [Expired { key: 7, parts: vec!["cost"], missing }]);
        assert_eq!(join.offer(7, 0, "late", now + PATIENCE).unwrap_err().part, "late");
        assert_eq!(join.len(), 1);
    }

    #[test]
    fn a_full_join_takes_parts_of_open_keys_only() {
        let (mut join, now) = (join(2), Instant::now());
        join.offer(1, 0, "a", now).unwrap();
        join.offer(2, 0, "b", now).unwrap();
        assert_eq!(join.offer(3, 0, "c", now).unwrap_err().part, "c");
        assert_eq!(join.offer(2, 1, "d", now), Ok(None));
    }

    proptest! {
        /// Whatever the order and the times: each part is in exactly one of complete, expired, refused and open.
        #[test]
        fn no_part_is_lost_or_doubled(offers in prop::collection::vec((0..6_u64, 0..4_usize, 0..6_u64), 0..60)) {
            let lanes: Vec<Arc<str>> = ["reward", "cost", "reference"].map(Arc::from).to_vec();
            let mut join = Join::new(lanes, PATIENCE, NonZeroUsize::new(3).unwrap());
            let (mut now, mut seen, total) = (Instant::now(), Vec::new(), offers.len());
            for (part, (key, lane, seconds)) in offers.into_iter().enumerate() {
                now += Duration::from_secs(seconds);
                for expired in join.expire(now) {
                    prop_assert_eq!(expired.parts.len() + expired.missing.len(), 3);
                    seen.extend(expired.parts);
                }
                match join.offer(key, lane, part, now) {
                    Ok(None) => {}
                    Ok(Some(parts)) => {
                        prop_assert_eq!(parts.len(), 3);
                        seen.extend(parts);
                    }
                    Err(refused) => seen.push(refused.part),
                }
                prop_assert!(join.len() <= 3);
            }
            seen.extend(join.expire(now + PATIENCE).into_iter().flat_map(|expired| expired.parts));
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..total).collect::<Vec<_>>());
        }
    }
}

//! Edges: bounded queues between stages, for any number of senders and receivers, threads and tasks alike.
//!
//! An edge is bounded in items and in bytes (FLOW-1), both decided under one lock. It closes by itself when its last
//! sender is gone, and then still gives out what lies on it. When its last receiver is gone, what lies on it is dropped,
//! so that tickets go back to the source; a sender gets its unsent item back with every error. No order is promised among
//! senders that wait.

use crate::edge_stats::{EdgeObserver, EdgeStats};
use crate::invariants::{self, Invariant};
use crate::waiting::Wait;
use crate::{Activity, FlowError, HeldTickets, Stage, lock};
use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// What an edge can carry.
pub trait Cargo: Send {
    /// Its size, for the edge's capacity in bytes: what it owns beyond itself counts, what it shares does not.
    fn size_bytes(&self) -> usize;

    /// Passes its tickets on, with [`Ticket::pass_to`](crate::Ticket::pass_to): into those held by the stage that received
    /// it, or out of the sender's. Called under the edge's lock. An item without tickets leaves this as it is.
    fn pass_to(&mut self, held: Option<&HeldTickets>) {
        let _ = held;
    }
}

/// The two ends of an edge, and how much it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeSpec {
    /// Name, such as `generator→reward`: the metric label.
    pub name: Arc<str>,
    /// Most items on it.
    pub capacity_items: NonZeroUsize,
    /// Most bytes on it. An item above this cannot pass.
    pub capacity_bytes: NonZeroUsize,
}

impl EdgeSpec {
    /// An edge between two stages.
    #[must_use]
    pub fn new(from: &str, to: &str, capacity_items: NonZeroUsize, capacity_bytes: NonZeroUsize) -> Self {
        Self { name: format!("{from}→{to}").into(), capacity_items, capacity_bytes }
    }
}

/// Makes an edge.
#[must_use]
pub fn edge<T: Cargo>(spec: EdgeSpec, observer: Arc<dyn EdgeObserver>) -> (Sender<T>, Receiver<T>) {
    let stats = Arc::new(EdgeStats::new(spec.name.clone(), spec.capacity_items.get(), spec.capacity_bytes.get()));
    let queue = Queue { items: VecDeque::new(), bytes: 0, senders: 1, receivers: 1, closed: false };
    let edge =
        Arc::new(Edge { spec, stats, observer, queue: Mutex::new(queue), room: Notify::new(), came: Notify::new() });
    (Sender(Arc::clone(&edge)), Receiver(edge))
}

/// An item that was not sent, and why.
pub struct Unsent<T> {
    /// The item, for its sender to keep.
    pub item: T,
    /// Why it was not sent.
    pub error: FlowError,
}

impl<T> fmt::Debug for Unsent<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Unsent").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for Unsent<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(out)
    }
}

impl<T> std::error::Error for Unsent<T> {}

/// Lets a stage end with `?`: the item is dropped, and its tickets send their prompts back to the source.
impl<T> From<Unsent<T>> for FlowError {
    fn from(unsent: Unsent<T>) -> Self {
        unsent.error
    }
}

/// The sending end. The edge closes when the last clone is dropped.
#[derive(Debug)]
pub struct Sender<T: Cargo>(Arc<Edge<T>>);

/// The receiving end. Each item goes to one of its clones.
#[derive(Debug)]
pub struct Receiver<T: Cargo>(Arc<Edge<T>>);

impl<T: Cargo> Sender<T> {
    /// Puts the item on the edge, waiting for room.
    ///
    /// # Errors
    /// The item, with [`FlowError::Closed`], [`FlowError::TooLarge`], [`FlowError::Cancelled`] or [`FlowError::Deadline`].
    pub fn send(&self, item: T, stage: &Stage) -> Result<(), Unsent<T>> {
        let mut slot = Some(item);
        let result = self.wait(stage).on_thread(|| self.0.put(&mut slot), |wait| self.0.blocked(wait));
        sent(result, slot)
    }

    /// [`Sender::send`] for a task. Giving up the future drops the item.
    ///
    /// # Errors
    /// Those of [`Sender::send`].
    pub async fn send_async(&self, item: T, stage: &Stage) -> Result<(), Unsent<T>> {
        let mut slot = Some(item);
        let result = self.wait(stage).in_task(|| self.0.put(&mut slot), |wait| self.0.blocked(wait)).await;
        sent(result, slot)
    }

    /// Closes the edge now: nothing more is taken from any sender, what lies on it can be received.
    pub fn close(&self) {
        lock(&self.0.queue).closed = true;
        self.0.room.notify_waiters();
        self.0.came.notify_waiters();
    }

    /// The edge's counters.
    #[must_use]
    pub fn stats(&self) -> &Arc<EdgeStats> {
        &self.0.stats
    }

    fn wait<'a>(&'a self, stage: &'a Stage) -> Wait<'a> {
        Wait { stage, at: &self.0.spec.name, changed: &self.0.room, activity: Activity::Blocked }
    }
}

impl<T: Cargo> Receiver<T> {
    /// Takes the next item, waiting for one; `None` once the edge is closed and empty.
    ///
    /// # Errors
    /// [`FlowError::Cancelled`] or [`FlowError::Deadline`].
    pub fn recv(&self, stage: &Stage) -> Result<Option<T>, FlowError> {
        self.wait(stage).on_thread(|| self.0.take(stage.held()), |wait| self.0.starved(wait))
    }

    /// [`Receiver::recv`] for a task. Giving up the future loses nothing.
    ///
    /// # Errors
    /// Those of [`Receiver::recv`].
    pub async fn recv_async(&self, stage: &Stage) -> Result<Option<T>, FlowError> {
        self.wait(stage).in_task(|| self.0.take(stage.held()), |wait| self.0.starved(wait)).await
    }

    /// Takes the next item if one is there: how a stage fills its batch after the first [`Receiver::recv`]. A cancelled
    /// stage gets none.
    #[must_use]
    pub fn try_recv(&self, stage: &Stage) -> Option<T> {
        if stage.cancel().is_cancelled() { None } else { self.0.take(stage.held()).flatten() }
    }

    /// The edge's counters.
    #[must_use]
    pub fn stats(&self) -> &Arc<EdgeStats> {
        &self.0.stats
    }

    fn wait<'a>(&'a self, stage: &'a Stage) -> Wait<'a> {
        Wait { stage, at: &self.0.spec.name, changed: &self.0.came, activity: Activity::Starved }
    }
}

struct Edge<T> {
    spec: EdgeSpec,
    stats: Arc<EdgeStats>,
    observer: Arc<dyn EdgeObserver>,
    queue: Mutex<Queue<T>>,
    /// Told when an item left, or nobody is left to take one.
    room: Notify,
    /// Told when an item came, or none can come any more.
    came: Notify,
}

struct Queue<T> {
    /// Items with their sizes.
    items: VecDeque<(T, usize)>,
    bytes: usize,
    senders: usize,
    receivers: usize,
    closed: bool,
}

impl<T: Cargo> Edge<T> {
    /// Puts the item on the edge; `None` while it is full.
    fn put(&self, slot: &mut Option<T>) -> Option<Result<(), FlowError>> {
        let bytes = slot.as_ref().map_or(0, Cargo::size_bytes);
        let (at, capacity_bytes) = (&self.spec.name, self.spec.capacity_bytes.get());
        if bytes > capacity_bytes {
            return Some(Err(FlowError::TooLarge { at: Arc::clone(at), bytes, capacity_bytes }));
        }
        let mut queue = lock(&self.queue);
        if queue.closed || queue.receivers == 0 {
            return Some(Err(FlowError::Closed { at: Arc::clone(at) }));
        }
        if queue.items.len() == self.spec.capacity_items.get() || bytes > capacity_bytes - queue.bytes {
            return None;
        }
        if let Some(mut item) = slot.take() {
            item.pass_to(None);
            queue.bytes += bytes;
            queue.items.push_back((item, bytes));
            self.stats.sent.fetch_add(1, Ordering::Relaxed);
            self.publish(&queue);
        }
        drop(queue);
        self.came.notify_waiters();
        Some(Ok(()))
    }

    /// Takes the next item; `Some(None)` if there will be none, `None` while there is none.
    fn take(&self, held: &HeldTickets) -> Option<Option<T>> {
        let mut queue = lock(&self.queue);
        let Some((mut item, bytes)) = queue.items.pop_front() else {
            return (queue.closed || queue.senders == 0).then_some(None);
        };
        item.pass_to(Some(held));
        queue.bytes -= bytes;
        self.stats.received.fetch_add(1, Ordering::Relaxed);
        self.publish(&queue);
        drop(queue);
        self.room.notify_waiters();
        Some(Some(item))
    }

    fn publish(&self, queue: &Queue<T>) {
        let (capacity_items, capacity_bytes) = (self.spec.capacity_items.get(), self.spec.capacity_bytes.get());
        let holds = invariants::edge_within_capacity(queue.items.len(), capacity_items, queue.bytes, capacity_bytes);
        invariants::check(Invariant::Flow1, holds);
        self.stats.items.store(queue.items.len() as u64, Ordering::Relaxed);
        self.stats.bytes.store(queue.bytes as u64, Ordering::Relaxed);
    }
}

impl<T> Edge<T> {
    fn blocked(&self, wait: Duration) {
        self.stats.blocked(wait);
        self.observer.blocked(wait);
    }

    fn starved(&self, wait: Duration) {
        self.stats.starved(wait);
        self.observer.starved(wait);
    }
}

impl<T> fmt::Debug for Edge<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Edge").field("spec", &self.spec).field("counts", &self.stats.read()).finish_non_exhaustive()
    }
}

/// What a send comes to: the slot still holds the item wherever it was not put on the edge.
fn sent<T>(result: Result<Result<(), FlowError>, FlowError>, slot: Option<T>) -> Result<(), Unsent<T>> {
    match (result.and_then(|put| put), slot) {
        (Err(error), Some(item)) => Err(Unsent { item, error }),
        _ => Ok(()),
    }
}

impl<T: Cargo> Clone for Sender<T> {
    fn clone(&self) -> Self {
        lock(&self.0.queue).senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T: Cargo> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut queue = lock(&self.0.queue);
        queue.senders -= 1;
        drop(queue);
        self.0.came.notify_waiters();
    }
}

impl<T: Cargo> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        lock(&self.0.queue).receivers += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T: Cargo> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut queue = lock(&self.0.queue);
        queue.receivers -= 1;
        let left = if queue.receivers == 0 { std::mem::take(&mut queue.items) } else { VecDeque::new() };
        if queue.receivers == 0 {
            queue.bytes = 0;
            self.0.publish(&queue);
        }
        drop(queue);
        self.0.room.notify_waiters();
        // Outside the lock: what is dropped may hold tickets, and other ends of edges.
        drop(left);
    }
}

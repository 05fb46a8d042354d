//! Where an application's threads hand over to the writer. Never waits for room: what does not fit is refused, and
//! counted.
use crate::{
    books::{Books, Dropped},
    signal::Signal,
    thread::Hole,
    trace::TraceContext,
};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What the writer is handed.
#[derive(Debug)]
pub(crate) enum Item {
    Said(Box<Said>),
    /// Nobody has a handle of this run any more.
    Over {
        run: u64,
    },
}

/// Something that was said of a run.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) run: u64,
    pub(crate) thread_id: Arc<str>,
    pub(crate) at: Instant,
    pub(crate) timestamp_us: i64,
    pub(crate) signal: Signal,
    pub(crate) trace: Option<Arc<TraceContext>>,
    /// What was refused before it.
    pub(crate) hole: Hole,
    /// Memory that it takes, bytes, about.
    pub(crate) bytes: usize,
}

/// What is shared of a producer.
#[derive(Debug)]
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    wake: Condvar,
    budget_bytes: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    items: VecDeque<Item>,
    /// Memory of what is queued, and of what Kafka's client has, bytes.
    queued_bytes: usize,
    sent_bytes: usize,
    /// What was refused of runs that have not said anything since.
    holes: HashMap<u64, Hole>,
    pub(crate) books: Books,
    /// When the first of those was said that Kafka's client has.
    oldest_sent: Option<Instant>,
    writer_waits: bool,
    /// When the writer shall have ended. Nothing is taken any more.
    deadline: Option<Instant>,
    ended: bool,
}

/// How full a producer is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Depth {
    /// Messages not given to Kafka's client yet.
    pub messages: usize,
    /// Memory taken by them and by those that Kafka's client has, bytes.
    pub bytes: usize,
    /// Time since the first of all these was said.
    pub oldest: Duration,
}

impl Queue {
    pub(crate) fn new(budget_bytes: usize) -> Self {
        Self { inner: Mutex::default(), wake: Condvar::new(), budget_bytes }
    }

    /// Hands over, or refuses.
    pub(crate) fn push(&self, mut said: Said) {
        let kind = said.signal.kind();
        said.bytes = said.signal.bytes();
        let lane = said.signal.lane();
        let mut inner = self.lock();
        let taken = inner.queued_bytes + inner.sent_bytes;
        let refused = if inner.deadline.is_some() {
            Some(Dropped::ShutDown)
        } else if lane.admits(said.bytes, taken, self.budget_bytes) {
            None
        } else {
            Some(Dropped::QueueFull)
        };
        if let Some(reason) = refused {
            inner.books.refuse(kind, reason);
            let hole = inner.holes.entry(said.run).or_default();
            hole.burned += 1;
            hole.state |= said.signal.carries_state();
            return;
        }
        if !inner.holes.is_empty() {
            said.hole = inner.holes.remove(&said.run).unwrap_or_default();
        }
        inner.books.queue(kind);
        inner.queued_bytes += said.bytes;
        inner.items.push_back(Item::Said(Box::new(said)));
        self.wake(inner);
    }

    /// A run has no handle any more.
    pub(crate) fn over(&self, run: u64) {
        let mut inner = self.lock();
        inner.holes.remove(&run);
        if !inner.ended {
            inner.items.push_back(Item::Over { run });
        }
    }

    /// Up to `most` items, in order, after waiting at most `wait` for the first; and when the writer shall have ended.
    pub(crate) fn take(&self, most: usize, wait: Duration, items: &mut Vec<Item>) -> Option<Instant> {
        let mut inner = self.lock();
        if inner.items.is_empty() && inner.deadline.is_none() && !wait.is_zero() {
            inner.writer_waits = true;
            let waited = self.wake.wait_timeout(inner, wait);
            inner = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(inner, _)| inner);
            inner.writer_waits = false;
        }
        let count = most.min(inner.items.len());
        items.extend(inner.items.drain(..count));
        inner.deadline
    }

    /// Whether the writer should have ended by now.
    pub(crate) fn is_overdue(&self) -> bool {
        self.lock().deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Makes entries in the books. The writer's only way to them: `memory` is what it has freed of the queue's and
    /// taken for Kafka's client.
    pub(crate) fn settle(
        &self,
        memory: Memory,
        oldest_sent: Option<Instant>,
        entries: impl FnOnce(&mut Books),
    ) {
        let mut inner = self.lock();
        inner.queued_bytes = inner.queued_bytes.saturating_sub(memory.taken_off_queue);
        inner.sent_bytes = (inner.sent_bytes + memory.sent).saturating_sub(memory.arrived);
        inner.oldest_sent = oldest_sent;
        entries(&mut inner.books);
    }

    /// Takes nothing more, and has the writer end by `deadline`. The first deadline holds.
    pub(crate) fn close(&self, deadline: Instant) {
        let mut inner = self.lock();
        inner.deadline.get_or_insert(deadline);
        inner.writer_waits = true;
        self.wake(inner);
    }

    /// The writer has ended.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.wake.notify_all();
    }

    /// Waits until the writer has ended, at most until `deadline`.
    pub(crate) fn wait_for_end(&self, deadline: Instant) -> bool {
        let mut inner = self.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if inner.ended || left.is_zero() {
                return inner.ended;
            }
            let waited = self.wake.wait_timeout(inner, left);
            inner = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(inner, _)| inner);
        }
    }

    pub(crate) fn books(&self) -> Books {
        self.lock().books
    }

    /// Books and depth of one and the same moment.
    pub(crate) fn reading(&self) -> (Books, Depth) {
        let inner = self.lock();
        let first = inner.items.iter().find_map(|item| match item {
            Item::Said(said) => Some(said.at),
            Item::Over { .. } => None,
        });
        let oldest = [first, inner.oldest_sent].into_iter().flatten().min();
        let depth = Depth {
            messages: inner.books.total().queued as usize,
            bytes: inner.queued_bytes + inner.sent_bytes,
            oldest: oldest.map(|at| at.elapsed()).unwrap_or_default(),
        };
        (inner.books, depth)
    }

    fn wake(&self, inner: MutexGuard<'_, Inner>) {
        let waits = inner.writer_waits;
        drop(inner);
        if waits {
            self.wake.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the writer changed what memory is taken, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) taken_off_queue: usize,
    pub(crate) sent: usize,
    pub(crate) arrived: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Kind;
    use dashstream_proto::telemetry::{Event, EventType, TokenChunk};
    use serde_json::Value;

    fn said(run: u64, signal: Signal) -> Said {
        Said {
            run,
            thread_id: "t".into(),
            at: Instant::now(),
            timestamp_us: 0,
            signal,
            trace: None,
            hole: Hole::default(),
            bytes: 0,
        }
    }

    fn token(bytes: usize) -> Signal {
        Signal::Token(TokenChunk { text: "x".repeat(bytes), ..Default::default() })
    }

    fn ended() -> Signal {
        Signal::Event(Event { event_type: EventType::GraphEnd.into(), ..Default::default() })
    }

    fn taken(queue: &Queue) -> Vec<Said> {
        let mut items = Vec::new();
        queue.take(usize::MAX, Duration::ZERO, &mut items);
        let said = items.into_iter().filter_map(|item| match item {
            Item::Said(said) => Some(*said),
            Item::Over { .. } => None,
        });
        said.collect()
    }

    #[test]
    fn what_is_refused_burns_numbers_of_its_own_run_and_forgets_its_state() {
        let queue = Queue::new(16_000);
        while queue.books().total().lost() == 0 {
            queue.push(said(1, token(500)));
        }
        queue.push(said(2, Signal::State(Ok(Value::from("x".repeat(20_000))))));
        queue.push(said(2, Signal::State(Ok(Value::from("y".repeat(20_000))))));
        queue.push(said(1, ended()));
        queue.push(said(2, ended()));
        queue.push(said(3, ended()));
        let holes: Vec<_> = taken(&queue).iter().rev().take(3).map(|said| (said.run, said.hole)).collect();
        let hole = |burned, state| Hole { burned, state };
        assert_eq!(holes, [(3, hole(0, false)), (2, hole(2, true)), (1, hole(1, false))]);
        assert!(queue.books().total().balances());
    }

    #[test]
    fn the_budget_bounds_memory_and_the_depth_says_so_before_anything_is_dropped() {
        let queue = Queue::new(160_000);
        let mut deepest = 0;
        while queue.books().row(Kind::TokenChunk).dropped == [0; 5] {
            let (_, depth) = queue.reading();
            deepest = depth.bytes;
            queue.push(said(1, token(500)));
        }
        assert!((118_000..=120_000).contains(&deepest), "three quarters of the budget, but {deepest}");
        assert_eq!(queue.reading().1.messages, taken(&queue).len());
    }

    #[test]
    fn nothing_is_taken_after_the_close() {
        let queue = Queue::new(160_000);
        queue.close(Instant::now());
        queue.push(said(1, ended()));
        assert_eq!(queue.books().row(Kind::Event).dropped[Dropped::ShutDown as usize], 1);
    }
}

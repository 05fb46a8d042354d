//! One ring for each partition, fed by the upstreams, read by the sessions.
use dashstream_core::{
    filter::graphs::{Graphs, Names},
    position::{Link, NextOffset, Partition},
    ring::{Passed, Read},
    session::{Found, From, Known, Want},
    slot::{Slot, Stamp},
    tail::{Input, Output, Tail},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::SystemTime,
};
use tokio::sync::watch;

/// No high watermark was heard yet.
const UNKNOWN: u64 = u64::MAX;
/// A partition that brought nothing for so many ticks gives its memory to the others.
const IDLE_TICKS: u32 = 60;
/// Threads whose graphs are remembered.
const GRAPHS_MAX: usize = 100_000;

/// How much memory rings may take, bytes of frames. What filters leave of them may take as much again.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Of one partition.
    pub ring: usize,
    /// Of all partitions together.
    pub rings: usize,
}

/// A cheap handle.
#[derive(Clone, Debug)]
pub struct Hub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    entries: RwLock<BTreeMap<Partition, Arc<Entry>>>,
    /// Counts every advance of any partition; sessions wait on it.
    version: watch::Sender<u64>,
    budget: Budget,
    graphs: Mutex<Graphs>,
    /// Some session filtered by graph, so that what is live is looked through for them.
    by_graph: AtomicBool,
}

#[derive(Debug)]
struct Entry {
    /// Held for moments, never over an await.
    tail: Mutex<Tail>,
    version: AtomicU64,
    high_watermark: AtomicU64,
    /// Ticks since it last advanced.
    idle: AtomicU32,
}

/// Where what a reader wants is.
#[derive(Debug)]
pub enum Place {
    Memory(Found),
    /// Replay has it, and memory had it before: so much has passed through that.
    Behind(Passed),
    /// Replay may have it.
    Replay,
}

impl Entry {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn high_watermark(&self) -> Option<u64> {
        Some(self.high_watermark.load(Ordering::Relaxed)).filter(|mark| *mark != UNKNOWN)
    }

    fn source_lag(&self, mark: Link) -> Option<u64> {
        self.high_watermark().map(|high| high.saturating_sub(NextOffset::after(mark).get()))
    }

    fn is_idle(&self) -> bool {
        self.idle.load(Ordering::Relaxed) >= IDLE_TICKS
    }
}

impl Hub {
    pub fn new(budget: Budget) -> Self {
        Self(Arc::new(Inner {
            entries: RwLock::default(),
            version: watch::Sender::new(0),
            budget,
            graphs: Mutex::new(Graphs::new(GRAPHS_MAX)),
            by_graph: AtomicBool::new(false),
        }))
    }

    fn entry(&self, partition: Partition) -> Option<Arc<Entry>> {
        self.0.entries.read().unwrap_or_else(PoisonError::into_inner).get(&partition).cloned()
    }

    fn entry_or_new(&self, partition: Partition) -> Arc<Entry> {
        if let Some(entry) = self.entry(partition) {
            return entry;
        }
        let new = || Entry {
            tail: Mutex::new(Tail::new(self.0.budget.ring)),
            version: AtomicU64::new(0),
            high_watermark: AtomicU64::new(UNKNOWN),
            idle: AtomicU32::new(0),
        };
        let entry = {
            let mut entries = self.0.entries.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(entries.entry(partition).or_insert_with(|| Arc::new(new())))
        };
        self.divide();
        entry
    }

    /// Gives each partition that is not idle an equal part of the budget.
    fn divide(&self) {
        let entries = self.0.entries.read().unwrap_or_else(PoisonError::into_inner);
        let active = entries.values().filter(|entry| !entry.is_idle()).count().max(1);
        let share = self.0.budget.ring.min(self.0.budget.rings / active);
        for entry in entries.values() {
            entry.tail().bound(if entry.is_idle() { 0 } else { share });
        }
    }

    /// Bytes of frames in all rings.
    pub fn ring_bytes(&self) -> usize {
        let entries = self.0.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.values().map(|entry| entry.tail().ring().bytes()).sum()
    }

    /// What a frame made now says of itself.
    pub fn stamp(&self, partition: Partition, from_replay: bool) -> Stamp {
        let high_watermark = self.entry(partition).and_then(|entry| entry.high_watermark());
        Stamp { high_watermark, made_ms: now_ms(), from_replay }
    }

    /// Takes what an upstream brought. A fetch is for the caller to do.
    pub fn on(&self, partition: Partition, input: Input) -> Option<Output> {
        self.note_graphs(&input);
        let entry = self.entry_or_new(partition);
        let stamp = Stamp { high_watermark: entry.high_watermark(), made_ms: now_ms(), from_replay: false };
        if matches!(input, Input::Live(_)) && entry.idle.swap(0, Ordering::Relaxed) >= IDLE_TICKS {
            self.divide();
        }
        let (before, output, after) = {
            let mut tail = entry.tail();
            let before = (tail.epoch(), tail.ring().end(), tail.durable());
            let output = tail.on(input, stamp);
            (before, output, (tail.epoch(), tail.ring().end(), tail.durable()))
        };
        if before != after {
            entry.version.fetch_add(1, Ordering::Release);
            self.0.version.send_modify(|version| *version += 1);
        }
        matches!(output, Output::Fetch { .. }).then_some(output)
    }

    /// What an owner says of Kafka's end.
    pub fn high_watermark(&self, partition: Partition, mark: u64) {
        self.entry_or_new(partition).high_watermark.store(mark, Ordering::Relaxed);
    }

    /// Time passes, a tick a second: memory is divided anew. Says which fetches are due.
    pub fn on_tick(&self) -> Vec<(Partition, Output)> {
        self.graphs().on_tick();
        let due = {
            let entries = self.0.entries.read().unwrap_or_else(PoisonError::into_inner);
            for entry in entries.values().filter(|entry| !entry.is_idle()) {
                entry.idle.fetch_add(1, Ordering::Relaxed);
            }
            let due = entries.iter().map(|(partition, entry)| (*partition, entry.tail().on_tick()));
            due.filter(|(_, output)| matches!(output, Output::Fetch { .. })).collect()
        };
        self.divide();
        due
    }

    fn graphs(&self) -> MutexGuard<'_, Graphs> {
        self.0.graphs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_graphs(&self, input: &Input) {
        if !self.0.by_graph.load(Ordering::Acquire) {
            return;
        }
        match input {
            Input::Live(batch) => self.graphs().note(batch),
            Input::Page { batches, .. } => batches.iter().for_each(|batch| self.graphs().note(batch)),
            Input::Heartbeat { .. } | Input::Gap { .. } | Input::Stale { .. } | Input::FetchFailed => {}
        }
    }

    /// The graphs of all threads of these batches.
    ///
    /// # Errors
    /// The threads of which nothing is known: ask replay, and say it by [`Self::learn_graph`].
    pub fn names(&self, slots: &[Slot]) -> Result<Names, Vec<String>> {
        // From here on what is live is noted. What was stored before is in the directory, which is asked after this.
        self.0.by_graph.store(true, Ordering::Release);
        self.graphs().names(slots.iter().map(Slot::batch))
    }

    /// What replay's directory says of a thread's graph.
    pub fn learn_graph(&self, thread: &str, graph: Option<&str>) {
        self.graphs().learn(thread, graph);
    }

    /// Wakes whoever waits for more of any partition.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// How often each partition advanced.
    pub fn versions(&self) -> Vec<(Partition, u64)> {
        let entries = self.0.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.iter().map(|(partition, entry)| (*partition, entry.version.load(Ordering::Acquire))).collect()
    }

    /// What is known of each partition.
    pub fn known(&self) -> Vec<Known> {
        let entries = self.0.entries.read().unwrap_or_else(PoisonError::into_inner);
        let known = |(partition, entry): (&Partition, &Arc<Entry>)| {
            let (epoch, durable) = {
                let tail = entry.tail();
                (tail.epoch(), tail.durable())
            };
            Known { partition: *partition, epoch, durable, source_lag: entry.source_lag(durable) }
        };
        entries.iter().map(known).collect()
    }

    /// Where a reader finds what it wants.
    pub fn find(&self, want: Want, bytes_max: usize) -> Place {
        let Some(entry) = self.entry(want.partition) else { return Place::Replay };
        let tail = entry.tail();
        let Some(epoch) = tail.epoch() else { return Place::Replay };
        let end = tail.ring().end();
        let at = match want.from {
            From::Earliest | From::Time(_) | From::Active => return Place::Replay,
            From::Latest => end,
            From::After { epoch: asked, .. } if asked != epoch => return Place::Replay,
            From::After { at, .. } => at,
        };
        let passed = tail.ring().passed();
        match tail.ring().read(at, bytes_max) {
            Read::Slots(slots, passed) => Place::Memory(Found::Slots { slots, passed }),
            // What is durable but not here yet is on its way.
            Read::AtEnd if tail.durable() > end => Place::Memory(Found::NotNow),
            Read::AtEnd => {
                let source_lag = entry.source_lag(end);
                Place::Memory(Found::AtEnd { epoch, mark: end, source_lag, passed })
            }
            Read::Behind => Place::Behind(passed),
            Read::Ahead => Place::Memory(Found::NotNow),
        }
    }
}

/// Milliseconds since 1970.
fn now_ms() -> Option<i64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dashstream_core::{
        batch::Packer,
        position::{Epoch, Offset},
    };
    use dashstream_proto::log::v1::GapReason;

    fn at(value: u64) -> Link {
        Offset::new(value).ok()
    }

    #[test]
    fn a_reader_that_memory_can_not_serve_is_sent_to_replay() {
        let hub = Hub::new(Budget { ring: 1 << 20, rings: 1 << 20 });
        let partition = Partition::new(1).unwrap();
        let want = |from| Want { partition, from };
        let after = |epoch, value| From::After { epoch: Epoch::new(epoch), at: at(value) };
        assert!(matches!(hub.find(want(From::Latest), 1), Place::Replay), "an unknown partition");

        let mut woken = hub.changed();
        hub.on(partition, Input::Heartbeat { epoch: Epoch::new(5), durable: at(9) });
        hub.high_watermark(partition, 14);
        assert!(woken.has_changed().unwrap());
        woken.mark_unchanged();
        let Place::Memory(Found::AtEnd { mark, source_lag, .. }) = hub.find(want(From::Latest), 1) else {
            panic!()
        };
        assert_eq!((mark, source_lag), (at(9), Some(4)));
        assert!(matches!(hub.find(want(after(5, 8)), 1), Place::Behind(_)), "behind");
        assert!(
            matches!(hub.find(want(after(4, 9)), 1), Place::Replay),
            "another epoch is replay's to judge"
        );
        assert!(matches!(hub.find(want(From::Earliest), 1), Place::Replay));
        assert!(matches!(hub.find(want(after(5, 10)), 1), Place::Memory(Found::NotNow)), "ahead");

        hub.on(partition, Input::Heartbeat { epoch: Epoch::new(5), durable: at(9) });
        assert!(!woken.has_changed().unwrap(), "nobody is woken for nothing");
        let fetch = hub.on(partition, Input::Heartbeat { epoch: Epoch::new(5), durable: at(12) });
        assert!(matches!(fetch, Some(Output::Fetch { .. })));
        assert!(
            matches!(hub.find(want(after(5, 9)), 1), Place::Memory(Found::NotNow)),
            "not caught up while more is durable"
        );
    }

    #[test]
    fn all_rings_share_one_budget_and_idle_ones_give_theirs_back() {
        let (budget, sizes) = (Budget { ring: 4_000, rings: 8_000 }, 4);
        let hub = Hub::new(budget);
        let mut next = [0_u64; 4];
        let mut feed = |partition: usize| {
            let mut packer =
                Packer::new(Epoch::new(1), Partition::new(partition as i32).unwrap(), at(next[partition]));
            next[partition] += 1;
            assert!(packer.push_gap(
                at(next[partition]).unwrap(),
                at(next[partition]).unwrap(),
                GapReason::Skipped
            ));
            hub.on(Partition::new(partition as i32).unwrap(), Input::Live(packer.finish().unwrap()));
        };
        let entries = [0, 1, 2, 3].map(|partition| hub.entry_or_new(Partition::new(partition).unwrap()));
        let held = |partition: usize| entries[partition].tail().ring().bytes();
        for _ in 0..1_000 {
            (0..sizes).for_each(&mut feed);
            assert!(hub.ring_bytes() <= budget.rings);
        }
        assert!(held(0) > 1_900 && held(3) > 1_900, "equal parts");
        for _ in 0..IDLE_TICKS {
            hub.on_tick();
            feed(0);
        }
        assert_eq!([held(1), held(2), held(3)], [0; 3], "idle");
        (0..1_000).for_each(|_| feed(0));
        assert!(held(0) > 3_900 && held(0) <= budget.ring, "what they gave back");
    }
}

//! One ring for each partition, fed by the upstreams, read by the sessions.
use dashstream_core::{
    position::{Link, NextOffset, Partition},
    ring::Read,
    session::{Found, From, Known, Want},
    tail::{Input, Output, Tail},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::watch;

/// No high watermark was heard yet.
const UNKNOWN: u64 = u64::MAX;

/// A cheap handle.
#[derive(Clone, Debug)]
pub struct Hub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    entries: RwLock<BTreeMap<Partition, Arc<Entry>>>,
    /// Counts every advance of any partition; sessions wait on it.
    version: watch::Sender<u64>,
    ring_bytes: usize,
}

#[derive(Debug)]
struct Entry {
    /// Held for moments, never over an await.
    tail: Mutex<Tail>,
    version: AtomicU64,
    high_watermark: AtomicU64,
}

impl Entry {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn source_lag(&self, mark: Link) -> Option<u64> {
        match self.high_watermark.load(Ordering::Relaxed) {
            UNKNOWN => None,
            high => Some(high.saturating_sub(NextOffset::after(mark).get())),
        }
    }
}

impl Hub {
    pub fn new(ring_bytes: usize) -> Self {
        Self(Arc::new(Inner { entries: RwLock::default(), version: watch::Sender::new(0), ring_bytes }))
    }

    fn entry(&self, partition: Partition) -> Option<Arc<Entry>> {
        self.0.entries.read().unwrap_or_else(PoisonError::into_inner).get(&partition).cloned()
    }

    fn entry_or_new(&self, partition: Partition) -> Arc<Entry> {
        if let Some(entry) = self.entry(partition) {
            return entry;
        }
        let mut entries = self.0.entries.write().unwrap_or_else(PoisonError::into_inner);
        let new = || Entry {
            tail: Mutex::new(Tail::new(self.0.ring_bytes)),
            version: AtomicU64::new(0),
            high_watermark: AtomicU64::new(UNKNOWN),
        };
        Arc::clone(entries.entry(partition).or_insert_with(|| Arc::new(new())))
    }

    /// Takes what an upstream brought. A fetch is for the caller to do.
    pub fn on(&self, partition: Partition, input: Input) -> Option<Output> {
        let entry = self.entry_or_new(partition);
        let (before, output, after) = {
            let mut tail = entry.tail();
            let before = (tail.epoch(), tail.ring().end(), tail.durable());
            let output = tail.on(input);
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

    /// Fetches that are due.
    pub fn on_tick(&self) -> Vec<(Partition, Output)> {
        let entries = self.0.entries.read().unwrap_or_else(PoisonError::into_inner);
        let due = entries.iter().map(|(partition, entry)| (*partition, entry.tail().on_tick()));
        due.filter(|(_, output)| matches!(output, Output::Fetch { .. })).collect()
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

    /// What memory has for a reader; `None` when it must ask replay.
    pub fn find(&self, want: Want, bytes_max: usize) -> Option<Found> {
        let entry = self.entry(want.partition)?;
        let tail = entry.tail();
        let epoch = tail.epoch()?;
        let end = tail.ring().end();
        let at = match want.from {
            From::Earliest => return None,
            From::Latest => end,
            From::After { epoch: asked, .. } if asked != epoch => return None,
            From::After { at, .. } => at,
        };
        match tail.ring().read(at, bytes_max) {
            Read::Slots(slots) => Some(Found::Slots(slots)),
            // What is durable but not here yet is on its way.
            Read::AtEnd if tail.durable() > end => Some(Found::NotNow),
            Read::AtEnd => Some(Found::AtEnd { epoch, mark: end, source_lag: entry.source_lag(end) }),
            Read::Behind => None,
            Read::Ahead => Some(Found::NotNow),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dashstream_core::position::{Epoch, Offset};

    #[test]
    fn a_reader_that_memory_can_not_serve_is_sent_to_replay() {
        let hub = Hub::new(1 << 20);
        let partition = Partition::new(1).unwrap();
        let at = |value| Offset::new(value).ok();
        let want = |from| Want { partition, from };
        let after = |epoch, value| From::After { epoch: Epoch::new(epoch), at: at(value) };
        assert!(hub.find(want(From::Latest), 1).is_none(), "an unknown partition");

        let mut woken = hub.changed();
        hub.on(partition, Input::Heartbeat { epoch: Epoch::new(5), durable: at(9) });
        hub.high_watermark(partition, 14);
        assert!(woken.has_changed().unwrap());
        woken.mark_unchanged();
        let Some(Found::AtEnd { mark, source_lag, .. }) = hub.find(want(From::Latest), 1) else { panic!() };
        assert_eq!((mark, source_lag), (at(9), Some(4)));
        assert!(hub.find(want(after(5, 8)), 1).is_none(), "behind");
        assert!(hub.find(want(after(4, 9)), 1).is_none(), "another epoch is replay's to judge");
        assert!(hub.find(want(From::Earliest), 1).is_none());
        assert!(matches!(hub.find(want(after(5, 10)), 1), Some(Found::NotNow)), "ahead");

        hub.on(partition, Input::Heartbeat { epoch: Epoch::new(5), durable: at(9) });
        assert!(!woken.has_changed().unwrap(), "nobody is woken for nothing");
        let fetch = hub.on(partition, Input::Heartbeat { epoch: Epoch::new(5), durable: at(12) });
        assert!(matches!(fetch, Some(Output::Fetch { .. })));
        assert!(
            matches!(hub.find(want(after(5, 9)), 1), Some(Found::NotNow)),
            "not caught up while more is durable"
        );
    }
}

//! Where a session stands in one partition, and when it looks on.
use super::{ActiveStart, From, Want};
use crate::{
    filter::Since,
    position::{Epoch, Link, Offset, Partition},
    ring::Passed,
};
use dashstream_proto::log::v1::Cursor;
use std::{collections::BTreeSet, sync::Arc};

/// Longest pause of a reader that nobody could answer, ticks.
const NOT_NOW_TICKS_MAX: u32 = 4;
/// Longest pause of a reader whose partition the store does not know, ticks.
const SEEDING_TICKS_MAX: u32 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appetite {
    /// There may be more behind the position.
    Hungry,
    /// There was nothing; woken when the gateway hears of more.
    AtEnd,
    /// Nobody could tell; tried again after so many ticks.
    Parked { ticks: u32 },
    /// Its cursor is stale; nothing until it is subscribed anew.
    Stale,
}

/// Whether a reader that is sent to replay fell behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// It is on its way to the log's end.
    Replay,
    /// It was served from memory, up to what had passed.
    Memory(Passed),
}

/// Invariant: `told` is the cursor that the client has after the frames put out so far; what lies between it and
/// the place in `from` is nothing for it.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) partition: Partition,
    /// Where it reads on.
    pub(crate) from: From,
    /// `None` until the client knows where it begins.
    pub(crate) told: Option<Link>,
    pub(crate) since: Option<Arc<Since>>,
    /// A start at the running threads that waits for credit, and the state that is next.
    pub(crate) starting: Option<(Arc<ActiveStart>, usize)>,
    pub(crate) appetite: Appetite,
    pub(crate) told_caught_up: bool,
    pub(crate) told_seeding: bool,
    source: Source,
    /// How long it pauses next, ticks.
    patience: u32,
}

impl Reader {
    pub(crate) fn new(partition: Partition, from: From) -> Self {
        let told = match from {
            From::After { at, .. } => Some(at),
            From::Earliest | From::Latest | From::Time(_) | From::Active => None,
        };
        Self {
            partition,
            from,
            told,
            since: None,
            starting: None,
            appetite: Appetite::Hungry,
            told_caught_up: false,
            told_seeding: false,
            source: Source::Replay,
            patience: 1,
        }
    }

    /// All up to `at` was put out.
    pub(crate) fn put_out(&mut self, epoch: Epoch, at: Offset) {
        self.read_to(epoch, at);
        self.told = Some(Some(at));
    }

    /// What lies up to `at` was nothing for the client.
    pub(crate) fn read_to(&mut self, epoch: Epoch, at: Offset) {
        self.from = From::After { epoch, at: Some(at) };
        self.patience = 1;
        if self.since.as_ref().is_some_and(|since| since.mark <= Some(at)) {
            self.since = None;
        }
    }

    /// The cursor that the client has, or will have with the next word.
    pub(crate) fn cursor(&self) -> Option<Cursor> {
        let From::After { epoch, at } = self.from else { return None };
        let offset = self.told.unwrap_or(at).map(Offset::get);
        Some(Cursor { epoch: epoch.get(), partition: self.partition.get(), offset })
    }

    /// It stands in memory, up to where `passed` counts.
    pub(crate) fn in_memory(&mut self, passed: Passed) {
        self.source = Source::Memory(passed);
    }

    /// It is on its way to the log's end, and not in memory.
    pub(crate) fn reads_back(&self) -> bool {
        self.source == Source::Replay && self.appetite == Appetite::Hungry
    }

    /// It is sent to replay. How far it fell, where memory served it before.
    pub(crate) fn fell(&mut self, now: Passed) -> Option<Passed> {
        let Source::Memory(then) = std::mem::replace(&mut self.source, Source::Replay) else { return None };
        self.told_caught_up = false;
        Some(Passed {
            records: now.records.saturating_sub(then.records),
            bytes: now.bytes.saturating_sub(then.bytes),
        })
    }

    /// Nobody can tell it more now.
    pub(crate) fn park(&mut self) {
        self.pause(NOT_NOW_TICKS_MAX);
    }

    /// The store knows nothing of its partition, which may not even exist.
    pub(crate) fn park_seeding(&mut self) {
        self.pause(SEEDING_TICKS_MAX);
    }

    /// It has all that the store has, and nobody says when there will be more.
    pub(crate) fn park_at_end(&mut self) {
        self.appetite = Appetite::Parked { ticks: 1 };
    }

    fn pause(&mut self, ticks_max: u32) {
        self.appetite = Appetite::Parked { ticks: self.patience.min(ticks_max) };
        self.patience = (self.patience * 2).min(SEEDING_TICKS_MAX);
    }

    pub(crate) fn on_tick(&mut self) {
        self.appetite = match self.appetite {
            Appetite::Parked { ticks: 0 | 1 } => Appetite::Hungry,
            Appetite::Parked { ticks } => Appetite::Parked { ticks: ticks - 1 },
            appetite @ (Appetite::Hungry | Appetite::AtEnd | Appetite::Stale) => appetite,
        };
    }

    /// There is more than it was told.
    pub(crate) fn on_advanced(&mut self) {
        if matches!(self.appetite, Appetite::AtEnd | Appetite::Parked { .. }) {
            self.appetite = Appetite::Hungry;
        }
    }
}

/// What to look up next of readers in the order of their partitions: the first behind `turn` that may be looked up,
/// else the first of all.
pub(crate) fn next_turn<'a>(
    readers: impl Iterator<Item = &'a Reader>,
    turn: Option<Partition>,
    busy: &BTreeSet<Partition>,
) -> Option<Want> {
    let mut hungry = readers
        .filter(|reader| reader.appetite == Appetite::Hungry && !busy.contains(&reader.partition))
        .peekable();
    let first = *hungry.peek()?;
    let reader = hungry.find(|reader| Some(reader.partition) > turn).unwrap_or(first);
    Some(Want { partition: reader.partition, from: reader.from })
}

//! Resuming by threads: what replay keeps of each behind a sequence, up to where what is live begins.
use super::{
    place::{Place, Plan},
    say,
};
use crate::{
    filter::{Tenants, threads_of},
    position::{Epoch, Offset, Partition},
    session::Output,
};
use dashstream_proto::log::v1::{Cursor, Gap, Record};
use std::collections::BTreeMap;

/// The predecessor's records have this epoch, and places of their own.
const LEGACY: u64 = 0;

/// Which part of a thread is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct ThreadWant {
    pub thread_id: String,
    pub from: ThreadFrom,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ThreadFrom {
    AfterSequence(u64),
    After(Cursor),
}

/// What there is of it.
#[derive(Clone, Debug)]
pub enum ThreadFound {
    /// In the order of the log, behind what a predecessor left.
    Records {
        parts: Vec<ThreadPart>,
        at_end: bool,
    },
    Unknown,
    /// Nobody can tell now.
    NotNow,
}

/// Some records of a thread, of one life of its partition.
#[derive(Clone, Debug)]
pub struct ThreadPart {
    pub partition: i32,
    pub epoch: u64,
    pub records: Vec<Record>,
    /// What may be lost before the first of them, at most.
    pub gap: Option<Gap>,
}

/// Threads in the order of their ids, one at a time.
#[derive(Debug)]
pub(super) struct Threads {
    asked: BTreeMap<String, u64>,
    /// The first that is not done, and where it is read on; none when all are.
    current: Option<(String, ThreadFrom)>,
    /// The sequence before the next one.
    before: u64,
    /// It is being read, or waits for a tick.
    waits: Option<Wait>,
    total: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Answer,
    Tick,
}

impl Threads {
    pub(super) fn new(asked: BTreeMap<String, u64>) -> Self {
        let mut threads = Self { asked, current: None, before: 0, waits: None, total: 0 };
        threads.turn_to(|threads| threads.asked.iter().next());
        threads
    }

    fn turn_to(&mut self, next: impl FnOnce(&Self) -> Option<(&String, &u64)>) {
        let next = next(self).map(|(thread, above)| (thread.clone(), *above));
        self.before = next.as_ref().map_or(0, |(_, above)| *above);
        self.current = next.map(|(thread, above)| (thread, ThreadFrom::AfterSequence(above)));
    }

    fn end_thread(&mut self) {
        let Some((thread, _)) = self.current.take() else { return };
        let behind = (std::ops::Bound::Excluded(thread), std::ops::Bound::Unbounded);
        self.turn_to(|threads| threads.asked.range(behind).next());
    }

    pub(super) fn is_done(&self) -> bool {
        self.current.is_none()
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// What to read; not before the answer to the last one came.
    pub(super) fn next_want(&mut self) -> Option<ThreadWant> {
        if self.waits.is_some() {
            return None;
        }
        let (thread_id, from) = self.current.clone()?;
        self.waits = Some(Wait::Answer);
        Some(ThreadWant { thread_id, from })
    }

    pub(super) fn on_tick(&mut self) {
        if self.waits == Some(Wait::Tick) {
            self.waits = None;
        }
    }

    /// Puts out what was found. True when that was of use.
    pub(super) fn on_found(
        &mut self,
        want: &ThreadWant,
        found: ThreadFound,
        places: &mut BTreeMap<Partition, Place>,
        tenants: &Tenants,
        out: &mut Vec<Output>,
    ) -> bool {
        let is_current =
            |(thread, from): &(String, ThreadFrom)| (thread, from) == (&want.thread_id, &want.from);
        if !self.current.as_ref().is_some_and(is_current) {
            return false; // of a resume before this one
        }
        self.waits = None;
        match found {
            ThreadFound::NotNow => {
                self.waits = Some(Wait::Tick);
                return false;
            }
            ThreadFound::Unknown => self.end_thread(),
            ThreadFound::Records { parts, at_end } => {
                let ends = parts.iter().map(|part| end_of(part, places)).collect::<Vec<_>>();
                if ends.contains(&None) {
                    self.waits = Some(Wait::Tick);
                    return false;
                }
                self.take(
                    &want.thread_id,
                    parts.into_iter().zip(ends.into_iter().flatten()),
                    at_end,
                    tenants,
                    out,
                );
            }
        }
        true
    }

    fn take(
        &mut self,
        thread: &str,
        parts: impl Iterator<Item = (ThreadPart, u64)>,
        at_end: bool,
        tenants: &Tenants,
        out: &mut Vec<Output>,
    ) {
        let mut next = None;
        for (part, end) in parts {
            let ThreadPart { partition, epoch, records, mut gap } = part;
            for record in records {
                if record.offset >= end {
                    return self.end_thread(); // the rest of it is live
                }
                next = Some(match epoch {
                    LEGACY => ThreadFrom::AfterSequence(record.sequence.unwrap_or(self.before)),
                    _ => ThreadFrom::After(Cursor { epoch, partition, offset: Some(record.offset) }),
                });
                self.put_out(thread, partition, record, &mut gap, tenants, out);
            }
        }
        match next {
            Some(from) if !at_end => self.current = Some((thread.to_owned(), from)),
            Some(_) | None => self.end_thread(),
        }
    }

    fn put_out(
        &mut self,
        thread: &str,
        partition: i32,
        record: Record,
        gap: &mut Option<Gap>,
        tenants: &Tenants,
        out: &mut Vec<Output>,
    ) {
        let sequence = sequence_in(&record, thread);
        let is_old = sequence.is_some_and(|sequence| sequence <= self.asked[thread]);
        if is_old || !tenants.allow(&record.tenant_id) {
            return;
        }
        if let Some(count) = gap.take().and_then(|gap| self.lost(&gap, sequence)) {
            out.push(say::gap(count, say::Place::Thread(thread)));
        }
        self.before = sequence.unwrap_or(self.before);
        if !self.was_put_out(thread, &record) {
            out.push(say::cursor(partition, record.offset));
            out.push(Output::Send(record.payload));
            self.total += 1;
        }
    }

    /// How much the thread lost where some of its records may be gone. Its sequences say whether any are.
    fn lost(&self, gap: &Gap, sequence: Option<u64>) -> Option<u64> {
        let count = match sequence {
            Some(sequence) => sequence.saturating_sub(self.before).saturating_sub(1),
            None => gap.last_offset.saturating_sub(gap.first_offset).saturating_add(1),
        };
        (count > 0).then_some(count)
    }

    /// A record of several threads comes with the first of them that wants it.
    fn was_put_out(&self, thread: &str, record: &Record) -> bool {
        threads_of(record).any(|other| {
            let wanted = |above: &u64| sequence_in(record, other).is_some_and(|sequence| sequence > *above);
            other < thread && self.asked.get(other).is_some_and(wanted)
        })
    }
}

fn sequence_in(record: &Record, thread: &str) -> Option<u64> {
    if record.thread_id == thread && record.sequence.is_some() {
        return record.sequence;
    }
    record.more_threads.iter().find(|more| more.thread_id == thread).and_then(|more| more.sequence)
}

/// One past the last offset that is not live in this session. `None` until its reader stands in that log.
fn end_of(part: &ThreadPart, places: &mut BTreeMap<Partition, Place>) -> Option<u64> {
    if part.epoch == LEGACY {
        return Some(u64::MAX);
    }
    let (partition, epoch) = (Partition::new(part.partition).ok()?, Epoch::new(part.epoch));
    let place = places.entry(partition).or_insert_with(|| Place::new(partition, Plan::Latest));
    if place.is_placed() && place.epoch() != Some(epoch) {
        *place = Place::new(partition, Plan::Latest);
    }
    place.epoch().map(|_| place.at().map_or(0, |at: Offset| at.get() + 1))
}

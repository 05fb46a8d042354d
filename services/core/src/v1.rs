//! One client's session in the predecessor's protocol.
//!
//! It reads the same log in the same way as [`crate::session`]: each partition has a reader, and live, replay and
//! resume are one path. What differs is what is said. Its cursors name no epoch, so a reader is placed first: it asks
//! replay for a place in no epoch at all, and the refusal tells what the log is. From then on it is a reader like any.
use crate::{
    filter::{Filter, Tenants},
    position::{Epoch, Link, NextOffset, Offset, Partition},
    ring::Passed,
    session::{CloseReason, Delivery, Found, From, Known, Output, Want, reader::next_turn},
};
use dashstream_proto::log::v1::Cursor;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

mod asked;
mod place;
mod say;
mod threads;

pub use asked::{PARTITIONS_MAX, TEXT_BYTES_MAX, THREADS_MAX};
pub use threads::{ThreadFound, ThreadFrom, ThreadPart, ThreadWant};

use asked::{Asked, Refused, Resume};
use place::{Place, Plan};
use threads::Threads;

/// How long a client has to resume before it is sent what is live.
const GRACE: Duration = Duration::from_secs(1);
/// A resume that does not get on for so many ticks has failed.
const REPLAY_TICKS_MAX: u32 = 30;

/// What the client waits for an answer to.
#[derive(Debug)]
enum Task {
    Replay { mode: &'static str },
    Threads(Threads),
    Reset,
}

/// Invariant: what was put out of a partition is everything from where its reader began, in order, each once.
#[derive(Debug)]
pub struct Session {
    filter: Arc<Filter>,
    places: BTreeMap<Partition, Place>,
    /// Partitions of the stream, and one past what Kafka is known to hold of each.
    known: BTreeMap<Partition, Option<u64>>,
    /// Where partitions are read from that appear later.
    fresh: Plan,
    /// Records are looked for: the client resumed, or had its time to.
    begun: bool,
    task: Option<Task>,
    turn: Option<Partition>,
    /// Ticks since the task got on.
    idle_ticks: u32,
}

impl Session {
    /// A session that may read records of `access`. It is live from what is known now, unless it resumes.
    pub fn new(access: Tenants, known: &[Known]) -> Self {
        let mut session = Self {
            filter: Arc::new(Filter::all(access)),
            places: BTreeMap::new(),
            known: BTreeMap::new(),
            fresh: Plan::Latest,
            begun: false,
            task: None,
            turn: None,
            idle_ticks: 0,
        };
        session.note(known);
        for known in known {
            let place = match known.epoch {
                Some(epoch) => Place::live(known.partition, epoch, known.durable),
                None => Place::new(known.partition, Plan::Latest),
            };
            session.places.insert(known.partition, place);
        }
        session
    }

    /// Which records it is sent.
    pub fn filter(&self) -> &Arc<Filter> {
        &self.filter
    }

    /// Where it is served from; `None` before it began.
    pub fn delivery(&self) -> Option<Delivery> {
        let reads_back = |place: &Place| place.reader.reads_back() || !place.is_live();
        match self.begun {
            false => None,
            true if self.places.values().any(reads_back) => Some(Delivery::Replay),
            true => Some(Delivery::Memory),
        }
    }

    /// How far each partition was delivered, where it is known.
    pub fn cursors(&self) -> Vec<Cursor> {
        self.places.values().filter(|place| place.is_placed()).filter_map(Place::cursor).collect()
    }

    fn note(&mut self, known: &[Known]) {
        let end =
            |known: &Known| Some(NextOffset::after(known.durable).get().saturating_add(known.source_lag?));
        self.known = known.iter().map(|known| (known.partition, end(known))).collect();
    }

    /// A text message of the client. What is refused ends the session.
    pub fn on_text(&mut self, text: &str, known: &[Known]) -> Vec<Output> {
        self.note(known);
        match asked::read(text) {
            Ok(Asked::Nothing | Asked::Unreadable) => Vec::new(),
            Ok(Asked::Ping) => vec![say::pong()],
            Ok(Asked::CursorReset) => {
                self.begin(Task::Reset, Plan::Latest, BTreeMap::new());
                self.conclude()
            }
            Ok(Asked::Resume(resume)) => {
                self.resume(resume);
                self.conclude()
            }
            Err(refused) => refuse(&refused),
        }
    }

    fn resume(&mut self, resume: Resume) {
        match resume {
            Resume::Cursors(cursors) => self.begin(Task::Replay { mode: "cursor" }, Plan::Earliest, cursors),
            Resume::Earliest => {
                self.begin(Task::Replay { mode: "earliest" }, Plan::Earliest, BTreeMap::new())
            }
            Resume::Latest => self.begin(Task::Replay { mode: "latest" }, Plan::Latest, BTreeMap::new()),
            Resume::Threads(threads) if threads.is_empty() => {}
            Resume::Threads(threads) => {
                (self.begun, self.idle_ticks) = (true, 0);
                self.task = Some(Task::Threads(Threads::new(threads)));
            }
        }
    }

    /// Reads every partition anew: from where the client named one, else as planned.
    fn begin(&mut self, task: Task, plan: Plan, cursors: BTreeMap<Partition, Offset>) {
        (self.begun, self.idle_ticks, self.fresh, self.task) = (true, 0, plan, Some(task));
        let planned = self.known.keys().map(|partition| (*partition, plan));
        let mut plans: BTreeMap<_, _> = planned.collect();
        plans.extend(cursors.into_iter().map(|(partition, at)| (partition, Plan::Behind(at))));
        self.places =
            plans.into_iter().map(|(partition, plan)| (partition, Place::new(partition, plan))).collect();
    }

    /// A text too long to be read to its end.
    pub fn on_text_too_large(&self) -> Vec<Output> {
        refuse(&Refused::TooLarge(TEXT_BYTES_MAX + 1))
    }

    /// What the gateway knows of partitions: new ones are read too.
    pub fn on_partitions(&mut self, known: &[Known]) -> Vec<Output> {
        self.note(known);
        for partition in self.known.keys() {
            self.places.entry(*partition).or_insert_with(|| Place::new(*partition, self.fresh));
        }
        self.conclude()
    }

    /// What to look up next, taking turns between partitions; `None` when all are at their end or in `busy`, which are
    /// being looked up.
    pub fn next_want(&mut self, busy: &BTreeSet<Partition>) -> Option<Want> {
        if !self.begun {
            return None;
        }
        // What is live waits until the threads are read, so that each record of theirs has one place.
        let holds = matches!(self.task, Some(Task::Threads(_)));
        let wanted = self.places.values().filter(|place| !holds || !place.is_placed());
        let want = next_turn(wanted.map(|place| &place.reader), self.turn, busy)?;
        self.turn = Some(want.partition);
        Some(want)
    }

    /// The thread to read next, once it is known up to where what is live begins.
    pub fn next_thread(&mut self) -> Option<ThreadWant> {
        let placed = self.places.values().all(|place| place.is_placed() || place.is_vacant(&self.known));
        match &mut self.task {
            Some(Task::Threads(threads)) if placed && !self.known.is_empty() => threads.next_want(),
            Some(Task::Threads(_) | Task::Replay { .. } | Task::Reset) | None => None,
        }
    }

    /// The gateway heard of more in a partition.
    pub fn on_advanced(&mut self, partition: Partition) {
        if let Some(place) = self.places.get_mut(&partition) {
            place.reader.on_advanced();
        }
    }

    /// A reader is behind what memory holds. The predecessor's clients are not told.
    pub fn on_behind(&mut self, partition: Partition, now: Passed) {
        if let Some(place) = self.places.get_mut(&partition) {
            place.reader.fell(now);
        }
    }

    /// Time passes, a tick a second: `age` since the session began.
    pub fn on_tick(&mut self, age: Duration) -> Vec<Output> {
        self.begun |= age >= GRACE;
        self.places.values_mut().for_each(|place| place.reader.on_tick());
        match &mut self.task {
            None => {
                self.idle_ticks = 0;
                return Vec::new();
            }
            Some(Task::Threads(threads)) => threads.on_tick(),
            Some(Task::Replay { .. } | Task::Reset) => {}
        }
        self.idle_ticks += 1;
        if self.idle_ticks < REPLAY_TICKS_MAX {
            return Vec::new();
        }
        let text = format!("the replay did not get on for {REPLAY_TICKS_MAX} s: resume again");
        vec![say::error("REPLAY_TIMEOUT", &text), Output::Close(CloseReason::Error)]
    }

    /// What was found where [`Self::next_want`] pointed.
    pub fn on_found(&mut self, want: Want, found: Found) -> Vec<Output> {
        let Some(place) = self.places.get_mut(&want.partition) else { return Vec::new() };
        // What was asked before the client resumed anew is of no use.
        if place.reader.from != want.from {
            return Vec::new();
        }
        let source_end = self.known.get(&want.partition).copied().flatten();
        let (was_live, was_unknown) = (place.is_live(), place.unknown);
        let mut outputs = place.on_found(want, found, self.filter.tenants(), source_end);
        let moved = place.reader.from != want.from || place.is_live() || place.unknown && !was_unknown;
        if moved && !was_live {
            self.idle_ticks = 0;
        }
        outputs.extend(self.conclude());
        outputs
    }

    /// What replay has of the thread that [`Self::next_thread`] named.
    pub fn on_thread(&mut self, want: &ThreadWant, found: ThreadFound) -> Vec<Output> {
        let Some(Task::Threads(threads)) = &mut self.task else { return Vec::new() };
        let mut outputs = Vec::new();
        if threads.on_found(want, found, &mut self.places, self.filter.tenants(), &mut outputs) {
            self.idle_ticks = 0;
        }
        outputs.extend(self.conclude());
        outputs
    }

    /// Answers the task that is done.
    fn conclude(&mut self) -> Vec<Output> {
        let arrived = |place: &Place| place.is_live() || place.is_vacant(&self.known);
        let all_arrived = !self.known.is_empty() && self.places.values().all(arrived);
        let answer = match &self.task {
            Some(Task::Replay { mode }) if all_arrived => self.replayed(mode),
            Some(Task::Reset) if all_arrived => say::cursor_reset_complete(&self.ends(), self.known.len()),
            Some(Task::Threads(threads)) if threads.is_done() => say::threads_complete(threads.total()),
            Some(Task::Replay { .. } | Task::Reset | Task::Threads(_)) | None => return Vec::new(),
        };
        self.task = None;
        vec![answer]
    }

    fn replayed(&self, mode: &str) -> Output {
        if mode == "latest" {
            return say::replay_complete(mode, 0, self.ends().into_iter());
        }
        let total = self.places.values().map(|place| place.replayed).sum();
        let sent =
            self.places.values().filter_map(|place| Some((place.reader.partition, place.replayed_to?)));
        say::replay_complete(mode, total, sent)
    }

    fn ends(&self) -> Vec<(Partition, Offset)> {
        let end = |place: &Place| Some((place.reader.partition, place.at()?));
        self.places.values().filter(|place| place.is_placed()).filter_map(end).collect()
    }
}

fn refuse(refused: &Refused) -> Vec<Output> {
    let reason = match refused {
        Refused::TooLarge(_) | Refused::Partitions(_) | Refused::Threads(_) => CloseReason::OverLimit,
        Refused::Lossy { .. } => CloseReason::ProtocolError,
    };
    vec![say::error(refused.code(), &refused.to_string()), Output::Close(reason)]
}

/// The end of a session that the gateway ends, told as an error.
pub fn turned(code: &str, message: &str, reason: CloseReason) -> Vec<Output> {
    vec![say::error(code, message), Output::Close(reason)]
}

/// In no epoch: a place there is always refused, and the refusal tells what the log is.
fn nowhere(at: Link) -> From {
    From::After { epoch: Epoch::new(u64::MAX), at }
}

#[cfg(test)]
mod tests;

//! Threads as the store keeps them: what a batch adds to each, and what is told of them. Pure, and the same
//! for all stores.
use crate::{filling::Filling, keys::ThreadName};
use dashstream_core::{
    batch::{self, Malformed, Span},
    position::{Epoch, Link, Offset, Partition},
};
use dashstream_proto::log::v1::{Batch, Packing, Record, Records, RunStatus};
use prost::Message;
use std::collections::BTreeMap;

/// What one batch adds to one thread.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    pub name: ThreadName,
    pub tenant_id: String,
    pub records: u64,
    /// Kafka times of its first and last record, milliseconds since 1970; 0 where Kafka has none.
    pub first_time_ms: i64,
    pub last_time_ms: i64,
    /// The last status that the batch says; unspecified for none.
    pub status: RunStatus,
    /// Empty where the batch does not say.
    pub graph_name: String,
    pub errors: u64,
    pub tokens: u64,
    pub cost: f64,
    /// The thread's last record in the batch.
    pub last: Offset,
    /// Highest sequence; `None` where none has one.
    pub sequence: Option<u64>,
    /// The newest record that carries the whole state, as a batch of one.
    pub whole_state: Option<Batch>,
}

/// What is known of one thread.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    pub name: ThreadName,
    pub partition: Partition,
    pub epoch: Epoch,
    pub tenant_id: String,
    pub status: RunStatus,
    pub graph_name: String,
    pub first_time_ms: i64,
    pub last_time_ms: i64,
    pub last: Offset,
    pub records: u64,
    pub errors: u64,
    pub tokens: u64,
    pub cost: f64,
    pub whole_state: Link,
}

impl Delta {
    fn new(name: ThreadName, record: &Record) -> Self {
        let time = record.timestamp_ms.unwrap_or(0);
        Self {
            name,
            tenant_id: record.tenant_id.clone(),
            records: 0,
            first_time_ms: time,
            last_time_ms: time,
            status: RunStatus::Unspecified,
            graph_name: String::new(),
            errors: 0,
            tokens: 0,
            cost: 0.0,
            last: Offset::clamped(record.offset),
            sequence: None,
            whole_state: None,
        }
    }

    fn add(&mut self, record: &Record, sequence: Option<u64>) {
        self.records += 1;
        self.last_time_ms = record.timestamp_ms.unwrap_or(self.last_time_ms);
        self.last = Offset::clamped(record.offset);
        self.sequence = self.sequence.max(sequence);
    }

    /// What the record says of its own run; the other threads of a batch of events are only indexed.
    fn add_facts(&mut self, record: &Record, batch: &Batch) {
        let Some(facts) = &record.facts else { return };
        if facts.status() != RunStatus::Unspecified {
            self.status = facts.status();
        }
        if !facts.graph_name.is_empty() {
            self.graph_name.clone_from(&facts.graph_name);
        }
        self.errors += u64::from(facts.errors);
        self.tokens += facts.tokens;
        self.cost += facts.cost;
        if facts.whole_state {
            self.whole_state = Some(only(batch, record));
        }
    }
}

/// A batch of one record, with the record's own link.
fn only(batch: &Batch, record: &Record) -> Batch {
    Batch {
        prev_offset: record.prev_offset,
        first_offset: record.offset,
        last_offset: record.offset,
        record_count: 1,
        packing: Packing::Plain.into(),
        records: Records { records: vec![record.clone()] }.encode_to_vec().into(),
        ..batch.clone()
    }
}

/// What a batch adds to each thread that it touches. Threads whose id can't be a name are in no index; ingest
/// refuses such records.
///
/// # Errors
/// [`Malformed`] when its records do not parse.
pub fn deltas(batch: &Batch) -> Result<Vec<Delta>, Malformed> {
    let mut deltas: BTreeMap<String, Delta> = BTreeMap::new();
    for record in batch::records(batch) {
        let record = record?;
        let own = std::iter::once((&record.thread_id, record.sequence, true));
        let more = record.more_threads.iter().map(|thread| (&thread.thread_id, thread.sequence, false));
        for (thread, sequence, own) in own.chain(more) {
            let delta = match deltas.get_mut(thread) {
                Some(delta) => delta,
                None => match ThreadName::new(thread) {
                    Ok(name) => deltas.entry(thread.clone()).or_insert_with(|| Delta::new(name, &record)),
                    Err(_) => continue,
                },
            };
            delta.add(&record, sequence);
            if own {
                delta.add_facts(&record, batch);
            }
        }
    }
    Ok(deltas.into_values().collect())
}

/// Whether a record is of this thread, and with which sequence.
pub(crate) fn concerns(record: &Record, thread_id: &str) -> Option<Option<u64>> {
    if record.thread_id == thread_id {
        return Some(record.sequence);
    }
    record.more_threads.iter().find(|thread| thread.thread_id == thread_id).map(|thread| thread.sequence)
}

/// Where to read a thread from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The oldest record kept.
    Nothing,
    /// Records with a greater sequence; those that have none do not count.
    Sequence(u64),
    /// Records behind an offset of this epoch.
    Offset { epoch: Epoch, at: Link },
}

/// An entry of a thread's index: a batch that holds records of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Last offset of the batch: its name.
    pub batch: Offset,
    /// Highest sequence of the thread in it; 0 for none.
    pub sequence: u64,
}

impl IndexEntry {
    /// Bytes of one entry.
    pub const BYTES: usize = 16;

    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.batch.get().to_be_bytes());
        bytes[8..].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    /// Reads an index. What is left over of a broken entry is ignored.
    pub fn read_all(bytes: &[u8]) -> Vec<Self> {
        let (entries, _) = bytes.as_chunks::<{ Self::BYTES }>();
        let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        entries
            .iter()
            .map(|entry| Self { batch: Offset::clamped(number(&entry[..8])), sequence: number(&entry[8..]) })
            .collect()
    }

    /// Whether its batch may hold what follows `after`.
    pub fn may_follow(self, after: After) -> bool {
        match after {
            After::Nothing => true,
            After::Sequence(sequence) => self.sequence > sequence,
            After::Offset { at, .. } => Some(self.batch) > at,
        }
    }
}

/// The records of one thread in a batch that follow `after`, in order.
///
/// # Errors
/// [`Malformed`] when the batch's records do not parse.
pub fn select(batch: &Batch, thread_id: &str, after: After) -> Result<Vec<Record>, Malformed> {
    let mut selected = Vec::new();
    for record in batch::records(batch) {
        let record = record?;
        let Some(sequence) = concerns(&record, thread_id) else { continue };
        let follows = match after {
            After::Nothing => true,
            After::Sequence(least) => sequence.is_some_and(|sequence| sequence > least),
            After::Offset { at, .. } => Some(record.offset) > at.map(Offset::get),
        };
        if follows {
            selected.push(record);
        }
    }
    Ok(selected)
}

/// Some of a thread's records.
#[derive(Clone, Debug, PartialEq)]
pub struct ThreadPage {
    pub partition: Partition,
    pub epoch: Epoch,
    /// Retention let go records of the thread that the reader does not have, all before `records`.
    pub trimmed: bool,
    /// The newest whole state among those, kept for a reader to begin with.
    pub whole_state: Option<Record>,
    pub records: Vec<Record>,
    /// Nothing of the thread follows.
    pub at_end: bool,
}

impl ThreadPage {
    /// Adds what a batch has of the thread, as far as there is room; `is_last` when no batch follows it. Says
    /// whether the page is full.
    ///
    /// # Errors
    /// [`Malformed`] when the batch's records do not parse.
    pub fn add(
        &mut self,
        batch: &Batch,
        thread_id: &str,
        after: After,
        is_last: bool,
        filling: &mut Filling,
    ) -> Result<bool, Malformed> {
        for record in select(batch, thread_id, after)? {
            if filling.is_full() {
                self.at_end = false;
                return Ok(true);
            }
            filling.add(1, record.payload.len() as u64);
            self.records.push(record);
        }
        self.at_end = is_last;
        Ok(filling.is_full())
    }
}

/// The batches to read for what follows `after`, and whether batches before them are gone. `oldest` is the
/// last offset of the oldest batch kept.
pub fn plan(entries: &[IndexEntry], oldest: Link, after: After) -> (Vec<Offset>, bool) {
    let wanted = entries.iter().filter(|entry| entry.may_follow(after));
    let (kept, gone): (Vec<_>, Vec<_>) =
        wanted.map(|entry| entry.batch).partition(|batch| Some(*batch) >= oldest);
    (kept, !gone.is_empty())
}

/// The record with the whole state, if it is to be told in place of batches that are gone: it is before the
/// oldest batch kept, and the reader does not have it. `whole` is a batch of it alone.
///
/// # Errors
/// [`Malformed`] when it does not parse.
pub fn stand_in(
    whole: &Batch,
    oldest_first: Option<Offset>,
    thread_id: &str,
    after: After,
) -> Result<Option<Record>, Malformed> {
    if Some(whole.last()) >= oldest_first {
        return Ok(None);
    }
    Ok(select(whole, thread_id, after)?.pop())
}

#[cfg(test)]
mod tests;

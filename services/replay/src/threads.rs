//! Threads as the store keeps them: what a batch adds to each, and what is told of them. Pure, and the same
//! for all stores.
use crate::keys::ThreadName;
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
fn concerns(record: &Record, thread_id: &str) -> Option<Option<u64>> {
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
mod tests {
    use super::*;
    use dashstream_core::{
        batch::{Envelope, Packer},
        codec::Facts,
    };
    use dashstream_proto::log::v1::{RecordKind, RunFacts};

    fn record(at: u64, thread: &str, run: RunFacts, more: &[(&str, u64)]) -> Envelope {
        let more_threads =
            more.iter().map(|(thread, sequence)| ((*thread).to_owned(), Some(*sequence))).collect();
        Envelope {
            offset: Offset::clamped(at),
            timestamp_ms: Some(at as i64 * 10),
            facts: Facts {
                kind: RecordKind::Event,
                tenant_id: "acme".into(),
                thread_id: thread.into(),
                sequence: Some(at + 1),
                more_threads,
                run,
            },
            traceparent: String::new(),
            tracestate: String::new(),
        }
    }

    fn batch() -> Batch {
        let mut packer = Packer::new(Epoch::new(1), Partition::new(0).unwrap(), None);
        let started = RunFacts {
            status: RunStatus::Running.into(),
            graph_name: "rag".into(),
            whole_state: true,
            ..Default::default()
        };
        let failed = RunFacts { errors: 1, cost: 0.5, ..Default::default() };
        let ended = RunFacts { status: RunStatus::Completed.into(), tokens: 9, ..Default::default() };
        assert!(packer.push(record(0, "a", started, &[]), b"0"));
        assert!(packer.push(record(1, "b", failed.clone(), &[("a", 70)]), b"1"));
        assert!(packer.push(record(2, "a", failed, &[]), b"2"));
        assert!(packer.push(record(3, "a", ended, &[]), b"3"));
        assert!(packer.push(record(4, "", RunFacts::default(), &[]), b"4"));
        packer.finish().unwrap()
    }

    #[test]
    fn a_batch_adds_to_each_thread_what_its_records_say() {
        let deltas = deltas(&batch()).unwrap();
        let [a, b] = &deltas[..] else { panic!("{deltas:?}") };
        assert_eq!((a.name.as_str(), a.records, a.first_time_ms, a.last_time_ms), ("a", 4, 0, 30));
        assert_eq!(
            (a.status, a.graph_name.as_str(), a.errors, a.tokens, a.cost),
            (RunStatus::Completed, "rag", 1, 9, 0.5)
        );
        assert_eq!((a.last.get(), a.sequence), (3, Some(70)));
        let whole = a.whole_state.as_ref().unwrap();
        batch::check(whole).unwrap();
        assert_eq!((whole.first_offset, whole.last_offset), (0, 0));
        assert_eq!((b.records, b.errors, b.sequence), (1, 1, Some(2)));
    }

    #[test]
    fn a_thread_is_selected_from_wherever_it_appears() {
        let offsets =
            |after| select(&batch(), "a", after).unwrap().iter().map(|r| r.offset).collect::<Vec<_>>();
        assert_eq!(offsets(After::Nothing), [0, 1, 2, 3]);
        assert_eq!(offsets(After::Sequence(3)), [1, 3]);
        let at = Some(Offset::clamped(1));
        assert_eq!(offsets(After::Offset { epoch: Epoch::new(1), at }), [2, 3]);
    }

    #[test]
    fn an_index_is_exact_to_the_last_bit() {
        let entry = |batch, sequence| IndexEntry { batch: Offset::clamped(batch), sequence };
        let entries =
            [entry(0, 0), entry((1 << 53) + 1, (1 << 53) + 1), entry(i64::MAX as u64, i64::MAX as u64)];
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_bytes()).collect();
        assert_eq!(IndexEntry::read_all(&bytes), entries);
        assert_eq!(IndexEntry::read_all(&bytes[..40]), entries[..2]);
        assert!(
            entries[1].may_follow(After::Sequence(1 << 53))
                && !entries[1].may_follow(After::Sequence((1 << 53) + 1))
        );
    }

    #[test]
    fn what_is_gone_is_noticed_and_the_whole_state_stands_in() {
        let at = |value| Offset::new(value).ok();
        let entries = [5, 9, 20].map(|batch| IndexEntry { batch: Offset::clamped(batch), sequence: batch });
        let (kept, gone) = plan(&entries, at(9), After::Nothing);
        assert_eq!((kept.len(), gone), (2, true));
        assert_eq!(plan(&entries, at(9), After::Sequence(5)), (kept, false));
        let whole = deltas(&batch()).unwrap().remove(0).whole_state.unwrap();
        let stands_in = |oldest, after| stand_in(&whole, at(oldest), "a", after).unwrap().is_some();
        assert!(stands_in(6, After::Nothing));
        assert!(!stands_in(0, After::Nothing), "it is among the batches");
        let has = After::Offset { epoch: Epoch::new(1), at: at(0) };
        assert!(!stands_in(6, has), "the reader has it");
        assert!(!stands_in(6, After::Sequence(1)), "the reader has it");
    }
}

//! Batches: adjacent records of one partition, packed once and cut without copying.
//!
//! The packed form is an encoded `Records` message, whose only field repeats. So any run of its entries is an
//! encoded `Records` message too, and a batch is cut at a cursor by slicing its buffer.
use crate::{
    codec::Facts,
    position::{Epoch, Link, Offset, OutOfRange, Partition},
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use dashstream_proto::log::v1::{
    Batch, Gap, GapReason, Packing, Record, RecordKind, RunFacts, ThreadSequence,
};
use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint},
};

mod select;

pub use select::{Selected, check_selected, select};

const RECORDS_FIELD: u32 = 1;
const OFFSET_FIELD: u32 = 1;
const PAYLOAD_FIELD: u32 = 8;

/// Why bytes are not a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the batch's records do not parse: {0}")]
    Records(String),
    #[error("the batch's packing {0} is unknown: expected 1 (plain)")]
    Packing(i32),
    #[error("the batch has no records: expected at least 1")]
    Empty,
    #[error("the batch's {field} says {said} where its records say {found}")]
    Header { field: &'static str, said: u64, found: u64 },
    #[error("the record at {at} is linked to {link:?} where {expected:?} comes before it")]
    Chain { at: u64, link: Option<u64>, expected: Option<u64> },
    #[error("the batch holds {0}")]
    Position(#[from] OutOfRange),
}

/// What is around a payload in Kafka, and what the payload says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    pub offset: Offset,
    /// Kafka's record timestamp, milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
    pub facts: Facts,
    /// W3C trace context of the record's headers; empty where there is none.
    pub traceparent: String,
    pub tracestate: String,
}

/// Packs the records of one partition, in order, into batches that chain.
///
/// Invariant: `link` is the offset of the last record pushed, of this batch or an earlier one.
#[derive(Debug)]
pub struct Packer {
    epoch: Epoch,
    partition: Partition,
    link: Link,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    prev: Link,
    first: Offset,
    count: u32,
    records: BytesMut,
}

impl Packer {
    /// A packer whose first record follows `link`.
    pub fn new(epoch: Epoch, partition: Partition, link: Link) -> Self {
        Self { epoch, partition, link, open: None }
    }

    /// The last record pushed.
    pub fn link(&self) -> Link {
        self.link
    }

    /// Bytes of the records that wait in the open batch.
    pub fn bytes(&self) -> usize {
        self.open.as_ref().map_or(0, |open| open.records.len())
    }

    /// Records that wait in the open batch.
    pub fn count(&self) -> u32 {
        self.open.as_ref().map_or(0, |open| open.count)
    }

    /// Adds a record. Its payload is copied here, once.
    ///
    /// Returns false, and adds nothing, when the packer is at or beyond its offset: it was read before.
    #[must_use]
    pub fn push(&mut self, envelope: Envelope, payload: &[u8]) -> bool {
        let Envelope { offset, timestamp_ms, facts, traceparent, tracestate } = envelope;
        let more_threads = facts.more_threads.into_iter();
        let head = Record {
            offset: offset.get(),
            prev_offset: self.link.map(Offset::get),
            timestamp_ms,
            kind: facts.kind.into(),
            tenant_id: facts.tenant_id,
            thread_id: facts.thread_id,
            sequence: facts.sequence,
            payload: Bytes::new(),
            traceparent,
            tracestate,
            gap: None,
            facts: (facts.run != RunFacts::default()).then_some(facts.run),
            produced_us: facts.produced_us,
            more_threads: more_threads
                .map(|(thread_id, sequence)| ThreadSequence { thread_id, sequence })
                .collect(),
        };
        self.write(offset, &head, payload)
    }

    /// Adds a gap in place of the records `first..=last`; it stands at `last`.
    ///
    /// Returns false, and adds nothing, when the packer is at or beyond `last`.
    #[must_use]
    pub fn push_gap(&mut self, first: Offset, last: Offset, reason: GapReason) -> bool {
        let gap = Gap {
            epoch: self.epoch.get(),
            partition: self.partition.get(),
            first_offset: first.get(),
            last_offset: last.get(),
            reason: reason.into(),
        };
        let record = Record {
            offset: last.get(),
            prev_offset: self.link.map(Offset::get),
            kind: RecordKind::Gap.into(),
            gap: Some(gap),
            ..Default::default()
        };
        self.write(last, &record, &[])
    }

    fn write(&mut self, offset: Offset, head: &Record, payload: &[u8]) -> bool {
        if self.link >= Some(offset) {
            return false;
        }
        let payload_len = if payload.is_empty() { 0 } else { field_len(PAYLOAD_FIELD, payload.len()) };
        let record_len = head.encoded_len() + payload_len;
        let open = self.open.get_or_insert_with(|| Open {
            prev: self.link,
            first: offset,
            count: 0,
            records: BytesMut::new(),
        });
        let buffer = &mut open.records;
        buffer.reserve(field_len(RECORDS_FIELD, record_len));
        encode_key(RECORDS_FIELD, WireType::LengthDelimited, buffer);
        encode_varint(record_len as u64, buffer);
        head.encode_raw(buffer);
        if !payload.is_empty() {
            encode_key(PAYLOAD_FIELD, WireType::LengthDelimited, buffer);
            encode_varint(payload.len() as u64, buffer);
            buffer.put_slice(payload);
        }
        open.count += 1;
        self.link = Some(offset);
        true
    }

    /// Closes the open batch; `None` when nothing was pushed.
    pub fn finish(&mut self) -> Option<Batch> {
        let open = self.open.take()?;
        let last = self.link?;
        Some(Batch {
            epoch: self.epoch.get(),
            partition: self.partition.get(),
            prev_offset: open.prev.map(Offset::get),
            first_offset: open.first.get(),
            last_offset: last.get(),
            record_count: open.count,
            packing: Packing::Plain.into(),
            records: open.records.freeze(),
            ingested_ms: None,
            stored_ms: None,
        })
    }
}

/// Bytes that a length-delimited field of `len` bytes takes.
fn field_len(field: u32, len: usize) -> usize {
    encoded_len_varint(u64::from(field << 3)) + encoded_len_varint(len as u64) + len
}

/// Typed positions of a batch. Batches that came over the wire went through [`check`] first.
pub trait Span {
    fn link(&self) -> Link;
    fn first(&self) -> Offset;
    fn last(&self) -> Offset;
}

impl Span for Batch {
    fn link(&self) -> Link {
        self.prev_offset.map(Offset::clamped)
    }

    fn first(&self) -> Offset {
        Offset::clamped(self.first_offset)
    }

    fn last(&self) -> Offset {
        Offset::clamped(self.last_offset)
    }
}

/// The records of a batch, one by one; payloads are slices of its buffer.
#[derive(Clone, Debug)]
pub struct RecordIter {
    rest: Bytes,
}

/// The records of a batch.
pub fn records(batch: &Batch) -> RecordIter {
    RecordIter { rest: batch.records.clone() }
}

/// The records of a batch that are part of a trace: their offsets and `traceparent`s.
pub fn traced(batch: &Batch) -> impl Iterator<Item = (u64, String)> {
    let traced = records(batch).filter_map(Result::ok).filter(|record| !record.traceparent.is_empty());
    traced.map(|record| (record.offset, record.traceparent))
}

impl Iterator for RecordIter {
    type Item = Result<Record, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let entry = take_entry(&mut self.rest)
            .and_then(|entry| Record::decode(entry).map_err(|error| Malformed::Records(error.to_string())));
        if entry.is_err() {
            self.rest.clear();
        }
        Some(entry)
    }
}

/// Takes the next record's bytes off a packed buffer.
fn take_entry(rest: &mut Bytes) -> Result<Bytes, Malformed> {
    let wrong = |error: prost::DecodeError| Malformed::Records(error.to_string());
    let (field, wire_type) = decode_key(rest).map_err(wrong)?;
    if field != RECORDS_FIELD || wire_type != WireType::LengthDelimited {
        return Err(Malformed::Records(format!("field {field} where a record was expected")));
    }
    let len = decode_varint(rest).map_err(wrong)?;
    if len > rest.remaining() as u64 {
        return Err(Malformed::Records(format!(
            "a record of {len} bytes where {} are left",
            rest.remaining()
        )));
    }
    Ok(rest.split_to(len as usize))
}

/// The offset of a packed record: its first field, absent when it is 0.
fn offset_of(mut entry: Bytes) -> Result<u64, Malformed> {
    let wrong = |error: prost::DecodeError| Malformed::Records(error.to_string());
    if entry.is_empty() {
        return Ok(0);
    }
    match decode_key(&mut entry).map_err(wrong)? {
        (OFFSET_FIELD, WireType::Varint) => decode_varint(&mut entry).map_err(wrong),
        _ => Ok(0),
    }
}

/// Proves that a batch is what its header says: packing, count, bounds and every link.
///
/// # Errors
/// [`Malformed`]: the first thing that is wrong.
pub fn check(batch: &Batch) -> Result<(), Malformed> {
    if batch.packing != i32::from(Packing::Plain) {
        return Err(Malformed::Packing(batch.packing));
    }
    Partition::new(batch.partition)?;
    Offset::new(batch.last_offset)?;
    let (mut link, mut first, mut count) = (batch.prev_offset, None, 0_u64);
    for record in records(batch) {
        let record = record?;
        if record.prev_offset != link || link >= Some(record.offset) {
            return Err(Malformed::Chain { at: record.offset, link: record.prev_offset, expected: link });
        }
        link = Some(record.offset);
        first = first.or(link);
        count += 1;
    }
    let (Some(first), Some(last)) = (first, link) else { return Err(Malformed::Empty) };
    for (field, said, found) in [
        ("first_offset", batch.first_offset, first),
        ("last_offset", batch.last_offset, last),
        ("record_count", batch.record_count.into(), count),
    ] {
        if said != found {
            return Err(Malformed::Header { field, said, found });
        }
    }
    Ok(())
}

/// The part of a batch behind `at`, sharing its buffer; `None` when nothing of it is.
///
/// # Errors
/// [`Malformed`] when its records do not parse.
pub fn cut_after(batch: &Batch, at: Link) -> Result<Option<Batch>, Malformed> {
    if at < Some(batch.first()) {
        return Ok(Some(batch.clone()));
    }
    if at >= Some(batch.last()) {
        return Ok(None);
    }
    let mut rest = batch.records.clone();
    let (mut link, mut left) = (batch.prev_offset, batch.record_count);
    loop {
        let here = rest.clone();
        let offset = offset_of(take_entry(&mut rest)?)?;
        if Some(offset) > at.map(Offset::get) {
            let (prev_offset, first_offset) = (link, offset);
            return Ok(Some(Batch {
                prev_offset,
                first_offset,
                record_count: left,
                records: here,
                ..batch.clone()
            }));
        }
        link = Some(offset);
        left = left.saturating_sub(1);
    }
}

/// A part of a batch that fits a client.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Records that do.
    Run(Batch),
    /// A record that does not.
    TooLarge { at: Offset, link: Link, bytes: usize },
}

/// Cuts a batch into runs of at most about `run_bytes_max` bytes, leaving out each record whose payload is
/// larger than `payload_bytes_max`. The runs share its buffer.
///
/// # Errors
/// [`Malformed`] when its records do not parse.
pub fn split(batch: &Batch, run_bytes_max: usize, payload_bytes_max: usize) -> Result<Vec<Piece>, Malformed> {
    let mut pieces = Vec::new();
    let mut rest = batch.records.clone();
    let mut run: Option<Batch> = None;
    while !rest.is_empty() {
        let here = rest.clone();
        let record =
            Record::decode(take_entry(&mut rest)?).map_err(|error| Malformed::Records(error.to_string()))?;
        let len = here.len() - rest.len();
        let link = record.prev_offset;
        let too_large = record.payload.len() > payload_bytes_max;
        if let Some(open) = &run
            && (too_large || open.records.len() + len > run_bytes_max)
        {
            pieces.extend(run.take().map(Piece::Run));
        }
        if too_large {
            pieces.push(Piece::TooLarge {
                at: Offset::new(record.offset)?,
                link: link.map(Offset::clamped),
                bytes: record.payload.len(),
            });
        } else {
            let open = run.get_or_insert_with(|| Batch {
                prev_offset: link,
                first_offset: record.offset,
                record_count: 0,
                records: here.slice(..0),
                ..batch.clone()
            });
            let start = batch.records.len() - here.len() - open.records.len();
            open.records = batch.records.slice(start..batch.records.len() - rest.len());
            open.last_offset = record.offset;
            open.record_count += 1;
        }
    }
    pieces.extend(run.map(Piece::Run));
    Ok(pieces)
}

#[cfg(test)]
pub(crate) mod tests;

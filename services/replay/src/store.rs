//! What the service needs of a store. The memory store is the model that the Redis one is tested against.
use crate::{
    config::Retention,
    filling::Bounds,
    keys::{Stream, ThreadName},
    schemas::SchemaStore,
    threads::{After, Summary, ThreadPage},
};
use dashstream_core::{
    batch::{self, Malformed, Span, cut_after},
    position::{Epoch, Link, NextOffset, Offset, Partition, Step, step},
};
use dashstream_proto::log::v1::{Batch, Gap, GapReason, Record};
use sha2::{Digest, Sha256};
use std::future::Future;

/// A store that does not answer or answers nonsense.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the store is unavailable")]
    Unavailable(#[from] redis::RedisError),
    #[error("the store's answer is not what was written: {0}")]
    Corrupt(String),
    #[error("{reached} of {wanted} replicas of the store have it")]
    NotReplicated { reached: u32, wanted: u32 },
    #[error("the store holds a broken batch")]
    Malformed(#[from] Malformed),
}

/// What a writer knows when it opens a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    pub partition: Partition,
    /// Taken when the store knows none, or an earlier one.
    pub known_epoch: Option<Epoch>,
    /// What the store holds at or beyond it is of an earlier life of the topic.
    pub high_watermark: Option<NextOffset>,
    /// Where the source has another record: a log of this epoch that ends there is of an earlier life.
    pub diverged: Option<(Epoch, Offset)>,
    /// Last offset that was stored in `known_epoch`, where retention has let all up to it go. A log of that
    /// epoch that holds nothing goes on behind it.
    pub expired: Link,
    /// The epoch to open where one must be.
    pub mint: Epoch,
}

impl Open {
    /// Of a writer that knows nothing.
    pub fn new(partition: Partition, mint: Epoch) -> Self {
        Self { partition, known_epoch: None, high_watermark: None, diverged: None, expired: None, mint }
    }
}

/// A partition that can be appended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub epoch: Epoch,
    pub held: Link,
    pub new_epoch: bool,
    /// `None` where nothing is held, or a gap is the last.
    pub last_record: Option<LastRecord>,
}

/// What tells the last record held from another one at its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastRecord {
    /// Kafka's, milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
    pub payload_sha256: [u8; 32],
}

impl LastRecord {
    /// Of the newest batch; `None` where its last record is a gap.
    pub(crate) fn of(newest: &Batch) -> Result<Option<Self>, Malformed> {
        let Some(record) = batch::records(newest).last().transpose()? else { return Ok(None) };
        let Record { timestamp_ms, payload, gap, .. } = record;
        let payload_sha256 = Sha256::digest(&payload).into();
        Ok(gap.is_none().then_some(Self { timestamp_ms, payload_sha256 }))
    }
}

/// The outcome of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// All of the batch is held now. `stored_ms` is the store's clock, milliseconds since 1970.
    Stored { last: Offset, stored_ms: i64 },
    /// All of it was held before.
    Held { last: Offset },
    /// The log is in another epoch, or unknown.
    Epoch { epoch: Option<Epoch>, held: Link },
    /// The batch does not follow what is held.
    Link { epoch: Epoch, held: Link },
    /// The batch has no record at `held`, though it begins before and ends behind it.
    Divergent { epoch: Epoch, held: Link },
}

/// Where to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Earliest,
    Latest,
    /// The first record of this time or later, milliseconds since 1970.
    AtTime(i64),
    After {
        epoch: Epoch,
        at: Link,
    },
}

/// What is read.
#[derive(Clone, Debug, PartialEq)]
pub enum Page {
    /// Batches that follow the position, the first one cut at it. `gap` is lost before them.
    Batches { epoch: Epoch, gap: Option<Gap>, batches: Vec<Batch>, at_end: bool, held: Link },
    /// The position is of another epoch.
    Stale { epoch: Epoch, earliest: Option<Offset>, held: Link },
    /// Nothing is known of the partition, or less than the reader has: it may be refilled.
    Seeding,
}

/// What is kept of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    pub partition: Partition,
    pub epoch: Epoch,
    pub earliest: Option<Offset>,
    pub held: Link,
    pub records: u64,
    /// Of stored batches.
    pub bytes: u64,
    /// When the newest batch was appended, milliseconds since 1970; 0 where none was.
    pub last_append_ms: i64,
    /// When the oldest batch was appended.
    pub oldest_append_ms: i64,
    /// Threads that are listed.
    pub threads: u64,
}

/// A place in the list of threads of one partition, which is ordered by activity and name, both descending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListPlace {
    /// When it was last appended to, milliseconds since 1970.
    pub active_ms: i64,
    pub name: ThreadName,
}

/// A store. Appends of one call are done in order; each is atomic.
pub trait Store: SchemaStore {
    fn open(&self, stream: &Stream, open: Open) -> impl Future<Output = Result<Opened, Error>> + Send;

    fn append(
        &self,
        stream: &Stream,
        batches: &[Batch],
    ) -> impl Future<Output = Result<Vec<Appended>, Error>> + Send;

    fn read(
        &self,
        stream: &Stream,
        partition: Partition,
        from: From,
        bounds: Bounds,
    ) -> impl Future<Output = Result<Page, Error>> + Send;

    /// Some of a thread's records; `None` when the partition does not have it.
    fn read_thread(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
        after: After,
        bounds: Bounds,
    ) -> impl Future<Output = Result<Option<ThreadPage>, Error>> + Send;

    /// Threads of a partition behind `below`, at most `limit`, and no more than are asked for at once.
    fn list_threads(
        &self,
        stream: &Stream,
        partition: Partition,
        below: Option<&ListPlace>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(ListPlace, Summary)>, Error>> + Send;

    fn describe_thread(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
    ) -> impl Future<Output = Result<Option<Summary>, Error>> + Send;

    /// Deletes what is kept under the thread's own keys. False when there was nothing.
    fn delete_thread(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Partitions that were opened and not forgotten since.
    fn partitions(&self, stream: &Stream) -> impl Future<Output = Result<Vec<Partition>, Error>> + Send;

    fn describe_partition(
        &self,
        stream: &Stream,
        partition: Partition,
    ) -> impl Future<Output = Result<Option<Description>, Error>> + Send;

    /// What is kept where it was set for the stream.
    fn retention(&self, stream: &Stream) -> impl Future<Output = Result<Option<Retention>, Error>> + Send;

    /// Sets what is kept, or takes that back.
    fn set_retention(
        &self,
        stream: &Stream,
        retention: Option<Retention>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// As [`Store::read`], without what another store left in front of this one.
    fn read_own(
        &self,
        stream: &Stream,
        partition: Partition,
        from: From,
        bounds: Bounds,
    ) -> impl Future<Output = Result<Page, Error>> + Send {
        self.read(stream, partition, from, bounds)
    }

    /// Records of a thread from before this store: what a predecessor left, in order of sequence, about
    /// `records_max` at the most. Those whose partition is `None` have no place in a log.
    fn older_records(
        &self,
        thread_id: &str,
        after_sequence: Option<u64>,
        records_max: usize,
    ) -> impl Future<Output = Result<Vec<(Option<Partition>, Record)>, Error>> + Send {
        let (_, _, _) = (thread_id, after_sequence, records_max);
        std::future::ready(Ok(Vec::new()))
    }

    /// To be called every second: takes up what other replicas set, and keeps the list of partitions alive.
    /// Returns the streams that are in use.
    fn maintain(&self) -> impl Future<Output = Result<Vec<Stream>, Error>> + Send;
}

/// What a store finds at a position, before it is judged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Raw {
    pub(crate) epoch: Option<Epoch>,
    pub(crate) held: Link,
    /// First offset of the oldest batch; only needed where the reader is in another epoch.
    pub(crate) earliest: Option<Offset>,
    /// Records that the head counts. None where retention has let everything go.
    pub(crate) records: u64,
    /// Whole batches that end behind the position, in order.
    pub(crate) batches: Vec<Batch>,
}

impl Raw {
    /// Where to fetch on; `None` when there was nothing, or nothing follows.
    pub(crate) fn rest(&self) -> Option<From> {
        let (epoch, last) = (self.epoch?, self.batches.last()?.last());
        (Some(last) < self.held).then_some(From::After { epoch, at: Some(last) })
    }

    /// Adds what was fetched there, if it follows: trimming may have been faster, or another life begun.
    pub(crate) fn join(&mut self, more: Self) -> bool {
        let last = self.batches.last().map(Span::last);
        let follows = more.batches.first().is_some_and(|first| first.link() == last);
        if !follows || more.epoch != self.epoch {
            return false;
        }
        self.held = more.held;
        self.batches.extend(more.batches);
        true
    }
}

/// Judges what was found for a reader at `from`. Pure, and the same for all stores.
pub(crate) fn page(partition: Partition, from: From, raw: Raw) -> Result<Page, Error> {
    let Raw { epoch, held, earliest, records, mut batches } = raw;
    let Some(epoch) = epoch else { return Ok(Page::Seeding) };
    let at = match from {
        From::After { epoch: asked, .. } if asked != epoch => {
            return Ok(Page::Stale { epoch, earliest, held });
        }
        From::After { at, .. } if at > held => return Ok(Page::Seeding),
        From::After { at, .. } => at,
        From::Earliest | From::AtTime(_) => batches.first().map_or(held, |first| first.link()),
        From::Latest => held,
    };
    let mut gap = None;
    if let Some(first) = batches.first_mut() {
        match step(at, first.link(), first.first()) {
            Step::Adjacent => {}
            Step::Overlaps => {
                let rest = cut_after(first, at)?;
                *first =
                    rest.ok_or_else(|| Error::Corrupt("a batch that ends before the position".into()))?;
            }
            Step::Missing { first, last } => gap = Some(lost(epoch, partition, first, last)),
        }
    } else if at < held && matches!(from, From::Earliest | From::After { .. }) {
        // Where the head counts records that the log does not have, the log itself is gone.
        let reason = if records > 0 { GapReason::StoreLost } else { GapReason::Retention };
        let first = at.map_or(Offset::clamped(0), |at| Offset::clamped(at.get() + 1));
        gap = held.map(|held| Gap { reason: reason.into(), ..lost(epoch, partition, first, held) });
    }
    let reached = batches.last().map_or(at, |last| Some(last.last()));
    let at_end = reached >= held || gap.is_some() && batches.is_empty();
    Ok(Page::Batches { epoch, gap, batches, at_end, held })
}

fn lost(epoch: Epoch, partition: Partition, first: Offset, last: Offset) -> Gap {
    Gap {
        epoch: epoch.get(),
        partition: partition.get(),
        first_offset: first.get(),
        last_offset: last.get(),
        reason: GapReason::Retention.into(),
    }
}

/// Leaves out what a reader from a time on does not want: everything before the first record of that time.
pub(crate) fn from_time(batches: &mut Vec<Batch>, time_ms: i64) -> Result<(), Malformed> {
    let Some(first) = batches.first_mut() else { return Ok(()) };
    let mut before = first.link();
    for record in batch::records(first) {
        let record = record?;
        if record.timestamp_ms.is_some_and(|time| time >= time_ms) {
            break;
        }
        before = Some(Offset::clamped(record.offset));
    }
    match cut_after(first, before)? {
        Some(rest) => *first = rest,
        None => drop(batches.remove(0)),
    }
    Ok(())
}

/// What the compare of compare-and-append says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fit {
    /// Append this: the batch, or what of it is not held.
    Append(Batch),
    Done(Appended),
}

/// How a batch fits a log of the batch's epoch that holds records up to `held`.
pub(crate) fn fit(batch: &Batch, held: Link) -> Result<Fit, Malformed> {
    let epoch = Epoch::new(batch.epoch);
    if batch.link() == held {
        return Ok(Fit::Append(batch.clone()));
    }
    if held >= Some(batch.last()) {
        return Ok(Fit::Done(Appended::Held { last: held.unwrap_or(batch.last()) }));
    }
    if held < Some(batch.first()) {
        return Ok(Fit::Done(Appended::Link { epoch, held }));
    }
    match cut_after(batch, held)? {
        Some(rest) if rest.link() == held => Ok(Fit::Append(rest)),
        _ => Ok(Fit::Done(Appended::Divergent { epoch, held })),
    }
}

#[cfg(test)]
mod tests;

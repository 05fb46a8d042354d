//! What the service needs of a store. The memory store is the model that the Redis one is tested against.
use crate::keys::Stream;
use dashstream_core::{
    batch::{Malformed, Span, cut_after},
    position::{Epoch, Link, NextOffset, Offset, Partition, Step, step},
};
use dashstream_proto::log::v1::{Batch, Gap, GapReason};
use std::future::Future;

/// A store that does not answer or answers nonsense.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the store is unavailable")]
    Unavailable(#[from] redis::RedisError),
    #[error("the store's answer is not what was written: {0}")]
    Corrupt(String),
    #[error("the store holds a broken batch")]
    Malformed(#[from] Malformed),
}

/// What a writer knows when it opens a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    pub partition: Partition,
    /// Kept when the store knows no epoch.
    pub known_epoch: Option<Epoch>,
    /// What the store holds at or beyond it is of an earlier life of the topic.
    pub high_watermark: Option<NextOffset>,
    /// The epoch to open where one must be.
    pub mint: Epoch,
}

/// A partition that can be appended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub epoch: Epoch,
    pub held: Link,
    pub new_epoch: bool,
}

/// The outcome of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// All of the batch is held now.
    Stored { last: Offset },
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
    After { epoch: Epoch, at: Link },
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

/// A store. Appends of one call are done in order; each is atomic.
pub trait Store: Send + Sync + 'static {
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
        bytes_max: u64,
    ) -> impl Future<Output = Result<Page, Error>> + Send;
}

/// What a store finds at a position, before it is judged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Raw {
    pub(crate) epoch: Option<Epoch>,
    pub(crate) held: Link,
    /// First offset of the oldest batch; only needed where the reader is in another epoch.
    pub(crate) earliest: Option<Offset>,
    /// Whole batches that end behind the position, in order.
    pub(crate) batches: Vec<Batch>,
}

/// Judges what was found for a reader at `from`. Pure, and the same for all stores.
pub(crate) fn page(partition: Partition, from: From, raw: Raw) -> Result<Page, Error> {
    let Raw { epoch, held, earliest, mut batches } = raw;
    let Some(epoch) = epoch else { return Ok(Page::Seeding) };
    let at = match from {
        From::After { epoch: asked, .. } if asked != epoch => {
            return Ok(Page::Stale { epoch, earliest, held });
        }
        From::After { at, .. } if at > held => return Ok(Page::Seeding),
        From::After { at, .. } => at,
        From::Earliest => batches.first().map_or(held, |first| first.link()),
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
    } else if at < held && from != From::Latest {
        // The head says more than the log has: the log itself is gone.
        let first = at.map_or(Offset::clamped(0), |at| Offset::clamped(at.get() + 1));
        gap = held.map(|held| lost(epoch, partition, first, held));
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

//! What the predecessor left in Redis, read and never written.
//!
//! It kept two families of rows, each with a sorted set as its index and an expiry of its own:
//!
//! | key, behind the prefix     | value                                                                  |
//! |----------------------------|------------------------------------------------------------------------|
//! | `:partition:P:offset:O`    | Kafka's value                                                          |
//! | `:partition:P:offsets`     | index: member the key of a row, score its offset as a double           |
//! | `:thread:NAME:seq:S`       | partition (i32 LE), offset (i64 LE), Kafka's value                     |
//! | `:thread:NAME:sequences`   | index: member the key of a row, score its sequence as a double         |
//!
//! Scores are inexact from 2^53 on, so positions are read off the keys. Rows expire before their index does,
//! and were written with best effort: what is missing between two of them is unknown.
use crate::store::Error;
use bytes::Bytes;
use dashstream_core::position::{Link, Offset, Partition};
use futures_util::future::try_join_all;
use redis::{RedisResult, aio::ConnectionLike};
use std::{fmt, sync::Arc};

mod index;
mod names;
mod pack;
mod uses;
mod value;

use index::{Index, Window};
use uses::{Family, Uses};

pub use names::{namespace, prefix};
pub use pack::{Packed, pack};
pub use uses::Metrics;

/// Most rows that one page looks at.
const ROWS_MAX: usize = 256;
/// Fewest, so that a caller of small pages gets over many expired rows soon.
const ROWS_MIN: usize = 16;
/// What a row of a partition is taken to have, bytes, before it is read.
const ROW_BYTES: u64 = 4 << 10;

/// A record as the predecessor kept it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyRecord {
    /// `None` for rows of threads from before positions were kept; so is `offset`.
    pub partition: Option<Partition>,
    pub offset: Option<Offset>,
    /// The thread's, exact; `None` when read by partition.
    pub sequence: Option<u64>,
    /// Kafka's value: framed, perhaps compressed.
    pub payload: Bytes,
}

/// Reads the rows of one namespace. A cheap handle.
#[derive(Clone)]
pub struct Legacy<C> {
    connection: C,
    prefix: Arc<str>,
    uses: Uses,
}

impl<C> fmt::Debug for Legacy<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Legacy").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// A row that had not expired.
struct Row {
    at: u64,
    family: Family,
    value: Bytes,
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Legacy<C> {
    /// `prefix` is what all keys begin with; [`prefix`](fn@prefix) makes it from a namespace.
    pub fn new(connection: C, prefix: String, metrics: Metrics) -> Self {
        let prefix: Arc<str> = prefix.into();
        Self { connection, uses: Uses::new(Arc::clone(&prefix), metrics), prefix }
    }

    /// Records behind `after` and before the offset `before`, in the order of offsets.
    ///
    /// Up to about `bytes_max` bytes of payloads, and at least one record. None means that there are no more;
    /// otherwise ask again after the last one. Rows are read 16 to 256 at a time, in two round trips each time,
    /// until some have not expired. They are cut to `bytes_max` only then.
    ///
    /// # Errors
    /// When Redis does not answer, or an index holds something else than keys of rows.
    pub async fn partition(
        &self,
        partition: Partition,
        after: Link,
        before: Option<Offset>,
        bytes_max: u64,
    ) -> Result<Vec<LegacyRecord>, Error> {
        let indexes = [Index::of_partition(&self.prefix, partition)];
        // Beyond this nothing is an offset.
        let before = before.map_or(1 << 63, Offset::get);
        let rows_max = usize::try_from(bytes_max / ROW_BYTES).unwrap_or(ROWS_MAX).clamp(ROWS_MIN, ROWS_MAX);
        let mut window = Some(Window::new(after.map(Offset::get), Some(before), rows_max));
        while let Some(here) = window {
            let (rows, next) = self.page(&indexes, here).await?;
            if !rows.is_empty() {
                self.uses.found(Family::Partition, rows.len());
                return Ok(cut(of_partition(partition, rows), bytes_max));
            }
            window = next;
        }
        Ok(Vec::new())
    }

    /// Records of a thread behind `after_sequence`, in the order of its sequences, whatever name its rows have.
    ///
    /// At most `records_max` (at least 1) and at most 256; a few more only where several have the last sequence.
    /// None means that there are no more. A row is left out, and counted, unless its payload names the thread:
    /// different threads could get the same name. Sequences begin anew when a producer does, and a later row
    /// replaced an earlier one: identity is partition and offset.
    ///
    /// # Errors
    /// As [`Legacy::partition`].
    pub async fn thread(
        &self,
        thread_id: &str,
        after_sequence: Option<u64>,
        records_max: usize,
    ) -> Result<Vec<LegacyRecord>, Error> {
        let thread = names::bounded(thread_id);
        let indexes = Index::of_thread(&self.prefix, &thread);
        if indexes.is_empty() {
            return Ok(Vec::new());
        }
        let rows_max = records_max.clamp(ROWS_MIN, ROWS_MAX);
        let mut window = Some(Window::new(after_sequence, None, rows_max));
        while let Some(here) = window {
            let (rows, next) = self.page(&indexes, here).await?;
            let records = self.of_thread(&thread, rows);
            if !records.is_empty() {
                return Ok(limit(records, records_max.max(1)));
            }
            window = next;
        }
        Ok(Vec::new())
    }

    /// The rows in a window of all indexes, in order, and the window behind it. Two round trips.
    async fn page(&self, indexes: &[Index], window: Window) -> Result<(Vec<Row>, Option<Window>), Error> {
        // At the same time but not in a pipeline, which in a cluster can't have keys of several slots.
        let answers = indexes.iter().map(async |index| -> RedisResult<Vec<Bytes>> {
            window.command(index).query_async(&mut self.connection.clone()).await
        });
        let answers = try_join_all(answers).await?;
        let slice = window.slice(indexes, answers)?;
        if slice.members.is_empty() {
            return Ok((Vec::new(), slice.next));
        }
        let mut values = redis::cmd("MGET");
        for member in &slice.members {
            values.arg(&member.key[..]);
        }
        let values: Vec<Option<Bytes>> = values.query_async(&mut self.connection.clone()).await?;
        let rows =
            slice.members.into_iter().zip(values).filter_map(|(member, value)| {
                Some(Row { at: member.at, family: member.family, value: value? })
            });
        Ok((rows.collect(), slice.next))
    }

    /// Records of the rows that are the thread's. A row that has two names is one record.
    fn of_thread(&self, thread: &str, rows: Vec<Row>) -> Vec<LegacyRecord> {
        let mut records: Vec<LegacyRecord> = Vec::with_capacity(rows.len());
        let mut found = Vec::with_capacity(rows.len());
        for Row { at, family, value } in rows {
            let Some((position, payload)) = value::of_thread(&value, thread) else {
                self.uses.collided(family);
                continue;
            };
            found.push(family);
            let (partition, offset) = position.unzip();
            let record = LegacyRecord { partition, offset, sequence: Some(at), payload };
            let mut same = records.iter().rev().take_while(|earlier| earlier.sequence == Some(at));
            if !same.any(|earlier| *earlier == record) {
                records.push(record);
            }
        }
        for family in Family::ALL {
            let count = found.iter().filter(|of| **of == family).count();
            if count > 0 {
                self.uses.found(family, count);
            }
        }
        records
    }
}

fn of_partition(partition: Partition, rows: Vec<Row>) -> Vec<LegacyRecord> {
    let records = rows.into_iter().map(|row| LegacyRecord {
        partition: Some(partition),
        offset: Some(Offset::clamped(row.at)),
        sequence: None,
        payload: row.value,
    });
    records.collect()
}

/// The first records that have `bytes_max` bytes together, at least one.
fn cut(mut records: Vec<LegacyRecord>, bytes_max: u64) -> Vec<LegacyRecord> {
    let mut bytes = 0;
    let fits = records.iter().take_while(|record| {
        bytes += record.payload.len() as u64;
        bytes <= bytes_max
    });
    let count = fits.count().max(1);
    records.truncate(count);
    records
}

/// The first `records_max` records, and those that have the last one's sequence too: the caller goes on after it.
fn limit(mut records: Vec<LegacyRecord>, records_max: usize) -> Vec<LegacyRecord> {
    if let Some(last) = records.get(records_max - 1).map(|record| record.sequence) {
        records.retain(|record| record.sequence <= last);
    }
    records
}

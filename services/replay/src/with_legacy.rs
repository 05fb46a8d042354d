//! A store with what the predecessor left in front of it: read where the new log has nothing yet, never written.
use crate::{
    config::Retention,
    connection::Connection,
    filling::Bounds,
    keys::{Stream, TenantName, ThreadName},
    legacy::{Legacy, LegacyRecord, pack},
    schemas::{Changed, SchemaStore},
    store::{Appended, Description, Error, From, ListPlace, Open, Opened, Page, Store},
    threads::{After, Summary, ThreadPage},
};
use dashstream_core::{
    batch::{self, Span},
    position::{Epoch, Link, Offset, Partition},
};
use dashstream_proto::{
    log::v1::{Batch, Record},
    replay::v1::ExpectedSchema,
};

/// The life of a log that only the predecessor knew. Cursors of it are stale once the log is opened.
const BEFORE_ALL: Epoch = Epoch::new(0);

/// Asks `inner` first.
#[derive(Clone, Debug)]
pub(crate) struct WithLegacy<S> {
    inner: S,
    legacy: Legacy<Connection>,
}

impl<S: Store> WithLegacy<S> {
    pub(crate) fn new(inner: S, legacy: Legacy<Connection>) -> Self {
        Self { inner, legacy }
    }

    /// The end of a log that holds nothing, for a reader who stands in what the predecessor left.
    async fn behind_older(
        &self,
        stream: &Stream,
        partition: Partition,
        asked: Epoch,
    ) -> Result<Option<Page>, Error> {
        let end = Page::Batches { epoch: asked, gap: None, batches: Vec::new(), at_end: true, held: None };
        match self.inner.read(stream, partition, From::Earliest, Bounds::of_bytes(1)).await? {
            Page::Seeding if asked == BEFORE_ALL => Ok(Some(end)),
            Page::Batches { epoch, held: None, .. } if epoch == asked => Ok(Some(end)),
            Page::Batches { .. } | Page::Stale { .. } | Page::Seeding => Ok(None),
        }
    }

    /// What the predecessor has behind `at` and before the offset `before`.
    async fn page(
        &self,
        epoch: Epoch,
        partition: Partition,
        (at, before): (Link, Option<Offset>),
        held: Link,
        bytes_max: u64,
    ) -> Result<Option<Page>, Error> {
        let records = self.legacy.partition(partition, at, before, bytes_max).await?;
        let batches = pack(epoch, partition, &records, at).batches;
        let last = batches.last().map(Span::last);
        Ok(last.map(|last| Page::Batches { epoch, gap: None, batches, at_end: Some(last) == held, held }))
    }
}

/// Where a reader stands that may want what the predecessor kept, and before which offset.
fn wants(from: From, page: &Page) -> Option<(Epoch, Link, Option<Offset>, Link)> {
    let at = match from {
        From::Earliest => None,
        From::After { at, .. } => at,
        From::Latest | From::AtTime(_) => return None,
    };
    match page {
        Page::Batches { epoch, gap, batches, held, .. } => {
            let begins = batches.first().is_some_and(|first| first.prev_offset.is_none());
            let nothing = batches.is_empty() && held.is_none();
            (gap.is_some() || begins || nothing)
                .then(|| (*epoch, at, batches.first().map(Span::first).or(behind(*held)), *held))
        }
        Page::Seeding => match from {
            From::Earliest => Some((BEFORE_ALL, at, None, None)),
            From::After { .. } | From::Latest | From::AtTime(_) => None,
        },
        Page::Stale { .. } => None,
    }
}

/// The offset behind what is held.
fn behind(held: Link) -> Option<Offset> {
    held.map(|held| Offset::clamped(held.get() + 1))
}

/// The predecessor kept them in a file.
impl<S: Store> SchemaStore for WithLegacy<S> {
    async fn schemas(&self, stream: &Stream, tenant: &TenantName) -> Result<Vec<ExpectedSchema>, Error> {
        self.inner.schemas(stream, tenant).await
    }

    async fn schema(
        &self,
        stream: &Stream,
        tenant: &TenantName,
        graph_name: &str,
    ) -> Result<Option<ExpectedSchema>, Error> {
        self.inner.schema(stream, tenant, graph_name).await
    }

    async fn set_schema(
        &self,
        stream: &Stream,
        tenant: &TenantName,
        schema: &ExpectedSchema,
        expected: Option<u64>,
    ) -> Result<Changed, Error> {
        self.inner.set_schema(stream, tenant, schema, expected).await
    }

    async fn delete_schema(
        &self,
        stream: &Stream,
        tenant: &TenantName,
        graph_name: &str,
        version: u64,
    ) -> Result<Changed, Error> {
        self.inner.delete_schema(stream, tenant, graph_name, version).await
    }
}

impl<S: Store> Store for WithLegacy<S> {
    async fn open(&self, stream: &Stream, open: Open) -> Result<Opened, Error> {
        self.inner.open(stream, open).await
    }

    async fn append(&self, stream: &Stream, batches: &[Batch]) -> Result<Vec<Appended>, Error> {
        self.inner.append(stream, batches).await
    }

    async fn read(
        &self,
        stream: &Stream,
        partition: Partition,
        from: From,
        bounds: Bounds,
    ) -> Result<Page, Error> {
        let mut page = self.inner.read(stream, partition, from, bounds).await?;
        if let (Page::Seeding, From::After { epoch, .. }) = (&page, from) {
            page = self.behind_older(stream, partition, epoch).await?.unwrap_or(page);
        }
        let Some((epoch, at, before, held)) = wants(from, &page) else { return Ok(page) };
        let older = self.page(epoch, partition, (at, before), held, bounds.bytes).await?;
        Ok(older.unwrap_or(page))
    }

    async fn read_own(
        &self,
        stream: &Stream,
        partition: Partition,
        from: From,
        bounds: Bounds,
    ) -> Result<Page, Error> {
        self.inner.read_own(stream, partition, from, bounds).await
    }

    async fn read_thread(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
        after: After,
        bounds: Bounds,
    ) -> Result<Option<ThreadPage>, Error> {
        self.inner.read_thread(stream, partition, name, after, bounds).await
    }

    async fn list_threads(
        &self,
        stream: &Stream,
        partition: Partition,
        below: Option<&ListPlace>,
        limit: usize,
    ) -> Result<Vec<(ListPlace, Summary)>, Error> {
        self.inner.list_threads(stream, partition, below, limit).await
    }

    async fn describe_thread(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
    ) -> Result<Option<Summary>, Error> {
        self.inner.describe_thread(stream, partition, name).await
    }

    async fn delete_thread(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
    ) -> Result<bool, Error> {
        self.inner.delete_thread(stream, partition, name).await
    }

    async fn partitions(&self, stream: &Stream) -> Result<Vec<Partition>, Error> {
        self.inner.partitions(stream).await
    }

    async fn describe_partition(
        &self,
        stream: &Stream,
        partition: Partition,
    ) -> Result<Option<Description>, Error> {
        self.inner.describe_partition(stream, partition).await
    }

    async fn retention(&self, stream: &Stream) -> Result<Option<Retention>, Error> {
        self.inner.retention(stream).await
    }

    async fn set_retention(&self, stream: &Stream, retention: Option<Retention>) -> Result<(), Error> {
        self.inner.set_retention(stream, retention).await
    }

    async fn maintain(&self) -> Result<Vec<Stream>, Error> {
        self.inner.maintain().await
    }

    async fn older_records(
        &self,
        thread_id: &str,
        after_sequence: Option<u64>,
        records_max: usize,
    ) -> Result<Vec<(Option<Partition>, Record)>, Error> {
        let (mut all, mut after) = (Vec::new(), after_sequence);
        loop {
            let records = self.legacy.thread(thread_id, after, usize::MAX).await?;
            let Some(last) = records.iter().filter_map(|record| record.sequence).max() else {
                return Ok(all);
            };
            after = Some(last);
            all.extend(records.into_iter().map(told));
            if all.len() >= records_max {
                return Ok(all);
            }
        }
    }
}

/// A record of the predecessor as clients are told. Its place is 0 where the predecessor kept none.
fn told(record: LegacyRecord) -> (Option<Partition>, Record) {
    let LegacyRecord { partition, offset, sequence, payload } = record;
    let place =
        partition.unwrap_or_else(|| Partition::new(0).unwrap_or_else(|_| unreachable!("0 is a partition")));
    let alone = LegacyRecord {
        partition: Some(place),
        offset: Some(offset.unwrap_or(Offset::clamped(0))),
        sequence,
        payload,
    };
    let packed = pack(BEFORE_ALL, place, std::slice::from_ref(&alone), None);
    let record = packed.batches.iter().flat_map(batch::records).find_map(Result::ok);
    let record = record.map(|record| Record { sequence: sequence.or(record.sequence), ..record });
    (partition, record.unwrap_or_default())
}

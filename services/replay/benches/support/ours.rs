//! The store under test.
use super::workload::{EPOCH, PARTITIONS, Workload};
use anyhow::{Result, bail};
use dashstream_core::{
    batch::{self, Span},
    position::Partition,
};
use dashstream_proto::log::v1::Batch;
use dashstream_replay::{
    config,
    connection::{Connection, Connections},
    filling::Bounds,
    keys::{Key, Stream, ThreadName},
    redis_store::RedisStore,
    store::{Appended, From, Open, Page, Store},
    threads::After,
};
use futures_util::future::try_join_all;
use std::time::Duration;

const PAGE: Bounds = Bounds::of_bytes(1 << 20);

/// The store, and the connection that it shares with the candidates that are not ours.
pub(crate) struct Ours {
    store: RedisStore,
    stream: Stream,
    first: Partition,
    pub(crate) connection: Connection,
}

impl Ours {
    pub(crate) fn new(url: &str) -> Result<Self> {
        let connections = Connections::new(&config::Redis {
            url: url.parse()?,
            username: None,
            password: None,
            sentinel_username: None,
            sentinel_password: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            timeout: Duration::from_secs(30),
            allow_eviction: false,
        })?;
        let retention = config::Retention {
            age: Duration::from_secs(3_600),
            records_max: 10_000_000,
            bytes_max: 1 << 30,
        };
        let connection = connections.appends.clone();
        let store = RedisStore::new(connections, retention, None);
        let (stream, first) = (Stream::new("dashstream-events")?, Partition::new(0)?);
        Ok(Self { store, stream, first, connection })
    }

    /// Opens all partitions of a store that was cleared, and has the scripts loaded.
    pub(crate) async fn open(&self) -> Result<()> {
        for partition in 0..PARTITIONS {
            let partition = Partition::new(i32::try_from(partition)?)?;
            let open = Open::new(partition, EPOCH);
            let opened = self.store.open(&self.stream, open).await?;
            if opened.epoch != EPOCH || opened.held.is_some() {
                bail!("the store was not empty: {opened:?}");
            }
        }
        Ok(())
    }

    /// Appends everything: `batches` of a partition in a call, from this many callers at a time, each with
    /// partitions of its own. Returns the records stored.
    pub(crate) async fn append(&self, workload: &Workload, batches: usize, callers: usize) -> Result<usize> {
        let own = PARTITIONS.div_ceil(callers);
        let stored = workload.partitions.chunks(own).map(|own| self.append_in_turn(own, batches));
        Ok(try_join_all(stored).await?.into_iter().sum())
    }

    async fn append_in_turn(&self, partitions: &[Vec<Batch>], batches: usize) -> Result<usize> {
        let mut stored = 0;
        for from in (0..partitions[0].len()).step_by(batches) {
            for partition in partitions {
                let call = &partition[from..partition.len().min(from + batches)];
                let outcomes = self.store.append(&self.stream, call).await?;
                let ours = call.iter().zip(outcomes);
                let ours = ours.filter(|(batch, outcome)| {
                    matches!(outcome, Appended::Stored { last, .. } if *last == batch.last())
                });
                stored += ours.map(|(batch, _)| batch.record_count as usize).sum::<usize>();
            }
        }
        Ok(stored)
    }

    /// Reads the first partition from its beginning and says how many records there are.
    pub(crate) async fn read_partition(&self) -> Result<usize> {
        let (mut from, mut records) = (From::Earliest, 0);
        loop {
            let page = self.store.read(&self.stream, self.first, from, PAGE).await?;
            let Page::Batches { epoch, gap: None, batches, at_end, .. } = page else {
                bail!("not a page: {page:?}");
            };
            for batch in &batches {
                records += batch.record_count as usize;
            }
            let Some(last) = batches.last() else { return Ok(records) };
            if at_end {
                return Ok(records);
            }
            from = From::After { epoch, at: Some(last.last()) };
        }
    }

    /// Fails unless the first partition holds exactly these batches' records.
    pub(crate) async fn check(&self, workload: &Workload) -> Result<()> {
        let page =
            self.store.read(&self.stream, self.first, From::Earliest, Bounds::of_bytes(1 << 30)).await?;
        let Page::Batches { batches, .. } = page else { bail!("not a page") };
        let mut wanted = workload.messages.iter().filter(|message| message.partition == self.first.get());
        for stored in &batches {
            batch::check(stored)?;
            for record in batch::records(stored) {
                let record = record?;
                match wanted.next() {
                    Some(message) if message.offset == record.offset && message.payload == record.payload => {
                    }
                    other => bail!("record {} came back where {other:?} was written", record.offset),
                }
            }
        }
        if wanted.next().is_some() {
            bail!("records are missing");
        }
        Ok(())
    }

    /// Reads this many records of each of these threads of the first partition.
    pub(crate) async fn read_threads(&self, threads: &[String], records: usize) -> Result<usize> {
        let (mut read, bounds) = (0, Bounds::of_records(records));
        for thread in threads {
            let name = ThreadName::new(thread)?;
            let page =
                self.store.read_thread(&self.stream, self.first, &name, After::Nothing, bounds).await?;
            let page = page.map_or_else(Vec::new, |page| page.records);
            read += page.iter().filter(|record| record.thread_id == *thread).count();
        }
        Ok(read)
    }

    /// The key of the first partition's log.
    pub(crate) fn log(&self) -> String {
        Key::Log(&self.stream, self.first).to_string()
    }
}

//! The store in memory: for local mode, and the model of what a store does.
use crate::{
    config::Retention,
    keys::Stream,
    store::{Appended, Error, Fit, From, Open, Opened, Page, Raw, Store, fit, page},
};
use dashstream_core::{
    batch::Span,
    position::{Epoch, Link, NextOffset, Partition},
};
use dashstream_proto::log::v1::Batch;
use prost::Message;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// All partitions of all streams.
#[derive(Debug)]
pub struct MemoryStore {
    retention: Retention,
    logs: Mutex<HashMap<(String, Partition), Log>>,
}

/// One partition.
#[derive(Debug)]
struct Log {
    epoch: Epoch,
    held: Link,
    entries: VecDeque<Entry>,
    records: u64,
    bytes: u64,
    written: Instant,
}

#[derive(Debug)]
struct Entry {
    batch: Batch,
    bytes: u64,
    appended: Instant,
}

impl MemoryStore {
    pub fn new(retention: Retention) -> Self {
        Self { retention, logs: Mutex::default() }
    }

    /// The lock is held for moments and never over an await.
    fn logs(&self) -> MutexGuard<'_, HashMap<(String, Partition), Log>> {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let age = self.retention.age;
        logs.retain(|_, log| log.written.elapsed() < age);
        logs
    }

    fn append_one(&self, stream: &Stream, batch: &Batch) -> Result<Appended, Error> {
        let partition = Partition::new(batch.partition).map_err(dashstream_core::batch::Malformed::from)?;
        let mut logs = self.logs();
        let Some(log) = logs.get_mut(&(stream.as_str().to_owned(), partition)) else {
            return Ok(Appended::Epoch { epoch: None, held: None });
        };
        if log.epoch.get() != batch.epoch {
            return Ok(Appended::Epoch { epoch: Some(log.epoch), held: log.held });
        }
        match fit(batch, log.held)? {
            Fit::Done(appended) => Ok(appended),
            Fit::Append(rest) => {
                let last = rest.last();
                log.push(rest, self.retention);
                Ok(Appended::Stored { last })
            }
        }
    }
}

impl Log {
    fn new(epoch: Epoch) -> Self {
        let entries = VecDeque::new();
        Self { epoch, held: None, entries, records: 0, bytes: 0, written: Instant::now() }
    }

    fn push(&mut self, batch: Batch, retention: Retention) {
        let now = Instant::now();
        let bytes = batch.encoded_len() as u64;
        self.held = Some(batch.last());
        self.records += u64::from(batch.record_count);
        self.bytes += bytes;
        self.written = now;
        self.entries.push_back(Entry { batch, bytes, appended: now });
        while self.entries.len() > 1 && self.is_over(retention, now) {
            if let Some(oldest) = self.entries.pop_front() {
                self.records -= u64::from(oldest.batch.record_count);
                self.bytes -= oldest.bytes;
            }
        }
    }

    fn is_over(&self, retention: Retention, now: Instant) -> bool {
        let age = self.entries.front().map_or(Duration::ZERO, |entry| now - entry.appended);
        self.records > retention.records_max || self.bytes > retention.bytes_max || age >= retention.age
    }

    fn belongs_to_an_earlier_life(&self, high_watermark: Option<NextOffset>) -> bool {
        matches!((self.held, high_watermark), (Some(held), Some(mark)) if held.next() > mark)
    }
}

impl Store for MemoryStore {
    async fn open(&self, stream: &Stream, open: Open) -> Result<Opened, Error> {
        let mut logs = self.logs();
        let key = (stream.as_str().to_owned(), open.partition);
        let log = logs.entry(key).or_insert_with(|| Log::new(open.known_epoch.unwrap_or(open.mint)));
        let new_epoch = log.belongs_to_an_earlier_life(open.high_watermark);
        if new_epoch {
            *log = Log::new(open.mint.max(Epoch::new(log.epoch.get() + 1)));
        }
        Ok(Opened { epoch: log.epoch, held: log.held, new_epoch })
    }

    async fn append(&self, stream: &Stream, batches: &[Batch]) -> Result<Vec<Appended>, Error> {
        batches.iter().map(|batch| self.append_one(stream, batch)).collect()
    }

    async fn read(
        &self,
        stream: &Stream,
        partition: Partition,
        from: From,
        bytes_max: u64,
    ) -> Result<Page, Error> {
        let raw = match self.logs().get(&(stream.as_str().to_owned(), partition)) {
            None => Raw::default(),
            Some(log) => {
                let at = match from {
                    From::Earliest => None,
                    From::Latest => log.held,
                    From::After { at, .. } => at,
                };
                let begin = log.entries.partition_point(|entry| Some(entry.batch.last()) <= at);
                let mut bytes = 0;
                let batches = log.entries.range(begin..).take_while(|entry| {
                    bytes += entry.bytes;
                    bytes <= bytes_max || bytes == entry.bytes
                });
                let batches = batches.map(|entry| entry.batch.clone()).collect();
                let earliest = log.entries.front().map(|entry| entry.batch.first());
                Raw { epoch: Some(log.epoch), held: log.held, earliest, batches }
            }
        };
        page(partition, from, raw)
    }
}

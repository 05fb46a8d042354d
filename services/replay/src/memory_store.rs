//! The store in memory: for local mode, and the model of what a store does.
use crate::{
    config::Retention,
    filling::{Bounds, Filling},
    keys::{Stream, ThreadName},
    store::{
        Appended, Description, Error, Fit, From, LastRecord, ListPlace, Open, Opened, Page, Raw, Store, fit,
        from_time, page,
    },
    stored,
    threads::{After, Delta, IndexEntry, Summary, ThreadPage, deltas, plan, stand_in},
};
use dashstream_core::{
    batch::{Malformed, Span},
    position::{Epoch, Link, Offset, Partition},
};
use dashstream_proto::log::v1::{Batch, RunStatus};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

mod schemas;

/// All partitions of all streams.
#[derive(Debug)]
pub struct MemoryStore {
    default: Retention,
    state: Mutex<State>,
    schemas: schemas::Schemas,
}

#[derive(Debug, Default)]
struct State {
    logs: BTreeMap<(String, Partition), Log>,
    retention: HashMap<String, Retention>,
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
    threads: HashMap<ThreadName, Thread>,
}

#[derive(Debug)]
struct Entry {
    batch: Batch,
    bytes: u64,
    appended: Instant,
    appended_ms: i64,
    /// The greatest Kafka time up to its end.
    newest_time_ms: i64,
}

#[derive(Debug)]
struct Thread {
    summary: Summary,
    index: Vec<IndexEntry>,
    whole_state: Option<Batch>,
    active_ms: i64,
    written: Instant,
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl State {
    fn log(&self, stream: &Stream, partition: Partition) -> Option<&Log> {
        self.logs.get(&(stream.as_str().to_owned(), partition))
    }

    fn log_mut(&mut self, stream: &Stream, partition: Partition) -> Option<&mut Log> {
        self.logs.get_mut(&(stream.as_str().to_owned(), partition))
    }
}

impl MemoryStore {
    pub fn new(retention: Retention) -> Self {
        Self { default: retention, state: Mutex::default(), schemas: schemas::Schemas::default() }
    }

    /// What is left of the state now. The lock is held for moments and never over an await.
    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { logs, retention } = &mut *state;
        logs.retain(|(stream, _), log| {
            let age = retention.get(stream).unwrap_or(&self.default).age;
            log.threads.retain(|_, thread| thread.written.elapsed() < age);
            log.written.elapsed() < age
        });
        state
    }

    fn append_one(&self, stream: &Stream, batch: &Batch) -> Result<Appended, Error> {
        let partition = Partition::new(batch.partition).map_err(Malformed::from)?;
        let mut state = self.state();
        let retention = state.retention.get(stream.as_str()).copied().unwrap_or(self.default);
        let Some(log) = state.log_mut(stream, partition) else {
            return Ok(Appended::Epoch { epoch: None, held: None });
        };
        if log.epoch.get() != batch.epoch {
            return Ok(Appended::Epoch { epoch: Some(log.epoch), held: log.held });
        }
        match fit(batch, log.held)? {
            Fit::Done(appended) => Ok(appended),
            Fit::Append(rest) => {
                let last = rest.last();
                let stored_ms = log.push(partition, rest, retention)?;
                Ok(Appended::Stored { last, stored_ms })
            }
        }
    }
}

impl Log {
    fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            held: None,
            entries: VecDeque::new(),
            records: 0,
            bytes: 0,
            written: Instant::now(),
            threads: HashMap::new(),
        }
    }

    /// Returns when that was, milliseconds since 1970.
    fn push(&mut self, partition: Partition, batch: Batch, retention: Retention) -> Result<i64, Malformed> {
        let (now, appended_ms) = (Instant::now(), now_ms());
        let bytes = stored::encode(&batch).len() as u64;
        let mut newest_time_ms = self.entries.back().map_or(0, |entry| entry.newest_time_ms);
        for record in dashstream_core::batch::records(&batch) {
            newest_time_ms = newest_time_ms.max(record?.timestamp_ms.unwrap_or(0));
        }
        for delta in deltas(&batch)? {
            self.add(partition, delta, batch.last(), now, appended_ms);
        }
        self.held = Some(batch.last());
        self.records += u64::from(batch.record_count);
        self.bytes += bytes;
        self.written = now;
        let batch = Batch { stored_ms: Some(appended_ms), ..batch };
        self.entries.push_back(Entry { batch, bytes, appended: now, appended_ms, newest_time_ms });
        while self.entries.len() > 1 && self.is_over(retention, now) {
            if let Some(oldest) = self.entries.pop_front() {
                self.records -= u64::from(oldest.batch.record_count);
                self.bytes -= oldest.bytes;
            }
        }
        Ok(appended_ms)
    }

    fn add(&mut self, partition: Partition, delta: Delta, batch: Offset, now: Instant, active_ms: i64) {
        let epoch = self.epoch;
        let thread = self.threads.entry(delta.name.clone()).or_insert_with(|| Thread {
            summary: Summary {
                name: delta.name.clone(),
                partition,
                epoch,
                tenant_id: delta.tenant_id.clone(),
                status: RunStatus::Unspecified,
                graph_name: String::new(),
                first_time_ms: delta.first_time_ms,
                last_time_ms: 0,
                last: delta.last,
                records: 0,
                errors: 0,
                tokens: 0,
                cost: 0.0,
                whole_state: None,
            },
            index: Vec::new(),
            whole_state: None,
            active_ms,
            written: now,
        });
        let summary = &mut thread.summary;
        if delta.status != RunStatus::Unspecified {
            summary.status = delta.status;
        }
        if !delta.graph_name.is_empty() {
            summary.graph_name = delta.graph_name;
        }
        summary.last_time_ms = delta.last_time_ms;
        summary.last = delta.last;
        summary.records += delta.records;
        summary.errors += delta.errors;
        summary.tokens += delta.tokens;
        summary.cost += delta.cost;
        if let Some(whole) = delta.whole_state {
            summary.whole_state = Some(whole.last());
            thread.whole_state = Some(whole);
        }
        thread.index.push(IndexEntry { batch, sequence: delta.sequence.unwrap_or(0) });
        (thread.active_ms, thread.written) = (active_ms, now);
    }

    fn is_over(&self, retention: Retention, now: Instant) -> bool {
        let age = self.entries.front().map_or(Duration::ZERO, |entry| now - entry.appended);
        self.records > retention.records_max || self.bytes > retention.bytes_max || age >= retention.age
    }

    fn belongs_to_an_earlier_life(&self, open: &Open) -> bool {
        let Some(held) = self.held else { return false };
        open.high_watermark.is_some_and(|mark| held.next() > mark)
            || open.diverged == Some((self.epoch, held))
    }

    fn raw(&self, from: From, bytes_max: u64) -> Raw {
        let begin = match from {
            From::Earliest => 0,
            From::Latest => self.entries.len(),
            From::After { at, .. } => self.entries.partition_point(|entry| Some(entry.batch.last()) <= at),
            From::AtTime(time_ms) => self.entries.partition_point(|entry| entry.newest_time_ms < time_ms),
        };
        let mut bytes = 0;
        let batches = self.entries.range(begin..).take_while(|entry| {
            bytes += entry.bytes;
            bytes <= bytes_max || bytes == entry.bytes
        });
        Raw {
            epoch: Some(self.epoch),
            held: self.held,
            earliest: self.entries.front().map(|entry| entry.batch.first()),
            records: self.records,
            batches: batches.map(|entry| entry.batch.clone()).collect(),
        }
    }

    fn thread_page(
        &self,
        partition: Partition,
        name: &ThreadName,
        after: After,
        bounds: Bounds,
    ) -> Result<Option<ThreadPage>, Malformed> {
        let Some(thread) = self.threads.get(name) else { return Ok(None) };
        if matches!(after, After::Offset { epoch, .. } if epoch != self.epoch) {
            return Ok(None);
        }
        let oldest = self.entries.front().map(|entry| &entry.batch);
        let (batches, trimmed) = plan(&thread.index, oldest.map(Span::last), after);
        let whole = thread.whole_state.as_ref().filter(|_| trimmed);
        let whole = whole.map(|whole| stand_in(whole, oldest.map(Span::first), &name.id(), after));
        let whole_state = whole.transpose()?.flatten();
        let (epoch, records) = (self.epoch, Vec::new());
        let mut page = ThreadPage { partition, epoch, trimmed, whole_state, records, at_end: true };
        let mut filling = Filling::new(bounds);
        for (at, last) in batches.iter().enumerate() {
            let found = self.entries.partition_point(|entry| entry.batch.last() < *last);
            let Some(entry) = self.entries.get(found) else { continue };
            let is_last = at + 1 == batches.len();
            if page.add(&entry.batch, &name.id(), after, is_last, &mut filling)? {
                break;
            }
        }
        Ok(Some(page))
    }
}

impl Store for MemoryStore {
    async fn open(&self, stream: &Stream, open: Open) -> Result<Opened, Error> {
        let mut state = self.state();
        let key = (stream.as_str().to_owned(), open.partition);
        let log = state.logs.entry(key).or_insert_with(|| Log::new(open.known_epoch.unwrap_or(open.mint)));
        if let Some(later) = open.known_epoch.filter(|known| *known > log.epoch) {
            *log = Log::new(later);
        }
        if log.held.is_none() && open.expired.is_some() && open.known_epoch == Some(log.epoch) {
            (log.held, log.written) = (open.expired, Instant::now());
        }
        let new_epoch = log.belongs_to_an_earlier_life(&open);
        if new_epoch {
            *log = Log::new(open.mint.max(Epoch::new(log.epoch.get() + 1)));
        }
        let newest = log.entries.back().map(|entry| LastRecord::of(&entry.batch));
        let last_record = newest.transpose()?.flatten();
        Ok(Opened { epoch: log.epoch, held: log.held, new_epoch, last_record })
    }

    async fn append(&self, stream: &Stream, batches: &[Batch]) -> Result<Vec<Appended>, Error> {
        batches.iter().map(|batch| self.append_one(stream, batch)).collect()
    }

    async fn read(
        &self,
        stream: &Stream,
        partition: Partition,
        from: From,
        bounds: Bounds,
    ) -> Result<Page, Error> {
        let raw = self.state().log(stream, partition).map(|log| log.raw(from, bounds.bytes));
        let mut raw = raw.unwrap_or_default();
        if let From::AtTime(time_ms) = from {
            from_time(&mut raw.batches, time_ms)?;
        }
        page(partition, from, raw)
    }

    async fn read_thread(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
        after: After,
        bounds: Bounds,
    ) -> Result<Option<ThreadPage>, Error> {
        let state = self.state();
        let page = state.log(stream, partition).map(|log| log.thread_page(partition, name, after, bounds));
        Ok(page.transpose()?.flatten())
    }

    async fn list_threads(
        &self,
        stream: &Stream,
        partition: Partition,
        below: Option<&ListPlace>,
        limit: usize,
    ) -> Result<Vec<(ListPlace, Summary)>, Error> {
        let state = self.state();
        let threads = state.log(stream, partition).into_iter().flat_map(|log| log.threads.values());
        let mut listed: Vec<_> = threads
            .map(|thread| {
                let place = ListPlace { active_ms: thread.active_ms, name: thread.summary.name.clone() };
                (place, thread.summary.clone())
            })
            .filter(|(place, _)| {
                below.is_none_or(|below| (place.active_ms, &place.name) < (below.active_ms, &below.name))
            })
            .collect();
        listed.sort_by(|(a, _), (b, _)| (b.active_ms, &b.name).cmp(&(a.active_ms, &a.name)));
        listed.truncate(limit);
        Ok(listed)
    }

    async fn describe_thread(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
    ) -> Result<Option<Summary>, Error> {
        let state = self.state();
        let thread = state.log(stream, partition).and_then(|log| log.threads.get(name));
        Ok(thread.map(|thread| thread.summary.clone()))
    }

    async fn delete_thread(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
    ) -> Result<bool, Error> {
        let mut state = self.state();
        Ok(state.log_mut(stream, partition).is_some_and(|log| log.threads.remove(name).is_some()))
    }

    async fn partitions(&self, stream: &Stream) -> Result<Vec<Partition>, Error> {
        let state = self.state();
        let of_stream = state.logs.keys().filter(|(name, _)| name == stream.as_str());
        Ok(of_stream.map(|(_, partition)| *partition).collect())
    }

    async fn describe_partition(
        &self,
        stream: &Stream,
        partition: Partition,
    ) -> Result<Option<Description>, Error> {
        let state = self.state();
        let Some(log) = state.log(stream, partition) else { return Ok(None) };
        Ok(Some(Description {
            partition,
            epoch: log.epoch,
            earliest: log.entries.front().map(|entry| entry.batch.first()),
            held: log.held,
            records: log.records,
            bytes: log.bytes,
            last_append_ms: log.entries.back().map_or(0, |entry| entry.appended_ms),
            oldest_append_ms: log.entries.front().map_or(0, |entry| entry.appended_ms),
            threads: log.threads.len() as u64,
        }))
    }

    async fn retention(&self, stream: &Stream) -> Result<Option<Retention>, Error> {
        Ok(self.state().retention.get(stream.as_str()).copied())
    }

    async fn set_retention(&self, stream: &Stream, retention: Option<Retention>) -> Result<(), Error> {
        let mut state = self.state();
        match retention {
            Some(retention) => drop(state.retention.insert(stream.as_str().to_owned(), retention)),
            None => drop(state.retention.remove(stream.as_str())),
        }
        Ok(())
    }

    async fn maintain(&self) -> Result<Vec<Stream>, Error> {
        let state = self.state();
        let mut streams: Vec<_> = state.logs.keys().filter_map(|(name, _)| Stream::new(name).ok()).collect();
        streams.dedup();
        Ok(streams)
    }
}

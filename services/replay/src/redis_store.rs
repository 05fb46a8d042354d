//! The store on Redis. One script for each operation on a log, so each is atomic and one round trip.
use crate::{
    config::Retention,
    connection::{Connection, Connections},
    keys::{Key, Stream, ThreadName},
    store::{
        Appended, Description, Error, Fit, From, ListPlace, Open, Opened, Page, Raw, Store, fit, from_time,
        page,
    },
    stored,
    threads::{After, Delta, IndexEntry, Summary, ThreadPage, deltas},
};
use bytes::Bytes;
use dashstream_core::{
    batch::Span,
    position::{Epoch, Link, NextOffset, Offset, Partition},
};
use dashstream_proto::log::v1::{Batch, RunStatus};
use prometheus::IntCounter;
use redis::{
    Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, RedisResult, Script, ServerErrorKind, Value,
};
use std::{sync::Arc, time::Duration};

mod inventory;
mod threads;

use inventory::Inventory;

/// Scripts and connections. A cheap handle.
#[derive(Clone)]
pub struct RedisStore {
    appends: Connection,
    reads: Connection,
    wait: Option<WaitFor>,
    reloads: Option<IntCounter>,
    inventory: Arc<Inventory>,
    append: Script,
    open: Script,
    read: Script,
    seek: Script,
}

/// Replicas of Redis that must have an append before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitFor {
    pub replicas: u32,
    pub timeout: Duration,
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStore").field("inventory", &self.inventory).finish_non_exhaustive()
    }
}

impl RedisStore {
    pub fn new(connections: Connections, retention: Retention, wait: Option<WaitFor>) -> Self {
        Self {
            appends: connections.appends,
            reads: connections.reads,
            wait,
            reloads: None,
            inventory: Arc::new(Inventory::new(retention)),
            append: Script::new(include_str!("append.lua")),
            open: Script::new(include_str!("open.lua")),
            read: Script::new(include_str!("read.lua")),
            seek: Script::new(include_str!("seek.lua")),
        }
    }

    /// Counts the scripts that Redis forgot and that were loaded again.
    #[must_use]
    pub fn counting_reloads(self, reloads: IntCounter) -> Self {
        Self { reloads: Some(reloads), ..self }
    }

    fn reloaded(&self) {
        if let Some(reloads) = &self.reloads {
            reloads.inc();
        }
    }

    fn append_command(&self, stream: &Stream, batch: &Batch) -> Result<Cmd, Error> {
        let partition = partition_of(batch)?;
        let retention = self.inventory.retention(stream);
        let deltas = deltas(batch)?;
        let mut command = redis::cmd("EVALSHA");
        command.arg(self.append.get_hash()).arg(3 + 2 * deltas.len());
        command.arg(Key::Meta(stream, partition).to_string()).arg(Key::Log(stream, partition).to_string());
        command.arg(Key::Directory(stream, partition).to_string());
        for delta in &deltas {
            command.arg(Key::Thread(stream, partition, &delta.name).to_string());
            command.arg(Key::Index(stream, partition, &delta.name).to_string());
        }
        let newest = deltas.iter().map(|delta| delta.last_time_ms).max().unwrap_or(0);
        command
            .arg(batch.epoch)
            .arg(text(batch.link()))
            .arg(batch.last_offset)
            .arg(batch.record_count)
            .arg(stored::encode(batch))
            .arg(millis(retention.age))
            .arg(retention.records_max)
            .arg(retention.bytes_max)
            .arg(newest_time(batch, newest)?)
            .arg(&batch.last_offset.to_be_bytes())
            .arg(deltas.len());
        for delta in &deltas {
            add_delta(&mut command, delta, batch.last());
        }
        Ok(command)
    }

    /// Sends all batches in one pipeline.
    async fn append_all(&self, stream: &Stream, batches: &[Batch]) -> Result<Vec<RedisResult<Reply>>, Error> {
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        for batch in batches {
            pipeline.add_command(self.append_command(stream, batch)?);
        }
        if let Some(WaitFor { replicas, timeout }) = self.wait {
            pipeline.cmd("WAIT").arg(replicas).arg(millis(timeout));
        }
        let mut connection = self.appends.clone().repeating();
        let mut values: Vec<Value> = pipeline.query_async(&mut connection).await?;
        if let Some(WaitFor { replicas, .. }) = self.wait {
            let reached =
                values.pop().map(redis::from_redis_value::<u32>).transpose().map_err(RedisError::from)?;
            if reached.unwrap_or(0) < replicas {
                return Err(Error::NotReplicated { reached: reached.unwrap_or(0), wanted: replicas });
            }
        }
        let reply = |value: Value| Ok(redis::from_redis_value::<Reply>(value.extract_error()?)?);
        Ok(values.into_iter().map(reply).collect())
    }

    /// A script that Redis forgot (a restart, a failover) is loaded and the call repeated. A script that is
    /// unknown has done nothing.
    async fn appended(&self, stream: &Stream, batches: &[Batch]) -> Result<Vec<Reply>, Error> {
        let mut replies = self.append_all(stream, batches).await?;
        if let Some(from) = replies.iter().position(|reply| reply.as_ref().is_err_and(is_unknown_script)) {
            let partition = partition_of(&batches[from])?;
            self.reloaded();
            self.appends.load(&self.append, &Key::Meta(stream, partition).to_string()).await?;
            // From the first that was not known: what follows it depends on it.
            replies.truncate(from);
            replies.extend(self.append_all(stream, &batches[from..]).await?);
        }
        Ok(replies.into_iter().collect::<RedisResult<_>>()?)
    }

    /// Asks what may be asked twice: a connection found broken is made anew and asked again.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let mut answer = command.query_async(&mut self.reads.clone()).await;
        if answer.as_ref().is_err_and(is_broken) {
            answer = command.query_async(&mut self.reads.clone()).await;
        }
        Ok(answer?)
    }

    /// The same for several commands.
    async fn ask_all<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, Error> {
        let mut answer = pipeline.query_async(&mut self.reads.clone()).await;
        if answer.as_ref().is_err_and(is_broken) {
            answer = pipeline.query_async(&mut self.reads.clone()).await;
        }
        Ok(answer?)
    }

    /// Calls a script that may be called twice.
    async fn call<T: FromRedisValue>(
        &self,
        script: &Script,
        key: Key<'_>,
        command: &Cmd,
    ) -> Result<T, Error> {
        let answer = self.ask(command).await;
        match answer {
            Err(Error::Unavailable(error)) if is_unknown_script(&error) => {
                self.reloaded();
                self.reads.load(script, &key.to_string()).await?;
                self.ask(command).await
            }
            answer => answer,
        }
    }

    /// The outcome of one reply; what is held of the batch already is cut off and the rest appended.
    async fn outcome(&self, stream: &Stream, batch: &Batch, reply: Reply) -> Result<Appended, Error> {
        match reply.parse()? {
            Parsed::Stored { last } => Ok(Appended::Stored { last }),
            Parsed::Epoch { epoch, held } => Ok(Appended::Epoch { epoch, held }),
            Parsed::Link { held } => match fit(batch, held)? {
                Fit::Done(appended) => Ok(appended),
                Fit::Append(rest) => {
                    let reply = self.appended(stream, std::slice::from_ref(&rest)).await?.pop();
                    match reply.ok_or_else(|| Error::Corrupt("no reply".into()))?.parse()? {
                        Parsed::Stored { last } => Ok(Appended::Stored { last }),
                        Parsed::Epoch { epoch, held } => Ok(Appended::Epoch { epoch, held }),
                        // Another writer was faster; this one looks again.
                        Parsed::Link { held } => Ok(Appended::Link { epoch: Epoch::new(batch.epoch), held }),
                    }
                }
            },
        }
    }

    /// The position of the first record of a time or later.
    async fn seek(&self, stream: &Stream, partition: Partition, time_ms: i64) -> Result<Option<From>, Error> {
        let meta = Key::Meta(stream, partition);
        let mut command = evalsha(&self.seek, &[meta, Key::Log(stream, partition)]);
        command.arg(time_ms);
        let (epoch, held, before, after_all): (String, String, Bytes, String) =
            self.call(&self.seek, meta, &command).await?;
        let Some(epoch) = parse_epoch(&epoch)? else { return Ok(None) };
        if after_all == "1" {
            return Ok(Some(From::After { epoch, at: parse_link(&held)? }));
        }
        Ok(Some(match before.is_empty() {
            true => From::Earliest,
            false => From::After { epoch, at: Some(stored::decode(before)?.last()) },
        }))
    }

    async fn read_page(
        &self,
        stream: &Stream,
        partition: Partition,
        from: From,
        bytes_max: u64,
    ) -> Result<Raw, Error> {
        // An entry's id is its last offset plus one: what follows `at` ends at `at + 1` or later.
        let (first, bytes_max, epoch) = match from {
            From::Earliest | From::AtTime(_) => ("-".into(), bytes_max.max(1), String::new()),
            From::Latest => ("-".into(), 0, String::new()),
            From::After { epoch, at } => {
                let first = at.map_or_else(|| "-".into(), |at| format!("{}-0", at.get() + 2));
                (first, bytes_max.max(1), epoch.to_string())
            }
        };
        let meta = Key::Meta(stream, partition);
        let mut command = evalsha(&self.read, &[meta, Key::Log(stream, partition)]);
        command.arg(first).arg(bytes_max).arg(epoch);
        let mut answer: Vec<Bytes> = self.call(&self.read, meta, &command).await?;
        if answer.len() < 3 {
            return Err(Error::Corrupt(format!("a page of {} parts", answer.len())));
        }
        let batches = answer.split_off(3).into_iter().map(stored::decode).collect::<Result<Vec<_>, _>>()?;
        let oldest = &answer[2];
        Ok(Raw {
            epoch: parse_epoch(as_text(&answer[0])?)?,
            held: parse_link(as_text(&answer[1])?)?,
            earliest: if oldest.is_empty() { None } else { Some(stored::decode(oldest.clone())?.first()) },
            batches,
        })
    }
}

impl Store for RedisStore {
    async fn open(&self, stream: &Stream, open: Open) -> Result<Opened, Error> {
        self.register(stream, open.partition).await?;
        let (meta, log) = (Key::Meta(stream, open.partition), Key::Log(stream, open.partition));
        let mut mint = open.mint;
        loop {
            let mut command = evalsha(&self.open, &[meta, log, Key::Directory(stream, open.partition)]);
            command
                .arg(open.known_epoch.map_or_else(String::new, |epoch| epoch.to_string()))
                .arg(mint.get())
                .arg(open.high_watermark.map_or_else(String::new, |mark: NextOffset| mark.to_string()))
                .arg(millis(self.inventory.retention(stream).age));
            let (epoch, held, new): (String, String, String) = self.call(&self.open, meta, &command).await?;
            let epoch =
                parse_epoch(&epoch)?.ok_or_else(|| Error::Corrupt("a partition without an epoch".into()))?;
            if new == "mint" {
                mint = Epoch::new(epoch.get() + 1);
                continue;
            }
            return Ok(Opened { epoch, held: parse_link(&held)?, new_epoch: new == "1" });
        }
    }

    async fn append(&self, stream: &Stream, batches: &[Batch]) -> Result<Vec<Appended>, Error> {
        let replies = self.appended(stream, batches).await?;
        let mut outcomes = Vec::with_capacity(batches.len());
        for (batch, reply) in batches.iter().zip(replies) {
            self.inventory.appended(stream, partition_of(batch)?);
            outcomes.push(self.outcome(stream, batch, reply).await?);
        }
        Ok(outcomes)
    }

    async fn read(
        &self,
        stream: &Stream,
        partition: Partition,
        from: From,
        bytes_max: u64,
    ) -> Result<Page, Error> {
        let From::AtTime(time_ms) = from else {
            return page(partition, from, self.read_page(stream, partition, from, bytes_max).await?);
        };
        let Some(behind) = self.seek(stream, partition, time_ms).await? else { return Ok(Page::Seeding) };
        let mut raw = self.read_page(stream, partition, behind, bytes_max).await?;
        from_time(&mut raw.batches, time_ms)?;
        page(partition, from, raw)
    }

    async fn read_thread(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
        after: After,
        records_max: usize,
    ) -> Result<Option<ThreadPage>, Error> {
        self.read_thread_page(stream, partition, name, after, records_max).await
    }

    async fn list_threads(
        &self,
        stream: &Stream,
        partition: Partition,
        below: Option<&ListPlace>,
        limit: usize,
    ) -> Result<Vec<(ListPlace, Summary)>, Error> {
        self.list(stream, partition, below, limit).await
    }

    async fn describe_thread(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
    ) -> Result<Option<Summary>, Error> {
        self.summary(stream, partition, name).await
    }

    async fn delete_thread(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
    ) -> Result<bool, Error> {
        self.delete(stream, partition, name).await
    }

    async fn partitions(&self, stream: &Stream) -> Result<Vec<Partition>, Error> {
        self.known_partitions(stream).await
    }

    async fn describe_partition(
        &self,
        stream: &Stream,
        partition: Partition,
    ) -> Result<Option<Description>, Error> {
        self.description(stream, partition).await
    }

    async fn retention(&self, stream: &Stream) -> Result<Option<Retention>, Error> {
        self.stored_retention(stream).await
    }

    async fn set_retention(&self, stream: &Stream, retention: Option<Retention>) -> Result<(), Error> {
        self.store_retention(stream, retention).await
    }

    async fn maintain(&self) -> Result<Vec<Stream>, Error> {
        self.refresh().await
    }
}

/// The stored form of a position, '' for none.
fn text(link: Link) -> String {
    link.map_or_else(String::new, |offset| offset.to_string())
}

fn partition_of(batch: &Batch) -> Result<Partition, Error> {
    Ok(Partition::new(batch.partition).map_err(dashstream_core::batch::Malformed::from)?)
}

/// The greatest Kafka time in a batch; `at_least` is that of the records that have a thread.
fn newest_time(batch: &Batch, at_least: i64) -> Result<i64, Error> {
    let mut newest = at_least;
    for record in dashstream_core::batch::records(batch) {
        newest = newest.max(record?.timestamp_ms.unwrap_or(0));
    }
    Ok(newest)
}

/// The fourteen arguments of one thread; '' where there is nothing to say.
fn add_delta(command: &mut Cmd, delta: &Delta, batch: Offset) {
    let some = |value: u64| if value == 0 { String::new() } else { value.to_string() };
    let status = if delta.status == RunStatus::Unspecified {
        String::new()
    } else {
        i32::from(delta.status).to_string()
    };
    let entry = IndexEntry { batch, sequence: delta.sequence.unwrap_or(0) };
    command
        .arg(delta.name.as_str())
        .arg(&delta.tenant_id)
        .arg(delta.records)
        .arg(delta.first_time_ms)
        .arg(delta.last_time_ms)
        .arg(status)
        .arg(&delta.graph_name)
        .arg(some(delta.errors))
        .arg(some(delta.tokens))
        .arg(if delta.cost == 0.0 { String::new() } else { delta.cost.to_string() })
        .arg(&entry.to_bytes())
        .arg(delta.last.get());
    match &delta.whole_state {
        Some(whole) => command.arg(whole.last_offset).arg(stored::encode(whole)),
        None => command.arg("").arg(""),
    };
}

/// A call of a script on a partition's keys.
fn evalsha(script: &Script, keys: &[Key<'_>]) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(script.get_hash()).arg(keys.len());
    for key in keys {
        command.arg(key.to_string());
    }
    command
}

fn is_broken(error: &RedisError) -> bool {
    error.is_connection_dropped() || error.is_io_error()
}

fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn as_text(bytes: &Bytes) -> Result<&str, Error> {
    std::str::from_utf8(bytes).map_err(|error| Error::Corrupt(error.to_string()))
}

fn parse_epoch(text: &str) -> Result<Option<Epoch>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(|value| Some(Epoch::new(value))).map_err(|_| Error::Corrupt(format!("epoch {text:?}")))
}

fn parse_link(text: &str) -> Result<Link, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let corrupt = || Error::Corrupt(format!("offset {text:?}"));
    Offset::new(text.parse().map_err(|_| corrupt())?).map(Some).map_err(|_| corrupt())
}

/// What append.lua returns.
#[derive(Debug)]
struct Reply {
    outcome: String,
    epoch: String,
    held: String,
}

#[derive(Debug)]
enum Parsed {
    Stored { last: Offset },
    Epoch { epoch: Option<Epoch>, held: Link },
    Link { held: Link },
}

impl FromRedisValue for Reply {
    fn from_redis_value(value: Value) -> Result<Self, redis::ParsingError> {
        let (outcome, epoch, held) = redis::from_redis_value(value)?;
        Ok(Self { outcome, epoch, held })
    }
}

impl Reply {
    fn parse(&self) -> Result<Parsed, Error> {
        let held = parse_link(&self.held)?;
        match (self.outcome.as_str(), held) {
            ("stored", Some(last)) => Ok(Parsed::Stored { last }),
            ("epoch", held) => Ok(Parsed::Epoch { epoch: parse_epoch(&self.epoch)?, held }),
            ("link", held) => Ok(Parsed::Link { held }),
            (other, _) => Err(Error::Corrupt(format!("outcome {other:?}"))),
        }
    }
}

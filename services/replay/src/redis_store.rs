//! The store on Redis. One script for each operation on a log, so each is atomic and one round trip.
use crate::{
    config::Retention,
    connection::{Connection, Connections},
    filling::Bounds,
    keys::{Key, Stream, ThreadName},
    store::{Appended, Description, Error, From, LastRecord, ListPlace, Open, Opened, Page, Store},
    stored,
    threads::{After, Summary, ThreadPage},
};
use bytes::Bytes;
use dashstream_core::position::{Epoch, NextOffset, Offset, Partition};
use dashstream_proto::log::v1::Batch;
use prometheus::IntCounter;
use redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, Script, ServerErrorKind};
use std::{collections::BTreeSet, sync::Arc, time::Duration};

mod append;
mod inventory;
mod reads;
mod reply;
mod schemas;
mod threads;

use inventory::Inventory;
use reply::{as_text, parse_epoch, parse_link, text};

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
    note: Script,
    schema: Script,
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
            note: Script::new(include_str!("note.lua")),
            schema: Script::new(include_str!("schema.lua")),
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

    async fn open_log(&self, stream: &Stream, open: Open) -> Result<Opened, Error> {
        let (meta, log) = (Key::Meta(stream, open.partition), Key::Log(stream, open.partition));
        let mut mint = open.mint;
        loop {
            let mut command = evalsha(&self.open, &[meta, log, Key::Directory(stream, open.partition)]);
            command
                .arg(open.known_epoch.map_or_else(String::new, |epoch| epoch.to_string()))
                .arg(mint.get())
                .arg(open.high_watermark.map_or_else(String::new, |mark: NextOffset| mark.to_string()))
                .arg(millis(self.inventory.retention(stream).age))
                .arg(open.diverged.map_or_else(String::new, |(epoch, _)| epoch.to_string()))
                .arg(text(open.diverged.map(|(_, at): (Epoch, Offset)| at)))
                .arg(text(open.expired));
            let (epoch, held, new, newest): (String, String, String, Bytes) =
                self.call(&self.open, meta, &command).await?;
            let epoch =
                parse_epoch(&epoch)?.ok_or_else(|| Error::Corrupt("a partition without an epoch".into()))?;
            if new == "mint" {
                mint = Epoch::new(epoch.get() + 1);
                continue;
            }
            let last_record =
                if newest.is_empty() { None } else { LastRecord::of(&stored::decode(newest)?)? };
            return Ok(Opened { epoch, held: parse_link(&held)?, new_epoch: new == "1", last_record });
        }
    }
}

impl Store for RedisStore {
    async fn open(&self, stream: &Stream, open: Open) -> Result<Opened, Error> {
        self.hear(stream).await?;
        let opened = self.open_log(stream, open).await?;
        self.note(stream, &BTreeSet::from([open.partition])).await?;
        Ok(opened)
    }

    async fn append(&self, stream: &Stream, batches: &[Batch]) -> Result<Vec<Appended>, Error> {
        let outcomes = self.outcomes(stream, batches).await;
        // One that failed may have been done.
        for batch in batches {
            self.inventory.appended(stream, partition_of(batch)?);
        }
        outcomes
    }

    async fn read(
        &self,
        stream: &Stream,
        partition: Partition,
        from: From,
        bounds: Bounds,
    ) -> Result<Page, Error> {
        self.read_log(stream, partition, from, bounds).await
    }

    async fn read_thread(
        &self,
        stream: &Stream,
        partition: Partition,
        name: &ThreadName,
        after: After,
        bounds: Bounds,
    ) -> Result<Option<ThreadPage>, Error> {
        self.read_thread_page(stream, partition, name, after, bounds).await
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

fn partition_of(batch: &Batch) -> Result<Partition, Error> {
    Ok(Partition::new(batch.partition).map_err(dashstream_core::batch::Malformed::from)?)
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

//! What is kept, and of which partitions: a stream's own data, apart from its partitions' logs.
use super::{RedisStore, as_text, evalsha, millis, parse_epoch, parse_link};
use crate::{
    config::Retention,
    keys::{Key, Stream},
    store::{Description, Error},
};
use bytes::Bytes;
use dashstream_core::position::{Offset, Partition};
use futures_util::future::try_join_all;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Retention that was set lives this long beyond the last use of its stream.
const RETENTION_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// Partitions that one call of the script notes: Lua unpacks no more than a few thousand arguments.
const NOTED_AT_ONCE: usize = 1_000;

/// What this process knows of the streams that it serves.
#[derive(Debug)]
pub(super) struct Inventory {
    default: Retention,
    streams: Mutex<HashMap<String, InUse>>,
}

#[derive(Debug, Default)]
struct InUse {
    /// What is kept, where it was set.
    retention: Option<Retention>,
    /// Partitions appended to since the last refresh.
    appended: BTreeSet<Partition>,
}

impl Inventory {
    pub(super) fn new(default: Retention) -> Self {
        Self { default, streams: Mutex::default() }
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<String, InUse>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept of a stream, as last heard.
    pub(super) fn retention(&self, stream: &Stream) -> Retention {
        self.streams().get(stream.as_str()).and_then(|in_use| in_use.retention).unwrap_or(self.default)
    }

    /// A stream is in use.
    pub(super) fn used(&self, stream: &Stream) {
        let mut streams = self.streams();
        if !streams.contains_key(stream.as_str()) {
            streams.insert(stream.as_str().to_owned(), InUse::default());
        }
    }

    /// A partition is in use.
    pub(super) fn appended(&self, stream: &Stream, partition: Partition) {
        let mut streams = self.streams();
        match streams.get_mut(stream.as_str()) {
            Some(in_use) => drop(in_use.appended.insert(partition)),
            None => drop(streams.entry(stream.as_str().to_owned()).or_default().appended.insert(partition)),
        }
    }

    fn heard(&self, stream: &Stream, retention: Option<Retention>) {
        self.streams().entry(stream.as_str().to_owned()).or_default().retention = retention;
    }

    fn names(&self) -> Vec<Stream> {
        self.streams().keys().filter_map(|name| Stream::new(name).ok()).collect()
    }

    fn take_appended(&self, stream: &Stream) -> BTreeSet<Partition> {
        self.streams()
            .get_mut(stream.as_str())
            .map_or_else(BTreeSet::new, |in_use| std::mem::take(&mut in_use.appended))
    }
}

impl RedisStore {
    /// Learns what is kept of a stream.
    pub(super) async fn hear(&self, stream: &Stream) -> Result<Option<Retention>, Error> {
        let retention = self.stored_retention(stream).await?;
        self.inventory.heard(stream, retention);
        Ok(retention)
    }

    /// Lists partitions for exactly as long as there is anything of them. Their keys lie in slots of their own,
    /// so this can't be part of an append; they are asked instead how long they live.
    pub(super) async fn note(&self, stream: &Stream, partitions: &BTreeSet<Partition>) -> Result<(), Error> {
        let deadline = async |partition: Partition| {
            let mut command = redis::cmd("PEXPIRETIME");
            command.arg(Key::Meta(stream, partition).to_string());
            Ok::<(i64, Partition), Error>((self.ask(&command).await?, partition))
        };
        let deadlines = try_join_all(partitions.iter().map(|partition| deadline(*partition))).await?;
        // Negative for one that is gone already.
        let kept: Vec<_> = deadlines.into_iter().filter(|(deadline, _)| *deadline > 0).collect();
        let list = Key::Partitions(stream);
        for kept in kept.chunks(NOTED_AT_ONCE) {
            let mut command = evalsha(&self.note, &[list]);
            for (deadline, partition) in kept {
                command.arg(*deadline).arg(partition.get());
            }
            let _done: i64 = self.call(&self.note, list, &command).await?;
        }
        Ok(())
    }

    pub(super) async fn refresh(&self) -> Result<Vec<Stream>, Error> {
        let streams = self.inventory.names();
        for stream in &streams {
            let retention = self.hear(stream).await?;
            let appended = self.inventory.take_appended(stream);
            if let Err(error) = self.note(stream, &appended).await {
                for partition in appended {
                    self.inventory.appended(stream, partition);
                }
                return Err(error);
            }
            if retention.is_some() && !appended.is_empty() {
                self.prolong_retention(stream).await?;
            }
        }
        Ok(streams)
    }

    pub(super) async fn known_partitions(&self, stream: &Stream) -> Result<Vec<Partition>, Error> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(Key::Partitions(stream).to_string()).arg(&["0", "-1"]);
        let members: Vec<i32> = self.ask(&command).await?;
        let mut partitions: Vec<_> = members.into_iter().filter_map(|id| Partition::new(id).ok()).collect();
        partitions.sort_unstable();
        Ok(partitions)
    }

    pub(super) async fn description(
        &self,
        stream: &Stream,
        partition: Partition,
    ) -> Result<Option<Description>, Error> {
        let mut pipeline = redis::pipe();
        let fields = pipeline.cmd("HMGET").arg(Key::Meta(stream, partition).to_string());
        fields.arg(&["e", "l", "n", "b", "t", "a"]);
        pipeline.cmd("XRANGE").arg(Key::Log(stream, partition).to_string()).arg(&["-", "+", "COUNT", "1"]);
        pipeline.cmd("ZCARD").arg(Key::Directory(stream, partition).to_string());
        type Entries = Vec<(String, HashMap<String, Bytes>)>;
        let answer: (Vec<Option<Bytes>>, Entries, u64) = self.ask_all(&pipeline).await?;
        let (meta, entries, threads) = answer;
        let field = |at: usize| meta.get(at).and_then(Option::as_ref).map(as_text).transpose();
        let number =
            |at: usize| Ok::<_, Error>(field(at)?.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0));
        let Some(epoch) = parse_epoch(field(0)?.unwrap_or_default())? else { return Ok(None) };
        let oldest = entries.first().and_then(|(_, entry)| entry.get("d")).cloned();
        let earliest: Option<Offset> = oldest
            .map(|batch| {
                crate::stored::decode(batch).map(|batch| dashstream_core::batch::Span::first(&batch))
            })
            .transpose()?;
        Ok(Some(Description {
            partition,
            epoch,
            earliest,
            held: parse_link(field(1)?.unwrap_or_default())?,
            records: number(2)?,
            bytes: number(3)?,
            last_append_ms: number(5)? as i64,
            oldest_append_ms: number(4)? as i64,
            threads,
        }))
    }

    pub(super) async fn stored_retention(&self, stream: &Stream) -> Result<Option<Retention>, Error> {
        let mut command = redis::cmd("HMGET");
        command.arg(Key::Retention(stream).to_string()).arg(&["age", "records", "bytes"]);
        let set: (Option<u64>, Option<u64>, Option<u64>) = self.ask(&command).await?;
        Ok(match set {
            (Some(age_ms), Some(records_max), Some(bytes_max)) => {
                Some(Retention { age: Duration::from_millis(age_ms), records_max, bytes_max })
            }
            _ => None,
        })
    }

    pub(super) async fn store_retention(
        &self,
        stream: &Stream,
        retention: Option<Retention>,
    ) -> Result<(), Error> {
        let key = Key::Retention(stream).to_string();
        let mut pipeline = redis::pipe();
        match retention {
            None => pipeline.cmd("UNLINK").arg(&key).ignore(),
            Some(Retention { age, records_max, bytes_max }) => {
                let set = pipeline.cmd("HSET").arg(&key).arg("age").arg(millis(age));
                set.arg("records").arg(records_max).arg("bytes").arg(bytes_max).ignore();
                pipeline.cmd("PEXPIRE").arg(&key).arg(millis(RETENTION_LIFETIME)).ignore()
            }
        };
        self.ask_all::<()>(&pipeline).await?;
        self.inventory.heard(stream, retention);
        Ok(())
    }

    async fn prolong_retention(&self, stream: &Stream) -> Result<(), Error> {
        let mut command = redis::cmd("PEXPIRE");
        command.arg(Key::Retention(stream).to_string()).arg(millis(RETENTION_LIFETIME));
        self.ask(&command).await
    }
}

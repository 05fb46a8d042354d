//! The store on Redis. One script for each operation, so each is atomic and one round trip.
use crate::{
    config::Retention,
    keys::{Key, Stream},
    store::{Appended, Error, Fit, From, Open, Opened, Page, Raw, Store, fit, page},
};
use bytes::Bytes;
use dashstream_core::{
    batch::Span,
    position::{Epoch, Link, NextOffset, Offset, Partition},
};
use dashstream_proto::log::v1::Batch;
use prost::Message;
use redis::{
    Cmd, ErrorKind, RedisError, RedisResult, Script, ServerErrorKind, Value,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use std::time::Duration;

/// The stored form of a position, '' for none.
fn text(link: Link) -> String {
    link.map_or_else(String::new, |offset| offset.to_string())
}

/// Scripts and connections. Appends and reads have a connection each, so that neither waits for the other's
/// answers.
#[derive(Clone)]
pub struct RedisStore {
    appends: ConnectionManager,
    reads: ConnectionManager,
    retention: Retention,
    append: Script,
    open: Script,
    read: Script,
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStore").field("retention", &self.retention).finish_non_exhaustive()
    }
}

impl RedisStore {
    /// Connects when first used, and again whenever a connection is lost.
    ///
    /// # Errors
    /// When `url` is not one of Redis.
    pub fn new(url: &str, timeout: Duration, retention: Retention) -> Result<Self, RedisError> {
        let client = redis::Client::open(url)?;
        let config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(timeout))
            .set_connection_timeout(Some(timeout.min(Duration::from_secs(2))))
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(20));
        Ok(Self {
            appends: ConnectionManager::new_lazy_with_config(client.clone(), config.clone())?,
            reads: ConnectionManager::new_lazy_with_config(client, config)?,
            retention,
            append: Script::new(include_str!("append.lua")),
            open: Script::new(include_str!("open.lua")),
            read: Script::new(include_str!("read.lua")),
        })
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// When there is none.
    pub async fn ping(&self) -> Result<(), Error> {
        let mut connection = self.reads.clone();
        redis::cmd("PING").query_async::<()>(&mut connection).await?;
        Ok(())
    }

    fn append_command(&self, stream: &Stream, batch: &Batch) -> Cmd {
        let partition =
            Partition::new(batch.partition).unwrap_or_else(|_| unreachable!("checked on arrival"));
        let mut command = evalsha(&self.append, stream, partition);
        command
            .arg(batch.epoch)
            .arg(text(batch.link()))
            .arg(batch.last_offset)
            .arg(batch.record_count)
            .arg(batch.encode_to_vec())
            .arg(millis(self.retention.age))
            .arg(self.retention.records_max)
            .arg(self.retention.bytes_max);
        command
    }

    /// Sends all batches in one pipeline.
    async fn append_all(&self, stream: &Stream, batches: &[Batch]) -> Result<Vec<RedisResult<Reply>>, Error> {
        let mut pipeline = redis::pipe();
        pipeline.ignore_errors();
        for batch in batches {
            pipeline.add_command(self.append_command(stream, batch));
        }
        let mut connection = self.appends.clone();
        Ok(pipeline.query_async(&mut connection).await?)
    }

    /// A script that Redis forgot (a restart, a failover) is loaded and the call repeated. A script that is
    /// unknown has done nothing.
    async fn appended(&self, stream: &Stream, batches: &[Batch]) -> Result<Vec<Reply>, Error> {
        let mut replies = self.append_all(stream, batches).await?;
        if replies.iter().any(|reply| reply.as_ref().is_err_and(is_unknown_script)) {
            self.append.prepare_invoke().load_async(&mut self.appends.clone()).await?;
            // From the first that was not known: what follows it depends on it.
            let from =
                replies.iter().position(|reply| reply.as_ref().is_err_and(is_unknown_script)).unwrap_or(0);
            replies.truncate(from);
            replies.extend(self.append_all(stream, &batches[from..]).await?);
        }
        Ok(replies.into_iter().collect::<RedisResult<_>>()?)
    }

    /// Calls a script that may be called twice: a connection found broken is made anew and asked again.
    async fn call<T: redis::FromRedisValue>(&self, script: &Script, command: &Cmd) -> Result<T, Error> {
        let mut connection = self.reads.clone();
        let mut answer = command.query_async(&mut connection).await;
        if answer.as_ref().is_err_and(|error: &RedisError| error.is_connection_dropped()) {
            answer = command.query_async(&mut connection).await;
        }
        match answer {
            Err(error) if is_unknown_script(&error) => {
                script.prepare_invoke().load_async(&mut connection).await?;
                Ok(command.query_async(&mut connection).await?)
            }
            answer => Ok(answer?),
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
}

impl Store for RedisStore {
    async fn open(&self, stream: &Stream, open: Open) -> Result<Opened, Error> {
        let mut command = evalsha(&self.open, stream, open.partition);
        command
            .arg(open.known_epoch.map_or_else(String::new, |epoch| epoch.to_string()))
            .arg(open.mint.get())
            .arg(open.high_watermark.map_or_else(String::new, |mark: NextOffset| mark.to_string()))
            .arg(millis(self.retention.age));
        let (epoch, held, new): (String, String, String) = self.call(&self.open, &command).await?;
        let epoch =
            parse_epoch(&epoch)?.ok_or_else(|| Error::Corrupt("a partition without an epoch".into()))?;
        Ok(Opened { epoch, held: parse_link(&held)?, new_epoch: new == "1" })
    }

    async fn append(&self, stream: &Stream, batches: &[Batch]) -> Result<Vec<Appended>, Error> {
        let replies = self.appended(stream, batches).await?;
        let mut outcomes = Vec::with_capacity(batches.len());
        for (batch, reply) in batches.iter().zip(replies) {
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
        // An entry's id is its last offset plus one: what follows `at` ends at `at + 1` or later.
        let (first, bytes_max, epoch) = match from {
            From::Earliest => ("-".into(), bytes_max.max(1), String::new()),
            From::Latest => ("-".into(), 0, String::new()),
            From::After { epoch, at } => {
                let first = at.map_or_else(|| "-".into(), |at| format!("{}-0", at.get() + 2));
                (first, bytes_max.max(1), epoch.to_string())
            }
        };
        let mut command = evalsha(&self.read, stream, partition);
        command.arg(first).arg(bytes_max).arg(epoch);
        let mut answer: Vec<Bytes> = self.call(&self.read, &command).await?;
        if answer.len() < 3 {
            return Err(Error::Corrupt(format!("a page of {} parts", answer.len())));
        }
        let batches = answer.split_off(3).into_iter().map(decode).collect::<Result<Vec<_>, _>>()?;
        let oldest = if answer[2].is_empty() { None } else { Some(decode(answer[2].clone())?.first()) };
        let raw = Raw {
            epoch: parse_epoch(as_text(&answer[0])?)?,
            held: parse_link(as_text(&answer[1])?)?,
            earliest: oldest,
            batches,
        };
        page(partition, from, raw)
    }
}

/// A call of a script on a partition's keys.
fn evalsha(script: &Script, stream: &Stream, partition: Partition) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command
        .arg(script.get_hash())
        .arg(2)
        .arg(Key::Meta(stream, partition).to_string())
        .arg(Key::Log(stream, partition).to_string());
    command
}

fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn decode(batch: Bytes) -> Result<Batch, Error> {
    Batch::decode(batch).map_err(|error| Error::Corrupt(error.to_string()))
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

impl redis::FromRedisValue for Reply {
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

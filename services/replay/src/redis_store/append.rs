//! Appends: one call of the script for each batch, those that came together in one pipeline.
use super::{
    RedisStore, WaitFor, is_unknown_script, millis, partition_of,
    reply::{Parsed, Reply, text},
};
use crate::{
    keys::{Key, Stream},
    store::{Appended, Error, Fit, fit},
    stored,
    threads::{Delta, IndexEntry, deltas},
};
use dashstream_core::{
    batch::Span,
    position::{Epoch, Offset},
};
use dashstream_proto::log::v1::{Batch, RunStatus};
use redis::{Cmd, RedisError, RedisResult, Value};

impl RedisStore {
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
    pub(super) async fn appended(&self, stream: &Stream, batches: &[Batch]) -> Result<Vec<Reply>, Error> {
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

    /// The outcomes of batches, in order. Where one was held in part, those behind it in the same pipeline were
    /// refused because the rest of it was not there yet: they are sent again.
    pub(super) async fn outcomes(&self, stream: &Stream, batches: &[Batch]) -> Result<Vec<Appended>, Error> {
        let mut outcomes = Vec::with_capacity(batches.len());
        while let Some(left) = batches.get(outcomes.len()..).filter(|left| !left.is_empty()) {
            let replies = self.appended(stream, left).await?;
            if replies.is_empty() {
                return Err(Error::Corrupt("no reply".into()));
            }
            for (batch, reply) in left.iter().zip(replies) {
                let (outcome, in_part) = self.outcome(stream, batch, reply).await?;
                outcomes.push(outcome);
                if in_part {
                    break;
                }
            }
        }
        Ok(outcomes)
    }

    /// The outcome of one reply; what is held of the batch already is cut off and the rest appended. Says whether
    /// that was so.
    async fn outcome(&self, stream: &Stream, batch: &Batch, reply: Reply) -> Result<(Appended, bool), Error> {
        let held = match reply.parse()? {
            Parsed::Link { held } => held,
            reply @ (Parsed::Stored { .. } | Parsed::Epoch { .. }) => {
                return Ok((appended(batch, reply), false));
            }
        };
        let rest = match fit(batch, held)? {
            Fit::Done(outcome) => return Ok((outcome, false)),
            Fit::Append(rest) => rest,
        };
        let reply = self.appended(stream, std::slice::from_ref(&rest)).await?.pop();
        let reply = reply.ok_or_else(|| Error::Corrupt("no reply".into()))?;
        Ok((appended(batch, reply.parse()?), true))
    }
}

/// What a reply says of a batch as it was sent.
fn appended(batch: &Batch, reply: Parsed) -> Appended {
    match reply {
        Parsed::Stored { last, stored_ms } => Appended::Stored { last, stored_ms },
        Parsed::Epoch { epoch, held } => Appended::Epoch { epoch, held },
        Parsed::Link { held } => Appended::Link { epoch: Epoch::new(batch.epoch), held },
    }
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

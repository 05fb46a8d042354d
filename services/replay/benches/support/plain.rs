//! What Redis and the client can do at best: payloads as plain strings, and nothing to find them by.
use super::workload::Message;
use anyhow::Result;
use bytes::Bytes;
use dashstream_replay::connection::Connection;
use futures_util::future::try_join_all;
use redis::{Pipeline, Value};
use std::collections::HashMap;

const PAGE_RECORDS: usize = 1_000;

fn key(partition: i32, offset: u64) -> String {
    format!("plain:{partition}:{offset}")
}

/// SETs the payloads, this many in a pipeline, from this many callers at a time.
pub(crate) async fn set(
    connection: &Connection,
    messages: &[Message],
    pipelined: usize,
    callers: usize,
) -> Result<usize> {
    let each = messages.len().div_ceil(callers).next_multiple_of(pipelined);
    let written = messages.chunks(each).map(|messages| set_in_turn(connection, messages, pipelined));
    Ok(try_join_all(written).await?.into_iter().sum())
}

async fn set_in_turn(connection: &Connection, messages: &[Message], pipelined: usize) -> Result<usize> {
    let mut written = 0;
    for messages in messages.chunks(pipelined) {
        let mut pipeline = Pipeline::with_capacity(messages.len());
        for message in messages {
            pipeline.cmd("SET").arg(key(message.partition, message.offset)).arg(&message.payload[..]);
        }
        let answers: Vec<Value> = pipeline.query_async(&mut connection.clone()).await?;
        written += answers.iter().filter(|answer| **answer == Value::Okay).count();
    }
    Ok(written)
}

/// GETs the first records of the first partition, a thousand in a pipeline.
pub(crate) async fn get(connection: &Connection, records: usize) -> Result<usize> {
    let mut found = 0;
    for from in (0..records).step_by(PAGE_RECORDS) {
        let mut pipeline = Pipeline::with_capacity(PAGE_RECORDS);
        for offset in from..records.min(from + PAGE_RECORDS) {
            pipeline.cmd("GET").arg(key(0, offset as u64));
        }
        let values: Vec<Option<Bytes>> = pipeline.query_async(&mut connection.clone()).await?;
        found += values.into_iter().flatten().count();
    }
    Ok(found)
}

/// Reads the entries of a log as they lie there, and says how many records they are said to have.
pub(crate) async fn xrange(connection: &Connection, log: &str, entries_max: usize) -> Result<usize> {
    let (mut from, mut records) = ("-".to_owned(), 0);
    loop {
        let mut range = redis::cmd("XRANGE");
        range.arg(log).arg(&from).arg("+").arg("COUNT").arg(entries_max);
        let entries: Vec<(String, HashMap<String, Bytes>)> =
            range.query_async(&mut connection.clone()).await?;
        for (_, fields) in &entries {
            let count = fields.get("n").map_or("", |count| std::str::from_utf8(count).unwrap_or(""));
            records += count.parse::<usize>()?;
        }
        let Some((last, _)) = entries.last() else { return Ok(records) };
        from = format!("({last}");
    }
}

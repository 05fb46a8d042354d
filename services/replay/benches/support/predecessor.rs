//! The predecessor's layout: a string and an entry of a sorted set for each record, by partition and again by
//! thread. Its trimming is left out: sets of 10,000 members are not trimmed, and looking at their size costs
//! little.
use super::workload::{BATCH_RECORDS, Message, Workload};
use anyhow::Result;
use bytes::Bytes;
use dashstream_replay::{connection::Connection, legacy};
use futures_util::future::try_join_all;
use redis::{Cmd, Pipeline, Value};

const LIFETIME_SECONDS: u64 = 3_600;
const PAGE_RECORDS: usize = 1_000;

pub(crate) struct Predecessor {
    connection: Connection,
    prefix: String,
}

/// A record and its value by thread.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    message: &'a Message,
    thread_value: Vec<u8>,
}

/// What it has to store, made before the clock runs.
pub(crate) fn rows(workload: &Workload) -> Vec<Row<'_>> {
    workload.messages.iter().map(row).collect()
}

fn row(message: &Message) -> Row<'_> {
    let mut thread_value = message.partition.to_le_bytes().to_vec();
    thread_value.extend(message.offset.to_le_bytes());
    thread_value.extend(&message.payload);
    Row { message, thread_value }
}

impl Predecessor {
    pub(crate) fn new(connection: Connection) -> Self {
        let brokers = "kafka-0.kafka:9092,kafka-1.kafka:9092,kafka-2.kafka:9092";
        let group = "websocket-server-v4";
        let namespace = legacy::namespace(Some("prod"), "dashstream-events", group, brokers);
        Self { connection, prefix: legacy::prefix(&namespace) }
    }

    /// Six commands for each record, as the predecessor sends them.
    fn commands(&self, row: &Row<'_>) -> [Cmd; 6] {
        let Message { partition, offset, thread_id, sequence, payload } = row.message;
        let prefix = &self.prefix;
        let key = format!("{prefix}:partition:{partition}:offset:{offset}");
        let index = format!("{prefix}:partition:{partition}:offsets");
        let thread_key = format!("{prefix}:thread:{thread_id}:seq:{sequence}");
        let thread_index = format!("{prefix}:thread:{thread_id}:sequences");
        let [set, add, expire] = triple(&key, payload, &index, *offset);
        let [thread_set, thread_add, thread_expire] =
            triple(&thread_key, &row.thread_value, &thread_index, *sequence);
        [set, add, expire, thread_set, thread_add, thread_expire]
    }

    /// Writes the rows, those of 64 records in a pipeline, from this many callers at a time.
    pub(crate) async fn write(&self, rows: &[Row<'_>], callers: usize) -> Result<usize> {
        let each = rows.len().div_ceil(callers).next_multiple_of(BATCH_RECORDS);
        let written = rows.chunks(each).map(|rows| self.write_in_turn(rows));
        Ok(try_join_all(written).await?.into_iter().sum())
    }

    async fn write_in_turn(&self, rows: &[Row<'_>]) -> Result<usize> {
        let mut written = 0;
        for rows in rows.chunks(BATCH_RECORDS) {
            let mut pipeline = Pipeline::with_capacity(6 * rows.len());
            for command in rows.iter().flat_map(|row| self.commands(row)) {
                pipeline.add_command(command);
            }
            let answers: Vec<Value> = pipeline.query_async(&mut self.connection.clone()).await?;
            written += answers.chunks(6).filter(|answers| is_written(answers)).count();
        }
        Ok(written)
    }

    /// Writes the rows with each command awaited.
    pub(crate) async fn write_one_by_one(&self, rows: &[Row<'_>]) -> Result<usize> {
        let mut written = 0;
        for row in rows {
            let mut answers = Vec::with_capacity(6);
            for command in self.commands(row) {
                answers.push(command.query_async(&mut self.connection.clone()).await?);
            }
            written += usize::from(is_written(&answers));
        }
        Ok(written)
    }

    /// Reads the first partition from its beginning and says how many records there are.
    pub(crate) async fn read_partition(&self) -> Result<usize> {
        let index = format!("{}:partition:0:offsets", self.prefix);
        let (mut next, mut records) = (0_u64, 0);
        loop {
            let (keys, values) = self.page(&index, next, PAGE_RECORDS).await?;
            records += values;
            let Some(last) = keys.last() else { return Ok(records) };
            next = last.rsplit(':').next().unwrap_or_default().parse::<u64>()? + 1;
            if keys.len() < PAGE_RECORDS {
                return Ok(records);
            }
        }
    }

    /// Reads this many records of each of these threads.
    pub(crate) async fn read_threads(&self, threads: &[String], records: usize) -> Result<usize> {
        let mut read = 0;
        for thread in threads {
            let index = format!("{}:thread:{thread}:sequences", self.prefix);
            read += self.page(&index, 0, records).await?.1;
        }
        Ok(read)
    }

    /// Keys from a score on, and how many of them have a value.
    async fn page(&self, index: &str, from: u64, records: usize) -> Result<(Vec<String>, usize)> {
        let mut range = redis::cmd("ZRANGEBYSCORE");
        range.arg(index).arg(from).arg("+inf").arg("LIMIT").arg(0).arg(records);
        let keys: Vec<String> = range.query_async(&mut self.connection.clone()).await?;
        if keys.is_empty() {
            return Ok((keys, 0));
        }
        let mut get = redis::cmd("MGET");
        get.arg(&keys);
        let values: Vec<Option<Bytes>> = get.query_async(&mut self.connection.clone()).await?;
        let values = values.into_iter().flatten().count();
        Ok((keys, values))
    }
}

fn triple(key: &str, value: &[u8], index: &str, score: u64) -> [Cmd; 3] {
    let (mut set, mut add, mut expire) = (redis::cmd("SETEX"), redis::cmd("ZADD"), redis::cmd("EXPIRE"));
    set.arg(key).arg(LIFETIME_SECONDS).arg(value);
    add.arg(index).arg(score as f64).arg(key);
    expire.arg(index).arg(LIFETIME_SECONDS);
    [set, add, expire]
}

fn is_written(answers: &[Value]) -> bool {
    let (set, done) = (Value::Okay, Value::Int(1));
    answers == [set.clone(), done.clone(), done.clone(), set, done.clone(), done]
}

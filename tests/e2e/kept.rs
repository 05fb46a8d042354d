//! The gauges of what is kept, compared with what lies in Redis.
use dashstream_core::position::Partition;
use dashstream_proto::log::v1::Batch;
use dashstream_replay::keys::{Key, Stream};
use dashstream_tests::{Kind, Redis, Service, Writer, eventually};
use prost::Message;
use redis::{FromRedisValue, aio::MultiplexedConnection};
use std::{collections::HashMap, time::Duration};

const RETENTION: Duration = Duration::from_secs(15);
const RECORDS_MAX: u64 = 200;
/// The gauges are counted every five seconds.
const COUNTED: Duration = Duration::from_secs(12);
/// How old a gauge of time may be, seconds: five, and some for a busy machine.
const STALE: i64 = 8;
const WRITTEN: i32 = 3;
/// Opened, and never written.
const EMPTY: i32 = 7;

async fn ask<T: FromRedisValue>(connection: &mut MultiplexedConnection, words: &[&str]) -> T {
    let answer = redis::cmd(words[0]).arg(&words[1..]).query_async(connection).await;
    answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// What a partition's keys say, by the names of the gauges. The head is not asked: the log itself is counted.
async fn truth(connection: &mut MultiplexedConnection, partition: i32) -> Vec<(&'static str, Option<i64>)> {
    let stream = Stream::new("runs").expect("a name");
    let partition = Partition::new(partition).expect("in range");
    let log = Key::Log(&stream, partition).to_string();
    let directory = Key::Directory(&stream, partition).to_string();
    type Entry = (String, HashMap<String, Vec<u8>>);
    let entries: Vec<Entry> = ask(connection, &["XRANGE", &log, "-", "+"]).await;
    let (seconds, _): (i64, i64) = ask(connection, &["TIME"]).await;
    let number = |entry: &Entry, field: &str| -> i64 {
        std::str::from_utf8(&entry.1[field]).expect("text").parse().expect("a number")
    };
    let first = entries.first();
    let batch = first.map(|entry| Batch::decode(&entry.1["d"][..]).expect("a batch"));
    let age = RETENTION.as_secs() as i64;
    vec![
        ("earliest_offset", batch.map(|batch| batch.first_offset as i64)),
        (
            "last_offset",
            entries.last().map(|(id, _)| id.replace("-0", "").parse::<i64>().expect("an id") - 1),
        ),
        ("kept_records", Some(entries.iter().map(|entry| number(entry, "n")).sum())),
        ("kept_bytes", Some(entries.iter().map(|entry| entry.1["d"].len() as i64).sum())),
        ("last_append_milliseconds", entries.last().map(|entry| number(entry, "t"))),
        ("headroom_seconds", first.map(|entry| (number(entry, "t") / 1_000 + age - seconds).max(0))),
        ("known_threads", Some(ask(connection, &["ZCARD", &directory]).await)),
    ]
}

fn gauge(metrics: &str, name: &str, labels: &str) -> Option<i64> {
    let series = format!("dashstream_replay_{name}{{{labels}}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&series)).map(|text| text.parse().expect("a number"))
}

/// Waits until every gauge of every partition says what Redis does.
async fn agree(service: &Service, redis: &Redis, partitions: &[i32]) -> HashMap<(i32, &'static str), i64> {
    let mut connection = redis.connection().await;
    eventually("the gauges say what Redis does", COUNTED, async || {
        let (_, metrics) = service.get("/metrics").await?;
        let known = gauge(&metrics, "known_partitions", "stream=\"runs\"");
        if known != Some(partitions.len() as i64) {
            return Err(format!("{known:?} partitions are known"));
        }
        let mut told = HashMap::new();
        for partition in partitions {
            for (name, truth) in truth(&mut connection, *partition).await {
                let gauge = gauge(&metrics, name, &format!("partition=\"{partition}\",stream=\"runs\""));
                let same = match (truth, gauge) {
                    // It goes down all the time.
                    (Some(truth), Some(gauge)) if name == "headroom_seconds" => {
                        (truth - 1..=truth + STALE).contains(&gauge)
                    }
                    (truth, gauge) => truth == gauge,
                };
                if !same {
                    return Err(format!("{name} of {partition} is {gauge:?}, and in truth {truth:?}"));
                }
                told.extend(gauge.map(|gauge| ((*partition, name), gauge)));
            }
        }
        Ok(told)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_gauge_of_what_is_kept_says_what_lies_in_redis() {
    let redis = Redis::start(&[]).await;
    let service = Service::start(
        Kind::Replay,
        &[
            ("REDIS_URL", &redis.url()),
            ("REPLAY_STORE", "redis"),
            ("REPLAY_RETENTION", &format!("{}s", RETENTION.as_secs())),
            ("REPLAY_RETENTION_RECORDS", &RECORDS_MAX.to_string()),
        ],
    );
    service.ready().await;
    Writer::new(&service.address(), "runs", EMPTY).write_until(0).await;
    let mut writers: Vec<_> = (0..WRITTEN).map(|id| Writer::new(&service.address(), "runs", id)).collect();
    let all: Vec<_> = (0..WRITTEN).chain([EMPTY]).collect();

    // Each partition as long as its number says, so that none is taken for another.
    for (extra, writer) in (0..).zip(&mut writers) {
        writer.write_until(100 + extra).await;
    }
    let told = agree(&service, &redis, &all).await;
    assert_eq!((told[&(2, "kept_records")], told[&(2, "earliest_offset")]), (102, 0));
    assert_eq!((told[&(2, "known_threads")], told[&(EMPTY, "kept_records")]), (5, 0));
    assert!(!told.contains_key(&(EMPTY, "last_offset")), "what is unknown is absent");

    for (extra, writer) in (0..).zip(&mut writers) {
        writer.write_until(1_000 + extra).await;
    }
    let told = agree(&service, &redis, &all).await;
    let kept = told[&(1, "kept_records")];
    assert!(kept <= RECORDS_MAX as i64 && told[&(1, "earliest_offset")] == 1_001 - kept, "{told:?}");

    eventually("Redis is empty", RETENTION * 2, async || {
        let size: u64 = ask(&mut redis.connection().await, &["DBSIZE"]).await;
        if size == 0 { Ok(()) } else { Err(format!("{size} keys are left")) }
    })
    .await;
    agree(&service, &redis, &[]).await;
    let (_, metrics) = service.get("/metrics").await.expect("an answer");
    let left: Vec<_> = metrics.lines().filter(|line| line.contains("partition=\"")).collect();
    assert!(left.is_empty(), "{left:?}");
}

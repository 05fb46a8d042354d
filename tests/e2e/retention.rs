//! What is kept vanishes by itself.
use dashstream_core::position::Partition;
use dashstream_kit::grpc::channel_to;
use dashstream_proto::replay::v1::{
    Retention, SetRetentionRequest, replay_service_client::ReplayServiceClient,
};
use dashstream_replay::keys::{Key, Stream, ThreadName};
use dashstream_tests::{Feed, Kind, Redis, Service, Shape, Stack, Watcher, Writer, eventually};
use redis::{FromRedisValue, aio::MultiplexedConnection};
use std::time::Duration;

const RETENTION: Duration = Duration::from_secs(4);
/// Nobody sees a key that has expired, but DBSIZE counts it until Redis has taken it away, which it does ten
/// times a second.
const CYCLE: Duration = Duration::from_millis(300);
const TIMEOUT: Duration = Duration::from_secs(30);

async fn ask<T: FromRedisValue>(connection: &mut MultiplexedConnection, words: &[&str]) -> T {
    let answer = redis::cmd(words[0]).arg(&words[1..]).query_async(connection).await;
    answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

/// When a key vanishes, milliseconds since 1970.
async fn end_of(connection: &mut MultiplexedConnection, key: Key<'_>) -> i64 {
    ask(connection, &["PEXPIRETIME", &key.to_string()]).await
}

/// Waits until Redis holds `left` keys, which it must once its own clock says `end`, and a cycle.
async fn holds_by(connection: &mut MultiplexedConnection, left: u64, end: i64) {
    eventually("what was written is gone", TIMEOUT, async || {
        let mut look = redis::pipe();
        look.atomic().cmd("DBSIZE").cmd("TIME");
        let (size, (seconds, micros)): (u64, (i64, i64)) =
            look.query_async(connection).await.map_err(|error| error.to_string())?;
        let late = seconds * 1_000 + micros / 1_000 - end;
        assert!(size > left || late >= 0, "{size} keys are left {} ms too early", -late);
        assert!(size <= left || late <= CYCLE.as_millis() as i64, "{size} keys are left after {late} ms");
        if size == left { Ok(()) } else { Err(format!("{size} keys are left")) }
    })
    .await;
}

/// Checks that all keys of a partition end when the newest batch that they tell of is due. Says when the
/// partition is gone.
async fn ends_as_due(connection: &mut MultiplexedConnection, stream: &Stream, partition: i32) -> i64 {
    let partition = Partition::new(partition).expect("in range");
    let age = RETENTION.as_millis() as i64;
    let (meta, log) = (Key::Meta(stream, partition), Key::Log(stream, partition).to_string());
    let appended: i64 = ask(connection, &["HGET", &meta.to_string(), "a"]).await;
    for key in [meta, Key::Log(stream, partition), Key::Directory(stream, partition)] {
        assert_eq!(end_of(connection, key).await, appended + age, "{key}");
    }
    let directory = Key::Directory(stream, partition).to_string();
    let names: Vec<String> = ask(connection, &["ZRANGE", &directory, "0", "-1"]).await;
    assert!(names.len() > 1, "{names:?}");
    for name in names {
        let name = ThreadName::parse(&name).expect("a name");
        let index = Key::Index(stream, partition, &name);
        let last: Vec<u8> = ask(connection, &["GETRANGE", &index.to_string(), "-16", "-9"]).await;
        let last = u64::from_be_bytes(last.try_into().expect("eight bytes"));
        let entry = format!("{}-0", last + 1);
        type Entry = (String, std::collections::HashMap<String, Vec<u8>>);
        let found: Vec<Entry> = ask(connection, &["XRANGE", &log, &entry, &entry]).await;
        let time = String::from_utf8(found[0].1["t"].clone()).expect("text");
        let due = time.parse::<i64>().expect("a time") + age;
        for key in [index, Key::Thread(stream, partition, &name)] {
            assert_eq!(end_of(connection, key).await, due, "{key}");
        }
    }
    appended + age
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_one_retention_time_after_the_last_write() {
    let settings = vec![(Kind::Replay, "REPLAY_RETENTION", format!("{}s", RETENTION.as_secs()))];
    let stack = Stack::start(Shape { settings, ..Shape::default() }).await;
    let gateways: Vec<_> = stack.gateway.iter().map(Service::address).collect();
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 6, 20);
    let mut watcher = Watcher::new();
    feed.send(2_000).await;
    watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= 2_000).await;

    let mut connection = stack.redis.connection().await;
    let stream = Stream::new(&stack.topic).expect("a name");
    let mut end = 0;
    for partition in feed.log().await.into_keys() {
        end = end.max(ends_as_due(&mut connection, &stream, partition).await);
    }
    // The list lies in another slot, and hears of appends every second. It is never late.
    eventually("the list of partitions ends with the last of them", RETENTION, async || {
        let list = end_of(&mut connection, Key::Partitions(&stream)).await;
        assert!(list <= end, "the list would be left for {} ms", list - end);
        if list == end { Ok(()) } else { Err(format!("{} ms too early", end - list)) }
    })
    .await;
    holds_by(&mut connection, 0, end).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retention_that_was_set_is_all_that_outlives_what_was_written_under_it() {
    let redis = Redis::start(&[]).await;
    let service = Service::start(Kind::Replay, &[("REDIS_URL", &redis.url()), ("REPLAY_STORE", "redis")]);
    service.ready().await;
    let mut client = ReplayServiceClient::new(channel_to(&service.address()).expect("an address"));
    let mut set = async |retention: Option<Retention>| {
        let request = SetRetentionRequest { stream: "runs".into(), retention, reason: "a test".into() };
        client.set_retention(request).await.expect("an answer");
    };
    let age_ms = RETENTION.as_millis() as u64;
    set(Some(Retention { age_ms, records_max: 200, bytes_max: 1 << 30 })).await;
    let mut writers: Vec<_> = (0..3).map(|id| Writer::new(&service.address(), "runs", id)).collect();
    for writer in &mut writers {
        writer.write_until(500).await;
    }

    let mut connection = redis.connection().await;
    let stream = Stream::new("runs").expect("a name");
    let mut end = 0;
    for partition in 0..3 {
        end = end.max(ends_as_due(&mut connection, &stream, partition).await);
    }
    holds_by(&mut connection, 1, end).await;
    let key = Key::Retention(&stream).to_string();
    let left: i64 = ask(&mut connection, &["PTTL", &key]).await;
    let days = Duration::from_millis(left.try_into().expect("it ends some time")).as_secs() / 86_400;
    assert!((29..=30).contains(&days), "{days} days");
    set(None).await;
    assert_eq!(ask::<u64>(&mut connection, &["DBSIZE"]).await, 0);
}

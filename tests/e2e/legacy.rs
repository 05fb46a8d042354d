//! What the predecessor left in Redis is read exactly, and nothing is written.
use dashstream_core::position::{Epoch, Link, Offset, Partition};
use dashstream_kit::Kit;
use dashstream_replay::legacy::{Legacy, LegacyRecord, Metrics, namespace, pack, prefix};
use dashstream_tests::{Redis, eventually};
use redis::aio::MultiplexedConnection;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Every key that the predecessor wrote for the golden messages and for some awkward thread ids.
pub(super) fn capture() -> Value {
    serde_json::from_str(include_str!("../../proto/vectors/legacy-redis.json")).expect("JSON")
}

pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} is a text in {value}"))
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
    (0..hex.len()).step_by(2).map(digit).collect()
}

/// The strings of a list of keys, without the prefix.
pub(super) fn rows(keys: &Value) -> BTreeMap<&str, Vec<u8>> {
    let strings = keys.as_array().expect("a list").iter().filter(|key| text(key, "type") == "string");
    strings.map(|key| (text(key, "key"), bytes(text(key, "value_hex")))).collect()
}

struct Left {
    redis: Redis,
    connection: MultiplexedConnection,
    kit: Kit,
    legacy: Legacy<MultiplexedConnection>,
    prefix: String,
}

impl Left {
    /// A Redis in which the predecessor was.
    async fn start() -> Self {
        let redis = Redis::start(&[]).await;
        let (connection, kit) = (redis.connection().await, Kit::embedded("replay"));
        let namespace = namespace(Some("prod"), "t8", "websocket-server-v4", "127.0.0.1:37603");
        let (capture, prefix) = (capture(), prefix(&namespace));
        assert_eq!((text(&capture, "resume_namespace"), text(&capture, "prefix")), (&*namespace, &*prefix));
        let metrics = Metrics::register(&kit.registry).expect("the names are free");
        let legacy = Legacy::new(redis.connection().await, prefix.clone(), metrics);
        Self { redis, connection, kit, legacy, prefix }
    }

    async fn load(&mut self, keys: &Value) {
        load(&mut self.connection, &self.prefix, keys).await;
    }

    /// As the predecessor wrote a record of a partition.
    async fn write(&mut self, partition: Partition, offsets: &[u64], has_expired: impl Fn(u64) -> bool) {
        let mut pipeline = redis::pipe();
        let index = format!("{}:partition:{partition}:offsets", self.prefix);
        for at in offsets {
            let key = format!("{}:partition:{partition}:offset:{at}", self.prefix);
            if !has_expired(*at) {
                pipeline.cmd("SETEX").arg(&key).arg(600).arg(at.to_string()).ignore();
            }
            pipeline.cmd("ZADD").arg(&index).arg(*at as f64).arg(key).ignore();
        }
        pipeline.exec_async(&mut self.connection).await.expect("redis answers");
    }

    async fn flush(&mut self) {
        redis::cmd("FLUSHALL").exec_async(&mut self.connection).await.expect("redis answers");
    }

    /// All of a partition, in pages of about `bytes_max`.
    async fn partition(
        &self,
        partition: Partition,
        after: Link,
        before: Option<Offset>,
        bytes_max: u64,
    ) -> Vec<LegacyRecord> {
        let (mut all, mut at) = (Vec::new(), after);
        loop {
            let page = self.legacy.partition(partition, at, before, bytes_max).await.expect("redis answers");
            let Some(last) = page.last() else { return all };
            assert!(last.offset > at, "pages go on");
            at = last.offset;
            all.extend(page);
        }
    }

    /// All of a thread, in pages of `records_max`.
    async fn thread(&self, thread_id: &str, records_max: usize) -> Vec<LegacyRecord> {
        let (mut all, mut at) = (Vec::new(), None);
        loop {
            let page = self.legacy.thread(thread_id, at, records_max).await.expect("redis answers");
            let Some(last) = page.last() else { return all };
            assert!(last.sequence > at && page.len() <= records_max, "pages go on");
            at = last.sequence;
            all.extend(page);
        }
    }

    /// Counts by `kind/form`, and `collisions`.
    fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for family in self.kit.registry.gather() {
            if !family.name().starts_with("dashstream_replay_legacy_") {
                continue;
            }
            for metric in family.get_metric() {
                let label = |name: &str| {
                    metric
                        .get_label()
                        .iter()
                        .find(|label| label.name() == name)
                        .map(|label| label.value().to_owned())
                };
                let name = label("kind")
                    .zip(label("form"))
                    .map_or("collisions".into(), |(kind, form)| format!("{kind}/{form}"));
                counts.insert(name, metric.get_counter().get_value() as u64);
            }
        }
        counts
    }
}

/// Writes keys as the capture has them, one by one.
pub(super) async fn load(connection: &mut MultiplexedConnection, prefix: &str, keys: &Value) {
    for key in keys.as_array().expect("a list") {
        let name = format!("{prefix}{}", text(key, "key"));
        let mut command = redis::cmd(if text(key, "type") == "string" { "SETEX" } else { "ZADD" });
        command.arg(name);
        if text(key, "type") == "string" {
            command.arg(600).arg(bytes(text(key, "value_hex")));
        } else {
            for member in key["members"].as_array().expect("members") {
                let [member, score] = [&member[0], &member[1]].map(|part| part.as_str().expect("a text"));
                command.arg(score).arg(format!("{prefix}{member}"));
            }
        }
        command.exec_async(connection).await.expect("redis answers");
    }
}

fn partition(number: i32) -> Partition {
    Partition::new(number).expect("in range")
}

fn offset(value: u64) -> Offset {
    Offset::new(value).expect("in range")
}

/// Ids of threads and where their rows are.
pub(super) fn threads() -> Vec<(String, String)> {
    let capture = capture();
    let long = |start: &str| {
        let rows = rows(&capture["keys"]);
        let key = rows.into_keys().find(|key| key.starts_with(start)).expect("rows of the long id");
        key.split(":seq:").next().expect("a name").to_owned()
    };
    [
        ("thread:with:colons".into(), ":thread:b64_dGhyZWFkOndpdGg6Y29sb25z".into()),
        ("other".into(), ":thread:other".into()),
        ("a".repeat(200), long(":thread:b64_YWFh")),
        ("plain_Thread-1".into(), ":thread:plain_Thread-1".into()),
        ("ünïcode".into(), ":thread:b64_w7xuw69jb2Rl".into()),
        ("b64_fake".into(), ":thread:b64_fake".into()),
        ("h_0123456789abcdef".into(), ":thread:h_0123456789abcdef".into()),
        (" padded ".into(), ":thread:padded".into()),
        ("x".repeat(257), long(":thread:b64_eHh4")),
    ]
    .into()
}

/// The records of the rows under a name, in order of their sequences.
pub(super) fn expected(rows: &BTreeMap<&str, Vec<u8>>, name: &str) -> Vec<LegacyRecord> {
    let head = format!("{name}:seq:");
    let mut records = Vec::new();
    for (key, value) in rows.iter().filter(|(key, _)| key.starts_with(&head)) {
        let partition = i32::from_le_bytes(value[..4].try_into().expect("4 bytes"));
        let at = i64::from_le_bytes(value[4..12].try_into().expect("8 bytes"));
        records.push(LegacyRecord {
            partition: Some(Partition::new(partition).expect("in range")),
            offset: Some(Offset::from_kafka(at).expect("in range")),
            sequence: Some(key[head.len()..].parse().expect("a sequence")),
            payload: value[12..].to_vec().into(),
        });
    }
    records.sort_by_key(|record| record.sequence);
    records
}

#[tokio::test]
async fn all_that_the_predecessor_wrote_is_read_byte_for_byte_and_nothing_is_written() {
    let mut left = Left::start().await;
    let capture = capture();
    left.load(&capture["keys"]).await;
    redis::cmd("CONFIG").arg("RESETSTAT").exec_async(&mut left.connection).await.expect("redis answers");
    let rows = rows(&capture["keys"]);

    for (number, count) in [(3, 20), (5, 18)] {
        for bytes_max in [1, 1_000, 1 << 20] {
            let found = left.partition(partition(number), None, None, bytes_max).await;
            assert_eq!(found.len(), count);
            for (at, record) in (0..).zip(&found) {
                assert_eq!((record.partition, record.offset), (Some(partition(number)), Some(offset(at))));
                assert_eq!(record.payload, rows[&*format!(":partition:{number}:offset:{at}")]);
            }
        }
    }
    for (id, name) in threads() {
        let expected = expected(&rows, &name);
        assert!(!expected.is_empty(), "{id} has rows");
        for records_max in [1, 5, 1_000] {
            assert_eq!(left.thread(&id, records_max).await, expected, "{id}");
        }
    }
    let sequences: Vec<_> =
        left.thread("thread:with:colons", 100).await.into_iter().map(|record| record.sequence).collect();
    let greatest = [Some((1 << 53) + 1), Some(i64::MAX as u64)];
    assert_eq!(sequences, (1..=16).map(Some).chain(greatest).collect::<Vec<_>>());
    assert_eq!(left.partition(partition(4), None, None, 1_000).await, []);
    assert_eq!(left.thread("nobody", 10).await, []);
    assert_eq!(left.thread(" ", 10).await, []);

    assert_eq!(commands(&mut left.connection).await, ["config|resetstat", "info", "mget", "zrangebyscore"]);
    let counts = left.counts();
    assert_eq!(counts["collisions"], 0);
    assert!(counts["partition/raw"] >= 20 + 18 + 2, "one for each page: {counts:?}");
    assert!(counts["thread/raw"] > 0 && counts["thread/b64"] > 0, "{counts:?}");
    assert!(!counts.contains_key("thread/hashed"), "{counts:?}");
}

/// Names of the commands that were executed since the last reset.
async fn commands(connection: &mut MultiplexedConnection) -> Vec<String> {
    // Asked twice: an answer does not have its own question.
    let mut answer = String::new();
    for _ in 0..2 {
        answer = redis::cmd("INFO").arg("commandstats").query_async(connection).await.expect("redis answers");
    }
    let names = answer.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.split(':').next());
    names.map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
}

#[tokio::test]
async fn a_thread_is_read_under_its_older_names_and_each_record_once() {
    let mut left = Left::start().await;
    let capture = capture();
    let all = expected(&rows(&capture["keys"]), &threads()[0].1);
    left.load(&capture["keys_before_b64"]["keys"]).await;
    for records_max in [1, 7, 1_000] {
        assert_eq!(left.thread("thread:with:colons", records_max).await, all);
    }
    assert!(left.counts()["thread/hashed"] > 0);

    left.load(&capture["keys"]).await;
    for records_max in [1, 7, 1_000] {
        assert_eq!(left.thread("thread:with:colons", records_max).await, all, "under two names");
    }
    assert_eq!(left.counts()["collisions"], 0);

    // The oldest rows have neither an encoded name nor a position in front of the payload.
    left.flush().await;
    let payload = expected(&rows(&capture["keys"]), ":thread:b64_w7xuw69jb2Rl").remove(0).payload;
    let index = format!("{}:thread:ünïcode:sequences", left.prefix);
    let key = format!("{}:thread:ünïcode:seq:1", left.prefix);
    let mut pipeline = redis::pipe();
    pipeline.cmd("SET").arg(&key).arg(&payload[..]).cmd("ZADD").arg(index).arg(1).arg(&key);
    pipeline.exec_async(&mut left.connection).await.expect("redis answers");
    let unknown = LegacyRecord { partition: None, offset: None, sequence: Some(1), payload };
    assert_eq!(left.thread("ünïcode", 10).await, [unknown]);
}

#[tokio::test]
async fn rows_of_another_thread_under_the_same_name_are_left_out_and_counted() {
    let mut left = Left::start().await;
    let capture = capture();
    left.load(&capture["keys"]).await;
    // The name of `thread:with:colons` is also an id.
    assert_eq!(left.thread("b64_dGhyZWFkOndpdGg6Y29sb25z", 100).await, []);
    assert_eq!(left.counts()["collisions"], 18);

    left.flush().await;
    left.load(&capture["keys_before_b64"]["keys"]).await;
    assert_eq!(left.thread("h_f855df7581c92419", 100).await, []);
    assert_eq!(left.counts()["collisions"], 36);
}

#[tokio::test]
async fn offsets_are_exact_beyond_what_a_double_can_tell() {
    let mut left = Left::start().await;
    let around = |middle: u64, by: u64| middle - by..=middle + by;
    let greatest = i64::MAX as u64 - 700..=i64::MAX as u64;
    let offsets: Vec<u64> = around(1 << 53, 300)
        .chain(around(10_u64.pow(16), 30))
        .chain(around(10_u64.pow(18), 300))
        .chain(greatest)
        .collect();
    left.write(partition(0), &offsets, |_| false).await;
    for bytes_max in [1_000, 100_000, u64::MAX] {
        let found = left.partition(partition(0), None, None, bytes_max).await;
        let found: Vec<_> = found.iter().map(|record| record.offset.expect("an offset").get()).collect();
        assert_eq!(found, offsets, "{bytes_max} bytes");
    }
    for pair in [10, 299, 300, 301, 302, 303, 631, 900, 1_700].map(|at| &offsets[at..at + 4]) {
        let found = left.partition(partition(0), Some(offset(pair[0])), Some(offset(pair[3])), 1_000).await;
        let found: Vec<_> = found.iter().map(|record| (record.offset, &record.payload[..])).collect();
        let expected = [pair[1], pair[2]].map(|at| (Some(offset(at)), at.to_string()));
        assert_eq!(found, expected.each_ref().map(|(at, payload)| (*at, payload.as_bytes())));
    }
}

#[tokio::test]
async fn expired_rows_are_passed_over_and_become_gaps() {
    let mut left = Left::start().await;
    let capture = capture();
    left.load(&capture["keys"]).await;
    let gone = [":partition:3:offset:5", ":partition:3:offset:6", ":partition:3:offset:19"];
    let gone = gone.map(|key| format!("{}{key}", left.prefix));
    redis::cmd("DEL").arg(&gone[..]).exec_async(&mut left.connection).await.expect("redis answers");
    let found = left.partition(partition(3), None, None, 1 << 20).await;
    assert_eq!(found.len(), 17);
    let packed = pack(Epoch::new(1), partition(3), &found, None);
    let gaps: Vec<_> = packed.gaps.iter().map(|gap| (gap.first_offset, gap.last_offset)).collect();
    assert_eq!(gaps, [(5, 6)]);
    assert_eq!(packed.batches.iter().map(|batch| batch.record_count).sum::<u32>(), 18);

    // The index outlives its rows: nothing but expired ones for many pages is not the end.
    let offsets: Vec<u64> = (0..3_000).collect();
    left.write(partition(7), &offsets, |at| at != 2_900).await;
    for bytes_max in [1, 1 << 20] {
        let found = left.partition(partition(7), None, None, bytes_max).await;
        assert_eq!(found.iter().map(|record| record.offset).collect::<Vec<_>>(), [Some(offset(2_900))]);
    }
    assert_eq!(left.partition(partition(7), None, Some(offset(2_900)), 1_000).await, []);
}

#[tokio::test]
async fn a_redis_that_does_not_answer_is_an_error_and_not_an_end() {
    let left = Left::start().await;
    left.redis.kill();
    assert!(left.legacy.partition(partition(3), None, None, 1_000).await.is_err());
    assert!(left.legacy.thread("other", None, 10).await.is_err());
}

#[tokio::test]
async fn rows_that_were_moved_to_a_cluster_are_read_too() {
    let node = Redis::start(&["--cluster-enabled", "yes"]).await;
    let mut connection = node.connection().await;
    let slots =
        redis::cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(0).arg(16_383).exec_async(&mut connection).await;
    slots.expect("redis answers");
    let up = async || {
        let info: String =
            redis::cmd("CLUSTER").arg("INFO").query_async(&mut node.connection().await).await?;
        if info.contains("cluster_state:ok") { Ok(()) } else { Err(anyhow::anyhow!(info)) }
    };
    eventually("the cluster is up", Duration::from_secs(20), up).await;
    let (capture, prefix) = (capture(), "dashstream-replay:moved".to_owned());
    load(&mut connection, &prefix, &capture["keys"]).await;

    let cluster = redis::cluster::ClusterClient::new([node.url()]).expect("a url");
    let cluster = cluster.get_async_connection().await.expect("connect to the cluster");
    let metrics = Metrics::register(&Kit::embedded("replay").registry).expect("the names are free");
    let legacy = Legacy::new(cluster, prefix, metrics);
    let (id, name) = threads().remove(0);
    let expected = expected(&rows(&capture["keys"]), &name);
    assert_eq!(legacy.thread(&id, None, 100).await.expect("the cluster answers"), expected);
    let found = legacy.partition(partition(3), None, None, 1 << 20).await.expect("the cluster answers");
    assert_eq!(found.len(), 20);
}

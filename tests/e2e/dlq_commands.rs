//! What an operator does about records that do not decode, with the binary `dashstream`.
use dashstream_core::{
    codec,
    dead_letter::{RETRY_COUNT, RETRY_OF, Sha256},
};
use dashstream_ctl::{source, topics::Names};
use dashstream_kafka::Connection;
use dashstream_proto::log::v1::GapReason;
use dashstream_tests::{Feed, Kind, Service, Shape, Stack, Stop, Watcher, dashstream, eventually};
use serde_json::Value;
use std::{fs, time::Duration};

const PATIENCE: Duration = Duration::from_secs(60);
/// The first byte says protobuf; the rest is none.
const BAD: &[u8] = b"\x00\xff\xff\xffcanary";

/// An operator's terminal, set up for one system.
struct Terminal(Vec<(&'static str, String)>);

impl Terminal {
    fn of(stack: &Stack) -> Self {
        let ingest: Vec<_> = stack.ingest.iter().map(Service::address).collect();
        Self(vec![
            ("KAFKA_BROKERS", stack.kafka.brokers()),
            ("KAFKA_TOPIC", stack.topic.clone()),
            ("INGEST_TARGETS", ingest.join(",")),
            ("DASHSTREAM_GATEWAY", stack.gateway[0].grpc_address()),
            ("USER", "robin".to_owned()),
        ])
    }

    async fn run(&self, args: &[&str]) -> (bool, String) {
        let settings: Vec<_> = self.0.iter().map(|(name, value)| (*name, value.as_str())).collect();
        dashstream(args, &settings).await
    }

    /// What a command says that does what it is told.
    async fn does(&self, args: &[&str]) -> String {
        let (done, text) = self.run(args).await;
        assert!(done, "{args:?}:\n{text}");
        text
    }

    /// What a command says that can't.
    async fn refuses(&self, args: &[&str]) -> String {
        let (done, text) = self.run(args).await;
        assert!(!done, "{args:?}:\n{text}");
        text
    }

    /// The letters that `dlq list` tells of, once there are `count`.
    async fn letters(&self, count: usize, args: &[&str]) -> Vec<Value> {
        let args = [&["dlq", "list", "--format", "json"], args].concat();
        eventually(&format!("{count} letters"), PATIENCE, async || {
            let text = self.does(&args).await;
            let letters: Vec<Value> =
                text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
            if letters.len() == count { Ok(letters) } else { Err(text) }
        })
        .await
    }
}

/// A file's path as an argument.
fn path(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).to_str().expect("a path that is text").to_owned()
}

fn sound() -> Vec<u8> {
    let mut runs = dashstream_ctl::runs::Runs::new(5, 1, "fixed-", 1_700_000_000_000_000);
    codec::encode(&runs.next().expect("runs never end").message, usize::MAX)
}

/// The last part of what a command says of a new record: `topic/partition/offset`.
fn place_said(text: &str) -> String {
    let coordinates = text.trim().rsplit(' ').next().unwrap_or_default();
    let mut parts = coordinates.rsplit('/');
    let (offset, partition) = (parts.next().expect("an offset"), parts.next().expect("a partition"));
    format!("{partition}:{offset}")
}

async fn record(stack: &Stack, place: &str) -> source::Record {
    let (partition, offset) = place.split_once(':').expect("a place");
    let at = format!("{}/{partition}/{offset}", stack.topic).parse().expect("coordinates");
    let kafka = Names {
        kafka: Connection::plaintext(stack.kafka.brokers()),
        topic: stack.topic.clone(),
        dlq_topic: None,
    };
    source::fetch(&kafka, &at).await.expect("the record")
}

fn header(record: &source::Record, name: &str) -> String {
    let found = record.headers.iter().find(|(key, _)| key == name);
    let value = found.and_then(|(_, value)| value.clone()).expect(name);
    String::from_utf8(value).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_listed_shown_and_brought_back() {
    let stack = Stack::start(Shape { partitions: 2, dead_letters: true, ..Shape::default() }).await;
    let terminal = Terminal::of(&stack);
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 21, 5);
    assert!(terminal.does(&["dlq", "list"]).await.contains("no dead letters"));
    feed.send_to(1, Some(BAD)).await;
    feed.send_to(1, None).await;
    feed.send(20).await;
    let letters = terminal.letters(2, &[]).await;
    assert_eq!(letters[1]["value"]["sha256"], Sha256::of(BAD).to_string());
    assert_eq!(terminal.letters(1, &["--class", "missing"]).await[0]["offset"], "1");
    terminal.letters(0, &["--partition", "0"]).await;
    terminal.letters(1, &["--limit", "1"]).await;
    let table = terminal.does(&["dlq", "list", "--since", "1h"]).await;
    assert!(table.contains("1:0 ") && table.contains("1:1 ") && table.contains("protobuf"), "{table}");

    let folder = tempfile::tempdir().expect("a folder");
    let file = path(&folder, "original");
    let shown = terminal.does(&["dlq", "show", "1:0", "--payload", &file]).await;
    assert!(shown.contains("|....canary|") && shown.contains("protobuf: "), "{shown}");
    assert_eq!(fs::read(&file).expect("the file"), BAD);
    assert!(terminal.refuses(&["dlq", "show", "1:7"]).await.contains("there is no dead letter of"));

    // As it was: it becomes a letter again, which counts.
    let first = place_said(&terminal.does(&["dlq", "retry", "1:0"]).await);
    let letters = terminal.letters(3, &[]).await;
    let origin = format!("{}/1/0", stack.topic);
    assert_eq!((&letters[0]["retry_of"], &letters[0]["retry_count"]), (&origin.clone().into(), &1.into()));
    // With another value: it is a record.
    let fixed = path(&folder, "fixed");
    fs::write(&fixed, sound()).expect("write a file");
    let second = place_said(&terminal.does(&["dlq", "retry", &first, "--payload", &fixed]).await);
    let record = record(&stack, &second).await;
    assert_eq!((record.key.as_deref(), record.value.as_deref()), (Some(b"key".as_slice()), Some(&*sound())));
    assert_eq!((header(&record, RETRY_OF), header(&record, RETRY_COUNT)), (origin, "2".to_owned()));
    let mut watcher = Watcher::new();
    let gateways = [stack.gateway[0].address()];
    let arrived =
        |watcher: &Watcher| watcher.received().values().flatten().any(|(_, payload)| *payload == sound());
    watcher.until(&gateways, PATIENCE, arrived).await;
    terminal.letters(3, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_blocks_is_shown_tried_again_and_passed_over() {
    let policy = (Kind::Ingest, "KAFKA_ON_DECODE_ERROR", "pause".to_owned());
    let shape = Shape { partitions: 2, ingest: 2, settings: vec![policy], ..Shape::default() };
    let stack = Stack::start(shape).await;
    let terminal = Terminal::of(&stack);
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 22, 5);
    feed.send_to(1, Some(&sound())).await;
    feed.send_to(1, Some(BAD)).await;
    feed.send_to(1, Some(BAD)).await;
    eventually("status tells what to do", PATIENCE, async || {
        let status = terminal.does(&["status"]).await;
        if status.contains("dashstream dlq skip 1:1 --reason WHY") { Ok(()) } else { Err(status) }
    })
    .await;
    for (args, expected) in [
        (["dlq", "skip", "1:2", "--reason", "r"], "it is 1:1 that blocks"),
        (["dlq", "skip", "0:0", "--reason", "r"], "nothing blocks partition 0"),
        (["dlq", "skip", "2:0", "--reason", "r"], "there is no partition 2"),
        (["dlq", "retry", "1:1", "--reason", "r"], "1:1 still blocks"),
    ] {
        let said = terminal.refuses(&args).await;
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    let said = terminal.does(&["dlq", "skip", "1:1", "--reason", "of no use"]).await;
    assert!(said.contains("1:1 was passed over"), "{said}");
    let logs: String = stack.ingest.iter().map(Service::log_text).collect();
    assert!(logs.contains("robin: of no use"), "who decided and why is in the log");

    // The next one is replaced by what it should have been.
    let owner = async || {
        let status = terminal.does(&["status"]).await;
        if status.contains("partition 1 is blocked at 2") { Ok(()) } else { Err(status) }
    };
    eventually("the next one blocks", PATIENCE, owner).await;
    let folder = tempfile::tempdir().expect("a folder");
    let fixed = path(&folder, "fixed");
    fs::write(&fixed, sound()).expect("write a file");
    let said = terminal.does(&["dlq", "retry", "1:2", "--payload", &fixed]).await;
    assert!(
        said.contains(&format!("is {}/1/3", stack.topic)) && said.contains("1:2 was passed over"),
        "{said}"
    );
    assert_eq!(header(&record(&stack, "1:3").await, RETRY_COUNT), "1");

    let mut watcher = Watcher::new();
    watcher.until(&[stack.gateway[0].address()], PATIENCE, |watcher| watcher.records() >= 4).await;
    let gaps: Vec<_> =
        watcher.gaps.iter().map(|gap| (gap.first_offset, gap.last_offset, gap.reason())).collect();
    assert_eq!(gaps, [(1, 1, GapReason::Skipped), (2, 2, GapReason::Skipped)]);
    let payloads: Vec<_> = watcher.received()[&1].iter().map(|(_, payload)| payload.to_vec()).collect();
    assert_eq!(payloads, [sound(), Vec::new(), Vec::new(), sound()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_paused_and_resumed_by_command() {
    let stack = Stack::start(Shape { partitions: 2, ingest: 2, ..Shape::default() }).await;
    let terminal = Terminal::of(&stack);
    let said = eventually("the partition has an owner", PATIENCE, async || {
        let (done, text) = terminal.run(&["partitions", "pause", "1", "--reason", "upgrade"]).await;
        if done { Ok(text) } else { Err(text) }
    })
    .await;
    assert!(said.contains("is paused") && said.contains("robin: upgrade"), "{said}");
    let status = terminal.does(&["status"]).await;
    assert!(status.contains("dashstream partitions resume 1 --reason WHY"), "{status}");
    let said = terminal.does(&["partitions", "resume", "1", "--reason", "done"]).await;
    assert!(said.contains("partition 1 of ") && !said.contains("is paused"), "{said}");
    let said = terminal.refuses(&["partitions", "pause", "9", "--reason", "r"]).await;
    assert!(said.contains("there is no partition 9: the topic has 2"), "{said}");
    for ingest in &stack.ingest {
        ingest.stop(Stop::Kill).await;
    }
    let said = terminal.refuses(&["partitions", "pause", "1", "--reason", "r"]).await;
    assert!(said.contains("no replica of ingest answers"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_commands_find_a_local_dashstream() {
    let local = Service::start(Kind::Local, &[]);
    local.ready().await;
    let (kafka, ingest) = (local.kafka_address(), local.ingest_address());
    let settings = [("KAFKA_BROKERS", kafka.as_str()), ("INGEST_TARGETS", ingest.as_str())];
    let run = async |args: &[&str], expected: &str| {
        eventually(&format!("{args:?} says {expected}"), PATIENCE, async || {
            let (done, text) = dashstream(args, &settings).await;
            if done && text.contains(expected) { Ok(()) } else { Err(text) }
        })
        .await;
    };
    run(&["partitions", "pause", "0", "--reason", "r"], "is paused").await;
    run(&["partitions", "resume", "0", "--reason", "r"], "partition 0 of").await;
    run(&["dlq", "list"], "no dead letters in dashstream-events-dlq").await;
    local.stop(Stop::Terminate).await;
}

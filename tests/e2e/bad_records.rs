//! What becomes of a bad record, by what is wrong with it and by policy.
use dashstream_core::{
    codec::encode,
    dead_letter::{Age, Sha256},
};
use dashstream_proto::{
    ingest::v1::{CatchUpPhase, PartitionCatchUp, Resolution},
    log::v1::GapReason,
    telemetry::{DashStreamMessage, Event, Header, TokenChunk, dash_stream_message::Message},
};
use dashstream_tests::{
    Feed, Kind, Operator, Service, Shape, Stack, Stop, Watcher, eventually, letters, stack::dead_letters,
};
use prost::Message as _;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(60);
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// A value that is bad in one way, and the name of that way.
struct Bad {
    error: &'static str,
    value: Option<Vec<u8>>,
}

fn event(thread_id: &str, schema_version: u32) -> Vec<u8> {
    let header = Header { thread_id: thread_id.into(), schema_version, ..Default::default() };
    let event = Event { header: Some(header), ..Default::default() };
    let mut value = vec![0];
    value.extend(DashStreamMessage { message: Some(Message::Event(event)) }.encode_to_vec());
    value
}

/// Every way to be bad; the position is the partition that the test gives it.
fn bad_values() -> Vec<Bad> {
    let mut bomb = vec![1];
    bomb.extend(zstd::bulk::compress(&vec![0; 8 << 20], 3).expect("zeros compress"));
    let bad = |error, value: Option<Vec<u8>>| Bad { error, value };
    vec![
        bad("protobuf", Some(b"\x02this is not a message".to_vec())),
        bad("too_large", Some([event("t", 1), vec![0; MESSAGE_BYTES_MAX]].concat())),
        bad("empty", Some(Vec::new())),
        bad("missing", None),
        bad("inflates_too_large", Some(bomb)),
        bad("unknown_version", Some(event("t", 2))),
        bad("no_thread", Some(event("", 1))),
        bad("thread_id_too_long", Some(event(&"x".repeat(2_000), 1))),
    ]
}

async fn stack(policy: &str, partitions: i32) -> Stack {
    let settings = vec![
        (Kind::Ingest, "KAFKA_ON_DECODE_ERROR", policy.to_owned()),
        (Kind::Ingest, "INGEST_MESSAGE_BYTES_MAX", MESSAGE_BYTES_MAX.to_string()),
    ];
    Stack::start(Shape { partitions, settings, ..Shape::default() }).await
}

fn gateways(stack: &Stack) -> Vec<String> {
    stack.gateway.iter().map(Service::address).collect()
}

/// Into each partition a sound record, a bad one and another sound one.
async fn produce(stack: &Stack, bad: &[Bad]) {
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    for (partition, bad) in (0..).zip(bad) {
        feed.send_sound(partition, 1).await;
        feed.send_to(partition, bad.value.as_deref()).await;
        feed.send_sound(partition, 1).await;
    }
    feed.log().await;
}

async fn outcomes(ingest: &Service, outcome: &str) -> f64 {
    let series = format!("dashstream_ingest_records_total{{outcome=\"{outcome}\"}}");
    ingest.metric(&series).await.expect("metrics").unwrap_or(0.0)
}

async fn found_bad(ingest: &Service, error: &str) -> f64 {
    let series = format!("dashstream_ingest_bad_records_total{{error=\"{error}\"}}");
    ingest.metric(&series).await.expect("metrics").unwrap_or(0.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_skip_a_bad_record_is_a_letter_and_a_gap_and_its_partition_goes_on() {
    let bad = bad_values();
    let stack = stack("skip", bad.len() as i32).await;
    produce(&stack, &bad).await;
    let mut watcher = Watcher::new();
    watcher.until(&gateways(&stack), TIMEOUT, |watcher| watcher.records() >= 3 * bad.len()).await;
    let (ingest, operator) = (&stack.ingest[0], Operator::of(&stack.ingest[0]));

    let mut letters = letters(&stack.kafka.client_config(), &dead_letters(&stack.topic)).await;
    letters.sort_by_key(|(_, letter)| letter.at.partition);
    assert_eq!(letters.len(), bad.len(), "one letter for each");
    for ((partition, bad), (key, letter)) in (0..).zip(&bad).zip(&letters) {
        let error = bad.error;
        assert_eq!((letter.at.partition.get(), letter.at.offset.get()), (partition, 1), "{error}");
        assert_eq!((&*letter.error, key), (error, &format!("{}/{partition}/1", stack.topic)));
        let gaps: Vec<_> = watcher.gaps.iter().filter(|gap| gap.partition == partition).collect();
        let [gap] = gaps[..] else { panic!("{error}: {gaps:?}") };
        assert_eq!(
            (gap.first_offset, gap.last_offset, gap.reason()),
            (1, 1, GapReason::Undecodable),
            "{error}"
        );
        let report =
            operator.until(partition, "is live", TIMEOUT, |report| report.phase() == CatchUpPhase::Live);
        assert_eq!(report.await.next_offset, Some(3), "{error}");
        assert_eq!(found_bad(ingest, error).await, 1.0, "{error}");
    }
    let of_all = bad.len() as f64;
    for (outcome, expected) in
        [("stored", 2.0 * of_all), ("dead_lettered", of_all), ("blocked", 0.0), ("skipped", 0.0)]
    {
        assert_eq!(outcomes(ingest, outcome).await, expected, "{outcome}");
    }
    assert_eq!(ingest.get("/readyz").await.expect("an answer").0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_pause_only_the_partition_of_a_bad_record_stops_until_an_operator_decides() {
    let bad = bad_values();
    let stack = stack("pause", bad.len() as i32 + 1).await;
    let (ingest, operator) = (&stack.ingest[0], Operator::of(&stack.ingest[0]));
    produce(&stack, &bad).await;
    let mut watcher = Watcher::new();
    for (partition, bad) in (0..).zip(&bad) {
        let report = operator.until_blocked(partition, 1, TIMEOUT).await;
        assert!(report.reason.contains("offset 1"), "{}: {report:?}", bad.error);
        let durable = |report: &PartitionCatchUp| report.next_offset == Some(1);
        operator.until(partition, "is durable up to the bad record", TIMEOUT, durable).await;
        assert_eq!(found_bad(ingest, bad.error).await, 1.0, "{}", bad.error);
    }
    // A partition without one goes on, and the process is ready.
    let healthy = bad.len() as i32;
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    feed.send_sound(healthy, 5).await;
    watcher.until(&gateways(&stack), TIMEOUT, |watcher| watcher.records() >= bad.len() + 5).await;
    assert_eq!(ingest.get("/readyz").await.expect("an answer").0, 200);
    assert!(letters(&stack.kafka.client_config(), &dead_letters(&stack.topic)).await.is_empty());

    // Another record, and a record judged again, change nothing.
    let refused = operator.resolve(0, 2, Resolution::Skip).await.expect_err("another record");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused:?}");
    operator.resolve(0, 1, Resolution::Retry).await.expect("it blocks");
    operator.until_blocked(0, 1, TIMEOUT).await;
    assert_eq!(outcomes(ingest, "blocked").await, bad.len() as f64 + 1.0, "judged again");
    assert_eq!(found_bad(ingest, bad[0].error).await, 1.0, "and counted once");

    for partition in 0..healthy {
        let report = operator.resolve(partition, 1, Resolution::Skip).await.expect("it blocks");
        assert_eq!(report.blocked_offset, None);
    }
    watcher.until(&gateways(&stack), TIMEOUT, |watcher| watcher.records() >= 3 * bad.len() + 5).await;
    assert_eq!(watcher.gaps.len(), bad.len());
    for gap in &watcher.gaps {
        assert_eq!((gap.first_offset, gap.last_offset, gap.reason()), (1, 1, GapReason::Skipped));
    }
    assert_eq!(outcomes(ingest, "skipped").await, bad.len() as f64);
    assert!(ingest.log_text().contains("audit"), "a decision is on record");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_halt_nothing_is_consumed_until_an_operator_decides() {
    let bad = bad_values();
    let stack = stack("halt", 2).await;
    let (ingest, operator) = (&stack.ingest[0], Operator::of(&stack.ingest[0]));
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    let mut watcher = Watcher::new();
    let (mut sent, mut at) = (0, 0);
    for bad in &bad {
        feed.send_to(0, bad.value.as_deref()).await;
        feed.log().await;
        operator.until_blocked(0, at, TIMEOUT).await;
        let halted = |report: &PartitionCatchUp| {
            report.phase() == CatchUpPhase::Paused && report.reason.contains("halted at partition 0")
        };
        operator.until(1, "is halted too", TIMEOUT, halted).await;
        let (status, body) = ingest.get("/readyz").await.expect("an answer");
        assert!(status == 503 && body.contains(&format!("partition 0, offset {at}")), "{status} {body}");
        assert!(operator.catch_up().await.expect("an answer").halted.contains("partition 0"));

        // What is produced meanwhile waits, in every partition.
        feed.send_sound(1, 1).await;
        feed.log().await;
        let next = operator.partition(1).await.expect("it is owned").next_offset;
        assert_eq!(next, Some(sent), "{}", bad.error);
        operator.resolve(0, at, Resolution::Skip).await.expect("it blocks");
        (sent, at) = (sent + 1, at + 1);
        watcher.until(&gateways(&stack), TIMEOUT, |watcher| watcher.records() as u64 >= sent + at).await;
        eventually("it is ready again", TIMEOUT, async || match ingest.get("/readyz").await? {
            (200, _) => Ok(()),
            (status, body) => Err(format!("{status} {body}")),
        })
        .await;
    }
    assert_eq!(watcher.gaps.len(), bad.len());
    assert!(letters(&stack.kafka.client_config(), &dead_letters(&stack.topic)).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_record_stays_blocked_over_a_restart_and_flows_once_it_is_fit() {
    let stack = stack("pause", 1).await;
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    feed.send_sound(0, 1).await;
    // Sound, and too large for this limit.
    let header = Header { thread_id: "t".into(), schema_version: 1, ..Default::default() };
    let chunk =
        TokenChunk { header: Some(header), text: "x".repeat(MESSAGE_BYTES_MAX), ..Default::default() };
    let large = encode(&DashStreamMessage { message: Some(Message::TokenChunk(chunk)) }, usize::MAX);
    feed.send_to(0, Some(&large)).await;
    feed.send_sound(0, 1).await;
    let log = feed.log().await;
    let mut operator = Operator::of(&stack.ingest[0]);
    operator.until_blocked(0, 1, TIMEOUT).await;
    stack.ingest[0].restart(Stop::Kill).await;
    operator.until_blocked(0, 1, TIMEOUT).await;

    // The same group, with a limit that it fits.
    stack.ingest[0].stop(Stop::Terminate).await;
    let limit = (MESSAGE_BYTES_MAX * 2).to_string();
    let settings = [("INGEST_MESSAGE_BYTES_MAX", &*limit), ("KAFKA_ON_DECODE_ERROR", "pause")];
    let larger = stack.ingest_in_place_of(&stack.ingest[0], &settings);
    larger.ready().await;
    operator = Operator::of(&larger);
    operator.until(0, "is live", TIMEOUT, |report| report.next_offset == Some(3)).await;
    let mut watcher = Watcher::new();
    watcher.until(&gateways(&stack), TIMEOUT, |watcher| watcher.records() >= 3).await;
    watcher.assert_received(&log);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_topic_for_dead_letters_the_partition_stalls_and_each_record_gets_one_letter() {
    let settings = vec![(Kind::Ingest, "KAFKA_SESSION_TIMEOUT", "2s".to_owned())];
    let shape = Shape { partitions: 2, dead_letters: false, settings, ..Shape::default() };
    let stack = Stack::start(shape).await;
    let operator = Operator::of(&stack.ingest[0]);
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    for _ in 0..10 {
        feed.send_to(0, Some(b"\x02nonsense")).await;
        feed.send_sound(0, 1).await;
    }
    feed.send_sound(1, 3).await;
    feed.log().await;
    let stalled = |report: &PartitionCatchUp| {
        report.phase() == CatchUpPhase::Stalled && report.reason.contains("dead letters")
    };
    let report = operator.until(0, "says that it waits", TIMEOUT, stalled).await;
    assert_eq!(report.next_offset.unwrap_or(0), 0, "nothing behind the bad record is durable");
    operator.until(1, "goes on", TIMEOUT, |report| report.next_offset == Some(3)).await;
    // Over a restart too: what is not acknowledged is not handled.
    stack.ingest[0].restart(Stop::Kill).await;
    operator.until(0, "says so again", TIMEOUT, stalled).await;

    stack.kafka.create_topic(&dead_letters(&stack.topic), 1, &[]).await;
    let mut watcher = Watcher::new();
    watcher.until(&gateways(&stack), TIMEOUT, |watcher| watcher.records() >= 23).await;
    assert_eq!(watcher.gaps.len(), 10);
    let letters = letters(&stack.kafka.client_config(), &dead_letters(&stack.topic)).await;
    let offsets: Vec<_> = letters.iter().map(|(_, letter)| letter.at.offset.get()).collect();
    assert_eq!(offsets, (0..10).map(|at| at * 2).collect::<Vec<_>>(), "one for each, in order");
    assert!(letters.iter().all(|(_, letter)| letter.age != Age::New), "they were there before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_an_operator_paused_stays_so_over_a_restart() {
    let stack = Stack::start(Shape { partitions: 2, ..Shape::default() }).await;
    let operator = Operator::of(&stack.ingest[0]);
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    feed.send_sound(0, 1).await;
    feed.log().await;
    operator.until(0, "is live", TIMEOUT, |report| report.next_offset == Some(1)).await;
    let refused = operator.pause(0, " ").await.expect_err("without a reason");
    assert!(refused.message().contains("reason"), "{refused:?}");
    let paused = operator.pause(0, "moving house").await.expect("it is owned");
    assert_eq!((paused.phase(), paused.reason.as_str()), (CatchUpPhase::Paused, "paused: moving house"));

    stack.ingest[0].restart(Stop::Terminate).await;
    feed.send_sound(0, 1).await;
    feed.send_sound(1, 1).await;
    feed.log().await;
    operator.until(1, "goes on", TIMEOUT, |report| report.next_offset == Some(1)).await;
    let still = |report: &PartitionCatchUp| report.phase() == CatchUpPhase::Paused;
    let report = operator.until(0, "is still paused", TIMEOUT, still).await;
    assert_eq!(report.next_offset, Some(1));
    operator.resume(0, "we are in").await.expect("it is owned");
    operator.until(0, "goes on", TIMEOUT, |report| report.next_offset == Some(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_bad_record_leaves_a_small_letter_without_what_is_inside() {
    let stack = Stack::start(Shape {
        partitions: 1,
        topic: vec![("max.message.bytes", "20000000")],
        ..Shape::default()
    })
    .await;
    let mut settings = stack.kafka.client_config();
    settings.set("message.max.bytes", "20000000");
    let feed = Feed::new(&settings, &stack.topic, 1, 1);
    let mut value = vec![2; 9 << 20];
    value[1 << 20..][..6].copy_from_slice(b"canary");
    feed.send_to(0, Some(&value)).await;
    let log = feed.log().await;
    let mut watcher = Watcher::new();
    watcher.until(&gateways(&stack), TIMEOUT, |watcher| watcher.records() >= 1).await;
    let letters = letters(&stack.kafka.client_config(), &dead_letters(&stack.topic)).await;
    let [(_, letter)] = &letters[..] else { panic!("{letters:?}") };
    let json = letter.to_json();
    assert!(json.len() < 8 << 10 && !String::from_utf8_lossy(json.as_ref()).contains("canary"));
    let kept = &log[&letter.at.partition.get()][letter.at.offset.get() as usize].1;
    let sha256 = Sha256::of(kept);
    assert_eq!(
        letter.value.as_ref().expect("it has one").sha256,
        sha256,
        "the bytes are found where it says"
    );
}

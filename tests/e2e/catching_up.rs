//! What is said of how far a partition is, while Kafka does not answer everything.
use dashstream_proto::ingest::v1::{CatchUpPhase, GetCatchUpResponse, PartitionCatchUp};
use dashstream_tests::{
    Feed, Kafka, Kind, Operator, Shape, Stack, Stop, Watcher, eventually, feed::sound, letters,
    stack::dead_letters,
};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(60);
/// The request that asks for watermarks.
const LIST_OFFSETS: i16 = 2;

/// A stack whose ingest reaches Kafka through the proxy of a broker of its own.
async fn stack(partitions: i32) -> Stack {
    let kafka = std::sync::Arc::new(Kafka::start().await);
    let brokers = kafka.proxied_brokers();
    let settings = vec![(Kind::Ingest, "KAFKA_BROKERS", brokers)];
    Stack::start_on(kafka, Shape { partitions, settings, ..Shape::default() }).await
}

async fn by_age(stack: &Stack, age: &str) -> f64 {
    let series = format!("dashstream_ingest_bad_records_by_age_total{{age=\"{age}\"}}");
    stack.ingest[0].metric(&series).await.expect("metrics").unwrap_or(0.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_kafka_does_not_tell_is_unknown_until_it_does_and_then_right() {
    let stack = stack(1).await;
    let operator = Operator::of(&stack.ingest[0]);
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    feed.send_sound(0, 5).await;
    feed.log().await;
    operator.until(0, "is live", TIMEOUT, |report| report.next_offset == Some(5)).await;
    stack.ingest[0].stop(Stop::Terminate).await;

    // A backlog with a bad record in it, and nobody who tells where it ends.
    feed.send_to(0, Some(b"\x02nonsense")).await;
    feed.send_sound(0, 4).await;
    feed.log().await;
    stack.kafka.proxy().swallow(Some(LIST_OFFSETS));
    stack.ingest[0].start_again();
    let read = |report: &PartitionCatchUp| report.next_offset == Some(10);
    let report = operator.until(0, "is read without a head", TIMEOUT, read).await;
    assert_eq!(
        (report.phase(), report.head),
        (CatchUpPhase::CatchingUp, None),
        "unknown is not live: {report:?}"
    );
    let counts = |report: &PartitionCatchUp| {
        (report.decode_errors_old, report.decode_errors_new, report.decode_errors_unclassified)
    };
    assert_eq!(counts(&report), (0, 0, 1), "and a bad record is neither old nor new");
    eventually("failures are counted", TIMEOUT, async || {
        let failures = stack.ingest[0].metric("dashstream_ingest_watermark_failures_total").await?;
        if failures > Some(1.0) { Ok(()) } else { Err(format!("{failures:?}")) }
    })
    .await;
    assert_eq!(stack.ingest[0].get("/readyz").await.expect("an answer").0, 200, "it works all the same");

    stack.kafka.proxy().swallow(None);
    let live = |report: &PartitionCatchUp| report.phase() == CatchUpPhase::Live;
    let report = operator.until(0, "knows its head", TIMEOUT, live).await;
    assert_eq!((report.head, counts(&report)), (Some(10), (1, 0, 0)), "what was read before is old");

    feed.send_to(0, Some(b"\x02nonsense")).await;
    feed.log().await;
    let read = |report: &PartitionCatchUp| report.next_offset == Some(11);
    let report = operator.until(0, "has read the next bad record", TIMEOUT, read).await;
    assert_eq!(counts(&report), (1, 1, 0), "what came since is new");
    assert_eq!((by_age(&stack, "old").await, by_age(&stack, "new").await), (1.0, 1.0));
    let letters = letters(&stack.kafka.client_config(), &dead_letters(&stack.topic)).await;
    let ages: Vec<_> = letters.iter().map(|(_, letter)| letter.age.label()).collect();
    assert_eq!(ages, ["unclassified", "new"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_can_not_be_reached_is_a_stall_and_not_live() {
    let stack = stack(1).await;
    let operator = Operator::of(&stack.ingest[0]);
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    feed.send_sound(0, 1).await;
    feed.log().await;
    operator.until(0, "is live", TIMEOUT, |report| report.phase() == CatchUpPhase::Live).await;
    stack.kafka.proxy().refuse(true);
    stack.kafka.proxy().cut();
    let stalled = |report: &PartitionCatchUp| {
        report.phase() == CatchUpPhase::Stalled && report.reason.contains("kafka")
    };
    operator.until(0, "is stalled", TIMEOUT, stalled).await;
    let up = stack.ingest[0].metric("dashstream_ingest_kafka_brokers_up").await.expect("metrics");
    assert_eq!(up, Some(0.0));
    feed.send_sound(0, 1).await;
    let log = feed.log().await;
    stack.kafka.proxy().refuse(false);
    operator.until(0, "is live again", TIMEOUT, |report| report.next_offset == Some(2)).await;
    let gateways = [stack.gateway[0].address()];
    let mut watcher = Watcher::new();
    watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= 2).await;
    watcher.assert_received(&log);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_hears_of_changes_and_of_nothing_else() {
    let stack = Stack::start(Shape { partitions: 1, ..Shape::default() }).await;
    let operator = Operator::of(&stack.ingest[0]);
    let live = |report: &PartitionCatchUp| report.phase() == CatchUpPhase::Live;
    operator.until(0, "is live", TIMEOUT, live).await;
    let mut changes = operator.watch(Duration::from_millis(100)).await;
    let mut heard = Vec::new();
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    feed.send_sound(0, 7).await;
    feed.log().await;
    let end = async {
        while heard.last().is_none_or(|last: &GetCatchUpResponse| {
            last.partitions.first().and_then(|report| report.next_offset) != Some(7)
        }) {
            heard.push(changes.next().await);
        }
    };
    tokio::time::timeout(TIMEOUT, end).await.expect("the last change comes");
    assert!(heard.len() > 1, "at first how it is, then what became of it");
    assert!(heard.windows(2).all(|two| two[0] != two[1]), "nothing is said twice: {heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gauges_of_a_partition_say_what_the_report_does_and_leave_with_it() {
    let settings = vec![(Kind::Ingest, "KAFKA_SESSION_TIMEOUT", "2s".to_owned())];
    let stack = Stack::start(Shape { partitions: 4, ingest: 2, settings, ..Shape::default() }).await;
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    for partition in 0..4 {
        feed.send_sound(partition, 3).await;
    }
    feed.log().await;
    let series = |what: &str, partition: i32| {
        format!("dashstream_ingest_partition_{what}{{partition=\"{partition}\"}}")
    };
    let owners = async |partition: i32| {
        let mut owners = Vec::new();
        for (at, ingest) in stack.ingest.iter().enumerate() {
            let (catching_up, lag) = (
                ingest.metric(&series("catching_up", partition)).await,
                ingest.metric(&series("lag_offsets", partition)).await,
            );
            if let (Ok(Some(catching_up)), Ok(lag)) = (catching_up, lag) {
                owners.push((at, catching_up, lag));
            }
        }
        owners
    };
    eventually("each partition is live at one owner", TIMEOUT, async || {
        for partition in 0..4 {
            let owners = owners(partition).await;
            if !matches!(owners[..], [(_, 0.0, Some(0.0))]) {
                return Err(format!("{partition}: {owners:?}"));
            }
        }
        Ok(())
    })
    .await;
    stack.ingest[0].stop(Stop::Terminate).await;
    eventually("the other one has them all", TIMEOUT, async || {
        for partition in 0..4 {
            let owners = owners(partition).await;
            if !matches!(owners[..], [(1, 0.0, Some(0.0))]) {
                return Err(format!("{partition}: {owners:?}"));
            }
        }
        Ok(())
    })
    .await;
    stack.ingest[0].start_again();
    eventually("and gives some back, with their gauges", TIMEOUT, async || {
        let mut moved = 0;
        for partition in 0..4 {
            let owners = owners(partition).await;
            let [(at, ..)] = owners[..] else { return Err(format!("{partition}: {owners:?}")) };
            moved += usize::from(at == 0);
        }
        if moved > 0 { Ok(()) } else { Err("none moved".to_owned()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_in_two_partitions_is_stored_and_counted_and_hops_are_measured() {
    let stack = Stack::start(Shape { partitions: 2, ..Shape::default() }).await;
    let operator = Operator::of(&stack.ingest[0]);
    for partition in 0..2 {
        let live = |report: &PartitionCatchUp| report.phase() == CatchUpPhase::Live;
        operator.until(partition, "is live", TIMEOUT, live).await;
    }
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    let value = sound("wanderer");
    for (partition, next) in [(0, 2), (1, 1)] {
        for _ in 0..next {
            feed.send_to(partition, Some(&value)).await;
        }
        feed.log().await;
        operator.until(partition, "has it", TIMEOUT, |report| report.next_offset == Some(next)).await;
    }
    let metric = async |series: &str| stack.ingest[0].metric(series).await.expect("metrics");
    assert_eq!(
        metric("dashstream_ingest_strayed_records_total").await,
        Some(1.0),
        "one of three is elsewhere"
    );
    assert_eq!(
        metric("dashstream_ingest_records_total{outcome=\"stored\"}").await,
        Some(3.0),
        "all are stored"
    );
    for hop in ["kafka_ingested", "ingested_stored"] {
        let series = format!("dashstream_ingest_hop_seconds_count{{hop=\"{hop}\"}}");
        assert!(metric(&series).await >= Some(2.0), "{hop}");
    }
}

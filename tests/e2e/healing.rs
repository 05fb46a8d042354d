//! Stores that lose records, logs of Kafka that lose them, and topics that are made anew.
use dashstream_proto::{
    ingest::v1::{CatchUpPhase, PartitionCatchUp},
    log::v1::GapReason,
};
use dashstream_tests::{
    Feed, Kind, Log, Operator, Service, Shape, Stack, Stop, Watcher, eventually::pause, feed,
    redis_fleet::Sentinels,
};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(60);

fn gateways(stack: &Stack) -> Vec<String> {
    stack.gateway.iter().map(Service::address).collect()
}

async fn produce(feed: &mut Feed, over: &AtomicBool) -> usize {
    let mut sent = 0;
    while !over.load(Ordering::Relaxed) {
        feed.send(100).await;
        sent += 100;
        pause(Duration::from_millis(20)).await;
    }
    sent
}

async fn assert_stored(stack: &Stack, log: &Log) {
    let mut late = Watcher::new();
    late.until(&gateways(stack), TIMEOUT, |watcher| watcher.records() >= feed::records(log)).await;
    late.assert_received(log);
}

/// Produces and watches while `trouble` goes on, and demands that one who watched and one who comes later got all.
async fn comes_through(stack: &Stack, seed: u64, trouble: impl Future<Output = ()>) {
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, seed, 50);
    let (over, gateways) = (AtomicBool::new(false), gateways(stack));
    let trouble = async {
        trouble.await;
        over.store(true, Ordering::Relaxed);
    };
    let mut watcher = Watcher::new();
    let watching = watcher.until(&gateways, TIMEOUT, |_| over.load(Ordering::Relaxed));
    let (mut sent, (), ()) = tokio::join!(produce(&mut feed, &over), trouble, watching);
    // A partition in which nothing is produced hears of its loss with the next record.
    feed.send(400).await;
    sent += 400;
    let log = feed.log().await;
    watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= sent).await;
    watcher.assert_received(&log);
    assert_stored(stack, &log).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_emptied_again_and_again_under_load_is_filled_without_a_hole() {
    let stack = Stack::start(Shape { partitions: 4, ..Shape::default() }).await;
    let emptying = async {
        for _ in 0..5 {
            pause(Duration::from_millis(700)).await;
            let mut connection = stack.redis.connection().await;
            redis::cmd("FLUSHALL").exec_async(&mut connection).await.expect("redis answers");
        }
    };
    comes_through(&stack, 31, emptying).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_comes_back_without_its_newest_records_gets_them_again() {
    let shape = Shape { partitions: 4, redis: vec!["--dbfilename", "dump.rdb"], ..Shape::default() };
    let stack = Stack::start(shape).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 32, 50);
    let gateways = gateways(&stack);
    let mut watcher = Watcher::new();
    let mut sent = 0;
    for _ in 0..3 {
        feed.send(1_000).await;
        sent += 1_000;
        watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= sent).await;
        let mut connection = stack.redis.connection().await;
        redis::cmd("SAVE").exec_async(&mut connection).await.expect("redis saves");
        feed.send(1_000).await;
        sent += 1_000;
        watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= sent).await;
        // What came since the snapshot is lost, although it was acknowledged.
        stack.redis.restart(Stop::Kill).await;
        feed.send(1_000).await;
        sent += 1_000;
        watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= sent).await;
    }
    let log = feed.log().await;
    watcher.assert_received(&log);
    assert_stored(&stack, &log).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_of_redis_under_load_leaves_no_hole() {
    let fleet = Sentinels::start().await;
    let settings = vec![(Kind::Replay, "REDIS_URL", fleet.url())];
    let stack = Stack::start(Shape { partitions: 4, settings, ..Shape::default() }).await;
    let failing = async {
        pause(Duration::from_millis(500)).await;
        fleet.primary().kill();
        pause(Duration::from_secs(4)).await;
    };
    comes_through(&stack, 33, failing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_lets_go_before_it_is_read_is_one_gap_with_exact_bounds() {
    let stack = Stack::start(Shape { partitions: 1, ..Shape::default() }).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 34, 5);
    let gateways = gateways(&stack);
    let mut watcher = Watcher::new();
    feed.send(100).await;
    watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= 100).await;
    stack.ingest[0].stop(Stop::Terminate).await;
    feed.send(200).await;
    let log = feed.log().await;
    stack.kafka.delete_records_before(&stack.topic, 0, 250).await;
    stack.ingest[0].start_again();
    watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= 151).await;
    let [gap] = &watcher.gaps[..] else { panic!("{:?}", watcher.gaps) };
    assert_eq!((gap.first_offset, gap.last_offset, gap.reason()), (100, 249, GapReason::SourceRetention));
    let received: Vec<_> = watcher.received()[&0].iter().filter(|(_, payload)| !payload.is_empty()).collect();
    let kept: Vec<_> = log[&0].iter().filter(|(offset, _)| *offset < 100 || *offset >= 250).collect();
    assert_eq!(received, kept);
    let lost = stack.ingest[0].metric("dashstream_ingest_lost_offsets_total").await.expect("metrics");
    assert_eq!(lost, Some(150.0));
}

/// Makes the topic anew and fills it. Returns what it has then.
async fn make_anew(stack: &Stack, seed: u64, records: usize) -> Log {
    stack.kafka.delete_topic(&stack.topic).await;
    stack.kafka.create_topic(&stack.topic, 1, &[]).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, seed, 5);
    feed.send(records).await;
    feed.log().await
}

async fn epoch(stack: &Stack) -> u64 {
    let opened = |report: &PartitionCatchUp| report.epoch.is_some();
    let report = Operator::of(&stack.ingest[0]).until(0, "has an epoch", TIMEOUT, opened).await;
    report.epoch.unwrap_or_default()
}

async fn assert_new_life(stack: &Stack, before: u64, log: &Log) {
    let end = log[&0].len() as u64;
    let anew = |report: &PartitionCatchUp| {
        report.epoch > Some(before) && report.phase() == CatchUpPhase::Live && report.next_offset == Some(end)
    };
    Operator::of(&stack.ingest[0]).until(0, "begins a new epoch", TIMEOUT, anew).await;
    assert_stored(stack, log).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_anew_is_a_new_epoch_with_its_whole_history() {
    let stack = Stack::start(Shape { partitions: 1, ..Shape::default() }).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 35, 5);
    feed.send(100).await;
    let log = feed.log().await;
    drop(feed);
    assert_stored(&stack, &log).await;
    // Shorter than before, longer than before, and each while ingest runs and while it does not.
    for (seed, records, stopped) in [(36, 40, false), (37, 300, false), (38, 50, true), (39, 400, true)] {
        let before = epoch(&stack).await;
        if stopped {
            stack.ingest[0].stop(Stop::Terminate).await;
        }
        let log = make_anew(&stack, seed, records).await;
        if stopped {
            stack.ingest[0].start_again();
        }
        assert_new_life(&stack, before, &log).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_anew_while_the_store_is_empty_is_a_new_epoch_too() {
    let stack = Stack::start(Shape { partitions: 1, ..Shape::default() }).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 40, 5);
    feed.send(100).await;
    let log = feed.log().await;
    drop(feed);
    assert_stored(&stack, &log).await;
    let before = epoch(&stack).await;
    let mut connection = stack.redis.connection().await;
    redis::cmd("FLUSHALL").exec_async(&mut connection).await.expect("redis answers");
    let log = make_anew(&stack, 41, 60).await;
    assert_new_life(&stack, before, &log).await;
}

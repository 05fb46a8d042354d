//! Topics whose offsets have holes: transactions and compaction.
use dashstream_proto::ingest::v1::{CatchUpPhase, PartitionCatchUp};
use dashstream_tests::{
    Feed, Kind, Log, Operator, Service, Shape, Stack, Stop, Watcher, eventually, feed::sound,
};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(60);

fn gateways(stack: &Stack) -> Vec<String> {
    stack.gateway.iter().map(Service::address).collect()
}

/// Ten transactions of three records, every other one aborted, in a topic that ends at `at`; offsets and payloads of
/// those that count.
fn transactions(stack: &Stack, mut at: u64) -> Log {
    let mut settings = stack.kafka.client_config();
    settings.set("transactional.id", &stack.topic);
    let producer: ThreadedProducer<DefaultProducerContext> = settings.create().expect("make a producer");
    producer.init_transactions(TIMEOUT).expect("transactions");
    let mut log = Log::new();
    for transaction in 0..10 {
        producer.begin_transaction().expect("begin");
        for record in 0..3 {
            let payload = sound(&format!("thread-{transaction}-{record}"));
            let sent = BaseRecord::to(&stack.topic).key("key").partition(0).payload(&payload);
            producer.send(sent).map_err(|(error, _)| error).expect("hand over");
            if transaction % 2 == 0 {
                log.entry(0).or_default().push((at, payload.into()));
            }
            at += 1;
        }
        if transaction % 2 == 0 {
            producer.commit_transaction(TIMEOUT).expect("commit");
        } else {
            producer.flush(TIMEOUT).expect("flush");
            producer.abort_transaction(TIMEOUT).expect("abort");
        }
        // The marker that ends it takes an offset.
        at += 1;
    }
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_leave_no_gaps_and_what_was_aborted_never_happened() {
    let stack = Stack::start(Shape { partitions: 1, ..Shape::default() }).await;
    let log = tokio::task::block_in_place(|| transactions(&stack, 0));
    let mut watcher = Watcher::new();
    watcher.until(&gateways(&stack), TIMEOUT, |watcher| watcher.records() >= 15).await;
    watcher.assert_received(&log);
    // The last offsets are markers: nothing is left to read, and that is said.
    let live = |report: &PartitionCatchUp| {
        report.phase() == CatchUpPhase::Live && report.lag == Some(0) && report.next_offset == Some(40)
    };
    Operator::of(&stack.ingest[0]).until(0, "is live behind the last marker", TIMEOUT, live).await;

    // A store that is emptied is filled again with the same links.
    let mut connection = stack.redis.connection().await;
    redis::cmd("FLUSHALL").exec_async(&mut connection).await.expect("redis answers");
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    feed.send_sound(0, 1).await;
    let more = feed.log().await;
    watcher.until(&gateways(&stack), TIMEOUT, |watcher| watcher.records() >= 16).await;
    let mut all = log;
    all.entry(0).or_default().extend(more[&0].clone());
    watcher.assert_received(&all);
    let mut late = Watcher::new();
    late.until(&gateways(&stack), TIMEOUT, |watcher| watcher.records() >= 16).await;
    late.assert_received(&all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_expired_goes_on_where_it_ended() {
    let settings = vec![(Kind::Replay, "REPLAY_RETENTION", "2s".to_owned())];
    let stack = Stack::start(Shape { partitions: 1, settings, ..Shape::default() }).await;
    let mut log = tokio::task::block_in_place(|| transactions(&stack, 0));
    let mut watcher = Watcher::new();
    watcher.until(&gateways(&stack), TIMEOUT, |watcher| watcher.records() >= 15).await;
    for (round, restarted) in [(1, false), (2, true)] {
        eventually("Redis is empty", TIMEOUT, async || {
            let mut connection = stack.redis.connection().await;
            let size: u64 =
                redis::cmd("DBSIZE").query_async(&mut connection).await.map_err(|e| e.to_string())?;
            if size == 0 { Ok(()) } else { Err(format!("{size} keys are left")) }
        })
        .await;
        if restarted {
            stack.ingest[0].restart(Stop::Kill).await;
        }
        // What is read next does not lie directly behind what was read last: a marker does.
        let more = tokio::task::block_in_place(|| transactions(&stack, 40 * round));
        log.entry(0).or_default().extend(more[&0].clone());
        let all = 15 * (round as usize + 1);
        watcher.until(&gateways(&stack), TIMEOUT, |watcher| watcher.records() >= all).await;
        watcher.assert_received(&log);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_leaves_no_gaps() {
    let topic = vec![
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.001"),
        ("max.compaction.lag.ms", "200"),
        ("delete.retention.ms", "100"),
    ];
    let stack = Stack::start(Shape { partitions: 1, topic, ..Shape::default() }).await;
    stack.ingest[0].stop(Stop::Terminate).await;
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    // All of one key, so that only the newest one is kept of what is compacted.
    let compacted = eventually("compaction has left holes", TIMEOUT, async || {
        feed.send_sound(0, 5).await;
        feed.log().await;
        let kept = stack.kafka.offsets(&stack.topic, 0).await;
        let produced = feed.log().await[&0].len();
        if kept.len() + 3 < produced {
            Ok(kept)
        } else {
            Err(format!("{} of {produced} are kept", kept.len()))
        }
    })
    .await;
    stack.ingest[0].start_again();
    let mut watcher = Watcher::new();
    let last = *compacted.last().expect("a record");
    watcher
        .until(&gateways(&stack), TIMEOUT, |watcher| {
            watcher.received().get(&0).and_then(|records| records.last()).is_some_and(|(at, _)| *at >= last)
        })
        .await;
    assert_eq!(watcher.gaps, [], "holes are no gaps");
    let live = |report: &PartitionCatchUp| report.phase() == CatchUpPhase::Live && report.lag == Some(0);
    Operator::of(&stack.ingest[0]).until(0, "is live", TIMEOUT, live).await;
}

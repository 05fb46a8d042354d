//! Partitions that move between owners, and owners that do not know that they moved.
use dashstream_proto::ingest::v1::PartitionCatchUp;
use dashstream_tests::{
    Feed, Kind, Operator, Service, Shape, Stack, Stop, Watcher, eventually, eventually::pause, feed,
};
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

const TIMEOUT: Duration = Duration::from_secs(120);
const PARTITIONS: i32 = 8;
/// How long partitions are moved about, and how often.
const MOVING: Duration = Duration::from_secs(120);
const MOVE_INTERVAL: Duration = Duration::from_secs(5);

async fn stack(settings: &[(&'static str, &str)]) -> Stack {
    let mut all = vec![(Kind::Ingest, "KAFKA_SESSION_TIMEOUT", "3s".to_owned())];
    all.extend(settings.iter().map(|(name, value)| (Kind::Ingest, *name, (*value).to_owned())));
    Stack::start(Shape { partitions: PARTITIONS, ingest: 3, settings: all, ..Shape::default() }).await
}

fn gateways(stack: &Stack) -> Vec<String> {
    stack.gateway.iter().map(Service::address).collect()
}

/// Each partition's reports, by who owns it.
async fn owners(stack: &Stack) -> BTreeMap<i32, Vec<PartitionCatchUp>> {
    let mut owners = BTreeMap::<_, Vec<_>>::new();
    for ingest in &stack.ingest {
        let answer = tokio::time::timeout(Duration::from_secs(1), Operator::of(ingest).catch_up()).await;
        for report in answer.into_iter().flatten().flat_map(|answer| answer.partitions) {
            owners.entry(report.partition).or_default().push(report);
        }
    }
    owners
}

/// Whatever is reported at any moment must add up.
fn check_lags(owners: &BTreeMap<i32, Vec<PartitionCatchUp>>) {
    for report in owners.values().flatten() {
        if let (Some(lag), Some(next), Some(mark)) = (report.lag, report.next_offset, report.high_watermark) {
            assert_eq!(lag, mark - next, "{report:?}");
        }
    }
}

async fn until_each_has_one_owner_without_lag(stack: &Stack, log: &feed::Log) {
    eventually("each partition has one owner and no lag", TIMEOUT, async || {
        let owners = owners(stack).await;
        check_lags(&owners);
        for partition in 0..PARTITIONS {
            let reports = owners.get(&partition).map(Vec::as_slice).unwrap_or_default();
            let end = log.get(&partition).map_or(0, |records| records.len() as u64);
            if !matches!(reports, [report] if report.lag == Some(0) && report.next_offset == Some(end)) {
                return Err(format!("{partition}: {reports:?}"));
            }
        }
        Ok(())
    })
    .await;
}

/// Produces until `over`. Returns how many.
async fn produce(feed: &mut Feed, over: &AtomicBool) -> usize {
    let mut sent = 0;
    while !over.load(Ordering::Relaxed) {
        feed.send(100).await;
        sent += 100;
        pause(Duration::from_millis(50)).await;
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_move_every_five_seconds_cost_nobody_a_record() {
    let stack = stack(&[]).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 21, 100);
    let (over, gateways) = (AtomicBool::new(false), gateways(&stack));
    let moving = async {
        let begun = Instant::now();
        for ingest in stack.ingest.iter().cycle() {
            let moved = Instant::now();
            ingest.restart(Stop::Terminate).await;
            check_lags(&owners(&stack).await);
            if begun.elapsed() > MOVING {
                break;
            }
            pause(MOVE_INTERVAL.saturating_sub(moved.elapsed())).await;
        }
        over.store(true, Ordering::Relaxed);
    };
    let mut watcher = Watcher::new();
    let watching = watcher.until(&gateways, MOVING * 2, |_| over.load(Ordering::Relaxed));
    let (sent, (), ()) = tokio::join!(produce(&mut feed, &over), moving, watching);
    let log = feed.log().await;
    assert_eq!(feed::records(&log), sent);
    watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= sent).await;
    watcher.assert_received(&log);
    until_each_has_one_owner_without_lag(&stack, &log).await;
    let mut late = Watcher::new();
    late.until(&gateways, TIMEOUT, |watcher| watcher.records() >= sent).await;
    late.assert_received(&log);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_frozen_past_its_session_does_no_harm_when_it_wakes() {
    let stack = stack(&[]).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 22, 100);
    let (over, gateways) = (AtomicBool::new(false), gateways(&stack));
    let freezing = async {
        for frozen in &stack.ingest {
            frozen.pause();
            eventually("others own its partitions", TIMEOUT, async || {
                let owners = owners(&stack).await;
                let owned = (0..PARTITIONS).filter(|partition| owners.contains_key(partition)).count();
                if owned == PARTITIONS as usize { Ok(()) } else { Err(format!("{owned} have an owner")) }
            })
            .await;
            frozen.resume();
            frozen.ready().await;
        }
        over.store(true, Ordering::Relaxed);
    };
    let mut watcher = Watcher::new();
    let watching = watcher.until(&gateways, TIMEOUT, |_| over.load(Ordering::Relaxed));
    let (sent, (), ()) = tokio::join!(produce(&mut feed, &over), freezing, watching);
    let log = feed.log().await;
    watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= sent).await;
    watcher.assert_received(&log);
    until_each_has_one_owner_without_lag(&stack, &log).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_past_the_poll_interval_moves_no_partition_and_loses_nothing() {
    // librdkafka refuses a poll interval below the session timeout.
    let stack = stack(&[("KAFKA_SETTINGS", "max.poll.interval.ms=4000")]).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 23, 100);
    let (over, gateways) = (AtomicBool::new(false), gateways(&stack));
    eventually("each has its share", TIMEOUT, async || {
        for ingest in &stack.ingest {
            let owned = ingest.metric("dashstream_ingest_partitions_owned").await?;
            if owned.is_none_or(|owned| owned < 2.0) {
                return Err(format!("{owned:?}"));
            }
        }
        Ok(())
    })
    .await;
    feed.send(2_000).await;
    let before = feed.log().await;
    until_each_has_one_owner_without_lag(&stack, &before).await;
    let members = |owners: &BTreeMap<i32, Vec<PartitionCatchUp>>| -> Vec<(i32, usize)> {
        owners.iter().map(|(partition, reports)| (*partition, reports.len())).collect()
    };
    let rebalances = |stack: &Stack| -> usize {
        stack.ingest.iter().map(|ingest| ingest.log_text().matches("partitions assigned").count()).sum()
    };
    let (owned, assigned) = (members(&owners(&stack).await), rebalances(&stack));
    let hanging = async {
        stack.redis.pause();
        let begun = Instant::now();
        let mut stalled = 0;
        while begun.elapsed() < Duration::from_secs(9) {
            let now = owners(&stack).await;
            check_lags(&now);
            stalled = stalled
                .max(now.values().flatten().filter(|report| report.reason.contains("acknowledged")).count());
            pause(Duration::from_millis(200)).await;
        }
        assert!(stalled > 0, "nobody said that the store hangs");
        assert_eq!(members(&owners(&stack).await), owned, "and all are still owned");
        stack.redis.resume();
        over.store(true, Ordering::Relaxed);
    };
    let (sent, ()) = tokio::join!(produce(&mut feed, &over), hanging);
    let log = feed.log().await;
    let mut watcher = Watcher::new();
    watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= sent + 2_000).await;
    watcher.assert_received(&log);
    assert_eq!(rebalances(&stack), assigned, "no partition moved");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_a_name_comes_back_to_its_partitions_and_moves_none() {
    let settings = |name: &str| {
        [("KAFKA_GROUP_INSTANCE_ID", name.to_owned()), ("KAFKA_SESSION_TIMEOUT", "30s".to_owned())]
            .map(|(setting, value)| (Kind::Ingest, setting, value))
            .to_vec()
    };
    let shape = Shape { partitions: 4, settings: settings("ingest-0"), ..Shape::default() };
    let stack = Stack::start(shape).await;
    let other =
        stack.another_ingest(&[("KAFKA_GROUP_INSTANCE_ID", "ingest-1"), ("KAFKA_SESSION_TIMEOUT", "30s")]);
    let mine = async |of: &Service| -> Vec<i32> {
        let answer = Operator::of(of).catch_up().await.map(|answer| answer.partitions).unwrap_or_default();
        answer.into_iter().map(|report| report.partition).collect()
    };
    let shared = async || -> Result<(Vec<i32>, Vec<i32>), String> {
        let (first, second) = (mine(&stack.ingest[0]).await, mine(&other).await);
        if first.len() == 2 && second.len() == 2 {
            Ok((first, second))
        } else {
            Err(format!("{first:?} {second:?}"))
        }
    };
    let before = eventually("both have two partitions", TIMEOUT, shared).await;
    let assigned = other.log_text().matches("partitions assigned").count();
    assert_eq!(
        Operator::of(&other).catch_up().await.expect("an answer").owner,
        "ingest-1",
        "it is called so"
    );
    for how in [Stop::Terminate, Stop::Kill] {
        stack.ingest[0].restart(how).await;
        assert_eq!(eventually("both have two again", TIMEOUT, shared).await, before);
    }
    assert_eq!(other.log_text().matches("partitions assigned").count(), assigned, "nothing moved");
}

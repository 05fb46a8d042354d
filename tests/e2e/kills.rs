//! Any process may die at any moment.
use dashstream_tests::{Feed, Kind, Service, Shape, Stack, Stop, Watcher, eventually::pause, feed};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(120);

/// Two of each, with a group that notices quickly that a member is gone.
async fn stack() -> Stack {
    let settings = vec![(Kind::Ingest, "KAFKA_SESSION_TIMEOUT", "2s".to_owned())];
    Stack::start(Shape { partitions: 8, ingest: 2, replay: 2, gateway: 2, settings, ..Shape::default() })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_costs_nobody_a_record() {
    let stack = stack().await;
    let gateways: Vec<_> = stack.gateway.iter().map(Service::address).collect();
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 4, 100);
    let over = AtomicBool::new(false);
    let producing = async {
        let mut sent = 0;
        // Records flow at every moment of every kill.
        while !over.load(Ordering::Relaxed) {
            feed.send(100).await;
            sent += 100;
            pause(Duration::from_millis(20)).await;
        }
        sent
    };
    let killing = async {
        let two_rounds = (0..2)
            .flat_map(|_| (0..2).flat_map(|at| [&stack.ingest[at], &stack.replay[at], &stack.gateway[at]]));
        for victim in two_rounds {
            victim.restart(Stop::Kill).await;
        }
        over.store(true, Ordering::Relaxed);
    };
    let mut watcher = Watcher::new();
    let watching = watcher.until(&gateways, TIMEOUT, |_| over.load(Ordering::Relaxed));
    let (sent, (), ()) = tokio::join!(producing, killing, watching);
    let log = feed.log().await;
    assert_eq!(feed::records(&log), sent);
    watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= sent).await;
    watcher.assert_received(&log);

    // And what is stored is the same for one who comes later.
    let mut late = Watcher::new();
    late.until(&gateways, TIMEOUT, |watcher| watcher.records() >= sent).await;
    late.assert_received(&log);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_store_is_refilled_and_cursors_survive_it() {
    let stack = stack().await;
    let gateways: Vec<_> = stack.gateway.iter().map(Service::address).collect();
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 5, 50);
    let mut watcher = Watcher::new();
    feed.send(5_000).await;
    watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= 5_000).await;

    let mut connection = stack.redis.connection().await;
    redis::cmd("FLUSHALL").exec_async(&mut connection).await.expect("redis answers");
    feed.send(5_000).await;
    let log = feed.log().await;
    watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= 10_000).await;
    watcher.assert_received(&log);

    let mut late = Watcher::new();
    late.until(&gateways, TIMEOUT, |watcher| watcher.records() >= 10_000).await;
    late.assert_received(&log);
}

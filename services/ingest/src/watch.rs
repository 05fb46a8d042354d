//! What goes on beside the pipelines: the topic is looked at, gateways hear where partitions are, positions are
//! committed.
use crate::{kafka::Consumer, live::Live, metrics::Metrics, owned::Owned, partition::Parts, topic};
use dashstream_kit::{Kit, ops::Latch};
use std::{
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Rates are counted in seconds.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
const TOPIC_INTERVAL: Duration = Duration::from_secs(10);
const TOPIC_RETRY: Duration = Duration::from_millis(500);

/// Starts all of it.
pub(crate) fn start(kit: &Kit, parts: &Parts, partition_count: Arc<AtomicI32>) {
    let Parts { config, consumer, replay, owned, live, brake, metrics, .. } = parts;
    let stop = kit.tasks.stop_token();
    let latch = kit.readiness.latch("kafka");
    let check = topic::Check::new(Arc::clone(config), replay.clone(), metrics.clone());
    kit.tasks.spawn("topic", watch_topic(consumer.clone(), partition_count, check, latch, stop.clone()));
    let guard = brake.clone().guard(kit.readiness.latch("consumption"), stop.clone());
    kit.tasks.spawn("brake", guard);
    kit.tasks.spawn("heartbeats", beat(owned.clone(), live.clone(), config.heartbeat, stop.clone()));
    kit.tasks.spawn("brokers", watch_brokers(consumer.clone(), metrics.clone(), stop.clone()));
    kit.tasks.spawn("commits", commit(consumer.clone(), owned.clone(), stop));
}

/// Ready once the topic is known.
async fn watch_topic(
    consumer: Consumer,
    count: Arc<AtomicI32>,
    mut check: topic::Check,
    latch: Latch,
    stop: CancellationToken,
) {
    loop {
        let asked = consumer.clone();
        let ask = move || asked.partition_count().map_err(|error| asked.explain(&error));
        let pause = match tokio::task::spawn_blocking(ask).await {
            Ok(Ok(partitions)) => {
                count.store(i32::try_from(partitions).unwrap_or(i32::MAX), Ordering::Relaxed);
                latch.ready();
                stop.run_until_cancelled(check.on_partitions(partitions)).await;
                TOPIC_INTERVAL
            }
            Ok(Err(error)) => {
                latch.not_ready(error);
                TOPIC_RETRY
            }
            Err(_) => TOPIC_RETRY,
        };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

async fn beat(owned: Owned, live: Live, interval: Duration, stop: CancellationToken) {
    let (mut beats, mut samples) = (tokio::time::interval(interval), tokio::time::interval(SAMPLE_INTERVAL));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = samples.tick() => owned.sample(),
            _ = beats.tick() => owned.heartbeats().into_iter().for_each(|heartbeat| live.heartbeat(heartbeat)),
        }
    }
}

async fn watch_brokers(consumer: Consumer, metrics: Metrics, stop: CancellationToken) {
    let mut known = consumer.known();
    while let Some(Ok(())) = stop.run_until_cancelled(known.changed()).await {
        let known = known.borrow_and_update();
        metrics.source.brokers_up.set(known.brokers_up as i64);
        metrics.source.brokers.set(known.brokers as i64);
    }
}

async fn commit(consumer: Consumer, owned: Owned, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(COMMIT_INTERVAL);
    let mut committed = Vec::new();
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let positions = owned.positions();
        if positions == committed {
            continue;
        }
        match consumer.commit(&positions) {
            Ok(()) => committed = positions,
            Err(error) => tracing::warn!(%error, "commit"),
        }
    }
}

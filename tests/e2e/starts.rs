//! Where a session may begin.
use dashstream_core::{chain::Chain, codec};
use dashstream_ctl::client::{Client, Event};
use dashstream_proto::{
    log::v1::RunStatus,
    session::v1::{Limits, StartPolicy},
};
use dashstream_tests::{Feed, Log, Shape, Stack, Watcher};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Each thread's last status, and the offset of its newest whole state, else of its first record.
fn threads(log: &Log) -> BTreeMap<String, (RunStatus, u64)> {
    let mut threads = BTreeMap::new();
    for (offset, payload) in log.values().flatten() {
        let facts =
            codec::facts(Some(payload), codec::Limits::default()).expect("the test's payloads decode");
        let thread = threads.entry(facts.thread_id).or_insert((RunStatus::Unspecified, *offset));
        if facts.run.status() != RunStatus::Unspecified {
            thread.0 = facts.run.status();
        }
        if facts.run.whole_state {
            thread.1 = *offset;
        }
    }
    threads
}

/// What a start at the running threads is sent of a log that nothing is added to.
fn expected(log: &Log) -> BTreeMap<i32, Vec<u64>> {
    let threads = threads(log);
    let sent = |(offset, payload): &(u64, bytes::Bytes)| {
        let facts =
            codec::facts(Some(payload), codec::Limits::default()).expect("the test's payloads decode");
        let mut concerned = facts.more_threads.iter().map(|(thread, _)| thread).chain([&facts.thread_id]);
        concerned.any(|thread| {
            let (status, from) = threads.get(thread).copied().unwrap_or_default();
            matches!(status, RunStatus::Running | RunStatus::Interrupted) && from <= *offset
        })
    };
    let of = |(partition, records): (&i32, &Vec<_>)| {
        let offsets = records.iter().filter(|record| sent(record)).map(|(offset, _)| *offset).collect();
        (*partition, offsets)
    };
    log.iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_at_the_running_threads_sends_each_from_its_state_and_then_what_comes() {
    let stack = Stack::start(Shape::default()).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 9, 6);
    feed.send(3_000).await;
    let before = feed.log().await;
    let gateways = [stack.gateway[0].address()];
    Watcher::new().until(&gateways, TIMEOUT, |watcher| watcher.records() >= 3_000).await;

    let url = format!("ws://{}/ws", gateways[0]);
    let mut client = Client::connect(&url, Chain::default(), Limits::default()).await.expect("connect");
    client.subscribe(StartPolicy::Active).await.expect("subscribe");
    let (mut received, mut caught_up) = (BTreeMap::<i32, Vec<u64>>::new(), BTreeSet::new());
    let mut after = None;
    let reading = async {
        loop {
            match client.next().await.expect("the chain holds") {
                Event::Records { partition, records, .. } => {
                    received.entry(partition).or_default().extend(records.iter().map(|record| record.offset));
                }
                Event::CaughtUp(mark) => drop(caught_up.insert(mark.mark.map(|mark| mark.partition))),
                event @ (Event::Gap(_) | Event::Stale(_) | Event::Error(_) | Event::Closed) => {
                    panic!("{event:?}")
                }
                Event::Skipped(_)
                | Event::State(_)
                | Event::Partitions(_)
                | Event::Notice(_)
                | Event::GoingAway(_)
                | Event::Pong => {}
            }
            if caught_up.len() == before.len() && after.is_none() {
                let expected = expected(&before);
                assert!(before.keys().all(|p| received.get(p).map_or(&[][..], Vec::as_slice) == expected[p]));
                let sent: usize = expected.values().map(Vec::len).sum();
                assert!(sent > 0 && sent < 1_000, "{sent} of 3,000");
                feed.send(500).await;
                after = Some(feed.log().await);
            }
            if let Some(after) = &after {
                let reached = |(p, records): (&i32, &Vec<_>)| {
                    let last: Option<&(u64, _)> = records.last();
                    received.get(p).and_then(|offsets| offsets.last()) >= last.map(|(offset, _)| offset)
                };
                if after.iter().all(reached) {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(TIMEOUT, reading).await.expect("it is caught up, and goes on");
    let (expected, after) = (expected(&before), after.expect("it was sent"));
    for (partition, records) in &after {
        let old = before.get(partition).map_or(0, Vec::len);
        let new = records[old..].iter().map(|(offset, _)| *offset);
        let all: Vec<_> = expected.get(partition).into_iter().flatten().copied().chain(new).collect();
        assert_eq!(received[partition], all, "partition {partition}");
    }
}

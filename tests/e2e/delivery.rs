//! Order, no loss, no duplicates, over any number of sessions.
use dashstream_tests::{Feed, Shape, Stack, Watcher, feed};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(120);

fn gateways(stack: &Stack) -> Vec<String> {
    stack.gateway.iter().map(dashstream_tests::Service::address).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_arrives_exactly_once_in_order_and_unchanged() {
    let stack = Stack::start(Shape { partitions: 8, ..Shape::default() }).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 500);
    let (gateways, mut watcher) = (gateways(&stack), Watcher::new());
    let producing = async {
        feed.send(100_000).await;
        feed.log().await
    };
    let watching = watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= 100_000);
    let (log, ()) = tokio::join!(producing, watching);
    assert_eq!((feed::records(&log), log.len()), (100_000, 8));
    watcher.assert_received(&log);
    assert_eq!(watcher.sessions, 1);

    // The past is the same as it was live.
    let mut late = Watcher::new();
    late.until(&gateways, TIMEOUT, |watcher| watcher.records() >= 100_000).await;
    late.assert_received(&log);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_cut_at_random_resumes_exactly_on_another_gateway() {
    let stack = Stack::start(Shape { partitions: 8, gateway: 2, ..Shape::default() }).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 2, 100);
    let gateways = gateways(&stack);
    let mut watcher = Watcher::new();
    let mut rng = StdRng::seed_from_u64(11);
    let producing = async {
        feed.send(60_000).await;
        feed.log().await
    };
    let cutting = async {
        for cut in 0..20 {
            // At most 30 frames of 64 records each: the records outlast the cuts.
            let events = rng.random_range(1..30);
            watcher.follow(&gateways[cut % 2], events, &mut |_| false).await.expect("the gateway is up");
        }
    };
    let (log, ()) = tokio::join!(producing, cutting);
    watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= feed::records(&log)).await;
    watcher.assert_received(&log);
    assert!(watcher.sessions > 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_does_not_decode_is_a_declared_gap_and_its_neighbours_arrive() {
    let stack = Stack::start(Shape { partitions: 1, ..Shape::default() }).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 3, 5);
    feed.send(10).await;
    feed.send_payload("t", b"\x02this is not a message").await;
    feed.send(10).await;
    let log = feed.log().await;
    let mut watcher = Watcher::new();
    watcher.until(&gateways(&stack), TIMEOUT, |watcher| watcher.records() >= 21).await;
    let [gap] = &watcher.gaps[..] else { panic!("{:?}", watcher.gaps) };
    assert_eq!((gap.partition, gap.first_offset, gap.last_offset), (0, 10, 10));
    for (at, (received, sent)) in watcher.received()[&0].iter().zip(&log[&0]).enumerate() {
        assert!(at == 10 && received.1.is_empty() || received == sent, "record {at}");
    }
}

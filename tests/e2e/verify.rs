//! Whether the store has what Kafka has, told by one who trusts no link.
use bytes::Bytes;
use dashstream_core::{
    batch::{Envelope, Packer},
    codec::{self, Limits},
    position::{Epoch, Offset, Partition},
};
use dashstream_kit::grpc::channel_to;
use dashstream_proto::replay::v1::{
    AppendRequest, OpenPartitionRequest, append_response::Outcome, replay_service_client::ReplayServiceClient,
};
use dashstream_tests::{Feed, Kafka, Kind, Redis, Service, Shape, Stack, Watcher, dashstream};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(60);

async fn verify(brokers: &str, topic: &str, replay: &Service) -> (bool, String) {
    let address = replay.address();
    let settings = [("KAFKA_BROKERS", brokers), ("KAFKA_TOPIC", topic), ("REPLAY_TARGETS", &address)];
    dashstream(&["verify"], &settings).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ingest_filled_is_what_kafka_has() {
    let stack = Stack::start(Shape::default()).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 61, 20);
    feed.send(1_000).await;
    feed.send_to(0, Some(b"\x02nonsense")).await;
    feed.log().await;
    let mut watcher = Watcher::new();
    watcher.until(&[stack.gateway[0].address()], TIMEOUT, |watcher| watcher.records() >= 1_001).await;
    let (sound, text) = verify(&stack.kafka.brokers(), &stack.topic, &stack.replay[0]).await;
    assert!(sound, "{text}");
    let same: u64 = text.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum();
    assert_eq!(same, 1_000, "{text}");
}

/// Stores records behind one another, each linked to the one before, as ingest would.
async fn store(replay: &Service, topic: &str, records: impl Iterator<Item = (u64, Bytes)>) {
    let mut client = ReplayServiceClient::new(channel_to(&replay.address()).expect("an address"));
    let open = OpenPartitionRequest { stream: topic.to_owned(), partition: 0, ..Default::default() };
    let opened = client.open_partition(open).await.expect("replay answers").into_inner();
    let mut packer = Packer::new(Epoch::new(opened.epoch), Partition::new(0).expect("in range"), None);
    for (offset, payload) in records {
        let facts = codec::facts(Some(&payload), Limits::default()).expect("a sound record");
        let (traceparent, tracestate) = (String::new(), String::new());
        let offset = Offset::new(offset).expect("in range");
        assert!(
            packer.push(Envelope { offset, timestamp_ms: None, facts, traceparent, tracestate }, &payload)
        );
    }
    let request = AppendRequest { stream: topic.to_owned(), batch: packer.finish() };
    let answers = client.append(futures_util::stream::iter([request])).await.expect("replay answers");
    let answer = answers.into_inner().message().await.expect("an answer").expect("one answer");
    assert!(matches!(answer.outcome, Some(Outcome::Stored(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_stored_or_is_another_record_is_found_although_every_link_is_right() {
    let (kafka, redis) = (Kafka::shared().await, Redis::start(&[]).await);
    let topic = "verified";
    kafka.create_topic(topic, 1, &[]).await;
    let replay = Service::start(Kind::Replay, &[("REDIS_URL", &redis.url()), ("REPLAY_STORE", "redis")]);
    replay.ready().await;
    let mut feed = Feed::new(&kafka.client_config(), topic, 62, 5);
    feed.send(100).await;
    let log = feed.log().await;
    let swapped =
        |offset: u64| if offset == 41 { log[&0][42].1.clone() } else { log[&0][offset as usize].1.clone() };
    let kept = (0..100).filter(|offset| offset % 10 != 7).map(|offset| (offset, swapped(offset)));
    store(&replay, topic, kept).await;
    let (sound, text) = verify(&kafka.brokers(), topic, &replay).await;
    assert!(!sound, "{text}");
    for said in [
        "missing without a word: 7, 17, 27, 37, 47, 57, 67, 77, 87, 97",
        "other bytes: 41",
        "1 of 1 partitions",
    ] {
        assert!(text.contains(said), "{said} in\n{text}");
    }
}

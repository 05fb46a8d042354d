//! Dead letters against a real Kafka: each is there once, however long Kafka is not.
use dashstream_core::dead_letter::{Age, DeadLetter, Keep, Source, Verdict};
use dashstream_ingest::dlq::{Config, DeadLetters, Metrics};
use dashstream_kit::Kit;
use dashstream_tests::{Kafka, eventually};
use futures_util::{StreamExt, future::join_all, stream};
use rdkafka::ClientConfig;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

fn letters(client: &ClientConfig, topic: &str, full_payload: bool) -> DeadLetters {
    let metrics = Metrics::register(&Kit::embedded("ingest").registry).expect("a fresh registry");
    let config = Config { topic: None, prefix_bytes: 256, full_payload };
    DeadLetters::new(client, topic, &config, metrics).expect("sound settings")
}

fn letter(topic: &str, offset: usize, value: &[u8]) -> DeadLetter {
    let source = Source {
        at: format!("{topic}/0/{offset}").parse().expect("coordinates"),
        epoch: None,
        timestamp_ms: None,
        key: None,
        value: Some(value),
        traceparent: "",
        tracestate: "",
        retry: None,
    };
    let verdict =
        Verdict { error: "protobuf", message: "not a message", age: Age::New, judged_ms: 0, owner: "test" };
    DeadLetter::new(source, verdict, Keep { whole: true, ..Keep::default() })
}

/// The letters of a topic, by their keys; a key may have several.
async fn stored(kafka: &Kafka, topic: &str) -> BTreeMap<String, Vec<DeadLetter>> {
    let mut stored = BTreeMap::<_, Vec<_>>::new();
    for (key, letter) in dashstream_tests::letters(&kafka.client_config(), topic).await {
        stored.entry(key).or_default().push(letter);
    }
    stored
}

async fn trouble(letters: &DeadLetters, expected: &str) {
    let what = format!("the trouble that says {expected}");
    eventually(&what, PATIENCE, async || match letters.trouble() {
        Some(why) if why.contains(expected) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_waits_for_its_topic_and_is_there_once() {
    let kafka = Kafka::shared().await;
    let letters = letters(&kafka.client_config(), "late", false);
    let waiting = letters.deliver(letter("late", 7, b"value"));
    let appears = async {
        trouble(&letters, "dead letters wait for the topic late-dlq").await;
        trouble(&letters, "Unknown topic").await;
        kafka.create_topic("late-dlq", 1, &[]).await;
    };
    timeout(PATIENCE, async { tokio::join!(waiting, appears) }).await.expect("the letter in time");
    assert_eq!(letters.trouble(), None);
    let stored = stored(&kafka, "late-dlq").await;
    assert_eq!(stored["late/0/7"].len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stands_still_gets_each_letter_once() {
    const LETTERS: usize = 5_000;
    let kafka = Kafka::start().await; // its own: it is about to be stopped
    kafka.create_topic("runs-dlq", 1, &[]).await;
    let mut client = kafka.client_config();
    client.set("socket.timeout.ms", "1000");
    let letters = letters(&client, "runs", false);
    // What is on its way when the broker stops was perhaps stored, and its answer is lost.
    let waiting = stream::iter(0..LETTERS)
        .for_each_concurrent(50, |offset| letters.deliver(letter("runs", offset, b"value")));
    let stands_still = async {
        eventually("some letters are stored", PATIENCE, async || {
            let (_, high) = kafka.watermarks("runs-dlq", 0).await;
            if high > 0 { Ok(()) } else { Err("none yet") }
        })
        .await;
        kafka.pause();
        // The process takes connections still: only requests that time out say so.
        trouble(&letters, "brokers are down").await;
        kafka.resume();
    };
    timeout(2 * PATIENCE, async { tokio::join!(waiting, stands_still) }).await.expect("all letters in time");
    let stored = stored(&kafka, "runs-dlq").await;
    let repeated: Vec<_> = stored.iter().filter(|(_, letters)| letters.len() != 1).collect();
    assert!(stored.len() == LETTERS && repeated.is_empty(), "{} keys, {repeated:?}", stored.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_too_large_for_its_topic_goes_without_the_whole_value() {
    let kafka = Kafka::shared().await;
    kafka.create_topic("large-dlq", 1, &[("max.message.bytes", "20000")]).await;
    let letters = letters(&kafka.client_config(), "large", true);
    let values = [vec![0xff; 100_000], vec![0xff; 2_000_000], b"small".to_vec()];
    let all = values.iter().enumerate().map(|(at, value)| letters.deliver(letter("large", at, value)));
    timeout(PATIENCE, join_all(all)).await.expect("all letters in time");
    let stored = stored(&kafka, "large-dlq").await;
    let whole: Vec<_> = stored.values().map(|letters| letters[0].is_whole()).collect();
    assert_eq!(whole, [false, false, true], "the small one keeps its value");
}

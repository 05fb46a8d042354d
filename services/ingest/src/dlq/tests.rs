use super::*;
use dashstream_core::dead_letter::Age;
use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

type Broker = MockCluster<'static, DefaultProducerContext>;

const TIMEOUT: Duration = Duration::from_secs(30);

fn broker() -> Broker {
    let broker = MockCluster::new(1).unwrap();
    broker.create_topic("runs-dlq", 1, 1).unwrap();
    broker
}

fn letters(broker: &Broker, full_payload: bool) -> (DeadLetters, Registry) {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", broker.bootstrap_servers());
    client.set("reconnect.backoff.ms", "20").set("reconnect.backoff.max.ms", "100");
    let config = Config { topic: None, prefix_bytes: 16, full_payload };
    (DeadLetters::new(&client, "runs", &config, metrics).unwrap(), registry)
}

fn letter(letters: &DeadLetters, offset: u64, value: &[u8]) -> DeadLetter {
    let at = format!("runs/0/{offset}").parse().unwrap();
    let source = Source {
        at,
        epoch: None,
        timestamp_ms: None,
        key: None,
        value: Some(value),
        traceparent: "",
        tracestate: "",
        retry: None,
    };
    let verdict =
        Verdict { error: "empty", message: "the value is empty", age: Age::New, judged_ms: 0, owner: "test" };
    DeadLetter::new(source, verdict, letters.0.keep)
}

async fn delivered(letters: &DeadLetters, letter: DeadLetter) {
    tokio::time::timeout(TIMEOUT, letters.deliver(letter)).await.expect("an acknowledgement in time");
}

/// The first `count` letters of the topic.
async fn stored(broker: &Broker, count: usize) -> Vec<DeadLetter> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", broker.bootstrap_servers()).set("group.id", "test");
    let consumer: BaseConsumer = client.create().unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_offset("runs-dlq", 0, rdkafka::Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    let read = move || {
        (0..count).map(|_| consumer.poll(TIMEOUT).expect("a letter in time").unwrap().detach()).collect()
    };
    let records: Vec<_> = tokio::task::spawn_blocking(read).await.unwrap();
    let stored = records.iter().map(|record| {
        let letter = DeadLetter::from_json(record.payload().unwrap()).unwrap();
        assert_eq!(record.key(), Some(letter.record_key().as_bytes()));
        letter
    });
    stored.collect()
}

/// The value of `name`, with the label's value where it has one.
fn counted(registry: &Registry, name: &str, label: Option<&str>) -> f64 {
    let families = registry.gather();
    let metrics =
        families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
    let mut matching =
        metrics.filter(|metric| label == metric.get_label().first().map(|label| label.value()));
    matching.next().map_or(0.0, |metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_delivered_when_kafka_acknowledged_it() {
    let broker = broker();
    let (letters, registry) = letters(&broker, false);
    let waiting = letters.deliver(letter(&letters, 7, b"value"));
    assert_eq!(counted(&registry, "dashstream_ingest_dead_letters_waiting", None), 1.0);
    tokio::time::timeout(TIMEOUT, waiting).await.expect("an acknowledgement in time");
    assert_eq!(stored(&broker, 1).await, [letter(&letters, 7, b"value")]);
    assert_eq!(counted(&registry, "dashstream_ingest_dead_letters_waiting", None), 0.0);
    assert_eq!(counted(&registry, "dashstream_ingest_dead_letters_total", Some("empty")), 1.0);
    assert_eq!(letters.trouble(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_that_is_given_up_waits_no_longer() {
    let broker = broker();
    let (letters, registry) = letters(&broker, false);
    drop(letters.deliver(letter(&letters, 7, b"value")));
    assert_eq!(counted(&registry, "dashstream_ingest_dead_letters_waiting", None), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kafka_refuses_is_repeated_until_it_is_taken() {
    use RDKafkaRespErr as Code;
    for (label, code) in [
        ("not_allowed", Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED),
        ("too_large", Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE),
        ("other", Code::RD_KAFKA_RESP_ERR_INVALID_RECORD),
    ] {
        let broker = broker();
        let (letters, registry) = letters(&broker, false);
        broker.request_errors(RDKafkaApiKey::Produce, &[code, code]);
        delivered(&letters, letter(&letters, 7, b"value")).await;
        // At least: librdkafka repeats some errors by itself until it has asked about the topic anew.
        let failures = counted(&registry, "dashstream_ingest_dead_letter_failures_total", Some(label));
        assert!(failures >= 2.0, "{label}: {failures}");
        assert_eq!(stored(&broker, 1).await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_is_too_large_goes_without_the_whole_value() {
    let broker = broker();
    let (letters, _) = letters(&broker, true);
    assert!(letter(&letters, 7, b"value").is_whole());
    broker.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    delivered(&letters, letter(&letters, 7, b"value")).await;
    delivered(&letters, letter(&letters, 8, b"value")).await;
    let whole: Vec<_> = stored(&broker, 2).await.iter().map(DeadLetter::is_whole).collect();
    assert_eq!(whole, [false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_kafka_gives_up_is_replaced() {
    let broker = broker();
    let (letters, registry) = letters(&broker, false);
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    broker.request_errors(RDKafkaApiKey::InitProducerId, &[refused]);
    delivered(&letters, letter(&letters, 7, b"value")).await;
    assert!(counted(&registry, "dashstream_ingest_dead_letter_failures_total", Some("fatal")) >= 1.0);
    assert_eq!(stored(&broker, 1).await.len(), 1);
}

#[test]
fn letters_do_not_go_where_records_come_from() {
    let config = |topic: Option<&str>| Config {
        topic: topic.map(str::to_owned),
        prefix_bytes: 0,
        full_payload: false,
    };
    assert_eq!(config(None).topic("runs").unwrap(), "runs-dlq");
    assert_eq!(config(Some("bad")).topic("runs").unwrap(), "bad");
    let error = config(Some("runs")).topic("runs").unwrap_err().to_string();
    assert!(error.contains("KAFKA_DLQ_TOPIC") && error.contains("`runs`"), "{error}");
}

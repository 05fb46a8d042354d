//! Records into a topic, remembering what Kafka made of each: the truth that a client is compared with.
use bytes::Bytes;
use dashstream_core::codec;
use dashstream_ctl::runs::Runs;
use dashstream_proto::telemetry::{self as wire, DashStreamMessage, TokenChunk, dash_stream_message};
use rdkafka::{
    ClientConfig, ClientContext, Message,
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

const COMPRESS_ABOVE: usize = 512;
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// Each partition's records as Kafka has them: offset and payload, in offset order.
pub type Log = BTreeMap<i32, Vec<(u64, Bytes)>>;

/// How many records a log holds.
pub fn records(log: &Log) -> usize {
    log.values().map(Vec::len).sum()
}

#[derive(Clone, Default)]
struct Delivered(Arc<Mutex<Log>>);

impl ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _opaque: ()) {
        let message = match result {
            Ok(message) => message,
            // The feed was dropped with records on their way: its test asked for no log.
            Err((error, _)) if is_purged(error) => return,
            Err((error, _)) => panic!("Kafka lost a record of the test: {error}"),
        };
        let payload = Bytes::copy_from_slice(message.payload().unwrap_or_default());
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.entry(message.partition()).or_default().push((message.offset() as u64, payload));
    }
}

fn is_purged(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(RDKafkaErrorCode::PurgeInflight | RDKafkaErrorCode::PurgeQueue))
}

/// The value of a record that is fit for the log.
pub fn sound(thread_id: &str) -> Vec<u8> {
    let header = wire::Header { thread_id: thread_id.into(), schema_version: 1, ..Default::default() };
    let chunk = TokenChunk { header: Some(header), text: "word ".repeat(20), ..Default::default() };
    let message = DashStreamMessage { message: Some(dash_stream_message::Message::TokenChunk(chunk)) };
    codec::encode(&message, COMPRESS_ABOVE)
}

/// A producer of demo runs into one topic.
pub struct Feed {
    producer: ThreadedProducer<Delivered>,
    delivered: Delivered,
    topic: String,
    runs: Runs,
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Feed {
    /// Records of `threads` runs at a time, the same for the same seed.
    ///
    /// # Panics
    /// If the producer's settings are wrong.
    pub fn new(client: &ClientConfig, topic: &str, seed: u64, threads: usize) -> Self {
        let delivered = Delivered::default();
        let mut settings = client.clone();
        settings
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("partitioner", "consistent_random");
        let producer = settings.create_with_context(delivered.clone()).expect("make a producer");
        let runs = Runs::new(seed, threads, "t-", 1_700_000_000_000_000);
        Self { producer, delivered, topic: topic.to_owned(), runs }
    }

    /// Hands `count` records over. Waits while Kafka's client has no room.
    ///
    /// # Panics
    /// If a record is refused.
    pub async fn send(&mut self, count: usize) {
        for _ in 0..count {
            let produced = self.runs.next().expect("runs never end");
            let payload = codec::encode(&produced.message, COMPRESS_ABOVE);
            self.send_payload(&produced.thread_id, &payload).await;
        }
    }

    /// Hands one record over, whatever its payload is.
    ///
    /// # Panics
    /// If the record is refused.
    pub async fn send_payload(&self, key: &str, payload: &[u8]) {
        self.hand_over(BaseRecord::to(&self.topic).key(key).payload(payload)).await;
    }

    /// Hands one record over to a partition. Without a value it is a tombstone.
    ///
    /// # Panics
    /// If the record is refused.
    pub async fn send_to(&self, partition: i32, value: Option<&[u8]>) {
        let mut record = BaseRecord::to(&self.topic).key("key").partition(partition);
        record.payload = value;
        self.hand_over(record).await;
    }

    /// Hands `count` sound records over to a partition, all of one thread.
    ///
    /// # Panics
    /// If a record is refused.
    pub async fn send_sound(&self, partition: i32, count: usize) {
        for _ in 0..count {
            self.send_to(partition, Some(&sound(&format!("thread-of-{partition}")))).await;
        }
    }

    /// Hands a sound record over to a partition, with a `traceparent`.
    ///
    /// # Panics
    /// If the record is refused.
    pub async fn send_traced(&self, partition: i32, traceparent: &str) {
        let payload = sound(&format!("thread-of-{partition}"));
        let headers = OwnedHeaders::new().insert(Header { key: "traceparent", value: Some(traceparent) });
        let record = BaseRecord::to(&self.topic).key("key").partition(partition).payload(&*payload);
        self.hand_over(record.headers(headers)).await;
    }

    async fn hand_over(&self, mut record: BaseRecord<'_, str, [u8]>) {
        while let Err((error, back)) = self.producer.send(record) {
            let full = matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            assert!(full, "hand over a record: {error}");
            record = back;
            tokio::task::yield_now().await;
        }
    }

    /// Waits until Kafka has everything, and says what it has.
    ///
    /// # Panics
    /// If that takes more than a minute.
    pub async fn log(&self) -> Log {
        let producer = self.producer.clone();
        let flushed = tokio::task::spawn_blocking(move || producer.flush(FLUSH_TIMEOUT)).await;
        flushed.expect("flush does not panic").expect("Kafka takes all records");
        let mut log = self.delivered.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        log.values_mut().for_each(|records| records.sort_by_key(|(offset, _)| *offset));
        log
    }
}

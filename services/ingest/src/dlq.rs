//! Dead letters into Kafka: delivered when Kafka acknowledged them, and not before.
//!
//! One producer, idempotent and without a deadline of its own: while nobody knows what became of a letter,
//! librdkafka asks on under the same number, so it is stored once. What failed for good (no such topic, not
//! allowed) was not stored, and is handed over anew until it is. Only when Kafka gives up the producer itself
//! may a letter be stored twice; it has the same key then, and repeats compact.
use dashstream_core::{
    backoff::Backoff,
    dead_letter::{Coordinates, DeadLetter, Keep, RETRY_COUNT, RETRY_OF, Retry, Source, Verdict},
    position::{Epoch, Offset, OutOfRange, Partition},
};
use dashstream_kit::metrics::{counters, gauge};
use prometheus::{IntCounterVec, IntGauge, Registry};
use rdkafka::{
    ClientConfig, ClientContext, Message,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers},
    producer::{FutureProducer, FutureRecord},
    util::Timeout,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

const BACKOFF: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(5) };
/// Letters that wait no longer than this are no trouble.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where dead letters go, and how much of a record is in one.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "dead-letters")]
pub struct Config {
    /// Topic of the dead letters: the topic that is read with `-dlq` behind it, unless given. It must exist;
    /// while it does not, partitions stop at the first record that must go there. With `cleanup.policy=compact`
    /// repeats of a letter vanish.
    #[arg(id = "dlq_topic", long = "dlq-topic", env = "KAFKA_DLQ_TOPIC")]
    pub topic: Option<String>,

    /// How much of a record's value is in its dead letter, bytes from the beginning. The rest stays in the
    /// topic that is read, and is found by partition and offset.
    #[arg(long = "dlq-prefix-bytes", env = "INGEST_DLQ_PREFIX_BYTES", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(..=65_536))]
    pub prefix_bytes: u32,

    /// Put the whole value into the dead letter as well, where the dead letters' topic takes messages of that
    /// size. Whoever may read that topic then sees what is in the records.
    #[arg(long = "dlq-full-payload", env = "INGEST_DLQ_FULL_PAYLOAD", default_value_t = false,
          action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub full_payload: bool,
}

/// Letters would be read as records, and become letters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("KAFKA_DLQ_TOPIC is `{0}`, the topic that is read: expected another one")]
pub struct SameTopic(String);

impl Config {
    /// The topic of the dead letters of `source`, the topic that is read.
    ///
    /// # Errors
    /// [`SameTopic`].
    pub fn topic(&self, source: &str) -> Result<String, SameTopic> {
        match &self.topic {
            Some(topic) if topic == source => Err(SameTopic(topic.clone())),
            Some(topic) => Ok(topic.clone()),
            None => Ok(default_topic(source)),
        }
    }

    /// How much of a value is kept.
    pub fn keep(&self) -> Keep {
        Keep { prefix_bytes: self.prefix_bytes as usize, whole: self.full_payload }
    }
}

/// Where dead letters of `source` go unless set otherwise.
pub fn default_topic(source: &str) -> String {
    format!("{source}-dlq")
}

/// What is counted of dead letters.
#[derive(Clone, Debug)]
pub struct Metrics {
    letters: IntCounterVec,
    failures: IntCounterVec,
    waiting: IntGauge,
}

impl Metrics {
    /// # Errors
    /// A name is already taken in `registry`: a bug, so `main` stops on it.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            letters: counters(
                registry,
                "dashstream_ingest_dead_letters_total",
                "Dead letters that Kafka acknowledged, by what is wrong with the record.",
                &["error"],
            )?,
            failures: counters(
                registry,
                "dashstream_ingest_dead_letter_failures_total",
                "Attempts to hand a dead letter to Kafka that failed for good, by why; each is repeated.",
                &["reason"],
            )?,
            waiting: gauge(
                registry,
                "dashstream_ingest_dead_letters_waiting",
                "Dead letters that Kafka has not acknowledged yet.",
            )?,
        })
    }
}

/// Why Kafka did not take a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    UnknownTopic,
    NotAllowed,
    TooLarge,
    /// The producer is of no more use.
    Fatal,
    Other,
}

impl Refusal {
    fn of(error: &KafkaError) -> Self {
        use RDKafkaErrorCode as Code;
        let code = error.rdkafka_error_code();
        let is = |codes: &[Code]| code.is_some_and(|code| codes.contains(&code));
        if is(&[Code::UnknownTopic, Code::UnknownTopicOrPartition, Code::UnknownPartition]) {
            Self::UnknownTopic
        } else if is(&[
            Code::TopicAuthorizationFailed,
            Code::ClusterAuthorizationFailed,
            Code::Authentication,
        ]) {
            Self::NotAllowed
        } else if is(&[Code::MessageSizeTooLarge, Code::InvalidMessageSize]) {
            Self::TooLarge
        } else if is(&[Code::Fatal, Code::Fenced]) {
            Self::Fatal
        } else {
            Self::Other
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::UnknownTopic => "unknown_topic",
            Self::NotAllowed => "not_allowed",
            Self::TooLarge => "too_large",
            Self::Fatal => "fatal",
            Self::Other => "other",
        }
    }
}

/// What librdkafka said last about its connections; empty once it is well.
#[derive(Clone, Debug, Default)]
struct Connection(Arc<Mutex<String>>);

impl ClientContext for Connection {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka, for dead letters");
        reason.clone_into(&mut lock(&self.0));
    }
}

type Producer = FutureProducer<Connection>;

/// A letter that is not acknowledged.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    /// Why its last attempt failed.
    why: Option<String>,
}

struct Inner {
    topic: String,
    keep: Keep,
    settings: ClientConfig,
    /// With how many were there before it: Kafka may give one up.
    producer: Mutex<(u64, Producer)>,
    connection: Connection,
    /// By the order in which they were handed in.
    waiting: Mutex<(u64, BTreeMap<u64, Waiting>)>,
    metrics: Metrics,
}

/// The way into the topic of dead letters. A cheap handle.
#[derive(Clone)]
pub struct DeadLetters(Arc<Inner>);

impl std::fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = lock(&self.0.waiting).1.len();
        let mut letters = f.debug_struct("DeadLetters");
        letters.field("topic", &self.0.topic).field("waiting", &waiting).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DeadLetters {
    /// `client` says how Kafka is reached; what our promises rest on is set here. Asks Kafka nothing yet.
    ///
    /// # Errors
    /// [`SameTopic`], or when librdkafka refuses a setting, which it names.
    pub fn new(
        client: &ClientConfig,
        source_topic: &str,
        config: &Config,
        metrics: Metrics,
    ) -> anyhow::Result<Self> {
        let mut settings = client.clone();
        settings
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("message.timeout.ms", "0")
            .set("partitioner", "consistent_random")
            // A topic that is not there is said to be so soon, and asked for again.
            .set("topic.metadata.propagation.max.ms", "2000")
            // How large a letter may be is for the topic to say. A batch is refused as a whole, so a large letter
            // gets one of its own.
            .set("message.max.bytes", "100000000")
            .set("batch.size", "16384")
            .set("queue.buffering.max.kbytes", "65536")
            .set("linger.ms", "5");
        let connection = Connection::default();
        let producer = settings.create_with_context(connection.clone())?;
        Ok(Self(Arc::new(Inner {
            topic: config.topic(source_topic)?,
            keep: config.keep(),
            settings,
            producer: Mutex::new((0, producer)),
            connection,
            waiting: Mutex::default(),
            metrics,
        })))
    }

    /// The topic of the letters.
    pub fn topic(&self) -> &str {
        &self.0.topic
    }

    /// The letter of a record, with as much of it as is to be kept. `epoch` is that of the partition's log.
    ///
    /// # Errors
    /// [`OutOfRange`]: it did not come from Kafka.
    pub fn letter(
        &self,
        record: &BorrowedMessage<'_>,
        epoch: Option<Epoch>,
        verdict: Verdict<'_>,
    ) -> Result<DeadLetter, OutOfRange> {
        let at = Coordinates {
            topic: record.topic().to_owned(),
            partition: Partition::new(record.partition())?,
            offset: Offset::from_kafka(record.offset())?,
        };
        let header = |key: &str| {
            let found = record.headers()?.iter().find(|header| header.key == key);
            found.and_then(|header| header.value)
        };
        let text = |key| header(key).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
        let source = Source {
            at,
            epoch,
            timestamp_ms: record.timestamp().to_millis(),
            key: record.key(),
            value: record.payload(),
            traceparent: text("traceparent"),
            tracestate: text("tracestate"),
            retry: Retry::from_headers(header(RETRY_OF), header(RETRY_COUNT)),
        };
        Ok(DeadLetter::new(source, verdict, self.0.keep))
    }

    /// Ends when Kafka has acknowledged the letter, however long that takes; [`Self::trouble`] tells why it takes
    /// long. A future that is dropped before may or may not leave the letter in Kafka.
    pub fn deliver(&self, letter: DeadLetter) -> impl Future<Output = ()> + Send + 'static {
        let place = Place::enter(self.clone());
        place.delivered(letter)
    }

    /// Why letters are not acknowledged; `None` while none has waited longer than a second.
    pub fn trouble(&self) -> Option<String> {
        let waiting = lock(&self.0.waiting);
        let (_, oldest) = waiting.1.first_key_value()?;
        if oldest.since.elapsed() <= PATIENCE {
            return None;
        }
        let connection = lock(&self.0.connection.0);
        let connection = (!connection.is_empty()).then_some(&*connection);
        let why = oldest.why.as_ref().or(connection).map_or("no answer from kafka", |why| why.as_str());
        Some(format!("dead letters wait for the topic {}: {why}", self.0.topic))
    }

    async fn send(&self, letter: &DeadLetter) -> Result<(), (Refusal, KafkaError)> {
        let (number, producer) = lock(&self.0.producer).clone();
        let (key, json) = (letter.record_key(), letter.to_json());
        let record = FutureRecord::to(&self.0.topic).key(&key).payload(&json);
        match producer.send(record, Timeout::Never).await {
            Ok(_) => {
                lock(&self.0.connection.0).clear();
                Ok(())
            }
            Err((error, _)) => {
                let refusal = Refusal::of(&error);
                if refusal == Refusal::Fatal {
                    self.replace(number);
                }
                Err((refusal, error))
            }
        }
    }

    /// Makes a producer in place of number `number`, unless that was done.
    fn replace(&self, number: u64) {
        let mut producer = lock(&self.0.producer);
        if producer.0 != number {
            return;
        }
        let made: KafkaResult<Producer> = self.0.settings.create_with_context(self.0.connection.clone());
        match made {
            Ok(made) => *producer = (number + 1, made),
            Err(error) => tracing::error!(%error, "make a producer of dead letters"),
        }
    }
}

/// A letter's place among those that wait. Given up on drop, however its delivery ends.
struct Place {
    letters: DeadLetters,
    number: u64,
}

impl Place {
    fn enter(letters: DeadLetters) -> Self {
        let mut waiting = lock(&letters.0.waiting);
        let number = waiting.0;
        waiting.0 += 1;
        waiting.1.insert(number, Waiting { since: Instant::now(), why: None });
        letters.0.metrics.waiting.set(waiting.1.len() as i64);
        drop(waiting);
        Self { letters, number }
    }

    async fn delivered(self, mut letter: DeadLetter) {
        let metrics = &self.letters.0.metrics;
        let mut attempt = 0;
        while let Err((refusal, error)) = self.letters.send(&letter).await {
            metrics.failures.with_label_values(&[refusal.label()]).inc();
            tracing::warn!(letter = %letter.at, reason = refusal.label(), %error, "kafka does not take a dead letter");
            if refusal == Refusal::TooLarge && letter.is_whole() {
                letter = letter.without_whole();
                continue;
            }
            self.failed(error.to_string());
            tokio::time::sleep(BACKOFF.delay(attempt, rand::random())).await;
            attempt += 1;
        }
        metrics.letters.with_label_values(&[&*letter.error]).inc();
    }

    fn failed(&self, why: String) {
        if let Some(waiting) = lock(&self.letters.0.waiting).1.get_mut(&self.number) {
            waiting.why = Some(why);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Inner { waiting, metrics, .. } = &*self.letters.0;
        let mut waiting = lock(waiting);
        waiting.1.remove(&self.number);
        metrics.waiting.set(waiting.1.len() as i64);
    }
}

#[cfg(test)]
mod tests;

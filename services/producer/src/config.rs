//! Settings of a producer, and what it refuses to start with.
use crate::redact::BadPattern;
use rdkafka::{ClientConfig, error::KafkaError};
use std::time::Duration;

/// Room for a thread id and a handful of attributes in the smallest record.
const RECORD_BYTES_MIN: usize = 16 << 10;

/// Whether states leave the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatePolicy {
    Publish,
    /// Neither states nor hashes of them; everything else does.
    Withhold,
}

/// Settings of a producer. [`Config::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// Topic to write.
    pub topic: String,
    /// Whose telemetry it is.
    pub tenant_id: String,
    /// Most memory for messages that Kafka does not have yet, bytes. The state published last of each live run comes on
    /// top.
    pub budget_bytes: usize,
    /// Largest record that the broker takes, bytes: at most its `message.max.bytes` and the topic's `max.message.bytes`.
    pub record_bytes_max: usize,
    /// Longest text that is sent, bytes; of a longer one the beginning is, and how long it was.
    pub text_bytes_max: usize,
    /// States of a thread from one checkpoint to the next; 0 for none.
    pub checkpoint_every: u32,
    pub states: StatePolicy,
    /// Patterns of secrets beside the built-in ones, each with what stands in its place.
    pub redact: Vec<(String, String)>,
    /// How long a message is tried.
    pub delivery_timeout: Duration,
    /// How long the last handle waits, when it is dropped, for what is on its way.
    pub drop_timeout: Duration,
}

/// Why a producer does not start. It names the setting.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{setting}: {given}: expected {expected}")]
    Setting { setting: &'static str, given: String, expected: &'static str },
    #[error("redact: {0}")]
    Pattern(#[from] BadPattern),
    #[error("make a Kafka producer: {0}")]
    Kafka(#[from] KafkaError),
    #[error("register the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("start the writer's thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl Config {
    pub fn new(topic: impl Into<String>) -> Self {
        Self {
            topic: topic.into(),
            tenant_id: "default".into(),
            budget_bytes: 32 << 20,
            record_bytes_max: 1_000_000,
            text_bytes_max: 64 << 10,
            checkpoint_every: 50,
            states: StatePolicy::Publish,
            redact: Vec::new(),
            delivery_timeout: Duration::from_secs(30),
            drop_timeout: Duration::from_secs(5),
        }
    }

    pub(crate) fn check(&self) -> Result<(), StartError> {
        let rules = [
            ("topic", self.topic.clone(), "a name", !self.topic.trim().is_empty()),
            ("tenant_id", self.tenant_id.clone(), "a name", !self.tenant_id.trim().is_empty()),
            (
                "record_bytes_max",
                self.record_bytes_max.to_string(),
                "16 KiB to 10 MiB",
                (RECORD_BYTES_MIN..=10 << 20).contains(&self.record_bytes_max),
            ),
            (
                "budget_bytes",
                self.budget_bytes.to_string(),
                "at least four times record_bytes_max",
                self.budget_bytes / 4 >= self.record_bytes_max,
            ),
            (
                "text_bytes_max",
                self.text_bytes_max.to_string(),
                "256 bytes to a quarter of record_bytes_max",
                (256..=self.record_bytes_max / 4).contains(&self.text_bytes_max),
            ),
            (
                "delivery_timeout",
                format!("{:?}", self.delivery_timeout),
                "10 ms to a day",
                (Duration::from_millis(10)..=Duration::from_secs(86_400)).contains(&self.delivery_timeout),
            ),
        ];
        match rules.into_iter().find(|(.., holds)| !holds) {
            Some((setting, given, expected, _)) => Err(StartError::Setting { setting, given, expected }),
            None => Ok(()),
        }
    }

    /// What of Kafka's client is ours to say: nothing is lost, doubled or reordered by it, and a thread's records lie
    /// in one partition, the same as other producers' would.
    pub(crate) fn client(&self, mut client: ClientConfig) -> ClientConfig {
        if client.get("linger.ms").is_none() {
            client.set("linger.ms", "5");
        }
        client
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("max.in.flight.requests.per.connection", "5")
            .set("compression.type", "none")
            .set("partitioner", "consistent_random")
            .set("message.max.bytes", self.record_bytes_max.to_string())
            .set("message.timeout.ms", self.delivery_timeout.as_millis().to_string());
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_can_not_hold_are_refused_by_name() {
        let config = |change: fn(&mut Config)| {
            let mut config = Config::new("topic");
            change(&mut config);
            config.check().map_err(|error| error.to_string())
        };
        assert_eq!(config(|_| {}), Ok(()));
        for (setting, checked) in [
            ("topic", config(|config| config.topic = " ".into())),
            ("tenant_id", config(|config| config.tenant_id.clear())),
            ("record_bytes_max", config(|config| config.record_bytes_max = 1)),
            ("budget_bytes", config(|config| config.budget_bytes = 1_000_000)),
            ("text_bytes_max", config(|config| config.text_bytes_max = 1 << 20)),
            ("delivery_timeout", config(|config| config.delivery_timeout = Duration::ZERO)),
        ] {
            let error = checked.expect_err(setting);
            assert!(error.starts_with(&format!("{setting}: ")) && error.contains("expected"), "{error}");
        }
    }
}

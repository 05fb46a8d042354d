//! What is counted of Kafka itself: its brokers, the topic, and what it lost or did not tell.
use dashstream_core::position::{Offset, Partition};
use dashstream_kit::metrics::{counter, gauge};
use prometheus::{IntCounter, IntGauge, Registry, Result};
use rdkafka::error::KafkaError;

#[derive(Clone, Debug)]
pub struct Source {
    pub lost_offsets: IntCounter,
    pub brokers_up: IntGauge,
    pub brokers: IntGauge,
    pub topic_partitions: IntGauge,
    topic_partition_changes: IntCounter,
    strayed: IntCounter,
    watermark_failures: IntCounter,
}

impl Source {
    /// # Errors
    /// A name is already taken in `registry`.
    pub(super) fn register(registry: &Registry) -> Result<Self> {
        let counter = |name, help| counter(registry, name, help);
        let gauge = |name, help| gauge(registry, name, help);
        Ok(Self {
            lost_offsets: counter(
                "dashstream_ingest_lost_offsets_total",
                "Offsets that Kafka lost before they could be read; a gap stands for them.",
            )?,
            brokers_up: gauge("dashstream_ingest_kafka_brokers_up", "Brokers with a connection now.")?,
            brokers: gauge("dashstream_ingest_kafka_brokers", "Brokers of the Kafka cluster.")?,
            topic_partitions: gauge(
                "dashstream_ingest_topic_partitions",
                "Partitions that the topic has; 0 until Kafka has said.",
            )?,
            topic_partition_changes: counter(
                "dashstream_ingest_topic_partition_changes_total",
                "Times that the topic was found to have another number of partitions than before.",
            )?,
            strayed: counter(
                "dashstream_ingest_strayed_records_total",
                "Records of a thread that was seen in another partition before.",
            )?,
            watermark_failures: counter(
                "dashstream_ingest_watermark_failures_total",
                "Questions for a partition's watermarks that Kafka did not answer.",
            )?,
        })
    }

    pub fn strayed(&self, partition: Partition, at: Offset, thread: &str, home: Partition) {
        // The first says all that there is to say; the counter says how many.
        if self.strayed.get() == 0 {
            tracing::warn!(%partition, offset = %at, thread, %home,
                "a thread is in two partitions: its records have no order across them");
        }
        self.strayed.inc();
    }

    pub fn watermarks_failed(&self, partition: i32, error: &KafkaError) {
        self.watermark_failures.inc();
        tracing::warn!(partition, %error, "watermarks unknown for now");
    }

    pub fn topic_partitions_changed(&self, before: usize, now: usize) {
        self.topic_partition_changes.inc();
        tracing::warn!(
            before,
            now,
            "the topic has another number of partitions: threads that go on may have moved to another one"
        );
    }
}

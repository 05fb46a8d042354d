//! Everything that ingest counts.
use dashstream_core::codec::Undecodable;
use dashstream_kit::metrics::{SECONDS, counter, counters, gauge, histogram};
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry, Result};

#[derive(Clone, Debug)]
pub struct Metrics {
    pub stored_records: IntCounter,
    pub stored_batches: IntCounter,
    pub duplicate_batches: IntCounter,
    pub append_seconds: Histogram,
    pub live_subscribers: IntGauge,
    pub live_cut: IntCounter,
    pub partitions_owned: IntGauge,
    pub topic_partitions: IntGauge,
    topic_partition_changes: IntCounter,
    restarts: IntCounterVec,
    undecodable: IntCounterVec,
}

impl Metrics {
    /// # Errors
    /// A name is already taken in `registry`: a bug, so `main` stops on it.
    pub fn register(registry: &Registry) -> Result<Self> {
        Ok(Self {
            stored_records: counter(
                registry,
                "dashstream_ingest_stored_records_total",
                "Records that replay acknowledged.",
            )?,
            stored_batches: counter(
                registry,
                "dashstream_ingest_stored_batches_total",
                "Batches that replay acknowledged.",
            )?,
            duplicate_batches: counter(
                registry,
                "dashstream_ingest_duplicate_batches_total",
                "Batches that replay held before.",
            )?,
            append_seconds: histogram(
                registry,
                "dashstream_ingest_append_seconds",
                "Time from packing a batch to replay's acknowledgement.",
                SECONDS,
            )?,
            live_subscribers: gauge(
                registry,
                "dashstream_ingest_live_subscribers",
                "Gateways that follow the live feed now.",
            )?,
            live_cut: counter(
                registry,
                "dashstream_ingest_live_cut_total",
                "Subscribers cut because they did not keep up.",
            )?,
            partitions_owned: gauge(
                registry,
                "dashstream_ingest_partitions_owned",
                "Partitions that this replica owns now.",
            )?,
            topic_partitions: gauge(
                registry,
                "dashstream_ingest_topic_partitions",
                "Partitions that the topic has; 0 until Kafka has said.",
            )?,
            topic_partition_changes: counter(
                registry,
                "dashstream_ingest_topic_partition_changes_total",
                "Times that the topic was found to have another number of partitions than before.",
            )?,
            restarts: counters(
                registry,
                "dashstream_ingest_pipeline_restarts_total",
                "Pipelines that went back to what replay holds, by cause.",
                &["cause"],
            )?,
            undecodable: counters(
                registry,
                "dashstream_ingest_undecodable_records_total",
                "Records that do not decode, by what is wrong.",
                &["error"],
            )?,
        })
    }

    /// The log line and the counter are one act, so they cannot disagree.
    pub fn undecodable(&self, partition: i32, offset: u64, error: &Undecodable) {
        self.undecodable.with_label_values(&[error.label()]).inc();
        tracing::warn!(partition, offset, %error, "record does not decode; a gap takes its place");
    }

    /// Threads are bound to partitions by their number: one that goes on elsewhere has no order any more.
    pub fn topic_partitions_changed(&self, before: usize, now: usize) {
        self.topic_partition_changes.inc();
        tracing::warn!(
            before,
            now,
            "the topic has another number of partitions: threads that go on may have moved to another one"
        );
    }

    pub fn restarted(&self, cause: &'static str) {
        self.restarts.with_label_values(&[cause]).inc();
    }
}

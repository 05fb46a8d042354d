//! Everything that ingest counts.
use crate::append::Tally;
use dashstream_core::{
    dead_letter::Age,
    policy::{Fault, Outcome},
    position::{Offset, Partition},
};
use dashstream_kit::metrics::{SECONDS, counter, counters, gauge, histogram, histograms};
use dashstream_proto::log::v1::Batch;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, Registry, Result};

mod partitions;
mod source;

pub use partitions::Partitions;
pub use source::Source;

#[derive(Clone, Debug)]
pub struct Metrics {
    /// What Kafka is like.
    pub source: Source,
    records: IntCounterVec,
    pub stored_batches: IntCounter,
    pub append_seconds: Histogram,
    hop_seconds: HistogramVec,
    pub abandoned_batches: IntCounter,
    pub live_subscribers: IntGauge,
    pub live_cut: IntCounter,
    pub partitions_owned: IntGauge,
    restarts: IntCounterVec,
    bad: IntCounterVec,
    bad_by_age: IntCounterVec,
}

impl Metrics {
    /// # Errors
    /// A name is already taken in `registry`: a bug, so `main` stops on it.
    pub fn register(registry: &Registry) -> Result<Self> {
        let counter = |name, help| counter(registry, name, help);
        let counters = |name, help, labels: &[&str]| counters(registry, name, help, labels);
        let gauge = |name, help| gauge(registry, name, help);
        Ok(Self {
            source: Source::register(registry)?,
            records: counters(
                "dashstream_ingest_records_total",
                "Records by what became of them: stored, dead_lettered, skipped and duplicate once it is durable, \
                 blocked whenever one is found.",
                &["outcome"],
            )?,
            stored_batches: counter(
                "dashstream_ingest_stored_batches_total",
                "Batches that replay acknowledged.",
            )?,
            append_seconds: histogram(
                registry,
                "dashstream_ingest_append_seconds",
                "Time from packing a batch to replay's acknowledgement.",
                SECONDS,
            )?,
            hop_seconds: histograms(
                registry,
                "dashstream_ingest_hop_seconds",
                "Time that the last record of a batch took for a hop, while its partition is live: produced_kafka, \
                 kafka_ingested, ingested_stored. Clocks of different machines are compared.",
                SECONDS,
                &["hop"],
            )?,
            abandoned_batches: counter(
                "dashstream_ingest_abandoned_batches_total",
                "Batches whose acknowledgement did not come before the partition had to be given up.",
            )?,
            live_subscribers: gauge(
                "dashstream_ingest_live_subscribers",
                "Gateways that follow the live feed now.",
            )?,
            live_cut: counter(
                "dashstream_ingest_live_cut_total",
                "Subscribers cut because they did not keep up.",
            )?,
            partitions_owned: gauge("dashstream_ingest_partitions_owned", "Partitions owned now.")?,
            restarts: counters(
                "dashstream_ingest_pipeline_restarts_total",
                "Pipelines that went back to what replay holds, by cause.",
                &["cause"],
            )?,
            bad: counters(
                "dashstream_ingest_bad_records_total",
                "Bad records by what is wrong with them; one that is read again is not counted again.",
                &["error"],
            )?,
            bad_by_age: counters(
                "dashstream_ingest_bad_records_by_age_total",
                "Bad records below the head of their assignment (old) or not (new). While the head is unknown they \
                 are not in here.",
                &["age"],
            )?,
        })
    }

    /// The log line and the counter are one act, so they cannot disagree.
    pub fn bad(
        &self,
        partition: Partition,
        at: Offset,
        fault: &Fault,
        (age, first): (Age, bool),
        outcome: Outcome,
    ) {
        if let Outcome::Blocked { .. } = outcome {
            self.outcome(outcome, 1);
        }
        if first {
            self.bad.with_label_values(&[fault.label()]).inc();
            self.by_age(age, 1);
            tracing::warn!(%partition, offset = %at, age = age.label(), outcome = outcome.label(),
                error = %fault, "bad record");
        }
    }

    /// Bad records turned out to be old.
    pub fn classified(&self, old: u64) {
        if old > 0 {
            self.by_age(Age::Old, old);
        }
    }

    fn by_age(&self, age: Age, records: u64) {
        match age {
            Age::Old | Age::New => self.bad_by_age.with_label_values(&[age.label()]).inc_by(records),
            Age::Unclassified => {}
        }
    }

    pub fn outcome(&self, outcome: Outcome, records: u64) {
        self.records.with_label_values(&[outcome.label()]).inc_by(records);
    }

    /// Replay acknowledged a batch. Hops are measured while live: what was waiting before tells of the wait.
    pub fn stored(&self, batch: &Batch, tally: &Tally, duplicate: bool, seconds: f64, live: bool) {
        self.stored_batches.inc();
        self.append_seconds.observe(seconds);
        let Tally { stored, dead_lettered, skipped, .. } = tally;
        if duplicate {
            self.outcome(Outcome::Duplicate, *stored + *dead_lettered + *skipped);
            return;
        }
        self.outcome(Outcome::Stored, *stored);
        self.outcome(Outcome::DeadLettered, *dead_lettered);
        self.outcome(Outcome::Skipped, *skipped);
        if live {
            let produced_ms = tally.last_produced_us.map(|us| us / 1_000);
            self.hop("produced_kafka", produced_ms, tally.last_record_ms);
            self.hop("kafka_ingested", tally.last_record_ms, batch.ingested_ms);
            self.hop("ingested_stored", batch.ingested_ms, batch.stored_ms);
        }
    }

    fn hop(&self, hop: &str, from_ms: Option<i64>, to_ms: Option<i64>) {
        if let (Some(from), Some(to)) = (from_ms, to_ms) {
            // Clocks of different machines may disagree; a hop is never shorter than nothing.
            let seconds = to.saturating_sub(from).max(0) as f64 / 1e3;
            self.hop_seconds.with_label_values(&[hop]).observe(seconds);
        }
    }

    /// Threads are bound to partitions by their number: one that goes on elsewhere has no order any more.
    pub fn restarted(&self, cause: &'static str) {
        self.restarts.with_label_values(&[cause]).inc();
    }
}

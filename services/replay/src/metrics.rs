//! Everything that replay counts.
use crate::store::Appended;
use dashstream_kit::metrics::{SECONDS, counter, counters, gauges, histogram};
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGaugeVec, Registry, Result};

const BATCH_RECORDS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1_024.0];

#[derive(Clone, Debug)]
pub struct Metrics {
    pub appended_records: IntCounter,
    pub appended_bytes: IntCounter,
    pub append_seconds: Histogram,
    pub read_seconds: Histogram,
    pub read_bytes: IntCounter,
    pub store_failures: IntCounter,
    pub reads_refused: IntCounter,
    pub script_reloads: IntCounter,
    pub batch_records: Histogram,
    pub kept: Kept,
    appends: IntCounterVec,
}

impl Metrics {
    /// # Errors
    /// A name is already taken in `registry`: a bug, so `main` stops on it.
    pub fn register(registry: &Registry) -> Result<Self> {
        Ok(Self {
            appended_records: counter(
                registry,
                "dashstream_replay_appended_records_total",
                "Records stored.",
            )?,
            appended_bytes: counter(
                registry,
                "dashstream_replay_appended_bytes_total",
                "Bytes of packed records stored.",
            )?,
            append_seconds: histogram(
                registry,
                "dashstream_replay_append_seconds",
                "Time of one append to the store, which may carry several batches.",
                SECONDS,
            )?,
            read_seconds: histogram(
                registry,
                "dashstream_replay_read_seconds",
                "Time to read one page from the store.",
                SECONDS,
            )?,
            read_bytes: counter(
                registry,
                "dashstream_replay_read_bytes_total",
                "Bytes of packed records read.",
            )?,
            store_failures: counter(
                registry,
                "dashstream_replay_store_failures_total",
                "Calls of the store that failed.",
            )?,
            script_reloads: counter(
                registry,
                "dashstream_replay_script_reloads_total",
                "Scripts loaded because Redis did not know them, as after a restart.",
            )?,
            reads_refused: counter(
                registry,
                "dashstream_replay_refused_reads_total",
                "Reads told to come back later.",
            )?,
            batch_records: histogram(
                registry,
                "dashstream_replay_batch_records",
                "Records of one stored batch.",
                BATCH_RECORDS,
            )?,
            kept: Kept::register(registry)?,
            appends: counters(
                registry,
                "dashstream_replay_append_batches_total",
                "Batches by the outcome of their append.",
                &["outcome"],
            )?,
        })
    }

    pub fn appended(&self, outcome: &Appended) {
        self.appends.with_label_values(&[label(outcome)]).inc();
    }

    pub fn invalid(&self) {
        self.appends.with_label_values(&["invalid"]).inc();
    }
}

fn label(outcome: &Appended) -> &'static str {
    match outcome {
        Appended::Stored { .. } => "stored",
        Appended::Held { .. } => "held",
        Appended::Epoch { .. } => "epoch",
        Appended::Link { .. } => "link",
        Appended::Divergent { .. } => "divergent",
    }
}

/// What is kept, by stream and partition. Unknown is absent, never zero.
#[derive(Clone, Debug)]
pub struct Kept {
    pub earliest_offset: IntGaugeVec,
    pub last_offset: IntGaugeVec,
    pub records: IntGaugeVec,
    pub bytes: IntGaugeVec,
    pub last_append_ms: IntGaugeVec,
    pub headroom_seconds: IntGaugeVec,
    pub threads: IntGaugeVec,
    pub partitions: IntGaugeVec,
}

impl Kept {
    fn register(registry: &Registry) -> Result<Self> {
        let of = |name: &str, help: &str| {
            gauges(registry, &format!("dashstream_replay_{name}"), help, &["stream", "partition"])
        };
        Ok(Self {
            earliest_offset: of("earliest_offset", "Oldest offset kept.")?,
            last_offset: of("last_offset", "Newest offset kept.")?,
            records: of("kept_records", "Records kept.")?,
            bytes: of("kept_bytes", "Bytes of stored batches kept.")?,
            last_append_ms: of(
                "last_append_milliseconds",
                "When a batch was last appended, milliseconds since 1970.",
            )?,
            headroom_seconds: of("headroom_seconds", "Until the oldest batch falls to retention by age.")?,
            threads: of("known_threads", "Threads in the directory.")?,
            partitions: gauges(
                registry,
                "dashstream_replay_known_partitions",
                "Partitions that are known, those among them that hold nothing yet.",
                &["stream"],
            )?,
        })
    }

    /// All of them.
    pub fn by_partition(&self) -> [&IntGaugeVec; 7] {
        [
            &self.earliest_offset,
            &self.last_offset,
            &self.records,
            &self.bytes,
            &self.last_append_ms,
            &self.headroom_seconds,
            &self.threads,
        ]
    }
}

//! Everything that replay counts.
use crate::store::Appended;
use dashstream_kit::metrics::{SECONDS, counter, counters, histogram};
use prometheus::{Histogram, IntCounter, IntCounterVec, Registry, Result};

#[derive(Clone, Debug)]
pub struct Metrics {
    pub appended_records: IntCounter,
    pub appended_bytes: IntCounter,
    pub append_seconds: Histogram,
    pub read_seconds: Histogram,
    pub read_bytes: IntCounter,
    pub store_failures: IntCounter,
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

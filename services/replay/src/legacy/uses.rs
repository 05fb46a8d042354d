//! Who still needs the predecessor's rows: counted, and logged.
use super::names::Form;
use dashstream_kit::metrics::{counter, counters};
use prometheus::{IntCounter, IntCounterVec, Registry, Result};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// What reading the predecessor's rows counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    reads: IntCounterVec,
    collisions: IntCounter,
}

impl Metrics {
    /// # Errors
    /// A name is already taken in `registry`: a bug, so `main` stops on it.
    pub fn register(registry: &Registry) -> Result<Self> {
        Ok(Self {
            reads: counters(
                registry,
                "dashstream_replay_legacy_reads_total",
                "Pages that held rows of the predecessor, by kind of key and form of its name.",
                &["kind", "form"],
            )?,
            collisions: counter(
                registry,
                "dashstream_replay_legacy_collisions_total",
                "Rows of the predecessor left out of a thread because their payload does not name it.",
            )?,
        })
    }
}

/// A family of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Partition,
    Thread(Form),
}

impl Family {
    pub(super) const ALL: [Self; 4] =
        [Self::Partition, Self::Thread(Form::Raw), Self::Thread(Form::B64), Self::Thread(Form::Hashed)];

    fn labels(self) -> [&'static str; 2] {
        match self {
            Self::Partition => ["partition", "raw"],
            Self::Thread(Form::Raw) => ["thread", "raw"],
            Self::Thread(Form::B64) => ["thread", "b64"],
            Self::Thread(Form::Hashed) => ["thread", "hashed"],
        }
    }
}

/// Counts and logs uses. Clones share what was logged.
#[derive(Clone, Debug)]
pub(super) struct Uses {
    prefix: Arc<str>,
    metrics: Metrics,
    /// Families, as in [`Family::ALL`], whose first use is in the log.
    logged: Arc<[AtomicBool; Family::ALL.len()]>,
}

impl Uses {
    pub(super) fn new(prefix: Arc<str>, metrics: Metrics) -> Self {
        Self { prefix, metrics, logged: Arc::default() }
    }

    /// A page had `rows` rows of a family.
    pub(super) fn found(&self, family: Family, rows: usize) {
        let labels @ [kind, form] = family.labels();
        self.metrics.reads.with_label_values(&labels).inc();
        let prefix = &*self.prefix;
        if self.is_first(family) {
            tracing::info!(prefix, kind, form, rows, "the predecessor's rows are in use");
        } else {
            tracing::debug!(prefix, kind, form, rows, "read the predecessor's rows");
        }
    }

    /// A row under a thread's name is not the thread's.
    pub(super) fn collided(&self, family: Family) {
        self.metrics.collisions.inc();
        let [kind, form] = family.labels();
        tracing::debug!(prefix = &*self.prefix, kind, form, "left out a row that does not name its thread");
    }

    fn is_first(&self, family: Family) -> bool {
        let known = Family::ALL.iter().position(|one| *one == family);
        known.is_some_and(|known| !self.logged[known].swap(true, Ordering::Relaxed))
    }
}

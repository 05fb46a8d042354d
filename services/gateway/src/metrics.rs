//! Everything that the gateway counts.
use crate::auth::Refused;
use dashstream_core::session::CloseReason;
use dashstream_kit::metrics::{SECONDS, counter, counters, gauge, histogram};
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry, Result};

/// Of reads from replay.
#[derive(Clone, Debug)]
pub struct Reads {
    pub backfills: IntCounter,
    pub pages: IntCounter,
    pub failures: IntCounter,
    pub shared_pages: IntCounter,
    pub threads: IntCounter,
    pub page_bytes: IntGauge,
}

impl Reads {
    fn register(registry: &Registry) -> Result<Self> {
        let count = |name, help| counter(registry, name, help);
        Ok(Self {
            backfills: count(
                "dashstream_gateway_backfills_total",
                "Fetches from replay to close a break in a live feed.",
            )?,
            pages: count("dashstream_gateway_replay_reads_total", "Pages read from replay for sessions.")?,
            failures: count("dashstream_gateway_replay_failures_total", "Reads from replay that failed.")?,
            shared_pages: count(
                "dashstream_gateway_shared_pages_total",
                "Pages that sessions found in memory because another one had read them.",
            )?,
            threads: count(
                "dashstream_gateway_thread_reads_total",
                "Threads asked for in replay's directory, for filters by graph.",
            )?,
            page_bytes: gauge(
                registry,
                "dashstream_gateway_page_bytes",
                "Bytes of pages read from replay that are kept in memory.",
            )?,
        })
    }
}

#[derive(Clone, Debug)]
pub struct Metrics {
    pub sessions: IntGauge,
    pub sent_frames: IntCounter,
    pub sent_bytes: IntCounter,
    pub send_seconds: Histogram,
    pub live_batches: IntCounter,
    pub live_records: IntCounter,
    pub live_upstreams: IntGauge,
    pub reads: Reads,
    pub ring_bytes: IntGauge,
    pub behind: IntCounter,
    disconnects: IntCounterVec,
    refused: IntCounterVec,
    refused_calls: IntCounterVec,
}

impl Metrics {
    /// # Errors
    /// A name is already taken in `registry`: a bug, so `main` stops on it.
    pub fn register(registry: &Registry) -> Result<Self> {
        let count = |name, help| counter(registry, name, help);
        let level = |name, help| gauge(registry, name, help);
        let metrics = Self {
            sessions: level("dashstream_gateway_sessions", "Websocket sessions now.")?,
            sent_frames: count("dashstream_gateway_sent_frames_total", "Frames sent to clients.")?,
            sent_bytes: count("dashstream_gateway_sent_bytes_total", "Bytes of frames sent to clients.")?,
            send_seconds: histogram(
                registry,
                "dashstream_gateway_send_seconds",
                "Time to hand a burst of frames to a client's socket.",
                SECONDS,
            )?,
            live_batches: count(
                "dashstream_gateway_live_batches_total",
                "Batches received from ingest's live feeds.",
            )?,
            live_records: count(
                "dashstream_gateway_live_records_total",
                "Records received from ingest's live feeds.",
            )?,
            live_upstreams: level(
                "dashstream_gateway_live_upstreams",
                "Ingest replicas whose live feed is followed now.",
            )?,
            ring_bytes: level(
                "dashstream_gateway_ring_bytes",
                "Bytes of recent records of all partitions in memory.",
            )?,
            behind: count(
                "dashstream_gateway_behind_total",
                "Readers of one partition that fell out of memory and went on from replay.",
            )?,
            reads: Reads::register(registry)?,
            disconnects: counters(
                registry,
                "dashstream_gateway_disconnects_total",
                "Sessions ended, by reason.",
                &["reason"],
            )?,
            refused: counters(
                registry,
                "dashstream_gateway_refused_upgrades_total",
                "Upgrades refused, by reason.",
                &["reason"],
            )?,
            refused_calls: counters(
                registry,
                "dashstream_gateway_refused_calls_total",
                "Queries and other requests refused for who asks, by reason.",
                &["reason"],
            )?,
        };
        for reason in CloseReason::ALL {
            metrics.disconnects.with_label_values(&[reason.label()]);
        }
        Ok(metrics)
    }

    pub fn disconnected(&self, reason: CloseReason) {
        self.disconnects.with_label_values(&[reason.label()]).inc();
    }

    /// How many sessions ended for this reason so far.
    pub fn disconnects(&self, reason: CloseReason) -> u64 {
        self.disconnects.with_label_values(&[reason.label()]).get()
    }

    pub fn refused_call(&self, reason: &'static str) {
        self.refused_calls.with_label_values(&[reason]).inc();
    }

    pub fn refused_query(&self, refused: Refused) {
        self.refused_call(refused.label());
    }

    pub fn refused(&self, reason: &'static str) {
        self.refused.with_label_values(&[reason]).inc();
    }
}

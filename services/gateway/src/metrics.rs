//! Everything that the gateway counts.
use crate::auth::Refused;
use dashstream_core::session::CloseReason;
use dashstream_kit::metrics::{SECONDS, counter, counters, gauge, histogram};
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry, Result};

#[derive(Clone, Debug)]
pub struct Metrics {
    pub sessions: IntGauge,
    pub sent_frames: IntCounter,
    pub sent_bytes: IntCounter,
    pub send_seconds: Histogram,
    pub live_batches: IntCounter,
    pub live_records: IntCounter,
    pub live_upstreams: IntGauge,
    pub backfills: IntCounter,
    pub replay_reads: IntCounter,
    pub replay_failures: IntCounter,
    disconnects: IntCounterVec,
    refused: IntCounterVec,
    refused_calls: IntCounterVec,
}

impl Metrics {
    /// # Errors
    /// A name is already taken in `registry`: a bug, so `main` stops on it.
    pub fn register(registry: &Registry) -> Result<Self> {
        let count = |name: &str, help: &str| counter(registry, name, help);
        let by_reason = |name: &str, help: &str| counters(registry, name, help, &["reason"]);
        let metrics = Self {
            sessions: gauge(registry, "dashstream_gateway_sessions", "Websocket sessions now.")?,
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
            live_upstreams: gauge(
                registry,
                "dashstream_gateway_live_upstreams",
                "Ingest replicas whose live feed is followed now.",
            )?,
            backfills: count(
                "dashstream_gateway_backfills_total",
                "Fetches from replay to close a break in a live feed.",
            )?,
            replay_reads: count(
                "dashstream_gateway_replay_reads_total",
                "Pages read from replay for sessions.",
            )?,
            replay_failures: count(
                "dashstream_gateway_replay_failures_total",
                "Reads from replay that failed.",
            )?,
            disconnects: by_reason("dashstream_gateway_disconnects_total", "Sessions ended, by reason.")?,
            refused: by_reason("dashstream_gateway_refused_upgrades_total", "Upgrades refused, by reason.")?,
            refused_calls: by_reason(
                "dashstream_gateway_refused_calls_total",
                "Queries and other requests refused for who asks, by reason.",
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

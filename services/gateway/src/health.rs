//! How it goes, in the predecessor's shape. Counts are those of `/metrics`, looked at each second, so that what is
//! said of now is about the last two minutes and not about the life of the process. What this process can't know is
//! null, never a number that looks well.
use crate::{fleet::Fleet, metrics::Metrics, replay::Replay};
use dashstream_core::session::CloseReason;
use dashstream_proto::{gateway::v1::GetCatchUpResponse, replay::v1 as replay};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

const TICK: Duration = Duration::from_secs(1);
/// Other services are asked every so many ticks.
const ASK_EVERY: u32 = 5;
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// What counts as now: so many samples.
const WINDOW: usize = 120;
/// Records that must have come before their share of errors is judged.
const SAMPLE_MIN: u64 = 100;
const SILENT: Duration = Duration::from_secs(60);
const RECENT: Duration = Duration::from_secs(120);

/// A cheap handle.
#[derive(Clone, Debug)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: Metrics,
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// One for each second, the newest last.
    samples: VecDeque<Counts>,
    last_record: Option<Instant>,
    last_failure: Option<Instant>,
    was_fed: bool,
    decode_errors: Option<DecodeErrors>,
    topic: Option<String>,
    retention: Value,
}

/// What is counted from the start on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    records: u64,
    failures: u64,
    send_timeouts: u64,
    decode_errors: u64,
}

/// As ingest tells, since it was assigned its partitions.
#[derive(Clone, Copy, Debug, Default)]
struct DecodeErrors {
    new: u64,
    old: u64,
}

impl State {
    /// `is_fed`: some replica of ingest is followed. That none is yet is no failure.
    fn take(&mut self, counts: Counts, now: Instant, is_fed: bool) {
        let before = self.samples.back().copied().unwrap_or_default();
        if counts.records > before.records {
            self.last_record = Some(now);
        }
        if counts.failures > before.failures || self.was_fed && !is_fed {
            self.last_failure = Some(now);
        }
        self.was_fed |= is_fed;
        self.samples.push_back(counts);
        while self.samples.len() > WINDOW + 1 {
            self.samples.pop_front();
        }
    }

    /// What was counted within the window.
    fn lately(&self) -> Counts {
        let (first, last) = (self.samples.front().copied(), self.samples.back().copied());
        let (first, last) = (first.unwrap_or_default(), last.unwrap_or_default());
        // Counts of ingest begin anew when it is assigned its partitions anew.
        Counts {
            records: last.records.saturating_sub(first.records),
            failures: last.failures.saturating_sub(first.failures),
            send_timeouts: last.send_timeouts.saturating_sub(first.send_timeouts),
            decode_errors: last.decode_errors.saturating_sub(first.decode_errors),
        }
    }
}

/// The predecessor's word for how it goes.
fn status(lately: Counts, record_ago: Option<Duration>, failure_ago: Option<Duration>) -> &'static str {
    let is_recent = failure_ago.is_some_and(|ago| ago < RECENT);
    if lately.records >= SAMPLE_MIN && lately.decode_errors * 100 > lately.records {
        "degraded"
    } else if is_recent {
        "reconnecting"
    } else if record_ago.is_none_or(|ago| ago > SILENT) {
        "waiting"
    } else {
        "healthy"
    }
}

impl Health {
    pub fn new(metrics: Metrics) -> Self {
        let state = Mutex::new(State { retention: Value::Null, ..State::default() });
        Self(Arc::new(Inner { metrics, begun: Instant::now(), state }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks until `stop`.
    pub async fn run(self, fleet: Fleet, replay: Replay, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        for round in 0_u32.. {
            if stop.run_until_cancelled(ticks.tick()).await.is_none() {
                return;
            }
            if round % ASK_EVERY == 0 && stop.run_until_cancelled(self.ask(&fleet, &replay)).await.is_none() {
                return;
            }
            self.look();
        }
    }

    fn look(&self) {
        let metrics = &self.0.metrics;
        let is_fed = metrics.live_upstreams.get() > 0;
        let mut state = self.state();
        let counts = Counts {
            records: metrics.live_records.get(),
            failures: metrics.reads.failures.get(),
            send_timeouts: metrics.disconnects(CloseReason::SendTimeout),
            decode_errors: state.decode_errors.map_or(0, |errors| errors.new),
        };
        state.take(counts, Instant::now(), is_fed);
    }

    async fn ask(&self, fleet: &Fleet, replay: &Replay) {
        let catch_up = fleet.catch_up();
        let kept = tokio::time::timeout(ASK_TIMEOUT, retention(replay));
        let (catch_up, kept) = tokio::join!(catch_up, kept);
        let mut state = self.state();
        state.decode_errors = decode_errors(&catch_up);
        let topic = catch_up.owners.into_iter().map(|owner| owner.topic).find(|topic| !topic.is_empty());
        state.topic = topic.or(state.topic.take());
        if let Ok(Some(kept)) = kept {
            state.retention = kept;
        }
    }

    /// What is kept, as last heard; null before.
    pub fn retention(&self) -> Value {
        self.state().retention.clone()
    }

    /// Kafka's topic, as ingest calls it.
    pub fn topic(&self) -> Option<String> {
        self.state().topic.clone()
    }

    pub fn report(&self) -> Value {
        let state = self.state();
        let lately = state.lately();
        let ago = |at: Option<Instant>| at.map(|at| at.elapsed());
        let seconds = |at: Option<Instant>| ago(at).map(|ago| ago.as_secs());
        let status = status(lately, ago(state.last_record), ago(state.last_failure));
        let kafka = match ago(state.last_record) {
            None => "waiting_for_messages",
            Some(ago) if ago > SILENT => "no_recent_messages",
            Some(_) => "connected",
        };
        let metrics = &self.0.metrics;
        let clients = metrics.sessions.get();
        let mut report = json!({
            "status": status,
            "metrics": {
                "kafka_messages_received": metrics.live_records.get(),
                "kafka_errors": state.decode_errors.map(|errors| errors.new + errors.old),
                "infrastructure_errors": metrics.reads.failures.get(),
                "connected_clients": clients,
                "uptime_seconds": self.0.begun.elapsed().as_secs(),
                "last_kafka_message_ago_seconds": seconds(state.last_record),
                // Nothing is ever dropped: a client that is slow is served from replay.
                "dropped_messages": 0,
                "dropped_messages_last_120s": 0,
                "last_drop_ago_seconds": null,
                "decode_errors": state.decode_errors.map(|errors| errors.new),
                "old_data_decode_errors": state.decode_errors.map(|errors| errors.old),
                "payload_missing": null,
                "last_infrastructure_error_ago_seconds": seconds(state.last_failure),
                "decode_errors_last_120s": state.decode_errors.map(|_| lately.decode_errors),
                "messages_last_120s": lately.records,
                "send_failed": null,
                "send_timeout": metrics.disconnects(CloseReason::SendTimeout),
                "send_failed_last_120s": null,
                "send_timeout_last_120s": lately.send_timeouts,
            },
            "replay_buffer": replay_buffer(metrics, &state.retention),
            "kafka_status": kafka,
            "websocket_status": if clients == 0 { "no_clients".to_owned() } else { format!("{clients}_clients_connected") },
        });
        if let Some(alert) = alert(lately) {
            report["alert"] = alert.into();
        }
        if status == "healthy" {
            report["circuit_breaker"] = json!({
                "state": "healthy", "degraded_duration_seconds": null, "time_until_restart_seconds": null,
            });
        }
        report
    }
}

/// The store behind all replicas. Its writes are ingest's.
fn replay_buffer(metrics: &Metrics, retention: &Value) -> Value {
    let age_seconds = retention.get("age_ms").and_then(Value::as_u64).map(|age| age / 1_000);
    json!({
        "redis_enabled": true,
        "memory_hits": null,
        "redis_hits": metrics.reads.pages.get().saturating_sub(metrics.reads.failures.get()),
        "redis_misses": null,
        "redis_write_dropped": null,
        "redis_write_failures": null,
        "memory_buffer_size": null,
        "max_memory_size": null,
        "redis_message_ttl_secs": age_seconds,
        "redis_max_sequences": retention.get("records_max"),
    })
}

fn alert(lately: Counts) -> Option<String> {
    let percent = (lately.decode_errors * 100).checked_div(lately.records)?;
    let level = if lately.records < SAMPLE_MIN { "INFO" } else { "CRITICAL" };
    let share = format!("{level}: {} of {} records did not decode", lately.decode_errors, lately.records);
    (percent > 1).then_some(share)
}

fn decode_errors(catch_up: &GetCatchUpResponse) -> Option<DecodeErrors> {
    let partitions: Vec<_> = catch_up.owners.iter().flat_map(|owner| &owner.partitions).collect();
    let sum = DecodeErrors {
        new: partitions.iter().map(|partition| partition.decode_errors_new).sum(),
        old: partitions.iter().map(|partition| partition.decode_errors_old).sum(),
    };
    (!catch_up.owners.is_empty()).then_some(sum)
}

async fn retention(replay: &Replay) -> Option<Value> {
    let (mut client, stream) = replay.asking();
    let answer = client.get_retention(replay::GetRetentionRequest { stream }).await.ok()?.into_inner();
    let kept = answer.retention?;
    Some(json!({ "age_ms": kept.age_ms, "records_max": kept.records_max, "bytes_max": kept.bytes_max }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_the_predecessors() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let counts = |records, decode_errors| Counts { records, decode_errors, ..Counts::default() };
        for (why, lately, record_ago, failure_ago, expected) in [
            ("records flow", counts(500, 5), seconds(1), None, "healthy"),
            ("more than one in a hundred is bad", counts(500, 6), seconds(1), None, "degraded"),
            ("too few to judge", counts(99, 99), seconds(1), None, "healthy"),
            ("nothing ever came", counts(0, 0), None, None, "waiting"),
            ("nothing came lately", counts(0, 0), seconds(61), None, "waiting"),
            ("nothing came, and something fails", counts(0, 0), None, seconds(119), "reconnecting"),
            ("records flow again", counts(5, 0), seconds(1), seconds(119), "reconnecting"),
            ("the failure is long ago", counts(5, 0), seconds(1), seconds(120), "healthy"),
        ] {
            assert_eq!(status(lately, record_ago, failure_ago), expected, "{why}");
        }
    }

    #[test]
    fn what_is_said_of_now_is_forgotten_after_the_window() {
        let (mut state, now) = (State::default(), Instant::now());
        state.take(Counts { records: 7, decode_errors: 3, ..Counts::default() }, now, false);
        state.take(Counts { records: 207, decode_errors: 90, ..Counts::default() }, now, false);
        assert_eq!((state.lately().records, state.lately().decode_errors), (200, 87));
        for _ in 0..WINDOW {
            state.take(Counts { records: 207, decode_errors: 90, ..Counts::default() }, now, false);
        }
        assert_eq!(state.lately(), Counts::default());
        state.take(Counts { records: 208, ..Counts::default() }, now, false);
        assert_eq!(state.lately().decode_errors, 0, "counts that began anew are no errors");
        state.take(Counts { records: 208, ..Counts::default() }, now, true);
        assert!(state.last_failure.is_none(), "nobody was followed yet");
        state.take(Counts { records: 208, ..Counts::default() }, now, false);
        assert!(state.last_failure.is_some(), "cut off is a failure");
    }
}

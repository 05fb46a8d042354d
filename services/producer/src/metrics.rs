//! The books as metrics. Read at the scrape, all at one moment, from what the producer itself counts by.
use crate::{
    books::{Degraded, Dropped, Failed, Row},
    budget::Kind,
    queue::Queue,
};
use prometheus::{
    CounterVec, Gauge, GaugeVec, Opts, Registry, Result,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use std::{fmt, sync::Arc};

/// Metrics of one producer, in the registry that it was given.
pub(crate) struct Metrics {
    registry: Registry,
    collector: Readings,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    pub(crate) fn register(registry: &Registry, queue: Arc<Queue>) -> Result<Self> {
        let collector = Readings { families: Arc::new(Families::new()?), queue };
        registry.register(Box::new(collector.clone()))?;
        Ok(Self { registry: registry.clone(), collector })
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        // Where it is no longer registered, there is nothing to take back.
        self.registry.unregister(Box::new(self.collector.clone())).ok();
    }
}

#[derive(Clone)]
struct Readings {
    families: Arc<Families>,
    queue: Arc<Queue>,
}

struct Families {
    accepted: CounterVec,
    sent: CounterVec,
    delivered: CounterVec,
    dropped: CounterVec,
    failed: CounterVec,
    in_flight: GaugeVec,
    degraded: CounterVec,
    queue_depth: Gauge,
    queue_bytes: Gauge,
    oldest_seconds: Gauge,
}

impl Families {
    fn new() -> Result<Self> {
        let counters =
            |name: &str, help: &str, labels: &[&str]| CounterVec::new(Opts::new(name, help), labels);
        let kind = ["message_type"];
        let reason = ["message_type", "reason"];
        Ok(Self {
            accepted: counters(
                "dashstream_telemetry_accepted_total",
                "Messages of the application and of the producer itself: delivered, dropped, failed or in flight.",
                &kind,
            )?,
            sent: counters("dashstream_telemetry_sent_total", "Messages given to Kafka's client.", &kind)?,
            delivered: counters(
                "dashstream_telemetry_delivered_total",
                "Messages that Kafka acknowledged.",
                &kind,
            )?,
            dropped: counters(
                "dashstream_telemetry_dropped_total",
                "Messages that were never given to Kafka's client.",
                &reason,
            )?,
            failed: counters(
                "dashstream_telemetry_send_failures_total",
                "Messages that were given to Kafka's client and did not reach Kafka.",
                &reason,
            )?,
            in_flight: GaugeVec::new(
                Opts::new("dashstream_telemetry_in_flight", "Messages neither delivered nor lost yet."),
                &kind,
            )?,
            degraded: counters(
                "dashstream_state_diff_degraded_total",
                "States that were published otherwise than asked for, or not at all.",
                &["reason"],
            )?,
            queue_depth: Gauge::new(
                "dashstream_telemetry_queue_depth",
                "Messages not given to Kafka's client yet.",
            )?,
            queue_bytes: Gauge::new(
                "dashstream_telemetry_queue_bytes",
                "Memory of all messages in flight; those are refused for which the budget has no room.",
            )?,
            oldest_seconds: Gauge::new(
                "dashstream_telemetry_oldest_age_seconds",
                "Time since the first of all messages in flight was said.",
            )?,
        })
    }

    fn all(&self) -> [&dyn Collector; 10] {
        [
            &self.accepted,
            &self.sent,
            &self.delivered,
            &self.dropped,
            &self.failed,
            &self.in_flight,
            &self.degraded,
            &self.queue_depth,
            &self.queue_bytes,
            &self.oldest_seconds,
        ]
    }

    fn set(&self, kind: Kind, row: &Row) {
        let kind = kind.label();
        let set = |counters: &CounterVec, labels: &[&str], count: u64| {
            counters.with_label_values(labels).inc_by(count as f64);
        };
        set(&self.accepted, &[kind], row.accepted);
        set(&self.sent, &[kind], row.sent);
        set(&self.delivered, &[kind], row.delivered);
        for reason in Dropped::ALL {
            set(&self.dropped, &[kind, reason.label()], row.dropped[reason as usize]);
        }
        for reason in Failed::ALL {
            set(&self.failed, &[kind, reason.label()], row.failed[reason as usize]);
        }
        self.in_flight.with_label_values(&[kind]).set(row.in_flight() as f64);
    }
}

impl Collector for Readings {
    fn desc(&self) -> Vec<&Desc> {
        self.families.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Of its own for each scrape: two at a time would mix.
        let Ok(families) = Families::new() else { return Vec::new() };
        let (books, depth) = self.queue.reading();
        Kind::ALL.into_iter().for_each(|kind| families.set(kind, books.row(kind)));
        for how in Degraded::ALL {
            families.degraded.with_label_values(&[how.label()]).inc_by(books.degraded(how) as f64);
        }
        families.queue_depth.set(depth.messages as f64);
        families.queue_bytes.set(depth.bytes as f64);
        families.oldest_seconds.set(depth.oldest.as_secs_f64());
        families.all().into_iter().flat_map(Collector::collect).collect()
    }
}

//! Gauges of the partitions that this replica owns, read off when they are asked for: a partition that was revoked
//! has none from that moment on, and what is unknown is absent rather than zero.
use crate::owned::{Owned, now_ms};
use dashstream_proto::ingest::v1::{CatchUpPhase, PartitionCatchUp};
use prometheus::{
    GaugeVec, Opts, Registry, Result,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use std::sync::{Mutex, PoisonError};

/// Reads them off `owned`.
#[derive(Debug)]
pub struct Partitions {
    owned: Owned,
    descriptions: Vec<Desc>,
    gauges: Mutex<Gauges>,
}

#[derive(Debug)]
struct Gauges {
    catching_up: GaugeVec,
    phase: GaugeVec,
    phase_seconds: GaugeVec,
    lag: GaugeVec,
    next: GaugeVec,
    head: GaugeVec,
    high_watermark: GaugeVec,
    last_record: GaugeVec,
    seconds_to_live: GaugeVec,
}

const PHASES: [CatchUpPhase; 7] = [
    CatchUpPhase::Starting,
    CatchUpPhase::CatchingUp,
    CatchUpPhase::Live,
    CatchUpPhase::Paused,
    CatchUpPhase::Blocked,
    CatchUpPhase::Healing,
    CatchUpPhase::Stalled,
];

impl Partitions {
    /// # Errors
    /// A name is already taken in `registry`.
    pub fn register(owned: Owned, registry: &Registry) -> Result<()> {
        let gauges = Gauges::new()?;
        let descriptions = gauges.all().into_iter().flat_map(Collector::desc).cloned().collect();
        registry.register(Box::new(Self { owned, descriptions, gauges: Mutex::new(gauges) }))
    }
}

impl Gauges {
    fn new() -> Result<Self> {
        let gauge = |what: &str, help: &str, labels: &[&str]| {
            GaugeVec::new(Opts::new(format!("dashstream_ingest_partition_{what}"), help), labels)
        };
        Ok(Self {
            catching_up: gauge(
                "catching_up",
                "1 while the partition is not live, whatever the reason; 0 when it is.",
                &["partition"],
            )?,
            phase: gauge(
                "phase",
                "1 for the phase that the partition is in, 0 for the others.",
                &["partition", "phase"],
            )?,
            phase_seconds: gauge("phase_seconds", "How long it is in this phase.", &["partition"])?,
            lag: gauge(
                "lag_offsets",
                "High watermark less next offset; absent while unknown.",
                &["partition"],
            )?,
            next: gauge(
                "next_offset",
                "Everything before it is durable; absent while unknown.",
                &["partition"],
            )?,
            head: gauge(
                "head_offset",
                "High watermark when the partition was assigned; absent while unknown.",
                &["partition"],
            )?,
            high_watermark: gauge(
                "high_watermark_offset",
                "One past the newest readable record; absent while unknown.",
                &["partition"],
            )?,
            last_record: gauge(
                "last_record_timestamp_seconds",
                "Kafka's time of the last durable record; absent before the first.",
                &["partition"],
            )?,
            seconds_to_live: gauge(
                "seconds_to_live",
                "Until it is live at the present rates; infinite when never, absent when live or unknown.",
                &["partition"],
            )?,
        })
    }

    fn all(&self) -> [&GaugeVec; 9] {
        let Self {
            catching_up,
            phase,
            phase_seconds,
            lag,
            next,
            head,
            high_watermark,
            last_record,
            seconds_to_live,
        } = self;
        [catching_up, phase, phase_seconds, lag, next, head, high_watermark, last_record, seconds_to_live]
    }

    fn set(&self, report: &PartitionCatchUp, now_ms: i64) {
        let partition = report.partition.to_string();
        let set = |gauge: &GaugeVec, value: Option<f64>| {
            if let Some(value) = value {
                gauge.with_label_values(&[&partition]).set(value);
            }
        };
        let live = report.phase() == CatchUpPhase::Live;
        set(&self.catching_up, Some(if live { 0.0 } else { 1.0 }));
        for phase in PHASES {
            let value = if phase == report.phase() { 1.0 } else { 0.0 };
            self.phase.with_label_values(&[&*partition, label(phase)]).set(value);
        }
        set(&self.phase_seconds, Some(now_ms.saturating_sub(report.phase_since_ms).max(0) as f64 / 1e3));
        set(&self.lag, report.lag.map(|lag| lag as f64));
        set(&self.next, report.next_offset.map(|next| next as f64));
        set(&self.head, report.head.map(|head| head as f64));
        set(&self.high_watermark, report.high_watermark.map(|mark| mark as f64));
        set(&self.last_record, report.last_record_ms.map(|ms| ms as f64 / 1e3));
        let never = report.never_live.then_some(f64::INFINITY);
        set(&self.seconds_to_live, report.seconds_to_live.or(never).filter(|_| !live));
    }
}

fn label(phase: CatchUpPhase) -> &'static str {
    match phase {
        CatchUpPhase::Unspecified => "unspecified",
        CatchUpPhase::Starting => "starting",
        CatchUpPhase::CatchingUp => "catching_up",
        CatchUpPhase::Live => "live",
        CatchUpPhase::Paused => "paused",
        CatchUpPhase::Blocked => "blocked",
        CatchUpPhase::Healing => "healing",
        CatchUpPhase::Stalled => "stalled",
    }
}

impl Collector for Partitions {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // One question at a time: they share the gauges.
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.all().into_iter().for_each(GaugeVec::reset);
        let now = now_ms();
        self.owned.report().iter().for_each(|report| gauges.set(report, now));
        gauges.all().into_iter().flat_map(Collector::collect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dashstream_core::{
        catch_up::Input,
        position::{Epoch, NextOffset, Partition},
    };

    fn names(registry: &Registry) -> Vec<String> {
        registry.gather().iter().map(|family| family.name().to_owned()).collect()
    }

    #[test]
    fn series_come_with_what_is_known_and_go_with_the_partition() {
        let (owned, registry) = (Owned::default(), Registry::new());
        Partitions::register(owned.clone(), &registry).unwrap();
        assert_eq!(names(&registry), [""; 0]);

        let partition = Partition::new(3).unwrap();
        owned.insert(partition);
        assert!(
            !names(&registry).contains(&"dashstream_ingest_partition_lag_offsets".into()),
            "unknown is not zero"
        );
        owned.on(partition, Input::Opened { epoch: Epoch::new(1), held: None });
        owned.on(partition, Input::Head(NextOffset::from_kafka(7).unwrap()));
        let families = registry.gather();
        let value = |name: &str| {
            let family = families.iter().find(|family| family.name().ends_with(name)).unwrap();
            family.get_metric()[0].get_gauge().get_value()
        };
        assert_eq!((value("lag_offsets"), value("head_offset"), value("catching_up")), (7.0, 7.0, 1.0));
        owned.on(partition, Input::Durable { next: NextOffset::from_kafka(7).unwrap() });
        let families = registry.gather();
        let live = families.iter().find(|family| family.name().ends_with("catching_up")).unwrap();
        assert_eq!(live.get_metric()[0].get_gauge().get_value(), 0.0);

        owned.remove(partition);
        assert_eq!(names(&registry), [""; 0]);
    }
}

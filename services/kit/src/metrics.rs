//! Metrics made and registered in one step: a name taken twice is an error, never a silent loss.
//!
//! Names are `dashstream_<service>_<what>_<unit>`. Label values come from a set known in advance.

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    Result,
};

/// Bucket bounds for durations, in seconds: from a hit in memory to a request given up on.
pub const SECONDS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// A number that only grows.
///
/// # Errors
/// If the name is taken or malformed; so do all functions below.
pub fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter> {
    register(registry, IntCounter::new(name, help)?)
}

/// A [`counter`] per combination of label values.
pub fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

/// A number that goes up and down.
pub fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge> {
    register(registry, IntGauge::new(name, help)?)
}

/// A [`gauge`] per combination of label values.
pub fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

/// A distribution; `buckets` are upper bounds, ascending, in the unit that ends the name.
pub fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram> {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    register(registry, Histogram::with_opts(options)?)
}

/// A [`histogram`] per combination of label values.
pub fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
    labels: &[&str],
) -> Result<HistogramVec> {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    register(registry, HistogramVec::new(options, labels)?)
}

/// The metric by which a dashboard tells which version runs where; always 1.
pub(crate) fn build_info(registry: &Registry, service: &str) -> Result<()> {
    let options = Opts::new("dashstream_build_info", "Always 1; labels tell the running version.")
        .const_label("service", service)
        .const_label("version", crate::VERSION);
    register(registry, IntGauge::with_opts(options)?)?.set(1);
    Ok(())
}

fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: M) -> Result<M> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_taken_twice_is_an_error() {
        let registry = Registry::new();
        counter(&registry, "reads_total", "Reads.").unwrap().inc();
        assert!(counter(&registry, "reads_total", "Reads.").is_err());
    }

    #[test]
    fn what_is_counted_is_what_is_gathered() {
        let registry = Registry::new();
        let seconds = histograms(&registry, "read_seconds", "Reads.", SECONDS, &["kind"]).unwrap();
        seconds.with_label_values(&["range"]).observe(0.02);
        gauges(&registry, "open", "Open.", &["kind"]).unwrap().with_label_values(&["ws"]).set(3);
        let names: Vec<_> = registry.gather().iter().map(|family| family.name().to_owned()).collect();
        assert_eq!(names, ["open", "read_seconds"]);
    }
}

//! Logs to standard error, traces over OTLP, and W3C trace context in and out of text.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt};

use crate::config::{Config, LogFormat};

/// Name of the gRPC metadata entry and the Kafka header that carries the trace context.
pub const TRACEPARENT: &str = "traceparent";

/// How long the last traces may take to leave; a collector that is away must not hold the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Traces are made in this process.
static ON: AtomicBool = AtomicBool::new(false);

/// What was installed, to be flushed at the end.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Installs logs and, if a collector is named, traces, for the whole process.
    ///
    /// # Errors
    /// If the directives or the endpoint do not parse, or something was installed before.
    pub(crate) fn install(service: &'static str, config: &Config) -> anyhow::Result<Self> {
        let filter = EnvFilter::builder().parse(&config.log).context("parse --log")?;
        let traces = config.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty());
        let traces = traces.map(|endpoint| provider(service, endpoint)).transpose()?;
        // What is logged does not decide what is traced.
        Registry::default()
            .with(lines(config.log_format).with_filter(filter))
            .with(traces.as_ref().map(|traces| spans(traces.tracer(service)).with_filter(filter_fn(is_ours))))
            .try_init()
            .context("install the log subscriber")?;
        log_panics();
        ON.store(traces.is_some(), Ordering::Relaxed);
        Ok(Self { traces })
    }

    /// Sends what is left and stops tracing. A failure is logged: it must not fail a drain.
    pub(crate) async fn flush(&self) {
        let Some(traces) = self.traces.clone() else {
            return;
        };
        let flushed = tokio::task::spawn_blocking(move || {
            traces.shutdown_with_timeout(FLUSH_TIMEOUT).map_err(anyhow::Error::from)
        });
        if let Err(error) = flushed.await.map_err(anyhow::Error::from).flatten() {
            tracing::warn!(%error, "last traces were not sent");
        }
    }
}

fn is_ours(metadata: &tracing::Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with("dashstream")
}

fn provider(service: &'static str, endpoint: &str) -> anyhow::Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .with_context(|| format!("make a trace exporter for {endpoint}"))?;
    let resource = Resource::builder().with_service_name(format!("dashstream-{service}")).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

fn spans<S>(tracer: SdkTracer) -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    tracing_opentelemetry::layer().with_tracer(tracer)
}

fn lines<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let layer = fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}

/// Panics become log lines like all others, so that a collector of JSON can read them.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let message = payload.downcast_ref::<&str>().copied();
        let message = message.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(message, location, "panic");
    }));
}

/// Whether traces are made. Where they are not, nobody need look for what is to be traced.
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// A span for a record's stay in this process, a child of its producer's. It ends when it is dropped. `None` where
/// traces are off, or the producer does not want this one traced.
pub fn hop(name: &'static str, traceparent: &str, partition: i32, offset: u64) -> Option<tracing::Span> {
    if !is_on() || traceparent.is_empty() {
        return None;
    }
    let context = extracted(traceparent);
    if !context.span().span_context().is_sampled() {
        return None;
    }
    let span = tracing::info_span!("hop", otel.name = name, partition, offset);
    set_parent(&span, context);
    Some(span)
}

/// A [`hop`] for each of these offsets and `traceparent`s, which are not looked at where traces are off.
pub fn hops(
    name: &'static str,
    partition: i32,
    traced: impl Iterator<Item = (u64, String)>,
) -> Vec<tracing::Span> {
    if !is_on() {
        return Vec::new();
    }
    traced.filter_map(|(offset, traceparent)| hop(name, &traceparent, partition, offset)).collect()
}

/// The context of `span` as a `traceparent`; nothing where traces are off.
pub fn traceparent(span: &tracing::Span) -> Option<String> {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
    carrier.remove(TRACEPARENT)
}

/// Makes `span` a part of the trace that `traceparent` names. What does not parse is ignored: it
/// comes from outside, and a trace is not worth a failure.
pub fn adopt(span: &tracing::Span, traceparent: &str) {
    let context = extracted(traceparent);
    if context.span().span_context().is_valid() {
        set_parent(span, context);
    }
}

fn extracted(traceparent: &str) -> opentelemetry::Context {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    TraceContextPropagator::new().extract(&carrier)
}

fn set_parent(span: &tracing::Span, context: opentelemetry::Context) {
    if let Err(error) = span.set_parent(context) {
        tracing::trace!(%error, "trace context not adopted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_goes_on_behind_a_traceparent() {
        let provider = SdkTracerProvider::builder().build();
        let subscriber = Registry::default().with(spans(provider.tracer("test")));
        tracing::subscriber::with_default(subscriber, || {
            let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
            let span = tracing::info_span!("append");
            adopt(&span, &format!("00-{trace}-00f067aa0ba902b7-01"));
            let handed_on = traceparent(&span).unwrap();
            assert!(handed_on.starts_with(&format!("00-{trace}-")), "{handed_on}");
            assert!(!handed_on.contains("00f067aa0ba902b7"), "the span is a new one");
        });
    }

    #[test]
    fn a_malformed_traceparent_is_ignored() {
        let provider = SdkTracerProvider::builder().build();
        let subscriber = Registry::default().with(spans(provider.tracer("test")));
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("append");
            adopt(&span, "00-nonsense");
            assert!(traceparent(&span).is_some());
        });
    }

    #[test]
    fn without_traces_there_is_no_traceparent() {
        assert_eq!(traceparent(&tracing::Span::none()), None);
    }
}

//! A record's way through the services, as a trace tells it.
use dashstream_tests::{Collector, Feed, Kind, Shape, Stack, Watcher, eventually};
use opentelemetry_proto::tonic::trace::v1::Span;
use std::{collections::BTreeSet, time::Duration};

const TIMEOUT: Duration = Duration::from_secs(60);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PRODUCER: &str = "00f067aa0ba902b7";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_traced_record_leaves_a_span_at_every_hop_in_its_producers_trace() {
    let collector = Collector::start().await;
    let settings = [Kind::Ingest, Kind::Replay, Kind::Gateway].into_iter().flat_map(|kind| {
        [
            (kind, "OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()),
            (kind, "OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()),
            // Traces do not depend on what is logged.
            (kind, "RUST_LOG", "error".to_owned()),
        ]
    });
    let stack = Stack::start(Shape { partitions: 1, settings: settings.collect(), ..Shape::default() }).await;
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    feed.send_traced(0, &format!("00-{TRACE}-{PRODUCER}-01")).await;
    feed.send_traced(0, &format!("00-{}-{PRODUCER}-00", "1".repeat(32))).await;
    feed.send_traced(0, "not a trace").await;
    feed.send_sound(0, 1).await;
    let log = feed.log().await;
    let mut watcher = Watcher::new();
    let gateways = [stack.gateway[0].address()];
    watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= 4).await;
    watcher.assert_received(&log);

    let hops = |spans: &[Span]| -> BTreeSet<String> {
        spans.iter().filter(|span| hex(&span.trace_id) == TRACE).map(|span| span.name.clone()).collect()
    };
    let spans = eventually("a span of each hop", TIMEOUT, async || {
        let spans = collector.spans();
        let all: BTreeSet<_> = ["ingest", "replay", "gateway"].map(str::to_owned).into();
        if hops(&spans) == all { Ok(spans) } else { Err(format!("{:?}", hops(&spans))) }
    })
    .await;
    for span in spans.iter().filter(|span| ["ingest", "replay", "gateway"].contains(&&*span.name)) {
        assert_eq!(
            (hex(&span.trace_id), hex(&span.parent_span_id)),
            (TRACE.into(), PRODUCER.into()),
            "{span:?}"
        );
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
        assert!(span.attributes.iter().any(|attribute| attribute.key == "offset"), "{span:?}");
    }
}

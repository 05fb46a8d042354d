//! The producer against bare rdkafka that writes the same bytes: records for a second of processor time, of all threads.
//! And how long the application's calls take. `cargo bench -p dashstream-tests --bench producer`, with `-- --help` for
//! its settings. Real Kafka.
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
use anyhow::{Context, Result, ensure};
use clap::Parser;
use dashstream_producer::{Config, Graph, Llm, Measure, Producer, Run, Token};
use dashstream_tests::Kafka;
use prometheus::Registry;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use serde_json::json;
use std::{
    fs,
    time::{Duration, Instant},
};

const TIMEOUT: Duration = Duration::from_secs(120);
const THREADS: usize = 50;
/// Of the kernel's clock of processor time.
const TICKS_A_SECOND: f64 = 100.0;

/// Measures the producer.
#[derive(Debug, Parser)]
struct Args {
    /// Messages of a repetition.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1_000..))]
    records: u32,

    /// Times that both are measured, in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,

    /// Cargo passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Processor time of this process so far, of all its threads.
fn processor_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // Behind the name, which may have blanks; fields 14 and 15 of the line.
    let fields = stat.rsplit_once(')').context("a line of /proc/self/stat")?.1;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_A_SECOND)
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let kafka = Kafka::start().await;
    for repetition in 0..args.repetitions {
        let (ours, bare) = (format!("ours-{repetition}"), format!("bare-{repetition}"));
        kafka.create_topic(&ours, 1, &[]).await;
        kafka.create_topic(&bare, 1, &[]).await;
        let client = kafka.client_config();
        let measured = move || -> Result<()> {
            let (ours_seconds, mut calls) = produce(&client, &ours, args.records)?;
            let payloads = read(&client, &ours)?;
            let bare_seconds = produce_bare(&client, &bare, &payloads)?;
            calls.sort_unstable();
            let call = |part: f64| calls[((calls.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
            let rate = |seconds: f64| payloads.len() as f64 / seconds;
            let bytes: usize = payloads.iter().map(|(_, payload)| payload.len()).sum();
            println!(
                "{} records of {} B: {:.0} a second of processor time, bare rdkafka {:.0}, ratio {:.2}; a call takes \
                 {:.1} us at the median, {:.1} us at p99, {:.1} us at p99.9",
                payloads.len(),
                bytes / payloads.len(),
                rate(ours_seconds),
                rate(bare_seconds),
                bare_seconds / ours_seconds,
                call(0.5),
                call(0.99),
                call(0.999),
            );
            Ok(())
        };
        tokio::task::spawn_blocking(measured).await??;
    }
    Ok(())
}

/// Processor time of the producer, and how long each call took.
fn produce(client: &ClientConfig, topic: &str, records: u32) -> Result<(f64, Vec<Duration>)> {
    let config = Config { budget_bytes: 256 << 20, ..Config::new(topic) };
    let producer = Producer::start(config, client.clone(), &Registry::new())?;
    let runs: Vec<_> = (0..THREADS).map(|at| producer.run(&format!("thread-{at}"))).collect();
    runs.iter().for_each(|run| run.graph_started(&Graph::new("bench", "a"), &json!({ "n": 0 })));
    let mut calls = Vec::with_capacity(records as usize);
    let begun = processor_seconds()?;
    for at in 0..records {
        // An application has pauses; here the budget makes them.
        while producer.depth().bytes > 128 << 20 {
            std::thread::yield_now();
        }
        let said = Instant::now();
        say(&runs[at as usize % THREADS], at);
        calls.push(said.elapsed());
    }
    let report = producer.shutdown(TIMEOUT);
    let seconds = processor_seconds()? - begun;
    ensure!(report.undelivered() == 0, "not everything was delivered: {report:?}");
    Ok((seconds, calls))
}

/// As in real runs: mostly tokens, some events and metrics, a state now and then.
fn say(run: &Run, at: u32) {
    match at / THREADS as u32 % 20 {
        0 => run
            .state(&json!({ "n": at, "notes": ["a note of some length", "and another one"], "cost": 0.25 })),
        1 | 2 => run.node_started("search"),
        3 => run.metrics("node", "search", [("latency", Measure::Gauge(0.25, "seconds"))]),
        _ => {
            let llm = Llm { request_id: "request-1", model: "small-1" };
            run.token(Token { llm, text: "some words ", index: at, finish: None, usage: None });
        }
    }
}

type Records = Vec<(Vec<u8>, Vec<u8>)>;

fn read(client: &ClientConfig, topic: &str) -> Result<Records> {
    let mut settings = client.clone();
    settings.set("group.id", "bench").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = settings.create()?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning)?;
    consumer.assign(&list)?;
    let mut records = Vec::new();
    loop {
        match consumer.poll(TIMEOUT).context("Kafka does not answer")? {
            Ok(record) => {
                let bytes = |bytes: Option<&[u8]>| bytes.unwrap_or_default().to_vec();
                records.push((bytes(record.key()), bytes(record.payload())));
            }
            Err(KafkaError::PartitionEOF(_)) => return Ok(records),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Processor time of bare rdkafka for the same records, with the same settings.
fn produce_bare(client: &ClientConfig, topic: &str, records: &Records) -> Result<f64> {
    let mut settings = client.clone();
    settings.set("acks", "all").set("enable.idempotence", "true").set("linger.ms", "5");
    let producer: BaseProducer = settings.create()?;
    let begun = processor_seconds()?;
    for (at, (key, payload)) in records.iter().enumerate() {
        let mut record = BaseRecord::to(topic).key(key).payload(payload);
        while let Err((error, back)) = producer.send(record) {
            ensure!(error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull), "send: {error}");
            record = back;
            producer.poll(Duration::from_millis(2));
        }
        if at % 128 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(TIMEOUT)?;
    Ok(processor_seconds()? - begun)
}

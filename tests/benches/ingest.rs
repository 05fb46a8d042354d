//! Ingest, from Kafka to durable in Redis, against the two things that it can't be faster than, measured in the same
//! run: reading the topic with bare rdkafka, and appending the same batches to replay.
//! `cargo bench -p dashstream-tests --bench ingest`, with `-- --help` for its settings. Real Kafka, real Redis.
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use clap::Parser;
use dashstream_core::{
    batch::{Envelope, Packer},
    codec::{self, Limits},
    position::{Epoch, Offset, Partition},
};
use dashstream_kit::grpc::channel_to;
use dashstream_proto::{
    log::v1::Batch,
    replay::v1::{
        AppendRequest, OpenPartitionRequest, append_response::Outcome,
        replay_service_client::ReplayServiceClient,
    },
};
use dashstream_tests::{Feed, Kafka, Kind, Log, Redis, Service, eventually::pause};
use futures_util::future::try_join_all;
use rdkafka::{
    TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use serde_json::json;
use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const TOPIC: &str = "bench";
const PARTITIONS: i32 = 8;
const THREADS: usize = 200;
/// As ingest packs, by default.
const BATCH_RECORDS: u32 = 64;
const BATCH_BYTES: usize = 64 << 10;
const BATCHES_IN_FLIGHT: usize = 64;
const LOOK: Duration = Duration::from_millis(5);
const TIMEOUT: Duration = Duration::from_secs(300);

/// Measures ingest.
#[derive(Debug, Parser)]
struct Args {
    /// Records of demo runs in the topic.
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    records: u64,

    /// Times that everything is measured, in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,

    /// Where to write all samples, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Cargo passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Records a second, one for each repetition.
#[derive(Debug, Default)]
struct Samples {
    consumed: Vec<f64>,
    appended: Vec<f64>,
    ingested: Vec<f64>,
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn spread(samples: &[f64]) -> f64 {
    let (least, most) =
        samples.iter().fold((f64::MAX, 0.0_f64), |(low, high), it| (low.min(*it), high.max(*it)));
    (most - least) / median(samples)
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let kafka = Kafka::start().await;
    kafka.create_topic(TOPIC, PARTITIONS, &[]).await;
    kafka.create_topic(&format!("{TOPIC}-dlq"), 1, &[]).await;
    println!("producing {} records", args.records);
    let mut feed = Feed::new(&kafka.client_config(), TOPIC, 1, THREADS);
    feed.send(args.records as usize).await;
    let log = feed.log().await;
    drop(feed);
    let bytes: usize = log.values().flatten().map(|(_, payload)| payload.len()).sum();
    println!(
        "{} B a record on average, {PARTITIONS} partitions, {THREADS} threads at a time",
        bytes as u64 / args.records
    );

    let mut samples = Samples::default();
    for repetition in 1..=args.repetitions {
        samples.consumed.push(consume(&kafka, args.records).await?);
        samples.appended.push(append(&log, args.records).await?);
        samples.ingested.push(ingest(&kafka, args.records, repetition).await?);
        println!("{repetition} of {} done", args.repetitions);
    }
    report(&samples);
    if let Some(path) = &args.json {
        let Samples { consumed, appended, ingested } = &samples;
        let all = json!({"records": args.records, "bytes": bytes, "consumed": consumed, "appended": appended,
            "ingested": ingested});
        fs::write(path, all.to_string()).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn report(samples: &Samples) {
    let limit = median(&samples.consumed).min(median(&samples.appended));
    println!("\n| what | records/s | spread | x the slower limit |\n| --- | ---: | ---: | ---: |");
    for (what, samples) in [
        ("bare rdkafka reads the topic", &samples.consumed),
        ("the same batches appended to replay", &samples.appended),
        ("ingest: Kafka to durable in Redis", &samples.ingested),
    ] {
        let median = median(samples);
        println!("| {what} | {median:.0} | {:.0} % | {:.2} |", 100.0 * spread(samples), median / limit);
    }
}

/// Reads the whole topic with a bare consumer.
async fn consume(kafka: &Kafka, records: u64) -> Result<f64> {
    let mut settings = kafka.client_config();
    settings
        .set("group.id", "bare")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        // As ingest has them.
        .set("fetch.wait.max.ms", "100")
        .set("fetch.queue.backoff.ms", "20")
        .set("queued.min.messages", "20000")
        .set("queued.max.messages.kbytes", "16384");
    let read = move || -> Result<f64> {
        let consumer: BaseConsumer = settings.create()?;
        let mut list = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            list.add_partition_offset(TOPIC, partition, rdkafka::Offset::Beginning)?;
        }
        consumer.assign(&list)?;
        let (mut begun, mut read) = (None, 0);
        while read < records {
            consumer.poll(TIMEOUT).context("the topic ended early")??;
            begun.get_or_insert_with(Instant::now);
            read += 1;
        }
        Ok(rate(records, begun))
    };
    tokio::task::spawn_blocking(read).await?
}

fn rate(records: u64, begun: Option<Instant>) -> f64 {
    records as f64 / begun.map_or(f64::INFINITY, |begun| begun.elapsed().as_secs_f64())
}

async fn replay() -> (Redis, Service) {
    let redis = Redis::start(&[]).await;
    let replay = Service::start(
        Kind::Replay,
        &[("REDIS_URL", &redis.url()), ("REPLAY_STORE", "redis"), ("RUST_LOG", "warn")],
    );
    replay.ready().await;
    (redis, replay)
}

/// Appends what the topic holds, packed before, to a replay and a Redis of their own.
async fn append(log: &Log, records: u64) -> Result<f64> {
    let (_redis, replay) = replay().await;
    let client = ReplayServiceClient::new(channel_to(&replay.address())?);
    let mut packed = Vec::new();
    for (partition, records) in log {
        let open = OpenPartitionRequest { stream: TOPIC.into(), partition: *partition, ..Default::default() };
        let epoch = client.clone().open_partition(open).await?.into_inner().epoch;
        packed.push(pack(Epoch::new(epoch), Partition::new(*partition)?, records)?);
    }
    let begun = Instant::now();
    try_join_all(packed.into_iter().map(|batches| append_all(client.clone(), batches))).await?;
    Ok(rate(records, Some(begun)))
}

fn pack(epoch: Epoch, partition: Partition, records: &[(u64, Bytes)]) -> Result<Vec<Batch>> {
    let (mut packer, mut batches) = (Packer::new(epoch, partition, None), Vec::new());
    for (offset, payload) in records {
        let envelope = Envelope {
            offset: Offset::new(*offset)?,
            timestamp_ms: Some(1_700_000_000_000),
            facts: codec::facts(Some(payload), Limits::default())?,
            traceparent: String::new(),
            tracestate: String::new(),
        };
        ensure!(packer.push(envelope, payload), "offsets ascend");
        if packer.count() >= BATCH_RECORDS || packer.bytes() >= BATCH_BYTES {
            batches.extend(packer.finish());
        }
    }
    batches.extend(packer.finish());
    Ok(batches)
}

async fn append_all(
    mut client: ReplayServiceClient<tonic::transport::Channel>,
    batches: Vec<Batch>,
) -> Result<()> {
    let (requests, outgoing) = mpsc::channel(BATCHES_IN_FLIGHT);
    let expected = batches.len();
    let sending = async move {
        for batch in batches {
            requests.send(AppendRequest { stream: TOPIC.into(), batch: Some(batch) }).await?;
        }
        anyhow::Ok(())
    };
    let answering = async {
        let mut answers = client.append(ReceiverStream::new(outgoing)).await?.into_inner();
        for _ in 0..expected {
            match answers.message().await?.and_then(|answer| answer.outcome) {
                Some(Outcome::Stored(_)) => {}
                other => bail!("expected an acknowledgement, got {other:?}"),
            }
        }
        Ok(())
    };
    tokio::try_join!(sending, answering)?;
    Ok(())
}

/// Lets ingest fill an empty replay, from the moment at which it stored its first records.
async fn ingest(kafka: &Kafka, records: u64, repetition: u32) -> Result<f64> {
    let (_redis, replay) = replay().await;
    let (brokers, group) = (kafka.brokers(), format!("bench-{repetition}"));
    let ingest = Service::start(
        Kind::Ingest,
        &[
            ("KAFKA_BROKERS", &*brokers),
            ("KAFKA_TOPIC", TOPIC),
            ("KAFKA_GROUP_ID", &group),
            ("REPLAY_TARGETS", &replay.address()),
            ("INGEST_REFILL", "earliest"),
            ("RUST_LOG", "warn"),
        ],
    );
    let deadline = Instant::now() + TIMEOUT;
    let stored = async || {
        let stored = ingest.metric("dashstream_ingest_records_total{outcome=\"stored\"}").await;
        stored.ok().flatten().unwrap_or(0.0) as u64
    };
    let mut first = None;
    loop {
        let now = stored().await;
        if now > 0 {
            first.get_or_insert_with(|| (Instant::now(), now));
        }
        match first {
            Some((begun, had)) if now == records => return Ok(rate(records - had, Some(begun))),
            _ => ensure!(now <= records && Instant::now() < deadline, "{now} of {records} records stored"),
        }
        pause(LOOK).await;
    }
}

//! `dashstream produce`: runs of demo agents into Kafka, at a rate.
use crate::{output::say, runs::Runs};
use anyhow::Context;
use dashstream_core::codec;
use dashstream_kafka::{Connection, Trouble};
use rdkafka::{
    ClientContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// Where messages above this size are compressed, bytes.
const COMPRESS_ABOVE: usize = 512;
const TICK: Duration = Duration::from_millis(5);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// Settings of `dashstream produce`.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "produce")]
pub struct Config {
    #[command(flatten)]
    pub kafka: Connection,

    /// Topic to write.
    #[arg(long, env = "KAFKA_TOPIC", default_value = "dashstream-events")]
    pub kafka_topic: String,

    /// Records a second; 0 for as fast as Kafka takes them.
    #[arg(long, default_value_t = 100)]
    pub rate: u64,

    /// Stop after so many records; 0 for never.
    #[arg(long, default_value_t = 0)]
    pub count: u64,

    /// Runs at a time.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: u32,

    /// The same seed gives the same runs. Random unless given.
    #[arg(long)]
    pub seed: Option<u64>,
}

/// What became of the records.
#[derive(Debug, Default)]
pub struct Counts {
    pub delivered: AtomicU64,
    pub failed: AtomicU64,
    /// Why none may be delivered now.
    pub trouble: Trouble,
}

struct Deliveries(Arc<Counts>);

impl ClientContext for Deliveries {
    fn error(&self, error: KafkaError, reason: &str) {
        self.0.trouble.note(&error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _opaque: ()) {
        if result.is_ok() {
            self.0.trouble.clear();
            self.0.delivered.fetch_add(1, Ordering::Relaxed);
        } else {
            self.0.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Microseconds since 1970.
fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Produces until the count is reached or `stop`, then waits for what is in flight.
///
/// # Errors
/// When Kafka's settings are wrong, or records were lost: then the counts say how many.
pub async fn run(config: Config, counts: Arc<Counts>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut settings = config.kafka.client_config("dashstream-produce", &[("linger.ms", "5")])?;
    settings.set("enable.idempotence", "true").set("partitioner", "consistent_random");
    let producer: ThreadedProducer<Deliveries> =
        settings.create_with_context(Deliveries(Arc::clone(&counts))).context("make a Kafka producer")?;
    let seed = config.seed.unwrap_or_else(rand::random);
    let prefix = if config.seed.is_some() { String::new() } else { format!("{:04x}-", seed & 0xffff) };
    let mut runs = Runs::new(seed, config.threads as usize, &prefix, now_us());
    let (begun, mut sent) = (Instant::now(), 0_u64);
    let most = if config.count == 0 { u64::MAX } else { config.count };
    while sent < most && !stop.is_cancelled() {
        let due = if config.rate == 0 {
            u64::MAX
        } else {
            (begun.elapsed().as_secs_f64() * config.rate as f64) as u64
        };
        runs.set_clock(now_us());
        // In bursts, so that the clock and the stop are looked at now and then.
        let until = due.min(most).min(sent + 1_000);
        while sent < until {
            send(&producer, &config.kafka_topic, &mut runs).await?;
            sent += 1;
        }
        if config.rate > 0 {
            stop.run_until_cancelled(tokio::time::sleep(TICK)).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
    let flushed = tokio::task::spawn_blocking(move || producer.flush(FLUSH_TIMEOUT)).await?;
    let failed = counts.failed.load(Ordering::Relaxed);
    let why = counts.trouble.last().map(|reason| format!(": {reason}")).unwrap_or_default();
    flushed.with_context(|| {
        format!("{} of {sent} records delivered{why}", counts.delivered.load(Ordering::Relaxed))
    })?;
    anyhow::ensure!(failed == 0, "{failed} of {sent} records were not delivered{why}");
    Ok(())
}

async fn send(producer: &ThreadedProducer<Deliveries>, topic: &str, runs: &mut Runs) -> anyhow::Result<()> {
    let Some(produced) = runs.next() else { return Ok(()) };
    let payload = codec::encode(&produced.message, COMPRESS_ABOVE);
    let mut record = BaseRecord::to(topic).key(&produced.thread_id).payload(&payload);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                tokio::time::sleep(TICK).await;
            }
            Err((error, _)) => return Err(error).context("hand a record to Kafka's client"),
        }
    }
}

/// The command: produces and says how it goes.
///
/// # Errors
/// As [`run`].
pub async fn command(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let counts = Arc::<Counts>::default();
    let begun = Instant::now();
    let producing = run(config, Arc::clone(&counts), stop);
    tokio::pin!(producing);
    let mut ticks = tokio::time::interval(Duration::from_secs(2));
    ticks.tick().await;
    let rate = |delivered: u64| delivered as f64 / begun.elapsed().as_secs_f64();
    loop {
        tokio::select! {
            done = &mut producing => {
                let delivered = counts.delivered.load(Ordering::Relaxed);
                say(format_args!("{delivered} records delivered, {:.0} a second", rate(delivered)));
                return done;
            }
            _ = ticks.tick() => {
                let delivered = counts.delivered.load(Ordering::Relaxed);
                let why = counts.trouble.last().map(|reason| format!("; {reason}")).unwrap_or_default();
                say(format_args!("{delivered} records delivered, {:.0} a second{why}", rate(delivered)));
            }
        }
    }
}

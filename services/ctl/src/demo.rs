//! `dashstream demo`: agents that are worth watching, told of through the producer as an application would.
use crate::output::say;
use anyhow::Context;
use dashstream_kafka::Connection;
use dashstream_kit::config::duration;
use dashstream_producer::{Books, Producer};
use prometheus::Registry;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

mod agents;
mod play;
mod script;

/// Steps between two looks at the clock and the stop.
const BURST: usize = 256;
/// How long what is on its way is waited for at the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// A pause while the producer is full, so that nothing is refused.
const FULL_PAUSE: Duration = Duration::from_millis(5);

/// Settings of `dashstream demo`.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "demo")]
pub struct Config {
    #[command(flatten)]
    pub kafka: Connection,

    /// Topic to write.
    #[arg(long, env = "KAFKA_TOPIC", default_value = "dashstream-events")]
    pub kafka_topic: String,

    /// How fast time passes for the agents: 1 as it does, 10 ten times as fast; 0 without any waiting.
    #[arg(long, default_value_t = 1.0, value_parser = speed)]
    pub speed: f64,

    /// Runs at a time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: u32,

    /// Least time from the begin of a run to the begin of the next one in its place, in the agents' time.
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub every: Duration,

    /// Stop after so many runs; 0 for never.
    #[arg(long, default_value_t = 0)]
    pub runs: u64,

    /// The same seed gives the same runs. Random unless given.
    #[arg(long)]
    pub seed: Option<u64>,
}

/// Reads a speed.
///
/// # Errors
/// It is no number, or less than 0.
pub fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if speed.is_finite() && speed >= 0.0 => Ok(speed),
        _ => Err("expected a number, at least 0".into()),
    }
}

/// Plays until the runs are over or `stop`, and says what became of their messages.
///
/// # Errors
/// When Kafka's settings are wrong.
pub async fn run(config: Config, registry: &Registry, stop: CancellationToken) -> anyhow::Result<Books> {
    let client = config.kafka.client_config("dashstream-demo", &[])?;
    let settings = dashstream_producer::Config {
        tenant_id: "demo".into(),
        checkpoint_every: 20,
        ..dashstream_producer::Config::new(&config.kafka_topic)
    };
    let budget_bytes = settings.budget_bytes;
    let producer = Producer::start(settings, client, registry).context("start the producer")?;
    let seed = config.seed.unwrap_or_else(rand::random);
    let prefix = if config.seed.is_some() { String::new() } else { format!("{:04x}-", seed & 0xffff) };
    let mut stage = play::Stage::new(seed, config.threads, config.runs, config.every, prefix);
    let begun = Instant::now();
    while let Some(due) = stage.next_due()
        && !stop.is_cancelled()
    {
        if config.speed > 0.0 {
            let at = begun + due.div_f64(config.speed);
            stop.run_until_cancelled(tokio::time::sleep_until(at.into())).await;
        }
        if producer.depth().bytes > budget_bytes / 2 {
            stop.run_until_cancelled(tokio::time::sleep(FULL_PAUSE)).await;
            continue;
        }
        let now = begun.elapsed().mul_f64(config.speed);
        for _ in 0..BURST {
            match stage.next_due() {
                Some(due) if config.speed == 0.0 || due <= now => stage.step(&producer),
                _ => break,
            }
        }
        tokio::task::yield_now().await;
    }
    drop(stage);
    let report = tokio::task::spawn_blocking(move || producer.shutdown(SHUTDOWN_TIMEOUT)).await?;
    Ok(report.books)
}

/// The command: plays, and says how it went.
///
/// # Errors
/// When Kafka's settings are wrong, or messages are not in Kafka: then it says how many.
pub async fn command(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let begun = Instant::now();
    let total = run(config, &Registry::new(), stop).await?.total();
    let rate = total.delivered as f64 / begun.elapsed().as_secs_f64();
    say(format_args!("{} messages delivered, {rate:.0} a second", total.delivered));
    let undelivered = total.lost() + total.in_flight();
    anyhow::ensure!(undelivered == 0, "{undelivered} of {} messages were not delivered", total.accepted);
    Ok(())
}

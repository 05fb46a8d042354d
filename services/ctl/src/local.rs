//! `dashstream local`: everything in one process on embedded parts. Wiring only: the services are the same,
//! and speak the same gRPC to each other.
use crate::{
    client::{Client, Event},
    demo,
    output::say,
};
use anyhow::Context;
use clap::{Args, FromArgMatches};
use dashstream_core::{chain::Chain, codec};
use dashstream_kafka::Connection;
use dashstream_kit::{Kit, config::duration};
use dashstream_proto::{
    log::v1::{Record, RecordKind},
    session::v1::{Limits, StartPolicy},
    telemetry::{EventType, dash_stream_message::Message as Member},
};
use rdkafka::{mocking::MockCluster, producer::DefaultProducerContext};
use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::net::TcpListener;

/// Settings of `dashstream local`.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "local")]
pub struct Config {
    /// Address of HTTP and websockets.
    #[arg(long, env = "GATEWAY_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Address of the gRPC query service.
    #[arg(long, env = "GATEWAY_GRPC_LISTEN", default_value = "127.0.0.1:7301")]
    pub grpc_listen: SocketAddr,

    /// Consumer group at a real Kafka. Unless given, one of this run's own, so that no two runs take each other's
    /// partitions.
    #[arg(long, env = "KAFKA_GROUP_ID")]
    pub kafka_group_id: Option<String>,

    /// Topic to read and to produce to.
    #[arg(long, env = "KAFKA_TOPIC", default_value = "dashstream-events")]
    pub kafka_topic: String,

    /// Partitions of the embedded broker's topic.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(i32).range(1..=64))]
    pub partitions: i32,

    /// A real Redis instead of memory: `redis://host:port`.
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    pub redis_url: Option<String>,

    /// How long records are kept.
    #[arg(long, env = "REPLAY_RETENTION", default_value = "1h", value_parser = duration)]
    pub retention: Duration,

    /// How fast time passes for the demo agents: 1 as it does, 10 ten times as fast; 0 without any waiting.
    #[arg(long, default_value_t = 1.0, value_parser = demo::speed)]
    pub speed: f64,

    /// Runs of the demo agents at a time; 0 for no demo.
    #[arg(long, default_value_t = 4)]
    pub threads: u32,

    #[command(
        flatten,
        next_help_heading = "A real Kafka instead of the embedded broker; any of these, and its topic must exist"
    )]
    pub kafka: Option<Connection>,
}

/// The defaults of a service's own settings, as its command line has them.
fn defaults<T: Args + FromArgMatches>(settings: &[String]) -> anyhow::Result<T> {
    let command = T::augment_args(clap::Command::new("local").no_binary_name(true));
    let command = command.mut_args(|arg| arg.env(None));
    Ok(T::from_arg_matches(&command.try_get_matches_from(settings)?)?)
}

/// Runs until the kit stops.
///
/// # Errors
/// When an address is taken or a part does not start.
pub async fn run(config: Config, kit: Kit) -> anyhow::Result<()> {
    let embedded = if config.kafka.is_some() { None } else { Some(embedded_broker(&config)?) };
    let embedded_kafka = embedded.as_ref().map(|broker| Connection::plaintext(broker.bootstrap_servers()));
    let kafka = config.kafka.clone().or(embedded_kafka).context("no Kafka")?;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (replay, ingest) = (TcpListener::bind(any).await?, TcpListener::bind(any).await?);
    let http = bind(config.listen, "--listen").await?;
    let grpc = bind(config.grpc_listen, "--grpc-listen").await?;
    let addresses = (http.local_addr()?, grpc.local_addr()?);
    let settings = Settings::new(&config, replay.local_addr()?, ingest.local_addr()?);

    let parts = ["gateway", "ingest", "replay"].map(|name| part(&kit, name));
    let [gateway_kit, ingest_kit, replay_kit] = parts.clone();
    let replay = dashstream_replay::run(defaults(&settings.replay)?, replay, replay_kit);
    let mut ingest_config: dashstream_ingest::Config = defaults(&settings.ingest)?;
    ingest_config.kafka.connection = kafka.clone();
    let ingest = dashstream_ingest::run(ingest_config, ingest, ingest_kit);
    let gateway = dashstream_gateway::run(defaults(&settings.gateway)?, http, grpc, gateway_kit);
    let mut running = vec![
        kit.tasks.spawn_vital("replay", replay),
        kit.tasks.spawn_vital("ingest", ingest),
        kit.tasks.spawn_vital("gateway", gateway),
    ];

    introduce(&config, addresses, &kafka.brokers);
    if config.threads > 0 {
        running.push(kit.tasks.spawn("demo agents", play(agents(&config, kafka), kit.clone())));
    }
    let stop = kit.tasks.stop_token();
    stop.run_until_cancelled(show_runs(addresses.0)).await;
    // Those who ask end before those who answer, and all of them before the broker.
    for part in &parts {
        part.drain(Duration::from_secs(10)).await?;
    }
    for ended in futures_util::future::join_all(running).await {
        ended??;
    }
    drop(embedded);
    Ok(())
}

async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("{setting}: bind {address}"))
}

/// What each service is told, as on its command line.
struct Settings {
    replay: Vec<String>,
    ingest: Vec<String>,
    gateway: Vec<String>,
}

impl Settings {
    fn new(config: &Config, replay: SocketAddr, ingest: SocketAddr) -> Self {
        let store = match &config.redis_url {
            Some(url) => format!("--redis-url={url}"),
            None => "--store=memory".into(),
        };
        // The embedded broker can't look records up by time.
        let refill = if config.kafka.is_some() { "retention" } else { "earliest" };
        // Nor does it tell a topic's settings.
        let topic_check = config.kafka.is_some();
        Self {
            replay: vec![format!("--retention={}ms", config.retention.as_millis()), store],
            ingest: vec![
                format!("--kafka-topic={}", config.kafka_topic),
                format!("--kafka-group-id={}", group_id(config)),
                format!("--replay-targets={replay}"),
                format!("--refill={refill}"),
                format!("--kafka-topic-check={topic_check}"),
            ],
            gateway: vec![
                // Everything is on this machine, and made up.
                "--auth=none".to_owned(),
                format!("--ingest-targets={ingest}"),
                format!("--replay-targets={replay}"),
                format!("--stream={}", config.kafka_topic),
            ],
        }
    }
}

fn group_id(config: &Config) -> String {
    let own = || format!("dashstream-local-{:08x}", rand::random::<u32>());
    config.kafka_group_id.clone().filter(|given| !given.is_empty()).unwrap_or_else(own)
}

fn agents(config: &Config, kafka: Connection) -> demo::Config {
    demo::Config {
        kafka,
        kafka_topic: config.kafka_topic.clone(),
        speed: config.speed,
        threads: config.threads,
        every: Duration::from_secs(1),
        runs: 0,
        seed: None,
    }
}

async fn play(agents: demo::Config, kit: Kit) -> anyhow::Result<()> {
    demo::run(agents, &kit.registry, kit.tasks.stop_token()).await.map(drop)
}

/// A kit of a service in this process: it stops with the process, and its metrics and readiness are the process's.
fn part(process: &Kit, service: &'static str) -> Kit {
    let mut kit = Kit::embedded(service);
    kit.registry = process.registry.clone();
    kit.readiness = process.readiness.clone();
    kit.trust = process.trust.clone();
    let (tasks, stop) = (kit.tasks.clone(), process.tasks.stop_token());
    let stopped = kit.tasks.stop_token();
    process.tasks.spawn(format!("stop {service}"), async move {
        stopped.run_until_cancelled(stop.cancelled()).await;
        tasks.stop();
    });
    kit
}

fn embedded_broker(config: &Config) -> anyhow::Result<MockCluster<'static, DefaultProducerContext>> {
    let broker = MockCluster::new(1).context("start the embedded broker")?;
    broker
        .create_topic(&config.kafka_topic, config.partitions, 1)
        .context("make the embedded broker's topic")?;
    Ok(broker)
}

fn introduce(config: &Config, (http, grpc): (SocketAddr, SocketAddr), brokers: &str) {
    let kafka = if config.kafka.is_some() { "Kafka" } else { "embedded broker" };
    let store = if config.redis_url.is_some() { "Redis" } else { "memory" };
    say(format_args!("DashStream is starting: {kafka} at {brokers}, records kept in {store}"));
    say(format_args!("  follow records   dashstream tail --url ws://{http}/ws"));
    say(format_args!("  partitions       dashstream status --gateway {grpc}"));
    say(format_args!(
        "  more runs        dashstream demo --kafka-brokers {brokers} --kafka-topic {}",
        config.kafka_topic
    ));
    say(format_args!("  limits           http://{http}/config"));
    say(format_args!("Runs appear below in a few seconds. Ctrl-C stops everything."));
}

/// Shows runs as they begin and end, received as any client would.
async fn show_runs(gateway: SocketAddr) {
    let mut chain = Chain::default();
    let mut runs = HashMap::new();
    loop {
        if let Err(error) = follow(gateway, &mut chain, &mut runs).await {
            tracing::debug!(error = format!("{error:#}"), "follow the runs");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn follow(
    gateway: SocketAddr,
    chain: &mut Chain,
    runs: &mut HashMap<String, (Instant, u64)>,
) -> anyhow::Result<()> {
    let mut client = Client::connect(&format!("ws://{gateway}/ws"), chain.clone(), Limits::default()).await?;
    client.subscribe(StartPolicy::Earliest).await?;
    loop {
        let event = client.next().await;
        chain.clone_from(client.chain());
        match event? {
            Event::Records { records, .. } => records.iter().for_each(|record| show(record, runs)),
            Event::Closed | Event::GoingAway | Event::Error(_) | Event::Stale(_) => return Ok(()),
            Event::Gap(_) | Event::CaughtUp(_) | Event::Partitions(_) | Event::Notice(_) | Event::Pong => {}
        }
    }
}

fn show(record: &Record, runs: &mut HashMap<String, (Instant, u64)>) {
    let thread = &record.thread_id;
    let (begun, records) = runs.entry(thread.clone()).or_insert_with(|| (Instant::now(), 0));
    *records += 1;
    if record.kind != i32::from(RecordKind::Event) {
        return;
    }
    let message =
        codec::decode(Some(&record.payload), codec::Limits::default()).map(|message| message.message);
    let Ok(Some(Member::Event(event))) = message else { return };
    let kind = event.event_type();
    if kind == EventType::GraphStart {
        say(format_args!("run {thread:<32} started"));
    }
    if !matches!(kind, EventType::GraphEnd | EventType::GraphError) {
        return;
    }
    let end = if kind == EventType::GraphEnd { "completed" } else { "failed" };
    let seconds = begun.elapsed().as_secs_f64();
    say(format_args!("run {thread:<32} {end:<9} {records:>4} records in {seconds:.1} s"));
    runs.remove(thread);
}

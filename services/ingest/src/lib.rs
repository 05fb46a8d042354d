//! The ingest service: reads Kafka, appends to replay, and feeds what is durable live, one pipeline for each
//! partition that it owns.
use dashstream_core::position::Partition;
use dashstream_kit::{Kit, grpc as kit_grpc, grpc::Callers};
use dashstream_proto::{
    DESCRIPTORS, ingest::v1::ingest_service_server::IngestServiceServer,
    replay::v1::replay_service_client::ReplayServiceClient,
};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicI32},
    time::Duration,
};
use tokio::{net::TcpListener, runtime::Handle, sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub mod append;
pub mod brake;
pub mod config;
pub mod dlq;
pub mod grpc;
pub mod kafka;
pub mod live;
pub mod metrics;
pub mod owned;
pub mod partition;
pub mod threads;
pub mod topic;
mod watch;

pub use config::Config;
use kafka::Consumer;

/// Largest gRPC message: a batch of one record of the largest payload, and some.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How often the last handle of the consumer looks whether it is.
const LAST_POLL: Duration = Duration::from_millis(5);
/// How long leaving the group may take at the end.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until the kit stops; then what is in flight is stored and committed.
///
/// # Errors
/// When a setting is wrong or a metric's name is taken.
pub async fn run(config: Config, listener: TcpListener, kit: Kit) -> anyhow::Result<()> {
    let parts = parts(config, listener.local_addr()?, &kit)?;
    tracing::info!(listen = %listener.local_addr()?, topic = parts.config.kafka.topic, "ingest started");
    let (stop, group) = (kit.tasks.stop_token(), CancellationToken::new());
    let left = serve_group(parts.consumer.clone(), group.clone())?;
    let partition_count = Arc::new(AtomicI32::new(0));
    let service = grpc::Ingest {
        config: Arc::clone(&parts.config),
        owner: Arc::clone(&parts.owner),
        owned: parts.owned.clone(),
        brake: parts.brake.clone(),
        live: parts.live.clone(),
        partition_count: Arc::clone(&partition_count),
        tasks: kit.tasks.clone(),
    };
    watch::start(&kit, &parts, partition_count);
    let pipelines = kit.tasks.spawn("pipelines", keep_pipelines(parts, stop));

    let service = IngestServiceServer::new(service).max_encoding_message_size(MESSAGE_BYTES_MAX);
    let served =
        kit_grpc::serve(&kit, listener, DESCRIPTORS, tonic::service::Routes::new(service), Callers::Services)
            .await;
    // The group is served until all is stored and committed, and left behind that.
    pipelines.await?;
    group.cancel();
    if tokio::time::timeout(LEAVE_TIMEOUT, left).await.is_err() {
        tracing::warn!(
            "the group was not left in time: kafka gives our partitions away when the session times out"
        );
    }
    served
}

/// What pipelines need, made once.
fn parts(config: Config, listen: SocketAddr, kit: &Kit) -> anyhow::Result<partition::Parts> {
    let config = Arc::new(config);
    let metrics = metrics::Metrics::register(&kit.registry)?;
    let owned = owned::Owned::default();
    metrics::Partitions::register(owned.clone(), &kit.registry)?;
    let dlq_metrics = dlq::Metrics::register(&kit.registry)?;
    let client = config.kafka.connection.client_config("dashstream-ingest-dlq", &[])?;
    let replay = ReplayServiceClient::new(kit_grpc::channel(kit, &config.replay_targets))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    Ok(partition::Parts {
        owner: owner(&config, listen).into(),
        consumer: Consumer::join(&config)?,
        replay,
        owned,
        live: live::Live::new(config.live_buffer_bytes, metrics.clone()),
        letters: dlq::DeadLetters::new(&client, &config.kafka.topic, &config.dlq, dlq_metrics)?,
        threads: threads::Threads::default(),
        brake: brake::Brake::default(),
        metrics,
        tasks: kit.tasks.clone(),
        config,
    })
}

/// What this replica is called.
fn owner(config: &Config, listen: SocketAddr) -> String {
    let given = config.name.as_ref().or(config.kafka.group_instance_id.as_ref());
    given.cloned().unwrap_or_else(|| {
        let host = nix::unistd::gethostname().ok().and_then(|host| host.into_string().ok());
        format!("{}:{}", host.as_deref().unwrap_or("ingest"), listen.port())
    })
}

/// Serves the group until `stop`, then leaves it; the answer comes when that is done. On a thread of its own: a
/// revocation blocks it until the pipelines have drained, and leaving takes as long as Kafka takes. It is not one
/// of the runtime's threads, for whose end the process would wait.
fn serve_group(consumer: Consumer, stop: CancellationToken) -> std::io::Result<oneshot::Receiver<()>> {
    let (done, left) = oneshot::channel();
    let runtime = Handle::current();
    std::thread::Builder::new().name("kafka group".into()).spawn(move || {
        runtime.block_on(stop.run_until_cancelled(consumer.serve()));
        // A question to the brokers may still be out. Whoever ends last closes the consumer: it must be this one.
        while !consumer.is_last() {
            std::thread::sleep(LAST_POLL);
        }
        drop(consumer);
        // Nobody waits any more when it took too long.
        done.send(()).ok();
    })?;
    Ok(left)
}

/// Keeps one pipeline running for each partition that the group gave us.
async fn keep_pipelines(parts: partition::Parts, stop: CancellationToken) {
    let mut owned = parts.consumer.owned();
    let mut running: HashMap<Partition, (CancellationToken, JoinHandle<()>)> = HashMap::new();
    let mut ending: HashMap<Partition, JoinHandle<()>> = HashMap::new();
    loop {
        let now = owned.borrow_and_update().clone();
        for (partition, (stop, pipeline)) in running.extract_if(|partition, _| !now.contains(partition)) {
            stop.cancel();
            ending.insert(partition, pipeline);
        }
        ending.retain(|_, pipeline| !pipeline.is_finished());
        for partition in now {
            running.entry(partition).or_insert_with(|| {
                let stop = stop.child_token();
                (stop.clone(), start(&parts, partition, ending.remove(&partition), stop))
            });
        }
        parts.metrics.partitions_owned.set(running.len() as i64);
        let changed = stop.run_until_cancelled(owned.changed()).await;
        if !matches!(changed, Some(Ok(()))) {
            break;
        }
    }
    for pipeline in running.into_values().map(|(_, pipeline)| pipeline).chain(ending.into_values()) {
        // A pipeline that panicked was logged as such.
        drop(pipeline.await);
    }
}

fn start(
    parts: &partition::Parts,
    partition: Partition,
    before: Option<JoinHandle<()>>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let (parts, consumer) = (parts.clone(), parts.consumer.clone());
    consumer.running(partition);
    parts.tasks.clone().spawn(format!("partition {partition}"), async move {
        if let Some(before) = before {
            // One pipeline of a partition at a time.
            drop(before.await);
        }
        partition::run(parts, partition, stop).await;
        consumer.ended(partition);
    })
}

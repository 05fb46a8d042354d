//! The replay service: keeps each partition's log in Redis and reads the past back, over gRPC.
use dashstream_kit::{Kit, grpc as kit_grpc, ops::Latch};
use dashstream_proto::{DESCRIPTORS, replay::v1::replay_service_server::ReplayServiceServer};
use std::{sync::Arc, time::Duration};
use tokio::net::TcpListener;

mod append;
pub mod config;
pub mod connection;
mod directory;
pub mod error;
pub mod eviction;
pub mod grpc;
pub mod keys;
pub mod legacy;
pub mod memory_store;
pub mod metrics;
pub mod redis_store;
pub mod store;
mod stored;
mod thread_reads;
pub mod threads;
mod upkeep;

pub use config::{Config, StoreKind};
use redis_store::{RedisStore, WaitFor};

/// Largest message of an append: a batch of one record of the largest payload, and some.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How often Redis is asked for a sign of life.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// Serves until the kit stops.
///
/// # Errors
/// When a setting is wrong or a metric's name is taken.
pub async fn run(config: Config, listener: TcpListener, kit: Kit) -> anyhow::Result<()> {
    let metrics = metrics::Metrics::register(&kit.registry)?;
    match config.store {
        StoreKind::Memory => {
            let store = memory_store::MemoryStore::new(config.retention);
            serve(Arc::new(store), config, metrics, listener, kit).await
        }
        StoreKind::Redis => {
            let connections = connection::Connections::new(&config.redis)?;
            let wait = (config.wait_replicas > 0)
                .then_some(WaitFor { replicas: config.wait_replicas, timeout: config.wait_timeout });
            let store = Arc::new(RedisStore::new(connections, config.retention, wait));
            let latch = kit.readiness.latch("redis");
            kit.tasks.spawn("redis ping", watch(Arc::clone(&store), latch, kit.clone()));
            serve(store, config, metrics, listener, kit).await
        }
    }
}

async fn serve<S: store::Store>(
    store: Arc<S>,
    config: Config,
    metrics: metrics::Metrics,
    listener: TcpListener,
    kit: Kit,
) -> anyhow::Result<()> {
    tracing::info!(listen = %listener.local_addr()?, store = ?config.store, retention = ?config.retention.age, "replay started");
    let upkeep =
        upkeep::run(Arc::clone(&store), config.retention, metrics.kept.clone(), kit.tasks.stop_token());
    kit.tasks.spawn("upkeep", upkeep);
    let service = grpc::Replay::new(store, config, metrics, kit.tasks.clone());
    let service = ReplayServiceServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    kit_grpc::serve(&kit, listener, DESCRIPTORS, tonic::service::Routes::new(service)).await
}

/// Ready while Redis answers.
async fn watch(store: Arc<RedisStore>, latch: Latch, kit: Kit) {
    let stop = kit.tasks.stop_token();
    let mut interval = tokio::time::interval(PING_INTERVAL);
    let mut was_well = true;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = interval.tick() => {}
        }
        match store.ping().await {
            Ok(()) => {
                latch.ready();
                was_well = true;
            }
            Err(error) => {
                latch.not_ready(error.to_string());
                if std::mem::replace(&mut was_well, false) {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "redis does not answer");
                }
            }
        }
    }
}

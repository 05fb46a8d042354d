//! The replay service: keeps each partition's log in Redis and reads the past back, over gRPC.
use dashstream_kit::{Kit, grpc as kit_grpc, grpc::Callers, ops::Latch};
use dashstream_proto::{DESCRIPTORS, replay::v1::replay_service_server::ReplayServiceServer};
use std::{sync::Arc, time::Duration};
use tokio::net::TcpListener;

mod answers;
mod append;
mod append_stream;
pub mod config;
pub mod connection;
mod directory;
pub mod error;
pub mod eviction;
pub mod filling;
pub mod grpc;
pub mod keys;
pub mod legacy;
pub mod memory_store;
pub mod metrics;
pub mod redis_store;
pub mod schemas;
pub mod store;
mod stored;
mod thread_reads;
pub mod threads;
mod upkeep;
mod with_legacy;

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
            let store = RedisStore::new(connections.clone(), config.retention, wait);
            let store = Arc::new(store.counting_reloads(metrics.script_reloads.clone()));
            let latch = kit.readiness.latch("redis");
            let watch = watch(connections.reads.clone(), config.redis.allow_eviction, latch, kit.clone());
            let serving = async {
                match config.legacy_prefix.clone() {
                    None => serve(store, config, metrics, listener, kit).await,
                    Some(prefix) => {
                        let uses = legacy::Metrics::register(&kit.registry)?;
                        let legacy = legacy::Legacy::new(connections.reads, prefix, uses);
                        let store = Arc::new(with_legacy::WithLegacy::new((*store).clone(), legacy));
                        serve(store, config, metrics, listener, kit).await
                    }
                }
            };
            tokio::select! {
                served = serving => served,
                refused = watch => Err(refused.into()),
            }
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
    kit_grpc::serve(&kit, listener, DESCRIPTORS, tonic::service::Routes::new(service), Callers::Services)
        .await
}

/// Ready while Redis answers and keeps what it is given. Returns when it is certain to delete on its own; on the
/// stop it never does, so that the drain takes its time.
async fn watch(
    reads: connection::Connection,
    allow_eviction: bool,
    latch: Latch,
    kit: Kit,
) -> eviction::Refused {
    let stop = kit.tasks.stop_token();
    let mut interval = tokio::time::interval(PING_INTERVAL);
    let mut was_well = true;
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        match eviction::check_eviction(&reads, allow_eviction).await {
            Ok(()) => {
                latch.ready();
                was_well = true;
            }
            Err(refused) if refused.is_certain() => return refused,
            Err(refused) => {
                let cause = std::error::Error::source(&refused).map(ToString::to_string);
                latch.not_ready(cause.iter().fold(refused.to_string(), |text, cause| text + ": " + cause));
                if std::mem::replace(&mut was_well, false) {
                    tracing::warn!(error = %refused, cause, "redis can't be used now");
                }
            }
        }
    }
    std::future::pending().await
}

//! The gateway service: websockets for clients, queries for tools, one ring of recent records per partition.
use dashstream_kit::{Kit, grpc as kit_grpc, grpc::Callers};
use dashstream_proto::{DESCRIPTORS, gateway::v1::query_service_server::QueryServiceServer};
use std::sync::{Arc, atomic::AtomicU64};
use tokio::{net::TcpListener, sync::watch};

mod active;
pub mod addresses;
pub mod admission;
pub mod auth;
pub mod config;
mod fleet;
pub mod flights;
pub mod health;
pub mod http;
pub mod hub;
mod info;
mod listener;
pub mod metrics;
pub mod origins;
pub mod query;
pub mod replay;
mod schemas;
pub mod spoken;
mod upgrade;
pub mod upstream;
pub mod viewers;
pub mod wire;
pub mod ws;

pub use config::Config;

/// Serves until the kit stops; then clients are told to go elsewhere.
///
/// # Errors
/// When a setting is wrong, a metric's name is taken or a listener fails.
pub async fn run(config: Config, http: TcpListener, grpc: TcpListener, kit: Kit) -> anyhow::Result<()> {
    let metrics = metrics::Metrics::register(&kit.registry)?;
    let config = Arc::new(config);
    let authenticator = auth::Authenticator::new(&config.auth, &kit)?;
    if !authenticator.is_on() {
        tracing::warn!("GATEWAY_AUTH is none: whoever reaches this gateway may read everything");
    }
    let ground = ground(&config, &kit, &metrics);
    let (fleet, viewers) = (fleet::Fleet::new(&kit, &config.ingest_targets), viewers::Viewers::default());
    let health = health::Health::new(metrics.clone());
    let asking = health.clone().run(fleet.clone(), ground.replay.clone(), kit.tasks.stop_token());
    kit.tasks.spawn("health", asking);
    let queries = query::Query {
        authenticator: authenticator.clone(),
        fleet,
        replay: ground.replay.clone(),
        viewers: viewers.clone(),
        metrics: metrics.clone(),
    };
    let sessions = metrics.sessions.clone();
    let app = http::App {
        terms: config.terms(),
        ground,
        metrics,
        tasks: kit.tasks.clone(),
        readiness: kit.readiness.clone(),
        admission: admission::Admission::new(config.admission()),
        authenticator,
        viewers,
        health,
        sessions: Arc::default(),
        config: Arc::clone(&config),
    };
    tracing::info!(listen = %http.local_addr()?, grpc_listen = %grpc.local_addr()?, stream = config.stream, "gateway started");
    let router = http::router(app, queries.clone());
    let tasks = kit.tasks.clone();
    let websockets = async {
        listener::serve(http, router, config.handshake_timeout, sessions, tasks).await;
        Ok(())
    };
    let queries = QueryServiceServer::new(queries).max_decoding_message_size(http::BODY_BYTES_MAX);
    let routes = tonic::service::Routes::new(queries);
    let queries = kit_grpc::serve(&kit, grpc, DESCRIPTORS, routes, Callers::Anybody);
    tokio::try_join!(websockets, queries)?;
    Ok(())
}

/// What sessions run on, fed by all replicas of ingest.
fn ground(config: &Arc<Config>, kit: &Kit, metrics: &metrics::Metrics) -> ws::Ground {
    let hub = hub::Hub::new(config.budget());
    let replay = replay::Replay::new(kit, config, metrics.clone());
    let feeds = upstream::Feeds {
        hub: hub.clone(),
        replay: replay.clone(),
        metrics: metrics.clone(),
        tasks: kit.tasks.clone(),
        kit: kit.clone(),
    };
    let latch = kit.readiness.latch("live feed");
    kit.tasks.spawn("feeds", feeds.run(Arc::clone(config), latch));
    ws::Ground {
        hub,
        replay,
        metrics: metrics.clone(),
        limits: Arc::new(watch::Sender::new(config.terms().limits)),
        send_timeout: config.send_timeout,
        heartbeat: config.heartbeat,
        drain_window: config.drain_window,
        left: Arc::new(AtomicU64::new(0)),
        stop: kit.tasks.stop_token(),
    }
}

//! The gateway service: websockets for clients, queries for tools, one ring of recent records per partition.
use dashstream_kit::{Kit, grpc as kit_grpc};
use dashstream_proto::{DESCRIPTORS, gateway::v1::query_service_server::QueryServiceServer};
use std::sync::{Arc, atomic::AtomicU64};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

mod active;
pub mod config;
pub mod flights;
pub mod http;
pub mod hub;
pub mod metrics;
pub mod query;
pub mod replay;
pub mod upstream;
pub mod wire;
pub mod ws;

pub use config::Config;

/// Serves until the kit stops; then clients are told to go elsewhere.
///
/// # Errors
/// When a metric's name is taken or a listener fails.
pub async fn run(config: Config, http: TcpListener, grpc: TcpListener, kit: Kit) -> anyhow::Result<()> {
    let metrics = metrics::Metrics::register(&kit.registry)?;
    let config = Arc::new(config);
    let hub = hub::Hub::new(config.budget());
    let replay = replay::Replay::new(&kit, &config, metrics.clone());
    let feeds = upstream::Feeds {
        hub: hub.clone(),
        replay: replay.clone(),
        metrics: metrics.clone(),
        tasks: kit.tasks.clone(),
    };
    let latch = kit.readiness.latch("live feed");
    kit.tasks.spawn("feeds", feeds.run(Arc::clone(&config), latch));

    let stop = kit.tasks.stop_token();
    let ground = ws::Ground {
        hub,
        replay,
        metrics: metrics.clone(),
        limits: Arc::new(watch::Sender::new(config.terms().limits)),
        send_timeout: config.send_timeout,
        heartbeat: config.heartbeat,
        drain_window: config.drain_window,
        left: Arc::new(AtomicU64::new(0)),
        stop: stop.clone(),
    };
    let app = http::App {
        terms: config.terms(),
        ground,
        metrics,
        tasks: kit.tasks.clone(),
        places: Arc::new(Semaphore::new(config.sessions_max as usize)),
        sessions: Arc::default(),
        config: Arc::clone(&config),
    };
    tracing::info!(listen = %http.local_addr()?, grpc_listen = %grpc.local_addr()?, stream = config.stream, "gateway started");
    let queries = QueryServiceServer::new(query::Query { config });
    let queries = kit_grpc::serve(&kit, grpc, DESCRIPTORS, tonic::service::Routes::new(queries));
    let websockets = async {
        let service = http::router(app).into_make_service_with_connect_info::<wire::Peer>();
        let served = axum::serve(wire::Wires(http), service);
        Ok(served.with_graceful_shutdown(stop.cancelled_owned()).await?)
    };
    tokio::try_join!(websockets, queries)?;
    Ok(())
}

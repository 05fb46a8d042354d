//! The gateway service: websockets for clients, queries for tools, one ring of recent records per partition.
use dashstream_kit::{Kit, grpc as kit_grpc};
use dashstream_proto::{DESCRIPTORS, gateway::v1::query_service_server::QueryServiceServer};
use std::sync::Arc;
use tokio::{net::TcpListener, sync::Semaphore};

pub mod config;
pub mod http;
pub mod hub;
pub mod metrics;
pub mod query;
pub mod upstream;
pub mod ws;

pub use config::Config;

/// Serves until the kit stops; then clients are told to go elsewhere.
///
/// # Errors
/// When a metric's name is taken or a listener fails.
pub async fn run(config: Config, http: TcpListener, grpc: TcpListener, kit: Kit) -> anyhow::Result<()> {
    let metrics = metrics::Metrics::register(&kit.registry)?;
    let config = Arc::new(config);
    let hub = hub::Hub::new(config.ring_bytes as usize);
    let replay = upstream::Replay::new(&kit, &config, metrics.clone());
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
        send_timeout: config.send_timeout,
        heartbeat: config.heartbeat,
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
        let served = axum::serve(http, http::router(app).into_make_service());
        Ok(served.with_graceful_shutdown(stop.cancelled_owned()).await?)
    };
    tokio::try_join!(websockets, queries)?;
    Ok(())
}

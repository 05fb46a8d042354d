//! What browsers reach: the websocket, `/config` and the versions.
use crate::{config::Config, metrics::Metrics, wire::Peer, ws};
use axum::{
    Json, Router,
    extract::{ConnectInfo, State, WebSocketUpgrade},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use dashstream_core::{
    filter::Tenants,
    session::{CloseReason, Session, Terms},
};
use dashstream_kit::tasks::Tasks;
use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::Semaphore;

/// The websocket subprotocol that is spoken.
pub const SUBPROTOCOL: &str = "dashstream.v2";
/// What each connection holds to read into.
const READ_BUFFER_BYTES: usize = 4 << 10;
/// What each connection gathers before it writes.
const WRITE_BUFFER_BYTES: usize = 16 << 10;

/// What every request finds.
#[derive(Clone, Debug)]
pub struct App {
    pub config: Arc<Config>,
    pub terms: Terms,
    pub ground: ws::Ground,
    pub metrics: Metrics,
    pub tasks: Tasks,
    pub places: Arc<Semaphore>,
    pub sessions: Arc<AtomicU64>,
}

pub fn router(app: App) -> Router {
    Router::new()
        .route("/ws", get(upgrade))
        .route("/config", get(config))
        .route("/version", get(version))
        .with_state(app)
}

async fn upgrade(
    State(app): State<App>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    upgrade: WebSocketUpgrade,
) -> Response {
    if app.tasks.stop_token().is_cancelled() {
        app.metrics.refused("draining");
        return (StatusCode::SERVICE_UNAVAILABLE, "this replica is draining: connect to another\n")
            .into_response();
    }
    let Ok(place) = Arc::clone(&app.places).try_acquire_owned() else {
        app.metrics.refused("over_limit");
        let text = format!("this replica has {} sessions, its most: try again\n", app.config.sessions_max);
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    let most = app.terms.limits.client_frame_bytes_max as usize;
    let upgrade = upgrade
        .protocols([SUBPROTOCOL])
        .max_message_size(most)
        .max_frame_size(most)
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES);
    if upgrade.selected_protocol().is_none() {
        app.metrics.refused("protocol");
        let text = format!("Sec-WebSocket-Protocol is missing or unknown: expected {SUBPROTOCOL}\n");
        return (StatusCode::BAD_REQUEST, text).into_response();
    }
    upgrade.on_upgrade(async move |socket| {
        let _place = place;
        let id = format!("{:08x}-{}", std::process::id(), app.sessions.fetch_add(1, Ordering::Relaxed));
        app.metrics.sessions.inc();
        let session = Session::new(id.clone(), app.terms, Tenants::All);
        let run = ws::run(socket, session, app.ground, peer.progress);
        let reason = app.tasks.spawn("session", run).await.unwrap_or(CloseReason::Error);
        app.metrics.sessions.dec();
        app.metrics.disconnected(reason);
        tracing::debug!(session = id, reason = reason.label(), "session ended");
    })
}

/// The limits of this gateway, with units and meaning, and what it speaks.
async fn config(State(app): State<App>) -> Json<Value> {
    let limits = app.terms.limits;
    Json(json!({
        "stream": app.terms.stream,
        "version": app.terms.server_version,
        "protocols": [SUBPROTOCOL],
        "limits": {
            "record_bytes_max": { "value": limits.record_bytes_max, "unit": "bytes",
                "meaning": "largest record payload that is sent; a larger one becomes a notice" },
            "frame_bytes_max": { "value": limits.frame_bytes_max, "unit": "bytes",
                "meaning": "largest frame from the server" },
            "client_frame_bytes_max": { "value": limits.client_frame_bytes_max, "unit": "bytes",
                "meaning": "largest frame from the client" },
            "in_flight_bytes_max": { "value": limits.in_flight_bytes_max, "unit": "bytes",
                "meaning": "most bytes on their way to a client that gives credit" },
            "sessions_max": { "value": app.config.sessions_max, "unit": "sessions",
                "meaning": "sessions that one replica takes" },
        },
        "heartbeat_ms": u64::try_from(app.terms.heartbeat.as_millis()).unwrap_or(u64::MAX),
        "hello_timeout_ms": u64::try_from(app.terms.hello_timeout.as_millis()).unwrap_or(u64::MAX),
        "send_timeout_ms": u64::try_from(app.config.send_timeout.as_millis()).unwrap_or(u64::MAX),
    }))
}

async fn version(State(app): State<App>) -> Json<Value> {
    Json(json!({ "service": "gateway", "version": app.terms.server_version, "protocols": [SUBPROTOCOL] }))
}

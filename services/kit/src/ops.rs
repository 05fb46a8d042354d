//! The operations port: is this process alive, is it ready, what has it done, which version is it.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Registry, TextEncoder};
use serde_json::{Map, Value, json};

mod readiness;

pub use readiness::{Latch, Readiness};

/// What the routes answer from.
#[derive(Clone, Debug)]
struct Ops {
    service: &'static str,
    registry: Registry,
    readiness: Readiness,
}

/// The routes of the operations port. A service that has an HTTP port of its own keeps them apart
/// from it: they are for the operator, not for clients.
pub fn router(service: &'static str, registry: Registry, readiness: Readiness) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .with_state(Ops { service, registry, readiness })
}

async fn readyz(State(ops): State<Ops>) -> Response {
    let waiting = ops.readiness.waiting();
    if waiting.is_empty() {
        return "ready".into_response();
    }
    let waiting_for: Map<_, _> =
        waiting.into_iter().map(|(name, why)| (name.to_owned(), Value::from(why))).collect();
    let body = json!({ "ready": false, "waiting_for": waiting_for });
    (StatusCode::SERVICE_UNAVAILABLE, axum::Json(body)).into_response()
}

async fn metrics(State(ops): State<Ops>) -> Response {
    match TextEncoder::new().encode_to_string(&ops.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn version(State(ops): State<Ops>) -> Response {
    let git_sha = option_env!("GIT_SHA").unwrap_or("unknown");
    let body = json!({ "service": ops.service, "version": crate::VERSION, "git_sha": git_sha });
    axum::Json(body).into_response()
}

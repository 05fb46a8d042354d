//! What this gateway says of itself: limits, versions, health.
use crate::http::{App, BODY_BYTES_MAX, SUBPROTOCOL};
use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use dashstream_core::{filter::FILTER_VALUES_MAX, session::CURSORS_MAX};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// The component's name in the predecessor's answers, which its clients may look for.
const COMPONENT: &str = "websocket-server";

/// What is granted, with units and meaning. The tag changes exactly when the text does.
pub(crate) async fn config(State(app): State<App>, headers: HeaderMap) -> Response {
    let text = granted(&app).to_string();
    let digest: String = Sha256::digest(&text).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let tag = format!("\"{digest}\"");
    let is_held = headers.get(header::IF_NONE_MATCH).is_some_and(|held| holds(held, &tag));
    let tagged = [(header::ETAG, tag), (header::CACHE_CONTROL, "no-cache".to_owned())];
    if is_held {
        return (StatusCode::NOT_MODIFIED, tagged).into_response();
    }
    (tagged, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn holds(held: &HeaderValue, tag: &str) -> bool {
    let tags = held.to_str().unwrap_or_default().split(',').map(str::trim);
    tags.map(|held| held.strip_prefix("W/").unwrap_or(held)).any(|held| held == "*" || held == tag)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn granted(app: &App) -> Value {
    let (config, limits) = (&app.config, app.terms.limits);
    json!({
        "stream": app.terms.stream,
        "version": app.terms.server_version,
        "protocols": [SUBPROTOCOL],
        "limits": {
            "record_bytes_max": limit(limits.record_bytes_max, "bytes",
                "largest record payload that is sent; a larger one becomes a notice"),
            "frame_bytes_max": limit(limits.frame_bytes_max, "bytes", "largest frame from the server"),
            "client_frame_bytes_max": limit(limits.client_frame_bytes_max, "bytes", "largest frame from the client"),
            "in_flight_bytes_max": limit(limits.in_flight_bytes_max, "bytes",
                "most bytes on their way to a client that gives credit"),
            "filter_values_max": limit(FILTER_VALUES_MAX, "values", "values of all lists of one filter together"),
            "cursors_max": limit(CURSORS_MAX, "cursors", "cursors that one subscribe may name"),
            "request_body_bytes_max": limit(BODY_BYTES_MAX, "bytes", "largest body of an HTTP request or a query"),
            "sessions_max": limit(config.sessions_max, "sessions", "sessions that one replica takes"),
            "sessions_per_address_max": limit(config.sessions_per_address_max, "sessions",
                "sessions that one replica takes from one address (of IPv6, one network of 64 bits)"),
            "sessions_per_tenant_max": limit(config.sessions_per_tenant_max, "sessions",
                "sessions that one replica takes of one tenant"),
        },
        "retention": app.health.retention(),
        "authentication": {
            "mode": config.auth.mode.name(),
            "token_in": if app.authenticator.is_on() {
                json!(["authorization", format!("subprotocol:{}", crate::auth::TOKEN_SUBPROTOCOL), "hello"])
            } else {
                json!([])
            },
        },
        "heartbeat_ms": millis(app.terms.heartbeat),
        "hello_timeout_ms": millis(app.terms.hello_timeout),
        "handshake_timeout_ms": millis(config.handshake_timeout),
        "send_timeout_ms": millis(config.send_timeout),
        "drain_window_ms": millis(config.drain_window),
    })
}

fn limit(value: impl Into<Value>, unit: &str, meaning: &str) -> Value {
    json!({ "value": value.into(), "unit": unit, "meaning": meaning })
}

/// Versions, in the predecessor's shape and with ours beside it. What only ingest knows is unknown here.
pub(crate) async fn version(State(app): State<App>) -> Json<Value> {
    Json(json!({
        "git_sha": option_env!("GIT_SHA").unwrap_or("unknown"),
        "build_date": option_env!("BUILD_DATE").unwrap_or("unknown"),
        "schema_version": 1,
        "component": COMPONENT,
        "resume_namespace": app.terms.stream,
        "kafka_topic": app.health.topic().unwrap_or_else(|| app.terms.stream.clone()),
        "kafka_group_id": null,
        "max_payload_bytes": app.terms.limits.record_bytes_max,
        "decode_error_policy": null,
        "service": "gateway",
        "version": app.terms.server_version,
        "protocols": [SUBPROTOCOL],
    }))
}

/// How it goes, in the predecessor's shape. Always 200: whether to send clients here is `/readyz`'s to say.
pub(crate) async fn health(State(app): State<App>) -> Json<Value> {
    Json(app.health.report())
}

pub(crate) async fn readyz(State(app): State<App>) -> Response {
    // What it waits for is told at the operations port, to operators.
    if app.readiness.waiting().is_empty() {
        return "ready".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "not ready").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_among_those_that_are_held() {
        for (held, is_held) in [
            ("\"a\"", true),
            ("W/\"a\"", true),
            ("\"b\", \"a\"", true),
            ("*", true),
            ("\"b\"", false),
            ("a", false),
            ("", false),
        ] {
            assert_eq!(holds(&HeaderValue::from_static(held), "\"a\""), is_held, "{held}");
        }
    }
}

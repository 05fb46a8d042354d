//! What browsers reach: the websocket, what this gateway grants, expected schemas, and queries over gRPC-Web.
use crate::{
    admission::Admission,
    auth::{Access, Authenticator, Refused, token_of},
    config::Config,
    health::Health,
    info,
    metrics::Metrics,
    query::Query,
    schemas, upgrade,
    viewers::Viewers,
    wire::Peer,
    ws,
};
use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use dashstream_core::session::Terms;
use dashstream_kit::{ops::Readiness, tasks::Tasks};
use dashstream_proto::gateway::v1::query_service_server::QueryServiceServer;
use std::{
    net::IpAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};
use tonic::server::NamedService as _;
use tonic_web::GrpcWebLayer;
use tower::Layer as _;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// The websocket subprotocol that is spoken.
pub const SUBPROTOCOL: &str = "dashstream.v2";
/// Largest body of a request, bytes.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// How long a browser need not ask again what it may send.
const CORS_AGE: Duration = Duration::from_secs(3600);
const REFUSED: HeaderName = HeaderName::from_static("dashstream-refused");

/// What every request finds.
#[derive(Clone, Debug)]
pub struct App {
    pub config: Arc<Config>,
    pub terms: Terms,
    pub ground: ws::Ground,
    pub metrics: Metrics,
    pub tasks: Tasks,
    pub readiness: Readiness,
    pub admission: Admission,
    pub authenticator: Authenticator,
    pub viewers: Viewers,
    pub health: Health,
    pub sessions: Arc<AtomicU64>,
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client(pub(crate) IpAddr);

pub fn router(app: App, queries: Query) -> Router {
    let queries = QueryServiceServer::new(queries).max_decoding_message_size(BODY_BYTES_MAX);
    let path = format!("/{}/{{method}}", QueryServiceServer::<Query>::NAME);
    let cors = cors(&app.config);
    Router::new()
        .route("/ws", get(upgrade::upgrade))
        .route("/config", get(info::config))
        .route("/version", get(info::version))
        .route("/health", get(info::health))
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(info::readyz))
        .route("/api/expected-schema", get(schemas::list))
        .route(
            "/api/expected-schema/{graph_name}",
            get(schemas::read).put(schemas::write).delete(schemas::remove),
        )
        .with_state(app.clone())
        .route_service(&path, GrpcWebLayer::new().layer(queries))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(app, receive))
        .layer(cors)
}

/// Who sent a request is judged before anything of it is looked at.
async fn receive(State(app): State<App>, mut request: Request, next: Next) -> Response {
    if !app.config.allowed_origins.allow(request.headers()) {
        let text = "this origin is not allowed: GATEWAY_ALLOWED_ORIGINS lists those that are";
        app.metrics.refused_call("origin");
        return refuse(StatusCode::FORBIDDEN, "origin", text, None);
    }
    let peer = request.extensions().get::<Peer>().map(|peer| peer.address.ip());
    let Some(peer) = peer else {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, "peer", "the request has no peer", None);
    };
    let client = Client(app.config.trusted_proxies.client(peer, request.headers()));
    request.extensions_mut().insert(client);
    next.run(request).await
}

/// What pages of the listed origins may send and see. Pages of the gateway itself need no permission.
fn cors(config: &Config) -> CorsLayer {
    let origins = config.allowed_origins.clone();
    let listed = move |origin: &HeaderValue, _: &axum::http::request::Parts| {
        origin.to_str().is_ok_and(|origin| origins.lists(origin))
    };
    let names = |names: &'static [&'static str]| names.iter().map(|name| HeaderName::from_static(name));
    let sent = names(&[
        "authorization",
        "content-type",
        "if-match",
        "if-none-match",
        "grpc-timeout",
        "x-grpc-web",
        "x-user-agent",
    ]);
    let seen = names(&[
        "etag",
        "retry-after",
        "dashstream-refused",
        "grpc-status",
        "grpc-message",
        "grpc-status-details-bin",
        "grpc-retry-pushback-ms",
    ]);
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(listed))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers(sent.collect::<Vec<_>>())
        .expose_headers(seen.collect::<Vec<_>>())
        .max_age(CORS_AGE)
}

impl App {
    /// What the caller may do.
    pub(crate) async fn access(&self, headers: &HeaderMap) -> Result<Access, Refused> {
        self.authenticator.access(token_of(headers)?.as_ref()).await
    }

    /// Refuses a request other than an upgrade for who asks.
    pub(crate) fn refuse_call(&self, refused: Refused) -> Response {
        self.metrics.refused_query(refused);
        unauthorized(refused)
    }
}

/// An answer to somebody who may not.
pub(crate) fn unauthorized(refused: Refused) -> Response {
    let retry = (refused == Refused::KeysUnavailable).then_some(Duration::from_secs(5));
    let mut answer = refuse(refused.status(), refused.label(), &refused.to_string(), retry);
    if refused.status() == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer
}

/// A refusal: the reason as a word in a header, as a sentence in the body, and when to come back where that helps.
pub(crate) fn refuse(
    status: StatusCode,
    reason: &'static str,
    text: &str,
    retry_after: Option<Duration>,
) -> Response {
    let mut answer = (status, format!("{text}\n")).into_response();
    answer.headers_mut().insert(REFUSED, HeaderValue::from_static(reason));
    if let Some(after) = retry_after {
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    answer
}

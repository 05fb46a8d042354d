//! gRPC as all services speak it: one server set-up and one channel set-up that match each other.

use std::error::Error as _;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::codegen::http::Response;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel as Plain, Endpoint, Error, Server};
use tonic::{Code, Status};
use tonic_reflection::server::Builder as Reflection;
use tower::util::MapResponseLayer;

use crate::Kit;
use crate::auth::{self, Badge, Trust};
use crate::config::Targets;

mod balance;
mod cut;
mod health;
mod resolve;

pub use resolve::resolve;

/// HTTP/2 flow control windows, large enough that a catch-up is limited by its reader and not by
/// round trips.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A peer that is gone without a word (power, network, frozen) is found out after both.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A channel that shows this process to the service behind it.
pub type Channel = InterceptedService<Plain, Badge>;

/// Who may call a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Services that know each other. Health alone is for everybody: it tells only whether it serves, and those who
    /// ask it have no token.
    Services,
    /// Everybody. What they may do is for the service to judge.
    Anybody,
}

/// Serves `routes` until the process is told to stop, with a health that follows readiness and with
/// reflection (v1 and v1alpha) from `descriptors`, an encoded `FileDescriptorSet`.
///
/// After the stop, requests in flight may finish for half of the drain timeout. Streams still open
/// then are cut, so a stream that should end well watches the stop token itself.
///
/// # Errors
/// If `descriptors` do not decode, or the certificate of services is none.
pub async fn serve(
    kit: &Kit,
    listener: TcpListener,
    descriptors: &'static [u8],
    routes: Routes,
    callers: Callers,
) -> anyhow::Result<()> {
    let stop = kit.tasks.stop_token();
    let reporter = health::reporter(&kit.readiness).await;
    let routes = with_reflection(routes, descriptors).context("register reflection")?;
    let (server, routes) = match callers {
        Callers::Services => (kit.trust.of_server(server())?, guarded(routes, &kit.trust)),
        Callers::Anybody => (server(), routes),
    };
    let routes = routes.add_service(health::server(reporter.clone()));
    let cut = cut::Cut::default();
    let incoming = cut.incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    let served = server
        .layer(MapResponseLayer::new(log_failure))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.cancelled());
    let grace_over = async {
        stop.cancelled().await;
        tokio::time::sleep(kit.grace()).await;
    };
    tokio::select! {
        served = served => served.context("serve gRPC"),
        never = health::report(&kit.readiness, reporter, &stop) => match never {},
        () = grace_over => {
            tracing::info!("cutting the streams that did not end in time");
            Ok(())
        }
    }
}

fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

fn guarded(routes: Routes, trust: &Trust) -> Routes {
    let check = axum::middleware::from_fn_with_state(trust.clone(), auth::check);
    Routes::from(routes.prepare().into_axum_router().layer(check))
}

fn with_reflection(
    routes: Routes,
    descriptors: &'static [u8],
) -> Result<Routes, tonic_reflection::server::Error> {
    let reflection = || {
        Reflection::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(routes.add_service(reflection().build_v1()?).add_service(reflection().build_v1alpha()?))
}

/// Logs what a client is not told: the cause behind an answer that means our own failure. Answers
/// that fail before their first message only; a stream logs its own end.
fn log_failure(response: Response<Body>) -> Response<Body> {
    let status = response.extensions().get::<Status>();
    if let Some(status) = status.filter(|status| is_ours(status.code())) {
        let cause = status.source().map(chain);
        tracing::error!(code = ?status.code(), message = status.message(), cause, "request failed");
    }
    response
}

fn is_ours(code: Code) -> bool {
    matches!(code, Code::Unknown | Code::Internal | Code::DataLoss)
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A channel balanced over all replicas behind `targets`, followed through DNS every 5 s.
///
/// Each replica's health is watched: one that says it is not ready, is draining or does not answer
/// gets no new calls, while calls on it go on. If none is known to be healthy all are tried, so
/// that a call fails with a reason. While no name has ever resolved, calls wait: set deadlines.
/// A call that breaks because its replica died is not repeated here.
///
/// # Panics
/// Outside a tokio runtime.
pub fn channel(kit: &Kit, targets: &Targets) -> Channel {
    let (channel, changes) = Plain::balance_channel(balance::CHANGES_MAX);
    let stop = kit.tasks.stop_token();
    let name = format!("balance {targets}");
    kit.tasks.spawn(name, balance::run(targets.clone(), kit.trust.clone(), changes, stop));
    Channel::new(channel, kit.trust.badge())
}

/// A channel to a server that is for everybody, `host:port`, connected by its first call and again
/// when it broke. Services call each other by [`Kit::channel_to`].
///
/// # Errors
/// If the address does not parse.
pub fn channel_to(address: &str) -> Result<Plain, Error> {
    Ok(endpoint(address, &Trust::default())?.connect_lazy())
}

pub(crate) fn endpoint(address: &str, trust: &Trust) -> Result<Endpoint, Error> {
    let bare = address.strip_prefix("http://").unwrap_or(address);
    Ok(trust
        .of_client(Endpoint::from_shared(trust.url(bare))?)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES))
}

#[cfg(test)]
mod tests;

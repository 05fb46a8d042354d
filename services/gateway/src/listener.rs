//! Takes connections of HTTP. A client has only so long to send the head of a request, and there are only so many
//! that have not become a websocket.
use axum::{Router, extract::ConnectInfo};
use dashstream_kit::tasks::Tasks;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tower::ServiceExt as _;

/// Most connections that are not websockets, or not yet. Others wait to be taken.
const CONNECTIONS_MAX: usize = 1_024;
/// Wait after a failure to take a connection: there are none to be had until others end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a request may go on once the process stops.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until the stop; then connections end as soon as they have nothing under way.
pub(crate) async fn serve(listener: TcpListener, router: Router, handshake_timeout: Duration, tasks: Tasks) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let stop = tasks.stop_token();
    let accept = async {
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let serving = connection(stream, peer, router.clone(), handshake_timeout, tasks.clone());
                    tasks.spawn("http connection", async move {
                        serving.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "take a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    stop.run_until_cancelled(accept).await;
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, timeout: Duration, tasks: Tasks) {
    // Frames are small and wait for nothing.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "set nodelay");
    }
    let service = router.map_request(move |mut request: axum::http::Request<_>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    });
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(timeout);
    let serving =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    let mut serving = pin!(serving);
    let stop = tasks.stop_token();
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            let ended = tokio::time::timeout(GRACE, serving).await;
            ended.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, error, "http connection ended");
    }
}

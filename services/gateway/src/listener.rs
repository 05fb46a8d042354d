//! Takes connections of HTTP. A client has only so long to send the head of a request, and there are only so many
//! that have not become a websocket.
use crate::wire::{Peer, Wire};
use axum::Router;
use dashstream_kit::tasks::Tasks;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use prometheus::IntGauge;
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
/// How often it is looked whether sessions are left.
const DRAIN_PAUSE: Duration = Duration::from_millis(100);
/// How long a request may go on once the process stops.
const GRACE: Duration = Duration::from_secs(5);

/// Serves until the stop, and on until the last of `sessions` has ended: who comes meanwhile is told to go elsewhere.
/// Connections end as soon as they have nothing under way.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    handshake_timeout: Duration,
    sessions: IntGauge,
    tasks: Tasks,
) {
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
    let drained = async {
        stop.cancelled().await;
        while sessions.get() > 0 {
            tokio::time::sleep(DRAIN_PAUSE).await;
        }
    };
    tokio::select! {
        () = accept => {}
        () = drained => {}
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, timeout: Duration, tasks: Tasks) {
    let wire = Wire::new(stream);
    let known = Peer { address: peer, progress: wire.progress().clone() };
    let service = router.map_request(move |mut request: axum::http::Request<_>| {
        request.extensions_mut().insert(known.clone());
        request
    });
    let stop = tasks.stop_token();
    let is_late = stop.is_cancelled();
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(timeout).keep_alive(!is_late);
    let serving =
        builder.serve_connection_with_upgrades(TokioIo::new(wire), TowerToHyperService::new(service));
    let mut serving = pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        // One that came after the stop has its one answer.
        () = stop.cancelled(), if !is_late => {
            serving.as_mut().graceful_shutdown();
            let ended = tokio::time::timeout(GRACE, serving).await;
            ended.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, error, "http connection ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{http::StatusCode, routing::get};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const DEADLINE: Duration = Duration::from_secs(20);

    async fn ask(address: SocketAddr) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        let mut answer = String::new();
        let read = tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await;
        read.expect("the connection ends").map(|_| answer)
    }

    #[tokio::test]
    async fn who_comes_while_sessions_are_left_gets_an_answer_and_then_nobody_does() {
        let (tasks, sessions) = (Tasks::new(), IntGauge::new("sessions", "Sessions.").unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(async || (StatusCode::SERVICE_UNAVAILABLE, "draining")));
        let serving = serve(listener, router, DEADLINE, sessions.clone(), tasks.clone());
        let served = tasks.spawn("http", serving);
        sessions.inc();
        tasks.stop();
        for _ in 0..2 {
            let answer = ask(address).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("draining"), "{answer}");
        }
        sessions.dec();
        tokio::time::timeout(DEADLINE, served).await.unwrap().unwrap();
        assert!(ask(address).await.is_err());
        tasks.drain(DEADLINE).await.unwrap();
    }

    #[tokio::test]
    async fn who_does_not_end_the_head_of_a_request_is_gone_in_time() {
        let (tasks, sessions) = (Tasks::new(), IntGauge::new("sessions", "Sessions.").unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut slow = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let handshake = Duration::from_millis(100);
        tasks.spawn("http", serve(listener, Router::new(), handshake, sessions, tasks.clone()));
        slow.write_all(b"GET / HTTP/1.1\r\nhost:").await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(DEADLINE, slow.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "it holds its place");
        tasks.drain(DEADLINE).await.unwrap();
    }
}

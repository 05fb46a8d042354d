//! The operations port over a real socket.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

async fn kit_with_ops() -> (Kit, SocketAddr) {
    let mut kit = Kit::embedded("test");
    metrics::build_info(&kit.registry, kit.service).unwrap();
    let ops = kit.serve_ops("127.0.0.1:0".parse().unwrap()).await.unwrap();
    kit.process = Arc::new(Process { ops: Some(ops), ..Process::default() });
    let address = kit.ops_address().unwrap();
    (kit, address)
}

/// The whole answer to a GET, headers in lower case.
async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: ops\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_live_process_says_so() {
    let (_kit, ops) = kit_with_ops().await;
    let answer = get(ops, "/livez").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nok"), "{answer}");
}

#[tokio::test]
async fn readiness_tells_what_it_waits_for() {
    let (kit, ops) = kit_with_ops().await;
    let latch = kit.readiness.latch("kafka");
    latch.not_ready("no broker answers");
    let answer = get(ops, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let body = r#"{"ready":false,"waiting_for":{"kafka":"no broker answers"}}"#;
    assert!(answer.ends_with(body), "{answer}");

    latch.ready();
    assert!(get(ops, "/readyz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_draining_process_is_alive_but_not_ready() {
    let (kit, ops) = kit_with_ops().await;
    kit.tasks.stop();
    assert!(get(ops, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get(ops, "/readyz").await.ends_with(r#"{"process":"draining"}}"#));
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let (_kit, ops) = kit_with_ops().await;
    let answer = get(ops, "/metrics").await;
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    let metric = format!("dashstream_build_info{{service=\"test\",version=\"{VERSION}\"}} 1");
    assert!(answer.contains(&metric), "{answer}");
}

#[tokio::test]
async fn the_version_is_told() {
    let (_kit, ops) = kit_with_ops().await;
    let answer = get(ops, "/version").await;
    assert!(answer.contains(r#""service":"test""#) && answer.contains("git_sha"), "{answer}");
}

#[tokio::test]
async fn a_drain_closes_the_ops_port() {
    let (kit, ops) = kit_with_ops().await;
    kit.drain(Duration::from_secs(1)).await.unwrap();
    // The abort is asynchronous: the port is refused once the task has been dropped.
    let closed = async {
        while TcpStream::connect(ops).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), closed).await.expect("the port is closed");
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_fails_names_the_task() {
    let kit = Kit::embedded("test");
    kit.tasks.spawn("stuck", std::future::pending::<()>());
    let error = kit.drain(Duration::from_secs(1)).await.unwrap_err();
    assert!(error.to_string().ends_with(": stuck"), "{error}");
}

//! `grpc.health.v1` from both sides: what a server says of itself, and what a client hears.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::unfold;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};
use tonic_health::ServingStatus;
use tonic_health::pb::health_check_response::ServingStatus as Heard;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_health::server::{HealthReporter, HealthService};

use crate::auth::Trust;
use crate::ops::Readiness;

/// The name under which the health of a whole server goes.
const OVERALL: &str = "";

/// Mean wait before a replica that does not answer is asked again; half of it is jitter.
const RETRY: Duration = Duration::from_secs(1);

pub(super) fn server(reporter: HealthReporter) -> HealthServer<HealthService> {
    HealthServer::new(HealthService::from_health_reporter(reporter))
}

/// A reporter that tells the truth before the first connection: tonic's own begins with SERVING.
pub(super) async fn reporter(readiness: &Readiness) -> HealthReporter {
    let reporter = HealthReporter::new();
    reporter.set_service_status(OVERALL, status(readiness.is_ready())).await;
    reporter
}

/// Makes health follow readiness. After the stop it also ends the streams of those who watch, which
/// would hold the server up to the end of its grace.
pub(super) async fn report(
    readiness: &Readiness,
    mut reporter: HealthReporter,
    stop: &CancellationToken,
) -> Infallible {
    let mut ready = readiness.is_ready();
    while !stop.is_cancelled() {
        reporter.set_service_status(OVERALL, status(ready)).await;
        tokio::select! {
            changed = readiness.differs_from(ready) => ready = changed,
            () = stop.cancelled() => {}
        }
    }
    reporter.set_service_status(OVERALL, ServingStatus::NotServing).await;
    reporter.clear_service_status(OVERALL).await;
    std::future::pending().await
}

fn status(ready: bool) -> ServingStatus {
    if ready { ServingStatus::Serving } else { ServingStatus::NotServing }
}

/// Whether the replica at `address` takes calls: an item each time something is heard, or not heard
/// when it should have been. Never ends.
pub(super) fn watch(address: SocketAddr, trust: Trust) -> impl Stream<Item = bool> + Send {
    unfold((Watch::Idle { delay: Duration::ZERO }, trust), move |(watch, trust)| async move {
        let (serving, watch) = watch.next(address, &trust).await;
        Some((serving, (watch, trust)))
    })
}

enum Watch {
    Idle { delay: Duration },
    Open(Box<Streaming<HealthCheckResponse>>),
}

impl Watch {
    async fn next(self, address: SocketAddr, trust: &Trust) -> (bool, Self) {
        match self {
            Self::Open(answers) => heard(answers).await,
            Self::Idle { delay } => {
                tokio::time::sleep(delay).await;
                match open(address, trust).await {
                    Ok(answers) => heard(answers).await,
                    // A server without the service is healthy as long as it can be reached.
                    Err(status) => (status.code() == Code::Unimplemented, Self::later()),
                }
            }
        }
    }

    fn later() -> Self {
        Self::Idle { delay: RETRY.mul_f64(rand::random_range(0.5..1.5)) }
    }
}

async fn open(address: SocketAddr, trust: &Trust) -> Result<Box<Streaming<HealthCheckResponse>>, Status> {
    let endpoint = super::endpoint(&address.to_string(), trust);
    let connect = async { endpoint?.connect().await };
    let channel = connect.await.map_err(|error| Status::unavailable(error.to_string()))?;
    let request = HealthCheckRequest { service: OVERALL.to_owned() };
    Ok(Box::new(HealthClient::new(channel).watch(request).await?.into_inner()))
}

async fn heard(mut answers: Box<Streaming<HealthCheckResponse>>) -> (bool, Watch) {
    match answers.message().await {
        Ok(Some(answer)) => (answer.status() == Heard::Serving, Watch::Open(answers)),
        Ok(None) => (false, Watch::later()),
        Err(status) => (status.code() == Code::Unimplemented, Watch::later()),
    }
}

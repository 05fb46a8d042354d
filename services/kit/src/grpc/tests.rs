//! Real servers on port 0 and real channels to them. Waits are for events, each under a deadline.

use std::net::SocketAddr;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// Calls in a row that must succeed: if half of the replicas were bad, one in a million runs of
/// them would.
const CALLS: usize = 20;

type Served = JoinHandle<anyhow::Result<()>>;

async fn start(kit: &Kit, listen: SocketAddr) -> (SocketAddr, Served) {
    let listener = TcpListener::bind(listen).await.unwrap();
    let address = listener.local_addr().unwrap();
    let kit = kit.clone();
    let tasks = kit.tasks.clone();
    let served = tasks.spawn("grpc", async move {
        serve(&kit, listener, tonic_health::pb::FILE_DESCRIPTOR_SET, Routes::default(), Callers::Services)
            .await
    });
    (address, served)
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn targets(addresses: &[SocketAddr]) -> Targets {
    let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    texts.join(",").parse().unwrap()
}

fn overall() -> HealthCheckRequest {
    HealthCheckRequest { service: String::new() }
}

async fn check(channel: &Channel) -> Result<ServingStatus, Status> {
    let answer = HealthClient::new(channel.clone()).check(overall()).await?;
    Ok(answer.into_inner().status())
}

/// Calls until [`CALLS`] in a row were answered by a server that serves.
async fn settle(channel: &Channel) {
    let settled = timeout(DEADLINE, async {
        let mut in_a_row = 0;
        while in_a_row < CALLS {
            let serving = matches!(check(channel).await, Ok(ServingStatus::Serving));
            in_a_row = if serving { in_a_row + 1 } else { 0 };
            tokio::task::yield_now().await;
        }
    });
    settled.await.expect("the channel settles on replicas that serve");
}

#[tokio::test]
async fn a_channel_goes_on_when_a_replica_stops_and_when_it_is_back() {
    let (kit, one, two) = (Kit::embedded("test"), Kit::embedded("one"), Kit::embedded("two"));
    let (address_one, served_one) = start(&one, any_port()).await;
    let (address_two, served_two) = start(&two, any_port()).await;
    let channel = channel(&kit, &targets(&[address_one, address_two]));
    settle(&channel).await;

    one.tasks.stop();
    served_one.await.unwrap().unwrap();
    settle(&channel).await;

    let again = Kit::embedded("one");
    start(&again, address_one).await;
    two.tasks.stop();
    served_two.await.unwrap().unwrap();
    settle(&channel).await;
}

#[test]
fn a_channel_goes_on_when_a_replica_dies() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let (here, there) = (runtime(), runtime());
    let kit = Kit::embedded("test");
    let (dying, staying) = (Kit::embedded("dying"), Kit::embedded("staying"));
    let (address_dying, _) = there.block_on(start(&dying, any_port()));
    let channel = here.block_on(async {
        let (address, _) = start(&staying, any_port()).await;
        let channel = channel(&kit, &targets(&[address_dying, address]));
        settle(&channel).await;
        channel
    });
    there.shutdown_background();
    here.block_on(settle(&channel));
}

#[tokio::test]
async fn a_replica_that_is_not_ready_gets_no_calls() {
    let (kit, ready, waiting) = (Kit::embedded("test"), Kit::embedded("ready"), Kit::embedded("waiting"));
    let latch = waiting.readiness.latch("kafka");
    let (address_ready, _) = start(&ready, any_port()).await;
    let (address_waiting, _) = start(&waiting, any_port()).await;
    let channel = channel(&kit, &targets(&[address_ready, address_waiting]));
    settle(&channel).await;

    let direct = kit.channel_to(&address_waiting.to_string()).unwrap();
    assert_eq!(check(&direct).await.unwrap(), ServingStatus::NotServing);
    latch.ready();
    settle(&direct).await;
}

#[tokio::test]
async fn a_health_watch_hears_the_stop_and_does_not_hold_it_up() {
    let kit = Kit::embedded("test");
    let (address, served) = start(&kit, any_port()).await;
    let channel = channel_to(&format!("http://{address}")).unwrap();
    let mut heard = HealthClient::new(channel).watch(overall()).await.unwrap().into_inner();
    assert_eq!(heard.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    kit.tasks.stop();
    assert_eq!(heard.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(heard.message().await.unwrap().is_none());
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_that_does_not_end_is_cut_after_the_grace() {
    let kit = Kit::embedded("test");
    let (address, served) = start(&kit, any_port()).await;
    let channel = channel_to(&address.to_string()).unwrap();
    let silent = tokio_stream::pending::<ServerReflectionRequest>();
    let stream = ServerReflectionClient::new(channel).server_reflection_info(silent).await;
    let mut stream = stream.unwrap().into_inner();
    kit.tasks.stop();
    timeout(DEADLINE, served).await.unwrap().unwrap().unwrap();
    assert!(timeout(DEADLINE, stream.message()).await.unwrap().is_err());
}

#[tokio::test]
async fn services_are_listed_by_reflection() {
    let kit = Kit::embedded("test");
    let (address, _) = start(&kit, any_port()).await;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let channel = channel_to(&address.to_string()).unwrap();
    let answers =
        ServerReflectionClient::new(channel).server_reflection_info(tokio_stream::once(request)).await;
    let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("not a list: {answer:?}")
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    assert!(names.contains(&"grpc.health.v1.Health".to_owned()), "{names:?}");
}

#[tokio::test]
async fn a_channel_leaves_with_its_process() {
    let kit = Kit::embedded("test");
    let channel = channel(&kit, &targets(&[SocketAddr::from(([127, 0, 0, 1], 9))]));
    kit.drain(DEADLINE).await.unwrap();
    drop(channel);
}

#[test]
fn our_own_failures_are_told_with_their_causes() {
    let cause = anyhow::anyhow!("connection refused").context("read the range");
    assert_eq!(chain(cause.as_ref()), "read the range: connection refused");
    assert!(is_ours(Code::Internal) && !is_ours(Code::NotFound));
}

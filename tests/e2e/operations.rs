//! Each service can be asked what it is and how it is.
use dashstream_kit::grpc::channel_to;
use dashstream_proto::gateway::v1::{GetCatchUpRequest, query_service_client::QueryServiceClient};
use dashstream_proto::ingest::v1::CatchUpPhase;
use dashstream_tests::{Kafka, Kind, Service, Shape, Stack, Stop, eventually};
use std::time::Duration;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

async fn services_by_reflection(address: &str) -> Vec<String> {
    let mut client = ServerReflectionClient::new(channel_to(address).expect("an address"));
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers =
        client.server_reflection_info(futures_util::stream::iter([request])).await.expect("reflection");
    let answer = answers.into_inner().message().await.expect("an answer").expect("one answer");
    match answer.message_response {
        Some(MessageResponse::ListServicesResponse(list)) => {
            list.service.into_iter().map(|s| s.name).collect()
        }
        other => panic!("{other:?}"),
    }
}

async fn health(address: &str) -> i32 {
    let mut client = HealthClient::new(channel_to(address).expect("an address"));
    let request = HealthCheckRequest { service: String::new() };
    client.check(request).await.expect("health").into_inner().status
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_answers_reflection_health_and_its_operations_port() {
    let stack = Stack::start(Shape::default()).await;
    for (service, address, name) in [
        (&stack.replay[0], stack.replay[0].address(), "dashstream.replay.v1.ReplayService"),
        (&stack.ingest[0], stack.ingest[0].address(), "dashstream.ingest.v1.IngestService"),
        (&stack.gateway[0], stack.gateway[0].grpc_address(), "dashstream.gateway.v1.QueryService"),
    ] {
        let names = services_by_reflection(&address).await;
        assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
        // It follows readiness, which another protocol told.
        eventually("the health is serving", Duration::from_secs(10), async || {
            let status = health(&address).await;
            if status == i32::from(ServingStatus::Serving) {
                Ok(())
            } else {
                Err(format!("{name}: {status}"))
            }
        })
        .await;
        operations_port(service, name).await;
    }
}

async fn operations_port(service: &Service, name: &str) {
    for (path, expected) in [
        ("/livez", "ok"),
        ("/readyz", "ready"),
        ("/version", "\"version\""),
        ("/metrics", "dashstream_build_info"),
    ] {
        let (status, body) = service.get(path).await.expect("an answer");
        assert!(status == 200 && body.contains(expected), "{name} {path}: {status} {body:.200}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_says_how_far_each_partition_is_and_who_owns_it() {
    let stack = Stack::start(Shape { partitions: 4, ingest: 2, ..Shape::default() }).await;
    let mut client =
        QueryServiceClient::new(channel_to(&stack.gateway[0].grpc_address()).expect("an address"));
    eventually("two owners of four live partitions", Duration::from_secs(30), async || {
        let answer = client
            .get_catch_up(GetCatchUpRequest {})
            .await
            .map_err(|status| status.to_string())?
            .into_inner();
        let partitions = answer.owners.iter().flat_map(|owner| &owner.partitions);
        let live = partitions
            .filter(|partition| partition.phase() == CatchUpPhase::Live && partition.lag == Some(0));
        let owners = answer.owners.iter().filter(|owner| !owner.partitions.is_empty()).count();
        if (owners, live.count(), answer.unowned_partitions.len()) == (2, 4, 0) {
            Ok(())
        } else {
            Err(format!("{answer:?}"))
        }
    })
    .await;
    stack.ingest[0].stop(Stop::Kill).await;
    let answer = client.get_catch_up(GetCatchUpRequest {}).await.expect("an answer").into_inner();
    assert_eq!(answer.unreachable, [stack.ingest[0].address()]);
    assert_eq!(answer.unowned_partitions.len(), 2, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_what_it_waits_for() {
    let stack = Stack::start(Shape::default()).await;
    stack.redis.pause();
    eventually("replay says that it waits for redis", Duration::from_secs(20), async || {
        let (status, body) = stack.replay[0].get("/readyz").await?;
        if status == 503 && body.contains("redis") { Ok(()) } else { Err(format!("{status} {body}")) }
    })
    .await;
    stack.redis.resume();
    stack.replay[0].ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_stops_in_time_while_kafka_is_away() {
    let kafka = Kafka::start().await;
    kafka.create_topic("runs", 4, &[]).await;
    let replay = Service::start(Kind::Replay, &[("REPLAY_STORE", "memory")]);
    replay.ready().await;
    let wires = [("KAFKA_BROKERS", kafka.brokers()), ("REPLAY_TARGETS", replay.address())];
    let mut settings: Vec<_> = wires.iter().map(|(name, value)| (*name, value.as_str())).collect();
    settings.extend([("KAFKA_TOPIC", "runs"), ("KAFKA_GROUP_ID", "runs")]);
    let ingest = Service::start(Kind::Ingest, &settings);
    ingest.ready().await;
    eventually("it owns all partitions", Duration::from_secs(20), async || {
        let (_, metrics) = ingest.get("/metrics").await?;
        let line = "dashstream_ingest_partitions_owned 4";
        if metrics.contains(line) { Ok(()) } else { Err(format!("{line} is not in /metrics")) }
    })
    .await;
    kafka.stop(Stop::Kill).await;
    let begun = std::time::Instant::now();
    ingest.stop(Stop::Terminate).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "took {:?}", begun.elapsed());
}

//! Services that know each other by a token and by certificates.
use dashstream_kit::grpc::channel_to;
use dashstream_proto::replay::v1::{GetRetentionRequest, replay_service_client::ReplayServiceClient};
use dashstream_tests::{Feed, Kind, Service, Shape, Stack, Watcher, dashstream};
use std::{path::Path, process::Command, time::Duration};
use tonic::Code;

const TIMEOUT: Duration = Duration::from_secs(60);
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn openssl(folder: &Path, args: &str) {
    let done =
        Command::new("openssl").args(args.split(' ')).current_dir(folder).output().expect("run openssl");
    assert!(done.status.success(), "{args}: {}", String::from_utf8_lossy(&done.stderr));
}

/// One certificate for all services, of an authority of its own.
fn certificates(folder: &Path) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(folder, &format!("req -x509 {key} -keyout ca.key -out ca.pem -days 1 -subj /CN=authority"));
    openssl(
        folder,
        &format!(
            "req {key} -keyout key.pem -out csr.pem -subj /CN=service -addext subjectAltName=DNS:dashstream"
        ),
    );
    openssl(
        folder,
        "x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -copy_extensions copyall -out cert.pem",
    );
}

async fn records_flow(settings: &[(&'static str, String)]) -> Stack {
    let kinds = [Kind::Ingest, Kind::Replay, Kind::Gateway];
    let all =
        kinds.iter().flat_map(|kind| settings.iter().map(|(name, value)| (*kind, *name, value.clone())));
    let stack = Stack::start(Shape { replay: 2, settings: all.collect(), ..Shape::default() }).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 31, 20);
    feed.send(2_000).await;
    let log = feed.log().await;
    let gateways: Vec<_> = stack.gateway.iter().map(Service::address).collect();
    let mut watcher = Watcher::new();
    watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= 2_000).await;
    watcher.assert_received(&log);
    stack
}

#[tokio::test(flavor = "multi_thread")]
async fn records_flow_between_services_that_share_a_token_and_strangers_are_refused() {
    let stack = records_flow(&[("SERVICE_TOKEN", TOKEN.to_owned())]).await;
    for service in [&stack.replay[0], &stack.ingest[0]] {
        let mut client = ReplayServiceClient::new(channel_to(&service.address()).expect("an address"));
        let request = GetRetentionRequest { stream: stack.topic.clone() };
        let refused = client.get_retention(request).await.expect_err("a stranger");
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    }
    let ingest = stack.ingest[0].address();
    let words = ["partitions", "pause", "0", "--reason", "a test", "--ingest", &ingest];
    let (done, text) = dashstream(&words, &[]).await;
    assert!(!done && text.contains("SERVICE_TOKEN"), "{text}");
    let (done, text) = dashstream(&words, &[("SERVICE_TOKEN", TOKEN)]).await;
    assert!(done, "{text}");
    assert!(stack.services().all(|service| !service.log_text().contains(TOKEN)), "the token is in a log");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_flow_between_services_of_one_authority_and_strangers_are_refused() {
    let folder = tempfile::tempdir().expect("make a folder");
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name).to_str().expect("a path").to_owned();
    let settings = [
        ("GRPC_TLS_CA", file("ca.pem")),
        ("GRPC_TLS_CERT", file("cert.pem")),
        ("GRPC_TLS_KEY", file("key.pem")),
    ];
    let stack = records_flow(&settings).await;
    let mut client = ReplayServiceClient::new(channel_to(&stack.replay[0].address()).expect("an address"));
    let request = GetRetentionRequest { stream: stack.topic.clone() };
    assert!(client.get_retention(request).await.is_err(), "without TLS");
}

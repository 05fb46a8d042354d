//! The replay service on a Redis that lets in only those it knows, and lets them do only what they need.
use dashstream_kit::grpc::channel_to;
use dashstream_proto::{
    log::v1::{Position, position},
    replay::v1::{
        DeleteExpectedSchemaRequest, DeleteThreadRequest, DescribePartitionsRequest, DescribeThreadRequest,
        ExpectedSchema, ListExpectedSchemasRequest, ListThreadsRequest, ReadPartitionsRequest,
        ReadThreadRequest, Retention, SetExpectedSchemaRequest, SetRetentionRequest,
        replay_service_client::ReplayServiceClient,
    },
};
use dashstream_replay::config;
use dashstream_tests::{
    Kind, Service, Stop, Writer, eventually,
    redis_fleet::{Tls, secret},
};
use std::{path::PathBuf, time::Duration};
use tonic::transport::Channel;

const TIMEOUT: Duration = Duration::from_secs(20);
const ARCHITECTURE: &str = include_str!("../../services/ARCHITECTURE.md");

/// The user as the documentation has it, with a password.
fn user() -> Vec<&'static str> {
    let rights = ARCHITECTURE.lines().find_map(|line| line.strip_prefix("ACL SETUSER replay on "));
    let words = rights.expect("the documentation has the user").split(' ').skip(1);
    ["replay", "on", ">right"].into_iter().chain(words).collect()
}

fn path(path: Option<&PathBuf>) -> &str {
    path.and_then(|path| path.to_str()).expect("a path")
}

fn start(settings: &config::Redis) -> Service {
    let password = settings.password.as_ref().expect("a password");
    Service::start(
        Kind::Replay,
        &[
            ("REPLAY_STORE", "redis"),
            ("REPLAY_RETENTION_RECORDS", "400"),
            ("REDIS_URL", settings.url.expose()),
            ("REDIS_USERNAME", "replay"),
            ("REDIS_PASSWORD", password.expose()),
            ("REDIS_TLS_CA", path(settings.tls_ca.as_ref())),
            ("REDIS_TLS_CERT", path(settings.tls_cert.as_ref())),
            ("REDIS_TLS_KEY", path(settings.tls_key.as_ref())),
        ],
    )
}

/// Everything that the service can be asked, once.
async fn use_all(client: &mut ReplayServiceClient<Channel>, writer: &mut Writer) {
    let (stream, tenant_id, thread_id) = ("runs".to_owned(), String::new(), "thread-1".to_owned());
    let bounds = Retention { age_ms: 600_000, records_max: 200, bytes_max: 1 << 30 };
    for retention in [Some(bounds), None] {
        let request = SetRetentionRequest { stream: stream.clone(), retention, reason: "a test".into() };
        client.set_retention(request).await.expect("set the retention");
    }
    writer.write_until(1_000).await;
    let positions = vec![Position { partition: 0, from: Some(position::From::AtTimeMs(900)) }];
    let request = ReadPartitionsRequest {
        stream: stream.clone(),
        positions,
        page_bytes_max: 0,
        pages_max: 0,
        page_records_max: 0,
    };
    let mut steps = client.read_partitions(request).await.expect("read").into_inner();
    while steps.message().await.expect("read").is_some() {}
    let request = ListThreadsRequest { stream: stream.clone(), ..Default::default() };
    let listed = client.list_threads(request).await.expect("list").into_inner();
    assert_eq!(listed.threads.len(), 5);
    let request =
        DescribeThreadRequest { stream: stream.clone(), thread_id: thread_id.clone(), ..Default::default() };
    client.describe_thread(request).await.expect("describe");
    let request =
        ReadThreadRequest { stream: stream.clone(), thread_id: thread_id.clone(), ..Default::default() };
    let mut answers = client.read_thread(request).await.expect("read").into_inner();
    let answer = answers.message().await.expect("read").expect("an answer");
    assert!(answer.gap.is_some() && answer.records.len() >= 70, "{answer:?}");
    let request = DescribePartitionsRequest { stream: stream.clone(), partitions: vec![] };
    let described = client.describe_partitions(request).await.expect("describe").into_inner();
    assert!(described.partitions[0].records <= 400, "{described:?}");
    use_schemas(client, &stream).await;
    let request = DeleteThreadRequest { stream, tenant_id, thread_id, reason: "a test".into() };
    assert!(client.delete_thread(request).await.expect("delete").into_inner().existed);
}

async fn use_schemas(client: &mut ReplayServiceClient<Channel>, stream: &str) {
    let (stream, tenant_id, graph_name) = (stream.to_owned(), "acme".to_owned(), "rag".to_owned());
    let schema =
        ExpectedSchema { graph_name: graph_name.clone(), schema_id: "s".into(), ..Default::default() };
    let request = SetExpectedSchemaRequest {
        stream: stream.clone(),
        tenant_id: tenant_id.clone(),
        schema: Some(schema),
        expected_version: Some(0),
    };
    client.set_expected_schema(request).await.expect("set a schema");
    let request = ListExpectedSchemasRequest { stream: stream.clone(), tenant_id: tenant_id.clone() };
    let listed = client.list_expected_schemas(request).await.expect("list the schemas").into_inner();
    assert_eq!(listed.schemas.len(), 1);
    let request = DeleteExpectedSchemaRequest { stream, tenant_id, graph_name, expected_version: None };
    client.delete_expected_schema(request).await.expect("delete a schema");
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_needs_no_right_but_those_documented_and_goes_on_after_a_restart_over_tls() {
    let user = user();
    let tls = Tls::start(&user).await;
    let settings = config::Redis { password: Some(secret("right")), ..tls.settings() };
    let service = start(&settings);
    service.ready().await;
    let mut client = ReplayServiceClient::new(channel_to(&service.address()).expect("an address"));
    let mut writer = Writer::new(&service.address(), "runs", 0);
    use_all(&mut client, &mut writer).await;

    let mut direct = tls.redis().connection().await;
    let denied: Vec<redis::Value> =
        redis::cmd("ACL").arg("LOG").query_async(&mut direct).await.expect("the denials");
    assert!(denied.is_empty(), "{denied:?}");
    let stats: String =
        redis::cmd("INFO").arg("commandstats").query_async(&mut direct).await.expect("the statistics");
    // A long index is cut, and replicas are waited for, only elsewhere.
    for right in
        user.iter().filter_map(|word| word.strip_prefix('+')).filter(|it| !["set", "wait"].contains(it))
    {
        assert!(stats.contains(&format!("cmdstat_{right}:")), "nobody needs {right}");
    }

    tls.redis().restart(Stop::Kill).await;
    // The writer goes back to what is held, which is nothing.
    writer.write_until(1_100).await;
    use_all(&mut client, &mut writer).await;
    service.ready().await;
    let log = service.log_text();
    assert!(!log.contains("NOPERM") && !log.contains("no permissions"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_or_an_authority_that_is_wrong_is_said_and_replay_is_not_ready() {
    let tls = Tls::start(&user()).await;
    let right = config::Redis { password: Some(secret("right")), ..tls.settings() };
    // A certificate, but of no authority.
    let stranger = config::Redis { tls_ca: right.tls_cert.clone(), ..right.clone() };
    let wrong = config::Redis { password: Some(secret("wrong-password")), ..right };
    let login = start(&wrong);
    for (service, what) in [
        (&login, "refuses the login (REDIS_USERNAME, REDIS_PASSWORD or the URL's)"),
        (&start(&stranger), "certificate"),
    ] {
        eventually("it says why it is not ready", TIMEOUT, async || {
            let (status, body) = service.get("/readyz").await?;
            let log = service.log_text();
            if status == 503 && body.contains(what) && log.contains(what) {
                Ok(())
            } else {
                Err(format!("{status} {body}\n{log}"))
            }
        })
        .await;
        let log = service.log_text();
        assert!(!log.contains("wrong-password") && service.exited().is_none(), "{log}");
    }
    // What is put right on the server is noticed.
    let correct = redis::cmd("ACL").arg(&["SETUSER", "replay", ">wrong-password"]).take();
    correct.exec_async(&mut tls.redis().connection().await).await.expect("add the password");
    login.ready().await;
}

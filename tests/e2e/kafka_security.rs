//! Kafka behind TLS and logins.
use dashstream_ctl::{produce, topics};
use dashstream_kafka::{
    Admin, Connection,
    connection::{Mechanism, Protocol},
};
use dashstream_tests::{
    Door, Feed, Kafka, Kind, Service, Shape, Stack, Stop, Watcher, eventually,
    kafka_doors::{KEY_PASSWORD, PLAIN_LOGIN},
    redis_fleet::secret,
};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const TIMEOUT: Duration = Duration::from_secs(40);

type Settings = Vec<(&'static str, String)>;

fn settings<const N: usize>(settings: [(&'static str, &str); N]) -> Settings {
    settings.map(|(name, value)| (name, value.to_owned())).into()
}

/// Settings for a door over TLS.
fn over_tls(kafka: &Kafka, door: Door, protocol: &str) -> Settings {
    settings([
        ("KAFKA_BROKERS", &kafka.door(door)),
        ("KAFKA_SECURITY_PROTOCOL", protocol),
        ("KAFKA_SSL_CA", &kafka.pem("ca.crt").display().to_string()),
    ])
}

fn login(mechanism: &str, user: &str, password: &str) -> Settings {
    settings([
        ("KAFKA_SASL_MECHANISM", mechanism),
        ("KAFKA_SASL_USERNAME", user),
        ("KAFKA_SASL_PASSWORD", password),
    ])
}

fn certificate(kafka: &Kafka) -> Settings {
    settings([
        ("KAFKA_SSL_CERTIFICATE", &kafka.pem("client.crt").display().to_string()),
        ("KAFKA_SSL_KEY", &kafka.pem("locked.key").display().to_string()),
        ("KAFKA_SSL_KEY_PASSWORD", KEY_PASSWORD),
    ])
}

/// Every way in that ingest has but the plain one.
async fn every_way(kafka: &Kafka) -> Vec<Settings> {
    kafka.set_password("everyway", "scram-secret").await;
    let sasl_ssl = over_tls(kafka, Door::SaslSsl, "sasl_ssl");
    let (user, password) = PLAIN_LOGIN;
    let unprotected = settings([
        ("KAFKA_BROKERS", &kafka.door(Door::SaslPlaintext)),
        ("KAFKA_SECURITY_PROTOCOL", "sasl_plaintext"),
    ]);
    vec![
        over_tls(kafka, Door::Ssl, "ssl"),
        [over_tls(kafka, Door::Mtls, "ssl"), certificate(kafka)].concat(),
        [sasl_ssl.clone(), login("PLAIN", user, password)].concat(),
        [sasl_ssl.clone(), login("SCRAM-SHA-256", "everyway", "scram-secret")].concat(),
        [sasl_ssl, login("SCRAM-SHA-512", "everyway", "scram-secret")].concat(),
        [unprotected, login("SCRAM-SHA-512", "everyway", "scram-secret")].concat(),
    ]
}

/// A metric, as the sum of what it says of each partition.
async fn metric(service: &Service, name: &str) -> Result<u64, String> {
    let (_, metrics) = service.get("/metrics").await?;
    let of_name = metrics.lines().filter_map(|line| line.strip_prefix(name));
    let values = of_name.filter(|rest| rest.starts_with(['{', ' ']));
    let values = values.filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<u64>().ok());
    values.reduce(|sum, value| sum + value).ok_or(format!("no {name} in /metrics"))
}

/// A replica for each way, and a partition for each replica: what a client receives came over all of them.
#[tokio::test(flavor = "multi_thread")]
async fn records_reach_a_client_over_every_protected_connection() {
    let kafka = Kafka::shared().await;
    let ways = every_way(&kafka).await;
    let mut shape = Shape { partitions: 6, ingest: ways.len(), ..Shape::default() };
    for (replica, settings) in ways.into_iter().enumerate() {
        let of_replica = settings.into_iter().map(|(name, value)| (Kind::Ingest, replica, name, value));
        shape.replica_settings.extend(of_replica);
    }
    let stack = Stack::start(shape).await;
    for ingest in &stack.ingest {
        eventually("each replica owns one partition", TIMEOUT, async || {
            let owned = metric(ingest, "dashstream_ingest_partitions_owned").await?;
            if owned == 1 { Ok(()) } else { Err(format!("it owns {owned}")) }
        })
        .await;
    }
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 5, 200);
    feed.send(3_000).await;
    let log = feed.log().await;
    assert_eq!(log.len(), 6, "every partition has records");
    let mut watcher = Watcher::new();
    let gateways = [stack.gateway[0].address()];
    watcher.until(&gateways, TIMEOUT, |watcher| watcher.records() >= 3_000).await;
    watcher.assert_received(&log);
    for ingest in &stack.ingest {
        let stored = metric(ingest, "dashstream_ingest_stored_batches_total").await.expect("a metric");
        assert!(stored > 0, "a replica stored nothing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_made_and_runs_produced_through_a_login_over_tls() {
    let kafka = Kafka::shared().await;
    kafka.set_password("producer", "scram-secret").await;
    let connection = Connection {
        security_protocol: Protocol::SaslSsl,
        ssl_ca: Some(kafka.pem("ca.crt")),
        sasl_mechanism: Some(Mechanism::ScramSha256),
        sasl_username: Some("producer".into()),
        sasl_password: Some(secret("scram-secret")),
        ..Connection::plaintext(kafka.door(Door::SaslSsl))
    };
    let names = topics::Names { kafka: connection.clone(), topic: "produced".into(), dlq_topic: None };
    let ensure = topics::Ensure {
        names,
        partitions: Some(1),
        dlq_partitions: None,
        replication: Some(1),
        min_insync: Some(1),
        retention: None,
        dlq_retention: None,
        dry_run: false,
    };
    topics::ensure(&ensure).await.expect("the topics are made");
    let config = produce::Config {
        kafka: connection.clone(),
        kafka_topic: "produced".into(),
        rate: 0,
        count: 100,
        threads: 5,
        seed: Some(1),
    };
    let counts = Arc::default();
    produce::run(config, Arc::clone(&counts), CancellationToken::new()).await.expect("all are delivered");
    assert_eq!(kafka.watermarks("produced", 0).await, (0, 100));

    let wrong = Connection { sasl_password: Some(secret("wrong-password")), ..connection };
    let admin = Admin::new(&wrong, "tests").expect("nothing is wrong with the settings");
    let error = admin.topic("produced").await.expect_err("nobody is let in").to_string();
    assert!(error.contains("KAFKA_SASL_PASSWORD") && !error.contains("wrong-password"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn local_mode_runs_on_a_real_kafka_behind_a_login() {
    let kafka = Kafka::shared().await;
    kafka.create_topic("local-runs", 2, &[]).await;
    let (user, password) = PLAIN_LOGIN;
    let way = [over_tls(&kafka, Door::SaslSsl, "sasl_ssl"), login("PLAIN", user, password)].concat();
    let mut given: Vec<_> = way.iter().map(|(name, value)| (*name, value.as_str())).collect();
    given.push(("KAFKA_TOPIC", "local-runs"));
    let local = Service::start(Kind::Local, &given);
    local.ready().await;
    eventually("its runs went through Kafka into the store", TIMEOUT, async || {
        let stored = metric(&local, "dashstream_ingest_stored_batches_total").await?;
        if stored > 0 { Ok(()) } else { Err("nothing is stored".to_owned()) }
    })
    .await;
    let written = kafka.watermarks("local-runs", 0).await.1 + kafka.watermarks("local-runs", 1).await.1;
    assert!(written > 0, "the records are in Kafka");
}

fn start(replay: &Service, topic: &str, settings: &[(&'static str, String)]) -> Service {
    let replay = replay.address();
    let mut all: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    all.extend([("KAFKA_TOPIC", topic), ("KAFKA_GROUP_ID", topic), ("REPLAY_TARGETS", &replay)]);
    all.push(("KAFKA_SETTINGS", "reconnect.backoff.max.ms=500"));
    Service::start(Kind::Ingest, &all)
}

/// Waits until readiness and the log both say it.
async fn says(service: &Service, expected: &str) {
    eventually(expected, TIMEOUT, async || {
        let (status, body) = service.get("/readyz").await?;
        let log = service.log_text();
        if status == 503 && body.contains(expected) && log.contains(expected) {
            Ok(())
        } else {
            Err(format!("{status} {body}\n{log}"))
        }
    })
    .await;
    let log = service.log_text();
    assert!(!log.contains("wrong-password") && service.exited().is_none(), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_connection_is_said_and_a_corrected_password_is_noticed() {
    let kafka = Kafka::shared().await;
    kafka.set_password("late", "another").await;
    kafka.create_topic("protected", 1, &[]).await;
    let replay = Service::start(Kind::Replay, &[("REPLAY_STORE", "memory")]);
    let ingest = |settings: &[Settings]| start(&replay, "protected", &settings.concat());
    let stranger = settings([("KAFKA_SSL_CA", &kafka.pem("stranger.crt").display().to_string())]);
    // The broker's certificate names its address, and no name.
    let port = kafka.door(Door::Ssl).rsplit_once(':').expect("a port").1.to_owned();
    let named = settings([("KAFKA_BROKERS", &format!("localhost:{port}"))]);
    let any_name = settings([("KAFKA_SSL_ENDPOINT_ALGORITHM", "none")]);
    let ssl = over_tls(&kafka, Door::Ssl, "ssl");

    let wrong_login = ingest(&[
        over_tls(&kafka, Door::SaslSsl, "sasl_ssl"),
        login("SCRAM-SHA-512", "late", "wrong-password"),
    ]);
    let wrong_authority = ingest(&[ssl.clone(), stranger]);
    let wrong_name = ingest(&[ssl.clone(), named.clone()]);
    let no_certificate = ingest(&[over_tls(&kafka, Door::Mtls, "ssl")]);
    says(&wrong_login, "see KAFKA_SASL_MECHANISM, KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD").await;
    says(&wrong_authority, "certificate verify failed").await;
    says(&wrong_authority, "KAFKA_SSL_CA").await;
    says(&wrong_name, "KAFKA_SSL_ENDPOINT_ALGORITHM").await;
    says(&no_certificate, "KAFKA_SSL_CERTIFICATE").await;

    kafka.set_password("late", "wrong-password").await;
    wrong_login.ready().await;
    let unnamed = ingest(&[ssl, named, any_name]);
    unnamed.ready().await;
    wrong_login.stop(Stop::Terminate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_can_not_work_end_ingest_at_the_start_by_their_names() {
    let kafka = Kafka::shared().await;
    let mtls = [over_tls(&kafka, Door::Mtls, "ssl"), certificate(&kafka)].concat();
    let wrong_key = settings([("KAFKA_SSL_KEY_PASSWORD", "wrong-password")]);
    let group = settings([("KAFKA_GROUP_ID", "protected")]);
    for (given, expected) in [
        (vec![], "<KAFKA_GROUP_ID>"),
        (settings([("KAFKA_GROUP_ID", "")]), "--kafka-group-id"),
        ([group.clone(), mtls, wrong_key].concat(), "ssl.key.location failed"),
        ([group.clone(), login("PLAIN", "a", "wrong-password")].concat(), "KAFKA_SASL_MECHANISM is set"),
        ([group, settings([("KAFKA_SECURITY_PROTOCOL", "tls")])].concat(), "--kafka-security-protocol"),
    ] {
        // The later wins.
        let given: Vec<_> = given.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let service = Service::start(Kind::Ingest, &given);
        let ended = async || service.exited().ok_or("it runs");
        let status = eventually(expected, TIMEOUT, ended).await;
        let log = service.log_text();
        assert!(!status.success() && log.contains(expected), "{status}\n{log}");
        assert!(!log.contains("wrong-password"), "{log}");
    }
}

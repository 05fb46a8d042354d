//! Topics: made, changed only when that was asked for, and looked at.
use dashstream_ctl::topics::{self, Ensure, Names};
use dashstream_kafka::{Admin, Connection, Topic};
use dashstream_tests::{Kafka, Shape, Stack, eventually};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(40);
const HOUR: Duration = Duration::from_secs(3600);

/// What fits a single broker, and nothing else asked for.
fn asked(kafka: &Kafka, topic: &str) -> Ensure {
    let connection = Connection::plaintext(kafka.brokers());
    Ensure {
        names: Names { kafka: connection, topic: topic.into(), dlq_topic: None },
        partitions: None,
        dlq_partitions: None,
        replication: Some(1),
        min_insync: Some(1),
        retention: None,
        dlq_retention: None,
        dry_run: false,
    }
}

async fn both(admin: &Admin, topic: &str) -> [Option<Topic>; 2] {
    let dlq = format!("{topic}-dlq");
    let (records, letters) = tokio::join!(admin.topic(topic), admin.topic(&dlq));
    [records, letters].map(|topic| topic.expect("the broker answers"))
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_made_once_changed_as_asked_and_otherwise_refused_whole() {
    let kafka = Kafka::shared().await;
    let asked = asked(&kafka, "ensured");
    let admin = Admin::new(&asked.names.kafka, "tests").expect("an admin");

    let dry = Ensure { dry_run: true, ..asked.clone() };
    topics::ensure(&dry).await.expect("it could be done");
    assert_eq!(both(&admin, "ensured").await, [None, None], "a dry run makes nothing");
    let too_many = Ensure { replication: Some(2), ..asked.clone() };
    let error =
        topics::ensure(&Ensure { dry_run: true, ..too_many }).await.expect_err("one broker, two copies");
    assert!(error.to_string().contains("create ensured"), "{error:#}");

    topics::ensure(&asked).await.expect("they are made");
    let made = both(&admin, "ensured").await;
    let [Some(records), Some(letters)] = &made else { panic!("{made:?}") };
    assert_eq!((records.partitions, records.cleanup_policy()), (10, "delete".into()));
    assert_eq!((letters.partitions, letters.cleanup_policy()), (3, "compact,delete".into()));
    assert_eq!((records.retention, letters.retention), (Some(168 * HOUR), Some(720 * HOUR)));
    assert_eq!(records.own["compression.type"], "zstd");

    topics::ensure(&asked).await.expect("nothing is to be done");
    assert_eq!(both(&admin, "ensured").await, made, "the second time changes nothing");

    let changed = Ensure { partitions: Some(12), retention: Some(HOUR), ..asked.clone() };
    topics::ensure(&Ensure { dry_run: true, ..changed.clone() }).await.expect("it could be done");
    assert_eq!(both(&admin, "ensured").await, made, "a dry run changes nothing");
    for (why, refused) in [
        ("fewer partitions", Ensure { partitions: Some(9), ..changed.clone() }),
        ("another replication", Ensure { replication: Some(3), min_insync: Some(1), ..changed.clone() }),
        ("dead letters can't follow", Ensure { dlq_partitions: Some(1), ..changed.clone() }),
    ] {
        let error = topics::ensure(&refused).await.expect_err(why);
        assert!(error.to_string().contains("nothing was changed"), "{why}: {error:#}");
        assert_eq!(both(&admin, "ensured").await, made, "{why}");
    }

    topics::ensure(&changed).await.expect("it is changed");
    let own = [("retention.ms".to_owned(), "3600000".to_owned())];
    let own = records.own.clone().into_iter().chain(own).collect();
    let expected = Topic { partitions: 12, retention: Some(HOUR), own, ..records.clone() };
    let now = async || {
        let [now, dlq] = both(&admin, "ensured").await;
        if now.as_ref() == Some(&expected) && dlq == made[1] {
            Ok(())
        } else {
            Err(format!("{now:?} {dlq:?}"))
        }
    };
    // The broker tells of what it was told a moment later.
    eventually("what was asked for and nothing else", TIMEOUT, now).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_says_what_endangers_records_and_notices_new_partitions() {
    let shape = Shape { partitions: 2, topic: vec![("retention.ms", "1800000")], ..Shape::default() };
    let stack = Stack::start(shape).await;
    let ingest = &stack.ingest[0];
    let says = async |expected: &str| {
        eventually(expected, TIMEOUT, async || {
            let (_, metrics) = ingest.get("/metrics").await?;
            let log = ingest.log_text();
            if log.contains(expected) || metrics.contains(expected) { Ok(()) } else { Err(log) }
        })
        .await;
    };
    says("dashstream_ingest_topic_partitions 2").await;
    says("partitions=2 replication=1 min.insync.replicas=1 retention=30m cleanup.policy=delete").await;
    says("replication factor 1").await;
    says("retention 30m is shorter than replay's 1h").await;
    says("dashstream_ingest_topic_partition_changes_total 0").await;

    let admin = Admin::new(&Connection::plaintext(stack.kafka.brokers()), "tests").expect("an admin");
    admin.grow(&stack.topic, 3).await.expect("a partition is added");
    says("dashstream_ingest_topic_partition_changes_total 1").await;
    says("dashstream_ingest_topic_partitions 3").await;
    says("the topic has another number of partitions").await;
    assert_eq!(ingest.log_text().matches("replication factor 1").count(), 1, "it is said once");
}

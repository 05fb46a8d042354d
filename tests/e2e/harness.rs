//! The harness itself: what the other tests stand on.

use std::{fs, path::Path, time::Duration};

use dashstream_tests::{Kafka, Proxy, Redis, Stop, eventually};
use rdkafka::{
    Message,
    consumer::{CommitMode, Consumer, StreamConsumer},
    producer::{FutureProducer, FutureRecord},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(20);
const MOMENT: Duration = Duration::from_millis(150);

async fn produce(kafka: &Kafka, topic: &str, payload: &str) {
    let producer: FutureProducer = kafka.client_config().create().expect("make a producer");
    let record = FutureRecord::<(), _>::to(topic).payload(payload);
    producer.send(record, PATIENCE).await.expect("the record is acknowledged");
}

/// The next `count` payloads of a consumer group, committed.
async fn consume(kafka: &Kafka, topic: &str, count: usize) -> Vec<String> {
    let mut config = kafka.client_config();
    config.set("group.id", format!("{topic}-readers")).set("auto.offset.reset", "earliest");
    let consumer: StreamConsumer = config.create().expect("make a consumer");
    consumer.subscribe(&[topic]).expect("subscribe");
    let mut payloads = Vec::new();
    while payloads.len() < count {
        let record = timeout(PATIENCE, consumer.recv()).await.expect("a record in time").expect("a record");
        payloads.push(String::from_utf8(record.payload().expect("a payload").to_vec()).expect("text"));
        consumer.commit_message(&record, CommitMode::Sync).expect("commit");
    }
    payloads
}

#[tokio::test]
async fn kafka_keeps_records_and_commits_over_a_crash_and_a_restart() {
    let kafka = Kafka::start().await; // its own: it is about to be killed
    kafka.create_topic("restarts", 1, &[("retention.ms", "3600000")]).await;
    produce(&kafka, "restarts", "one").await;
    assert_eq!(consume(&kafka, "restarts", 1).await, ["one"]);

    let brokers = kafka.brokers();
    kafka.restart(Stop::Kill).await;
    assert_eq!(kafka.brokers(), brokers);
    produce(&kafka, "restarts", "two").await;
    kafka.restart(Stop::Terminate).await;
    assert_eq!(consume(&kafka, "restarts", 1).await, ["two"]);
}

#[tokio::test]
async fn the_shared_kafka_makes_and_deletes_topics() {
    let (kafka, same) = tokio::join!(Kafka::shared(), Kafka::shared());
    assert!(std::sync::Arc::ptr_eq(&kafka, &same));
    for payload in ["first life", "second life"] {
        kafka.create_topic("reborn", 1, &[]).await;
        produce(&kafka, "reborn", payload).await;
        let at_start = kafka.watermarks("reborn", 0).await;
        assert_eq!(at_start, (0, 1), "{payload}");
        kafka.delete_topic("reborn").await;
    }
}

#[tokio::test]
async fn a_paused_redis_answers_nothing_and_then_everything() {
    let redis = Redis::start(&[]).await;
    let mut connection = redis.connection().await;
    redis.pause();
    let set = redis::cmd("SET").arg("key").arg("value").exec_async(&mut connection).await;
    assert!(set.is_err(), "the client's own timeout ends the wait");
    redis.resume();
    let get = async || {
        let value: redis::RedisResult<String> =
            redis::cmd("GET").arg("key").query_async(&mut redis.connection().await).await;
        value
    };
    assert_eq!(eventually("the late write", PATIENCE, get).await, "value");
}

#[tokio::test]
async fn a_restarted_redis_is_empty_and_where_it_was() {
    let redis = Redis::start(&["--maxmemory", "8mb"]).await;
    redis::cmd("SET").arg("key").arg("value").exec_async(&mut redis.connection().await).await.expect("set");
    let url = redis.url();
    redis.restart(Stop::Kill).await;
    assert_eq!(redis.url(), url);
    let mut connection = redis.connection().await;
    let keys: u64 = redis::cmd("DBSIZE").query_async(&mut connection).await.expect("count the keys");
    assert_eq!(keys, 0);
    let policy: (String, String) = redis::cmd("CONFIG")
        .arg(&["GET", "maxmemory-policy"])
        .query_async(&mut connection)
        .await
        .expect("ask");
    assert_eq!(policy.1, "noeviction");
}

/// Says everything back, to any number of clients, for as long as the set lives.
async fn echo_server(tasks: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("a bound socket has an address").to_string();
    tasks.spawn(async move {
        let mut clients = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            clients.spawn(async move {
                let (mut from, mut to) = client.split();
                tokio::io::copy(&mut from, &mut to).await.ok(); // cut connections are the point
            });
        }
    });
    address
}

async fn say(stream: &mut TcpStream, word: &[u8; 4]) -> std::io::Result<[u8; 4]> {
    stream.write_all(word).await?;
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).await.map(|_| heard)
}

#[tokio::test]
async fn a_proxy_forwards_cuts_and_takes_new_connections() {
    let mut tasks = JoinSet::new();
    let proxy = Proxy::to(&echo_server(&mut tasks).await);
    let mut stream = TcpStream::connect(proxy.address()).await.expect("connect");
    assert_eq!(&say(&mut stream, b"ping").await.expect("an echo"), b"ping");

    proxy.cut();
    assert!(say(&mut stream, b"gone").await.is_err());
    let mut stream = TcpStream::connect(proxy.address()).await.expect("connect again");
    assert_eq!(&say(&mut stream, b"back").await.expect("an echo"), b"back");
}

#[tokio::test]
async fn a_proxy_refuses_new_connections_and_leaves_the_old_ones() {
    let mut tasks = JoinSet::new();
    let proxy = Proxy::to(&echo_server(&mut tasks).await);
    let mut stream = TcpStream::connect(proxy.address()).await.expect("connect");
    assert_eq!(&say(&mut stream, b"ping").await.expect("an echo"), b"ping");

    proxy.refuse(true);
    assert!(TcpStream::connect(proxy.address()).await.is_err());
    assert_eq!(&say(&mut stream, b"pong").await.expect("an echo"), b"pong");
    proxy.refuse(false);
    assert!(TcpStream::connect(proxy.address()).await.is_ok());
}

#[tokio::test]
async fn a_proxy_stalls_without_losing_a_byte() {
    let mut tasks = JoinSet::new();
    let proxy = Proxy::to(&echo_server(&mut tasks).await);
    let mut stream = TcpStream::connect(proxy.address()).await.expect("connect");
    proxy.stall(true);
    stream.write_all(b"late").await.expect("the kernel takes it");
    let mut heard = [0; 4];
    assert!(timeout(MOMENT, stream.read_exact(&mut heard)).await.is_err());
    proxy.stall(false);
    timeout(PATIENCE, stream.read_exact(&mut heard)).await.expect("in time").expect("an echo");
    assert_eq!(&heard, b"late");
}

/// In this folder's presence a test of this binary is a victim.
const VICTIMS_FOLDER: &str = "victims-folder";

/// No test by itself: what `no_process_outlives_...` runs in another process, to kill it.
#[tokio::test]
async fn victim() {
    if !Path::new(VICTIMS_FOLDER).exists() {
        return;
    }
    let redis = Redis::start(&[]).await;
    fs::write("pid", redis.pid().to_string()).expect("leave a note");
    timeout(3 * PATIENCE, std::future::pending::<()>()).await.expect_err("nobody came to kill it");
}

/// Runs this test binary as a victim, kills it, and looks for the Redis that it had started.
#[tokio::test]
async fn no_process_outlives_a_test_process_that_is_killed() {
    let folder = tempfile::tempdir().expect("make a folder");
    fs::create_dir(folder.path().join(VICTIMS_FOLDER)).expect("make the mark of a victim");
    let note = folder.path().join("pid");
    let mut victim = std::process::Command::new(std::env::current_exe().expect("know our own path"))
        .args(["--exact", "harness::victim"])
        .current_dir(folder.path())
        .env("TMPDIR", folder.path()) // it will not clean up
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("start this binary again");
    let noted = async || fs::read_to_string(&note).ok().filter(|pid| !pid.is_empty()).ok_or("no note yet");
    let pid = eventually("the victim's redis", PATIENCE, noted).await;
    assert!(runs(&pid), "the victim's redis runs");

    victim.kill().expect("kill the victim");
    victim.wait().expect("reap the victim");
    let gone = async || if runs(&pid) { Err("it runs") } else { Ok(()) };
    eventually("the end of the orphan", PATIENCE, gone).await;
}

/// Alive, and not merely waiting to be reaped by init.
fn runs(pid: &str) -> bool {
    let status = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

//! What is kept vanishes by itself.
use dashstream_tests::{Feed, Kind, Service, Shape, Stack, Watcher, eventually};
use std::time::{Duration, Instant};

const RETENTION: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_one_retention_time_after_the_last_write() {
    let settings = vec![(Kind::Replay, "REPLAY_RETENTION", format!("{}s", RETENTION.as_secs()))];
    let stack = Stack::start(Shape { settings, ..Shape::default() }).await;
    let gateways: Vec<_> = stack.gateway.iter().map(Service::address).collect();
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 6, 20);
    let mut watcher = Watcher::new();
    feed.send(2_000).await;
    watcher.until(&gateways, Duration::from_secs(30), |watcher| watcher.records() >= 2_000).await;
    let written = Instant::now();

    let mut connection = stack.redis.connection().await;
    let keys: Vec<String> =
        redis::cmd("KEYS").arg("*").query_async(&mut connection).await.expect("redis answers");
    assert!(keys.len() >= 4, "{keys:?}");
    for key in keys {
        let ttl: i64 =
            redis::cmd("PTTL").arg(&key).query_async(&mut connection).await.expect("redis answers");
        // A thread's keys get a sixteenth more, so that their expiry need not be set with every record.
        let most = (RETENTION + RETENTION / 16).as_millis() as i64;
        assert!(ttl == -2 || (1..=most).contains(&ttl), "{key} lives for {ttl} ms");
    }
    eventually("redis is empty", RETENTION * 2, async || {
        let size: u64 =
            redis::cmd("DBSIZE").query_async(&mut connection).await.map_err(|error| error.to_string())?;
        if size == 0 { Ok(()) } else { Err(format!("{size} keys are left")) }
    })
    .await;
    assert!(written.elapsed() < RETENTION + Duration::from_secs(2), "took {:?}", written.elapsed());
}

//! Whatever happens to replay or to Redis, the stored log is a correct chain, and what was lost is written again.
use dashstream_core::position::{Epoch, Offset, Partition};
use dashstream_proto::{
    log::v1::Batch,
    replay::v1::{
        AppendRequest, ListThreadsRequest, ReadThreadRequest, RefusalReason, append_response::Outcome,
        replay_service_client::ReplayServiceClient,
    },
};
use dashstream_replay::{
    config::Retention,
    connection::Connections,
    filling::Bounds,
    keys::Stream,
    redis_store::RedisStore,
    store::{Appended, From, Open, Page, Store},
};
use dashstream_tests::{
    Kind, Proxy, Redis, Service, Stop, Writer, eventually,
    eventually::pause,
    redis_fleet::{Cluster, Sentinels, settings},
    writer::batch_after,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use redis::aio::MultiplexedConnection;
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};
use tonic::Code;

async fn replay(url: &str, more: &[(&str, &str)]) -> Service {
    let wires = [("REDIS_URL", url), ("REPLAY_STORE", "redis"), ("REDIS_TIMEOUT", "2s")];
    let service = Service::start(Kind::Replay, &[&wires, more].concat());
    service.ready().await;
    service
}

/// What a primary holds that has not heard of what comes after.
async fn snapshot(connection: &mut MultiplexedConnection) -> Vec<(Vec<u8>, i64, Vec<u8>)> {
    let keys: Vec<Vec<u8>> =
        redis::cmd("KEYS").arg("*").query_async(connection).await.expect("redis answers");
    let mut dump = Vec::new();
    for key in keys {
        let ttl: i64 = redis::cmd("PTTL").arg(&key).query_async(connection).await.expect("redis answers");
        let value: Option<Vec<u8>> =
            redis::cmd("DUMP").arg(&key).query_async(connection).await.expect("redis answers");
        dump.extend(value.map(|value| (key, ttl.max(1), value)));
    }
    dump
}

/// As after a failover to a replica that lagged behind: all that came after the snapshot is gone.
async fn go_back(connection: &mut MultiplexedConnection, dump: &[(Vec<u8>, i64, Vec<u8>)]) {
    let mut pipeline = redis::pipe();
    pipeline.atomic().cmd("FLUSHALL").ignore();
    for (key, ttl, value) in dump {
        pipeline.cmd("RESTORE").arg(key).arg(ttl).arg(value).ignore();
    }
    pipeline.exec_async(connection).await.expect("redis answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_kills_of_replay_during_appends_leave_a_correct_log() {
    let redis = Redis::start(&[]).await;
    // Four at a time, each with a partition of its own.
    let lane = async |lane: i32| {
        let service = replay(&redis.url(), &[]).await;
        let mut writer = Writer::new(&service.address(), "runs", lane);
        let mut rng = StdRng::seed_from_u64(lane as u64);
        let mut end = 0;
        for round in 1..=250 {
            // Somewhere among the batches of this round, while others are on their way.
            let acknowledged = writer.acknowledged();
            let moment = acknowledged.load(Ordering::Relaxed) + rng.random_range(1..10);
            let kill = async {
                while acknowledged.load(Ordering::Relaxed) < moment {
                    pause(Duration::from_micros(200)).await;
                }
                service.stop(Stop::Kill).await;
                service.start_again();
            };
            end += 400;
            tokio::join!(writer.write_until(end), kill);
            writer.assert_grown(end).await;
            if round % 125 == 0 {
                writer.assert_stored(end).await;
            }
        }
        writer.interrupted
    };
    let interrupted = futures_util::future::join_all((0..4).map(lane)).await;
    assert!(interrupted.iter().sum::<u64>() > 700, "the kills hit appends on their way: {interrupted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_cut_connections_during_appends_leave_a_correct_log() {
    let redis = Redis::start(&[]).await;
    let to_redis = Proxy::to(&redis.address());
    let service = replay(&format!("redis://{}", to_redis.address()), &[]).await;
    let to_replay = Proxy::to(&service.address());
    let mut writer = Writer::new(&to_replay.address(), "runs", 0);
    let mut rng = StdRng::seed_from_u64(5);
    let mut end = 0;
    for round in 0..1_000 {
        let moment = Duration::from_micros(rng.random_range(100..6_000));
        let cut = async {
            pause(moment).await;
            if round % 2 == 0 { to_replay.cut() } else { to_redis.cut() }
        };
        end += 200;
        tokio::join!(writer.write_until(end), cut);
    }
    writer.assert_stored(end).await;
    assert!(writer.lives > 1_100, "the cuts hit: {} lives, {:?}", writer.lives, writer.causes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_deletes_on_its_own_stops_the_service_with_the_reason() {
    let redis = Redis::start(&["--maxmemory-policy", "allkeys-lru"]).await;
    let service = Service::start(Kind::Replay, &[("REDIS_URL", &redis.url()), ("REPLAY_STORE", "redis")]);
    let status =
        eventually("it ends", Duration::from_secs(20), async || service.exited().ok_or("it runs")).await;
    assert!(!status.success());
    let log = service.log_text();
    assert!(log.contains("allkeys-lru") && log.contains("REDIS_ALLOW_EVICTION"), "{log}");
    let allowed = Service::start(
        Kind::Replay,
        &[("REDIS_URL", &redis.url()), ("REPLAY_STORE", "redis"), ("REDIS_ALLOW_EVICTION", "true")],
    );
    allowed.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_loses_everything_or_its_tail_is_filled_again_in_the_same_epoch() {
    let redis = Redis::start(&[]).await;
    let service = replay(&redis.url(), &[]).await;
    let mut writer = Writer::new(&service.address(), "runs", 0);
    let mut end = 2_000;
    writer.write_until(end).await;
    for round in 0..12 {
        let mut connection = redis.connection().await;
        let before = snapshot(&mut connection).await;
        end += 3_000;
        let loss = async {
            pause(Duration::from_millis(3)).await;
            match round % 3 {
                0 => redis.restart(Stop::Kill).await,
                1 => redis::cmd("FLUSHALL").exec_async(&mut connection).await.expect("redis answers"),
                _ => go_back(&mut connection, &before).await,
            }
        };
        tokio::join!(writer.write_until(end), loss);
        // The loss may have come after the last append: the next one finds it.
        end += 16;
        writer.write_until(end).await;
        writer.assert_stored(end).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_stalls_or_is_full_fails_appends_until_it_is_well() {
    let redis = Redis::start(&[]).await;
    let service = replay(&redis.url(), &[]).await;
    let mut writer = Writer::new(&service.address(), "runs", 0);
    writer.write_until(1_000).await;

    let stall = async {
        redis.pause();
        pause(Duration::from_secs(5)).await;
        redis.resume();
    };
    let begun = Instant::now();
    tokio::join!(writer.write_until(20_000), stall);
    assert!(begun.elapsed() < Duration::from_secs(20), "took {:?}", begun.elapsed());
    writer.assert_stored(20_000).await;

    let mut connection = redis.connection().await;
    let limit = async |connection: &mut MultiplexedConnection, bytes: &str| {
        let set = redis::cmd("CONFIG").arg(&["SET", "maxmemory", bytes]).exec_async(connection).await;
        set.expect("redis answers");
    };
    limit(&mut connection, "1mb").await;
    let more = async {
        pause(Duration::from_millis(500)).await;
        limit(&mut connection, "0").await;
    };
    tokio::join!(writer.write_until(30_000), more);
    assert!(
        writer.causes.keys().any(|cause| cause.starts_with("ResourceExhausted")),
        "a full Redis is said to be: {:?}",
        writer.causes
    );
    writer.assert_stored(30_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_by_sentinel_in_the_middle_leaves_a_correct_log() {
    let fleet = Sentinels::start().await;
    let service = replay(&fleet.url(), &[]).await;
    let mut writer = Writer::new(&service.address(), "runs", 0);
    writer.write_until(5_000).await;
    let failover = async {
        pause(Duration::from_millis(20)).await;
        fleet.primary().kill();
    };
    tokio::join!(writer.write_until(60_000), failover);
    writer.write_until(70_000).await;
    writer.assert_stored(70_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_three_keeps_every_partition_whole() {
    let cluster = Cluster::start().await;
    let service = replay(&cluster.url(), &[]).await;
    let mut writers: Vec<_> = (0..8).map(|id| Writer::new(&service.address(), "runs", id)).collect();
    futures_util::future::join_all(writers.iter_mut().map(|writer| writer.write_until(2_000))).await;
    for writer in &mut writers {
        writer.assert_stored(2_000).await;
    }
    let log = service.log_text();
    assert!(!log.contains("CROSSSLOT") && !log.contains("ERROR"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_is_one_round_trip_and_scans_nothing() {
    let redis = Redis::start(&[]).await;
    // Less than is written, so that appends trim as well.
    let retention = Retention { age: Duration::from_secs(600), records_max: 2_000, bytes_max: 1 << 30 };
    let store =
        RedisStore::new(Connections::new(&settings(&redis.url())).expect("settings"), retention, None);
    let (stream, partition) = (Stream::new("runs").expect("a name"), Partition::new(0).expect("in range"));
    let open = Open::new(partition, Epoch::new(7));
    let epoch = store.open(&stream, open).await.expect("redis").epoch;
    let mut link = None;
    let mut append = async |times: usize| {
        for _ in 0..times {
            let batch = batch_after(epoch, partition, link, u64::MAX).expect("records");
            link = Some(Offset::clamped(batch.last_offset));
            let outcome = store.append(&stream, &[batch]).await.expect("redis");
            assert!(matches!(outcome[..], [Appended::Stored { .. }]), "{outcome:?}");
        }
    };
    append(1).await; // loads the script
    let mut connection = redis.connection().await;
    redis::cmd("CONFIG").arg("RESETSTAT").exec_async(&mut connection).await.expect("redis answers");
    let reads: u64 = processed(&mut connection).await;
    append(200).await;
    let stats: String =
        redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.expect("redis answers");
    let calls = |command: &str| {
        let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{command}:")));
        line.map_or(0, |line| line.split(['=', ',']).nth(1).and_then(|calls| calls.parse().ok()).unwrap_or(0))
    };
    assert_eq!((calls("evalsha"), calls("eval"), calls("xadd")), (200, 0, 200), "{stats}");
    for scan in ["scan", "keys", "zcard", "llen", "xlen", "hgetall", "xinfo"] {
        assert_eq!(calls(scan), 0, "{scan} in\n{stats}");
    }
    // What clients sent, without what scripts called: the appends, and the questions of this test.
    let sent = processed(&mut connection).await - reads;
    assert!(sent <= 200 + 3, "{sent} commands came in for 200 appends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_thousand_records_is_one_round_trip() {
    let redis = Redis::start(&[]).await;
    let service = replay(&redis.url(), &[]).await;
    let mut writer = Writer::new(&service.address(), "runs", 0);
    writer.write_until(1_500).await;
    let retention = Retention { age: Duration::from_secs(600), records_max: 2_000, bytes_max: 1 << 30 };
    let store =
        RedisStore::new(Connections::new(&settings(&redis.url())).expect("settings"), retention, None);
    let (stream, partition) = (Stream::new("runs").expect("a name"), Partition::new(0).expect("in range"));
    let read = async |from: From| {
        let page = store.read(&stream, partition, from, Bounds::of_bytes(1 << 20)).await.expect("redis");
        let Page::Batches { batches, .. } = page else { panic!("a page of {from:?}") };
        batches.iter().map(|batch| batch.record_count).sum::<u32>()
    };
    for (from, most) in [(From::Earliest, 1), (From::AtTime(400), 2)] {
        read(from).await; // loads the scripts
        let mut connection = redis.connection().await;
        redis::cmd("CONFIG").arg("RESETSTAT").exec_async(&mut connection).await.expect("redis answers");
        assert!(read(from).await >= 1_000);
        let stats: String =
            redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.expect("redis answers");
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        let calls: u32 = calls.and_then(|rest| rest.split(',').next()?.parse().ok()).expect("calls");
        assert!(calls <= most, "{from:?} took {calls} round trips");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_beyond_the_budget_is_told_to_come_back_and_a_deadline_is_kept() {
    let redis = Redis::start(&[]).await;
    let service = replay(&redis.url(), &[("REPLAY_READS_MAX", "1"), ("REDIS_TIMEOUT", "10s")]).await;
    Writer::new(&service.address(), "runs", 0).write_until(10).await;
    let channel = dashstream_kit::grpc::channel_to(&service.address()).expect("an address");
    let client = ReplayServiceClient::new(channel);
    let list = async |timeout: Duration| {
        let mut request =
            tonic::Request::new(ListThreadsRequest { stream: "runs".into(), ..Default::default() });
        request.set_timeout(timeout);
        let begun = Instant::now();
        (client.clone().list_threads(request).await.expect_err("redis does not answer"), begun.elapsed())
    };
    redis.pause();
    let (slow, second) = tokio::join!(list(Duration::from_secs(4)), async {
        pause(Duration::from_millis(200)).await;
        list(Duration::from_secs(8)).await
    });
    assert_eq!(second.0.code(), Code::ResourceExhausted, "{second:?}");
    assert_eq!(second.0.metadata().get("grpc-retry-pushback-ms").expect("when to come back"), "1000");
    assert!(matches!(slow.0.code(), Code::Cancelled | Code::DeadlineExceeded), "{slow:?}");
    assert!(slow.1 < Duration::from_secs(6), "{slow:?}");
    redis.resume();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_is_acknowledged_only_when_enough_replicas_have_it() {
    let fleet = Sentinels::start().await;
    let wait = [("REPLAY_WAIT_REPLICAS", "1"), ("REPLAY_WAIT_TIMEOUT", "500ms")];
    let service = replay(&fleet.url(), &wait).await;
    let mut writer = Writer::new(&service.address(), "runs", 0);
    writer.write_until(1_000).await;
    fleet.replica().pause();
    let more = async {
        pause(Duration::from_secs(2)).await;
        fleet.replica().resume();
    };
    tokio::join!(writer.write_until(3_000), more);
    let refused = writer.causes.keys().any(|cause| cause.contains("0 of 1 replicas"));
    assert!(refused, "{:?}", writer.causes);
    writer.assert_stored(3_000).await;
}

/// Commands that clients sent: network reads tell it, since each of ours is one.
async fn processed(connection: &mut MultiplexedConnection) -> u64 {
    let info: String = redis::cmd("INFO").arg("stats").query_async(connection).await.expect("redis answers");
    let line = info.lines().find_map(|line| line.strip_prefix("total_reads_processed:"));
    line.and_then(|text| text.trim().parse().ok()).expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn other_bytes_under_a_stored_offset_are_an_alarm_and_the_same_bytes_are_not() {
    let redis = Redis::start(&[]).await;
    let service = replay(&redis.url(), &[]).await;
    let mut writer = Writer::new(&service.address(), "runs", 0);
    writer.write_until(40).await;
    let channel = dashstream_kit::grpc::channel_to(&service.address()).expect("an address");
    let mut client = ReplayServiceClient::new(channel);
    let mut append = async |batch: Batch| {
        let request = AppendRequest { stream: "runs".into(), batch: Some(batch) };
        let answers = client.append(futures_util::stream::iter([request])).await.expect("an answer");
        answers.into_inner().message().await.expect("an answer").and_then(|answer| answer.outcome)
    };
    let epoch = writer.epoch().expect("it wrote");
    let partition = Partition::new(0).expect("in range");
    let same = batch_after(epoch, partition, Some(Offset::clamped(9)), 40).expect("records");
    let Some(Outcome::Stored(stored)) = append(same.clone()).await else { panic!("it is held") };
    assert!(stored.duplicate);
    let changed =
        same.records.iter().map(|byte| if *byte == b'x' { b'y' } else { *byte }).collect::<Vec<_>>();
    let Some(Outcome::Refused(refused)) = append(Batch { records: changed.into(), ..same }).await else {
        panic!("other bytes are refused")
    };
    assert_eq!(refused.reason(), RefusalReason::Divergent);
    writer.assert_stored(40).await;
    assert!(service.log_text().contains("other bytes"), "and logged as an error");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_thread_lost_is_told_with_exact_bounds_around_its_base() {
    let redis = Redis::start(&[]).await;
    let service = replay(&redis.url(), &[("REPLAY_RETENTION_RECORDS", "64")]).await;
    let mut writer = Writer::new(&service.address(), "runs", 0);
    writer.write_until(400).await;
    let channel = dashstream_kit::grpc::channel_to(&service.address()).expect("an address");
    let request =
        ReadThreadRequest { stream: "runs".into(), thread_id: "thread-3".into(), ..Default::default() };
    let answers = ReplayServiceClient::new(channel).read_thread(request).await.expect("an answer");
    let mut answers = answers.into_inner();
    let first = answers.message().await.expect("an answer").expect("one at least");
    // The thread has every fifth record; none carries the whole state.
    let gap = first.gap.expect("records were let go");
    let begins = first.records[0].offset;
    assert_eq!((gap.first_offset, gap.last_offset, gap.epoch), (0, begins - 1, first.epoch));
    assert!(begins > 300 && first.records.iter().all(|record| record.offset % 5 == 3));
}

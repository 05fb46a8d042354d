//! Readers are told the truth: whatever the store has lost, let go or does not know, and whoever else reads.
use crate::openings::{Store, after, records};
use dashstream_core::{
    batch::{self, Envelope, Packer},
    codec::Facts,
    position::{Epoch, Offset, Partition},
};
use dashstream_proto::{
    log::v1::{AfterOffset, Batch, Earliest, Latest, Position, RecordKind, RunFacts, position},
    replay::v1::{
        DescribeThreadRequest, ListThreadsRequest, OpenPartitionRequest, ReadPartitionsRequest,
        ReadThreadRequest, RefusalReason, StaleReason, append_response::Outcome,
        read_partitions_response::Step, read_thread_request::From as ThreadFrom,
    },
};
use dashstream_replay::{
    config::Retention,
    connection::Connections,
    filling::Bounds,
    keys::{Key, Stream},
    redis_store::RedisStore,
    store::{Appended, From, Open, Page, Store as _},
};
use dashstream_tests::{Redis, eventually, redis_fleet::settings, writer::batch_after};
use redis::FromRedisValue;
use std::time::Duration;
use tonic::{Code, Status};

const PATIENCE: Duration = Duration::from_secs(20);

fn partition() -> Partition {
    Partition::new(0).expect("in range")
}

fn stream() -> Stream {
    Stream::new("runs").expect("a name")
}

async fn ask<T: FromRedisValue>(redis: &Redis, words: &[&str]) -> T {
    let answer = redis::cmd(words[0]).arg(&words[1..]).query_async(&mut redis.connection().await).await;
    answer.unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

fn request(positions: Vec<Position>) -> ReadPartitionsRequest {
    let (page_bytes_max, pages_max, page_records_max) = (0, 1, 16);
    ReadPartitionsRequest { stream: "runs".into(), positions, page_bytes_max, pages_max, page_records_max }
}

fn redis_store(redis: &Redis, records_max: u64) -> RedisStore {
    let retention = Retention { age: Duration::from_secs(600), records_max, bytes_max: 1 << 30 };
    RedisStore::new(Connections::new(&settings(&redis.url())).expect("settings"), retention, None)
}

/// Appends the next sixteen records to a store.
async fn append(store: &RedisStore, epoch: Epoch, link: Option<u64>) -> u64 {
    let batch = batch_after(epoch, partition(), link.map(Offset::clamped), u64::MAX).expect("records");
    let last = batch.last_offset;
    let outcome = store.append(&stream(), &[batch]).await.expect("redis");
    assert!(matches!(outcome[..], [Appended::Stored { .. }]), "{outcome:?}");
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_epoch_hides_all_of_the_old_one_at_once_and_frees_it() {
    let store = Store::start("redis", &[("REPLAY_RETENTION", "15s")]).await;
    let mut writer = store.writer(0);
    writer.write_until(200).await;
    let old = writer.epoch().expect("it wrote").get();
    let made_anew = OpenPartitionRequest { high_watermark: Some(10), ..Default::default() };
    let opened = store.open(made_anew).await;
    assert!(opened.opened_new_epoch && opened.epoch > old, "{opened:?}");

    let steps = store.read(position::From::Earliest(Earliest {})).await;
    let [Step::Page(page)] = &steps[..] else { panic!("{steps:?}") };
    assert!(page.batches.is_empty() && page.epoch == opened.epoch, "{page:?}");
    let steps = store.read(after(old, Some(50))).await;
    assert!(matches!(&steps[..], [Step::Stale(stale)] if stale.reason() == StaleReason::Epoch), "{steps:?}");
    let threads = ListThreadsRequest { stream: "runs".into(), ..Default::default() };
    let threads = store.client.clone().list_threads(threads).await.expect("an answer").into_inner();
    assert_eq!(threads.threads, []);
    let (stream, thread_id) = ("runs".into(), "thread-1".into());
    let thread = DescribeThreadRequest { stream, thread_id, ..Default::default() };
    let status = store.client.clone().describe_thread(thread).await.expect_err("of the old life");
    assert_eq!(status.code(), Code::NotFound);
    let outcome = store.append(records(old, Some(199), 203)).await;
    assert!(
        matches!(&outcome, Outcome::Refused(refused) if refused.reason() == RefusalReason::Epoch),
        "{outcome:?}"
    );

    let log = Key::Log(&self::stream(), partition()).to_string();
    assert_eq!(ask::<u64>(store.redis(), &["EXISTS", &log]).await, 0, "the log is freed");
    eventually("what is left of threads goes by itself", PATIENCE, async || {
        let size: u64 = ask(store.redis(), &["DBSIZE"]).await;
        if size == 0 { Ok(()) } else { Err(format!("{size} keys are left")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_store_is_seeding_and_never_complete() {
    let store = Store::start("redis", &[]).await;
    let mut writer = store.writer(0);
    writer.write_until(50).await;
    let epoch = writer.epoch().expect("it wrote").get();
    ask::<()>(store.redis(), &["FLUSHALL"]).await;
    for from in [
        position::From::Earliest(Earliest {}),
        position::From::Latest(Latest {}),
        position::From::AtTimeMs(0),
        after(epoch, None),
        after(epoch, Some(49)),
    ] {
        let steps = store.read(from).await;
        let seeding = matches!(&steps[..], [Step::Stale(stale)] if stale.reason() == StaleReason::Seeding);
        assert!(seeding, "{from:?}: {steps:?}");
    }
    // Refilled in part, it does not tell a reader who has more that this is all.
    store.open(OpenPartitionRequest { known_epoch: Some(epoch), ..Default::default() }).await;
    store.append(records(epoch, None, 16)).await;
    let steps = store.read(after(epoch, Some(49))).await;
    assert!(
        matches!(&steps[..], [Step::Stale(stale)] if stale.reason() == StaleReason::Seeding),
        "{steps:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_became_a_replica_is_not_asked_where_the_log_ends() {
    let redis = Redis::start(&[]).await;
    let store = redis_store(&redis, 1_000);
    let epoch = store.open(&stream(), Open::new(partition(), Epoch::new(7))).await.expect("redis").epoch;
    append(&store, epoch, None).await;
    let read = async || store.read(&stream(), partition(), From::Earliest, Bounds::of_bytes(1 << 20)).await;
    assert!(matches!(read().await.expect("redis"), Page::Batches { at_end: true, .. }));
    // Of a primary that is away: it goes on serving what it has.
    ask::<()>(&redis, &["REPLICAOF", "127.0.0.1", "1"]).await;
    let error = read().await.expect_err("a replica may lag");
    assert!(format!("{error:?}").contains("replica"), "{error:?}");
    ask::<()>(&redis, &["REPLICAOF", "NO", "ONE"]).await;
    let page =
        eventually("it is read again", PATIENCE, async || read().await.map_err(|error| format!("{error:?}")));
    assert!(matches!(page.await, Page::Batches { at_end: true, .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_partition_has_a_page_of_its_own_that_says_whether_there_is_more() {
    let store = Store::start("redis", &[]).await;
    let ends = [10, 16, 17, 48, 200];
    for (partition, end) in (0..).zip(ends) {
        store.writer(partition).write_until(end).await;
    }
    let earliest = |partition| Position { partition, from: Some(position::From::Earliest(Earliest {})) };
    let positions = (0..ends.len() as i32).map(earliest).collect();
    let answers = store.client.clone().read_partitions(request(positions)).await;
    let mut answers = answers.expect("an answer").into_inner();
    let mut told = Vec::new();
    while let Some(answer) = answers.message().await.expect("an answer") {
        let Some(Step::Page(page)) = answer.step else { panic!("{answer:?}") };
        let records: u32 = page.batches.iter().map(|batch| batch.record_count).sum();
        told.push((answer.partition, u64::from(records), page.at_end, page.last_offset));
    }
    let expected: Vec<_> =
        (0..).zip(ends).map(|(partition, end)| (partition, end.min(16), end <= 16, Some(end - 1))).collect();
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_trimming_overtakes_is_told_exactly_what_it_missed() {
    let store = Store::start("redis", &[("REPLAY_RETENTION_RECORDS", "64")]).await;
    let mut writer = store.writer(0);
    let (mut next, mut gaps) = (0, 0);
    for round in 1..40 {
        writer.write_until(48 * round).await;
        let epoch = writer.epoch().expect("it wrote").get();
        let from = position::From::After(AfterOffset { epoch, offset: u64::checked_sub(next, 1) });
        let position = Position { partition: 0, from: Some(from) };
        let answers = store.client.clone().read_partitions(request(vec![position])).await;
        let mut answers = answers.expect("an answer").into_inner();
        while let Some(answer) = answers.message().await.expect("an answer") {
            match answer.step {
                Some(Step::Gap(gap)) => {
                    assert_eq!(gap.first_offset, next, "a gap begins where the reader is");
                    (next, gaps) = (gap.last_offset + 1, gaps + 1);
                }
                Some(Step::Page(page)) => {
                    for record in page.batches.iter().flat_map(batch::records) {
                        let record = record.expect("a record");
                        assert_eq!((record.offset, record.prev_offset), (next, next.checked_sub(1)));
                        next += 1;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(gaps > 20, "it was overtaken {gaps} times");
}

/// The reason that a reading which is not taken ends with.
async fn end_of(
    mut answers: tonic::Streaming<dashstream_proto::replay::v1::ReadPartitionsResponse>,
) -> Status {
    loop {
        match answers.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it must not look like all"),
            Err(status) => return status,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_go_on_while_readers_take_all_places_and_a_reader_that_stands_loses_its_own() {
    let settings =
        [("REPLAY_READS_MAX", "1"), ("REPLAY_READER_TIMEOUT", "3s"), ("REPLAY_PAGE_BYTES_MAX", "64KiB")];
    let store = Store::start("redis", &settings).await;
    let mut writer = store.writer(0);
    writer.write_until(60_000).await;
    let earliest = Position { partition: 0, from: Some(position::From::Earliest(Earliest {})) };
    let all = ReadPartitionsRequest { pages_max: 0, page_records_max: 0, ..request(vec![earliest]) };
    let standing = store.client.clone().read_partitions(all).await.expect("a place").into_inner();

    let list = ListThreadsRequest { stream: "runs".into(), ..Default::default() };
    let status = store.client.clone().list_threads(list.clone()).await.expect_err("there is no place");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.metadata().get("grpc-retry-pushback-ms").is_some());
    let lives = writer.lives;
    writer.write_until(60_200).await;
    assert_eq!(writer.lives, lives + 1, "appends need no place");

    eventually("the place is free", PATIENCE, async || store.client.clone().list_threads(list.clone()).await)
        .await;
    let status = end_of(standing).await;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

/// What a thread's record carries, at least a hundred bytes.
fn text(thread_id: &str, sequence: u64) -> Vec<u8> {
    format!("{sequence} of {thread_id:100}").into_bytes()
}

/// Records of these threads with these sequences, behind each other.
fn of_threads(epoch: u64, link: Option<u64>, records: &[(&str, u64)]) -> Batch {
    let mut packer = Packer::new(Epoch::new(epoch), partition(), link.map(Offset::clamped));
    for (thread_id, sequence) in records {
        let offset = Offset::clamped(packer.link().map_or(0, |at| at.get() + 1));
        let facts = Facts {
            kind: RecordKind::Event,
            tenant_id: String::new(),
            thread_id: (*thread_id).to_owned(),
            sequence: Some(*sequence),
            more_threads: Vec::new(),
            run: RunFacts::default(),
            produced_us: None,
        };
        let (traceparent, tracestate) = (String::new(), String::new());
        let envelope = Envelope { offset, timestamp_ms: None, facts, traceparent, tracestate };
        assert!(packer.push(envelope, &text(thread_id, *sequence)));
    }
    packer.finish().expect("records")
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_of_any_name_are_listed_described_and_read_back() {
    let (long, longest) = ("x".repeat(200), "\u{1f980}".repeat(256));
    let ids = [
        "plain",
        "with:colons",
        "b64_bG9va3M",
        "h_0123456789abcdef",
        "gr\u{f6}\u{df}e und \u{1f980}",
        "nul \0 and {braces}*",
        &long,
        &longest,
    ];
    let store = Store::start("redis", &[]).await;
    let epoch = store.open(OpenPartitionRequest::default()).await.epoch;
    let sequences = [(1 << 53) - 1, (1 << 53) + 1, i64::MAX as u64];
    let all: Vec<_> = sequences.iter().flat_map(|sequence| ids.map(|id| (id, *sequence))).collect();
    store.append(of_threads(epoch, None, &all)).await;
    let mut client = store.client.clone();
    for id in ids {
        let (stream, thread_id) = ("runs".to_owned(), id.to_owned());
        let describe = DescribeThreadRequest { stream, thread_id, ..Default::default() };
        let described = client.describe_thread(describe).await.expect(id).into_inner().thread.expect("it");
        assert_eq!((described.thread_id.as_str(), described.records), (id, 3));
        // The middle sequence differs from its neighbours by less than a double can tell.
        let from = Some(ThreadFrom::AfterSequence(sequences[0]));
        let (stream, thread_id) = ("runs".to_owned(), id.to_owned());
        let read = ReadThreadRequest { stream, thread_id, from, ..Default::default() };
        let mut answers = client.read_thread(read).await.expect(id).into_inner();
        let mut records = Vec::new();
        while let Some(answer) = answers.message().await.expect("an answer") {
            records
                .extend(answer.records.into_iter().map(|record| (record.sequence, record.payload.to_vec())));
        }
        assert_eq!(records, [1, 2].map(|at| (Some(sequences[at]), text(id, sequences[at]))), "{id}");
    }
    let list = ListThreadsRequest { stream: "runs".into(), ..Default::default() };
    let listed = client.list_threads(list).await.expect("an answer").into_inner().threads;
    let mut listed: Vec<_> = listed.iter().map(|thread| thread.thread_id.as_str()).collect();
    listed.sort_unstable();
    let mut expected = ids.to_vec();
    expected.sort_unstable();
    assert_eq!(listed, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_that_began_again_is_read_behind_a_sequence_on_every_page() {
    let store = Store::start("redis", &[("REPLAY_PAGE_BYTES_MAX", "1KiB")]).await;
    let epoch = store.open(OpenPartitionRequest::default()).await.epoch;
    let again = |sequence| ("again", sequence);
    store.append(of_threads(epoch, None, &(1..=40).map(again).collect::<Vec<_>>())).await;
    store.append(of_threads(epoch, Some(39), &[1, 2, 3, 41, 4].map(again))).await;
    let from = Some(ThreadFrom::AfterSequence(10));
    let (stream, thread_id) = ("runs".into(), "again".into());
    let request = ReadThreadRequest { stream, thread_id, from, ..Default::default() };
    let mut answers = store.client.clone().read_thread(request).await.expect("an answer").into_inner();
    let (mut sequences, mut pages) = (Vec::new(), 0);
    while let Some(answer) = answers.message().await.expect("an answer") {
        sequences.extend(answer.records.iter().filter_map(|record| record.sequence));
        pages += 1;
    }
    assert_eq!(sequences, (11..=41).collect::<Vec<_>>());
    assert!(pages > 2, "{pages}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_appended_read_and_refused_is_counted() {
    let store = Store::start("redis", &[]).await;
    let epoch = store.open(OpenPartitionRequest::default()).await.epoch;
    let other = of_threads(epoch, None, &[("other", 5); 10]);
    for batch in [
        records(epoch, None, 10),
        records(epoch, None, 10),
        records(epoch, Some(11), 14),
        records(epoch + 1, Some(9), 14),
        other,
        Batch { record_count: 99, ..records(epoch, Some(9), 14) },
    ] {
        store.append(batch).await;
    }
    store.read(position::From::Earliest(Earliest {})).await;
    let (_, metrics) = store.service.get("/metrics").await.expect("an answer");
    let count = |series: &str| {
        let line =
            metrics.lines().find_map(|line| line.strip_prefix(&format!("dashstream_replay_{series} ")));
        line.unwrap_or_else(|| panic!("no {series} in\n{metrics}")).parse::<f64>().expect("a number")
    };
    for outcome in ["stored", "held", "link", "epoch", "divergent", "invalid"] {
        let series = format!("append_batches_total{{outcome=\"{outcome}\"}}");
        assert_eq!(count(&series), 1.0, "{outcome}");
    }
    assert_eq!((count("appended_records_total"), count("batch_records_sum")), (10.0, 10.0));
    assert_eq!((count("append_seconds_count"), count("read_seconds_count")), (5.0, 1.0));
    assert_eq!(count("appended_bytes_total"), count("read_bytes_total"));
    // Redis knew none of them: to open, to note the partition, to append, to read.
    assert_eq!(count("script_reloads_total"), 4.0);
    assert_eq!(count("refused_reads_total"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_records_are_gone_is_counted_anew() {
    let redis = Redis::start(&[]).await;
    let store = redis_store(&redis, 30);
    let epoch = store.open(&stream(), Open::new(partition(), Epoch::new(7))).await.expect("redis").epoch;
    let last = append(&store, epoch, None).await;
    ask::<()>(&redis, &["DEL", &Key::Log(&stream(), partition()).to_string()]).await;
    append(&store, epoch, Some(last)).await;
    let kept = store.describe_partition(&stream(), partition()).await.expect("redis").expect("known");
    assert_eq!((kept.records, kept.earliest), (16, Some(Offset::clamped(16))));
}

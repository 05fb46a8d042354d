//! Threads and retention, asked of the replay service over gRPC.
use dashstream_core::codec::{Limits, facts};
use dashstream_kit::grpc::channel_to;
use dashstream_proto::{
    log::v1::RunStatus,
    replay::v1::{
        DeleteThreadRequest, DescribePartitionsRequest, DescribeThreadRequest, GetRetentionRequest,
        ListThreadsRequest, ReadThreadRequest, Retention, SetRetentionRequest, read_thread_request::From,
        replay_service_client::ReplayServiceClient,
    },
};
use dashstream_tests::{Feed, Log, Service, Shape, Stack, Watcher, eventually};
use std::{collections::BTreeMap, time::Duration};
use tonic::{Code, transport::Channel};

const TIMEOUT: Duration = Duration::from_secs(60);

struct Replay {
    client: ReplayServiceClient<Channel>,
    stream: String,
}

impl Replay {
    fn of(stack: &Stack) -> Self {
        let channel = channel_to(&stack.replay[0].address()).expect("an address");
        Self { client: ReplayServiceClient::new(channel), stream: stack.topic.clone() }
    }

    async fn thread(&mut self, thread_id: &str, from: Option<From>, records_max: u32) -> Vec<Vec<u8>> {
        let (stream, tenant_id, thread_id) = (self.stream.clone(), String::new(), thread_id.to_owned());
        let tenant_ids = Vec::new();
        let request = ReadThreadRequest { stream, tenant_id, thread_id, from, records_max, tenant_ids };
        let mut answers = self.client.read_thread(request).await.expect("an answer").into_inner();
        let mut payloads = Vec::new();
        while let Some(answer) = answers.message().await.expect("an answer") {
            assert_eq!(answer.gap, None);
            payloads.extend(answer.records.into_iter().map(|record| record.payload.to_vec()));
        }
        payloads
    }
}

/// A stack that has stored some runs, and what is in its topic.
async fn stack(records: usize, threads: usize) -> (Stack, Log) {
    let stack = Stack::start(Shape { partitions: 4, ..Shape::default() }).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 21, threads);
    feed.send(records).await;
    let log = feed.log().await;
    let gateways: Vec<_> = stack.gateway.iter().map(Service::address).collect();
    Watcher::new().until(&gateways, TIMEOUT, |watcher| watcher.records() >= records).await;
    (stack, log)
}

/// A thread's payloads in log order, its last status, its highest sequence.
type Expected = (Vec<Vec<u8>>, RunStatus, Option<u64>);

fn by_thread(log: &Log) -> BTreeMap<String, Expected> {
    let mut threads: BTreeMap<String, Expected> = BTreeMap::new();
    for (_, payload) in log.values().flatten() {
        let facts = facts(Some(payload), Limits::default()).expect("we wrote it");
        let (payloads, status, sequence) = threads.entry(facts.thread_id).or_default();
        payloads.push(payload.to_vec());
        *sequence = facts.sequence.max(*sequence);
        if facts.run.status() != RunStatus::Unspecified {
            *status = facts.run.status();
        }
    }
    threads
}

#[tokio::test(flavor = "multi_thread")]
async fn every_thread_is_listed_described_and_read_back_exactly() {
    let (stack, log) = stack(6_000, 60).await;
    let mut replay = Replay::of(&stack);
    let expected = by_thread(&log);

    let mut listed = BTreeMap::new();
    let mut page_token = String::new();
    let mut last_active = i64::MAX;
    loop {
        let request = ListThreadsRequest {
            stream: replay.stream.clone(),
            page_size: 17,
            page_token: page_token.clone(),
            ..Default::default()
        };
        let page = replay.client.list_threads(request).await.expect("a page").into_inner();
        for thread in page.threads {
            // By activity as the store saw it; Kafka's own times agree within the moments of one batch.
            assert!(thread.last_time_ms <= last_active.saturating_add(2_000), "{thread:?}");
            last_active = thread.last_time_ms;
            assert!(listed.insert(thread.thread_id.clone(), thread).is_none(), "a thread is listed once");
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert!(listed.keys().eq(expected.keys()), "{} listed, {} expected", listed.len(), expected.len());

    for (thread_id, (payloads, status, sequence)) in &expected {
        let thread = &listed[thread_id];
        assert_eq!((thread.records as usize, thread.status()), (payloads.len(), *status), "{thread_id}");
        assert_eq!(thread.tenant_id, "demo");
        assert!(thread.graph_name.is_empty() || thread_id.contains(&thread.graph_name), "{thread:?}");
        assert_eq!(&replay.thread(thread_id, None, 0).await, payloads, "{thread_id}");
        let last = replay.thread(thread_id, Some(From::AfterSequence(sequence.unwrap_or(1) - 1)), 0).await;
        assert_eq!(last.last(), payloads.last(), "{thread_id}");
        assert!(last.len() <= 2, "only what follows the sequence");
        assert_eq!(replay.thread(thread_id, None, 3).await, payloads[..3.min(payloads.len())]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_are_filtered_deleted_and_unknown_ones_are_not_found() {
    let (stack, log) = stack(4_000, 30).await;
    let mut replay = Replay::of(&stack);
    let expected = by_thread(&log);
    let completed = expected.values().filter(|(_, status, _)| *status == RunStatus::Completed).count();
    let stream = replay.stream.clone();
    let request = |statuses, tenant: &str| ListThreadsRequest {
        stream: stream.clone(),
        statuses,
        tenant_ids: vec![tenant.to_owned()],
        page_size: 500,
        ..Default::default()
    };
    let page =
        replay.client.list_threads(request(vec![RunStatus::Completed.into()], "demo")).await.expect("a page");
    assert_eq!(page.into_inner().threads.len(), completed);
    assert!(completed > 0);
    let page = replay.client.list_threads(request(vec![], "other")).await.expect("a page").into_inner();
    assert!(page.threads.is_empty(), "another tenant sees nothing");

    let thread_id = expected.keys().next().expect("a thread").clone();
    let delete = |tenant: &str| DeleteThreadRequest {
        stream: stream.clone(),
        tenant_id: tenant.to_owned(),
        thread_id: thread_id.clone(),
        reason: "a test".into(),
    };
    let other = replay.client.delete_thread(delete("other")).await.expect("an answer").into_inner();
    assert!(!other.existed, "another tenant deletes nothing");
    assert!(replay.client.delete_thread(delete("demo")).await.expect("an answer").into_inner().existed);
    let log = stack.replay.iter().map(Service::log_text).collect::<String>();
    let audited =
        log.lines().filter(|line| line.contains("thread deleted") && line.contains("audit")).count();
    assert_eq!(audited, 2, "what was asked for is on record, whatever came of it");
    let describe = DescribeThreadRequest { stream: stream.clone(), thread_id, ..Default::default() };
    let gone = replay.client.describe_thread(describe).await.expect_err("it is deleted");
    assert_eq!(gone.code(), Code::NotFound);
    for (why, stream, thread_id, code) in [
        ("no thread", stream.as_str(), "", Code::InvalidArgument),
        ("no stream", "a/b", "t", Code::InvalidArgument),
        ("a thread that is too long", &stream, &"x".repeat(2_000), Code::InvalidArgument),
        ("nobody's thread", &stream, "nobody", Code::NotFound),
    ] {
        let (stream, thread_id) = (stream.to_owned(), thread_id.to_owned());
        let request = DescribeThreadRequest { stream, thread_id, ..Default::default() };
        assert_eq!(replay.client.describe_thread(request).await.expect_err(why).code(), code, "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_told_as_it_is_and_shrinks_when_retention_does() {
    let (stack, log) = stack(4_000, 30).await;
    let mut replay = Replay::of(&stack);
    let stream = replay.stream.clone();
    let all = DescribePartitionsRequest { stream: stream.clone(), partitions: vec![] };
    let described =
        replay.client.describe_partitions(all.clone()).await.expect("an answer").into_inner().partitions;
    assert_eq!(described.len(), log.len());
    for partition in &described {
        let records = &log[&partition.partition];
        assert_eq!(partition.records as usize, records.len());
        assert_eq!(
            (partition.earliest_offset, partition.last_offset),
            (Some(0), records.last().map(|r| r.0))
        );
        assert!(partition.headroom_ms > 3_500_000 && partition.bytes > 0, "{partition:?}");
    }
    eventually("the metrics say the same", Duration::from_secs(15), async || {
        let (_, metrics) = stack.replay[0].get("/metrics").await?;
        for partition in &described {
            let labels = format!("{{partition=\"{}\",stream=\"{stream}\"}}", partition.partition);
            for (name, value) in
                [("kept_records", partition.records), ("last_offset", partition.last_offset.unwrap_or(0))]
            {
                let line = format!("dashstream_replay_{name}{labels} {value}");
                if !metrics.contains(&line) {
                    return Err(format!("{line} is not in /metrics"));
                }
            }
        }
        Ok(())
    })
    .await;

    let bounds = Retention { age_ms: 3_600_000, records_max: 100, bytes_max: 1 << 30 };
    let retention = Some(bounds);
    let set = SetRetentionRequest { stream: stream.clone(), retention, reason: "a test".into() };
    let now = replay.client.set_retention(set.clone()).await.expect("an answer").into_inner().retention;
    assert_eq!(now, retention);
    let got =
        replay.client.get_retention(GetRetentionRequest { stream: stream.clone() }).await.expect("an answer");
    assert!(got.into_inner().is_set);
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 22, 30);
    eventually("appends trim what is over", Duration::from_secs(30), async || {
        feed.send(200).await;
        let answer =
            replay.client.describe_partitions(all.clone()).await.map_err(|status| status.to_string())?;
        let most = answer.into_inner().partitions.iter().map(|partition| partition.records).max();
        // One batch may be over.
        if most <= Some(100 + 64) { Ok(()) } else { Err(format!("{most:?} records are kept")) }
    })
    .await;
    let zero = Some(Retention { records_max: 0, ..bounds });
    let refused = replay.client.set_retention(SetRetentionRequest { retention: zero, ..set }).await;
    let status = refused.expect_err("nothing can be kept with that");
    assert_eq!(status.message(), "retention.records_max is 0: expected 1 to 2^53");
}

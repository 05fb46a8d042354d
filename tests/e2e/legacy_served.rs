//! What the predecessor left is served by the replay service, in front of its own.
use crate::legacy::{capture, expected, load, rows, text, threads};
use dashstream_core::batch;
use dashstream_kit::grpc::channel_to;
use dashstream_proto::{
    log::v1::{Earliest, GapReason, Position, Record, position},
    replay::v1::{
        ReadPartitionsRequest, ReadThreadRequest, read_partitions_response::Step,
        replay_service_client::ReplayServiceClient,
    },
};
use dashstream_tests::{Kind, Redis, Service, Writer};
use tonic::transport::Channel;

struct Served {
    redis: Redis,
    service: Service,
    client: ReplayServiceClient<Channel>,
}

impl Served {
    async fn start() -> Self {
        let redis = Redis::start(&[]).await;
        let capture = capture();
        let prefix = text(&capture, "prefix");
        let mut connection = redis.connection().await;
        load(&mut connection, prefix, &capture["keys"]).await;
        load(&mut connection, prefix, &capture["keys_before_b64"]["keys"]).await;
        let wires =
            [("REDIS_URL", &*redis.url()), ("REPLAY_STORE", "redis"), ("REPLAY_LEGACY_PREFIX", prefix)];
        let service = Service::start(Kind::Replay, &wires);
        service.ready().await;
        let client = ReplayServiceClient::new(channel_to(&service.address()).expect("an address"));
        Self { redis, service, client }
    }

    /// All records of a partition, gaps among them.
    async fn partition(&mut self, partition: i32) -> Vec<Record> {
        let from = Some(position::From::Earliest(Earliest {}));
        let request = ReadPartitionsRequest {
            stream: "t8".into(),
            positions: vec![Position { partition, from }],
            page_bytes_max: 512,
            pages_max: 0,
            page_records_max: 0,
        };
        let mut steps = self.client.read_partitions(request).await.expect("an answer").into_inner();
        let mut records = Vec::new();
        while let Some(step) = steps.message().await.expect("an answer") {
            match step.step {
                Some(Step::Page(page)) => {
                    records.extend(
                        page.batches.iter().flat_map(batch::records).map(|record| record.expect("a record")),
                    );
                }
                Some(Step::Gap(gap)) => records.push(Record { gap: Some(gap), ..Default::default() }),
                other => panic!("{other:?}"),
            }
        }
        records
    }

    async fn thread(&mut self, thread_id: &str) -> Vec<Record> {
        let request =
            ReadThreadRequest { stream: "t8".into(), thread_id: thread_id.into(), ..Default::default() };
        let mut answers = self.client.read_thread(request).await.expect("an answer").into_inner();
        let mut records = Vec::new();
        while let Some(answer) = answers.message().await.expect("an answer") {
            records.extend(answer.records);
        }
        records
    }
}

/// The payloads of the capture's rows of a partition, by offset.
fn captured(partition: i32) -> Vec<(u64, Vec<u8>)> {
    let capture = capture();
    let head = format!(":partition:{partition}:offset:");
    let mut captured: Vec<_> = rows(&capture["keys"])
        .into_iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(&head)?.parse().ok()?, value)))
        .collect();
    captured.sort();
    captured
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_and_threads_of_the_predecessor_come_back_byte_for_byte() {
    let mut served = Served::start().await;
    for partition in [3, 5] {
        let records = served.partition(partition).await;
        let got: Vec<_> = records.iter().map(|record| (record.offset, record.payload.to_vec())).collect();
        assert_eq!(got, captured(partition), "partition {partition}");
    }
    let capture = capture();
    let rows = rows(&capture["keys"]);
    for (thread_id, name) in threads() {
        let expected: Vec<_> = expected(&rows, &name)
            .into_iter()
            .map(|record| (record.sequence, record.offset.map_or(0, |at| at.get()), record.payload))
            .collect();
        let records = served.thread(&thread_id).await;
        let got: Vec<_> = records.into_iter().map(|r| (r.sequence, r.offset, r.payload)).collect();
        assert!(!got.is_empty());
        assert_eq!(got, expected, "{thread_id}");
    }
    let (_, metrics) = served.service.get("/metrics").await.expect("an answer");
    assert!(metrics.contains("dashstream_replay_legacy_reads_total"), "each use is counted");
    assert!(served.service.log_text().contains("legacy"), "and logged");
    drop(served.redis);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_new_log_follows_the_old_one_and_what_lies_between_is_a_declared_gap() {
    let mut served = Served::start().await;
    // The new log begins at 0 here, where the old one has records too: only what is older is taken from it.
    let mut writer = Writer::new(&served.service.address(), "t8", 3);
    writer.write_until(40).await;
    writer.assert_stored(40).await;
    // A partition whose log is open and empty still shows the old one.
    let mut writer = Writer::new(&served.service.address(), "t8", 5);
    writer.write_until(0).await;
    let records = served.partition(5).await;
    let payloads: Vec<_> = records.iter().map(|record| record.payload.to_vec()).collect();
    assert_eq!(payloads, captured(5).into_iter().map(|(_, payload)| payload).collect::<Vec<_>>());
    assert!(
        records
            .iter()
            .all(|record| record.gap.as_ref().is_none_or(|gap| gap.reason() == GapReason::StoreLost))
    );
}

//! What a writer tells and is told when it opens a partition, and the times that batches carry. From both stores.
use dashstream_core::{
    batch::{self, Packer},
    position::{Epoch, Offset, Partition},
};
use dashstream_kit::grpc::channel_to;
use dashstream_proto::{
    log::v1::{AfterOffset, Batch, Cursor, Earliest, Gap, GapReason, Position, position},
    replay::v1::{
        AppendRequest, LastRecord, OpenPartitionRequest, OpenPartitionResponse, ReadPartitionsRequest,
        RefusalReason, append_response::Outcome, read_partitions_response::Step,
        replay_service_client::ReplayServiceClient,
    },
};
use dashstream_tests::{
    Kind, Redis, Service, Writer, eventually,
    writer::{batch_after, payload},
};
use sha2::{Digest, Sha256};
use std::time::{Duration, SystemTime};
use tonic::{Code, transport::Channel};

/// A replay service, and a client of it that speaks of partition 0 of one stream.
pub(super) struct Store {
    kind: &'static str,
    pub(super) client: ReplayServiceClient<Channel>,
    redis: Option<Redis>,
    pub(super) service: Service,
}

impl Store {
    pub(super) async fn start(kind: &'static str, settings: &[(&str, &str)]) -> Self {
        let redis = if kind == "redis" { Some(Redis::start(&[]).await) } else { None };
        let url = redis.as_ref().map_or_else(String::new, Redis::url);
        let mut all = vec![("REPLAY_STORE", kind)];
        all.extend(redis.iter().map(|_| ("REDIS_URL", url.as_str())));
        all.extend(settings);
        let service = Service::start(Kind::Replay, &all);
        service.ready().await;
        let client = ReplayServiceClient::new(channel_to(&service.address()).expect("an address"));
        Self { kind, client, redis, service }
    }

    pub(super) async fn open(&self, request: OpenPartitionRequest) -> OpenPartitionResponse {
        let request = OpenPartitionRequest { stream: "runs".into(), ..request };
        self.client.clone().open_partition(request).await.expect("an answer").into_inner()
    }

    pub(super) async fn append(&self, batch: Batch) -> Outcome {
        let request = AppendRequest { stream: "runs".into(), batch: Some(batch) };
        let answers = self.client.clone().append(tokio_stream::once(request)).await.expect("an answer");
        let answer = answers.into_inner().message().await.expect("an answer").expect("one for each request");
        answer.outcome.expect("an outcome")
    }

    pub(super) async fn read(&self, from: position::From) -> Vec<Step> {
        let position = Position { partition: 0, from: Some(from) };
        let request = ReadPartitionsRequest {
            stream: "runs".into(),
            positions: vec![position],
            page_bytes_max: 0,
            pages_max: 0,
            page_records_max: 0,
        };
        let mut answers = self.client.clone().read_partitions(request).await.expect("an answer").into_inner();
        let mut steps = Vec::new();
        while let Some(answer) = answers.message().await.expect("an answer") {
            steps.extend(answer.step);
        }
        steps
    }

    /// The Redis of a store that has one.
    pub(super) fn redis(&self) -> &Redis {
        self.redis.as_ref().expect("it was started with one")
    }

    /// A writer of this partition, or of another.
    pub(super) fn writer(&self, partition: i32) -> Writer {
        Writer::new(&self.service.address(), "runs", partition)
    }

    /// The only batch behind a position.
    async fn one_batch(&self, from: position::From) -> Batch {
        let steps = self.read(from).await;
        let [Step::Page(page)] = &steps[..] else { panic!("{}: {steps:?}", self.kind) };
        let [batch] = &page.batches[..] else { panic!("{}: {page:?}", self.kind) };
        batch.clone()
    }
}

/// The records behind `after` and before `end`, of which there are at most 16.
pub(super) fn records(epoch: u64, after: Option<u64>, end: u64) -> Batch {
    let partition = Partition::new(0).expect("in range");
    batch_after(Epoch::new(epoch), partition, after.map(Offset::clamped), end).expect("at least one")
}

pub(super) fn after(epoch: u64, offset: Option<u64>) -> position::From {
    position::From::After(AfterOffset { epoch, offset })
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("in range")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_tells_the_last_record_held_unless_it_is_a_gap() {
    for kind in ["redis", "memory"] {
        let store = Store::start(kind, &[]).await;
        let opened = store.open(OpenPartitionRequest::default()).await;
        assert_eq!(opened.last_record, None, "{kind}: nothing is held");
        let epoch = opened.epoch;
        for end in [3, 5] {
            let after = (end == 5).then_some(2);
            let outcome = store.append(records(epoch, after, end)).await;
            assert!(matches!(outcome, Outcome::Stored(_)), "{kind}: {outcome:?}");
            let opened = store.open(OpenPartitionRequest::default()).await;
            let last = LastRecord {
                timestamp_ms: Some(end as i64 - 1),
                payload_sha256: Sha256::digest(payload(end - 1)).to_vec(),
            };
            assert_eq!((opened.last_offset, opened.last_record), (Some(end - 1), Some(last)), "{kind}");
        }
        let partition = Partition::new(0).expect("in range");
        let mut packer = Packer::new(Epoch::new(epoch), partition, Some(Offset::clamped(4)));
        assert!(packer.push_gap(Offset::clamped(5), Offset::clamped(8), GapReason::SourceRetention));
        store.append(packer.finish().expect("a gap")).await;
        let opened = store.open(OpenPartitionRequest::default()).await;
        assert_eq!((opened.last_offset, opened.last_record), (Some(8), None), "{kind}: a gap has no bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ends_with_another_record_than_the_source_has_gives_way_to_a_new_epoch() {
    for kind in ["redis", "memory"] {
        let store = Store::start(kind, &[]).await;
        let epoch = store.open(OpenPartitionRequest::default()).await.epoch;
        store.append(records(epoch, None, 10)).await;
        let doubt = |said, offset| {
            let diverged = Some(Cursor { epoch: said, partition: 0, offset });
            OpenPartitionRequest { known_epoch: Some(epoch), diverged, ..Default::default() }
        };
        for (why, epoch_said, offset) in [
            ("not the last record", epoch, Some(8)),
            ("beyond the last record", epoch, Some(10)),
            ("no record", epoch, None),
            ("another epoch", epoch + 1, Some(9)),
        ] {
            let opened = store.open(doubt(epoch_said, offset)).await;
            let same = (opened.epoch, opened.last_offset, opened.opened_new_epoch);
            assert_eq!(same, (epoch, Some(9), false), "{kind}: {why}");
        }

        let opened = store.open(doubt(epoch, Some(9))).await;
        assert!(opened.epoch > epoch && opened.opened_new_epoch, "{kind}: {opened:?}");
        assert_eq!((opened.last_offset, opened.last_record), (None, None), "{kind}");
        let again = store.open(doubt(epoch, Some(9))).await;
        assert_eq!(
            (again.epoch, again.opened_new_epoch),
            (opened.epoch, false),
            "{kind}: said twice, done once"
        );
        let steps = store.read(after(epoch, Some(3))).await;
        assert!(matches!(&steps[..], [Step::Stale(_)]), "{kind}: {steps:?}");
        let outcome = store.append(records(opened.epoch, None, 10)).await;
        assert!(matches!(outcome, Outcome::Stored(_)), "{kind}: {outcome:?}");

        let elsewhere = OpenPartitionRequest {
            stream: "runs".into(),
            diverged: Some(Cursor { epoch, partition: 1, offset: Some(9) }),
            ..Default::default()
        };
        let status = store.client.clone().open_partition(elsewhere).await.expect_err("another partition");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("diverged.partition is 1"), "{}", status.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_missed_the_opening_of_an_epoch_takes_it_from_the_writer() {
    for kind in ["redis", "memory"] {
        let store = Store::start(kind, &[]).await;
        let epoch = store.open(OpenPartitionRequest::default()).await.epoch;
        store.append(records(epoch, None, 10)).await;
        let known = |epoch| OpenPartitionRequest { known_epoch: Some(epoch), ..Default::default() };
        let opened = store.open(known(epoch - 1)).await;
        assert_eq!(
            (opened.epoch, opened.last_offset),
            (epoch, Some(9)),
            "{kind}: an earlier one is nothing new"
        );
        let opened = store.open(known(epoch + 5)).await;
        assert_eq!(
            (opened.epoch, opened.last_offset),
            (epoch + 5, None),
            "{kind}: what it held is of another life"
        );
        let steps = store.read(after(epoch, Some(3))).await;
        assert!(matches!(&steps[..], [Step::Stale(_)]), "{kind}: {steps:?}");
        let outcome = store.append(records(epoch, Some(9), 12)).await;
        assert!(matches!(outcome, Outcome::Refused(_)), "{kind}: {outcome:?}");

        let request = OpenPartitionRequest { stream: "runs".into(), ..known(1 << 63) };
        let status = store.client.clone().open_partition(request).await.expect_err("no epoch is later");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("known_epoch is 9223372036854775808"), "{}", status.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_retention_emptied_goes_on_behind_its_last_offset() {
    const EPOCH: u64 = 77;
    for kind in ["redis", "memory"] {
        let store = Store::start(kind, &[]).await;
        let expired = |known_epoch, at| OpenPartitionRequest {
            known_epoch,
            expired_last_offset: Some(at),
            ..Default::default()
        };
        let opened = store.open(expired(Some(EPOCH), 41)).await;
        let told = (opened.epoch, opened.last_offset, opened.last_record, opened.opened_new_epoch);
        assert_eq!(told, (EPOCH, Some(41), None, false), "{kind}");

        let steps = store.read(after(EPOCH, Some(41))).await;
        let [Step::Page(page)] = &steps[..] else { panic!("{kind}: {steps:?}") };
        assert!(page.at_end && page.batches.is_empty() && page.last_offset == Some(41), "{kind}: {page:?}");
        for (at, first_offset) in [(None, 0), (Some(20), 21), (Some(40), 41)] {
            let steps = store.read(after(EPOCH, at)).await;
            let [Step::Gap(gap), Step::Page(page)] = &steps[..] else { panic!("{kind}: {steps:?}") };
            let reason = GapReason::Retention.into();
            let lost = Gap { epoch: EPOCH, partition: 0, first_offset, last_offset: 41, reason };
            assert_eq!((*gap, page.at_end), (lost, true), "{kind}");
        }
        for (why, request) in [
            ("it holds that now", expired(Some(EPOCH), 60)),
            ("another epoch", expired(Some(EPOCH - 1), 60)),
            ("no epoch", expired(None, 60)),
        ] {
            let opened = store.open(request).await;
            assert_eq!((opened.epoch, opened.last_offset), (EPOCH, Some(41)), "{kind}: {why}");
        }

        let Outcome::Refused(refused) = store.append(records(EPOCH, Some(45), 48)).await else {
            panic!("{kind}: it leaves a hole")
        };
        assert_eq!((refused.reason(), refused.last_offset), (RefusalReason::Link, Some(41)), "{kind}");
        let outcome = store.append(records(EPOCH, Some(41), 44)).await;
        assert!(matches!(outcome, Outcome::Stored(_)), "{kind}: {outcome:?}");
        assert_eq!(store.one_batch(after(EPOCH, Some(41))).await.first_offset, 42, "{kind}");
        assert_eq!(store.one_batch(position::From::Earliest(Earliest {})).await.first_offset, 42, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_without_records_expires_as_everything_does() {
    for kind in ["redis", "memory"] {
        let store = Store::start(kind, &[("REPLAY_RETENTION", "2s")]).await;
        let request =
            OpenPartitionRequest { known_epoch: Some(7), expired_last_offset: Some(9), ..Default::default() };
        assert_eq!(store.open(request).await.last_offset, Some(9), "{kind}");
        eventually("nothing is known of the partition", Duration::from_secs(10), async || {
            match &store.read(after(7, Some(9))).await[..] {
                [Step::Stale(_)] => Ok(()),
                steps => Err(format!("{kind}: {steps:?}")),
            }
        })
        .await;
        let Some(redis) = &store.redis else { continue };
        eventually("Redis is empty", Duration::from_secs(10), async || {
            let mut connection = redis.connection().await;
            let size: u64 = redis::cmd("DBSIZE").query_async(&mut connection).await.expect("redis answers");
            if size == 0 { Ok(()) } else { Err(format!("{size} keys are left")) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_says_when_it_was_packed_and_when_it_was_stored() {
    for kind in ["redis", "memory"] {
        let store = Store::start(kind, &[]).await;
        let epoch = store.open(OpenPartitionRequest::default()).await.epoch;
        let began = now_ms();
        // What a writer says of the time it is stored is not believed.
        let batch = Batch { ingested_ms: Some(1_234), stored_ms: Some(1), ..records(epoch, None, 10) };
        let Outcome::Stored(stored) = store.append(batch.clone()).await else { panic!("{kind}: new") };
        let stored_ms = stored.stored_ms.expect("a time");
        assert!((began..=now_ms()).contains(&stored_ms), "{kind}: {stored_ms}, not since {began}");
        let read = store.one_batch(position::From::Earliest(Earliest {})).await;
        assert_eq!((read.ingested_ms, read.stored_ms), (Some(1_234), Some(stored_ms)), "{kind}");
        let rest = store.one_batch(after(epoch, Some(6))).await;
        let told = (rest.first_offset, rest.ingested_ms, rest.stored_ms);
        assert_eq!(told, (7, Some(1_234), Some(stored_ms)), "{kind}: a part of it");

        // The same records, packed at another time, are the same.
        let again = Batch { ingested_ms: Some(9_999), ..batch };
        let Outcome::Stored(held) = store.append(again).await else { panic!("{kind}: a duplicate") };
        assert_eq!((held.duplicate, held.stored_ms), (true, None), "{kind}");
        let more = Batch { ingested_ms: Some(5_678), ..records(epoch, Some(7), 14) };
        let Outcome::Stored(part) = store.append(more).await else { panic!("{kind}: new in part") };
        assert!(!part.duplicate && part.stored_ms >= Some(stored_ms), "{kind}: {part:?}");
        let read = store.one_batch(after(epoch, Some(9))).await;
        let told = (read.first_offset, read.ingested_ms, read.stored_ms);
        assert_eq!(told, (10, Some(5_678), part.stored_ms), "{kind}");
        let all = batch::records(&read).map(|record| record.expect("a record").offset);
        assert_eq!(all.collect::<Vec<_>>(), [10, 11, 12, 13]);
    }
}

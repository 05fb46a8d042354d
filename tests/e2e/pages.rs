//! A page takes no longer than it may, however much there is and however slow Redis is.
use dashstream_core::{
    batch::{self, Envelope, Packer},
    codec::Facts,
    position::{Epoch, Link, Offset, Partition},
};
use dashstream_kit::grpc::channel_to;
use dashstream_proto::{
    log::v1::{Batch, Earliest, Position, RecordKind, RunFacts, position},
    replay::v1::{
        ReadPartitionsRequest, ReadThreadRequest, read_partitions_response::Step,
        replay_service_client::ReplayServiceClient,
    },
};
use dashstream_replay::{
    config::Retention,
    connection::Connections,
    filling::{Bounds, FETCH_BYTES},
    keys::Stream,
    redis_store::RedisStore,
    store::{Appended, From, Open, Page, Store},
};
use dashstream_tests::{Kind, Proxy, Redis, Service, redis_fleet::settings};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::time::Duration;
use tonic::transport::Channel;

const BATCHES: u64 = 48;
const PAYLOAD_BYTES: usize = 128 << 10;
/// One fetch takes longer than that behind the slow link, and far less without it.
const PAGE_TIME_MAX: Duration = Duration::from_millis(100);
const DELAY: Duration = Duration::from_millis(10);

fn partition() -> Partition {
    Partition::new(0).expect("in range")
}

/// A batch of one record that does not compress.
fn large(epoch: Epoch, at: u64, link: Link, rng: &mut StdRng) -> Batch {
    let facts = Facts {
        kind: RecordKind::Event,
        tenant_id: String::new(),
        thread_id: "long".into(),
        sequence: Some(at + 1),
        more_threads: Vec::new(),
        run: RunFacts::default(),
        produced_us: None,
    };
    let (traceparent, tracestate) = (String::new(), String::new());
    let offset = Offset::clamped(at);
    let envelope = Envelope { offset, timestamp_ms: None, facts, traceparent, tracestate };
    let mut payload = vec![0; PAYLOAD_BYTES];
    rng.fill(&mut payload[..]);
    let mut packer = Packer::new(epoch, partition(), link);
    assert!(packer.push(envelope, &payload));
    packer.finish().expect("a record")
}

/// A store with one partition of large batches, all of one thread.
async fn filled(redis: &Redis) -> (RedisStore, Stream) {
    let retention = Retention { age: Duration::from_secs(600), records_max: 1 << 20, bytes_max: 1 << 30 };
    let store =
        RedisStore::new(Connections::new(&settings(&redis.url())).expect("settings"), retention, None);
    let stream = Stream::new("runs").expect("a name");
    let epoch = store.open(&stream, Open::new(partition(), Epoch::new(7))).await.expect("redis").epoch;
    let (mut rng, mut link) = (StdRng::seed_from_u64(3), None);
    for at in 0..BATCHES {
        let outcome = store.append(&stream, &[large(epoch, at, link, &mut rng)]).await.expect("redis");
        assert!(matches!(outcome[..], [Appended::Stored { .. }]), "{outcome:?}");
        link = Some(Offset::clamped(at));
    }
    (store, stream)
}

/// A replay service that reaches this Redis through a slow link.
async fn slow(redis: &Redis) -> (Service, Proxy, ReplayServiceClient<Channel>) {
    let link = Proxy::to(&redis.address());
    let time = format!("{}ms", PAGE_TIME_MAX.as_millis());
    let service = Service::start(
        Kind::Replay,
        &[
            ("REDIS_URL", &format!("redis://{}", link.address())),
            ("REPLAY_STORE", "redis"),
            ("REPLAY_PAGE_BYTES_MAX", "64MiB"),
            ("REPLAY_PAGE_TIME_MAX", &time),
        ],
    );
    service.ready().await;
    link.slow(DELAY);
    let client = ReplayServiceClient::new(channel_to(&service.address()).expect("an address"));
    let client = client.max_decoding_message_size(64 << 20);
    (service, link, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_partition_ends_when_its_time_is_up_and_the_reader_asks_on() {
    let redis = Redis::start(&[]).await;
    let (store, stream) = filled(&redis).await;
    let all = Bounds::of_bytes(64 << 20);
    for (time, least) in [(Duration::from_secs(600), BATCHES as usize), (Duration::ZERO, 1)] {
        let page = store.read(&stream, partition(), From::Earliest, Bounds { time, ..all }).await;
        let Page::Batches { batches, at_end, gap: None, .. } = page.expect("redis") else { panic!("a page") };
        let one_fetch = FETCH_BYTES as usize / PAYLOAD_BYTES;
        assert_eq!(at_end, batches.len() == BATCHES as usize, "{time:?}");
        assert!(batches.len() >= least, "{time:?}: {}", batches.len());
        assert!(at_end || batches.len() <= one_fetch, "{time:?}: {}", batches.len());
    }

    let (_service, _link, mut client) = slow(&redis).await;
    let position = Position { partition: 0, from: Some(position::From::Earliest(Earliest {})) };
    let request = ReadPartitionsRequest {
        stream: "runs".into(),
        positions: vec![position],
        page_bytes_max: 0,
        pages_max: 0,
        page_records_max: 0,
    };
    let mut steps = client.read_partitions(request).await.expect("an answer").into_inner();
    let (mut pages, mut next) = (Vec::new(), 0);
    while let Some(step) = steps.message().await.expect("an answer") {
        let Some(Step::Page(page)) = step.step else { panic!("expected a page: {step:?}") };
        for record in page.batches.iter().flat_map(batch::records) {
            assert_eq!(record.expect("a record").offset, next);
            next += 1;
        }
        pages.push(page.at_end);
    }
    assert_eq!(next, BATCHES);
    assert!(pages.len() >= 6, "each page is one fetch: {pages:?}");
    assert_eq!(pages.iter().position(|at_end| *at_end), Some(pages.len() - 1), "{pages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_thread_ends_when_its_time_is_up_and_the_reader_gets_all_the_same() {
    let redis = Redis::start(&[]).await;
    filled(&redis).await;
    let (_service, _link, mut client) = slow(&redis).await;
    let request = ReadThreadRequest { stream: "runs".into(), thread_id: "long".into(), ..Default::default() };
    let mut answers = client.read_thread(request).await.expect("an answer").into_inner();
    let (mut pages, mut next) = (Vec::new(), 0);
    while let Some(answer) = answers.message().await.expect("an answer") {
        assert_eq!(answer.gap, None);
        for record in answer.records {
            assert_eq!((record.offset, record.payload.len()), (next, PAYLOAD_BYTES));
            next += 1;
        }
        pages.push(answer.at_end);
    }
    assert_eq!(next, BATCHES);
    assert!(pages.len() >= 3, "each page is one fetch of sixteen batches: {pages:?}");
    assert_eq!(pages.iter().position(|at_end| *at_end), Some(pages.len() - 1), "{pages:?}");
}

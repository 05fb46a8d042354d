//! The two stores do the same, whatever is asked of them.
use dashstream_core::{
    batch::{Envelope, Packer},
    codec::Facts,
    position::{Epoch, Link, NextOffset, Offset, Partition},
};
use dashstream_proto::log::v1::{Batch, RecordKind};
use dashstream_replay::{
    config::Retention,
    keys::Stream,
    memory_store::MemoryStore,
    redis_store::RedisStore,
    store::{Appended, From, Open, Page, Store},
};
use dashstream_tests::{Redis, Stop};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::time::Duration;

const RETENTION: Retention = Retention { age: Duration::from_secs(600), records_max: 60, bytes_max: 6_000 };

fn offset(value: u64) -> Offset {
    Offset::new(value).expect("in range")
}

/// A batch of `count` records that follow `link` in steps of `step`.
fn batch(epoch: Epoch, link: Link, count: u64, step: u64) -> Batch {
    let partition = Partition::new(3).expect("in range");
    let mut packer = Packer::new(epoch, partition, link);
    for _ in 0..count {
        let at = packer.link().map_or(0, |at| at.get() + step);
        let facts = Facts {
            kind: RecordKind::Event,
            tenant_id: String::new(),
            thread_id: "t".into(),
            sequence: Some(at + 1),
            more_threads: Vec::new(),
        };
        let (traceparent, tracestate) = (String::new(), String::new());
        let envelope = Envelope { offset: offset(at), timestamp_ms: None, facts, traceparent, tracestate };
        assert!(packer.push(envelope, &at.to_be_bytes()));
    }
    packer.finish().expect("at least one record")
}

fn open(known_epoch: Option<Epoch>, high_watermark: Option<u64>, mint: u64) -> Open {
    let high_watermark = high_watermark.map(|mark| NextOffset::after(mark.checked_sub(1).map(offset)));
    Open {
        partition: Partition::new(3).expect("in range"),
        known_epoch,
        high_watermark,
        mint: Epoch::new(mint),
    }
}

/// What both answer, or a panic that says where they differ.
struct Both {
    memory: MemoryStore,
    redis: RedisStore,
    stream: Stream,
}

impl Both {
    async fn new(redis: &Redis) -> Self {
        let timeout = Duration::from_secs(5);
        Self {
            memory: MemoryStore::new(RETENTION),
            redis: RedisStore::new(&redis.url(), timeout, RETENTION).expect("a url"),
            stream: Stream::new("model").expect("a name"),
        }
    }

    async fn open(&self, open: Open) -> (Epoch, Link) {
        let memory = self.memory.open(&self.stream, open).await.expect("memory");
        let redis = self.redis.open(&self.stream, open).await.expect("redis");
        assert_eq!(memory, redis, "{open:?}");
        (redis.epoch, redis.held)
    }

    async fn append(&self, batches: &[Batch]) -> Vec<Appended> {
        let memory = self.memory.append(&self.stream, batches).await.expect("memory");
        let redis = self.redis.append(&self.stream, batches).await.expect("redis");
        assert_eq!(memory, redis);
        redis
    }

    async fn read(&self, from: From, bytes: u64) -> Page {
        let partition = Partition::new(3).expect("in range");
        let memory = self.memory.read(&self.stream, partition, from, bytes).await.expect("memory");
        let redis = self.redis.read(&self.stream, partition, from, bytes).await.expect("redis");
        assert_eq!(memory, redis, "{from:?}, {bytes} bytes");
        redis
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_and_redis_answer_the_same_to_thousands_of_random_operations() {
    let redis = Redis::start(&[]).await;
    for seed in 0..8 {
        let mut connection = redis.connection().await;
        redis::cmd("FLUSHALL").exec_async(&mut connection).await.expect("redis answers");
        let both = Both::new(&redis).await;
        let mut rng = StdRng::seed_from_u64(seed);
        let mut mint = 1_000;
        let (mut epoch, mut held) = both.open(open(None, None, mint)).await;
        let mut last: Option<Batch> = None;
        for _ in 0..400 {
            mint += 1;
            match rng.random_range(0..12) {
                0 => (epoch, held) = both.open(open(Some(epoch), None, mint)).await,
                1 => {
                    // the source's end is where it should be, or the topic was made anew
                    let mark = held.map_or(0, |held| held.get() + 1);
                    let mark = if rng.random_ratio(1, 8) { mark / 2 } else { mark };
                    (epoch, held) = both.open(open(Some(epoch), Some(mark), mint)).await;
                }
                2 => {
                    // behind, ahead, of another epoch
                    let link = held
                        .map(|held| offset(held.get() + rng.random_range(0..3) - 1))
                        .filter(|_| held > Some(offset(0)));
                    let other = Epoch::new(epoch.get() + rng.random_range(0..2));
                    for appended in both.append(&[batch(other, link, rng.random_range(1..4), 1)]).await {
                        if let Appended::Stored { last } = appended {
                            held = Some(last)
                        }
                    }
                }
                3 => {
                    if let Some(last) = &last {
                        both.append(std::slice::from_ref(last)).await;
                    }
                }
                4..8 => {
                    // several at once, as they should be
                    let mut batches = Vec::new();
                    let mut link = held;
                    for _ in 0..rng.random_range(1..5) {
                        let next = batch(epoch, link, rng.random_range(1..9), rng.random_range(1..4));
                        link = Some(offset(next.last_offset));
                        batches.push(next);
                    }
                    let outcomes = both.append(&batches).await;
                    assert!(
                        outcomes.iter().all(|outcome| matches!(outcome, Appended::Stored { .. })),
                        "{outcomes:?}"
                    );
                    (held, last) = (link, batches.pop());
                }
                _ => {
                    both.read(somewhere(&mut rng, epoch, held), rng.random_range(1..2_000)).await;
                }
            }
        }
    }
}

/// A position at, before or beyond the end, or of another epoch.
fn somewhere(rng: &mut StdRng, epoch: Epoch, held: Link) -> From {
    let back = rng.random_range(0..40);
    let at = held.and_then(|held| held.get().checked_sub(back)).map(offset);
    match rng.random_range(0..8) {
        0 => From::Earliest,
        1 => From::Latest,
        2 => From::After { epoch: Epoch::new(epoch.get() - 1), at },
        3 => From::After { epoch, at: held.map(|held| offset(held.get() + 1)) },
        _ => From::After { epoch, at },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_greatest_offsets_are_exact() {
    let redis = Redis::start(&[]).await;
    let both = Both::new(&redis).await;
    let (epoch, _) = both.open(open(None, None, u64::MAX >> 1)).await;
    let mut link = None;
    for at in [(1 << 53) - 1, 1 << 53, (1 << 53) + 1, i64::MAX as u64 - 1, i64::MAX as u64] {
        let mut packer = Packer::new(epoch, Partition::new(3).expect("in range"), link);
        let facts = Facts {
            kind: RecordKind::Event,
            tenant_id: String::new(),
            thread_id: String::new(),
            sequence: Some(at),
            more_threads: Vec::new(),
        };
        let (traceparent, tracestate) = (String::new(), String::new());
        assert!(
            packer.push(
                Envelope { offset: offset(at), timestamp_ms: None, facts, traceparent, tracestate },
                b"x"
            )
        );
        let outcome = both.append(&[packer.finish().expect("a record")]).await;
        assert_eq!(outcome, [Appended::Stored { last: offset(at) }]);
        let Page::Batches { batches, at_end, .. } = both.read(From::After { epoch, at: link }, 1_000).await
        else {
            panic!("no page behind {link:?}")
        };
        assert_eq!((batches.len(), batches[0].last_offset, at_end), (1, at, true));
        link = Some(offset(at));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_lost_its_scripts_and_data_refuses_instead_of_leaving_a_hole() {
    let redis = Redis::start(&[]).await;
    let both = Both::new(&redis).await;
    let (epoch, _) = both.open(open(None, None, 5)).await;
    both.append(&[batch(epoch, None, 3, 1)]).await;
    redis.restart(Stop::Kill).await;
    let next = batch(epoch, Some(offset(2)), 2, 1);
    let outcome = dashstream_tests::eventually("redis answers again", Duration::from_secs(10), async || {
        both.redis.append(&both.stream, std::slice::from_ref(&next)).await.map_err(|error| error.to_string())
    })
    .await;
    assert_eq!(outcome, [Appended::Epoch { epoch: None, held: None }]);
    let reopened = both.redis.open(&both.stream, open(Some(epoch), None, 9)).await.expect("redis");
    assert_eq!((reopened.epoch, reopened.held), (epoch, None), "the epoch survives what it names");
    let outcome = both.redis.append(&both.stream, &[next]).await.expect("redis");
    assert_eq!(outcome, [Appended::Link { epoch, held: None }]);
}

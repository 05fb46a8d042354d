//! The two stores do the same, whatever is asked of them.
use dashstream_core::{
    batch::{Envelope, Packer},
    codec::Facts,
    position::{Epoch, Link, NextOffset, Offset, Partition},
};
use dashstream_proto::log::v1::{Batch, RecordKind, RunFacts, RunStatus};
use dashstream_replay::{
    config::Retention,
    connection::Connections,
    filling::Bounds,
    keys::Stream,
    keys::ThreadName,
    memory_store::MemoryStore,
    redis_store::RedisStore,
    store::{Appended, From, ListPlace, Open, Page, Store},
    threads::After,
};
use dashstream_tests::{Redis, Stop, redis_fleet::settings};
use futures_util::FutureExt;
use proptest::{
    prelude::{ProptestConfig, any},
    test_runner::{TestCaseError, TestRunner},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{panic::AssertUnwindSafe, time::Duration};

/// More than any thread has here.
const MANY: Bounds = Bounds::of_records(1_000);
const RETENTION: Retention = Retention { age: Duration::from_secs(600), records_max: 60, bytes_max: 6_000 };

fn partition() -> Partition {
    Partition::new(3).expect("in range")
}

fn offset(value: u64) -> Offset {
    Offset::new(value).expect("in range")
}

fn redis_store(url: &str) -> RedisStore {
    RedisStore::new(Connections::new(&settings(url)).expect("settings"), RETENTION, None)
}

/// What a record says of its run, so that every fact changes now and then.
fn run_facts(at: u64) -> RunFacts {
    RunFacts {
        status: [RunStatus::Unspecified, RunStatus::Running, RunStatus::Failed][at as usize % 3].into(),
        graph_name: if at.is_multiple_of(5) { format!("graph {}", at % 2) } else { String::new() },
        errors: u32::from(at.is_multiple_of(4)),
        tokens: at % 7,
        cost: if at.is_multiple_of(3) { 0.25 } else { 0.0 },
        whole_state: at.is_multiple_of(11),
    }
}

const THREADS: [&str; 4] = ["plain", "with:colons", "b64_looks", "gr\u{f6}\u{df}e"];

/// A batch of `count` records that follow `link` in steps of `step`.
fn batch(epoch: Epoch, link: Link, count: u64, step: u64) -> Batch {
    let partition = partition();
    let mut packer = Packer::new(epoch, partition, link);
    for _ in 0..count {
        let at = packer.link().map_or(0, |at| at.get() + step);
        let facts = Facts {
            kind: RecordKind::Event,
            tenant_id: "acme".into(),
            thread_id: THREADS[at as usize % THREADS.len()].into(),
            sequence: Some(at + 1),
            more_threads: if at.is_multiple_of(6) { vec![("another".into(), Some(at))] } else { Vec::new() },
            run: run_facts(at),
            produced_us: None,
        };
        let (traceparent, tracestate) = (String::new(), String::new());
        // Times go back now and then.
        let timestamp_ms = Some(1_000 + at as i64 * 10 - (at % 4) as i64 * 25);
        let envelope = Envelope { offset: offset(at), timestamp_ms, facts, traceparent, tracestate };
        assert!(packer.push(envelope, &at.to_be_bytes()));
    }
    packer.finish().expect("at least one record")
}

fn open(known_epoch: Option<Epoch>, high_watermark: Option<u64>, mint: u64) -> Open {
    let high_watermark = high_watermark.map(|mark| NextOffset::after(mark.checked_sub(1).map(offset)));
    Open { known_epoch, high_watermark, ..Open::new(partition(), Epoch::new(mint)) }
}

/// What both answer, or a panic that says where they differ.
struct Both {
    memory: MemoryStore,
    redis: RedisStore,
    stream: Stream,
}

impl Both {
    async fn new(redis: &Redis) -> Self {
        Self {
            memory: MemoryStore::new(RETENTION),
            redis: redis_store(&redis.url()),
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
        // Each has stored it by its own clock.
        let timeless = |mut appended: Appended| {
            if let Appended::Stored { stored_ms, .. } = &mut appended {
                assert!(*stored_ms > 0, "it has no time");
                *stored_ms = 0;
            }
            appended
        };
        let redis: Vec<_> = redis.into_iter().map(timeless).collect();
        assert_eq!(memory.into_iter().map(timeless).collect::<Vec<_>>(), redis);
        redis
    }

    /// Lets all that is kept expire.
    async fn expire(&self, epoch: Epoch, held: Link) {
        let moment = Some(Retention { age: Duration::from_millis(1), ..RETENTION });
        self.set_retention(moment).await;
        // The age holds from the next append to each key: this batch concerns every thread.
        let last_words = batch(epoch, held, 12, 1);
        self.redis.append(&self.stream, &[last_words]).await.expect("redis");
        dashstream_tests::eventually("everything expires", Duration::from_secs(5), async || {
            let memory = self.memory.describe_partition(&self.stream, partition()).await.expect("memory");
            let redis = self.redis.describe_partition(&self.stream, partition()).await.expect("redis");
            if (memory, redis) == (None, None) { Ok(()) } else { Err("something is left") }
        })
        .await;
        self.set_retention(None).await;
    }

    async fn set_retention(&self, retention: Option<Retention>) {
        self.memory.set_retention(&self.stream, retention).await.expect("memory");
        self.redis.set_retention(&self.stream, retention).await.expect("redis");
    }

    /// Threads: the list, each one's summary and records, from several places.
    async fn compare_threads(&self, epoch: Epoch, held: Link, rng: &mut StdRng) {
        let partition = partition();
        let memory = self.memory.list_threads(&self.stream, partition, None, 10).await.expect("memory");
        let redis = self.redis.list_threads(&self.stream, partition, None, 10).await.expect("redis");
        // The clocks of both differ by moments, so that what was active together may be listed otherwise.
        let names = |listed: &[(ListPlace, _)]| {
            let mut names: Vec<_> = listed.iter().map(|(place, _)| place.name.clone()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&memory), names(&redis));
        for name in THREADS.iter().chain(&["another", "nobody"]) {
            let name = ThreadName::new(name).expect("a name");
            let memory = self.memory.describe_thread(&self.stream, partition, &name).await.expect("memory");
            let redis = self.redis.describe_thread(&self.stream, partition, &name).await.expect("redis");
            assert_eq!(memory, redis);
            let at = held.and_then(|held| held.get().checked_sub(rng.random_range(0..60))).map(offset);
            let after = match rng.random_range(0..3) {
                0 => After::Nothing,
                1 => After::Sequence(at.map_or(0, |at| at.get())),
                _ => After::Offset { epoch, at },
            };
            let bounds =
                Bounds { bytes: rng.random_range(1..400), ..Bounds::of_records(rng.random_range(1..40)) };
            let memory = self.memory.read_thread(&self.stream, partition, &name, after, bounds).await;
            let redis = self.redis.read_thread(&self.stream, partition, &name, after, bounds).await;
            assert_eq!(memory.expect("memory"), redis.expect("redis"), "{name:?} {after:?} {bounds:?}");
        }
        let memory =
            self.memory.describe_partition(&self.stream, partition).await.expect("memory").expect("known");
        let redis =
            self.redis.describe_partition(&self.stream, partition).await.expect("redis").expect("known");
        assert_eq!(
            (memory.epoch, memory.earliest, memory.held, memory.records, memory.bytes, memory.threads),
            (redis.epoch, redis.earliest, redis.held, redis.records, redis.bytes, redis.threads)
        );
    }

    async fn read(&self, from: From, bytes: u64) -> Page {
        let bounds = Bounds::of_bytes(bytes);
        let partition = partition();
        let memory = self.memory.read(&self.stream, partition, from, bounds).await.expect("memory");
        let redis = self.redis.read(&self.stream, partition, from, bounds).await.expect("redis");
        let (memory, redis) = (timeless(memory), timeless(redis));
        assert_eq!(memory, redis, "{from:?}, {bytes} bytes");
        redis
    }
}

/// A page without the times of its batches, of which each store has its own.
fn timeless(mut page: Page) -> Page {
    if let Page::Batches { batches, .. } = &mut page {
        for batch in batches {
            batch.stored_ms.take().expect("each batch says when it was stored");
        }
    }
    page
}

/// Which operation, and what it draws its details from.
type Operation = (u8, u64);

/// One life of both stores under random operations.
struct Run {
    both: Both,
    rng: StdRng,
    mint: u64,
    epoch: Epoch,
    held: Link,
    last: Option<Batch>,
}

impl Run {
    async fn step(&mut self, (operation, seed): Operation) {
        self.rng = StdRng::seed_from_u64(seed);
        self.mint += 1;
        let (epoch, held) = (self.epoch, self.held);
        match operation {
            0 => (self.epoch, self.held) = self.both.open(open(Some(epoch), None, self.mint)).await,
            1 => {
                // the source's end is where it should be, or the topic was made anew
                let mark = held.map_or(0, |held| held.get() + 1);
                let mark = if self.rng.random_ratio(1, 8) { mark / 2 } else { mark };
                // clocks may go back
                let mint = if self.rng.random_ratio(1, 8) { 1 } else { self.mint };
                (self.epoch, self.held) = self.both.open(open(Some(epoch), Some(mark), mint)).await;
            }
            2 => self.append_somewhere().await,
            3 => {
                if let Some(last) = self.last.clone() {
                    self.append(&[last]).await;
                }
            }
            4..8 => self.append_several().await,
            8 => self.both.compare_threads(epoch, held, &mut self.rng).await,
            9 => self.delete_a_thread().await,
            10 => self.change_retention().await,
            11 => self.open_with_a_doubt().await,
            12 => self.expire_and_open().await,
            13 => self.append_again_and_go_on().await,
            _ => {
                let from = somewhere(&mut self.rng, epoch, held);
                self.both.read(from, self.rng.random_range(1..2_000)).await;
            }
        }
    }

    async fn append(&mut self, batches: &[Batch]) {
        for appended in self.both.append(batches).await {
            if let Appended::Stored { last, .. } = appended {
                self.held = Some(last);
            }
        }
    }

    /// Behind, ahead, of another epoch.
    async fn append_somewhere(&mut self) {
        let near = |held: Offset, by: u64| offset(held.get() + by - 1);
        let link =
            self.held.filter(|held| held.get() > 0).map(|held| near(held, self.rng.random_range(0..3)));
        let other = Epoch::new(self.epoch.get() + self.rng.random_range(0..2));
        let batch = batch(other, link, self.rng.random_range(1..4), 1);
        self.append(&[batch]).await;
    }

    /// Several at once, as they should be.
    async fn append_several(&mut self) {
        let mut batches = Vec::new();
        let mut link = self.held;
        for _ in 0..self.rng.random_range(1..5) {
            let next = batch(self.epoch, link, self.rng.random_range(1..9), self.rng.random_range(1..4));
            link = Some(offset(next.last_offset));
            batches.push(next);
        }
        let outcomes = self.both.append(&batches).await;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Appended::Stored { .. })), "{outcomes:?}");
        (self.held, self.last) = (link, batches.pop());
    }

    /// The last batch again with more behind it, and others behind that, in one call.
    async fn append_again_and_go_on(&mut self) {
        let Some(last) = self.last.clone().filter(|last| last.epoch == self.epoch.get()) else { return };
        let step =
            last.last_offset.saturating_sub(last.prev_offset.unwrap_or(0)) / u64::from(last.record_count);
        let more = u64::from(last.record_count) + self.rng.random_range(0..4);
        let again = batch(self.epoch, last.prev_offset.map(offset), more, step.max(1));
        let next = batch(self.epoch, Some(offset(again.last_offset)), self.rng.random_range(1..4), 1);
        self.append(&[again, next]).await;
    }

    async fn delete_a_thread(&mut self) {
        let name = ThreadName::new(THREADS[self.rng.random_range(0..THREADS.len())]).expect("a name");
        let (partition, stream) = (partition(), &self.both.stream);
        let memory = self.both.memory.delete_thread(stream, partition, &name).await.expect("memory");
        let redis = self.both.redis.delete_thread(stream, partition, &name).await.expect("redis");
        assert_eq!(memory, redis);
    }

    async fn change_retention(&mut self) {
        let other = Retention { records_max: self.rng.random_range(20..90), ..RETENTION };
        let retention = self.rng.random_bool(0.7).then_some(other);
        self.both.set_retention(retention).await;
    }

    /// The source has another record at the last offset, or near it, in this epoch or another.
    async fn open_with_a_doubt(&mut self) {
        let back = self.rng.random_range(0..2);
        let at = self.held.and_then(|held| held.get().checked_sub(back)).map(offset);
        let epoch = Epoch::new(self.epoch.get() + u64::from(self.rng.random_ratio(1, 4)));
        let known = if self.rng.random_ratio(1, 8) { epoch } else { self.epoch };
        let doubt = Open {
            diverged: at.map(|at| (epoch, at)),
            expired: self.rng.random_bool(0.5).then(|| offset(self.rng.random_range(0..90))),
            ..open(Some(known), None, self.mint)
        };
        (self.epoch, self.held) = self.both.open(doubt).await;
    }

    async fn expire_and_open(&mut self) {
        let (epoch, held) = (self.epoch, self.held);
        self.both.expire(epoch, held).await;
        self.both.read(From::After { epoch, at: held }, 100).await;
        self.both.append(&[batch(epoch, held, 1, 1)]).await;
        let known = Epoch::new(epoch.get() - u64::from(self.rng.random_ratio(1, 4)));
        let expired = held.filter(|_| self.rng.random_bool(0.7));
        let mark = held.map(|held| held.get() + self.rng.random_range(0..9));
        let again = Open { expired, ..open(Some(known), mark, self.mint) };
        (self.epoch, self.held) = self.both.open(again).await;
        for from in [From::Earliest, From::Latest, From::After { epoch: self.epoch, at: None }] {
            self.both.read(from, 100).await;
        }
    }
}

/// Thousands of operations; of a run that differs, the shortest one that still does is shown.
#[test]
fn memory_and_redis_answer_the_same_to_any_operations() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let redis = runtime.block_on(Redis::start(&[]));
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    let operations = proptest::collection::vec((0_u8..17, any::<u64>()), 1..300);
    let checked = TestRunner::new(config).run(&operations, |operations| {
        let checked = AssertUnwindSafe(runtime.block_on(differences(&redis, operations)));
        checked.0.map_err(TestCaseError::fail)
    });
    checked.unwrap_or_else(|error| panic!("{error}"));
}

/// Runs the operations on both stores; the first difference is the error.
async fn differences(redis: &Redis, operations: Vec<Operation>) -> Result<(), String> {
    let mut connection = redis.connection().await;
    redis::cmd("FLUSHALL").exec_async(&mut connection).await.expect("redis answers");
    let both = Both::new(redis).await;
    let (epoch, held) = both.open(open(None, None, 1_000)).await;
    let mut run = Run { both, rng: StdRng::seed_from_u64(0), mint: 1_000, epoch, held, last: None };
    for operation in operations {
        let step = AssertUnwindSafe(run.step(operation)).catch_unwind().await;
        step.map_err(|panic| match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(_) => "a panic without a text".to_owned(),
        })?;
    }
    Ok(())
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
        4 => From::AtTime(1_000 + at.map_or(0, |at| at.get() as i64 * 10)),
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
        let mut packer = Packer::new(epoch, partition(), link);
        let facts = Facts {
            kind: RecordKind::Event,
            tenant_id: String::new(),
            thread_id: "exact".into(),
            sequence: Some(at),
            more_threads: Vec::new(),
            run: RunFacts::default(),
            produced_us: None,
        };
        let (traceparent, tracestate) = (String::new(), String::new());
        assert!(
            packer.push(
                Envelope { offset: offset(at), timestamp_ms: None, facts, traceparent, tracestate },
                b"x"
            )
        );
        let outcome = both.append(&[packer.finish().expect("a record")]).await;
        assert!(matches!(outcome[..], [Appended::Stored { last, .. }] if last == offset(at)), "{outcome:?}");
        let Page::Batches { batches, at_end, .. } = both.read(From::After { epoch, at: link }, 1_000).await
        else {
            panic!("no page behind {link:?}")
        };
        assert_eq!((batches.len(), batches[0].last_offset, at_end), (1, at, true));
        let (partition, name) = (partition(), ThreadName::new("exact").expect("a name"));
        let after = After::Sequence(at - 1);
        let page = both.redis.read_thread(&both.stream, partition, &name, after, MANY).await.expect("redis");
        let sequences: Vec<_> =
            page.expect("the thread").records.iter().map(|record| record.sequence).collect();
        assert_eq!(sequences, [Some(at)], "a sequence is as exact as an offset");
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

/// Records of one thread, of which only those in `whole` carry the whole state.
fn long_run(epoch: Epoch, link: Link, count: u64, whole: &[u64]) -> Batch {
    let mut packer = Packer::new(epoch, partition(), link);
    for _ in 0..count {
        let at = packer.link().map_or(0, |at| at.get() + 1);
        let facts = Facts {
            kind: RecordKind::StateDiff,
            tenant_id: String::new(),
            thread_id: "long".into(),
            sequence: Some(at + 1),
            more_threads: Vec::new(),
            run: RunFacts { whole_state: whole.contains(&at), ..Default::default() },
            produced_us: None,
        };
        let (traceparent, tracestate) = (String::new(), String::new());
        let envelope = Envelope { offset: offset(at), timestamp_ms: None, facts, traceparent, tracestate };
        assert!(packer.push(envelope, &at.to_be_bytes()));
    }
    packer.finish().expect("at least one record")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_whole_state_of_a_thread_outlives_the_trimming_of_its_log() {
    let redis = Redis::start(&[]).await;
    let both = Both::new(&redis).await;
    let (partition, name) = (partition(), ThreadName::new("long").expect("a name"));
    let (epoch, mut link) = both.open(open(None, None, 5)).await;
    for _ in 0..60 {
        let next = long_run(epoch, link, 10, &[0, 33]);
        link = Some(offset(next.last_offset));
        both.append(&[next]).await;
    }
    // 600 were written, ten times what is kept, and 33 is kept besides: what a reader needs to begin.
    let page = both.redis.read_thread(&both.stream, partition, &name, After::Nothing, MANY).await;
    let page = page.expect("redis").expect("the thread");
    let offsets: Vec<_> = page.records.iter().map(|record| record.offset).collect();
    assert_eq!((page.trimmed, offsets), (true, (540..600).collect::<Vec<_>>()));
    let whole = page.whole_state.expect("a base");
    assert_eq!((whole.offset, &whole.payload[..]), (33, &33_u64.to_be_bytes()[..]));
    // A reader who has 550 has all that it needs.
    let after = After::Offset { epoch, at: Some(offset(550)) };
    let page = both.redis.read_thread(&both.stream, partition, &name, after, MANY).await;
    let page = page.expect("redis").expect("the thread");
    assert_eq!((page.records[0].offset, page.trimmed), (551, false));
}

//! Reads from replay, for sessions and for breaks in a ring. Equal ones are made once, and what they brought is kept
//! for whoever comes next.
use crate::{active, config::Config, flights::Flights, hub::Hub, metrics::Metrics};
use dashstream_core::{
    batch,
    filter::Tenants,
    pages::Pages,
    position::{Epoch, Link, Offset, Partition},
    session::{Found, From},
    slot::{Slot, Stamp},
    tail::{Input, Output},
    v1::{ThreadFound, ThreadFrom, ThreadPart, ThreadWant},
};
use dashstream_kit::{
    Kit,
    grpc::{self as kit_grpc, Channel},
};
use dashstream_proto::{
    log::v1::{AfterOffset, Earliest, Gap, Latest, Position, position},
    replay::v1::{
        DescribeThreadRequest, Page, ReadPartitionsRequest, ReadThreadRequest, ReadThreadResponse, Stale,
        StaleReason, read_partitions_response::Step, read_thread_request,
        replay_service_client::ReplayServiceClient,
    },
};
use futures_util::{FutureExt, StreamExt, stream};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tonic::{Code, Status};

pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How long replay may take for one answer.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Threads whose graphs are asked for at a time, for one session.
const THREADS_AT_ONCE: usize = 8;

/// Bytes of a thread that are read at a time, and what its last answer brings beyond them.
const THREAD_BYTES: usize = 1 << 20;

/// What is asked for: the partition, the place and the bytes of the page.
type Key = (Partition, From, u32);

/// A cheap handle.
#[derive(Clone, Debug)]
pub struct Replay {
    pub(crate) client: ReplayServiceClient<Channel>,
    pub(crate) stream: Arc<str>,
    metrics: Metrics,
    pages: Arc<Mutex<Pages>>,
    flights: Flights<Key, Arc<Vec<Found>>>,
    pub(crate) starts: active::Starts,
}

/// One page of one partition.
#[derive(Debug, Default)]
struct Answer {
    gap: Option<Gap>,
    page: Option<Page>,
    stale: Option<Stale>,
}

impl Replay {
    pub fn new(kit: &Kit, config: &Config, metrics: Metrics) -> Self {
        let client = ReplayServiceClient::new(kit_grpc::channel(kit, &config.replay_targets))
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let pages = Arc::new(Mutex::new(Pages::new(config.pages_bytes as usize)));
        let stream = config.stream.as_str().into();
        Self {
            client,
            stream,
            metrics,
            pages,
            flights: Flights::default(),
            starts: active::Starts::default(),
        }
    }

    /// For other questions: a client, and the stream to ask about.
    pub fn asking(&self) -> (ReplayServiceClient<Channel>, String) {
        (self.client.clone(), self.stream.to_string())
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time passes: a tick is a second.
    pub fn on_tick(&self) {
        let bytes = {
            let mut pages = self.pages();
            pages.on_tick();
            pages.bytes()
        };
        self.metrics.reads.page_bytes.set(bytes as i64);
    }

    /// What replay has behind a session's position, or a reader before it was brought. `tenants` are those of whose
    /// threads a start at the running ones takes account.
    pub async fn find(
        &self,
        hub: &Hub,
        partition: Partition,
        from: From,
        page_bytes: u32,
        tenants: &Tenants,
    ) -> Vec<Found> {
        if let From::After { epoch, at } = from
            && let Some(slots) = self.pages().find(partition, epoch, at)
        {
            self.metrics.reads.shared_pages.inc();
            return vec![Found::Page { epoch, slots, at_end: false, mark: None }];
        }
        if from == From::Active {
            return vec![active::find(self, partition, tenants).await];
        }
        let make = || {
            let (replay, hub) = (self.clone(), hub.clone());
            async move { Arc::new(replay.find_anew(&hub, partition, from, page_bytes).await) }.boxed()
        };
        Arc::unwrap_or_clone(self.flights.join((partition, from, page_bytes), make).await)
    }

    async fn find_anew(&self, hub: &Hub, partition: Partition, from: From, page_bytes: u32) -> Vec<Found> {
        self.metrics.reads.pages.inc();
        match self.read(partition, from, page_bytes).await {
            Ok(answer) => self.keep(partition, found(answer, hub.stamp(partition, true))),
            Err(status) => {
                tracing::warn!(%partition, %status, "read from replay for sessions");
                vec![Found::NotNow]
            }
        }
    }

    fn keep(&self, partition: Partition, found: Vec<Found>) -> Vec<Found> {
        for found in &found {
            if let Found::Page { epoch, slots, .. } = found {
                self.pages().keep(partition, *epoch, slots);
            }
        }
        found
    }

    async fn read(&self, partition: Partition, from: From, page_bytes: u32) -> Result<Answer, Status> {
        self.in_time(self.read_page(partition, from, page_bytes)).await
    }

    /// An answer of replay within its time, counted when there is none.
    pub(crate) async fn in_time<T>(
        &self,
        asking: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let answer = tokio::time::timeout(READ_TIMEOUT, asking).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("replay does not answer")));
        answer.inspect_err(|_| self.metrics.reads.failures.inc())
    }

    async fn read_page(&self, partition: Partition, from: From, page_bytes: u32) -> Result<Answer, Status> {
        let from = match from {
            From::Earliest => position::From::Earliest(Earliest {}),
            From::Latest => position::From::Latest(Latest {}),
            From::Time(time_ms) => position::From::AtTimeMs(time_ms),
            From::Active => return Err(Status::internal("a start at running threads is no position")),
            From::After { epoch, at } => {
                position::From::After(AfterOffset { epoch: epoch.get(), offset: at.map(Offset::get) })
            }
        };
        let request = ReadPartitionsRequest {
            stream: self.stream.to_string(),
            positions: vec![Position { partition: partition.get(), from: Some(from) }],
            page_bytes_max: page_bytes,
            pages_max: 1,
            page_records_max: 0,
        };
        let mut steps = self.client.clone().read_partitions(request).await?.into_inner();
        let mut answer = Answer::default();
        while let Some(step) = steps.message().await? {
            match step.step {
                Some(Step::Gap(gap)) => answer.gap = Some(gap),
                Some(Step::Page(page)) => {
                    for batch in &page.batches {
                        batch::check(batch).map_err(|error| Status::data_loss(error.to_string()))?;
                    }
                    answer.page = Some(page);
                }
                Some(Step::Stale(stale)) => answer.stale = Some(stale),
                None => return Err(Status::internal("a step without a member")),
            }
        }
        Ok(answer)
    }

    /// Asks the directory for the graphs of threads, and has the hub remember them. False when it does not answer.
    pub async fn learn_graphs(&self, hub: &Hub, threads: Vec<String>) -> bool {
        let asked = stream::iter(threads).map(|thread_id| async {
            let graph = self.graph(&thread_id).await;
            (thread_id, graph)
        });
        let answers: Vec<_> = asked.buffer_unordered(THREADS_AT_ONCE).collect().await;
        let mut all = true;
        for (thread, graph) in answers {
            match graph {
                Ok(graph) => hub.learn_graph(&thread, graph.as_deref()),
                Err(status) => {
                    tracing::warn!(%status, "ask replay for the graph of a thread");
                    all = false;
                }
            }
        }
        all
    }

    /// What replay has of a thread for a session of version 1, some MiB at a time.
    pub async fn find_thread(&self, want: &ThreadWant, tenants: &Tenants) -> ThreadFound {
        self.metrics.reads.threads.inc();
        match self.in_time(self.read_thread(want, tenants)).await {
            Ok(found) => found,
            // An id that replay does not take is no thread's.
            Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => {
                ThreadFound::Unknown
            }
            Err(status) => {
                tracing::warn!(%status, "read a thread from replay for a session");
                ThreadFound::NotNow
            }
        }
    }

    async fn read_thread(&self, want: &ThreadWant, tenants: &Tenants) -> Result<ThreadFound, Status> {
        let request = ReadThreadRequest {
            stream: self.stream.to_string(),
            tenant_id: String::new(),
            thread_id: want.thread_id.clone(),
            records_max: 0,
            tenant_ids: match tenants {
                Tenants::All => Vec::new(),
                Tenants::Only(tenants) => tenants.iter().cloned().collect(),
            },
            from: Some(match &want.from {
                ThreadFrom::AfterSequence(sequence) => read_thread_request::From::AfterSequence(*sequence),
                ThreadFrom::After(cursor) => read_thread_request::From::After(*cursor),
            }),
        };
        let mut answers = self.client.clone().read_thread(request).await?.into_inner();
        let (mut parts, mut bytes) = (Vec::new(), 0);
        while let Some(ReadThreadResponse { partition, epoch, records, at_end, gap }) =
            answers.message().await?
        {
            bytes += records.iter().map(|record| record.payload.len()).sum::<usize>();
            parts.push(ThreadPart { partition, epoch, records, gap });
            if at_end || bytes >= THREAD_BYTES {
                return Ok(ThreadFound::Records { parts, at_end });
            }
        }
        Ok(ThreadFound::Records { parts, at_end: true })
    }

    async fn graph(&self, thread_id: &str) -> Result<Option<String>, Status> {
        self.metrics.reads.threads.inc();
        let request = DescribeThreadRequest {
            stream: self.stream.to_string(),
            tenant_id: String::new(),
            thread_id: thread_id.to_owned(),
            tenant_ids: Vec::new(),
        };
        let mut client = self.client.clone();
        let asking = async {
            match client.describe_thread(request).await {
                Ok(answer) => Ok(answer.into_inner().thread.map(|thread| thread.graph_name)),
                // An id that replay does not take is no thread's.
                Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => Ok(None),
                Err(status) => Err(status),
            }
        };
        Ok(self.in_time(asking).await?.filter(|graph| !graph.is_empty()))
    }

    /// Closes a break in a partition's ring: fetches until nothing more is asked for.
    pub(crate) async fn backfill(self, hub: Hub, partition: Partition, mut output: Option<Output>) {
        while let Some(Output::Fetch { epoch, after }) = output {
            self.metrics.reads.backfills.inc();
            let inputs = match self.read(partition, From::After { epoch, at: after }, 0).await {
                Ok(answer) => inputs(answer),
                Err(status) => {
                    tracing::warn!(%partition, %status, "backfill from replay");
                    vec![Input::FetchFailed]
                }
            };
            output = None;
            for input in inputs {
                output = hub.on(partition, input).or(output);
            }
        }
    }
}

pub(crate) fn link(offset: Option<u64>) -> Link {
    offset.map(Offset::clamped)
}

fn found(answer: Answer, stamp: Stamp) -> Vec<Found> {
    let Answer { gap, page, stale } = answer;
    let page = page.map(|Page { epoch, batches, at_end, last_offset }| Found::Page {
        epoch: Epoch::new(epoch),
        slots: batches.into_iter().map(|batch| Slot::new(batch, stamp)).collect(),
        at_end,
        mark: link(last_offset),
    });
    let stale = stale.map(|stale| match (stale.reason(), stale.epoch) {
        (StaleReason::Epoch, Some(epoch)) => Found::Stale {
            epoch: Epoch::new(epoch),
            earliest: link(stale.earliest_offset),
            mark: link(stale.last_offset),
        },
        (StaleReason::Epoch | StaleReason::Seeding | StaleReason::Unspecified, _) => Found::Seeding,
    });
    let found: Vec<_> = gap.map(Found::Gap).into_iter().chain(page).chain(stale).collect();
    if found.is_empty() { vec![Found::NotNow] } else { found }
}

fn inputs(answer: Answer) -> Vec<Input> {
    let Answer { gap, page, stale } = answer;
    let gap = gap.map(|gap| Input::Gap { epoch: Epoch::new(gap.epoch), last: link(Some(gap.last_offset)) });
    let page = page.map(|Page { epoch, batches, last_offset, .. }| Input::Page {
        epoch: Epoch::new(epoch),
        batches,
        end: link(last_offset),
    });
    let stale = stale.map(|stale| match (stale.reason(), stale.epoch) {
        (StaleReason::Epoch, Some(epoch)) => {
            Input::Stale { epoch: Epoch::new(epoch), end: link(stale.last_offset) }
        }
        (StaleReason::Epoch | StaleReason::Seeding | StaleReason::Unspecified, _) => Input::FetchFailed,
    });
    let inputs: Vec<_> = gap.into_iter().chain(page).chain(stale).collect();
    if inputs.is_empty() { vec![Input::FetchFailed] } else { inputs }
}

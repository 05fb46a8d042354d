//! The services behind the gateway: the live feed of every ingest replica, and reads from replay.
use crate::{config::Config, hub::Hub, metrics::Metrics};
use dashstream_core::{
    backoff::Backoff,
    batch,
    position::{Epoch, Link, Offset, Partition},
    session::{Found, From},
    tail::{Input, Output},
};
use dashstream_kit::{
    Kit,
    grpc::{self as kit_grpc, Channel},
    ops::Latch,
    tasks::Tasks,
    telemetry,
};
use dashstream_proto::{
    ingest::v1::{
        SubscribeLiveRequest, ingest_service_client::IngestServiceClient, subscribe_live_response::Event,
    },
    log::v1::{AfterOffset, Earliest, Gap, Latest, Position, position},
    replay::v1::{
        Page, ReadPartitionsRequest, Stale, StaleReason, read_partitions_response::Step,
        replay_service_client::ReplayServiceClient,
    },
};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

const MESSAGE_BYTES_MAX: usize = 64 << 20;
const BACKOFF: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(2) };
const RESOLVE_INTERVAL: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_secs(1);
/// How long replay may take for one page.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads from replay. A cheap handle.
#[derive(Clone, Debug)]
pub struct Replay {
    client: ReplayServiceClient<Channel>,
    stream: Arc<str>,
    metrics: Metrics,
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
        Self { client, stream: config.stream.as_str().into(), metrics }
    }

    /// For other questions: a client, and the stream to ask about.
    pub fn asking(&self) -> (ReplayServiceClient<Channel>, String) {
        (self.client.clone(), self.stream.to_string())
    }

    /// What replay has behind a session's position.
    pub async fn find(&self, partition: Partition, from: From, page_bytes: u32) -> Vec<Found> {
        self.metrics.replay_reads.inc();
        match self.read(partition, from, page_bytes).await {
            Ok(answer) => found(answer),
            Err(status) => {
                tracing::warn!(%partition, %status, "read from replay for a session");
                vec![Found::NotNow]
            }
        }
    }

    async fn read(&self, partition: Partition, from: From, page_bytes: u32) -> Result<Answer, Status> {
        let read = self.read_page(partition, from, page_bytes);
        let answer = tokio::time::timeout(READ_TIMEOUT, read).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("replay does not answer")));
        answer.inspect_err(|_| self.metrics.replay_failures.inc())
    }

    async fn read_page(&self, partition: Partition, from: From, page_bytes: u32) -> Result<Answer, Status> {
        let from = match from {
            From::Earliest => position::From::Earliest(Earliest {}),
            From::Latest => position::From::Latest(Latest {}),
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

    /// Closes a break in a partition's ring: fetches until nothing more is asked for.
    async fn backfill(self, hub: Hub, partition: Partition, mut output: Option<Output>) {
        while let Some(Output::Fetch { epoch, after }) = output {
            self.metrics.backfills.inc();
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

fn link(offset: Option<u64>) -> Link {
    offset.map(Offset::clamped)
}

fn found(answer: Answer) -> Vec<Found> {
    let Answer { gap, page, stale } = answer;
    let page = page.map(|Page { epoch, batches, at_end, last_offset }| Found::Page {
        epoch: Epoch::new(epoch),
        batches,
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

/// What feeds the hub.
#[derive(Clone, Debug)]
pub struct Feeds {
    pub hub: Hub,
    pub replay: Replay,
    pub metrics: Metrics,
    pub tasks: Tasks,
    pub kit: Kit,
}

impl Feeds {
    /// Follows every ingest replica that the targets stand for, as they come and go.
    pub async fn run(self, config: Arc<Config>, latch: Latch) {
        let stop = self.tasks.stop_token();
        let latch = Arc::new(latch);
        let mut followed: HashMap<SocketAddr, CancellationToken> = HashMap::new();
        let mut resolved = Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        let mut first = true;
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            for (partition, fetch) in self.hub.on_tick() {
                self.fetch(partition, Some(fetch));
            }
            if !std::mem::take(&mut first) && resolved.elapsed() < RESOLVE_INTERVAL {
                continue;
            }
            resolved = Instant::now();
            let now = kit_grpc::resolve(&config.ingest_targets).await;
            if now.is_empty() {
                continue; // what is known is kept
            }
            followed.retain(|address, follow| {
                let keep = now.contains(address);
                if !keep {
                    follow.cancel();
                }
                keep
            });
            for address in now {
                followed.entry(address).or_insert_with(|| {
                    let stop = stop.child_token();
                    let follow = self.clone().follow(address, Arc::clone(&latch), stop.clone());
                    self.tasks.spawn(format!("live feed of {address}"), follow);
                    stop
                });
            }
        }
    }

    fn fetch(&self, partition: Partition, output: Option<Output>) {
        if output.is_some() {
            let backfill = self.replay.clone().backfill(self.hub.clone(), partition, output);
            self.tasks.spawn("backfill", backfill);
        }
    }

    /// Follows one replica until `stop`, subscribing again whenever the feed ends.
    async fn follow(self, address: SocketAddr, latch: Arc<Latch>, stop: CancellationToken) {
        let mut attempt = 0;
        let mut was_well = true;
        while !stop.is_cancelled() {
            let Some(ended) = stop.run_until_cancelled(self.subscribe(address, &latch)).await else { return };
            match ended {
                Ok(()) => (attempt, was_well) = (0, true),
                Err(error) => {
                    attempt += 1;
                    if std::mem::replace(&mut was_well, false) {
                        tracing::warn!(%address, %error, "live feed unavailable");
                    }
                }
            }
            let pause = BACKOFF.delay(attempt, rand::random());
            stop.run_until_cancelled(tokio::time::sleep(pause)).await;
        }
    }

    /// One subscription. `Ok` when it was established and ended.
    async fn subscribe(&self, address: SocketAddr, latch: &Latch) -> anyhow::Result<()> {
        let channel = self.kit.channel_to(&address.to_string())?;
        let mut client = IngestServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut events = client.subscribe_live(SubscribeLiveRequest::default()).await?.into_inner();
        latch.ready();
        tracing::info!(%address, "live feed followed");
        self.metrics.live_upstreams.inc();
        let ended = loop {
            // A replica that owns nothing has nothing to say; HTTP/2 keeps watch over its connection.
            match events.message().await {
                Ok(Some(response)) => self.on_event(response.event),
                Ok(None) => break "it ended".to_owned(),
                Err(status) => break status.message().to_owned(),
            }
        };
        self.metrics.live_upstreams.dec();
        tracing::info!(%address, reason = ended, "live feed left");
        Ok(())
    }

    fn on_event(&self, event: Option<Event>) {
        let mut _hops = Vec::new();
        let (partition, input) = match event {
            Some(Event::Batch(batch)) => {
                self.metrics.live_batches.inc();
                self.metrics.live_records.inc_by(u64::from(batch.record_count));
                if let Err(error) = batch::check(&batch) {
                    tracing::error!(%error, "a batch of the live feed is malformed; it comes from replay");
                    return;
                }
                // Until it is where clients read.
                _hops = telemetry::hops("gateway", batch.partition, batch::traced(&batch));
                (batch.partition, Input::Live(batch))
            }
            Some(Event::Heartbeat(heartbeat)) => {
                let Some(durable) = heartbeat.durable else { return };
                if let (Some(mark), Ok(partition)) =
                    (heartbeat.high_watermark, Partition::new(durable.partition))
                {
                    self.hub.high_watermark(partition, mark);
                }
                let durable_link = link(durable.offset);
                (
                    durable.partition,
                    Input::Heartbeat { epoch: Epoch::new(durable.epoch), durable: durable_link },
                )
            }
            // What was heard of it stays true; the next owner goes on.
            Some(Event::Revoked(_)) | None => return,
        };
        if let Ok(partition) = Partition::new(partition) {
            self.fetch(partition, self.hub.on(partition, input));
        }
    }
}

//! The live feed of every ingest replica, into the hub.
use crate::{
    config::Config,
    hub::Hub,
    metrics::Metrics,
    replay::{MESSAGE_BYTES_MAX, Replay, link},
};
use dashstream_core::{
    backoff::Backoff,
    batch,
    position::{Epoch, Partition},
    tail::{Input, Output},
};
use dashstream_kit::{Kit, grpc as kit_grpc, ops::Latch, tasks::Tasks, telemetry};
use dashstream_proto::ingest::v1::{
    SubscribeLiveRequest, SubscribeLiveResponse, ingest_service_client::IngestServiceClient,
    subscribe_live_response::Event,
};
use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

const BACKOFF: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(2) };
const RESOLVE_INTERVAL: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_secs(1);
/// A replica that owns partitions is heard of each second or so. One that is silent for so long is stuck.
const SILENCE_MAX: Duration = Duration::from_secs(10);

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
            self.replay.on_tick();
            self.metrics.ring_bytes.set(self.hub.ring_bytes() as i64);
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
        let mut owned = BTreeSet::new();
        let ended = loop {
            match heard(&mut events, !owned.is_empty()).await {
                Ok(Some(response)) => {
                    note_owned(&mut owned, response.event.as_ref());
                    self.on_event(response.event);
                }
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

/// The next event. A replica that owns nothing has nothing to say; HTTP/2 keeps watch over its connection.
async fn heard(
    events: &mut Streaming<SubscribeLiveResponse>,
    owns: bool,
) -> Result<Option<SubscribeLiveResponse>, Status> {
    if !owns {
        return events.message().await;
    }
    let heard = tokio::time::timeout(SILENCE_MAX, events.message()).await;
    heard.unwrap_or_else(|_| Err(Status::deadline_exceeded("it owns partitions and says nothing")))
}

/// Which partitions a replica speaks for.
fn note_owned(owned: &mut BTreeSet<i32>, event: Option<&Event>) {
    match event {
        Some(Event::Heartbeat(heartbeat)) => {
            owned.extend(heartbeat.durable.as_ref().map(|durable| durable.partition));
        }
        Some(Event::Revoked(revoked)) => drop(owned.remove(&revoked.partition)),
        Some(Event::Batch(_)) | None => {}
    }
}

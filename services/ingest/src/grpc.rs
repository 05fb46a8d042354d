//! The ingest service over gRPC.
use crate::{
    brake::Brake,
    config::Config,
    live::Live,
    owned::{Owned, Unmet},
};
use dashstream_core::position::{Offset, Partition};
use dashstream_kit::tasks::Tasks;
use dashstream_proto::ingest::v1::{
    CatchUpPhase, GetCatchUpRequest, GetCatchUpResponse, PartitionCatchUp, PausePartitionRequest,
    PausePartitionResponse, Resolution, ResolveBlockedRequest, ResolveBlockedResponse,
    ResumePartitionRequest, ResumePartitionResponse, SubscribeLiveRequest, SubscribeLiveResponse,
    WatchCatchUpRequest, WatchCatchUpResponse, ingest_service_server::IngestService,
};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

const WATCH_INTERVAL: Duration = Duration::from_secs(1);
const WATCH_INTERVAL_LEAST: Duration = Duration::from_millis(100);
/// How often a pipeline is looked at that was told something, and how many times.
const SETTLE_LOOK: Duration = Duration::from_millis(20);
const SETTLE_LOOKS: usize = 100;
/// Longest reason that an operator may give, bytes.
const REASON_BYTES_MAX: usize = 512;
/// Events handed to HTTP/2 ahead of its flow control; the rest waits in the subscription, bounded in bytes.
const EVENTS_AHEAD: usize = 4;

/// Answers for the partitions of this replica.
#[derive(Clone, Debug)]
pub struct Ingest {
    pub config: Arc<Config>,
    pub owner: Arc<str>,
    pub owned: Owned,
    pub brake: Brake,
    pub live: Live,
    pub partition_count: Arc<AtomicI32>,
    pub tasks: Tasks,
}

impl Ingest {
    fn catch_up(&self) -> GetCatchUpResponse {
        GetCatchUpResponse {
            owner: self.owner.to_string(),
            stream: self.config.stream().to_owned(),
            topic: self.config.kafka.topic.clone(),
            partition_count: self.partition_count.load(Ordering::Relaxed),
            partitions: self.owned.report(),
            halted: self.brake.reason().unwrap_or_default(),
        }
    }
}

type Answers<T> = Pin<Box<dyn futures_util::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl IngestService for Ingest {
    async fn get_catch_up(
        &self,
        _request: Request<GetCatchUpRequest>,
    ) -> Result<Response<GetCatchUpResponse>, Status> {
        Ok(Response::new(self.catch_up()))
    }

    type WatchCatchUpStream = Answers<WatchCatchUpResponse>;

    async fn watch_catch_up(
        &self,
        request: Request<WatchCatchUpRequest>,
    ) -> Result<Response<Self::WatchCatchUpStream>, Status> {
        let asked = Duration::from_millis(request.into_inner().interval_ms.into());
        let interval = if asked.is_zero() { WATCH_INTERVAL } else { asked.max(WATCH_INTERVAL_LEAST) };
        let (answers, out) = mpsc::channel(1);
        let (ingest, stop) = (self.clone(), self.tasks.stop_token());
        self.tasks.spawn("watch catch-up", async move {
            let mut ticks = tokio::time::interval(interval);
            let mut last = None;
            while stop.run_until_cancelled(ticks.tick()).await.is_some() {
                let now = ingest.catch_up();
                if last.as_ref() == Some(&now) {
                    if answers.is_closed() {
                        return;
                    }
                    continue;
                }
                last = Some(now.clone());
                if answers.send(Ok(WatchCatchUpResponse { catch_up: Some(now) })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    type SubscribeLiveStream = Answers<SubscribeLiveResponse>;

    async fn subscribe_live(
        &self,
        request: Request<SubscribeLiveRequest>,
    ) -> Result<Response<Self::SubscribeLiveStream>, Status> {
        let mut subscription = self.live.subscribe(request.into_inner().partitions, &self.owned);
        let (events, out) = mpsc::channel(EVENTS_AHEAD);
        let stop = self.tasks.stop_token();
        self.tasks.spawn("live feed", async move {
            while let Some(next) = stop.run_until_cancelled(subscription.next()).await {
                let (event, last) = match next {
                    Some(event) => (Ok(event), false),
                    None => (
                        Err(Status::resource_exhausted("the subscriber does not keep up: read from replay")),
                        true,
                    ),
                };
                if events.send(event).await.is_err() || last {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    async fn resolve_blocked(
        &self,
        request: Request<ResolveBlockedRequest>,
    ) -> Result<Response<ResolveBlockedResponse>, Status> {
        let ResolveBlockedRequest { partition: number, offset, reason, .. } = request.get_ref();
        let partition = partition(*number)?;
        let offset = Offset::new(*offset).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let resolution = request.get_ref().resolution();
        if resolution == Resolution::Unspecified {
            return Err(Status::invalid_argument("resolution: expected RESOLUTION_RETRY or RESOLUTION_SKIP"));
        }
        let reason = given(reason)?;
        let blocks = self.owned.blocks(partition);
        self.owned.resolve(partition, offset, resolution).map_err(unmet)?;
        tracing::info!(audit = true, %partition, %offset, resolution = resolution.as_str_name(), reason,
            "an operator decided on a bad record");
        // Passed, or judged again and found to block as before.
        let acted = |report: &PartitionCatchUp| {
            report.next_offset > Some(offset.get()) || self.owned.blocks(partition) > blocks
        };
        let partition = Some(self.settled(partition, acted).await?);
        Ok(Response::new(ResolveBlockedResponse { partition }))
    }

    async fn pause_partition(
        &self,
        request: Request<PausePartitionRequest>,
    ) -> Result<Response<PausePartitionResponse>, Status> {
        let PausePartitionRequest { partition: number, reason } = request.into_inner();
        let partition = partition(number)?;
        let reason = given(&reason)?;
        self.owned.pause(partition, Some(reason.to_owned())).map_err(unmet)?;
        tracing::info!(audit = true, %partition, reason, "an operator paused a partition");
        let stopped = |report: &PartitionCatchUp| {
            matches!(report.phase(), CatchUpPhase::Paused | CatchUpPhase::Blocked)
        };
        let partition = Some(self.settled(partition, stopped).await?);
        Ok(Response::new(PausePartitionResponse { partition }))
    }

    async fn resume_partition(
        &self,
        request: Request<ResumePartitionRequest>,
    ) -> Result<Response<ResumePartitionResponse>, Status> {
        let ResumePartitionRequest { partition: number, reason } = request.into_inner();
        let partition = partition(number)?;
        let reason = given(&reason)?;
        self.owned.pause(partition, None).map_err(unmet)?;
        tracing::info!(audit = true, %partition, reason, "an operator let a partition go on");
        let goes_on = |report: &PartitionCatchUp| report.phase() != CatchUpPhase::Paused;
        let partition = Some(self.settled(partition, goes_on).await?);
        Ok(Response::new(ResumePartitionResponse { partition }))
    }
}

impl Ingest {
    /// The partition once its pipeline has acted, or as it is when that takes too long.
    async fn settled(
        &self,
        partition: Partition,
        acted: impl Fn(&PartitionCatchUp) -> bool,
    ) -> Result<PartitionCatchUp, Status> {
        let mut looks = tokio::time::interval(SETTLE_LOOK);
        for _ in 0..SETTLE_LOOKS {
            looks.tick().await;
            match self.owned.report_of(partition) {
                Some(report) if !acted(&report) => {}
                Some(report) => return Ok(report),
                None => break,
            }
        }
        self.owned.report_of(partition).ok_or_else(|| unmet(Unmet::NotOwned(partition)))
    }
}

fn partition(number: i32) -> Result<Partition, Status> {
    Partition::new(number).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn given(reason: &str) -> Result<&str, Status> {
    let wrong = |what| Err(Status::invalid_argument(format!("reason: {what}")));
    match reason.trim() {
        "" => wrong("expected who decided and why, for the audit log".to_owned()),
        reason if reason.len() > REASON_BYTES_MAX => {
            wrong(format!("has {} bytes, expected at most {REASON_BYTES_MAX}", reason.len()))
        }
        reason => Ok(reason),
    }
}

fn unmet(why: Unmet) -> Status {
    match why {
        Unmet::NotOwned(_) => Status::not_found(why.to_string()),
        Unmet::NotBlocked(_) | Unmet::BlockedElsewhere { .. } => Status::failed_precondition(why.to_string()),
    }
}

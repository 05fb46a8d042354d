//! The ingest service over gRPC.
use crate::{config::Config, live::Live, owned::Owned};
use dashstream_kit::tasks::Tasks;
use dashstream_proto::ingest::v1::{
    GetCatchUpRequest, GetCatchUpResponse, PausePartitionRequest, PausePartitionResponse,
    ResolveBlockedRequest, ResolveBlockedResponse, ResumePartitionRequest, ResumePartitionResponse,
    SubscribeLiveRequest, SubscribeLiveResponse, WatchCatchUpRequest, WatchCatchUpResponse,
    ingest_service_server::IngestService,
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
/// Events handed to HTTP/2 ahead of its flow control; the rest waits in the subscription, bounded in bytes.
const EVENTS_AHEAD: usize = 4;

/// Answers for the partitions of this replica.
#[derive(Clone, Debug)]
pub struct Ingest {
    pub config: Arc<Config>,
    pub owner: Arc<str>,
    pub owned: Owned,
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
            halted: String::new(),
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
        _request: Request<ResolveBlockedRequest>,
    ) -> Result<Response<ResolveBlockedResponse>, Status> {
        Err(unimplemented("ResolveBlocked"))
    }

    async fn pause_partition(
        &self,
        _request: Request<PausePartitionRequest>,
    ) -> Result<Response<PausePartitionResponse>, Status> {
        Err(unimplemented("PausePartition"))
    }

    async fn resume_partition(
        &self,
        _request: Request<ResumePartitionRequest>,
    ) -> Result<Response<ResumePartitionResponse>, Status> {
        Err(unimplemented("ResumePartition"))
    }
}

fn unimplemented(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not implemented by this version"))
}

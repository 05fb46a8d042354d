//! One partition's append stream to replay: batches out, acknowledgements back, in order, within a window.
use dashstream_core::{batch::Span, position::Link};
use dashstream_kit::{grpc::Channel, tasks::Tasks};
use dashstream_proto::{
    log::v1::Batch,
    replay::v1::{
        AppendRequest, AppendResponse, RefusalReason, Refused, append_response::Outcome,
        replay_service_client::ReplayServiceClient,
    },
};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Most batches in flight, whatever their size.
const BATCHES_MAX: usize = 1_024;

/// What is in a batch, for those who count.
#[derive(Debug, Default)]
pub struct Tally {
    pub stored: u64,
    pub dead_lettered: u64,
    pub skipped: u64,
    /// Kafka's and the producer's time of the last record: milliseconds and microseconds since 1970.
    pub last_record_ms: Option<i64>,
    pub last_produced_us: Option<i64>,
    /// The spans of its records that are traced; they end with it.
    pub hops: Vec<tracing::Span>,
}

/// A batch on its way.
#[derive(Debug)]
struct InFlight {
    batch: Batch,
    tally: Tally,
    since: Instant,
}

/// What replay says of the oldest batch in flight.
#[derive(Debug)]
pub enum Answer {
    Stored {
        batch: Batch,
        tally: Tally,
        duplicate: bool,
        seconds: f64,
    },
    /// The chain is broken: nothing in flight will be stored.
    Refused {
        reason: RefusalReason,
        message: String,
    },
    /// The stream ended.
    Failed(Status),
}

/// Invariant: `waiting` are the batches sent and not answered, in order; `bytes` is their size.
#[derive(Debug)]
pub struct Appender {
    stream: String,
    requests: mpsc::Sender<AppendRequest>,
    answers: mpsc::Receiver<Result<AppendResponse, Status>>,
    waiting: VecDeque<InFlight>,
    bytes: u64,
    window_bytes: u64,
}

impl Appender {
    /// Opens a stream. That it failed is the first answer.
    pub fn open(
        mut replay: ReplayServiceClient<Channel>,
        stream: String,
        window_bytes: u64,
        tasks: &Tasks,
    ) -> Self {
        let (requests, outgoing) = mpsc::channel(BATCHES_MAX);
        let (incoming, answers) = mpsc::channel(BATCHES_MAX);
        tasks.spawn("append", async move {
            // The receiver is gone when the pipeline is: then there is nobody to tell.
            match replay.append(ReceiverStream::new(outgoing)).await {
                Err(status) => drop(incoming.send(Err(status)).await),
                Ok(response) => {
                    let mut answers = response.into_inner();
                    loop {
                        let answer = match answers.message().await {
                            Ok(Some(answer)) => Ok(answer),
                            Ok(None) => Err(Status::unavailable("replay ended the append stream")),
                            Err(status) => Err(status),
                        };
                        let ended = answer.is_err();
                        if incoming.send(answer).await.is_err() || ended {
                            return;
                        }
                    }
                }
            }
        });
        Self { stream, requests, answers, waiting: VecDeque::new(), bytes: 0, window_bytes }
    }

    /// Whether another batch may be sent.
    pub fn has_room(&self) -> bool {
        self.bytes < self.window_bytes && self.waiting.len() < BATCHES_MAX
    }

    /// Nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Batches that wait for their answer.
    pub fn in_flight(&self) -> u64 {
        self.waiting.len() as u64
    }

    /// How long the oldest batch in flight waits for its answer.
    pub fn waits_for(&self) -> Duration {
        self.waiting.front().map_or(Duration::ZERO, |oldest| oldest.since.elapsed())
    }

    /// Sends a batch. Only with room: then there is a place in the queue.
    pub fn send(&mut self, batch: Batch, tally: Tally) {
        let request = AppendRequest { stream: self.stream.clone(), batch: Some(batch.clone()) };
        self.bytes += batch.records.len() as u64;
        self.waiting.push_back(InFlight { batch, tally, since: Instant::now() });
        // A stream that ended says so among the answers.
        drop(self.requests.try_send(request));
    }

    /// The next answer. Cancel-safe.
    pub async fn next(&mut self) -> Answer {
        match self.answers.recv().await {
            Some(Ok(AppendResponse { outcome: Some(Outcome::Stored(stored)) })) => match self
                .waiting
                .pop_front()
            {
                Some(InFlight { mut batch, tally, since }) => {
                    self.bytes -= batch.records.len() as u64;
                    batch.stored_ms = stored.stored_ms;
                    let held: Link = Some(batch.last());
                    if held.map(|last| last.get()) > Some(stored.last_offset) {
                        return Answer::Failed(Status::data_loss("replay acknowledged less than was sent"));
                    }
                    let seconds = since.elapsed().as_secs_f64();
                    Answer::Stored { batch, tally, duplicate: stored.duplicate, seconds }
                }
                None => Answer::Failed(Status::internal("replay acknowledged what was not sent")),
            },
            Some(Ok(AppendResponse { outcome: Some(Outcome::Refused(refused)) })) => {
                let reason = refused.reason();
                let Refused { message, .. } = refused;
                Answer::Refused { reason, message }
            }
            Some(Ok(AppendResponse { outcome: None })) => {
                Answer::Failed(Status::internal("replay answered without an outcome"))
            }
            Some(Err(status)) => Answer::Failed(status),
            None => Answer::Failed(Status::unavailable("the append stream is gone")),
        }
    }
}

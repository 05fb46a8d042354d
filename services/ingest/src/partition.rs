//! One partition's pipeline: Kafka, then judge, pack, append, acknowledged, live.
//!
//! It lives in lives. Each begins by asking replay what it holds and fetches from there; whatever goes wrong,
//! the life ends and the next one begins the same way. So there is one way to start, to heal and to recover.
use crate::{
    brake::Brake,
    config::Config,
    dlq::DeadLetters,
    kafka::Consumer,
    live::Live,
    metrics::Metrics,
    owned::{Owned, Wish},
    threads::Threads,
};
use dashstream_core::{
    backoff::Backoff,
    catch_up::Input,
    position::{Epoch, Link, NextOffset, Partition},
};
use dashstream_kit::{grpc::Channel, tasks::Tasks};
use dashstream_proto::{log::v1::Cursor, replay::v1::replay_service_client::ReplayServiceClient};
use rdkafka::error::{KafkaError, KafkaResult};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

mod judge;
mod pump;
mod start;

use pump::Pump;

const BACKOFF: Backoff = Backoff { base: Duration::from_millis(50), cap: Duration::from_secs(3) };

/// What a pipeline needs of its process.
#[derive(Clone, Debug)]
pub struct Parts {
    pub config: Arc<Config>,
    /// Name of this replica.
    pub owner: Arc<str>,
    pub consumer: Consumer,
    pub replay: ReplayServiceClient<Channel>,
    pub owned: Owned,
    pub live: Live,
    pub letters: DeadLetters,
    pub threads: Threads,
    pub brake: Brake,
    pub metrics: Metrics,
    pub tasks: Tasks,
}

/// Why a life ended.
#[derive(Debug)]
enum End {
    /// The partition is no longer ours, or the process stops.
    Stopped,
    /// Begin anew.
    Again { trouble: Trouble, progressed: bool },
}

/// What went wrong.
#[derive(Debug)]
struct Trouble {
    cause: Cause,
    why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Replay refused a batch.
    Refused,
    /// Replay does not answer.
    Unavailable,
    /// Kafka does not have the offset.
    OutOfRange,
    /// Kafka has another record than replay at the same offset.
    Diverged,
    /// Kafka does not answer, or refuses.
    Kafka,
    /// An operator wants a record judged again.
    Asked,
}

impl Cause {
    fn label(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unavailable => "replay_unavailable",
            Self::OutOfRange => "out_of_range",
            Self::Diverged => "diverged",
            Self::Kafka => "kafka",
            Self::Asked => "asked",
        }
    }

    fn because(self, why: impl ToString) -> Trouble {
        Trouble { cause: self, why: why.to_string() }
    }
}

impl Trouble {
    /// What it means for how far the partition is.
    fn input(&self) -> Option<Input> {
        match self.cause {
            Cause::Refused => Some(Input::Refused),
            Cause::Unavailable | Cause::Kafka => Some(Input::Unavailable { why: self.why.clone() }),
            // The next life knows more in no time.
            Cause::OutOfRange | Cause::Diverged | Cause::Asked => None,
        }
    }
}

/// Invariant: what is known of a partition here outlives its lives, not its assignment.
#[derive(Debug)]
struct Pipeline {
    parts: Parts,
    partition: Partition,
    stop: CancellationToken,
    wishes: watch::Receiver<Wish>,
    /// What was committed has been read.
    recalled: bool,
    known_epoch: Option<Epoch>,
    /// The last record that was stored in that epoch, as far as anybody knows.
    known_last: Link,
    /// Where Kafka has another record than replay.
    diverged: Option<Cursor>,
    /// The bad record that an operator said to pass over.
    pardoned: Link,
}

/// Runs until `stop`.
pub async fn run(parts: Parts, partition: Partition, stop: CancellationToken) {
    let wishes = parts.owned.insert(partition);
    let mut pipeline = Pipeline {
        parts,
        partition,
        stop,
        wishes,
        recalled: false,
        known_epoch: None,
        known_last: None,
        diverged: None,
        pardoned: None,
    };
    let mut attempt = 0;
    while let End::Again { trouble, progressed } = pipeline.live_once().await {
        pipeline.report(&trouble);
        attempt = if progressed || trouble.cause == Cause::Asked { 0 } else { attempt + 1 };
        let pause = if attempt == 0 && trouble.cause == Cause::Asked { 0.0 } else { rand::random() };
        let pause = BACKOFF.delay(attempt, pause);
        if pipeline.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            break;
        }
    }
    pipeline.leave();
}

impl Pipeline {
    async fn live_once(&mut self) -> End {
        let stop = self.stop.clone();
        let prepared = stop.run_until_cancelled(self.prepare()).await;
        let start = match prepared {
            None => return End::Stopped,
            Some(Err(trouble)) => return End::Again { trouble, progressed: false },
            Some(Ok(start)) => start,
        };
        let queue = match self.parts.consumer.fetch_from(self.partition, start.fetch) {
            Ok(None) => return End::Stopped,
            Ok(Some(queue)) => queue,
            Err(error) => return End::Again { trouble: Cause::Kafka.because(error), progressed: false },
        };
        Pump::new(self, start).run(&queue).await
    }

    fn report(&self, trouble: &Trouble) {
        let Parts { metrics, owned, .. } = &self.parts;
        metrics.restarted(trouble.cause.label());
        tracing::warn!(partition = %self.partition, cause = trouble.cause.label(), why = trouble.why,
            "pipeline starts anew from what replay holds");
        if let Some(input) = trouble.input() {
            owned.on(self.partition, input);
        }
    }

    fn leave(&self) {
        let Parts { consumer, owned, live, brake, .. } = &self.parts;
        let position: Vec<_> = owned.position(self.partition).into_iter().collect();
        if let Err(error) = consumer.commit(&position) {
            tracing::warn!(partition = %self.partition, %error, "commit at the end");
        }
        brake.release(self.partition);
        owned.remove(self.partition);
        live.revoked(self.partition);
    }

    /// The pipeline learned something of how far it is.
    fn learned(&self, input: Input) {
        let Parts { owned, metrics, .. } = &self.parts;
        let proved_old = owned.on(self.partition, input);
        metrics.classified(proved_old);
    }

    /// Asks the brokers, off the threads that serve others.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Consumer) -> KafkaResult<T> + Send + 'static,
    ) -> KafkaResult<T> {
        ask(self.parts.consumer.clone(), question).await
    }

    /// The watermarks of an assignment whose head is unknown, however often it must be asked for.
    fn head(&self) -> impl Future<Output = (NextOffset, NextOffset)> + Send + use<> {
        let (consumer, metrics, partition) =
            (self.parts.consumer.clone(), self.parts.metrics.clone(), self.partition);
        async move {
            for attempt in 0.. {
                let answer = ask(consumer.clone(), move |consumer| consumer.watermarks(partition)).await;
                match answer {
                    Ok(watermarks) => return watermarks,
                    Err(error) => metrics.source.watermarks_failed(partition.get(), &error),
                }
                tokio::time::sleep(BACKOFF.delay(attempt, rand::random())).await;
            }
            unreachable!("the attempts do not end")
        }
    }
}

async fn ask<T: Send + 'static>(
    consumer: Consumer,
    question: impl FnOnce(&Consumer) -> KafkaResult<T> + Send + 'static,
) -> KafkaResult<T> {
    let answer = tokio::task::spawn_blocking(move || question(&consumer)).await;
    answer.unwrap_or(Err(KafkaError::Canceled))
}

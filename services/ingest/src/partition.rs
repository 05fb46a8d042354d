//! One partition's pipeline: Kafka, then judge, pack, append, acknowledged, live.
//!
//! It lives in lives. Each begins by asking replay what it holds and fetches from there; whatever goes wrong,
//! the life ends and the next one begins the same way. So there is one way to start, to heal and to recover.
use crate::{
    append::{Answer, Appender},
    config::{Config, Refill},
    kafka::{Consumer, Queue},
    live::Live,
    metrics::Metrics,
    owned::{Owned, now_ms},
};
use dashstream_core::{
    backoff::Backoff,
    batch::{Envelope, Packer},
    catch_up::Input,
    codec::{self, Limits},
    position::{Epoch, Link, NextOffset, Offset, Partition},
};
use dashstream_kit::tasks::Tasks;
use dashstream_proto::{
    log::v1::GapReason,
    replay::v1::{OpenPartitionRequest, OpenPartitionResponse, replay_service_client::ReplayServiceClient},
};
use futures_util::FutureExt;
use rdkafka::{
    Message, Timestamp,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers},
};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

const BACKOFF: Backoff = Backoff { base: Duration::from_millis(50), cap: Duration::from_secs(3) };
/// How long replay may take to open a partition.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// What a pipeline needs of its process.
#[derive(Clone, Debug)]
pub struct Parts {
    pub config: Arc<Config>,
    pub consumer: Consumer,
    pub replay: ReplayServiceClient<Channel>,
    pub owned: Owned,
    pub live: Live,
    pub metrics: Metrics,
    pub tasks: Tasks,
}

/// Why a life ended.
#[derive(Debug)]
enum End {
    /// The partition is no longer ours, or the process stops.
    Stopped,
    /// Begin anew.
    Again { cause: Cause, why: String, progressed: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Replay does not answer.
    Unavailable,
    /// Replay refused a batch: it lost its end, or another owner wrote.
    Refused,
    /// Kafka no longer has, or does not yet have, the offset.
    OutOfRange,
    Kafka,
}

impl Cause {
    fn label(self) -> &'static str {
        match self {
            Self::Unavailable => "replay_unavailable",
            Self::Refused => "append_refused",
            Self::OutOfRange => "offset_out_of_range",
            Self::Kafka => "kafka",
        }
    }
}

/// Where a life begins.
#[derive(Debug)]
struct Start {
    epoch: Epoch,
    /// What replay holds.
    link: Link,
    /// Where to fetch; `None` for the beginning of the partition.
    next: Option<NextOffset>,
    /// Offsets that Kafka lost before they could be read.
    lost: Option<(Offset, Offset)>,
}

/// Runs until `stop`.
pub async fn run(parts: Parts, partition: Partition, stop: CancellationToken) {
    parts.owned.insert(partition);
    let mut pipeline = Pipeline { parts, partition, stop, known_epoch: None };
    let mut attempt = 0;
    while let End::Again { cause, why, progressed } = pipeline.live_once().await {
        let Parts { metrics, owned, .. } = &pipeline.parts;
        metrics.restarted(cause.label());
        tracing::warn!(%partition, cause = cause.label(), why, "pipeline starts anew from what replay holds");
        owned.on(
            partition,
            match cause {
                Cause::Refused | Cause::OutOfRange => Input::Refused { why },
                Cause::Unavailable | Cause::Kafka => Input::Unavailable { why },
            },
        );
        attempt = if progressed { 0 } else { attempt + 1 };
        let pause = BACKOFF.delay(attempt, rand::random());
        if pipeline.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            break;
        }
    }
    let Parts { consumer, owned, live, .. } = &pipeline.parts;
    let position: Vec<_> = owned.positions().into_iter().filter(|(of, ..)| *of == partition).collect();
    if let Err(error) = consumer.commit(&position) {
        tracing::warn!(%partition, %error, "commit at the end");
    }
    owned.remove(partition);
    live.revoked(partition);
}

#[derive(Debug)]
struct Pipeline {
    parts: Parts,
    partition: Partition,
    stop: CancellationToken,
    known_epoch: Option<Epoch>,
}

impl Pipeline {
    async fn live_once(&mut self) -> End {
        let stop = self.stop.clone();
        let prepared = stop.run_until_cancelled(self.prepare()).await;
        match prepared {
            None => End::Stopped,
            Some(Err((cause, why))) => End::Again { cause, why, progressed: false },
            Some(Ok(start)) => match self.parts.consumer.fetch_from(self.partition, start.next) {
                Ok(None) => End::Stopped,
                Ok(Some(queue)) => self.pump(&queue, start).await,
                Err(error) => again(Cause::Kafka, error.to_string()),
            },
        }
    }

    /// Asks Kafka and replay where to begin.
    async fn prepare(&mut self) -> Result<Start, (Cause, String)> {
        if self.known_epoch.is_none() {
            let partition = self.partition;
            let committed = self.ask(move |consumer| consumer.committed_epoch(partition)).await;
            self.known_epoch = committed.map_err(|error| (Cause::Kafka, error.to_string()))?;
        }
        let partition = self.partition;
        // Unknown watermarks hold nothing up: the statistics bring them later.
        let watermarks = self.ask(move |consumer| consumer.watermarks(partition)).await;
        let watermarks = watermarks
            .inspect_err(|error| tracing::warn!(%partition, %error, "watermarks unknown for now"))
            .ok();
        let opened = self.open(watermarks.map(|(_, high)| high)).await?;
        let epoch = Epoch::new(opened.epoch);
        self.known_epoch = Some(epoch);
        let held = opened.last_offset.map(Offset::new).transpose();
        let held = held.map_err(|error| (Cause::Refused, error.to_string()))?;

        let Parts { owned, live, .. } = &self.parts;
        owned.on(partition, Input::Opened { epoch, held });
        if let Some((_, high)) = watermarks {
            owned.on(partition, Input::HighWatermark(high));
        }
        if let Some(heartbeat) = owned.heartbeat(partition) {
            live.heartbeat(heartbeat);
        }
        let low = watermarks.map(|(low, _)| low);
        match held {
            Some(_) => Ok(resume(epoch, held, low)),
            None => Ok(Start { epoch, link: None, next: self.refill_from(&opened, low).await?, lost: None }),
        }
    }

    async fn open(
        &self,
        high_watermark: Option<NextOffset>,
    ) -> Result<OpenPartitionResponse, (Cause, String)> {
        let request = OpenPartitionRequest {
            stream: self.parts.config.stream().to_owned(),
            partition: self.partition.get(),
            known_epoch: self.known_epoch.map(Epoch::get),
            high_watermark: high_watermark.map(NextOffset::get),
            diverged: None,
            expired_last_offset: None,
        };
        let mut replay = self.parts.replay.clone();
        let unavailable = |why: String| (Cause::Unavailable, why);
        let opened = tokio::time::timeout(OPEN_TIMEOUT, replay.open_partition(request)).await;
        let opened = opened.map_err(|_| unavailable(format!("no answer in {OPEN_TIMEOUT:?}")))?;
        Ok(opened.map_err(|status| unavailable(status.message().to_owned()))?.into_inner())
    }

    /// Where an empty store is refilled from: as far back as it keeps records, or as Kafka has them.
    async fn refill_from(
        &self,
        opened: &OpenPartitionResponse,
        low: Option<NextOffset>,
    ) -> Result<Option<NextOffset>, (Cause, String)> {
        if self.parts.config.refill == Refill::Earliest {
            return Ok(low);
        }
        let since = now_ms().saturating_sub(i64::try_from(opened.retention_ms).unwrap_or(i64::MAX)).max(0);
        let partition = self.partition;
        let found = self
            .ask(move |consumer| {
                // Nothing that young: begin with what came after this was asked, so the end is asked first.
                let (_, end) = consumer.watermarks(partition)?;
                Ok(consumer.offset_at(partition, since)?.unwrap_or(end))
            })
            .await;
        found.map(Some).map_err(|error| (Cause::Kafka, error.to_string()))
    }

    /// Asks the brokers, off the threads that serve others.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Consumer) -> KafkaResult<T> + Send + 'static,
    ) -> KafkaResult<T> {
        let consumer = self.parts.consumer.clone();
        let answer = tokio::task::spawn_blocking(move || question(&consumer)).await;
        answer.unwrap_or(Err(KafkaError::Canceled))
    }

    /// Reads, packs and appends until something goes wrong or the stop.
    async fn pump(&self, queue: &Queue, start: Start) -> End {
        let Parts { config, replay, tasks, consumer, .. } = &self.parts;
        let stream = config.stream().to_owned();
        let mut appender = Appender::open(replay.clone(), stream, config.append_window_bytes, tasks);
        let mut packer = Packer::new(start.epoch, self.partition, start.link);
        if let Some((first, last)) = start.lost {
            tracing::warn!(partition = %self.partition, %first, %last, "kafka no longer has these; a gap takes their place");
            if packer.push_gap(first, last, GapReason::SourceRetention) {
                send(&mut appender, &mut packer, None);
            }
        }
        let mut fetched = consumer.fetched();
        // The first may have been taken before this life began to fetch.
        let mut statistics = 0_u32;
        let mut progressed = false;
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return self.drain(appender).await,
                answer = appender.next() => match self.on_answer(answer) {
                    Ok(()) => progressed = true,
                    Err((cause, why)) => return End::Again { cause, why, progressed },
                },
                Ok(()) = fetched.changed() => {
                    let known = fetched.borrow_and_update().get(&self.partition).copied();
                    statistics = statistics.saturating_add(1);
                    self.on_statistics(known, appender.is_idle() && statistics > 1);
                }
                message = queue.recv(), if appender.has_room() => {
                    if let Err((cause, why)) = self.pack(message, queue, &mut packer, &mut appender) {
                        return End::Again { cause, why, progressed };
                    }
                }
            }
        }
    }

    /// Packs a record and those that are there already into one batch, and sends it.
    fn pack(
        &self,
        message: KafkaResult<BorrowedMessage<'_>>,
        queue: &Queue,
        packer: &mut Packer,
        appender: &mut Appender,
    ) -> Result<(), (Cause, String)> {
        let config = &self.parts.config;
        let mut next = Some(message);
        let mut last_record_ms = None;
        while let Some(message) = next {
            match message {
                Ok(message) => last_record_ms = self.judge(&message, packer).or(last_record_ms),
                Err(error) => {
                    let out_of_range = matches!(
                        error.rdkafka_error_code(),
                        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)
                    );
                    if out_of_range {
                        return Err((Cause::OutOfRange, error.to_string()));
                    }
                    tracing::warn!(partition = %self.partition, %error, "kafka");
                }
            }
            let full =
                packer.count() >= config.batch_records_max || packer.bytes() as u64 >= config.batch_bytes;
            next = if full { None } else { queue.recv().now_or_never() };
        }
        send(appender, packer, last_record_ms);
        Ok(())
    }

    /// Adds a record to the batch: itself, or a gap in its place. Returns its timestamp.
    fn judge(&self, message: &BorrowedMessage<'_>, packer: &mut Packer) -> Option<i64> {
        let Parts { config, metrics, owned, .. } = &self.parts;
        let offset = Offset::from_kafka(message.offset()).ok()?;
        let limits = Limits { message_bytes_max: config.message_bytes_max as usize };
        let timestamp_ms = match message.timestamp() {
            Timestamp::NotAvailable => None,
            Timestamp::CreateTime(ms) | Timestamp::LogAppendTime(ms) => Some(ms),
        };
        // What was read before is not packed again.
        let _new: bool = match codec::facts(message.payload(), limits) {
            Ok(facts) => {
                let (traceparent, tracestate) = trace_context(message);
                let envelope = Envelope { offset, timestamp_ms, facts, traceparent, tracestate };
                packer.push(envelope, message.payload().unwrap_or_default())
            }
            Err(error) => {
                metrics.undecodable(self.partition.get(), offset.get(), &error);
                owned.undecodable(self.partition, offset.next());
                packer.push_gap(offset, offset, GapReason::Undecodable)
            }
        };
        timestamp_ms
    }

    fn on_answer(&self, answer: Answer) -> Result<(), (Cause, String)> {
        let Parts { metrics, owned, live, .. } = &self.parts;
        match answer {
            Answer::Stored { batch, last_record_ms, duplicate, seconds } => {
                metrics.append_seconds.observe(seconds);
                metrics.stored_records.inc_by(batch.record_count.into());
                metrics.stored_batches.inc();
                metrics.duplicate_batches.inc_by(duplicate.into());
                let last = Offset::new(batch.last_offset).ok();
                owned.stored(self.partition, last, batch.record_count, last_record_ms);
                live.batch(batch);
                Ok(())
            }
            Answer::Refused { reason, message } => {
                Err((Cause::Refused, format!("{}: {message}", reason.as_str_name())))
            }
            Answer::Failed(status) => Err((Cause::Unavailable, status.message().to_owned())),
        }
    }

    fn on_statistics(&self, known: Option<crate::kafka::Fetched>, idle: bool) {
        let Some(fetched) = known else { return };
        let owned = &self.parts.owned;
        owned.on(self.partition, Input::Fetched { high_watermark: fetched.high_watermark });
        // All that was fetched is durable, so what lies below the next fetch are control records and holes.
        if idle && fetched.queued == 0 {
            owned.on(self.partition, Input::Durable { next: fetched.next.min(fetched.high_watermark) });
        }
    }

    /// Waits until what is in flight is stored, within a bound.
    async fn drain(&self, mut appender: Appender) -> End {
        let drained = tokio::time::timeout(self.parts.config.revoke_timeout, async {
            while !appender.is_idle() {
                if let Err((_, why)) = self.on_answer(appender.next().await) {
                    return Err(why);
                }
            }
            Ok(())
        });
        match drained.await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => tracing::warn!(partition = %self.partition, why, "drain ended early"),
            Err(_) => tracing::warn!(partition = %self.partition, "drain did not end in time"),
        }
        End::Stopped
    }
}

fn again(cause: Cause, why: String) -> End {
    End::Again { cause, why, progressed: false }
}

/// Goes on behind what replay holds; what Kafka no longer has of it is lost, and said to be.
fn resume(epoch: Epoch, held: Link, low: Option<NextOffset>) -> Start {
    let next = NextOffset::after(held);
    match low {
        Some(low) if low > next => {
            let lost = Some((Offset::clamped(next.get()), Offset::clamped(low.get() - 1)));
            Start { epoch, link: held, next: Some(low), lost }
        }
        _ => Start { epoch, link: held, next: Some(next), lost: None },
    }
}

fn send(appender: &mut Appender, packer: &mut Packer, last_record_ms: Option<i64>) {
    if let Some(batch) = packer.finish() {
        appender.send(batch, last_record_ms);
    }
}

/// W3C trace context of a record's headers; empty where there is none.
fn trace_context(message: &BorrowedMessage<'_>) -> (String, String) {
    let Some(headers) = message.headers() else { return Default::default() };
    let find = |key: &str| {
        let value = headers.iter().find(|header| header.key == key).and_then(|header| header.value);
        value.and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default().to_owned()
    };
    (find("traceparent"), find("tracestate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kafka_lost_is_a_gap_with_exact_bounds() {
        let mark = |value| NextOffset::from_kafka(value).ok();
        let at = |value| Offset::new(value).unwrap();
        let start = resume(Epoch::new(1), Some(at(9)), mark(20));
        assert_eq!((start.next, start.lost), (mark(20), Some((at(10), at(19)))));
        for low in [None, mark(0), mark(10)] {
            let start = resume(Epoch::new(1), Some(at(9)), low);
            assert_eq!((start.next, start.lost), (mark(10), None), "{low:?}");
        }
    }
}

//! One life of a pipeline, from its start to whatever ends it.
use super::{Cause, End, Parts, Pipeline, Trouble, judge, start::Start};
use crate::{
    append::{Answer, Appender, Tally},
    kafka::{Known, Queue},
    owned::now_ms,
};
use dashstream_core::{
    batch::Packer,
    catch_up::Input,
    codec::Facts,
    dead_letter::{Sha256, Verdict},
    policy::{self, Fault, Judgement, Outcome},
    position::{Epoch, Link, NextOffset, Offset, Partition},
};
use dashstream_kit::telemetry;
use dashstream_proto::{
    ingest::v1::Resolution,
    log::v1::{Batch, Cursor, GapReason},
    replay::v1::LastRecord,
};
use futures_util::{
    FutureExt,
    future::{BoxFuture, JoinAll, join_all},
};
use rdkafka::{
    Message,
    error::{KafkaResult, RDKafkaErrorCode},
    message::BorrowedMessage,
};
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// An acknowledgement that is waited for longer is said to stall the partition.
const STALLED_AFTER: Duration = Duration::from_secs(2);
const STALL_CHECK: Duration = Duration::from_millis(500);

/// A packed batch that may not be appended before its dead letters are acknowledged.
struct Pending {
    batch: Batch,
    tally: Tally,
    letters: JoinAll<BoxFuture<'static, ()>>,
}

/// Invariants: nothing is read while a batch is pending, a record blocks, or somebody holds the partition; what is
/// packed is appended in order.
pub(super) struct Pump<'a> {
    pipeline: &'a mut Pipeline,
    epoch: Epoch,
    appender: Appender,
    packer: Packer,
    tally: Tally,
    letters: Vec<BoxFuture<'static, ()>>,
    pending: Option<Pending>,
    blocked: Option<Offset>,
    held_up: bool,
    /// What replay holds, and what Kafka must have there.
    expected: Option<(Offset, LastRecord)>,
    lost: Option<(Offset, Offset)>,
    begun_behind: Link,
    head: Option<BoxFuture<'static, (NextOffset, NextOffset)>>,
    /// Statistics since this life began to fetch. The first may have been taken before.
    statistics: u32,
    progressed: bool,
}

impl<'a> Pump<'a> {
    pub(super) fn new(pipeline: &'a mut Pipeline, start: Start) -> Self {
        let Start { epoch, link, lost, expected, headless, fetch: _ } = start;
        let Parts { config, replay, tasks, .. } = &pipeline.parts;
        let appender =
            Appender::open(replay.clone(), config.stream().to_owned(), config.append_window_bytes, tasks);
        let head = headless.then(|| pipeline.head().boxed());
        Self {
            packer: Packer::new(epoch, pipeline.partition, link),
            epoch,
            appender,
            tally: Tally::default(),
            letters: Vec::new(),
            pending: None,
            blocked: None,
            held_up: false,
            expected: link.zip(expected),
            lost,
            begun_behind: link,
            head,
            statistics: 0,
            progressed: false,
            pipeline,
        }
    }

    fn partition(&self) -> Partition {
        self.pipeline.partition
    }

    fn parts(&self) -> &Parts {
        &self.pipeline.parts
    }

    /// Reads, packs and appends until something goes wrong or the stop.
    pub(super) async fn run(mut self, queue: &Queue) -> End {
        match self.pump(queue).await {
            Ok(()) => {
                self.drain().await;
                End::Stopped
            }
            Err(trouble) => End::Again { trouble, progressed: self.progressed },
        }
    }

    async fn pump(&mut self, queue: &Queue) -> Result<(), Trouble> {
        self.declare_lost();
        let (stop, mut wishes) = (self.pipeline.stop.clone(), self.pipeline.wishes.clone());
        let (mut known, mut brake) = (self.parts().consumer.known(), self.parts().brake.subscribe());
        let mut checks = interval(STALL_CHECK);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        wishes.mark_changed();
        loop {
            let reading = self.is_reading();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                answer = self.appender.next() => self.on_answer(answer)?,
                Ok(()) = wishes.changed() => self.on_wish()?,
                Ok(()) = brake.changed() => self.hold(),
                () = acknowledged(&mut self.pending), if self.pending.is_some() => self.on_letters(),
                (_, high) = answered(&mut self.head), if self.head.is_some() => self.on_head(high)?,
                Ok(()) = known.changed() => self.on_statistics(&known.borrow_and_update()),
                _ = checks.tick() => self.check_progress(),
                message = queue.recv(), if reading => self.take(message, queue)?,
            }
        }
    }

    fn is_reading(&self) -> bool {
        self.appender.has_room() && self.pending.is_none() && self.blocked.is_none() && !self.held_up
    }

    fn declare_lost(&mut self) {
        let Some((first, last)) = self.lost else { return };
        tracing::warn!(partition = %self.partition(), %first, %last, "kafka no longer has these; a gap takes their place");
        self.parts().metrics.source.lost_offsets.inc_by(last.get() - first.get() + 1);
        if self.packer.push_gap(first, last, GapReason::SourceRetention) {
            self.close();
        }
    }

    /// Judges a record and those that are there already, and packs them into one batch.
    fn take(&mut self, message: KafkaResult<BorrowedMessage<'_>>, queue: &Queue) -> Result<(), Trouble> {
        let (records_max, bytes_max) =
            (self.parts().config.batch_records_max, self.parts().config.batch_bytes);
        let mut next = Some(message);
        while let Some(message) = next {
            let message = message.map_err(|error| match error.rdkafka_error_code() {
                Some(
                    RDKafkaErrorCode::AutoOffsetReset
                    | RDKafkaErrorCode::OffsetOutOfRange
                    | RDKafkaErrorCode::LogTruncation,
                ) => Cause::OutOfRange.because(error),
                _ => Cause::Kafka.because(error),
            })?;
            if !self.settle(&message)? {
                break;
            }
            let full = self.packer.count() >= records_max || self.packer.bytes() as u64 >= bytes_max;
            next = if full { None } else { queue.recv().now_or_never() };
        }
        self.close();
        Ok(())
    }

    /// Carries out the outcome of a record: the only place where an offset moves. False when it does not.
    fn settle(&mut self, message: &BorrowedMessage<'_>) -> Result<bool, Trouble> {
        let at = Offset::from_kafka(message.offset()).map_err(|error| Cause::Kafka.because(error))?;
        self.compare(at, message)?;
        let parts = &self.pipeline.parts;
        let judgement = judge::judge(parts, self.partition(), at, self.packer.link(), message);
        let outcome = policy::outcome(&judgement, parts.config.policy(), self.pipeline.pardoned == Some(at));
        match (judgement, outcome.gap()) {
            (Judgement::Sound(facts) | Judgement::Strayed { facts, .. }, _) => self.store(at, facts, message),
            (Judgement::Bad(fault), Some(reason)) => {
                self.leave_out(at, &fault, (outcome, reason), message)?
            }
            (Judgement::Bad(fault), None) => self.block(at, &fault, outcome),
            (Judgement::Known, _) => self.parts().metrics.outcome(Outcome::Duplicate, 1),
        }
        Ok(outcome.moves_on())
    }

    /// What Kafka has where replay's log ends must be what replay has.
    fn compare(&mut self, at: Offset, message: &BorrowedMessage<'_>) -> Result<(), Trouble> {
        let Some((held, expected)) = self.expected.take() else { return Ok(()) };
        if at != held {
            // Compaction or a transaction took it: nothing to compare.
            return Ok(());
        }
        let sha256 = Sha256::of(message.payload().unwrap_or_default());
        if expected.timestamp_ms == judge::timestamp_ms(message)
            && expected.payload_sha256 == sha256.as_bytes()
        {
            return Ok(());
        }
        self.pipeline.diverged = Some(Cursor {
            epoch: self.epoch.get(),
            partition: self.partition().get(),
            offset: Some(held.get()),
        });
        Err(Cause::Diverged.because(format!(
            "kafka has another record than replay at offset {held}: the topic was made anew"
        )))
    }

    fn store(&mut self, at: Offset, facts: Facts, message: &BorrowedMessage<'_>) {
        let produced_us = facts.produced_us;
        let envelope = judge::envelope(at, facts, message);
        let timestamp_ms = envelope.timestamp_ms;
        let hop = telemetry::hop("ingest", &envelope.traceparent, self.partition().get(), at.get());
        if self.packer.push(envelope, message.payload().unwrap_or_default()) {
            self.tally.stored += 1;
            self.tally.last_record_ms = timestamp_ms;
            self.tally.last_produced_us = produced_us;
            self.tally.hops.extend(hop);
        }
    }

    fn leave_out(
        &mut self,
        at: Offset,
        fault: &Fault,
        (outcome, reason): (Outcome, GapReason),
        message: &BorrowedMessage<'_>,
    ) -> Result<(), Trouble> {
        let Parts { owned, metrics, letters, .. } = self.parts();
        let (age, first) = owned.bad(self.partition(), at);
        metrics.bad(self.partition(), at, fault, (age, first), outcome);
        if outcome == Outcome::DeadLettered {
            let (message_text, owner) = (fault.to_string(), &self.parts().owner);
            let verdict =
                Verdict { error: fault.label(), message: &message_text, age, judged_ms: now_ms(), owner };
            let letter = letters.letter(message, Some(self.epoch), verdict);
            let letter = letter.map_err(|error| Cause::Kafka.because(error))?;
            let delivered = letters.deliver(letter).boxed();
            self.letters.push(delivered);
        }
        if self.packer.push_gap(at, at, reason) {
            self.tally.dead_lettered += u64::from(outcome == Outcome::DeadLettered);
            self.tally.skipped += u64::from(outcome == Outcome::Skipped);
        }
        Ok(())
    }

    fn block(&mut self, at: Offset, fault: &Fault, outcome: Outcome) {
        let Parts { owned, metrics, brake, .. } = self.parts();
        let (age, first) = owned.bad(self.partition(), at);
        metrics.bad(self.partition(), at, fault, (age, first), outcome);
        if outcome == (Outcome::Blocked { everything: true }) {
            brake.pull(self.partition(), at, fault.to_string());
        }
        self.blocked = Some(at);
        self.pipeline.learned(Input::Blocked { offset: at, error: fault.to_string() });
    }

    /// Sends what is packed, once nothing stands in its way.
    fn close(&mut self) {
        let Some(mut batch) = self.packer.finish() else { return };
        batch.ingested_ms = Some(now_ms());
        let (tally, letters) = (std::mem::take(&mut self.tally), std::mem::take(&mut self.letters));
        if letters.is_empty() {
            self.appender.send(batch, tally);
        } else {
            self.pending = Some(Pending { batch, tally, letters: join_all(letters) });
        }
    }

    fn on_letters(&mut self) {
        if let Some(Pending { batch, tally, .. }) = self.pending.take() {
            self.appender.send(batch, tally);
        }
    }

    fn on_answer(&mut self, answer: Answer) -> Result<(), Trouble> {
        let (batch, tally, duplicate, seconds) = match answer {
            Answer::Stored { batch, tally, duplicate, seconds } => (batch, tally, duplicate, seconds),
            Answer::Refused { reason, message } => {
                return Err(Cause::Refused.because(format!("{}: {message}", reason.as_str_name())));
            }
            Answer::Failed(status) => return Err(Cause::Unavailable.because(status.message())),
        };
        self.progressed = true;
        let last = Offset::new(batch.last_offset).ok();
        self.pipeline.known_last = self.pipeline.known_last.max(last);
        let Parts { metrics, owned, live, .. } = self.parts();
        let was_live = owned.is_live(self.partition());
        metrics.stored(&batch, &tally, duplicate, seconds, was_live);
        owned.stored(self.partition(), last, batch.record_count, tally.last_record_ms);
        live.batch(batch);
        Ok(())
    }

    /// An operator wants something.
    fn on_wish(&mut self) -> Result<(), Trouble> {
        let wish = self.pipeline.wishes.borrow_and_update().clone();
        self.hold();
        let Some((at, resolution)) = wish.resolution.filter(|(at, _)| self.blocked == Some(*at)) else {
            return Ok(());
        };
        self.parts().brake.release(self.partition());
        self.parts().owned.resolved(self.partition());
        // The next life judges it again, and finds it pardoned or not: nothing else moves an offset.
        let wanted = match resolution {
            Resolution::Skip => {
                self.pipeline.pardoned = Some(at);
                "passed over"
            }
            Resolution::Retry | Resolution::Unspecified => "judged again",
        };
        Err(Cause::Asked.because(format!("an operator wants offset {at} {wanted}")))
    }

    /// Holds the partition while an operator or another partition's bad record wants it so.
    fn hold(&mut self) {
        let paused = self.pipeline.wishes.borrow().paused.clone();
        let why = paused.map(|why| format!("paused: {why}")).or_else(|| self.parts().brake.reason());
        self.held_up = why.is_some();
        self.pipeline.learned(Input::Hold { why });
    }

    fn on_head(&mut self, high: NextOffset) -> Result<(), Trouble> {
        self.head = None;
        if NextOffset::after(self.begun_behind) > high {
            return Err(
                Cause::OutOfRange.because(format!("replay holds more than kafka, which ends at {high}"))
            );
        }
        self.pipeline.learned(Input::Head(high));
        Ok(())
    }

    fn on_statistics(&mut self, known: &Known) {
        let Some(fetched) = known.partitions.get(&self.partition()).copied() else { return };
        self.statistics = self.statistics.saturating_add(1);
        self.pipeline.learned(Input::Fetched { high_watermark: fetched.high_watermark });
        let trouble =
            (!fetched.leader_up).then(|| "no connection to the partition's leader in kafka".to_owned());
        self.pipeline.learned(Input::Source { trouble });
        // All that was fetched is durable, so what lies below the next fetch are control records and holes.
        let idle = self.statistics > 1 && self.appender.is_idle() && self.is_reading();
        if idle && fetched.queued == 0 {
            self.pipeline.learned(Input::Durable { next: fetched.next.min(fetched.high_watermark) });
        }
    }

    /// Says so when something that is waited for does not come.
    fn check_progress(&mut self) {
        if self.appender.waits_for() > STALLED_AFTER {
            let why =
                format!("replay has not acknowledged a batch for more than {} s", STALLED_AFTER.as_secs());
            self.pipeline.learned(Input::Unavailable { why });
        } else if let (Some(_), Some(why)) = (&self.pending, self.parts().letters.trouble()) {
            self.pipeline.learned(Input::Unavailable { why });
        }
    }

    /// Waits until what is in flight is stored, within a bound.
    async fn drain(&mut self) {
        let timeout = self.parts().config.revoke_timeout;
        let drained = tokio::time::timeout(timeout, async {
            while !self.appender.is_idle() {
                let answer = self.appender.next().await;
                self.on_answer(answer)?;
            }
            Ok::<(), Trouble>(())
        });
        match drained.await {
            Ok(Ok(())) => {}
            Ok(Err(trouble)) => {
                tracing::warn!(partition = %self.partition(), why = trouble.why, "drain ended early");
            }
            Err(_) => {
                let batches = self.appender.in_flight();
                self.parts().metrics.abandoned_batches.inc_by(batches);
                tracing::warn!(partition = %self.partition(), batches, "drain did not end in time");
            }
        }
    }
}

/// Ready when the letters of a pending batch are acknowledged.
async fn acknowledged(pending: &mut Option<Pending>) {
    if let Some(pending) = pending {
        (&mut pending.letters).await;
    }
}

async fn answered<T>(question: &mut Option<BoxFuture<'static, T>>) -> T {
    match question {
        Some(question) => question.await,
        None => std::future::pending().await,
    }
}

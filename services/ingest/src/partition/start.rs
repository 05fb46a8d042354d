//! Where a life begins: what replay holds decides, and Kafka is asked whether it still is the same log.
use super::{Cause, Pipeline, Trouble};
use crate::{config::Refill, kafka::Position, owned::now_ms};
use dashstream_core::{
    catch_up::Input,
    position::{Epoch, Link, NextOffset, Offset},
};
use dashstream_proto::replay::v1::{LastRecord, OpenPartitionRequest, OpenPartitionResponse};
use std::time::Duration;

/// How long replay may take to open a partition.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// Where to begin.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) epoch: Epoch,
    /// What replay holds.
    pub(super) link: Link,
    /// Where to fetch; `None` for the beginning of the partition.
    pub(super) fetch: Option<NextOffset>,
    /// Offsets that Kafka lost before they could be read.
    pub(super) lost: Option<(Offset, Offset)>,
    /// What Kafka must have at the link, if it has anything there.
    pub(super) expected: Option<LastRecord>,
    /// The head is not known yet.
    pub(super) headless: bool,
}

impl Pipeline {
    /// Asks Kafka and replay where to begin.
    pub(super) async fn prepare(&mut self) -> Result<Start, Trouble> {
        self.recall().await?;
        let partition = self.partition;
        let watermarks = self.ask(move |consumer| consumer.watermarks(partition)).await;
        // Without them the partition begins all the same; the head is asked for until it is known.
        let watermarks = watermarks
            .inspect_err(|error| self.parts.metrics.source.watermarks_failed(partition.get(), error))
            .ok();
        let low = watermarks.map(|(low, _)| low);
        let high = watermarks.map(|(_, high)| high);
        if high.is_some_and(|high| NextOffset::after(self.known_last) > high) {
            // Kafka ends before what was stored once: the topic was made anew, whatever the store still has.
            (self.known_epoch, self.known_last) = (None, None);
        }
        let mut opened = self.open(high, None).await?;
        let mut refill = None;
        if opened.last_offset.is_none() {
            let from = self.refill_from(&opened, low).await?;
            refill = Some(from);
            // What was stored last is older than all that is kept: the log goes on behind it, as if it had never
            // been away. Beginning anew would look like a loss to clients that stand there.
            let expired = self.known_last.filter(|last| from.is_some_and(|from| from > last.next()));
            if expired.is_some() && self.known_epoch == Some(Epoch::new(opened.epoch)) {
                opened = self.open(high, expired).await?;
            }
        }
        let held =
            opened.last_offset.map(Offset::new).transpose().map_err(|error| Cause::Refused.because(error))?;
        let epoch = Epoch::new(opened.epoch);
        self.opened(epoch, held, high);
        Ok(match (held, refill) {
            (None, Some(fetch)) => {
                Start { epoch, link: None, fetch, lost: None, expected: None, headless: high.is_none() }
            }
            _ => resume(epoch, held, opened.last_record, watermarks),
        })
    }

    /// Reads what was committed, once for each assignment.
    async fn recall(&mut self) -> Result<(), Trouble> {
        if self.recalled {
            return Ok(());
        }
        let partition = self.partition;
        let committed = self.ask(move |consumer| consumer.committed(partition)).await;
        if let Some(Position { epoch, last, paused, .. }) =
            committed.map_err(|error| Cause::Kafka.because(error))?
        {
            (self.known_epoch, self.known_last) = (Some(epoch), last);
            if paused.is_some() {
                // Only fails when the partition is no longer ours.
                self.parts.owned.pause(partition, paused).ok();
            }
        }
        self.recalled = true;
        Ok(())
    }

    fn opened(&mut self, epoch: Epoch, held: Link, high: Option<NextOffset>) {
        if self.known_epoch != Some(epoch) {
            (self.known_epoch, self.known_last, self.pardoned) = (Some(epoch), None, None);
        }
        self.known_last = self.known_last.max(held);
        self.diverged = None;
        self.learned(Input::Opened { epoch, held });
        if let Some(high) = high {
            self.learned(Input::Head(high));
        }
        if let Some(heartbeat) = self.parts.owned.heartbeat(self.partition) {
            self.parts.live.heartbeat(heartbeat);
        }
    }

    async fn open(&self, high: Option<NextOffset>, expired: Link) -> Result<OpenPartitionResponse, Trouble> {
        let request = OpenPartitionRequest {
            stream: self.parts.config.stream().to_owned(),
            partition: self.partition.get(),
            known_epoch: self.known_epoch.map(Epoch::get),
            high_watermark: high.map(NextOffset::get),
            diverged: self.diverged,
            expired_last_offset: expired.map(Offset::get),
        };
        let mut replay = self.parts.replay.clone();
        let opened = tokio::time::timeout(OPEN_TIMEOUT, replay.open_partition(request)).await;
        let late = |_| Cause::Unavailable.because(format!("replay gave no answer in {OPEN_TIMEOUT:?}"));
        Ok(opened.map_err(late)?.map_err(|status| Cause::Unavailable.because(status.message()))?.into_inner())
    }

    /// Where an empty store is refilled from: as far back as it keeps records, or as Kafka has them.
    async fn refill_from(
        &self,
        opened: &OpenPartitionResponse,
        low: Option<NextOffset>,
    ) -> Result<Option<NextOffset>, Trouble> {
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
        found.map(Some).map_err(|error| Cause::Kafka.because(error))
    }
}

/// Goes on behind what replay holds. What Kafka no longer has of it is lost, and said to be; what both have is
/// fetched once more, to see that it is the same.
fn resume(
    epoch: Epoch,
    held: Link,
    last_record: Option<LastRecord>,
    watermarks: Option<(NextOffset, NextOffset)>,
) -> Start {
    let next = NextOffset::after(held);
    let start = Start {
        epoch,
        link: held,
        fetch: Some(next),
        lost: None,
        expected: None,
        headless: watermarks.is_none(),
    };
    let Some((low, _)) = watermarks else { return start };
    if low > next {
        let lost = Some((Offset::clamped(next.get()), Offset::clamped(low.get() - 1)));
        return Start { fetch: Some(low), lost, ..start };
    }
    match held {
        Some(at) if low < next && last_record.is_some() => {
            let fetch = NextOffset::from_kafka(at.to_kafka()).ok();
            Start { fetch, expected: last_record, ..start }
        }
        _ => start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(value: i64) -> NextOffset {
        NextOffset::from_kafka(value).unwrap()
    }

    fn at(value: u64) -> Offset {
        Offset::new(value).unwrap()
    }

    fn resumed(low: Option<i64>, last_record: Option<LastRecord>) -> Start {
        resume(Epoch::new(1), Some(at(9)), last_record, low.map(|low| (mark(low), mark(40))))
    }

    #[test]
    fn what_kafka_lost_is_a_gap_with_exact_bounds() {
        let start = resumed(Some(20), Some(LastRecord::default()));
        assert_eq!((start.fetch, start.lost), (Some(mark(20)), Some((at(10), at(19)))));
        assert!(start.expected.is_none(), "what is gone can't be compared");
        for low in [None, Some(0), Some(10)] {
            let start = resumed(low, None);
            assert_eq!((start.fetch, start.lost), (Some(mark(10)), None), "{low:?}");
        }
    }

    #[test]
    fn the_last_record_held_is_fetched_again_where_kafka_may_have_it() {
        let last = Some(LastRecord::default());
        for (low, fetch, compared) in
            [(None, 10, false), (Some(0), 9, true), (Some(9), 9, true), (Some(10), 10, false)]
        {
            let start = resumed(low, last.clone());
            assert_eq!((start.fetch, start.expected.is_some()), (Some(mark(fetch)), compared), "{low:?}");
        }
        assert!(resumed(None, None).headless && !resumed(Some(0), None).headless);
    }
}

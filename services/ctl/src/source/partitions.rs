//! Parts of partitions, read without a group: nothing is committed.
use crate::topics::Names;
use anyhow::{Context, bail};
use dashstream_core::position::Partition;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::BorrowedMessage,
};
use std::time::{Duration, Instant};

/// How long Kafka may say nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(100);

/// Offsets of a partition that can be read: from `low` on, before `high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub partition: Partition,
    pub low: i64,
    pub high: i64,
    /// Where the partition begins.
    earliest: i64,
}

impl Part {
    /// The last `count` offsets of it.
    pub fn last(self, count: i64) -> Self {
        Self { low: self.high.saturating_sub(count).max(self.low), ..self }
    }

    /// The one offset at `offset`.
    pub fn only(self, offset: i64) -> Self {
        Self { low: offset, high: offset.saturating_add(1), ..self }
    }

    /// Those from `first` to `last`, as far as they are there.
    pub fn between(self, first: i64, last: i64) -> Self {
        let high = self.high.min(last.saturating_add(1));
        Self { low: self.low.max(first).min(high), high, ..self }
    }

    /// It begins where the partition does.
    pub fn is_all(self) -> bool {
        self.low <= self.earliest
    }
}

impl Names {
    /// A consumer that reads what it is told to, and commits nothing. The group that it names is never joined:
    /// without one, librdkafka delivers no records.
    pub(crate) fn consumer(&self) -> anyhow::Result<BaseConsumer> {
        let mut settings = self.kafka.client_config("dashstream-dlq", &[])?;
        settings
            .set("group.id", "dashstream-dlq")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "100");
        settings.create().context("make a Kafka consumer")
    }
}

/// What there is of each partition of a topic.
///
/// # Errors
/// When there is no such topic, or Kafka does not answer.
pub fn ends(consumer: &BaseConsumer, topic: &str) -> anyhow::Result<Vec<Part>> {
    let metadata =
        consumer.fetch_metadata(Some(topic), ANSWER_TIMEOUT).context("ask Kafka for its topics")?;
    let found = metadata.topics().first().with_context(|| format!("Kafka has no topic {topic}"))?;
    if let Some(error) = found.error() {
        bail!("the topic {topic}: {}", rdkafka::error::RDKafkaErrorCode::from(error));
    }
    let ids = found.partitions().iter().map(|partition| Partition::new(partition.id()));
    ids.map(|partition| end(consumer, topic, partition?)).collect()
}

/// What there is of a partition.
///
/// # Errors
/// As [`ends`].
pub fn end(consumer: &BaseConsumer, topic: &str, partition: Partition) -> anyhow::Result<Part> {
    let (low, high) = consumer
        .fetch_watermarks(topic, partition.get(), ANSWER_TIMEOUT)
        .with_context(|| format!("ask Kafka where {topic}/{partition} begins and ends"))?;
    Ok(Part { partition, low, high, earliest: low })
}

/// Reads these partitions from these offsets on.
///
/// # Errors
/// When librdkafka refuses.
pub fn assign(
    consumer: &BaseConsumer,
    topic: &str,
    starts: impl Iterator<Item = (Partition, i64)>,
) -> anyhow::Result<()> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in starts {
        list.add_partition_offset(topic, partition.get(), Offset::Offset(offset))?;
    }
    Ok(consumer.assign(&list)?)
}

/// Hands on each record of these parts, with the index of its part, in the order of each partition.
///
/// # Errors
/// When Kafka says nothing for long; the error has its last complaint.
pub fn read(
    consumer: &BaseConsumer,
    topic: &str,
    parts: &[Part],
    mut each: impl FnMut(usize, &BorrowedMessage<'_>),
) -> anyhow::Result<()> {
    let mut open: Vec<bool> = parts.iter().map(|part| part.low < part.high).collect();
    let unread = parts.iter().filter(|part| part.low < part.high);
    assign(consumer, topic, unread.map(|part| (part.partition, part.low)))?;
    let index = |partition: i32| parts.iter().position(|part| part.partition.get() == partition);
    let (mut heard, mut complaint) = (Instant::now(), None);
    while open.contains(&true) {
        match consumer.poll(POLL) {
            Some(Ok(record)) => {
                heard = Instant::now();
                let Some(index) = index(record.partition()) else { continue };
                if record.offset() < parts[index].high {
                    each(index, &record);
                }
                open[index] &= record.offset() + 1 < parts[index].high;
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                heard = Instant::now();
                index(partition).into_iter().for_each(|index| open[index] = false);
            }
            Some(Err(error)) => complaint = Some(error),
            None => {}
        }
        if heard.elapsed() > ANSWER_TIMEOUT {
            let complaint = complaint.map_or("no answer".to_owned(), |error| error.to_string());
            bail!("read {topic}: {complaint}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_offsets_end_where_the_partition_begins() {
        let part = Part { partition: Partition::new(0).unwrap(), low: 10, high: 30, earliest: 10 };
        for (count, low, is_all) in [(5, 25, false), (19, 11, false), (20, 10, true), (i64::MAX, 10, true)] {
            let last = part.last(count);
            assert_eq!((last.low, last.high, last.is_all()), (low, 30, is_all), "{count}");
        }
    }
}

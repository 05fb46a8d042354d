//! Reads the topic of dead letters, without a group: what was read by whom is nobody's business.
use crate::{output::warn, source::partitions, topics::Names};
use dashstream_core::{
    dead_letter::{Coordinates, DeadLetter},
    position::{Offset, Partition},
};
use rdkafka::{Message, consumer::BaseConsumer, message::BorrowedMessage};
use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio_util::sync::CancellationToken;

/// Offsets of each partition that are read at first, from the end. If what is looked for is not among them, more
/// and more of them are.
const WINDOW: i64 = 256;
const WINDOW_GROWTH: i64 = 8;
const POLL: Duration = Duration::from_millis(100);

/// A letter, and where it lies in the topic of dead letters.
#[derive(Clone, Debug)]
pub struct Found {
    pub at: Coordinates,
    pub letter: DeadLetter,
}

/// Which letters.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub partition: Option<i32>,
    /// The error's label.
    pub class: Option<String>,
    /// Judged then or later, milliseconds since 1970.
    pub since_ms: Option<i64>,
}

impl Filter {
    fn takes(&self, letter: &DeadLetter) -> bool {
        self.partition.is_none_or(|partition| partition == letter.at.partition.get())
            && self.class.as_ref().is_none_or(|class| *class == letter.error)
            && self.since_ms.is_none_or(|since| since <= letter.judged_ms)
    }
}

/// When that was, milliseconds since 1970.
pub fn ago_ms(ago: Duration) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.saturating_sub(ago).as_millis()).unwrap_or(i64::MAX)
}

/// The newest letters, newest first.
#[derive(Clone, Debug)]
pub struct Newest {
    pub found: Vec<Found>,
    /// Records that were read and are no letters of this version.
    pub foreign: u64,
}

/// The newest letters that the filter takes, at most `limit`.
///
/// # Errors
/// When the topic does not exist or Kafka does not answer.
pub async fn newest(kafka: &Names, filter: Filter, limit: usize) -> anyhow::Result<Newest> {
    let takes = move |letter: &DeadLetter| filter.takes(letter);
    let enough = move |kept: &[Kept]| kept.iter().all(|kept| kept.is_all || kept.by_offset.len() >= limit);
    let mut newest = search(kafka, limit, takes, enough).await?;
    newest.found.sort_by_key(|found| std::cmp::Reverse((found.letter.judged_ms, found.at.offset)));
    newest.found.truncate(limit);
    Ok(newest)
}

/// The newest letter of one record. All of a record's letters have the same key, so they share a partition.
///
/// # Errors
/// As [`newest`].
pub async fn of(kafka: &Names, at: &Coordinates) -> anyhow::Result<Option<Found>> {
    let wanted = at.clone();
    let takes = move |letter: &DeadLetter| letter.at == wanted;
    let enough = |kept: &[Kept]| {
        kept.iter().any(|kept| !kept.by_offset.is_empty()) || kept.iter().all(|kept| kept.is_all)
    };
    Ok(search(kafka, 1, takes, enough).await?.found.pop())
}

/// The newest letters of one partition of the topic, one for each record.
#[derive(Debug, Default)]
struct Kept {
    by_offset: BTreeMap<Offset, Found>,
    offsets: HashMap<Coordinates, Offset>,
    /// Nothing lies before what was read.
    is_all: bool,
}

impl Kept {
    fn push(&mut self, found: Found, limit: usize) {
        let offset = found.at.offset;
        if let Some(repeated) = self.offsets.insert(found.letter.at.clone(), offset) {
            self.by_offset.remove(&repeated);
        }
        self.by_offset.insert(offset, found);
        while self.by_offset.len() > limit {
            if let Some((_, oldest)) = self.by_offset.pop_first() {
                self.offsets.remove(&oldest.letter.at);
            }
        }
    }
}

/// Reads the end of each partition, and more of it until there is `enough`.
async fn search(
    kafka: &Names,
    limit: usize,
    takes: impl Fn(&DeadLetter) -> bool + Send + 'static,
    enough: impl Fn(&[Kept]) -> bool + Send + 'static,
) -> anyhow::Result<Newest> {
    let (kafka, topic) = (kafka.clone(), kafka.dlq());
    let reading = move || {
        let consumer = kafka.consumer()?;
        let ends = partitions::ends(&consumer, &topic)?;
        let mut window = WINDOW;
        loop {
            let parts = ends.iter().map(|end| end.last(window)).collect::<Vec<_>>();
            let mut kept: Vec<Kept> =
                parts.iter().map(|part| Kept { is_all: part.is_all(), ..Kept::default() }).collect();
            let mut foreign = 0;
            partitions::read(&consumer, &topic, &parts, |index, record| match found(record) {
                Some(found) if takes(&found.letter) => kept[index].push(found, limit),
                Some(_) => {}
                None => foreign += 1,
            })?;
            if enough(&kept) {
                let found = kept.into_iter().flat_map(|kept| kept.by_offset.into_values()).collect();
                return Ok(Newest { found, foreign });
            }
            window = window.saturating_mul(WINDOW_GROWTH);
        }
    };
    tokio::task::spawn_blocking(reading).await?
}

/// Hands on each letter that comes from now on, until `stop`.
///
/// # Errors
/// As [`newest`].
pub async fn follow(
    kafka: &Names,
    filter: Filter,
    stop: CancellationToken,
    each: impl Fn(&Found) + Send + 'static,
) -> anyhow::Result<()> {
    let (kafka, topic) = (kafka.clone(), kafka.dlq());
    let following = move || {
        let consumer: BaseConsumer = kafka.consumer()?;
        let ends = partitions::ends(&consumer, &topic)?;
        partitions::assign(&consumer, &topic, ends.iter().map(|end| (end.partition, end.high)))?;
        while !stop.is_cancelled() {
            match consumer.poll(POLL) {
                Some(Ok(record)) => match found(&record) {
                    Some(found) if filter.takes(&found.letter) => each(&found),
                    Some(_) => {}
                    None => warn(format_args!(
                        "{topic}/{}/{} is no dead letter of this version",
                        record.partition(),
                        record.offset()
                    )),
                },
                // Its end is no error of a partition that is followed.
                Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) | None => {}
                Some(Err(error)) => warn(format_args!("kafka: {error}")),
            }
        }
        Ok(())
    };
    tokio::task::spawn_blocking(following).await?
}

fn found(record: &BorrowedMessage<'_>) -> Option<Found> {
    let at = Coordinates {
        topic: record.topic().to_owned(),
        partition: Partition::new(record.partition()).ok()?,
        offset: Offset::from_kafka(record.offset()).ok()?,
    };
    let letter = DeadLetter::from_json(record.payload()?);
    let letter =
        letter.inspect_err(|error| tracing::debug!(%at, %error, "no dead letter of this version")).ok()?;
    Some(Found { at, letter })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dashstream_core::dead_letter::{Age, Keep, Source, Verdict};

    fn letter(at: &str, error: &'static str, judged_ms: i64) -> DeadLetter {
        let source = Source {
            at: at.parse().unwrap(),
            epoch: None,
            timestamp_ms: None,
            key: None,
            value: None,
            traceparent: "",
            tracestate: "",
            retry: None,
        };
        let verdict = Verdict { error, message: "", age: Age::New, judged_ms, owner: "" };
        DeadLetter::new(source, verdict, Keep::default())
    }

    #[test]
    fn a_filter_takes_what_fits_all_of_it() {
        let letter = letter("runs/3/17", "empty", 1_000);
        let filter = |partition, class: Option<&str>, since_ms| Filter {
            partition,
            class: class.map(str::to_owned),
            since_ms,
        };
        for (taken, filter) in [
            (true, filter(None, None, None)),
            (true, filter(Some(3), Some("empty"), Some(1_000))),
            (false, filter(Some(4), Some("empty"), Some(1_000))),
            (false, filter(Some(3), Some("missing"), Some(1_000))),
            (false, filter(Some(3), Some("empty"), Some(1_001))),
        ] {
            assert_eq!(filter.takes(&letter), taken, "{filter:?}");
        }
    }

    #[test]
    fn of_each_record_the_newest_letter_is_kept_and_no_more_than_the_limit() {
        let mut kept = Kept::default();
        for (offset, of) in [(0, 1), (1, 2), (2, 1), (3, 3), (4, 3)] {
            let at = format!("runs-dlq/0/{offset}").parse().unwrap();
            kept.push(Found { at, letter: letter(&format!("runs/0/{of}"), "empty", 0) }, 2);
        }
        let offsets: Vec<_> = kept
            .by_offset
            .values()
            .map(|found| (found.at.offset.get(), found.letter.at.offset.get()))
            .collect();
        assert_eq!(offsets, [(2, 1), (4, 3)]);
        assert_eq!(kept.offsets.len(), 2);
    }
}

//! Records by their place in Kafka: fetched once more, and produced once more.
use crate::topics::Names;
use anyhow::{Context, bail, ensure};
use dashstream_core::{
    dead_letter::{Coordinates, DeadLetter, RETRY_COUNT, RETRY_OF, Retry},
    position::{Offset, Partition},
};
use rdkafka::{
    Message,
    consumer::BaseConsumer,
    message::{BorrowedMessage, Header, Headers, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
    util::Timeout,
};
use std::time::Duration;

pub mod partitions;

/// How long Kafka's client goes on trying to write a record.
const PRODUCE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a producer wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub key: Option<Vec<u8>>,
    /// `None` for a tombstone.
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        let headers = headers.map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)));
        Self {
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.collect(),
        }
    }

    /// What a letter has of its record, for when Kafka has it no more; `None` where the key is not whole, or the
    /// value is not while there is none `other`.
    pub fn from_letter(letter: &DeadLetter, other: bool) -> Option<Self> {
        let key = letter.key.as_ref().map(|key| key.whole().map(<[u8]>::to_vec).ok_or(()));
        let value = match &letter.value {
            Some(value) if !other => Some(value.whole.clone()?),
            Some(_) | None => None,
        };
        let mut headers = Vec::new();
        let retry = letter.retry.as_ref();
        for (name, text) in [
            ("traceparent", letter.traceparent.clone()),
            ("tracestate", letter.tracestate.clone()),
            (RETRY_OF, retry.map(|retry| retry.of.to_string()).unwrap_or_default()),
            (RETRY_COUNT, retry.map(|retry| retry.count.to_string()).unwrap_or_default()),
        ] {
            if !text.is_empty() {
                headers.push((name.to_owned(), Some(text.into_bytes())));
            }
        }
        Some(Self { key: key.transpose().ok()?, value, headers })
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(key, _)| key == name)?.1.as_deref()
    }

    /// The headers of the next attempt at this record, which lies `at`.
    fn next_headers(&self, at: &Coordinates) -> OwnedHeaders {
        let before = Retry::from_headers(self.header(RETRY_OF), self.header(RETRY_COUNT));
        let retry = Retry::next(before.as_ref(), at);
        let kept = self.headers.iter().filter(|(key, _)| key != RETRY_OF && key != RETRY_COUNT);
        let headers = kept.fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: value.as_deref() })
        });
        headers
            .insert(Header { key: RETRY_OF, value: Some(&retry.of.to_string()) })
            .insert(Header { key: RETRY_COUNT, value: Some(&retry.count.to_string()) })
    }
}

/// The record that lies there.
///
/// # Errors
/// When Kafka no longer has it, never had it, or does not answer.
pub async fn fetch(kafka: &Names, at: &Coordinates) -> anyhow::Result<Record> {
    let (kafka, at) = (kafka.clone(), at.clone());
    let fetching = move || {
        let consumer: BaseConsumer = kafka.consumer()?;
        let end = partitions::end(&consumer, &at.topic, at.partition)?;
        let offset = at.offset.to_kafka();
        ensure!(
            offset >= end.low,
            "Kafka no longer has {at}: what it keeps of that partition begins at {}",
            end.low
        );
        ensure!(
            offset < end.high,
            "Kafka has no {at}: that partition ends before {}, so the topic was made anew",
            end.high
        );
        let mut record = None;
        partitions::read(&consumer, &at.topic, &[end.only(offset)], |_, message| {
            record = Some(Record::of(message))
        })?;
        record.with_context(|| {
            format!("Kafka no longer has {at}: compaction took it, or its transaction was aborted")
        })
    };
    tokio::task::spawn_blocking(fetching).await?
}

/// Writes a record to its partition again, with its key and headers, and `value` instead of its own if there is one.
/// Returns where it is.
///
/// # Errors
/// When Kafka does not acknowledge it. Where the error is about time, it may be there regardless.
pub async fn produce_again(
    kafka: &Names,
    at: &Coordinates,
    original: Record,
    value: Option<Vec<u8>>,
) -> anyhow::Result<Coordinates> {
    let mut settings = kafka.kafka.client_config("dashstream-dlq", &[])?;
    settings
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("message.max.bytes", "100000000")
        .set("message.timeout.ms", PRODUCE_TIMEOUT.as_millis().to_string());
    let producer: FutureProducer = settings.create().context("make a Kafka producer")?;
    let headers = original.next_headers(at);
    let value = value.or(original.value);
    let mut record = FutureRecord::<[u8], [u8]>::to(&at.topic).partition(at.partition.get()).headers(headers);
    record.key = original.key.as_deref();
    record.payload = value.as_deref();
    match producer.send(record, Timeout::After(PRODUCE_TIMEOUT)).await {
        Ok(written) => Ok(Coordinates {
            topic: at.topic.clone(),
            partition: Partition::new(written.partition)?,
            offset: Offset::from_kafka(written.offset)?,
        }),
        Err((error, _)) => bail!("write {at} again: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dashstream_core::dead_letter::{Age, Keep, Source, Verdict};

    fn letter(key: &[u8], whole: bool) -> DeadLetter {
        let source = Source {
            at: "runs/3/17".parse().unwrap(),
            epoch: None,
            timestamp_ms: None,
            key: Some(key),
            value: Some(b"value"),
            traceparent: "00-trace",
            tracestate: "",
            retry: Some(Retry { of: "runs/3/5".parse().unwrap(), count: 1 }),
        };
        let verdict = Verdict { error: "empty", message: "", age: Age::New, judged_ms: 0, owner: "" };
        DeadLetter::new(source, verdict, Keep { prefix_bytes: 2, whole })
    }

    #[test]
    fn a_letter_stands_in_for_its_record_only_when_it_has_all_that_is_needed() {
        let long = [b'k'; 4_000];
        for (why, letter, other, expected) in [
            ("it has all", letter(b"key", true), false, Some(Some(b"value".to_vec()))),
            ("the value is another", letter(b"key", false), true, Some(None)),
            ("the value is not whole", letter(b"key", false), false, None),
            ("the key is not whole", letter(&long, true), true, None),
        ] {
            let record = Record::from_letter(&letter, other);
            assert_eq!(record.map(|record| record.value), expected, "{why}");
        }
    }

    #[test]
    fn the_next_attempt_has_the_headers_of_the_last_and_counts_on() {
        let record = Record::from_letter(&letter(b"key", true), false).unwrap();
        let headers = record.next_headers(&"runs/3/17".parse().unwrap());
        let text = |value: Option<&[u8]>| String::from_utf8(value.unwrap().to_vec()).unwrap();
        let headers: Vec<_> =
            headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect();
        let expected = [("traceparent", "00-trace"), (RETRY_OF, "runs/3/5"), (RETRY_COUNT, "2")];
        assert_eq!(headers, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }
}

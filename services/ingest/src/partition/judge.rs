//! From a record of Kafka to its judgement, and to what is written of it.
use super::Parts;
use dashstream_core::{
    batch::Envelope,
    codec::{Facts, Limits},
    policy::{self, Judgement},
    position::{Link, Offset, Partition},
};
use rdkafka::{
    Message, Timestamp,
    message::{BorrowedMessage, Headers},
};

/// Kafka's timestamp of a record, milliseconds since 1970.
pub(super) fn timestamp_ms(message: &BorrowedMessage<'_>) -> Option<i64> {
    match message.timestamp() {
        Timestamp::NotAvailable => None,
        Timestamp::CreateTime(ms) | Timestamp::LogAppendTime(ms) => Some(ms),
    }
}

pub(super) fn judge(
    parts: &Parts,
    partition: Partition,
    at: Offset,
    link: Link,
    message: &BorrowedMessage<'_>,
) -> Judgement {
    let limits = Limits { message_bytes_max: parts.config.message_bytes_max as usize };
    let home = |facts: &Facts| parts.threads.home(&facts.tenant_id, &facts.thread_id, partition);
    let judgement = policy::judge(at, link, message.payload(), limits, home);
    if let Judgement::Strayed { facts, home } = &judgement {
        parts.metrics.source.strayed(partition, at, &facts.thread_id, *home);
    }
    judgement
}

/// A record as the log has it.
pub(super) fn envelope(at: Offset, facts: Facts, message: &BorrowedMessage<'_>) -> Envelope {
    let (traceparent, tracestate) = (text(message, "traceparent"), text(message, "tracestate"));
    Envelope {
        offset: at,
        timestamp_ms: timestamp_ms(message),
        facts,
        traceparent: traceparent.to_owned(),
        tracestate: tracestate.to_owned(),
    }
}

/// A header's value; `None` where there is no such header, or an empty one.
fn header<'a>(message: &'a BorrowedMessage<'_>, key: &str) -> Option<&'a [u8]> {
    message.headers()?.iter().find(|header| header.key == key)?.value
}

/// A header's value where it is text; else nothing.
fn text<'a>(message: &'a BorrowedMessage<'_>, key: &str) -> &'a str {
    header(message, key).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default()
}

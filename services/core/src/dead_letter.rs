//! A dead letter: what is kept of a record that does not decode, so that a person can find it, judge it and
//! bring it back.
//!
//! The bytes themselves stay where they are, in the source topic, and are named by their place and their
//! SHA-256. A letter has only their beginning, so that it neither leaks what is inside nor grows beyond what
//! Kafka takes: with the default settings it is below [`LETTER_BYTES_MAX`], whatever the record was.
use crate::position::{Epoch, Offset, Partition};
use sha2::Digest as _;
use std::{borrow::Cow, fmt, str::FromStr};

mod json;

pub use json::Malformed;

/// Header of a record that was produced again: the place of the first one, `topic/partition/offset`.
pub const RETRY_OF: &str = "dashstream-retry-of";
/// Header of a record that was produced again: how often, in decimal.
pub const RETRY_COUNT: &str = "dashstream-retry-count";

/// Bytes of the value that a letter has unless set otherwise.
pub const PREFIX_BYTES: usize = 256;
/// Size of a letter in JSON with at most [`PREFIX_BYTES`] of the value, and without the whole of it.
pub const LETTER_BYTES_MAX: usize = 8 << 10;

/// Kafka's own limit.
const TOPIC_BYTES_MAX: usize = 249;
const KEY_PREFIX_BYTES: usize = 256;
const LABEL_BYTES_MAX: usize = 64;
const MESSAGE_BYTES_MAX: usize = 512;
const OWNER_BYTES_MAX: usize = 128;
/// A traceparent has 55 bytes, a tracestate at most 512.
const TRACE_BYTES_MAX: usize = 512;

/// Where a record lies in Kafka. In text `topic/partition/offset`, which is a letter's key: repeats compact.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Coordinates {
    pub topic: String,
    pub partition: Partition,
    pub offset: Offset,
}

/// Not `topic/partition/offset`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `topic/partition/offset`, found `{0}`")]
pub struct NoCoordinates(String);

impl fmt::Display for Coordinates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl FromStr for Coordinates {
    type Err = NoCoordinates;

    fn from_str(text: &str) -> Result<Self, NoCoordinates> {
        let read = || {
            let mut parts = text.split('/');
            let (topic, partition, offset) = (parts.next()?, parts.next()?, parts.next()?);
            if topic.is_empty() || topic.len() > TOPIC_BYTES_MAX || parts.next().is_some() {
                return None;
            }
            let partition = Partition::new(partition.parse().ok()?).ok()?;
            let offset = Offset::new(offset.parse().ok()?).ok()?;
            Some(Self { topic: topic.to_owned(), partition, offset })
        };
        read().ok_or_else(|| NoCoordinates(text.chars().take(TOPIC_BYTES_MAX).collect()))
    }
}

/// The SHA-256 of some bytes. In text 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which side of the head a record was on: what was there before ingest looked, or what came since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Age {
    /// Below the head.
    Old,
    /// At or past the head.
    New,
    /// The head was not known when the record was judged.
    Unclassified,
}

impl Age {
    pub fn label(self) -> &'static str {
        match self {
            Self::Old => "old",
            Self::New => "new",
            Self::Unclassified => "unclassified",
        }
    }
}

/// A record that was produced again after it became a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The first of its kind: where the record lay when it came from its producer.
    pub of: Coordinates,
    /// How often it was produced again; at least 1.
    pub count: u32,
}

impl Retry {
    /// What a record's headers say; `None` where they say nothing that makes sense.
    pub fn from_headers(of: Option<&[u8]>, count: Option<&[u8]>) -> Option<Self> {
        let text = |value| std::str::from_utf8(value).ok();
        let of = text(of?)?.parse().ok()?;
        let count = text(count?)?.parse().ok()?;
        (count > 0).then_some(Self { of, count })
    }

    /// What the next attempt says, for a record that lies `at` and was itself attempt `before`.
    pub fn next(before: Option<&Self>, at: &Coordinates) -> Self {
        match before {
            Some(before) => Self { of: before.of.clone(), count: before.count.saturating_add(1) },
            None => Self { of: at.clone(), count: 1 },
        }
    }
}

/// The beginning of some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// How many there were.
    pub bytes: u64,
    /// The first of them.
    pub prefix: Vec<u8>,
}

impl Excerpt {
    fn of(bytes: &[u8], most: usize) -> Self {
        Self { bytes: bytes.len() as u64, prefix: bytes[..bytes.len().min(most)].to_vec() }
    }

    /// All the bytes, where none were left out.
    pub fn whole(&self) -> Option<&[u8]> {
        (self.prefix.len() as u64 == self.bytes).then_some(&self.prefix)
    }
}

/// What is kept of a record's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub excerpt: Excerpt,
    /// Of all its bytes.
    pub sha256: Sha256,
    /// All its bytes, where ingest was told to keep them.
    pub whole: Option<Vec<u8>>,
}

/// A record as Kafka has it.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    pub at: Coordinates,
    /// Life of the partition's log, where it is known.
    pub epoch: Option<Epoch>,
    /// Kafka's timestamp, milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'a [u8]>,
    /// `None` for a tombstone.
    pub value: Option<&'a [u8]>,
    /// W3C trace context; empty where there is none.
    pub traceparent: &'a str,
    pub tracestate: &'a str,
    pub retry: Option<Retry>,
}

/// What ingest thinks of a record.
#[derive(Clone, Copy, Debug)]
pub struct Verdict<'a> {
    /// The class of the error: a label from a set known in advance.
    pub error: &'static str,
    /// The error in a sentence.
    pub message: &'a str,
    pub age: Age,
    /// When it was judged, milliseconds since 1970.
    pub judged_ms: i64,
    /// The replica that judged.
    pub owner: &'a str,
}

/// How much of a value is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Of its beginning, bytes.
    pub prefix_bytes: usize,
    /// All of it besides.
    pub whole: bool,
}

impl Default for Keep {
    fn default() -> Self {
        Self { prefix_bytes: PREFIX_BYTES, whole: false }
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where the record lies.
    pub at: Coordinates,
    /// Life of the partition's log, where it was known.
    pub epoch: Option<Epoch>,
    /// Kafka's timestamp of the record, milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
    /// `None` where the record had no key.
    pub key: Option<Excerpt>,
    /// `None` for a tombstone.
    pub value: Option<Value>,
    /// W3C trace context; empty where there was none, or a longer one than the standard allows.
    pub traceparent: String,
    pub tracestate: String,
    /// `None` for a record that came from its producer.
    pub retry: Option<Retry>,
    /// The class of the error.
    pub error: Cow<'static, str>,
    /// The error in a sentence.
    pub message: String,
    pub age: Age,
    /// When it was judged, milliseconds since 1970.
    pub judged_ms: i64,
    /// The replica that judged.
    pub owner: String,
}

impl DeadLetter {
    pub fn new(source: Source<'_>, verdict: Verdict<'_>, keep: Keep) -> Self {
        let value = source.value.map(|bytes| Value {
            excerpt: Excerpt::of(bytes, keep.prefix_bytes),
            sha256: Sha256::of(bytes),
            whole: keep.whole.then(|| bytes.to_vec()),
        });
        Self {
            at: source.at,
            epoch: source.epoch,
            timestamp_ms: source.timestamp_ms,
            key: source.key.map(|key| Excerpt::of(key, KEY_PREFIX_BYTES)),
            value,
            traceparent: trace(source.traceparent),
            tracestate: trace(source.tracestate),
            retry: source.retry,
            error: Cow::Borrowed(verdict.error),
            message: plain(verdict.message, MESSAGE_BYTES_MAX),
            age: verdict.age,
            judged_ms: verdict.judged_ms,
            owner: plain(verdict.owner, OWNER_BYTES_MAX),
        }
    }

    /// Key of the letter in Kafka.
    pub fn record_key(&self) -> String {
        self.at.to_string()
    }

    /// Whether it carries all bytes of the value.
    pub fn is_whole(&self) -> bool {
        self.value.as_ref().is_some_and(|value| value.whole.is_some())
    }

    /// The letter without all bytes of the value: small enough for any topic.
    #[must_use]
    pub fn without_whole(mut self) -> Self {
        if let Some(value) = &mut self.value {
            value.whole = None;
        }
        self
    }
}

/// A part of a trace context would be worthless, so it is all or nothing.
fn trace(text: &str) -> String {
    let fits = text.len() <= TRACE_BYTES_MAX && text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if fits { text.to_owned() } else { String::new() }
}

/// Text without control characters, which JSON would make six times as long, cut to `most` bytes.
fn plain(text: &str, most: usize) -> String {
    let end = text.floor_char_boundary(most);
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;

//! Letters in JSON, version 1. 64-bit numbers are decimal strings, bytes are base64. What a letter rests on is
//! checked when it is read; members that a later version adds are passed over.
use super::{Age, Coordinates, DeadLetter, Excerpt, LABEL_BYTES_MAX, Retry, Sha256, TOPIC_BYTES_MAX, Value};
use crate::position::{Epoch, Offset, Partition};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

const VERSION: u32 = 1;

/// Why some bytes are no dead letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("not the JSON of a dead letter: {0}")]
    Json(String),
    #[error("a dead letter of version {0}: expected {VERSION}")]
    Version(u32),
    #[error("`{member}` of the dead letter: {why}")]
    Member { member: &'static str, why: String },
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Letter {
    version: u32,
    topic: String,
    partition: i32,
    offset: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timestamp_ms: Option<String>,
    error: String,
    message: String,
    age: String,
    judged_ms: String,
    owner: String,
    /// `null` for a record without one.
    key: Option<Key>,
    /// `null` for a tombstone.
    value: Option<Bytes>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    traceparent: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    tracestate: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_of: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry_count: Option<u32>,
}

#[derive(Serialize, Deserialize)]
struct Key {
    bytes: String,
    prefix_base64: String,
}

#[derive(Serialize, Deserialize)]
struct Bytes {
    bytes: String,
    sha256: String,
    prefix_base64: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    whole_base64: Option<String>,
}

impl DeadLetter {
    /// The letter as it goes into Kafka.
    pub fn to_json(&self) -> Vec<u8> {
        // A struct of numbers and strings has no way to fail.
        serde_json::to_vec(&Letter::from(self)).unwrap_or_default()
    }

    /// A letter as it came out of Kafka.
    ///
    /// # Errors
    /// [`Malformed`] names the member that is wrong, and what was expected.
    pub fn from_json(json: &[u8]) -> Result<Self, Malformed> {
        let Versioned { version } = serde_json::from_slice(json).map_err(not_json)?;
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        serde_json::from_slice::<Letter>(json).map_err(not_json)?.try_into()
    }
}

fn not_json(error: serde_json::Error) -> Malformed {
    Malformed::Json(error.to_string())
}

impl From<&DeadLetter> for Letter {
    fn from(letter: &DeadLetter) -> Self {
        let DeadLetter { at: Coordinates { topic, partition, offset }, .. } = letter;
        Self {
            version: VERSION,
            topic: topic.clone(),
            partition: partition.get(),
            offset: offset.to_string(),
            epoch: letter.epoch.map(|epoch| epoch.to_string()),
            timestamp_ms: letter.timestamp_ms.map(|ms| ms.to_string()),
            error: letter.error.to_string(),
            message: letter.message.clone(),
            age: letter.age.label().to_owned(),
            judged_ms: letter.judged_ms.to_string(),
            owner: letter.owner.clone(),
            key: letter
                .key
                .as_ref()
                .map(|key| Key { bytes: key.bytes.to_string(), prefix_base64: STANDARD.encode(&key.prefix) }),
            value: letter.value.as_ref().map(|value| Bytes {
                bytes: value.excerpt.bytes.to_string(),
                sha256: value.sha256.to_string(),
                prefix_base64: STANDARD.encode(&value.excerpt.prefix),
                whole_base64: value.whole.as_ref().map(|whole| STANDARD.encode(whole)),
            }),
            traceparent: letter.traceparent.clone(),
            tracestate: letter.tracestate.clone(),
            retry_of: letter.retry.as_ref().map(|retry| retry.of.to_string()),
            retry_count: letter.retry.as_ref().map(|retry| retry.count),
        }
    }
}

impl TryFrom<Letter> for DeadLetter {
    type Error = Malformed;

    fn try_from(letter: Letter) -> Result<Self, Malformed> {
        if letter.topic.is_empty() || letter.topic.len() > TOPIC_BYTES_MAX {
            return wrong("topic", format!("expected 1 to {TOPIC_BYTES_MAX} bytes"));
        }
        if letter.error.is_empty() || letter.error.len() > LABEL_BYTES_MAX {
            return wrong("error", format!("expected 1 to {LABEL_BYTES_MAX} bytes"));
        }
        let partition = Partition::new(letter.partition);
        let offset = Offset::new(number("offset", &letter.offset)?);
        let at = Coordinates {
            topic: letter.topic,
            partition: partition.or_else(|error| wrong("partition", error.to_string()))?,
            offset: offset.or_else(|error| wrong("offset", error.to_string()))?,
        };
        let epoch = letter.epoch.map(|epoch| number("epoch", &epoch)).transpose()?;
        Ok(Self {
            at,
            epoch: epoch.map(Epoch::new),
            timestamp_ms: letter.timestamp_ms.map(|ms| number("timestamp_ms", &ms)).transpose()?,
            key: letter.key.map(|key| excerpt("key", &key.bytes, &key.prefix_base64)).transpose()?,
            value: letter.value.map(value).transpose()?,
            traceparent: letter.traceparent,
            tracestate: letter.tracestate,
            retry: retry(letter.retry_of, letter.retry_count)?,
            error: letter.error.into(),
            message: letter.message,
            age: age(&letter.age)?,
            judged_ms: number("judged_ms", &letter.judged_ms)?,
            owner: letter.owner,
        })
    }
}

fn wrong<T>(member: &'static str, why: String) -> Result<T, Malformed> {
    Err(Malformed::Member { member, why })
}

fn number<T: FromStr>(member: &'static str, text: &str) -> Result<T, Malformed> {
    text.parse().or_else(|_| wrong(member, format!("expected a 64-bit number, found `{text:.40}`")))
}

fn base64(member: &'static str, text: &str) -> Result<Vec<u8>, Malformed> {
    STANDARD.decode(text).or_else(|error| wrong(member, format!("expected base64: {error}")))
}

fn age(text: &str) -> Result<Age, Malformed> {
    let found = [Age::Old, Age::New, Age::Unclassified].into_iter().find(|age| age.label() == text);
    found.map_or_else(
        || wrong("age", format!("expected `old`, `new` or `unclassified`, found `{text:.40}`")),
        Ok,
    )
}

fn excerpt(member: &'static str, bytes: &str, prefix: &str) -> Result<Excerpt, Malformed> {
    let excerpt = Excerpt { bytes: number(member, bytes)?, prefix: base64(member, prefix)? };
    if excerpt.prefix.len() as u64 > excerpt.bytes {
        return wrong(member, format!("the beginning is longer than the whole, {bytes} bytes"));
    }
    Ok(excerpt)
}

fn value(value: Bytes) -> Result<Value, Malformed> {
    let excerpt = excerpt("value", &value.bytes, &value.prefix_base64)?;
    let sha256 = sha256(&value.sha256)?;
    let whole = value.whole_base64.map(|whole| base64("whole_base64", &whole)).transpose()?;
    if whole.as_ref().is_some_and(|whole| Sha256::of(whole) != sha256) {
        return wrong("whole_base64", "other bytes than those of the SHA-256".into());
    }
    Ok(Value { excerpt, sha256, whole })
}

fn sha256(text: &str) -> Result<Sha256, Malformed> {
    let digits = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(digits) {
        return wrong("sha256", format!("expected 64 lower-case hexadecimal digits, found `{text:.80}`"));
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
    }
    Ok(Sha256(bytes))
}

fn retry(of: Option<String>, count: Option<u32>) -> Result<Option<Retry>, Malformed> {
    match (of, count) {
        (None, None) => Ok(None),
        (Some(of), Some(count)) if count > 0 => match of.parse() {
            Ok(of) => Ok(Some(Retry { of, count })),
            Err(error) => wrong("retry_of", format!("{error}")),
        },
        (_, _) => wrong("retry_count", "expected a number from 1 on beside `retry_of`, or neither".into()),
    }
}

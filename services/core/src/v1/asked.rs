//! What a client of the predecessor's protocol says.
use crate::position::{Offset, Partition};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Longest text of a client, bytes.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Most partitions that a resume may name.
pub const PARTITIONS_MAX: usize = 1_024;
/// Most threads that a resume may name.
pub const THREADS_MAX: usize = 10_000;
/// The largest integer up to which a number of JavaScript is exact.
const SAFE_MAX: u64 = (1 << 53) - 1;
/// Of a client's text, so much is repeated in errors, characters.
const ECHO_MAX: usize = 64;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Of a type that means nothing here.
    Nothing,
    /// No JSON object.
    Unreadable,
    Ping,
    CursorReset,
    Resume(Resume),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resume {
    /// The last record of each partition that the client has.
    Cursors(BTreeMap<Partition, Offset>),
    Earliest,
    Latest,
    /// The greatest sequence of each thread that the client has; in the order of ids.
    Threads(BTreeMap<String, u64>),
}

/// Why a client is sent away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("a text of {0} bytes: expected at most {TEXT_BYTES_MAX}")]
    TooLarge(usize),
    #[error("lastOffsetsByPartition has {0} entries: expected at most {PARTITIONS_MAX}")]
    Partitions(usize),
    #[error("lastSequencesByThread has {0} entries: expected at most {THREADS_MAX}")]
    Threads(usize),
    #[error("{field} is {value}, which is not exact: expected {modern}")]
    Lossy { field: String, value: String, modern: &'static str },
}

impl Refused {
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "CONTROL_FRAME_TOO_LARGE",
            Self::Partitions(_) => "RESUME_TOO_MANY_PARTITIONS",
            Self::Threads(_) => "RESUME_TOO_MANY_THREADS",
            Self::Lossy { .. } => "RESUME_LOSSY_NUMBER",
        }
    }
}

/// Reads a text message. What it does not know means nothing, as it did to the predecessor.
///
/// # Errors
/// [`Refused`] when a limit is broken, or a number can't be the one that the client means.
pub(super) fn read(text: &str) -> Result<Asked, Refused> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Refused::TooLarge(text.len()));
    }
    let Ok(message) = serde_json::from_str::<Value>(text) else { return Ok(Asked::Unreadable) };
    let Some(message) = message.as_object() else { return Ok(Asked::Nothing) };
    match message.get("type").and_then(Value::as_str) {
        Some("ping") => Ok(Asked::Ping),
        Some("cursor_reset") => Ok(Asked::CursorReset),
        Some("resume") => resume(message).map(Asked::Resume),
        Some(_) | None => Ok(Asked::Nothing),
    }
}

fn resume(message: &Map<String, Value>) -> Result<Resume, Refused> {
    let offsets = message.get("lastOffsetsByPartition");
    let by_partition = match message.get("mode").and_then(Value::as_str) {
        Some("partition") => true,
        Some("thread") => false,
        Some(_) | None => offsets.is_some(),
    };
    let offsets = offsets.and_then(Value::as_object).filter(|offsets| !offsets.is_empty());
    if let Some(offsets) = offsets.filter(|offsets| offsets.len() > PARTITIONS_MAX) {
        return Err(Refused::Partitions(offsets.len()));
    }
    let sequences = message.get("lastSequencesByThread").and_then(Value::as_object);
    if let Some(sequences) = sequences.filter(|sequences| sequences.len() > THREADS_MAX) {
        return Err(Refused::Threads(sequences.len()));
    }
    let last = last_sequence(message.get("lastSequence"))?;
    if !by_partition {
        return threads(message, sequences, last).map(Resume::Threads);
    }
    match message.get("from").and_then(Value::as_str) {
        Some("latest") => Ok(Resume::Latest),
        Some("earliest") => Ok(Resume::Earliest),
        Some(_) | None => cursors(offsets).map(Resume::Cursors),
    }
}

/// A sequence that is not exact would silently stand for another record, so it is refused in every mode.
fn last_sequence(value: Option<&Value>) -> Result<Option<u64>, Refused> {
    let modern = "lastSequencesByThread with a decimal string for each thread";
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    match exact(value) {
        Exact::Is(sequence) => Ok(Some(sequence)),
        Exact::Bad | Exact::Lossy => Err(lossy("lastSequence".to_owned(), value, modern)),
    }
}

fn threads(
    message: &Map<String, Value>,
    sequences: Option<&Map<String, Value>>,
    last: Option<u64>,
) -> Result<BTreeMap<String, u64>, Refused> {
    let Some(sequences) = sequences else {
        let thread = message.get("threadId").and_then(Value::as_str);
        return Ok(thread.map(str::to_owned).zip(last).into_iter().collect());
    };
    let mut threads = BTreeMap::new();
    for (thread, value) in sequences {
        match exact(value) {
            Exact::Is(sequence) => drop(threads.insert(thread.clone(), sequence)),
            Exact::Bad => {}
            Exact::Lossy => {
                let field = format!("lastSequencesByThread[{:?}]", short(thread));
                return Err(lossy(field, value, "a decimal string"));
            }
        }
    }
    Ok(threads)
}

fn cursors(offsets: Option<&Map<String, Value>>) -> Result<BTreeMap<Partition, Offset>, Refused> {
    let mut cursors = BTreeMap::new();
    for (partition, value) in offsets.into_iter().flatten() {
        let Some(of) = partition.parse().ok().and_then(|partition| Partition::new(partition).ok()) else {
            continue;
        };
        match exact(value) {
            Exact::Is(offset) => drop(Offset::new(offset).map(|offset| cursors.insert(of, offset))),
            Exact::Bad => {}
            Exact::Lossy => {
                let field = format!("lastOffsetsByPartition[{:?}]", short(partition));
                return Err(lossy(field, value, "a decimal string"));
            }
        }
    }
    Ok(cursors)
}

enum Exact {
    Is(u64),
    /// Not a number that counts anything.
    Bad,
    /// A number that JavaScript may have rounded.
    Lossy,
}

fn exact(value: &Value) -> Exact {
    let number = match value {
        Value::String(text) => return text.parse().map_or(Exact::Bad, Exact::Is),
        Value::Number(number) => number,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return Exact::Bad,
    };
    match number.as_u64() {
        Some(number) if number <= SAFE_MAX => Exact::Is(number),
        Some(_) => Exact::Lossy,
        None if number.as_f64().is_some_and(|number| number > SAFE_MAX as f64) => Exact::Lossy,
        None => Exact::Bad,
    }
}

fn lossy(field: String, value: &Value, modern: &'static str) -> Refused {
    Refused::Lossy { field, value: short(&value.to_string()), modern }
}

fn short(text: &str) -> String {
    text.chars().take(ECHO_MAX).collect()
}

#[cfg(test)]
mod tests;

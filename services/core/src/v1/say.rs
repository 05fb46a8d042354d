//! The text frames of the predecessor's protocol. Offsets are decimal strings in them, partitions numbers as values and
//! decimal strings as keys.
use crate::{
    position::{Link, Offset, Partition},
    session::Output,
};
use serde_json::{Map, Value, json};

/// Most partitions that the answer to a reset lists.
pub(super) const LISTED_MAX: usize = 100;

/// Of what a gap is told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    Partition(Partition),
    Thread(&'a str),
}

fn text(value: &Value) -> Output {
    Output::Text(value.to_string())
}

fn decimal(offset: Offset) -> String {
    offset.get().to_string()
}

pub(super) fn pong() -> Output {
    text(&json!({ "type": "pong" }))
}

/// Precedes each binary frame, and names its place.
pub(super) fn cursor(partition: i32, offset: u64) -> Output {
    text(&json!({ "type": "cursor", "partition": partition, "offset": offset.to_string() }))
}

pub(super) fn gap(count: u64, place: Place<'_>) -> Output {
    let mut gap = json!({
        "type": "gap",
        "count": count,
        "severity": "warning",
        "message": "Replay gap detected; some messages may be lost",
    });
    match place {
        Place::Partition(partition) => gap["partition"] = json!(partition.get()),
        Place::Thread(thread) => gap["threadId"] = json!(thread),
    }
    text(&gap)
}

pub(super) fn cursor_stale(partition: Partition, requested: Link, oldest: Offset) -> Output {
    text(&json!({
        "type": "cursor_stale",
        "partition": partition.get(),
        "requested": requested.map_or_else(|| "-1".to_owned(), decimal),
        "oldest": decimal(oldest),
        "message": "Cursor is stale; data may have been evicted. State may be incomplete.",
    }))
}

fn by_partition(offsets: impl Iterator<Item = (Partition, Offset)>) -> Map<String, Value> {
    offsets.map(|(partition, offset)| (partition.get().to_string(), json!(decimal(offset)))).collect()
}

/// Nothing is ever left out of a replay, so it is never capped.
pub(super) fn replay_complete(
    mode: &str,
    total: u64,
    offsets: impl Iterator<Item = (Partition, Offset)>,
) -> Output {
    text(&json!({
        "type": "replay_complete",
        "totalReplayed": total,
        "lastOffsetsByPartition": by_partition(offsets),
        "capped": false,
        "mode": mode,
    }))
}

pub(super) fn threads_complete(total: u64) -> Output {
    text(&json!({ "type": "replay_complete", "totalReplayed": total, "mode": "thread" }))
}

/// `bufferCleared` is what the predecessor's clients wait for. To this client nothing older comes any more; what others
/// read stays where it is.
pub(super) fn cursor_reset_complete(offsets: &[(Partition, Offset)], partitions: usize) -> Output {
    text(&json!({
        "type": "cursor_reset_complete",
        "latestOffsetsByPartition": by_partition(offsets.iter().copied().take(LISTED_MAX)),
        "bufferCleared": true,
        "truncated": offsets.len() > LISTED_MAX,
        "totalPartitions": partitions,
        "message": "This connection goes on behind the newest records; other clients are not affected.",
    }))
}

pub(super) fn error(code: &str, message: &str) -> Output {
    text(&json!({ "type": "error", "code": code, "message": message }))
}

//! The value of a Kafka record: framing, compression, and what of it the log needs to know.
//!
//! The first byte decides: `0x00` plain protobuf, `0x01` one zstd frame of protobuf. Neither can start a
//! protobuf message, so anything else is a record of the time before framing: raw protobuf, or raw zstd by its
//! magic bytes. Every limit is checked before a byte is copied or inflated.
use dashstream_proto::{
    log::v1::{RecordKind, RunFacts},
    telemetry as wire,
};
use prost::Message;
use std::{borrow::Cow, io::Read};
use wire::dash_stream_message::Message as Member;

mod explicit;
mod run_facts;

/// Longest thread id, bytes. A longer one is refused, never cut.
pub const THREAD_ID_BYTES_MAX: usize = 1_024;
/// Newest schema version that is understood. 0 counts as 1.
pub const SCHEMA_VERSION_MAX: u32 = 1;

const PLAIN: u8 = 0x00;
const ZSTD: u8 = 0x01;
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// What a payload may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest message, bytes, compressed or not. A frame may have its framing byte on top.
    pub message_bytes_max: usize,
}

impl Default for Limits {
    /// 10 MiB, the predecessor's.
    fn default() -> Self {
        Self { message_bytes_max: 10 << 20 }
    }
}

/// Why a payload is not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecodable {
    #[error("the record has no value (a tombstone)")]
    Missing,
    #[error("the value is empty")]
    Empty,
    #[error("the value has {bytes} bytes: expected at most {max}")]
    TooLarge { bytes: usize, max: usize },
    #[error("the value inflates beyond {max} bytes")]
    InflatesTooLarge { max: usize },
    #[error("the value is not valid zstd: {0}")]
    Compression(String),
    #[error("the value is not a DashStreamMessage: {0}")]
    Protobuf(String),
    #[error("the message has no member: expected one of the nine kinds")]
    NoMember,
    #[error("a thread id has {bytes} bytes: expected at most {THREAD_ID_BYTES_MAX}")]
    ThreadIdTooLong { bytes: usize },
    #[error("the message is of schema version {version}: expected at most {SCHEMA_VERSION_MAX}")]
    UnknownVersion { version: u32 },
}

impl Undecodable {
    /// A bounded label for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Empty => "empty",
            Self::TooLarge { .. } => "too_large",
            Self::InflatesTooLarge { .. } => "inflates_too_large",
            Self::Compression(_) => "compression",
            Self::Protobuf(_) => "protobuf",
            Self::NoMember => "no_member",
            Self::ThreadIdTooLong { .. } => "thread_id_too_long",
            Self::UnknownVersion { .. } => "unknown_version",
        }
    }
}

/// What the log says of a record beside its payload.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    pub kind: RecordKind,
    pub tenant_id: String,
    /// Empty where the producer gave none.
    pub thread_id: String,
    /// `None` where the producer gave none, which is 0 on the wire.
    pub sequence: Option<u64>,
    /// The other threads of a batch of events, each with its highest sequence.
    pub more_threads: Vec<(String, Option<u64>)>,
    /// What the record says of its run.
    pub run: RunFacts,
    /// When the producer made it, microseconds since 1970 by its clock; `None` where it says nothing.
    pub produced_us: Option<i64>,
}

/// The message of a payload.
///
/// # Errors
/// [`Undecodable`]: what is wrong with it.
pub fn decode(payload: Option<&[u8]>, limits: Limits) -> Result<wire::DashStreamMessage, Undecodable> {
    let protobuf = protobuf(payload.ok_or(Undecodable::Missing)?, limits)?;
    wire::DashStreamMessage::decode(&*protobuf).map_err(|error| Undecodable::Protobuf(error.to_string()))
}

/// What the log needs to know of a payload.
///
/// # Errors
/// [`Undecodable`]: what is wrong with it.
pub fn facts(payload: Option<&[u8]>, limits: Limits) -> Result<Facts, Undecodable> {
    let member = decode(payload, limits)?.message.ok_or(Undecodable::NoMember)?;
    if let Some(version) = versions(&member).find(|version| *version > SCHEMA_VERSION_MAX) {
        return Err(Undecodable::UnknownVersion { version });
    }
    let run = run_facts::of(&member);
    let mut facts = match member {
        Member::Event(m) => Facts::of(RecordKind::Event, m.header),
        Member::StateDiff(m) => Facts::of(RecordKind::StateDiff, m.header),
        Member::TokenChunk(m) => Facts::of(RecordKind::TokenChunk, m.header),
        Member::ToolExecution(m) => Facts::of(RecordKind::ToolExecution, m.header),
        Member::Checkpoint(m) => Facts::of(RecordKind::Checkpoint, m.header),
        Member::Metrics(m) => Facts::of(RecordKind::Metrics, m.header),
        Member::Error(m) => Facts::of(RecordKind::Error, m.header),
        Member::EventBatch(m) => Facts::of_batch(m),
        Member::ExecutionTrace(m) => {
            let mut facts = Facts::of(RecordKind::ExecutionTrace, m.header);
            if facts.thread_id.is_empty() {
                facts.thread_id = m.thread_id;
            }
            facts
        }
    };
    facts.run = run;
    let threads = facts.more_threads.iter().map(|(thread, _)| thread).chain([&facts.thread_id]);
    match threads.map(String::len).max() {
        Some(bytes) if bytes > THREAD_ID_BYTES_MAX => Err(Undecodable::ThreadIdTooLong { bytes }),
        _ => Ok(facts),
    }
}

/// The schema version of a message's header, and of those of its events.
fn versions(member: &Member) -> impl Iterator<Item = u32> {
    let events = if let Member::EventBatch(batch) = member { &*batch.events } else { &[] };
    let events = events.iter().filter_map(|event| event.header.as_ref());
    header(member).into_iter().chain(events).map(|header| header.schema_version)
}

fn header(member: &Member) -> Option<&wire::Header> {
    match member {
        Member::Event(m) => m.header.as_ref(),
        Member::StateDiff(m) => m.header.as_ref(),
        Member::TokenChunk(m) => m.header.as_ref(),
        Member::ToolExecution(m) => m.header.as_ref(),
        Member::Checkpoint(m) => m.header.as_ref(),
        Member::Metrics(m) => m.header.as_ref(),
        Member::Error(m) => m.header.as_ref(),
        Member::EventBatch(m) => m.header.as_ref(),
        Member::ExecutionTrace(m) => m.header.as_ref(),
    }
}

impl Facts {
    fn of(kind: RecordKind, header: Option<wire::Header>) -> Self {
        let header = header.unwrap_or_default();
        Self {
            kind,
            tenant_id: header.tenant_id,
            thread_id: header.thread_id,
            sequence: (header.sequence > 0).then_some(header.sequence),
            more_threads: Vec::new(),
            run: RunFacts::default(),
            produced_us: (header.timestamp_us != 0).then_some(header.timestamp_us),
        }
    }

    /// The envelope has no sequence and may have no thread: its events do.
    fn of_batch(batch: wire::EventBatch) -> Self {
        let mut facts = Self::of(RecordKind::EventBatch, batch.header);
        let mut threads: Vec<(String, Option<u64>)> = Vec::new();
        for header in batch.events.into_iter().filter_map(|event| event.header) {
            let sequence = (header.sequence > 0).then_some(header.sequence);
            match threads.iter_mut().find(|(thread, _)| *thread == header.thread_id) {
                Some((_, highest)) => *highest = sequence.max(*highest),
                None if header.thread_id.is_empty() => {}
                None => threads.push((header.thread_id, sequence)),
            }
        }
        if facts.thread_id.is_empty() && !threads.is_empty() {
            facts.thread_id.clone_from(&threads[0].0);
        }
        if let Some(own) = threads.iter().position(|(thread, _)| *thread == facts.thread_id) {
            facts.sequence = facts.sequence.max(threads.remove(own).1);
        }
        facts.more_threads = threads;
        facts
    }
}

/// The protobuf bytes within a value.
fn protobuf(value: &[u8], limits: Limits) -> Result<Cow<'_, [u8]>, Undecodable> {
    let max = limits.message_bytes_max;
    let (framing, body) = match value {
        [] => return Err(Undecodable::Empty),
        [byte @ (PLAIN | ZSTD), body @ ..] => (Some(*byte), body),
        body => (None, body),
    };
    if body.len() > max {
        return Err(Undecodable::TooLarge { bytes: value.len(), max: max + usize::from(framing.is_some()) });
    }
    match framing {
        Some(ZSTD) => inflate(body, max).map(Cow::Owned),
        None if body.starts_with(&ZSTD_MAGIC) => inflate(body, max).map(Cow::Owned),
        _ => Ok(Cow::Borrowed(body)),
    }
}

fn inflate(body: &[u8], max: usize) -> Result<Vec<u8>, Undecodable> {
    let wrong = |error: &dyn std::fmt::Display| Undecodable::Compression(error.to_string());
    let declared = zstd::zstd_safe::get_frame_content_size(body).map_err(|error| wrong(&error))?;
    if declared.is_some_and(|bytes| bytes > max as u64) {
        return Err(Undecodable::InflatesTooLarge { max });
    }
    if let Some(bytes) = declared {
        return zstd::bulk::decompress(body, bytes as usize).map_err(|error| wrong(&error));
    }
    let mut inflated = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(body).map_err(|error| wrong(&error))?;
    decoder.take(max as u64 + 1).read_to_end(&mut inflated).map_err(|error| wrong(&error))?;
    if inflated.len() > max {
        return Err(Undecodable::InflatesTooLarge { max });
    }
    Ok(inflated)
}

/// A message as a Kafka value: framed, and compressed when that is smaller.
///
/// `compress_above` is in bytes of protobuf. The header says when the frame is compressed, so a compressed
/// message is encoded twice. Of a diff's operations the zero values are written out.
pub fn encode(message: &wire::DashStreamMessage, compress_above: usize) -> Vec<u8> {
    let plain = message_bytes(message);
    if plain.len() > compress_above {
        let mut marked = message.clone();
        mark_compressed(&mut marked);
        let marked = message_bytes(&marked);
        if let Ok(small) = zstd::bulk::compress(&marked, 3)
            && small.len() < plain.len()
        {
            return framed(ZSTD, &small);
        }
    }
    framed(PLAIN, &plain)
}

fn message_bytes(message: &wire::DashStreamMessage) -> Vec<u8> {
    match &message.message {
        Some(Member::StateDiff(diff)) if diff.full_state.is_empty() => explicit::encode(diff),
        _ => message.encode_to_vec(),
    }
}

fn framed(byte: u8, body: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(body.len() + 1);
    value.push(byte);
    value.extend_from_slice(body);
    value
}

fn mark_compressed(message: &mut wire::DashStreamMessage) {
    let mark = |header: &mut Option<wire::Header>| {
        if let Some(header) = header {
            header.compression = wire::CompressionType::CompressionZstd.into();
        }
    };
    match &mut message.message {
        Some(Member::Event(m)) => mark(&mut m.header),
        Some(Member::StateDiff(m)) => mark(&mut m.header),
        Some(Member::TokenChunk(m)) => mark(&mut m.header),
        Some(Member::ToolExecution(m)) => mark(&mut m.header),
        Some(Member::Checkpoint(m)) => mark(&mut m.header),
        Some(Member::Metrics(m)) => mark(&mut m.header),
        Some(Member::Error(m)) => mark(&mut m.header),
        Some(Member::EventBatch(m)) => {
            mark(&mut m.header);
            m.events.iter_mut().for_each(|event| mark(&mut event.header));
        }
        Some(Member::ExecutionTrace(m)) => mark(&mut m.header),
        None => {}
    }
}

#[cfg(test)]
mod tests;

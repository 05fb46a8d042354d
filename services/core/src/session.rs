//! One client's session: a cursor over each partition's log.
//!
//! It has no socket, no clock and no queue. The driver hands in frames, ticks and what it found at the place
//! that [`Session::next_want`] named; out come frames and, at the end, the reason. Live, replay, resume and a
//! slow client are the same path: the session asks for what follows its cursor, wherever that is.
use crate::{
    frame,
    limits::Limits,
    position::{Epoch, Link, Offset, Partition},
    ring::Slot,
};
use bytes::Bytes;
use dashstream_proto::{
    log::v1::{Batch, Cursor, Gap},
    session::v1::{
        ClientFrame, ErrorCode, Hello, PartitionState, Partitions, StartPolicy, Subscribe, Welcome,
        client_frame, server_frame::Frame,
    },
};
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

mod deliver;

use deliver::{caught_up, deliver, lose, seeding, settle, stale};

/// Most cursors that one subscribe may name.
pub const CURSORS_MAX: usize = 1_024;
/// Longest name of a client, bytes.
pub const CLIENT_NAME_BYTES_MAX: usize = 128;

/// Why a session ends. Each end has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    ClientClosed,
    SendTimeout,
    ProtocolError,
    Unauthorized,
    Idle,
    OverLimit,
    Draining,
    Error,
}

impl CloseReason {
    /// Every reason, for metrics.
    pub const ALL: [Self; 8] = [
        Self::ClientClosed,
        Self::SendTimeout,
        Self::ProtocolError,
        Self::Unauthorized,
        Self::Idle,
        Self::OverLimit,
        Self::Draining,
        Self::Error,
    ];

    pub fn label(self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::SendTimeout => "send_timeout",
            Self::ProtocolError => "protocol_error",
            Self::Unauthorized => "unauthorized",
            Self::Idle => "idle",
            Self::OverLimit => "over_limit",
            Self::Draining => "draining",
            Self::Error => "error",
        }
    }
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Send(Bytes),
    Close(CloseReason),
}

/// Where a reader stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Earliest,
    Latest,
    After { epoch: Epoch, at: Link },
}

/// What a session wants to know next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    pub partition: Partition,
    pub from: From,
}

/// What the driver found there.
#[derive(Clone, Debug)]
pub enum Found {
    /// In memory: batches that follow the position.
    Slots(Vec<Slot>),
    /// In memory: the position is the log's end.
    AtEnd { epoch: Epoch, mark: Link, source_lag: Option<u64> },
    /// From replay: batches that follow the position, which may be none; `mark` is the log's end.
    Page { epoch: Epoch, batches: Vec<Batch>, at_end: bool, mark: Link },
    /// From replay: these offsets are lost.
    Gap(Gap),
    /// From replay: the log is in another epoch.
    Stale { epoch: Epoch, earliest: Link, mark: Link },
    /// Replay knows nothing of the partition yet.
    Seeding,
    /// Nobody can tell now, or the position is ahead of what this gateway has heard of.
    NotNow,
}

/// What is known of a partition of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub partition: Partition,
    pub epoch: Option<Epoch>,
    pub durable: Link,
    pub source_lag: Option<u64>,
}

/// What every session of a gateway is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    pub stream: String,
    pub server_version: String,
    pub limits: Limits,
    /// Something is sent at least this often.
    pub heartbeat: Duration,
    /// A hello must come within this time.
    pub hello_timeout: Duration,
}

#[derive(Debug)]
enum Phase {
    AwaitingHello,
    Greeted,
    Subscribed { request_id: u32, start: From },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Appetite {
    /// There may be more behind the position.
    Hungry,
    /// There was nothing; woken when the gateway hears of more.
    AtEnd,
    /// Nobody could tell; tried again at the next tick.
    Parked,
    /// Its cursor is stale; nothing until it is subscribed anew.
    Stale,
}

#[derive(Debug)]
struct Reader {
    from: From,
    appetite: Appetite,
    told_caught_up: bool,
    told_seeding: bool,
}

impl Reader {
    fn new(from: From) -> Self {
        Self { from, appetite: Appetite::Hungry, told_caught_up: false, told_seeding: false }
    }
}

/// Invariant: each reader's position is the cursor that the client has after the frames put out so far.
#[derive(Debug)]
pub struct Session {
    id: String,
    terms: Terms,
    limits: Limits,
    phase: Phase,
    readers: BTreeMap<Partition, Reader>,
    turn: Option<Partition>,
}

impl Session {
    pub fn new(id: String, terms: Terms) -> Self {
        let limits = terms.limits;
        Self { id, terms, limits, phase: Phase::AwaitingHello, readers: BTreeMap::new(), turn: None }
    }

    /// The effective limits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// How far each partition was delivered, where it is known.
    pub fn cursors(&self) -> Vec<Cursor> {
        let cursor = |(partition, reader): (&Partition, &Reader)| match reader.from {
            From::After { epoch, at } => {
                Some(Cursor { epoch: epoch.get(), partition: partition.get(), offset: at.map(Offset::get) })
            }
            From::Earliest | From::Latest => None,
        };
        self.readers.iter().filter_map(cursor).collect()
    }

    /// A binary message of the client. A refusal that is fatal ends with a close.
    pub fn on_message(&mut self, message: &[u8], known: &[Known]) -> Vec<Output> {
        if message.len() > self.limits.client_frame_bytes_max as usize {
            let max = self.limits.client_frame_bytes_max;
            let text = format!("a frame of {} bytes: expected at most {max}", message.len());
            return refuse(ErrorCode::FrameTooLarge, text, CloseReason::OverLimit);
        }
        let frame = match ClientFrame::decode(message) {
            Ok(ClientFrame { frame: Some(frame) }) => frame,
            Ok(ClientFrame { frame: None }) => return malformed("a frame without a member"),
            Err(error) => return malformed(&format!("not a ClientFrame: {error}")),
        };
        match (frame, &self.phase) {
            (client_frame::Frame::Hello(hello), Phase::AwaitingHello) => self.greet(&hello),
            (client_frame::Frame::Hello(_), Phase::Greeted | Phase::Subscribed { .. }) => {
                unexpected("a second hello")
            }
            (client_frame::Frame::Ping(ping), _) => vec![Output::Send(frame::pong(ping.nonce))],
            (_, Phase::AwaitingHello) => unexpected("the first frame must be a hello"),
            (client_frame::Frame::Subscribe(subscribe), _) => self.subscribe(subscribe, known),
            (client_frame::Frame::Credit(_), _) => vec![unimplemented("credit", 0)],
            (client_frame::Frame::Authenticate(_), _) => vec![unimplemented("authenticate", 0)],
        }
    }

    fn greet(&mut self, hello: &Hello) -> Vec<Output> {
        if hello.client.len() > CLIENT_NAME_BYTES_MAX {
            let text = format!(
                "hello.client has {} bytes: expected at most {CLIENT_NAME_BYTES_MAX}",
                hello.client.len()
            );
            return refuse(ErrorCode::InvalidArgument, text, CloseReason::ProtocolError);
        }
        self.limits = self.terms.limits.grant(hello.limits);
        self.phase = Phase::Greeted;
        let welcome = Welcome {
            session_id: self.id.clone(),
            stream: self.terms.stream.clone(),
            limits: Some(self.limits.into()),
            heartbeat_ms: u32::try_from(self.terms.heartbeat.as_millis()).unwrap_or(u32::MAX),
            server_version: self.terms.server_version.clone(),
        };
        vec![Output::Send(frame::encode(Frame::Welcome(welcome)))]
    }

    fn subscribe(&mut self, subscribe: Subscribe, known: &[Known]) -> Vec<Output> {
        let Subscribe { request_id, cursors, start, filter } = subscribe;
        let invalid = |text: String| {
            vec![Output::Send(frame::error(ErrorCode::InvalidArgument, text, false, request_id))]
        };
        let start = match StartPolicy::try_from(start) {
            Ok(StartPolicy::Earliest) => From::Earliest,
            Ok(StartPolicy::Latest) => From::Latest,
            Ok(StartPolicy::Active) => return vec![unimplemented("subscribe.start = ACTIVE", request_id)],
            Ok(StartPolicy::Unspecified) => {
                return invalid("subscribe.start is missing: expected EARLIEST or LATEST".into());
            }
            Err(_) => return invalid(format!("subscribe.start is {start}: expected EARLIEST or LATEST")),
        };
        if filter.is_some() {
            return vec![unimplemented("subscribe.filter", request_id)];
        }
        if cursors.len() > CURSORS_MAX {
            return invalid(format!(
                "subscribe.cursors has {}: expected at most {CURSORS_MAX}",
                cursors.len()
            ));
        }
        let mut readers = BTreeMap::new();
        for cursor in &cursors {
            match read_cursor(cursor) {
                Ok((partition, from)) if readers.insert(partition, Reader::new(from)).is_none() => {}
                Ok((partition, _)) => {
                    return invalid(format!("subscribe.cursors names partition {partition} twice"));
                }
                Err(error) => return invalid(format!("subscribe.cursors: {error}")),
            }
        }
        self.readers = readers;
        self.phase = Phase::Subscribed { request_id, start };
        self.announce(known)
    }

    /// The gateway's knowledge of partitions changed: new ones are read from where the client said.
    pub fn on_partitions(&mut self, known: &[Known]) -> Vec<Output> {
        match self.phase {
            Phase::Subscribed { .. }
                if known.iter().any(|known| !self.readers.contains_key(&known.partition)) =>
            {
                self.announce(known)
            }
            Phase::Subscribed { .. } | Phase::AwaitingHello | Phase::Greeted => Vec::new(),
        }
    }

    fn announce(&mut self, known: &[Known]) -> Vec<Output> {
        let Phase::Subscribed { start, .. } = self.phase else { return Vec::new() };
        for known in known {
            self.readers.entry(known.partition).or_insert_with(|| Reader::new(start));
        }
        let state = |known: &Known| PartitionState {
            partition: known.partition.get(),
            epoch: known.epoch.map(Epoch::get),
            last_offset: known.durable.map(Offset::get),
            source_lag: known.source_lag,
        };
        let partitions = Partitions { partitions: known.iter().map(state).collect() };
        vec![Output::Send(frame::encode(Frame::Partitions(partitions)))]
    }

    /// What to look up next, taking turns between partitions; `None` when all are at their end or in `busy`,
    /// which are being looked up.
    pub fn next_want(&mut self, busy: &BTreeSet<Partition>) -> Option<Want> {
        let hungry = |(partition, reader): &(&Partition, &Reader)| {
            reader.appetite == Appetite::Hungry && !busy.contains(partition)
        };
        let behind = self.turn.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let (partition, reader) = self
            .readers
            .range((behind, std::ops::Bound::Unbounded))
            .find(hungry)
            .or_else(|| self.readers.iter().find(hungry))?;
        self.turn = Some(*partition);
        Some(Want { partition: *partition, from: reader.from })
    }

    /// The gateway heard of more in a partition.
    pub fn on_advanced(&mut self, partition: Partition) {
        if let Some(reader) = self.readers.get_mut(&partition)
            && matches!(reader.appetite, Appetite::AtEnd | Appetite::Parked)
        {
            reader.appetite = Appetite::Hungry;
        }
    }

    /// Time passes: `age` since the session began.
    pub fn on_tick(&mut self, age: Duration) -> Vec<Output> {
        for reader in self.readers.values_mut() {
            if reader.appetite == Appetite::Parked {
                reader.appetite = Appetite::Hungry;
            }
        }
        match self.phase {
            Phase::AwaitingHello if age >= self.terms.hello_timeout => {
                let text = format!("no hello within {:?}", self.terms.hello_timeout);
                refuse(ErrorCode::Idle, text, CloseReason::Idle)
            }
            Phase::AwaitingHello | Phase::Greeted | Phase::Subscribed { .. } => Vec::new(),
        }
    }

    /// What was found where [`Self::next_want`] pointed.
    pub fn on_found(&mut self, partition: Partition, found: Found) -> Vec<Output> {
        let Phase::Subscribed { request_id, .. } = self.phase else { return Vec::new() };
        let limits = self.limits;
        let Some(reader) = self.readers.get_mut(&partition) else { return Vec::new() };
        let mut out = Vec::new();
        match found {
            Found::Slots(slots) => {
                for slot in &slots {
                    deliver(reader, &slot.batch, Some(&slot.frame), limits, &mut out);
                }
            }
            Found::Page { epoch, batches, at_end, mark } => {
                for batch in &batches {
                    deliver(reader, batch, None, limits, &mut out);
                }
                if batches.is_empty() {
                    settle(reader, epoch, mark);
                    reader.appetite = Appetite::Parked;
                }
                if at_end && out.iter().all(|output| matches!(output, Output::Send(_))) {
                    caught_up(reader, partition, epoch, mark, None, request_id, &mut out);
                }
            }
            Found::AtEnd { epoch, mark, source_lag } => {
                settle(reader, epoch, mark);
                reader.appetite = Appetite::AtEnd;
                caught_up(reader, partition, epoch, mark, source_lag, request_id, &mut out);
            }
            Found::Gap(gap) => lose(reader, gap, &mut out),
            Found::Stale { epoch, earliest, mark } => {
                stale(reader, partition, epoch, earliest, mark, &mut out)
            }
            Found::Seeding => seeding(reader, partition, &mut out),
            Found::NotNow => reader.appetite = Appetite::Parked,
        }
        out
    }
}

fn read_cursor(cursor: &Cursor) -> Result<(Partition, From), crate::position::OutOfRange> {
    let at = cursor.offset.map(Offset::new).transpose()?;
    Ok((Partition::new(cursor.partition)?, From::After { epoch: Epoch::new(cursor.epoch), at }))
}

fn refuse(code: ErrorCode, text: String, reason: CloseReason) -> Vec<Output> {
    vec![Output::Send(frame::error(code, text, true, 0)), Output::Close(reason)]
}

fn malformed(text: &str) -> Vec<Output> {
    refuse(ErrorCode::MalformedFrame, text.to_owned(), CloseReason::ProtocolError)
}

fn unexpected(text: &str) -> Vec<Output> {
    refuse(ErrorCode::UnexpectedFrame, text.to_owned(), CloseReason::ProtocolError)
}

fn unimplemented(what: &str, request_id: u32) -> Output {
    let text = format!("{what} is not implemented by this version");
    Output::Send(frame::error(ErrorCode::Unimplemented, text, false, request_id))
}

#[cfg(test)]
mod tests;

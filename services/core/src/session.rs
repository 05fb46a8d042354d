//! One client's session: a cursor over each partition's log.
//!
//! It has no socket, no clock and no queue. The driver hands in frames, ticks and what it found at the place
//! that [`Session::next_want`] named; out come frames and, at the end, the reason. Live, replay, resume and a
//! slow client are the same path: the session asks for what follows its cursor, wherever that is.
use crate::{
    filter::{Filter, Since, Tenants, graphs::Names},
    frame,
    limits::{Grant, Limits},
    position::{Epoch, Link, Offset, Partition},
    ring::Passed,
    slot::Slot,
};
use bytes::Bytes;
use dashstream_proto::{
    log::v1::{Batch, Cursor, Gap},
    session::v1::{
        self as wire, ClientFrame, ErrorCode, Hello, PartitionState, Partitions, Welcome, client_frame,
        server_frame::Frame,
    },
};
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

mod credit;
pub(crate) mod deliver;
pub(crate) mod reader;
mod subscribe;

use credit::Credit;
use deliver::{Flow, Out, begin_active, caught_up, deliver_all, lose, seeding, settle, skip_or_begin, stale};
use reader::{Appetite, Reader, next_turn};

/// Most cursors that one subscribe may name.
pub const CURSORS_MAX: usize = 1_024;
/// Longest name of a client, bytes.
pub const CLIENT_NAME_BYTES_MAX: usize = 128;
/// A client whose frames were refused so often is disconnected.
pub const REFUSALS_MAX: u32 = 20;

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
    /// A binary message.
    Send(Bytes),
    /// A text message, which only the predecessor's protocol has.
    Text(String),
    Close(CloseReason),
}

/// Where a session is served from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    Memory,
    /// At least one partition comes from replay.
    Replay,
}

/// Where a reader stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum From {
    Earliest,
    Latest,
    /// The first record at or after this time, milliseconds since 1970.
    Time(i64),
    /// Where the running threads have their newest whole states.
    Active,
    After {
        epoch: Epoch,
        at: Link,
    },
}

/// What a session wants to know next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    pub partition: Partition,
    pub from: From,
}

impl Want {
    /// The place of what comes behind `found` in the same answer.
    pub fn behind(self, found: &Found) -> Self {
        match found {
            Found::Gap(gap) => {
                let (epoch, at) = (Epoch::new(gap.epoch), Some(Offset::clamped(gap.last_offset)));
                Self { from: From::After { epoch, at }, ..self }
            }
            Found::Slots { .. }
            | Found::AtEnd { .. }
            | Found::Page { .. }
            | Found::Stale { .. }
            | Found::Active(_)
            | Found::Seeding
            | Found::NotNow => self,
        }
    }
}

/// What the driver found there.
#[derive(Clone, Debug)]
pub enum Found {
    /// In memory: batches that follow the position, and what had passed up to the last of them.
    Slots { slots: Vec<Slot>, passed: Passed },
    /// In memory: the position is the log's end.
    AtEnd { epoch: Epoch, mark: Link, source_lag: Option<u64>, passed: Passed },
    /// From replay: batches that follow the position, which may be none; `mark` is the log's end.
    Page { epoch: Epoch, slots: Vec<Slot>, at_end: bool, mark: Link },
    /// From replay: these offsets are lost.
    Gap(Gap),
    /// From replay: the log is in another epoch.
    Stale { epoch: Epoch, earliest: Link, mark: Link },
    /// From replay: where a start at the running threads begins.
    Active(Arc<ActiveStart>),
    /// Replay knows nothing of the partition yet.
    Seeding,
    /// Nobody can tell now, or the position is ahead of what this gateway has heard of.
    NotNow,
}

impl Found {
    /// The batches whose records a filter judges.
    pub fn slots(&self) -> &[Slot] {
        match self {
            Self::Slots { slots, .. } | Self::Page { slots, .. } => slots,
            Self::AtEnd { .. }
            | Self::Gap(_)
            | Self::Stale { .. }
            | Self::Active(_)
            | Self::Seeding
            | Self::NotNow => &[],
        }
    }
}

/// Where one partition begins for a session that starts at the running threads.
#[derive(Clone, Debug, PartialEq)]
pub struct ActiveStart {
    pub epoch: Epoch,
    /// What follows this place is read.
    pub begin: Link,
    /// Up to its mark only records of running threads are sent, each from its newest whole state on.
    pub since: Arc<Since>,
    /// Whole states that the log no longer has, each a batch of one.
    pub states: Vec<Batch>,
    /// Graphs of the running threads.
    pub names: Names,
    /// More threads run than these many, which are taken into account.
    pub cut_at: Option<u64>,
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

/// Invariant: each reader's `told` is the cursor that the client has after the frames put out so far.
#[derive(Debug)]
pub struct Session {
    id: String,
    terms: Terms,
    access: Tenants,
    /// What the client asked for.
    asked: Option<wire::Limits>,
    grant: Grant,
    credit: Credit,
    phase: Phase,
    filter: Arc<Filter>,
    readers: BTreeMap<Partition, Reader>,
    turn: Option<Partition>,
    refusals: u32,
}

impl Session {
    /// A session that may read records of `access`.
    pub fn new(id: String, terms: Terms, access: Tenants) -> Self {
        Self {
            id,
            grant: terms.limits.grant(None),
            terms,
            filter: Arc::new(Filter::all(access.clone())),
            access,
            asked: None,
            credit: Credit::new(0),
            phase: Phase::AwaitingHello,
            readers: BTreeMap::new(),
            turn: None,
            refusals: 0,
        }
    }

    /// The effective limits.
    pub fn limits(&self) -> Limits {
        self.grant.limits
    }

    /// Which records it is sent.
    pub fn filter(&self) -> &Arc<Filter> {
        &self.filter
    }

    /// Where it is served from; `None` before it subscribed.
    pub fn delivery(&self) -> Option<Delivery> {
        match self.phase {
            Phase::AwaitingHello | Phase::Greeted => None,
            Phase::Subscribed { .. } if self.readers.values().any(Reader::reads_back) => {
                Some(Delivery::Replay)
            }
            Phase::Subscribed { .. } => Some(Delivery::Memory),
        }
    }

    /// What the client has of each partition, or will have with the next word of it.
    pub fn cursors(&self) -> Vec<Cursor> {
        self.readers.values().filter_map(Reader::cursor).collect()
    }

    /// A binary message of the client. A refusal that is fatal ends with a close.
    pub fn on_message(&mut self, message: &[u8], known: &[Known]) -> Vec<Output> {
        let max = self.grant.limits.client_frame_bytes_max;
        if message.len() > max as usize {
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
            (client_frame::Frame::Credit(credit), _) => self.give(credit.bytes),
            (client_frame::Frame::Authenticate(_), _) => {
                let text = "authenticate: expected no token, since this server asks for none".to_owned();
                self.decline(ErrorCode::Unimplemented, text, 0)
            }
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
        self.asked = hello.limits;
        self.grant = self.terms.limits.grant(self.asked);
        self.credit = Credit::new(self.grant.limits.in_flight_bytes_max);
        self.phase = Phase::Greeted;
        let welcome = Welcome {
            session_id: self.id.clone(),
            stream: self.terms.stream.clone(),
            limits: Some(self.grant.limits.into()),
            heartbeat_ms: u32::try_from(self.terms.heartbeat.as_millis()).unwrap_or(u32::MAX),
            server_version: self.terms.server_version.clone(),
            access: Some((&self.access).into()),
            limited_by: Some(self.grant.by),
        };
        vec![Output::Send(frame::encode(Frame::Welcome(welcome)))]
    }

    fn give(&mut self, bytes: u64) -> Vec<Output> {
        if !self.credit.is_on() {
            let text = "credit: expected hello.limits.in_flight_bytes_max to be set first".to_owned();
            return self.decline(ErrorCode::InvalidArgument, text, 0);
        }
        self.credit.give(bytes);
        Vec::new()
    }

    /// Refuses a frame, and goes on unless it is one too many.
    fn decline(&mut self, code: ErrorCode, text: String, request_id: u32) -> Vec<Output> {
        self.refusals += 1;
        if self.refusals >= REFUSALS_MAX {
            let text = format!("{text}; {REFUSALS_MAX} frames of this session were refused");
            return refuse(code, text, CloseReason::ProtocolError);
        }
        vec![Output::Send(frame::error(code, text, false, request_id))]
    }

    /// The server's own limits are others now.
    pub fn on_limits(&mut self, limits: Limits) -> Vec<Output> {
        self.terms.limits = limits;
        let grant = limits.grant(self.asked);
        if std::mem::replace(&mut self.grant, grant) == grant {
            return Vec::new();
        }
        self.credit.bound(grant.limits.in_flight_bytes_max);
        match self.phase {
            Phase::AwaitingHello => Vec::new(), // the welcome will tell
            Phase::Greeted | Phase::Subscribed { .. } => vec![Output::Send(frame::limits_changed(grant))],
        }
    }

    /// The gateway's knowledge of partitions changed: new ones are read from where the client said.
    pub fn on_partitions(&mut self, known: &[Known]) -> Vec<Output> {
        let is_new = |known: &Known| {
            self.filter.reads(known.partition) && !self.readers.contains_key(&known.partition)
        };
        match self.phase {
            Phase::Subscribed { .. } if known.iter().any(is_new) => self.announce(known),
            Phase::Subscribed { .. } | Phase::AwaitingHello | Phase::Greeted => Vec::new(),
        }
    }

    /// A sign of life: how each partition is.
    pub fn heartbeat(&mut self, known: &[Known]) -> Vec<Output> {
        match self.phase {
            Phase::Subscribed { .. } => self.announce(known),
            Phase::AwaitingHello | Phase::Greeted => vec![Output::Send(frame::pong(0))],
        }
    }

    fn announce(&mut self, known: &[Known]) -> Vec<Output> {
        let Phase::Subscribed { start, .. } = self.phase else { return Vec::new() };
        let read: Vec<_> = known.iter().filter(|known| self.filter.reads(known.partition)).collect();
        for known in &read {
            let new = || Reader::new(known.partition, start);
            self.readers.entry(known.partition).or_insert_with(new);
        }
        let state = |known: &&Known| PartitionState {
            partition: known.partition.get(),
            epoch: known.epoch.map(Epoch::get),
            last_offset: known.durable.map(Offset::get),
            source_lag: known.source_lag,
        };
        let partitions = Partitions { partitions: read.iter().map(state).collect() };
        vec![Output::Send(frame::encode(Frame::Partitions(partitions)))]
    }

    /// What to look up next, taking turns between partitions; `None` when all are at their end or in `busy`,
    /// which are being looked up, or the client gave no credit for more.
    pub fn next_want(&mut self, busy: &BTreeSet<Partition>) -> Option<Want> {
        if self.credit.starved() {
            return None;
        }
        let want = next_turn(self.readers.values(), self.turn, busy)?;
        self.turn = Some(want.partition);
        Some(want)
    }

    /// The gateway heard of more in a partition.
    pub fn on_advanced(&mut self, partition: Partition) {
        if let Some(reader) = self.readers.get_mut(&partition) {
            reader.on_advanced();
        }
    }

    /// A reader is behind what memory holds, through which `now` has passed: it is sent to replay.
    pub fn on_behind(&mut self, partition: Partition, now: Passed) -> Vec<Output> {
        let Some(reader) = self.readers.get_mut(&partition) else { return Vec::new() };
        let Some(by) = reader.fell(now) else { return Vec::new() };
        vec![Output::Send(frame::behind(reader.cursor(), by))]
    }

    /// Time passes, a tick a second: `age` since the session began.
    pub fn on_tick(&mut self, age: Duration) -> Vec<Output> {
        match self.phase {
            Phase::AwaitingHello if age >= self.terms.hello_timeout => {
                let text = format!("no hello within {:?}", self.terms.hello_timeout);
                refuse(ErrorCode::Idle, text, CloseReason::Idle)
            }
            Phase::AwaitingHello | Phase::Greeted => Vec::new(),
            Phase::Subscribed { .. } => {
                self.readers.values_mut().for_each(Reader::on_tick);
                self.tell_all()
            }
        }
    }

    /// The gateway leaves: the client has `after` to go. All that was nothing for it is told first.
    pub fn on_drain(&mut self, after: Duration) -> Vec<Output> {
        let mut outputs = self.tell_all();
        let after_ms = u32::try_from(after.as_millis()).unwrap_or(u32::MAX);
        outputs.push(Output::Send(frame::going_away(after_ms, self.cursors())));
        outputs
    }

    /// Brings the client's cursors to where the readers are.
    fn tell_all(&mut self) -> Vec<Output> {
        let names = Names::default();
        let (readers, mut out) = self.out(&names, 0);
        for reader in readers.values_mut().filter(|reader| reader.appetite != Appetite::Stale) {
            skip_or_begin(reader, &mut out);
        }
        out.outputs
    }

    /// What was found where [`Self::next_want`] pointed. `names` has the graph of each thread of what was found,
    /// where the filter is by graph.
    pub fn on_found(&mut self, want: Want, found: Found, names: &Names) -> Vec<Output> {
        let Phase::Subscribed { request_id, .. } = self.phase else { return Vec::new() };
        let (readers, mut out) = self.out(names, request_id);
        match readers.get_mut(&want.partition) {
            // What was asked before the client subscribed anew is of no use.
            Some(reader) if reader.from == want.from => take(reader, want, found, &mut out),
            Some(_) | None => {}
        }
        out.outputs
    }

    fn out<'a>(
        &'a mut self,
        names: &'a Names,
        request_id: u32,
    ) -> (&'a mut BTreeMap<Partition, Reader>, Out<'a>) {
        let (filter, limits, credit) = (&self.filter, self.grant.limits, &mut self.credit);
        (&mut self.readers, Out { filter, names, limits, credit, request_id, outputs: Vec::new() })
    }
}

fn take(reader: &mut Reader, want: Want, found: Found, out: &mut Out<'_>) {
    match found {
        Found::Slots { slots, passed } => {
            if deliver_all(reader, &slots, out) == Flow::On {
                reader.in_memory(passed);
            }
        }
        Found::Page { epoch, slots, at_end, mark } => {
            let flow = deliver_all(reader, &slots, out);
            if slots.is_empty() {
                settle(reader, epoch, mark);
                reader.park_at_end();
            }
            if at_end && flow == Flow::On {
                caught_up(reader, None, out);
            }
        }
        Found::AtEnd { epoch, mark, source_lag, passed } => {
            settle(reader, epoch, mark);
            reader.in_memory(passed);
            reader.appetite = Appetite::AtEnd;
            caught_up(reader, source_lag, out);
        }
        Found::Gap(gap) => drop(lose(reader, gap, out)),
        Found::Stale { epoch, earliest, mark } => stale(reader, want.partition, epoch, earliest, mark, out),
        Found::Active(start) => drop(begin_active(reader, start, out)),
        Found::Seeding => seeding(reader, want.partition, out),
        Found::NotNow => reader.park(),
    }
    // Nothing came of it: to ask the same again at once would be to ask for ever.
    if reader.from == want.from && reader.appetite == Appetite::Hungry && !out.credit.starved() {
        reader.park();
    }
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

#[cfg(test)]
mod tests;

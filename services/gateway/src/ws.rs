//! Drives one session over its socket. One task owns the socket: it looks up what the session wants, sends
//! what comes out, and never lets a send take longer than it may.
use crate::{
    auth::gate::Guard,
    hub::Hub,
    metrics::Metrics,
    upstream::Replay,
    viewers::{Seat, Watching},
};
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use dashstream_core::{
    frame,
    position::Partition,
    session::{CloseReason, Found, Output, Session, Want},
};
use dashstream_proto::{
    gateway::v1::DeliveryMode,
    session::v1::{GoingAway, server_frame::Frame},
};
use futures_util::{
    FutureExt, SinkExt, StreamExt, future::BoxFuture, stream::FuturesUnordered, stream::SplitSink,
};
use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// Bytes looked up and sent before the socket is flushed: bounds what one session holds beside its reads.
const BURST_BYTES: usize = 64 << 10;
/// Bytes of one page from replay.
const PAGE_BYTES: u32 = 256 << 10;
/// Reads from replay of one session at a time, each of another partition.
const READS_MAX: usize = 4;
const TICK: Duration = Duration::from_secs(1);
/// A session is gone when it was silent for so many heartbeats.
const SILENT_HEARTBEATS_MAX: u32 = 3;

/// What a session runs on.
#[derive(Clone, Debug)]
pub struct Ground {
    pub hub: Hub,
    pub replay: Replay,
    pub metrics: Metrics,
    pub send_timeout: Duration,
    pub heartbeat: Duration,
    pub stop: CancellationToken,
}

/// What a session begins with.
#[derive(Debug)]
pub struct Entrance {
    /// A message that was read to know who comes; the session has yet to see it.
    pub first: Option<Bytes>,
    pub guard: Guard,
    pub seat: Seat,
}

type Sink = SplitSink<WebSocket, Message>;

struct Driver {
    ground: Ground,
    session: Session,
    guard: Guard,
    seat: Seat,
    sink: Sink,
    reads: FuturesUnordered<BoxFuture<'static, (Partition, Vec<Found>)>>,
    reading: BTreeSet<Partition>,
    versions: HashMap<Partition, u64>,
    begun: Instant,
    /// When the client last showed that it is there: it said something, or took data.
    alive: Instant,
    /// When something was last sent.
    sent: Instant,
    /// The next burst asks the client's library for a sign of life, and is none itself.
    ping: bool,
}

/// Tells a client why it gets no session.
pub async fn turn_away(socket: WebSocket, outputs: Vec<Output>, ground: Ground) -> CloseReason {
    let (mut sink, _) = socket.split();
    let mut reason = CloseReason::ClientClosed;
    for output in outputs {
        match output {
            Output::Send(frame) => {
                let sending = sink.send(Message::Binary(frame));
                match tokio::time::timeout(ground.send_timeout, sending).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return CloseReason::ClientClosed,
                    Err(_) => return CloseReason::SendTimeout,
                }
            }
            Output::Close(why) => {
                goodbye(&mut sink, why, ground.send_timeout).await;
                reason = why;
            }
        }
    }
    reason
}

/// Runs a session to its end, and says why it ended.
pub async fn run(socket: WebSocket, session: Session, ground: Ground, entrance: Entrance) -> CloseReason {
    let (sink, inbound) = socket.split();
    let Entrance { first, guard, seat } = entrance;
    let first = first.map(|message| Ok(Message::Binary(message)));
    let mut inbound = futures_util::stream::iter(first).chain(inbound);
    let now = Instant::now();
    let mut driver = Driver {
        ground,
        session,
        guard,
        seat,
        sink,
        reads: FuturesUnordered::new(),
        reading: BTreeSet::new(),
        versions: HashMap::new(),
        begun: now,
        alive: now,
        sent: now,
        ping: false,
    };
    let mut changed = driver.ground.hub.changed();
    let mut ticks = tokio::time::interval(TICK);
    let stop = driver.ground.stop.clone();
    loop {
        let (burst, more) = driver.look_up();
        if let Err(reason) = driver.put_out(burst).await {
            return reason;
        }
        let outputs = tokio::select! {
            message = inbound.next() => match driver.on_token(&message).await {
                Some(outputs) => outputs,
                None => driver.on_inbound(message),
            },
            Some((partition, found)) = driver.reads.next() => driver.on_read(partition, found),
            Ok(()) = changed.changed() => driver.on_changed(),
            _ = ticks.tick() => driver.on_tick(),
            () = stop.cancelled() => driver.going_away(),
            () = std::future::ready(()), if more => Vec::new(),
        };
        if let Err(reason) = driver.put_out(outputs).await {
            return reason;
        }
    }
}

impl Driver {
    /// Looks up what the session wants, up to a burst. True when there is more.
    fn look_up(&mut self) -> (Vec<Output>, bool) {
        let (mut burst, mut bytes) = (Vec::new(), 0);
        let mut busy = self.reading.clone();
        while bytes < BURST_BYTES {
            let Some(want) = self.session.next_want(&busy) else { return (burst, false) };
            match self.ground.hub.find(want, BURST_BYTES) {
                Some(found) => {
                    let outputs = self.session.on_found(want.partition, found);
                    bytes += size(&outputs);
                    burst.extend(outputs);
                }
                None => {
                    busy.insert(want.partition);
                    self.read(want);
                }
            }
        }
        (burst, true)
    }

    fn read(&mut self, want: Want) {
        if self.reads.len() >= READS_MAX {
            return; // its turn comes when another read ends
        }
        self.reading.insert(want.partition);
        let replay = self.ground.replay.clone();
        let read = async move { (want.partition, replay.find(want.partition, want.from, PAGE_BYTES).await) };
        self.reads.push(read.boxed());
    }

    fn on_read(&mut self, partition: Partition, found: Vec<Found>) -> Vec<Output> {
        self.reading.remove(&partition);
        found.into_iter().flat_map(|found| self.session.on_found(partition, found)).collect()
    }

    fn on_changed(&mut self) -> Vec<Output> {
        let mut appeared = false;
        for (partition, version) in self.ground.hub.versions() {
            let before = self.versions.insert(partition, version);
            if before != Some(version) {
                self.session.on_advanced(partition);
            }
            appeared |= before.is_none();
        }
        if appeared { self.session.on_partitions(&self.ground.hub.known()) } else { Vec::new() }
    }

    /// A token is for the guard; the session sees none.
    async fn on_token(&mut self, message: &Option<Result<Message, axum::Error>>) -> Option<Vec<Output>> {
        let Some(Ok(Message::Binary(bytes))) = message else { return None };
        let outputs = self.guard.take(bytes).await?;
        self.alive = Instant::now();
        Some(outputs)
    }

    fn on_inbound(&mut self, message: Option<Result<Message, axum::Error>>) -> Vec<Output> {
        self.alive = Instant::now();
        match message {
            Some(Ok(Message::Binary(bytes))) => self.session.on_message(&bytes, &self.ground.hub.known()),
            Some(Ok(Message::Text(_))) => {
                let text = "a text message: expected binary frames of dashstream.v2".to_owned();
                let code = dashstream_proto::session::v1::ErrorCode::MalformedFrame;
                vec![
                    Output::Send(frame::error(code, text, true, 0)),
                    Output::Close(CloseReason::ProtocolError),
                ]
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Vec::new(),
            Some(Ok(Message::Close(_))) | None => vec![Output::Close(CloseReason::ClientClosed)],
            Some(Err(error)) => vec![Output::Close(inbound_failure(&error))],
        }
    }

    fn on_tick(&mut self) -> Vec<Output> {
        if let Some(over) = self.guard.on_tick(SystemTime::now()) {
            return over;
        }
        self.seat.says(Watching { mode: self.mode(), delivered: self.session.cursors(), threads: None });
        let mut outputs = self.session.on_tick(self.begun.elapsed());
        let heartbeat = self.ground.heartbeat;
        if self.alive.elapsed() >= heartbeat * SILENT_HEARTBEATS_MAX {
            outputs.push(Output::Close(CloseReason::Idle));
        } else if self.sent.elapsed() >= heartbeat {
            self.ping = true;
            outputs.push(Output::Send(frame::pong(0)));
        }
        outputs
    }

    fn mode(&self) -> DeliveryMode {
        if self.reading.is_empty() { DeliveryMode::Live } else { DeliveryMode::Replay }
    }

    fn going_away(&mut self) -> Vec<Output> {
        let frame = frame::encode(Frame::GoingAway(GoingAway { reconnect_after_ms: 0 }));
        vec![Output::Send(frame), Output::Close(CloseReason::Draining)]
    }

    /// Sends frames, in bursts that are flushed once each. `Err` when the session ends.
    async fn put_out(&mut self, outputs: Vec<Output>) -> Result<(), CloseReason> {
        let mut burst = Vec::new();
        for output in outputs {
            match output {
                Output::Send(frame) => burst.push(frame),
                Output::Close(reason) => {
                    self.send(burst).await?;
                    self.close(reason).await;
                    return Err(reason);
                }
            }
        }
        self.send(burst).await
    }

    async fn send(&mut self, burst: Vec<Bytes>) -> Result<(), CloseReason> {
        if burst.is_empty() {
            return Ok(());
        }
        let (frames, bytes) = (burst.len() as u64, burst.iter().map(|frame| frame.len() as u64).sum());
        let ping = std::mem::take(&mut self.ping);
        let (timeout, sink) = (self.ground.send_timeout, &mut self.sink);
        let sending = async {
            if ping {
                sink.feed(Message::Ping(Bytes::new())).await?;
            }
            for frame in burst {
                sink.feed(Message::Binary(frame)).await?;
            }
            sink.flush().await
        };
        let timer = self.ground.metrics.send_seconds.start_timer();
        match tokio::time::timeout(timeout, sending).await {
            Err(_) => return Err(CloseReason::SendTimeout),
            Ok(Err(_)) => return Err(CloseReason::ClientClosed),
            Ok(Ok(())) => {}
        }
        timer.observe_duration();
        self.ground.metrics.sent_frames.inc_by(frames);
        self.ground.metrics.sent_bytes.inc_by(bytes);
        self.sent = Instant::now();
        if !ping {
            self.alive = self.sent;
        }
        Ok(())
    }

    /// Says goodbye. Whether it arrives matters to nobody but the client.
    async fn close(&mut self, reason: CloseReason) {
        goodbye(&mut self.sink, reason, self.ground.send_timeout).await;
    }
}

async fn goodbye(sink: &mut Sink, reason: CloseReason, timeout: Duration) {
    let code = match reason {
        CloseReason::ClientClosed => close_code::NORMAL,
        CloseReason::ProtocolError => close_code::PROTOCOL,
        CloseReason::OverLimit => close_code::SIZE,
        CloseReason::Unauthorized => close_code::POLICY,
        CloseReason::Draining | CloseReason::Idle => close_code::AWAY,
        CloseReason::SendTimeout | CloseReason::Error => close_code::ERROR,
    };
    let frame = CloseFrame { code, reason: reason.label().into() };
    let goodbye = async {
        sink.send(Message::Close(Some(frame))).await?;
        sink.close().await
    };
    drop(tokio::time::timeout(timeout, goodbye).await);
}

fn size(outputs: &[Output]) -> usize {
    let bytes = |output: &Output| match output {
        Output::Send(frame) => frame.len(),
        Output::Close(_) => 0,
    };
    outputs.iter().map(bytes).sum()
}

/// A message over the cap is refused by the library before it is read; all else is a connection that broke or
/// a client that does not speak the protocol.
fn inbound_failure(error: &axum::Error) -> CloseReason {
    let text = error.to_string();
    if text.contains("too long") || text.contains("too big") || text.contains("exceeds") {
        CloseReason::OverLimit
    } else if text.contains("protocol") && !text.contains("without closing handshake") {
        CloseReason::ProtocolError
    } else {
        CloseReason::ClientClosed
    }
}

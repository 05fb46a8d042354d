//! Drives one session over its socket, whatever it speaks. One task owns the socket: it looks up what the session
//! wants, and sends what comes out. No send waits for a client that takes nothing.
use crate::{
    auth::gate::Guard,
    hub::{Hub, Place},
    metrics::Metrics,
    replay::Replay,
    spoken::{Spoken, size},
    viewers::{Seat, Watching},
    wire::Progress,
};
use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use dashstream_core::{
    drain,
    filter::graphs::Names,
    limits::Limits,
    position::Partition,
    session::{CloseReason, Delivery, Found, Output, Want},
    v1::{ThreadFound, ThreadWant},
};
use dashstream_proto::gateway::v1::DeliveryMode;
use futures_util::{FutureExt, SinkExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, sleep_until},
};
use tokio_util::sync::CancellationToken;

mod sending;

pub use sending::turn_away;

use sending::{Inbound, Sink, goodbye, length, message, while_taken};

/// Bytes looked up and sent before the socket is flushed: bounds what one session holds beside its reads.
const BURST_BYTES: usize = 64 << 10;
/// Bytes looked through for one burst, where a filter leaves little of them.
const LOOKED_AT_BYTES: usize = 1 << 20;
/// Bytes of one page from replay, for a client that takes as much at a time.
const PAGE_BYTES: u64 = 256 << 10;
/// Least bytes of one page.
const PAGE_BYTES_MIN: u64 = 16 << 10;
/// Reads from replay of one session at a time, each of another partition.
const READS_MAX: usize = 2;
const TICK: Duration = Duration::from_secs(1);
/// What comes within this time after a flush is flushed together.
const PACE: Duration = Duration::from_millis(4);
/// A session is gone when its client showed no sign of life for so many heartbeats.
const SILENT_HEARTBEATS_MAX: u32 = 3;

/// What a session runs on.
#[derive(Clone, Debug)]
pub struct Ground {
    pub hub: Hub,
    pub replay: Replay,
    pub metrics: Metrics,
    /// The server's own limits; sessions take up what is sent here.
    pub limits: Arc<watch::Sender<Limits>>,
    pub send_timeout: Duration,
    pub heartbeat: Duration,
    pub drain_window: Duration,
    /// Sessions that were told to leave.
    pub left: Arc<AtomicU64>,
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

type Read = BoxFuture<'static, (Want, Vec<Found>)>;
type ThreadRead = BoxFuture<'static, (ThreadWant, ThreadFound)>;

struct Driver {
    ground: Ground,
    session: Spoken,
    guard: Guard,
    seat: Seat,
    sink: Sink,
    progress: Progress,
    reads: FuturesUnordered<Read>,
    thread_reads: FuturesUnordered<ThreadRead>,
    reading: BTreeSet<Partition>,
    versions: HashMap<Partition, u64>,
    begun: Instant,
    /// When the client last answered a ping.
    answered: Instant,
    /// When something was last sent.
    sent: Instant,
    /// When the client was last pinged.
    pinged: Instant,
    /// The next burst asks the client's library for a sign of life.
    ping: bool,
    /// When this session leaves, once the gateway drains.
    leaves: Option<Instant>,
}

/// Runs a session to its end, and says why it ended.
pub async fn run(
    socket: WebSocket,
    session: Spoken,
    ground: Ground,
    entrance: Entrance,
    progress: Progress,
) -> CloseReason {
    let (sink, mut inbound) = socket.split();
    let Entrance { first, guard, seat } = entrance;
    let now = Instant::now();
    let mut driver = Driver {
        ground,
        session,
        guard,
        seat,
        sink,
        progress,
        reads: FuturesUnordered::new(),
        thread_reads: FuturesUnordered::new(),
        reading: BTreeSet::new(),
        versions: HashMap::new(),
        begun: now,
        answered: now,
        sent: now,
        pinged: now,
        ping: false,
        leaves: None,
    };
    let reason = driver.serve(first, &mut inbound).await;
    let how = (driver.session.protocol(), reason);
    goodbye(&mut driver.sink, &mut inbound, how, driver.ground.send_timeout).await;
    reason
}

impl Driver {
    async fn serve(&mut self, first: Option<Bytes>, inbound: &mut Inbound) -> CloseReason {
        if let Some(message) = first {
            let outputs = self.session.on_binary(&message, &self.ground.hub.known());
            if let Err(reason) = self.put_out(outputs).await {
                return reason;
            }
        }
        let mut changed = self.ground.hub.changed();
        let mut limits = self.ground.limits.subscribe();
        limits.mark_changed(); // those of the terms may be older
        let mut ticks = tokio::time::interval(TICK);
        // Ticks that a slow client made late are not made up for: sessions count them as time.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.ground.stop.clone();
        loop {
            let (burst, more) = self.look_up();
            if let Err(reason) = self.put_out(burst).await {
                return reason;
            }
            let (pace, leaves) = (self.sent + PACE, self.leaves.unwrap_or(self.begun));
            let outputs = tokio::select! {
                message = inbound.next() => match self.on_token(&message).await {
                    Some(outputs) => outputs,
                    None => self.on_inbound(message),
                },
                Some((want, found)) = self.reads.next() => self.on_read(want, found),
                Some((want, found)) = self.thread_reads.next() => self.session.on_thread(&want, found),
                Ok(()) = paced(&mut changed, pace) => self.on_changed(),
                Ok(()) = limits.changed() => {
                    let limits = *limits.borrow_and_update();
                    self.session.on_limits(limits)
                }
                _ = ticks.tick() => self.on_tick(),
                () = stop.cancelled(), if self.leaves.is_none() => self.begin_to_leave(),
                () = sleep_until(leaves.into()), if self.leaves.is_some() => self.leave(),
                () = tokio::task::yield_now(), if more => Vec::new(),
            };
            if let Err(reason) = self.put_out(outputs).await {
                return reason;
            }
        }
    }

    /// Looks up what the session wants, up to a burst. True when there is more.
    fn look_up(&mut self) -> (Vec<Output>, bool) {
        if let Some(want) = self.session.next_thread() {
            self.read_thread(want);
        }
        let (mut burst, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
        let mut busy = self.reading.clone();
        while bytes < BURST_BYTES && looked_at < LOOKED_AT_BYTES {
            let Some(want) = self.session.next_want(&busy) else { return (burst, false) };
            let outputs = match self.ground.hub.find(want, BURST_BYTES) {
                Place::Memory(found) => {
                    looked_at += found.slots().iter().map(|slot| slot.frame().len()).sum::<usize>();
                    self.judge(want, found)
                }
                Place::Behind(passed) => {
                    busy.insert(want.partition);
                    self.read(want);
                    let told = self.session.on_behind(want.partition, passed);
                    self.ground.metrics.behind.inc_by(told.len() as u64);
                    told
                }
                Place::Replay => {
                    busy.insert(want.partition);
                    self.read(want);
                    Vec::new()
                }
            };
            busy.extend(self.reading.iter().copied());
            bytes += outputs.iter().map(size).sum::<usize>();
            burst.extend(outputs);
        }
        (burst, true)
    }

    /// Hands over what was found, once the graphs of its threads are known where the filter is by graph.
    fn judge(&mut self, want: Want, found: Found) -> Vec<Output> {
        if !self.session.filter().by_graph() {
            return self.session.on_found(want, found, &Names::default());
        }
        match self.ground.hub.names(found.slots()) {
            Ok(names) => self.session.on_found(want, found, &names),
            Err(unknown) => {
                self.reading.insert(want.partition);
                let (replay, hub) = (self.ground.replay.clone(), self.ground.hub.clone());
                let learning = async move {
                    let learned = replay.learn_graphs(&hub, unknown).await;
                    (want, vec![if learned { found } else { Found::NotNow }])
                };
                self.reads.push(learning.boxed());
                Vec::new()
            }
        }
    }

    fn read(&mut self, want: Want) {
        if self.reads.len() >= READS_MAX {
            return; // its turn comes when another read ends
        }
        self.reading.insert(want.partition);
        let (replay, hub) = (self.ground.replay.clone(), self.ground.hub.clone());
        let (bytes, filter) = (self.page_bytes(), Arc::clone(self.session.filter()));
        let read = async move {
            let found = replay.find(&hub, want.partition, want.from, bytes, filter.tenants()).await;
            (want, found)
        };
        self.reads.push(read.boxed());
    }

    fn read_thread(&mut self, want: ThreadWant) {
        let (replay, filter) = (self.ground.replay.clone(), Arc::clone(self.session.filter()));
        let read = async move {
            let found = replay.find_thread(&want, filter.tenants()).await;
            (want, found)
        };
        self.thread_reads.push(read.boxed());
    }

    /// A page that the client's credit can take is not read again for what was left of it.
    fn page_bytes(&self) -> u32 {
        let bytes = match self.session.in_flight_bytes_max() {
            0 => PAGE_BYTES,
            most => most.clamp(PAGE_BYTES_MIN, PAGE_BYTES),
        };
        bytes as u32
    }

    fn on_read(&mut self, mut want: Want, found: Vec<Found>) -> Vec<Output> {
        self.reading.remove(&want.partition);
        let mut outputs = Vec::new();
        for found in found {
            let behind = want.behind(&found);
            outputs.extend(self.judge(want, found));
            want = behind;
        }
        outputs
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
        self.guard.take(bytes).await
    }

    fn on_inbound(&mut self, message: Option<Result<Message, axum::Error>>) -> Vec<Output> {
        match message {
            Some(Ok(Message::Binary(bytes))) => self.session.on_binary(&bytes, &self.ground.hub.known()),
            Some(Ok(Message::Text(text))) => self.session.on_text(&text, &self.ground.hub.known()),
            // What a client says shows that it writes; only an answer shows that it reads.
            Some(Ok(Message::Pong(_))) => {
                self.answered = Instant::now();
                Vec::new()
            }
            Some(Ok(Message::Ping(_))) => Vec::new(),
            Some(Ok(Message::Close(_))) | None => vec![Output::Close(CloseReason::ClientClosed)],
            Some(Err(error)) => self.session.on_inbound_failure(inbound_failure(&error)),
        }
    }

    fn on_tick(&mut self) -> Vec<Output> {
        if let Some(over) = self.guard.on_tick(SystemTime::now()) {
            return self.session.protocol().turned(over);
        }
        self.seat.says(Watching {
            delivered: self.session.cursors(),
            mode: mode(&self.session),
            filter: Some(Arc::clone(self.session.filter())),
        });
        let hub = self.ground.hub.clone();
        let mut outputs = self.session.on_tick(self.begun.elapsed(), || hub.known());
        if !self.session.protocol().is_pinged() {
            return outputs;
        }
        let (heartbeat, alive) = (self.ground.heartbeat, self.answered.max(self.progress.taken()));
        if alive.elapsed() >= heartbeat * SILENT_HEARTBEATS_MAX {
            outputs.push(Output::Close(CloseReason::Idle));
            return outputs;
        }
        if self.sent.elapsed() >= heartbeat {
            outputs.extend(self.session.heartbeat(|| hub.known()));
        }
        if self.pinged.elapsed() >= heartbeat {
            (self.ping, self.pinged) = (true, Instant::now());
        }
        outputs
    }

    /// The gateway drains: the client is told when it shall go, and is served until then.
    fn begin_to_leave(&mut self) -> Vec<Output> {
        let slot = drain::slot(self.ground.left.fetch_add(1, Ordering::Relaxed), self.ground.drain_window);
        self.leaves = Some(Instant::now() + slot);
        self.session.on_drain(slot)
    }

    fn leave(&mut self) -> Vec<Output> {
        let mut outputs = self.session.on_drain(Duration::ZERO);
        outputs.push(Output::Close(CloseReason::Draining));
        outputs
    }

    /// Sends frames, in bursts that are flushed once each. `Err` when the session ends.
    async fn put_out(&mut self, outputs: Vec<Output>) -> Result<(), CloseReason> {
        let mut burst = Vec::new();
        for output in outputs {
            match message(output) {
                Ok(message) => burst.push(message),
                Err(reason) => {
                    self.send(burst).await?;
                    return Err(reason);
                }
            }
        }
        self.send(burst).await
    }

    async fn send(&mut self, burst: Vec<Message>) -> Result<(), CloseReason> {
        if burst.is_empty() && !self.ping {
            return Ok(());
        }
        let (frames, bytes) = (burst.len() as u64, burst.iter().map(|message| length(message) as u64).sum());
        let (ping, sink) = (std::mem::take(&mut self.ping), &mut self.sink);
        let sending = async {
            if ping {
                sink.feed(Message::Ping(Bytes::new())).await?;
            }
            for message in burst {
                sink.feed(message).await?;
            }
            sink.flush().await
        };
        let timer = self.ground.metrics.send_seconds.start_timer();
        while_taken(&self.ground, &self.progress, sending).await?;
        timer.observe_duration();
        self.ground.metrics.sent_frames.inc_by(frames);
        self.ground.metrics.sent_bytes.inc_by(bytes);
        self.sent = Instant::now();
        Ok(())
    }
}

fn mode(session: &Spoken) -> DeliveryMode {
    match session.delivery() {
        None => DeliveryMode::Unspecified,
        Some(Delivery::Memory) => DeliveryMode::Live,
        Some(Delivery::Replay) => DeliveryMode::Replay,
    }
}

/// The next change, not before `pace`.
async fn paced(changed: &mut watch::Receiver<u64>, pace: Instant) -> Result<(), watch::error::RecvError> {
    sleep_until(pace.into()).await;
    changed.changed().await
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

//! The one thread that numbers, encodes and sends, so that Kafka's order is the order of the numbers.
use crate::{
    books::{Books, Degraded, Dropped, Failed},
    budget::Kind,
    client::{Client, Refused},
    flights::{Flight, Flights},
    queue::{Item, Memory, Queue, Said},
    signal::OVERHEAD_BYTES,
    thread::{Carries, Outgoing, Rules, Stamps, Thread},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// Items between two looks at what has arrived.
const BURST: usize = 128;
/// How long an idle writer sleeps.
const IDLE: Duration = Duration::from_millis(100);
/// How long it sleeps while something is on its way.
const BUSY: Duration = Duration::from_millis(2);
/// How long Kafka's client may take to say what became of what it was told to give up.
const GIVE_UP_TIMEOUT: Duration = Duration::from_secs(1);
/// From one replacement of a broken client to the next.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);

/// An entry in the books.
enum Entry {
    Queue(Kind),
    Drop(Kind, Dropped),
    Send(Kind),
    Settle(Kind, Option<Failed>),
    Degrade(Degraded),
}

impl Entry {
    fn make(self, books: &mut Books) {
        match self {
            Self::Queue(kind) => books.queue(kind),
            Self::Drop(kind, reason) => books.drop_queued(kind, reason),
            Self::Send(kind) => books.send(kind),
            Self::Settle(kind, failed) => books.settle(kind, failed),
            Self::Degrade(how) => books.degrade(how),
        }
    }
}

pub(crate) struct Writer {
    queue: Arc<Queue>,
    client: Client,
    topic: String,
    rules: Rules,
    producer_epoch: String,
    random: StdRng,
    threads: HashMap<u64, Thread>,
    flights: Flights,
    entries: Vec<Entry>,
    memory: Memory,
    renewed: Instant,
}

impl Writer {
    pub(crate) fn new(queue: Arc<Queue>, client: Client, topic: String, rules: Rules) -> Self {
        let mut random = StdRng::from_rng(&mut rand::rng());
        Self {
            queue,
            client,
            topic,
            rules,
            producer_epoch: uuid::Uuid::from_bytes(id(&mut random)).to_string(),
            random,
            threads: HashMap::new(),
            flights: Flights::default(),
            entries: Vec::new(),
            memory: Memory::default(),
            renewed: Instant::now(),
        }
    }

    /// Writes until the queue is closed and empty, or its deadline has passed.
    pub(crate) fn run(mut self) {
        let mut items = Vec::with_capacity(BURST);
        loop {
            let wait = if self.flights.is_empty() { IDLE } else { BUSY };
            let deadline = self.queue.take(BURST, wait, &mut items);
            let ends = deadline.is_some_and(|deadline| items.is_empty() || deadline <= Instant::now());
            for item in items.drain(..) {
                self.item(item, ends);
            }
            self.settle(Duration::ZERO);
            if let Some(deadline) = deadline.filter(|_| ends) {
                return self.end(deadline);
            }
        }
    }

    fn item(&mut self, item: Item, too_late: bool) {
        match item {
            Item::Over { run } => drop(self.threads.remove(&run)),
            Item::Said(said) if too_late => {
                self.memory.taken_off_queue += said.bytes;
                self.entries.push(Entry::Drop(said.signal.kind(), Dropped::ShutDown));
            }
            Item::Said(said) => self.said(*said),
        }
    }

    fn said(&mut self, mut said: Said) {
        let new = || Thread::new(said.thread_id.to_string(), format!("{}/{}", self.producer_epoch, said.run));
        let thread = self.threads.entry(said.run).or_insert_with(new);
        thread.skip(said.hole);
        let signal = std::mem::replace(&mut said.signal, crate::signal::Signal::Checkpoint);
        let random = &mut self.random;
        let mut stamps = Stamps { timestamp_us: said.timestamp_us, ids: &mut || id(random) };
        let (outgoing, degraded) = thread.on(signal, &self.rules, &mut stamps);
        self.entries.extend(degraded.into_iter().map(Entry::Degrade));
        for (at, outgoing) in outgoing.into_iter().enumerate() {
            // The first is what was queued; what follows is the writer's own.
            match outgoing {
                Outgoing::Drop { kind, reason } => {
                    self.own(at, kind);
                    self.entries.push(Entry::Drop(kind, reason));
                }
                Outgoing::Send { kind, payload, carries } => {
                    self.own(at, kind);
                    self.send(&said, kind, &payload, carries);
                }
            }
        }
        self.memory.taken_off_queue += said.bytes;
    }

    fn own(&mut self, at: usize, kind: Kind) {
        if at > 0 {
            self.entries.push(Entry::Queue(kind));
        }
    }

    /// Gives a record to Kafka's client, and waits while that has no room. It makes room within `delivery_timeout`.
    fn send(&mut self, said: &Said, kind: Kind, payload: &[u8], carries: Carries) {
        let bytes = payload.len() + said.thread_id.len() + OVERHEAD_BYTES;
        let flight = Flight { run: said.run, kind, carries, bytes, said: said.at };
        let number = self.flights.depart(flight);
        self.entries.push(Entry::Send(kind));
        self.memory.sent += bytes;
        loop {
            let trace = said.trace.as_deref();
            match self.client.send(&self.topic, &said.thread_id, payload, trace, number) {
                Ok(()) => return,
                Err(Refused::Failed(failed)) => return self.arrive(number, Some(failed)),
                Err(Refused::Full) if self.queue.is_overdue() => {
                    return self.arrive(number, Some(Failed::ShutDown));
                }
                Err(Refused::Full) => self.settle(BUSY),
            }
        }
    }

    /// Looks what has arrived, after waiting at most so long for it, and enters everything in the books.
    fn settle(&mut self, wait: Duration) {
        for (number, failed) in self.client.arrived(wait) {
            self.arrive(number, failed);
        }
        if self.client.is_broken() && self.renewed.elapsed() >= RENEW_INTERVAL {
            self.renew();
        }
        if self.entries.is_empty() {
            return;
        }
        let (memory, entries) = (std::mem::take(&mut self.memory), &mut self.entries);
        let make = |books: &mut Books| entries.drain(..).for_each(|entry| entry.make(books));
        self.queue.settle(memory, self.flights.oldest(), make);
    }

    fn arrive(&mut self, number: usize, failed: Option<Failed>) {
        if let Some(flight) = self.flights.arrive(number) {
            self.landed(flight, failed);
        }
    }

    fn landed(&mut self, flight: Flight, failed: Option<Failed>) {
        self.memory.arrived += flight.bytes;
        self.entries.push(Entry::Settle(flight.kind, failed));
        if failed.is_some()
            && let Some(thread) = self.threads.get_mut(&flight.run)
        {
            thread.on_failure(flight.carries);
        }
    }

    /// Puts another client in the place of one that will never take a record again. What the old one had is lost to
    /// us, even where Kafka has it: sent again, it could be there twice. So every thread goes on with a whole state.
    fn renew(&mut self) {
        tracing::error!("kafka's client is beyond help; replacing it");
        self.renewed = Instant::now();
        self.give_up(Failed::Other);
        self.threads.values_mut().for_each(|thread| thread.on_failure(Carries::State));
        match self.client.anew() {
            Ok(client) => self.client = client,
            Err(error) => tracing::error!(%error, "replace kafka's client"),
        }
    }

    fn give_up(&mut self, why: Failed) {
        self.client.give_up();
        let until = Instant::now() + GIVE_UP_TIMEOUT;
        while !self.flights.is_empty() && Instant::now() < until {
            for (number, failed) in self.client.arrived(BUSY) {
                self.arrive(number, failed);
            }
        }
        let left: Vec<_> = self.flights.abandon().collect();
        left.into_iter().for_each(|flight| self.landed(flight, Some(why)));
    }

    fn end(mut self, deadline: Instant) {
        while !self.flights.is_empty() && Instant::now() < deadline {
            self.settle(BUSY);
        }
        if !self.flights.is_empty() {
            self.give_up(Failed::ShutDown);
        }
        let mut items = Vec::new();
        self.queue.take(usize::MAX, Duration::ZERO, &mut items);
        items.into_iter().for_each(|item| self.item(item, true));
        self.settle(Duration::ZERO);
        self.queue.end();
    }
}

/// A version 4 UUID.
fn id(random: &mut StdRng) -> [u8; 16] {
    let mut bytes = [0; 16];
    random.fill_bytes(&mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid().into_bytes()
}

//! The live feed: batches that are durable, to any number of gateways, none of which can hold up the others.
use crate::{metrics::Metrics, owned::Owned};
use dashstream_core::position::Partition;
use dashstream_proto::{
    ingest::v1::{Heartbeat, Revoked, SubscribeLiveResponse, subscribe_live_response::Event},
    log::v1::Batch,
};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::mpsc;

/// Most events that wait for one subscriber; bytes are bounded beside it.
const EVENTS_MAX: usize = 4_096;

/// Where pipelines publish.
#[derive(Clone, Debug)]
pub struct Live {
    subscribers: Arc<Mutex<Vec<Subscriber>>>,
    buffer_bytes: u64,
    metrics: Metrics,
}

#[derive(Debug)]
struct Subscriber {
    partitions: Vec<i32>,
    events: mpsc::Sender<SubscribeLiveResponse>,
    waiting: Arc<AtomicU64>,
}

/// A subscriber's end. It ends when the subscriber is cut.
#[derive(Debug)]
pub struct Subscription {
    events: mpsc::Receiver<SubscribeLiveResponse>,
    waiting: Arc<AtomicU64>,
}

impl Subscription {
    /// The next event; `None` when the subscriber was cut or the service stops.
    pub async fn next(&mut self) -> Option<SubscribeLiveResponse> {
        let event = self.events.recv().await?;
        self.waiting.fetch_sub(bytes(&event), Ordering::Relaxed);
        Some(event)
    }
}

fn bytes(event: &SubscribeLiveResponse) -> u64 {
    match &event.event {
        Some(Event::Batch(batch)) => batch.records.len() as u64,
        Some(Event::Heartbeat(_) | Event::Revoked(_)) | None => 0,
    }
}

impl Live {
    pub fn new(buffer_bytes: u64, metrics: Metrics) -> Self {
        Self { subscribers: Arc::default(), buffer_bytes, metrics }
    }

    fn subscribers(&self) -> MutexGuard<'_, Vec<Subscriber>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new subscriber of these partitions, or of all. It hears at once where each partition is.
    pub fn subscribe(&self, partitions: Vec<i32>, owned: &Owned) -> Subscription {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let waiting = Arc::<AtomicU64>::default();
        let subscriber = Subscriber { partitions, events, waiting: Arc::clone(&waiting) };
        let mut subscribers = self.subscribers();
        // Under the lock, so that what is published from now on comes behind it.
        for heartbeat in owned.heartbeats() {
            self.offer(&subscriber, &event(Event::Heartbeat(heartbeat)));
        }
        subscribers.push(subscriber);
        self.metrics.live_subscribers.set(subscribers.len() as i64);
        Subscription { events: receiver, waiting }
    }

    pub fn batch(&self, batch: Batch) {
        self.publish(batch.partition, &event(Event::Batch(batch)));
    }

    pub fn heartbeat(&self, heartbeat: Heartbeat) {
        let partition = heartbeat.durable.as_ref().map_or(-1, |cursor| cursor.partition);
        self.publish(partition, &event(Event::Heartbeat(heartbeat)));
    }

    pub fn revoked(&self, partition: Partition) {
        self.publish(partition.get(), &event(Event::Revoked(Revoked { partition: partition.get() })));
    }

    fn publish(&self, partition: i32, event: &SubscribeLiveResponse) {
        let mut subscribers = self.subscribers();
        let before = subscribers.len();
        subscribers.retain(|subscriber| {
            let wanted = subscriber.partitions.is_empty() || subscriber.partitions.contains(&partition);
            !wanted || self.offer(subscriber, event)
        });
        if subscribers.len() != before {
            self.metrics.live_subscribers.set(subscribers.len() as i64);
        }
    }

    /// False when the subscriber is gone, or so slow that it is cut.
    fn offer(&self, subscriber: &Subscriber, event: &SubscribeLiveResponse) -> bool {
        let size = bytes(event);
        let waiting = subscriber.waiting.fetch_add(size, Ordering::Relaxed);
        let fits = waiting == 0 || waiting + size <= self.buffer_bytes;
        if fits && subscriber.events.try_send(event.clone()).is_ok() {
            return true;
        }
        if !subscriber.events.is_closed() {
            self.metrics.live_cut.inc();
            tracing::warn!(waiting_bytes = waiting, "a subscriber of the live feed does not keep up: cut");
        }
        false
    }
}

fn event(event: Event) -> SubscribeLiveResponse {
    SubscribeLiveResponse { event: Some(event) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(buffer: u64) -> Live {
        Live::new(buffer, Metrics::register(&prometheus::Registry::new()).unwrap())
    }

    fn batch(partition: i32, bytes: usize) -> Batch {
        Batch { partition, records: vec![0; bytes].into(), ..Default::default() }
    }

    #[tokio::test]
    async fn a_subscriber_that_does_not_read_is_cut_and_holds_up_nobody() {
        let live = live(100);
        let mut slow = live.subscribe(vec![], &Owned::default());
        let mut quick = live.subscribe(vec![], &Owned::default());
        for _ in 0..5 {
            live.batch(batch(0, 30));
            assert!(quick.next().await.is_some());
        }
        let mut got = 0;
        while slow.next().await.is_some() {
            got += 1;
        }
        assert_eq!(got, 3, "what fits is delivered, then the feed ends");
        assert_eq!((live.metrics.live_cut.get(), live.metrics.live_subscribers.get()), (1, 1));
    }

    #[tokio::test]
    async fn a_batch_larger_than_the_buffer_still_goes_to_a_subscriber_that_keeps_up() {
        let live = live(10);
        let mut subscription = live.subscribe(vec![], &Owned::default());
        live.batch(batch(0, 50));
        assert!(subscription.next().await.is_some());
        live.batch(batch(0, 50));
        assert!(subscription.next().await.is_some());
    }

    #[tokio::test]
    async fn a_subscriber_hears_only_of_its_partitions() {
        let live = live(100);
        let mut subscription = live.subscribe(vec![2], &Owned::default());
        live.batch(batch(1, 1));
        live.revoked(Partition::new(2).unwrap());
        let event = subscription.next().await.unwrap().event.unwrap();
        assert!(matches!(event, Event::Revoked(Revoked { partition: 2 })));
    }
}

//! The consumer: its settings, its group, and which partitions it fetches from where.
//!
//! The group's callback only says which partitions are ours. Each partition's pipeline then assigns its own
//! partition at the offset that the store asks for, and assigns it anew when it must go back. A partition
//! queue is split off before its partition is assigned, so no record ever reaches the common queue.
use crate::config::Config;
use dashstream_core::position::{NextOffset, Partition};
use dashstream_kafka::{Trouble, connection};
use rdkafka::{
    ClientContext, Offset, Statistics, TopicPartitionList,
    consumer::{
        BaseConsumer, CommitMode, Consumer as _, ConsumerContext, StreamConsumer,
        stream_consumer::StreamPartitionQueue,
    },
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

mod committed;

pub use committed::Position;

/// How long one question to the brokers may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one question for watermarks may take: until it is answered, a partition does not begin.
const WATERMARK_TIMEOUT: Duration = Duration::from_millis(1_500);

pub type Queue = StreamPartitionQueue<Context>;

/// What librdkafka's statistics say of one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// One past the newest readable record.
    pub high_watermark: NextOffset,
    /// Where it fetches next. Control records and holes below it are passed.
    pub next: NextOffset,
    /// Records fetched that wait in the partition's queue.
    pub queued: i64,
    /// There is a connection to the partition's leader.
    pub leader_up: bool,
}

/// What librdkafka's statistics say.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub partitions: BTreeMap<Partition, Fetched>,
    /// Brokers with a connection, and all that are known.
    pub brokers_up: usize,
    pub brokers: usize,
}

/// Shared with librdkafka's callbacks.
#[derive(Debug)]
pub struct Context {
    topic: String,
    /// The partitions that the group gave us.
    owned: watch::Sender<BTreeSet<Partition>>,
    known: watch::Sender<Known>,
    assigned: Mutex<BTreeSet<Partition>>,
    /// Pipelines of each partition that have not ended; two while one follows the other.
    running: Mutex<BTreeMap<Partition, u32>>,
    ended: Condvar,
    revoke_timeout: Duration,
    trouble: Trouble,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Context {
    fn new(topic: String, revoke_timeout: Duration) -> Self {
        Self {
            topic,
            owned: watch::Sender::default(),
            known: watch::Sender::default(),
            assigned: Mutex::default(),
            running: Mutex::default(),
            ended: Condvar::default(),
            revoke_timeout,
            trouble: Trouble::default(),
        }
    }

    fn partitions(&self, list: &TopicPartitionList) -> BTreeSet<Partition> {
        let ours = list.elements_for_topic(&self.topic);
        ours.iter().filter_map(|element| Partition::new(element.partition()).ok()).collect()
    }

    fn list(&self, partitions: impl IntoIterator<Item = Partition>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, partition.get());
        }
        list
    }

    /// Tells the pipelines to end and waits until they have, so that the next owner finds all of theirs stored.
    fn revoke(&self, consumer: &BaseConsumer<Self>, lost: &BTreeSet<Partition>) {
        self.owned.send_modify(|owned| owned.retain(|partition| !lost.contains(partition)));
        let running = lock(&self.running);
        let waited = self.ended.wait_timeout_while(running, self.revoke_timeout, |running| {
            running.keys().any(|partition| lost.contains(partition))
        });
        if waited.is_ok_and(|(_, waited)| waited.timed_out()) {
            tracing::warn!(?lost, "appends in flight did not end in time; the store keeps them in order");
        }
        let mut assigned = lock(&self.assigned);
        let ours = self.list(assigned.extract_if(.., |partition| lost.contains(partition)));
        if let Err(error) = consumer.incremental_unassign(&ours) {
            tracing::warn!(%error, "unassign revoked partitions");
        }
    }
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        // Those without a node id are the addresses to begin with, and the group's coordinator once more.
        let brokers = || statistics.brokers.values().filter(|broker| broker.nodeid >= 0);
        let up: BTreeSet<_> =
            brokers().filter(|broker| broker.state == "UP").map(|broker| broker.nodeid).collect();
        let all: BTreeSet<_> = brokers().map(|broker| broker.nodeid).collect();
        let partitions =
            statistics.topics.get(&self.topic).into_iter().flat_map(|topic| topic.partitions.values());
        let partitions = partitions.filter_map(|partition| {
            let mark = if partition.ls_offset >= 0 { partition.ls_offset } else { partition.hi_offset };
            let fetched = Fetched {
                high_watermark: NextOffset::from_kafka(mark).ok()?,
                next: NextOffset::from_kafka(partition.next_offset).ok()?,
                queued: partition.fetchq_cnt,
                leader_up: up.contains(&partition.leader),
            };
            Some((Partition::new(partition.partition).ok()?, fetched))
        });
        let known = Known { partitions: partitions.collect(), brokers_up: up.len(), brokers: all.len() };
        self.known.send_replace(known);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.trouble.note(&error, reason);
    }
}

impl ConsumerContext for Context {
    /// Runs on the thread that serves the group, which may wait.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions = self.partitions(list);
        if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            tracing::info!(?partitions, "partitions assigned");
            // The pipelines assign them, each at its own offset.
            if let Err(error) = consumer.incremental_assign(&TopicPartitionList::new()) {
                tracing::error!(%error, "take part in the group");
            }
            self.owned.send_modify(|owned| owned.extend(&partitions));
        } else if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS {
            tracing::info!(?partitions, "partitions revoked");
            self.revoke(consumer, &partitions);
        } else {
            tracing::warn!(error = %RDKafkaErrorCode::from(event), "rebalance failed: all partitions given up");
            let all = self.owned.borrow().clone();
            self.revoke(consumer, &all);
        }
    }
}

/// The consumer of one replica. A cheap handle.
#[derive(Clone)]
pub struct Consumer {
    inner: Arc<StreamConsumer<Context>>,
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").field("topic", &self.context().topic).finish_non_exhaustive()
    }
}

impl Consumer {
    /// Joins the group. [`Self::serve`] must run from then on.
    ///
    /// # Errors
    /// When a setting is wrong, by its name.
    pub fn join(config: &Config) -> Result<Self, connection::Error> {
        let defaults = [
            ("fetch.wait.max.ms", "100"),
            ("queued.min.messages", "20000"),
            ("queued.max.messages.kbytes", "16384"),
            // A queue that was full is filled again soon; by default it would run empty meanwhile.
            ("fetch.queue.backoff.ms", "20"),
            // How soon a topic that is made anew, or given more partitions, is noticed.
            ("topic.metadata.refresh.interval.ms", "10000"),
        ];
        let mut settings = config.kafka.connection.client_config("dashstream-ingest", &defaults)?;
        // What our promises rest on can't be set otherwise.
        settings
            .set("group.id", &config.kafka.group_id)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("session.timeout.ms", config.kafka.session_timeout.as_millis().to_string())
            .set("heartbeat.interval.ms", (config.kafka.session_timeout / 4).as_millis().to_string())
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // A position outside of the log is ours to judge, never reset in silence.
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            .set("statistics.interval.ms", "500");
        if let Some(id) = &config.kafka.group_instance_id {
            settings.set("group.instance.id", id);
        }
        let context = Context::new(config.kafka.topic.clone(), config.revoke_timeout);
        let inner: StreamConsumer<Context> = settings.create_with_context(context)?;
        inner.subscribe(&[&config.kafka.topic])?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Nobody else has a handle: dropping this one closes the consumer, which takes as long as Kafka takes.
    pub fn is_last(&self) -> bool {
        Arc::strong_count(&self.inner) == 1
    }

    fn context(&self) -> &Context {
        self.inner.context()
    }

    /// Serves the group: rebalances, statistics, errors. It must be polled all the time, on a thread that may
    /// be blocked; no records come this way.
    pub async fn serve(&self) {
        loop {
            match self.inner.recv().await {
                Ok(record) => {
                    use rdkafka::Message;
                    tracing::error!(
                        partition = record.partition(),
                        offset = record.offset(),
                        "a record outside of its partition's queue: its pipeline starts anew"
                    );
                }
                // Which follows on why each of them is; that was told to the context.
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) => {}
                Err(error) => tracing::warn!(%error, "kafka"),
            }
        }
    }

    /// The partitions that the group gave us, as they change.
    pub fn owned(&self) -> watch::Receiver<BTreeSet<Partition>> {
        self.context().owned.subscribe()
    }

    /// What the statistics say, twice a second.
    pub fn known(&self) -> watch::Receiver<Known> {
        self.context().known.subscribe()
    }

    /// A pipeline begins; a revocation waits until it [`Self::ended`].
    pub fn running(&self, partition: Partition) {
        *lock(&self.context().running).entry(partition).or_default() += 1;
    }

    /// A pipeline has ended: nothing of it is in flight.
    pub fn ended(&self, partition: Partition) {
        let mut running = lock(&self.context().running);
        match running.get_mut(&partition) {
            Some(pipelines) if *pipelines > 1 => *pipelines -= 1,
            _ => drop(running.remove(&partition)),
        }
        drop(running);
        self.context().ended.notify_all();
    }

    /// Fetches a partition from `next` on, wherever it was before. `None` when the partition is not ours.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn fetch_from(&self, partition: Partition, next: Option<NextOffset>) -> KafkaResult<Option<Queue>> {
        let context = self.context();
        let mut assigned = lock(&context.assigned);
        if !context.owned.borrow().contains(&partition) {
            return Ok(None);
        }
        if assigned.remove(&partition) {
            self.inner.incremental_unassign(&context.list([partition]))?;
        }
        let queue = self.inner.split_partition_queue(&context.topic, partition.get());
        let queue = queue.ok_or(KafkaError::Subscription("no queue for the partition".into()))?;
        let mut list = TopicPartitionList::new();
        let offset = next.map_or(Offset::Beginning, |next| Offset::Offset(next.to_kafka()));
        list.add_partition_offset(&context.topic, partition.get(), offset)?;
        self.inner.incremental_assign(&list)?;
        assigned.insert(partition);
        Ok(Some(queue))
    }

    /// First and one past the last readable offset. Blocks.
    ///
    /// # Errors
    /// When no broker answers in time.
    pub fn watermarks(&self, partition: Partition) -> KafkaResult<(NextOffset, NextOffset)> {
        let (low, high) =
            self.inner.fetch_watermarks(&self.context().topic, partition.get(), WATERMARK_TIMEOUT)?;
        let mark = |value| {
            NextOffset::from_kafka(value).map_err(|_| KafkaError::OffsetFetch(RDKafkaErrorCode::Unknown))
        };
        Ok((mark(low)?, mark(high)?))
    }

    /// What was committed of a partition, if anything. Blocks.
    ///
    /// # Errors
    /// When no broker answers in time.
    pub fn committed(&self, partition: Partition) -> KafkaResult<Option<Position>> {
        let committed = self.inner.committed_offsets(self.context().list([partition]), QUERY_TIMEOUT)?;
        let element = committed.find_partition(&self.context().topic, partition.get());
        Ok(element.and_then(|element| match element.offset() {
            Offset::Offset(next) => Position::parse(partition, next, element.metadata()),
            Offset::Beginning | Offset::End | Offset::Stored | Offset::Invalid | Offset::OffsetTail(_) => {
                None
            }
        }))
    }

    /// The first offset whose record is at or after `timestamp_ms`; `None` when there is none. Blocks.
    ///
    /// # Errors
    /// When no broker answers in time.
    pub fn offset_at(&self, partition: Partition, timestamp_ms: i64) -> KafkaResult<Option<NextOffset>> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.context().topic, partition.get(), Offset::Offset(timestamp_ms))?;
        let found = self.inner.offsets_for_times(list, QUERY_TIMEOUT)?;
        let element = found.find_partition(&self.context().topic, partition.get());
        Ok(element.and_then(|element| match element.offset() {
            Offset::Offset(at) => NextOffset::from_kafka(at).ok(),
            Offset::Beginning | Offset::End | Offset::Stored | Offset::Invalid | Offset::OffsetTail(_) => {
                None
            }
        }))
    }

    /// Partitions that the topic has. Blocks.
    ///
    /// # Errors
    /// When no broker answers in time, or the topic does not exist.
    pub fn partition_count(&self) -> KafkaResult<usize> {
        let metadata = self.inner.fetch_metadata(Some(&self.context().topic), QUERY_TIMEOUT)?;
        let topic = metadata.topics().first();
        match topic.map(|topic| (topic.error(), topic.partitions().len())) {
            Some((None, partitions)) => {
                self.context().trouble.clear();
                Ok(partitions)
            }
            Some((Some(error), _)) => Err(KafkaError::MetadataFetch(error.into())),
            None => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopic)),
        }
    }

    /// An error, with what Kafka's client complained of before it.
    pub fn explain(&self, error: &KafkaError) -> String {
        self.context().trouble.explain(error)
    }

    /// Commits positions, for lag monitors and for what the next owner must know. Does not wait.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn commit(&self, positions: &[Position]) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        for position in positions {
            let mut element = list.add_partition(&self.context().topic, position.partition.get());
            element.set_offset(Offset::Offset(position.next.to_kafka()))?;
            element.set_metadata(position.metadata());
        }
        if positions.is_empty() { Ok(()) } else { self.inner.commit(&list, CommitMode::Async) }
    }
}

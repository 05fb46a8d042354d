//! Where a session begins that starts at the running threads: one plan for all partitions, from replay's directory,
//! shared by the sessions that ask for it at the same time.
//!
//! The marks are taken before the list. So a thread that begins in between is either in the list, or all of it is
//! behind the mark: nothing of it is left out either way.
use crate::{
    flights::Flights,
    replay::{Replay, link},
};
use dashstream_core::{
    filter::{Since, Tenants},
    position::{Epoch, Partition},
    session::{ActiveStart, Found},
};
use dashstream_proto::{
    log::v1::{Batch, Cursor, Packing, Record, Records, RunStatus},
    replay::v1::{
        DescribePartitionsRequest, ListThreadsRequest, PartitionDescription, ReadThreadRequest, Thread,
        read_thread_request::From,
    },
};
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tonic::{Code, Status};

/// Most running threads that a start takes account of: those active last.
const THREADS_MAX: usize = 1_000;
/// Most pages of the directory that are read for one plan.
const LIST_PAGES_MAX: usize = 40;
/// Threads that are read at a time.
const READS_AT_ONCE: usize = 8;
/// A plan serves all who ask for it within this time, and so all partitions of one session.
const PLAN_AGE_MAX: Duration = Duration::from_secs(2);
/// Most plans that are kept so.
const PLANS_MAX: usize = 16;

/// Where each partition begins.
type Plan = BTreeMap<Partition, Arc<ActiveStart>>;
/// The tenants whose threads a plan is of; all of them where it is `None`.
type Key = Option<BTreeSet<String>>;

/// A plan that was made just now.
#[derive(Debug)]
struct Made {
    key: Key,
    at: Instant,
    plan: Arc<Plan>,
}

/// Plans that are being made, and those made just now. A cheap handle.
#[derive(Clone, Debug, Default)]
pub(crate) struct Starts {
    flights: Flights<Key, Option<Arc<Plan>>>,
    made: Arc<Mutex<Vec<Made>>>,
}

impl Starts {
    fn made(&self, key: &Key) -> Option<Arc<Plan>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.retain(|made| made.at.elapsed() < PLAN_AGE_MAX);
        made.iter().find(|made| made.key == *key).map(|made| Arc::clone(&made.plan))
    }

    fn keep(&self, key: Key, plan: Arc<Plan>) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() < PLANS_MAX {
            made.push(Made { key, at: Instant::now(), plan });
        }
    }
}

/// Where one partition begins.
pub(crate) async fn find(replay: &Replay, partition: Partition, tenants: &Tenants) -> Found {
    let key = match tenants {
        Tenants::All => None,
        Tenants::Only(tenants) => Some(tenants.clone()),
    };
    let plan = match replay.starts.made(&key) {
        Some(plan) => Some(plan),
        None => replay.starts.flights.join(key.clone(), || make(replay.clone(), key).boxed()).await,
    };
    match plan {
        None => Found::NotNow,
        Some(plan) => plan.get(&partition).map_or(Found::Seeding, |start| Found::Active(Arc::clone(start))),
    }
}

async fn make(replay: Replay, key: Key) -> Option<Arc<Plan>> {
    match plan(&replay, key.clone()).await {
        Ok(plan) => {
            let plan = Arc::new(plan);
            replay.starts.keep(key, Arc::clone(&plan));
            Some(plan)
        }
        Err(status) => {
            tracing::warn!(%status, "list the running threads");
            None
        }
    }
}

/// Where a thread begins.
#[derive(Clone, Debug, PartialEq)]
enum Beginning {
    /// At this record of the log.
    At(u64),
    /// With a state that the log no longer has.
    State(Box<Record>),
}

async fn plan(replay: &Replay, tenants: Key) -> Result<Plan, Status> {
    let request = DescribePartitionsRequest { stream: replay.stream.to_string(), partitions: Vec::new() };
    let mut client = replay.client.clone();
    let partitions = replay.in_time(client.describe_partitions(request)).await?.into_inner().partitions;
    let none = tenants.as_ref().is_some_and(BTreeSet::is_empty);
    let (threads, cut_at) = if none { (Vec::new(), None) } else { list(replay, tenants).await? };
    let logs: BTreeMap<_, _> = partitions.iter().map(|log| (log.partition, log)).collect();
    let beginnings = stream::iter(threads).map(|thread| {
        let log = logs.get(&thread.partition).copied();
        async move { Ok::<_, Status>(begin(replay, log, &thread).await?.map(|begun| (thread, begun))) }
    });
    let beginnings: Vec<_> = beginnings.buffer_unordered(READS_AT_ONCE).try_collect().await?;
    let beginnings: Vec<_> = beginnings.into_iter().flatten().collect();
    let of = |log: &PartitionDescription| {
        let partition = Partition::new(log.partition).map_err(|error| Status::internal(error.to_string()))?;
        Ok((partition, Arc::new(start(log, &beginnings, cut_at))))
    };
    partitions.iter().map(of).collect()
}

/// The threads that run or wait for a person, those active last first; and how many, when not all are taken.
async fn list(replay: &Replay, tenants: Key) -> Result<(Vec<Thread>, Option<u64>), Status> {
    let mut request = ListThreadsRequest {
        stream: replay.stream.to_string(),
        tenant_ids: tenants.into_iter().flatten().collect(),
        statuses: vec![RunStatus::Running.into(), RunStatus::Interrupted.into()],
        page_size: 500,
        ..Default::default()
    };
    let mut threads = Vec::new();
    for _ in 0..LIST_PAGES_MAX {
        let mut client = replay.client.clone();
        let page = replay.in_time(client.list_threads(request.clone())).await?.into_inner();
        threads.extend(page.threads);
        if page.next_page_token.is_empty() && threads.len() <= THREADS_MAX {
            return Ok((threads, None));
        }
        if threads.len() > THREADS_MAX {
            break;
        }
        request.page_token = page.next_page_token;
    }
    threads.truncate(THREADS_MAX);
    let sent = threads.len() as u64;
    Ok((threads, Some(sent)))
}

/// Where a thread begins: with its newest whole state, else with its first record that is kept. `None` when it is
/// gone, or of another life of its partition.
async fn begin(
    replay: &Replay,
    log: Option<&PartitionDescription>,
    thread: &Thread,
) -> Result<Option<Beginning>, Status> {
    let Some(log) = log.filter(|log| thread.last.is_some_and(|last| last.epoch == log.epoch)) else {
        return Ok(None);
    };
    let state = thread.whole_state.and_then(|cursor| cursor.offset);
    if let Some(at) = state.filter(|at| Some(*at) >= log.earliest_offset) {
        return Ok(Some(Beginning::At(at)));
    }
    let offset = state.and_then(|at| at.checked_sub(1));
    let request = ReadThreadRequest {
        stream: replay.stream.to_string(),
        tenant_id: thread.tenant_id.clone(),
        thread_id: thread.thread_id.clone(),
        from: Some(From::After(Cursor { epoch: log.epoch, partition: log.partition, offset })),
        records_max: 1,
        tenant_ids: Vec::new(),
    };
    let reading = async {
        let mut pages = replay.client.clone().read_thread(request).await?.into_inner();
        while let Some(page) = pages.message().await? {
            if let Some(record) = page.records.into_iter().next() {
                return Ok(Some(record));
            }
        }
        Ok(None)
    };
    match replay.in_time(reading).await {
        Ok(Some(record)) if Some(record.offset) < log.earliest_offset => {
            Ok(Some(Beginning::State(Box::new(record))))
        }
        Ok(record) => Ok(record.map(|record| Beginning::At(record.offset))),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

/// Where a log begins: before the first record of its threads, and behind the first state that it no longer has, so
/// that what retention took since is told as a gap.
fn start(log: &PartitionDescription, beginnings: &[(Thread, Beginning)], cut_at: Option<u64>) -> ActiveStart {
    let mark = link(log.last_offset);
    let (mut threads, mut states, mut names, mut begin) = (BTreeMap::new(), Vec::new(), Vec::new(), mark);
    for (thread, beginning) in beginnings.iter().filter(|(thread, _)| thread.partition == log.partition) {
        let (offset, from) = match beginning {
            Beginning::At(offset) => (*offset, link(offset.checked_sub(1))),
            Beginning::State(record) => {
                states.push(alone(log, record));
                (record.offset, link(Some(record.offset)))
            }
        };
        begin = begin.min(from);
        threads.insert(thread.thread_id.clone(), offset);
        let graph = Some(thread.graph_name.clone()).filter(|graph| !graph.is_empty());
        names.push((thread.thread_id.clone(), graph));
    }
    ActiveStart {
        epoch: Epoch::new(log.epoch),
        begin,
        since: Arc::new(Since { mark, threads }),
        states,
        names: names.into_iter().collect(),
        cut_at,
    }
}

fn alone(log: &PartitionDescription, record: &Record) -> Batch {
    Batch {
        epoch: log.epoch,
        partition: log.partition,
        prev_offset: record.prev_offset,
        first_offset: record.offset,
        last_offset: record.offset,
        record_count: 1,
        packing: Packing::Plain.into(),
        records: Records { records: vec![record.clone()] }.encode_to_vec().into(),
        ingested_ms: None,
        stored_ms: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(id: &str, partition: i32) -> Thread {
        Thread { thread_id: id.into(), partition, graph_name: "plan".into(), ..Default::default() }
    }

    fn log() -> PartitionDescription {
        let (partition, epoch, last_offset) = (2, 5, Some(80));
        PartitionDescription {
            partition,
            epoch,
            earliest_offset: Some(10),
            last_offset,
            ..Default::default()
        }
    }

    #[test]
    fn a_partition_begins_before_the_oldest_of_its_threads() {
        let beginnings = [
            (thread("a", 2), Beginning::At(40)),
            (thread("b", 2), Beginning::At(30)),
            (thread("of another partition", 1), Beginning::At(3)),
        ];
        let start = start(&log(), &beginnings, None);
        assert_eq!((start.begin, start.since.mark), (link(Some(29)), link(Some(80))));
        assert_eq!(start.since.threads, [("a".to_owned(), 40), ("b".to_owned(), 30)].into());
        assert!(start.states.is_empty());
        assert_eq!(start.names.graph("b"), Some("plan"));
    }

    #[test]
    fn a_state_that_the_log_lost_is_sent_first_and_what_was_lost_since_is_a_gap() {
        let state = Record { offset: 4, prev_offset: Some(3), ..Default::default() };
        let beginnings =
            [(thread("a", 2), Beginning::State(Box::new(state))), (thread("b", 2), Beginning::At(60))];
        let start = start(&log(), &beginnings, None);
        assert_eq!(start.begin, link(Some(4)));
        assert_eq!(start.states.iter().map(|state| state.first_offset).collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn without_running_threads_it_begins_at_the_end() {
        let start = start(&log(), &[], None);
        assert_eq!((start.begin, start.states.len()), (link(Some(80)), 0));
    }
}

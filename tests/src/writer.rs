//! A writer of one partition as ingest is one: compare-and-append through the replay service, and back to what
//! the store holds whenever anything goes wrong.
use crate::{eventually, eventually::pause};
use bytes::Bytes;
use dashstream_core::{
    batch::{self, Envelope, Packer},
    codec::Facts,
    position::{Epoch, Link, Offset, Partition},
};
use dashstream_kit::grpc::channel_to;
use dashstream_proto::{
    log::v1::{AfterOffset, Batch, Earliest, Position, RecordKind, RunFacts, position},
    replay::v1::{
        AppendRequest, OpenPartitionRequest, ReadPartitionsRequest, append_response::Outcome,
        read_partitions_response::Step, replay_service_client::ReplayServiceClient,
    },
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, transport::Channel};

/// Records of one batch.
const BATCH_RECORDS: u64 = 16;
/// Batches in flight.
const WINDOW: usize = 8;
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(10);
/// A replay that does not answer for this long is asked anew.
const PATIENCE: Duration = Duration::from_secs(8);

/// The record that belongs at an offset: the source's truth.
pub fn payload(at: u64) -> Bytes {
    Bytes::from(format!("record {at} {}", "x".repeat((at % 97) as usize)))
}

/// Appends the records 0, 1, 2, … of one partition.
#[derive(Debug)]
pub struct Writer {
    client: ReplayServiceClient<Channel>,
    stream: String,
    partition: Partition,
    epoch: Option<Epoch>,
    /// How often it went back to what the store holds.
    pub lives: u64,
    /// Lives that ended while batches were on their way: what was done of those, nobody knew.
    pub interrupted: u64,
    /// Why it did, and how often.
    pub causes: BTreeMap<String, u64>,
    acknowledged: Arc<AtomicU64>,
    /// Records that were found in their places, from the first on.
    verified: u64,
}

/// A batch of the records after `link` and before `end`.
pub fn batch_after(epoch: Epoch, partition: Partition, link: Link, end: u64) -> Option<Batch> {
    let mut packer = Packer::new(epoch, partition, link);
    let from = link.map_or(0, |link| link.get() + 1);
    for at in from..end.min(from + BATCH_RECORDS) {
        let facts = Facts {
            kind: RecordKind::Event,
            tenant_id: "acme".into(),
            thread_id: format!("thread-{}", at % 5),
            sequence: Some(at + 1),
            more_threads: Vec::new(),
            run: RunFacts::default(),
            produced_us: None,
        };
        let (traceparent, tracestate) = (String::new(), String::new());
        let offset = Offset::clamped(at);
        let envelope = Envelope { offset, timestamp_ms: Some(at as i64), facts, traceparent, tracestate };
        let _new: bool = packer.push(envelope, &payload(at));
    }
    packer.finish()
}

impl Writer {
    /// A writer that reaches replay at `address`.
    ///
    /// # Panics
    /// If that is none.
    pub fn new(address: &str, stream: &str, partition: i32) -> Self {
        Self {
            client: ReplayServiceClient::new(channel_to(address).expect("an address")),
            stream: stream.to_owned(),
            partition: Partition::new(partition).expect("in range"),
            epoch: None,
            lives: 0,
            interrupted: 0,
            acknowledged: Arc::default(),
            verified: 0,
            causes: BTreeMap::new(),
        }
    }

    /// Batches acknowledged so far, to be looked at while it writes.
    pub fn acknowledged(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.acknowledged)
    }

    /// The epoch that it writes in, once it has.
    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// Appends until the store holds every record before `end`.
    pub async fn write_until(&mut self, end: u64) {
        loop {
            self.lives += 1;
            match tokio::time::timeout(PATIENCE, self.life(end)).await {
                Ok(Ok(())) => return,
                Ok(Err(why)) => *self.causes.entry(why).or_default() += 1,
                // It may well have made progress; it looks anew either way.
                Err(_) => *self.causes.entry("a life took long".to_owned()).or_default() += 1,
            }
            pause(RETRY).await;
        }
    }

    /// From what the store holds to the end, or to the first thing that goes wrong.
    async fn life(&mut self, end: u64) -> Result<(), String> {
        let open = OpenPartitionRequest {
            stream: self.stream.clone(),
            partition: self.partition.get(),
            known_epoch: self.epoch.map(Epoch::get),
            high_watermark: None,
            diverged: None,
            expired_last_offset: None,
        };
        let opened = self.client.open_partition(open).await.map_err(|status| why(&status))?.into_inner();
        let epoch = Epoch::new(opened.epoch);
        assert!(self.epoch.is_none_or(|known| known == epoch), "the epoch that the writer knows is kept");
        self.epoch = Some(epoch);

        let (requests, outgoing) = mpsc::channel(WINDOW);
        let answers = self.client.append(ReceiverStream::new(outgoing)).await;
        let mut answers = answers.map_err(|status| why(&status))?.into_inner();
        let (mut link, mut in_flight) = (opened.last_offset.map(Offset::clamped), 0);
        loop {
            while in_flight < WINDOW
                && let Some(batch) = batch_after(epoch, self.partition, link, end)
            {
                link = Some(Offset::clamped(batch.last_offset));
                let request = AppendRequest { stream: self.stream.clone(), batch: Some(batch) };
                if requests.send(request).await.is_err() {
                    return Err("the stream ended".into());
                }
                in_flight += 1;
            }
            if in_flight == 0 {
                return Ok(());
            }
            self.interrupted += 1; // unless an answer comes
            let answer = answers.message().await.map_err(|status| why(&status))?;
            self.interrupted -= u64::from(answer.is_some());
            match answer.and_then(|answer| answer.outcome) {
                Some(Outcome::Stored(_)) => {
                    in_flight -= 1;
                    self.acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                Some(Outcome::Refused(refused)) => return Err(refused.reason().as_str_name().to_owned()),
                None => return Err("the stream ended".into()),
            }
        }
    }

    /// Fails unless the store holds exactly the records before `end`, each in its place.
    ///
    /// # Panics
    /// At the first that is missing, wrong or too many, or if replay can't be read for long.
    pub async fn assert_stored(&mut self, end: u64) {
        self.verified = 0;
        self.assert_grown(end).await;
    }

    /// The same, looking only at what was written since it last did.
    ///
    /// # Panics
    /// As [`Writer::assert_stored`].
    pub async fn assert_grown(&mut self, end: u64) {
        let from = match (self.verified.checked_sub(1), self.epoch) {
            (Some(last), Some(epoch)) => {
                position::From::After(AfterOffset { epoch: epoch.get(), offset: Some(last) })
            }
            (None, _) | (_, None) => position::From::Earliest(Earliest {}),
        };
        let request = ReadPartitionsRequest {
            stream: self.stream.clone(),
            positions: vec![Position { partition: self.partition.get(), from: Some(from) }],
            page_bytes_max: 0,
            pages_max: 0,
            page_records_max: 0,
        };
        // It may just have been killed.
        let read = async || read(self.client.clone(), request.clone()).await;
        let mut next = self.verified;
        for stored in eventually("replay is read", PATIENCE, read).await {
            batch::check(&stored).expect("a whole batch");
            for record in batch::records(&stored) {
                let record = record.expect("a record");
                assert_eq!((record.offset, record.prev_offset), (next, next.checked_sub(1)));
                assert_eq!(record.payload, payload(next));
                next += 1;
            }
        }
        assert_eq!(next, end);
        self.verified = next;
    }
}

/// All batches of an answer that is nothing but pages.
async fn read(
    mut client: ReplayServiceClient<Channel>,
    request: ReadPartitionsRequest,
) -> Result<Vec<Batch>, Status> {
    let mut steps = client.read_partitions(request).await?.into_inner();
    let mut batches = Vec::new();
    while let Some(step) = steps.message().await? {
        let Some(Step::Page(page)) = step.step else { panic!("expected a page: {step:?}") };
        batches.extend(page.batches);
    }
    Ok(batches)
}

fn why(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

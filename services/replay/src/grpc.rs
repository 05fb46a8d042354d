//! The replay service over gRPC: what goes in is checked, what comes out is the store's.
use crate::{
    answers::{Answers, Outlet, outlet},
    append_stream,
    config::{Config, Retention},
    directory,
    error::Error,
    filling::Bounds,
    keys::{Stream, ThreadName},
    metrics::Metrics,
    schemas,
    store::{From, LastRecord, Open, Page, Store},
    thread_reads, upkeep,
};
use dashstream_core::{
    batch,
    position::{Epoch, NextOffset, Offset, Partition},
};
use dashstream_kit::tasks::Tasks;
use dashstream_proto::{
    log::v1::{Position, position},
    replay::v1::{
        self as wire, AppendRequest, AppendResponse, OpenPartitionRequest, OpenPartitionResponse,
        ReadPartitionsRequest, ReadPartitionsResponse, StaleReason, read_partitions_response::Step,
        replay_service_server::ReplayService,
    },
};
use futures_util::future::try_join_all;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// How long a read waits for a place before it is told to come back.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves any store.
#[derive(Debug)]
pub struct Replay<S> {
    store: Arc<S>,
    config: Arc<Config>,
    metrics: Metrics,
    tasks: Tasks,
    /// Places for reads in flight.
    reads: Arc<Semaphore>,
}

impl<S> Clone for Replay<S> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            config: Arc::clone(&self.config),
            metrics: self.metrics.clone(),
            tasks: self.tasks.clone(),
            reads: Arc::clone(&self.reads),
        }
    }
}

impl<S: Store> Replay<S> {
    pub fn new(store: Arc<S>, config: Config, metrics: Metrics, tasks: Tasks) -> Self {
        let reads = Arc::new(Semaphore::new(config.reads_max as usize));
        Self { store, config: Arc::new(config), metrics, tasks, reads }
    }

    /// A place among the reads in flight. Appends need none: they go first.
    async fn admit(&self) -> Result<OwnedSemaphorePermit, Error> {
        let place = tokio::time::timeout(ADMISSION_TIMEOUT, Arc::clone(&self.reads).acquire_owned()).await;
        let place = place.ok().and_then(Result::ok);
        place.ok_or_else(|| {
            self.metrics.reads_refused.inc();
            Error::Busy { limit: self.config.reads_max, retry_after: ADMISSION_TIMEOUT }
        })
    }

    /// What is kept of a stream, and whether that was set for it.
    async fn retention_of(&self, stream: &Stream) -> Result<(Retention, bool), Error> {
        let set = self.store.retention(stream).await?;
        Ok((set.unwrap_or(self.config.retention), set.is_some()))
    }

    /// Reads one partition page by page into `answers`, up to what the log held at the first page. `None` when
    /// nothing more can be answered.
    async fn read_partition(
        &self,
        stream: &Stream,
        partition: Partition,
        mut from: From,
        limits: PageLimits,
        mut answers: Outlet<ReadPartitionsResponse>,
    ) -> Option<Outlet<ReadPartitionsResponse>> {
        let mut goal = None;
        for pages in 1.. {
            let timer = self.metrics.read_seconds.start_timer();
            let page = self.store.read(stream, partition, from, limits.bounds).await;
            timer.observe_duration();
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    self.metrics.store_failures.inc();
                    answers.send(Err(Error::from(error).into())).await;
                    return None;
                }
            };
            let page = at_most(page, limits.records_max);
            let more = next_position(&page, &mut goal);
            for step in steps(page) {
                if let Step::Page(page) = &step {
                    let bytes = page.batches.iter().map(|batch| batch.records.len() as u64).sum();
                    self.metrics.read_bytes.inc_by(bytes);
                }
                let answer = ReadPartitionsResponse { partition: partition.get(), step: Some(step) };
                answers = answers.send(Ok(answer)).await?;
            }
            match more {
                Some(next) if limits.pages_max == 0 || pages < limits.pages_max => from = next,
                _ => break,
            }
        }
        Some(answers)
    }
}

#[derive(Clone, Copy, Debug)]
struct PageLimits {
    bounds: Bounds,
    records_max: u32,
    pages_max: u32,
}

/// The first batches of a page that have at most `records_max` records (0 for any number), at least one.
fn at_most(mut page: Page, records_max: u32) -> Page {
    let Page::Batches { batches, at_end, .. } = &mut page else { return page };
    let mut records = 0_u32;
    let fits = batches.iter().take_while(|batch| {
        records = records.saturating_add(batch.record_count);
        records <= records_max
    });
    let keep = fits.count().max(1);
    if records_max > 0 && keep < batches.len() {
        batches.truncate(keep);
        *at_end = false;
    }
    page
}

/// Where to go on after a page; `None` when it ends the reading. `goal` is the log's end at the first page.
fn next_position(page: &Page, goal: &mut Option<Offset>) -> Option<From> {
    let Page::Batches { epoch, batches, at_end, held, .. } = page else { return None };
    // A log that holds nothing of its own may still have something older in front of it.
    let goal = *goal.get_or_insert(held.unwrap_or(Offset::clamped(u64::MAX)));
    let last = batches.last().map(batch::Span::last)?;
    (!at_end && last < goal).then_some(From::After { epoch: *epoch, at: Some(last) })
}

fn steps(page: Page) -> Vec<Step> {
    match page {
        Page::Batches { epoch, gap, batches, at_end, held } => {
            let page = wire::Page { epoch: epoch.get(), batches, at_end, last_offset: held.map(Offset::get) };
            gap.map(Step::Gap).into_iter().chain([Step::Page(page)]).collect()
        }
        Page::Stale { epoch, earliest, held } => vec![Step::Stale(wire::Stale {
            reason: StaleReason::Epoch.into(),
            epoch: Some(epoch.get()),
            earliest_offset: earliest.map(Offset::get),
            last_offset: held.map(Offset::get),
        })],
        Page::Seeding => {
            vec![Step::Stale(wire::Stale { reason: StaleReason::Seeding.into(), ..Default::default() })]
        }
    }
}

fn position(position: &Position) -> Result<(Partition, From), Error> {
    let partition = Partition::new(position.partition)?;
    let expected = "one of earliest, latest, after, at_time_ms";
    let from = match position.from.as_ref().ok_or(Error::Missing { field: "position.from", expected })? {
        position::From::Earliest(_) => From::Earliest,
        position::From::Latest(_) => From::Latest,
        position::From::After(after) => {
            From::After { epoch: Epoch::new(after.epoch), at: after.offset.map(Offset::new).transpose()? }
        }
        position::From::AtTimeMs(time_ms) => From::AtTime(*time_ms),
    };
    Ok((partition, from))
}

/// What a writer says of itself.
fn opening(request: &OpenPartitionRequest) -> Result<Open, Error> {
    let mark = request.high_watermark.map(Offset::new).transpose()?;
    let diverged = request.diverged.as_ref();
    if let Some(cursor) = diverged.filter(|cursor| cursor.partition != request.partition) {
        let (field, expected) = ("diverged.partition", "the partition to open");
        return Err(Error::Invalid { field, value: cursor.partition.to_string(), expected });
    }
    let diverged = diverged.and_then(|cursor| Some((Epoch::new(cursor.epoch), cursor.offset?)));
    Ok(Open {
        partition: Partition::new(request.partition)?,
        known_epoch: request.known_epoch.map(known_epoch).transpose()?,
        high_watermark: mark.map(|mark| NextOffset::from_kafka(mark.to_kafka())).transpose()?,
        diverged: diverged.map(|(epoch, at)| Ok::<_, Error>((epoch, Offset::new(at)?))).transpose()?,
        expired: request.expired_last_offset.map(Offset::new).transpose()?,
        mint: mint(),
    })
}

/// A later one than it must be possible to mint.
fn known_epoch(epoch: u64) -> Result<Epoch, Error> {
    const MOST: u64 = i64::MAX as u64;
    if epoch > MOST {
        let (field, expected) = ("known_epoch", "0 to 2^63-1");
        return Err(Error::Invalid { field, value: epoch.to_string(), expected });
    }
    Ok(Epoch::new(epoch))
}

fn last_record(last: LastRecord) -> wire::LastRecord {
    let LastRecord { timestamp_ms, payload_sha256 } = last;
    wire::LastRecord { timestamp_ms, payload_sha256: payload_sha256.to_vec() }
}

/// A new epoch: later than all before it, and unlike that of any other stream or store. The milliseconds since
/// 1970 lead, 20 random bits follow.
fn mint() -> Epoch {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Epoch::new(((since.as_millis() as u64) << 20) | u64::from(rand::random::<u32>() >> 12))
}

#[tonic::async_trait]
impl<S: Store> ReplayService for Replay<S> {
    async fn open_partition(
        &self,
        request: Request<OpenPartitionRequest>,
    ) -> Result<Response<OpenPartitionResponse>, Status> {
        let request = request.into_inner();
        let stream = Stream::new(&request.stream).map_err(Error::from)?;
        let open = opening(&request)?;
        let retention = self.retention_of(&stream).await?.0;
        let opened = self.store.open(&stream, open).await;
        let opened = opened.inspect_err(|_| self.metrics.store_failures.inc()).map_err(Error::from)?;
        if opened.new_epoch {
            tracing::warn!(stream = stream.as_str(), partition = %open.partition, epoch = %opened.epoch,
                "new epoch opened: what was held belongs to an earlier life of the topic");
        }
        Ok(Response::new(OpenPartitionResponse {
            epoch: opened.epoch.get(),
            last_offset: opened.held.map(Offset::get),
            opened_new_epoch: opened.new_epoch,
            retention_ms: u64::try_from(retention.age.as_millis()).unwrap_or(u64::MAX),
            last_record: opened.last_record.map(last_record),
        }))
    }

    type AppendStream = Answers<AppendResponse>;

    async fn append(
        &self,
        request: Request<Streaming<AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let (answers, out) = append_stream::answers();
        let (replay, requests) = (self.clone(), request.into_inner());
        let (window, stop) = (self.config.append_window_bytes as usize, self.tasks.stop_token());
        self.tasks.spawn("append stream", async move {
            append_stream::run(&*replay.store, &replay.metrics, requests, answers, window, stop).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }

    type ReadPartitionsStream = Answers<ReadPartitionsResponse>;

    async fn read_partitions(
        &self,
        request: Request<ReadPartitionsRequest>,
    ) -> Result<Response<Self::ReadPartitionsStream>, Status> {
        let request = request.into_inner();
        let stream = Stream::new(&request.stream).map_err(Error::from)?;
        let positions =
            request.positions.iter().map(position).collect::<Result<Vec<_>, _>>().map_err(Status::from)?;
        let cap = self.config.page_bytes_max;
        let asked = u64::from(request.page_bytes_max);
        let limits = PageLimits {
            bounds: Bounds {
                records: usize::MAX,
                bytes: if asked == 0 { cap } else { asked.min(cap) },
                time: self.config.page_time_max,
            },
            records_max: request.page_records_max,
            pages_max: request.pages_max,
        };
        let place = self.admit().await?;
        let (mut outlet, answers) = outlet(self.config.reader_timeout);
        let replay = self.clone();
        self.tasks.spawn("read", async move {
            let _place = place;
            for (partition, from) in positions {
                let read = replay.read_partition(&stream, partition, from, limits, outlet);
                let Some(open) = read.await else { return };
                outlet = open;
            }
        });
        Ok(Response::new(answers))
    }

    type ReadThreadStream = Answers<wire::ReadThreadResponse>;

    async fn read_thread(
        &self,
        request: Request<wire::ReadThreadRequest>,
    ) -> Result<Response<Self::ReadThreadStream>, Status> {
        let place = self.admit().await?;
        let reading =
            thread_reads::Reading::begin(Arc::clone(&self.store), request.into_inner(), &self.config).await?;
        let (outlet, answers) = outlet(self.config.reader_timeout);
        self.tasks.spawn("read thread", async move {
            let _place = place;
            let _done: Option<()> = reading.run(outlet).await;
        });
        Ok(Response::new(answers))
    }

    async fn list_threads(
        &self,
        request: Request<wire::ListThreadsRequest>,
    ) -> Result<Response<wire::ListThreadsResponse>, Status> {
        let _place = self.admit().await?;
        let request = request.into_inner();
        let stream = Stream::new(&request.stream).map_err(Error::from)?;
        Ok(Response::new(directory::list(&*self.store, &stream, &request).await?))
    }

    async fn describe_thread(
        &self,
        request: Request<wire::DescribeThreadRequest>,
    ) -> Result<Response<wire::DescribeThreadResponse>, Status> {
        let _place = self.admit().await?;
        let request = request.into_inner();
        let stream = Stream::new(&request.stream).map_err(Error::from)?;
        let name = ThreadName::new(&request.thread_id).map_err(Error::from)?;
        let asked = directory::Asked::new(&request.tenant_id, &request.tenant_ids);
        let summary = directory::find(&*self.store, &stream, &name, &asked).await?;
        Ok(Response::new(wire::DescribeThreadResponse { thread: Some(directory::thread(summary)) }))
    }

    async fn describe_partitions(
        &self,
        request: Request<wire::DescribePartitionsRequest>,
    ) -> Result<Response<wire::DescribePartitionsResponse>, Status> {
        let _place = self.admit().await?;
        let request = request.into_inner();
        let stream = Stream::new(&request.stream).map_err(Error::from)?;
        let asked = request.partitions.iter().map(|id| Partition::new(*id)).collect::<Result<Vec<_>, _>>();
        let asked = asked.map_err(Error::from)?;
        let asked =
            if asked.is_empty() { self.store.partitions(&stream).await.map_err(Error::from)? } else { asked };
        let described = asked.into_iter().map(|partition| self.store.describe_partition(&stream, partition));
        let described = try_join_all(described).await.map_err(Error::from)?;
        let age = self.retention_of(&stream).await?.0.age;
        let partitions = described.into_iter().flatten().map(|kept| upkeep::described(&kept, age)).collect();
        Ok(Response::new(wire::DescribePartitionsResponse { partitions }))
    }

    async fn delete_thread(
        &self,
        request: Request<wire::DeleteThreadRequest>,
    ) -> Result<Response<wire::DeleteThreadResponse>, Status> {
        let request = request.into_inner();
        let stream = Stream::new(&request.stream).map_err(Error::from)?;
        let name = ThreadName::new(&request.thread_id).map_err(Error::from)?;
        let asked = directory::Asked::new(&request.tenant_id, &[]);
        let existed = match directory::find(&*self.store, &stream, &name, &asked).await {
            Ok(summary) => {
                self.store.delete_thread(&stream, summary.partition, &name).await.map_err(Error::from)?
            }
            Err(Error::NoThread(_)) => false,
            Err(error) => return Err(error.into()),
        };
        tracing::info!(
            audit = true,
            stream = stream.as_str(),
            thread = request.thread_id,
            tenant = request.tenant_id,
            reason = request.reason,
            existed,
            "thread deleted"
        );
        Ok(Response::new(wire::DeleteThreadResponse { existed }))
    }

    async fn get_retention(
        &self,
        request: Request<wire::GetRetentionRequest>,
    ) -> Result<Response<wire::GetRetentionResponse>, Status> {
        let stream = Stream::new(&request.into_inner().stream).map_err(Error::from)?;
        let (retention, is_set) = self.retention_of(&stream).await?;
        Ok(Response::new(wire::GetRetentionResponse { retention: Some(upkeep::told(retention)), is_set }))
    }

    async fn set_retention(
        &self,
        request: Request<wire::SetRetentionRequest>,
    ) -> Result<Response<wire::SetRetentionResponse>, Status> {
        let request = request.into_inner();
        let stream = Stream::new(&request.stream).map_err(Error::from)?;
        let retention = request.retention.map(|asked| upkeep::checked(&asked)).transpose()?;
        self.store.set_retention(&stream, retention).await.map_err(Error::from)?;
        let (now, _) = self.retention_of(&stream).await?;
        tracing::info!(audit = true, stream = stream.as_str(), retention = ?now, reason = request.reason,
            "retention changed");
        Ok(Response::new(wire::SetRetentionResponse { retention: Some(upkeep::told(now)) }))
    }

    async fn list_expected_schemas(
        &self,
        request: Request<wire::ListExpectedSchemasRequest>,
    ) -> Result<Response<wire::ListExpectedSchemasResponse>, Status> {
        let _place = self.admit().await?;
        let schemas = schemas::list(&*self.store, request.get_ref()).await?;
        Ok(Response::new(wire::ListExpectedSchemasResponse { schemas }))
    }

    async fn get_expected_schema(
        &self,
        request: Request<wire::GetExpectedSchemaRequest>,
    ) -> Result<Response<wire::GetExpectedSchemaResponse>, Status> {
        let _place = self.admit().await?;
        let wire::GetExpectedSchemaRequest { stream, tenant_id, graph_name } = request.get_ref();
        let schema = Some(schemas::get(&*self.store, stream, tenant_id, graph_name).await?);
        Ok(Response::new(wire::GetExpectedSchemaResponse { schema }))
    }

    async fn set_expected_schema(
        &self,
        request: Request<wire::SetExpectedSchemaRequest>,
    ) -> Result<Response<wire::SetExpectedSchemaResponse>, Status> {
        let schema = Some(schemas::set(&*self.store, request.into_inner(), mint().get()).await?);
        Ok(Response::new(wire::SetExpectedSchemaResponse { schema }))
    }

    async fn delete_expected_schema(
        &self,
        request: Request<wire::DeleteExpectedSchemaRequest>,
    ) -> Result<Response<wire::DeleteExpectedSchemaResponse>, Status> {
        let schema = Some(schemas::delete(&*self.store, request.get_ref()).await?);
        Ok(Response::new(wire::DeleteExpectedSchemaResponse { schema }))
    }
}

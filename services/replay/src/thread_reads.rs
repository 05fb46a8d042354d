//! Reading one thread, page by page.
use crate::{
    answers::Outlet,
    config::Config,
    directory,
    error::Error,
    filling::Bounds,
    keys::{Stream, ThreadName},
    store::Store,
    threads::{After, ThreadPage, concerns},
};
use dashstream_core::position::{Epoch, Link, Offset, Partition};
use dashstream_proto::{
    log::v1::{Gap, GapReason, Record},
    replay::v1::{ReadThreadRequest, ReadThreadResponse, read_thread_request::From},
};
use std::{sync::Arc, time::Duration};
use tonic::Status;

/// Records of one answer.
const PAGE_RECORDS: usize = 1_000;

/// A thread that is being read.
#[derive(Debug)]
pub(crate) struct Reading<S> {
    store: Arc<S>,
    stream: Stream,
    /// `None` for a thread that only a predecessor knew.
    partition: Option<Partition>,
    name: ThreadName,
    after: After,
    /// Only records with a greater sequence.
    above: Option<u64>,
    /// Records still wanted.
    left: usize,
    bytes_max: u64,
    time_max: Duration,
    /// What a predecessor has of it.
    older: Vec<(Option<Partition>, Record)>,
}

impl<S: Store> Reading<S> {
    /// Finds the thread.
    ///
    /// # Errors
    /// When the request makes no sense, the thread is unknown or the store fails.
    pub(crate) async fn begin(
        store: Arc<S>,
        request: ReadThreadRequest,
        config: &Config,
    ) -> Result<Self, Error> {
        let stream = Stream::new(&request.stream)?;
        let name = ThreadName::new(&request.thread_id)?;
        let after = match request.from {
            None => After::Nothing,
            Some(From::AfterSequence(sequence)) => After::Sequence(sequence),
            Some(From::After(cursor)) => {
                let at = cursor.offset.map(Offset::new).transpose()?;
                After::Offset { epoch: Epoch::new(cursor.epoch), at }
            }
        };
        let left = if request.records_max == 0 { usize::MAX } else { request.records_max as usize };
        let above = match after {
            After::Sequence(sequence) => Some(sequence),
            After::Nothing | After::Offset { .. } => None,
        };
        let older = match after {
            After::Nothing => store.older_records(&request.thread_id, None, left).await?,
            After::Sequence(sequence) => {
                store.older_records(&request.thread_id, Some(sequence), left).await?
            }
            After::Offset { .. } => Vec::new(),
        };
        let asked = directory::Asked::new(&request.tenant_id, &request.tenant_ids);
        let older = older.into_iter().filter(|(_, record)| asked.allow(&record.tenant_id));
        let older = older.collect::<Vec<_>>();
        let partition = match directory::find(&*store, &stream, &name, &asked).await {
            Ok(summary) => Some(summary.partition),
            Err(Error::NoThread(_)) if !older.is_empty() => None,
            Err(error) => return Err(error),
        };
        let (bytes_max, time_max) = (config.page_bytes_max, config.page_time_max);
        Ok(Self { store, stream, partition, name, after, above, left, bytes_max, time_max, older })
    }

    /// Answers until the end; `None` when nobody listens any more.
    pub(crate) async fn run(mut self, mut outlet: Outlet<ReadThreadResponse>) -> Option<()> {
        let mut first = true;
        loop {
            let page = match self.partition {
                Some(partition) => self.page(partition).await.map(Some),
                None => Ok(None),
            };
            let older =
                if first { self.take_older(page.as_ref().ok().and_then(Option::as_ref)) } else { Vec::new() };
            for answer in older {
                outlet = outlet.send(Ok(answer)).await?;
            }
            let answer = match page {
                Ok(Some(mut page)) => {
                    let begun = if std::mem::take(&mut first) { self.begin_with(&mut page) } else { None };
                    if let Some(begun) = begun {
                        outlet = outlet.send(Ok(begun)).await?;
                    }
                    Ok(self.take(page))
                }
                Ok(None) => return Some(()),
                Err(status) => Err(status),
            };
            let done = answer.as_ref().map_or(true, |answer| answer.at_end || self.left == 0);
            outlet = outlet.send(answer).await?;
            if done {
                return Some(());
            }
        }
    }

    async fn page(&self, partition: Partition) -> Result<ThreadPage, Status> {
        let bounds =
            Bounds { records: self.left.min(PAGE_RECORDS), bytes: self.bytes_max, time: self.time_max };
        let page = self.store.read_thread(&self.stream, partition, &self.name, self.after, bounds).await;
        // It went while it was read, or the position is of another life.
        let gone = || Error::NoThread(self.name.id().chars().take(64).collect());
        Ok(page.map_err(Error::from)?.ok_or_else(gone)?)
    }

    /// What a predecessor has of the thread, up to where the store's own records begin.
    fn take_older(&mut self, page: Option<&ThreadPage>) -> Vec<ReadThreadResponse> {
        let begins = page.and_then(|page| Some((page.partition, page.records.first()?.offset)));
        let is_older = |(partition, record): &(Option<Partition>, Record)| match (partition, begins) {
            (Some(of), Some((partition, begins))) => *of != partition || record.offset < begins,
            (None, _) | (_, None) => true,
        };
        let mut older: Vec<_> = std::mem::take(&mut self.older).into_iter().filter(is_older).collect();
        older.truncate(self.left);
        self.left -= older.len();
        let at_end = page.is_none() || self.left == 0;
        let count = older.len();
        let answer = |(at, (partition, record)): (usize, (Option<Partition>, Record))| ReadThreadResponse {
            partition: partition.map_or(0, Partition::get),
            epoch: 0,
            records: vec![record],
            at_end: at_end && at + 1 == count,
            gap: None,
        };
        older.into_iter().enumerate().map(answer).collect()
    }

    fn wants(&self, record: &Record) -> bool {
        let sequence = concerns(record, &self.name.id()).flatten();
        self.above.is_none_or(|above| sequence.is_some_and(|sequence| sequence > above))
    }

    /// The newest whole state in place of records that are gone, as an answer of its own: what lies behind it is
    /// gone too.
    fn begin_with(&mut self, page: &mut ThreadPage) -> Option<ReadThreadResponse> {
        let record = page.whole_state.take()?;
        let gap = self.gap(page, record.offset);
        self.left = self.left.saturating_sub(1);
        self.after = After::Offset { epoch: page.epoch, at: Some(Offset::clamped(record.offset)) };
        let (partition, epoch) = (page.partition.get(), page.epoch.get());
        Some(ReadThreadResponse { partition, epoch, records: vec![record], at_end: false, gap })
    }

    fn take(&mut self, mut page: ThreadPage) -> ReadThreadResponse {
        page.records.truncate(self.left);
        let gap = match page.records.first() {
            Some(record) if page.trimmed => self.gap(&page, record.offset),
            Some(_) | None => None,
        };
        let last: Link = page.records.last().map(|record| Offset::clamped(record.offset));
        // A run that was begun again counts from 1 again: what is wanted is still only what is greater.
        page.records.retain(|record| self.wants(record));
        self.left = self.left.saturating_sub(page.records.len());
        if last.is_some() {
            self.after = After::Offset { epoch: page.epoch, at: last };
        }
        ReadThreadResponse {
            partition: page.partition.get(),
            epoch: page.epoch.get(),
            // Without a record there is nowhere to go on from.
            at_end: page.at_end || last.is_none(),
            records: page.records,
            gap,
        }
    }

    /// Offsets among which records of the thread were let go: from the reader's position to the next that it gets.
    fn gap(&self, page: &ThreadPage, next: u64) -> Option<Gap> {
        let first_offset = match self.after {
            After::Offset { at, .. } => at.map_or(0, |at| at.get() + 1),
            After::Nothing | After::Sequence(_) => 0,
        };
        let last_offset = next.checked_sub(1)?;
        (first_offset <= last_offset).then(|| Gap {
            epoch: page.epoch.get(),
            partition: page.partition.get(),
            first_offset,
            last_offset,
            reason: GapReason::Retention.into(),
        })
    }
}

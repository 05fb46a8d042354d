//! Reading one thread, page by page.
use crate::{
    directory,
    error::Error,
    keys::{Stream, ThreadName},
    store::Store,
    threads::{After, ThreadPage},
};
use dashstream_core::position::{Epoch, Link, Offset, Partition};
use dashstream_proto::{
    log::v1::{Gap, GapReason},
    replay::v1::{ReadThreadRequest, ReadThreadResponse, read_thread_request::From},
};
use std::sync::Arc;
use tokio::sync::mpsc;
use tonic::Status;

/// Records of one answer.
const PAGE_RECORDS: usize = 1_000;

/// A thread that is being read.
#[derive(Debug)]
pub(crate) struct Reading<S> {
    store: Arc<S>,
    stream: Stream,
    partition: Partition,
    name: ThreadName,
    after: After,
    /// Records still wanted.
    left: usize,
}

impl<S: Store> Reading<S> {
    /// Finds the thread.
    ///
    /// # Errors
    /// When the request makes no sense, the thread is unknown or the store fails.
    pub(crate) async fn begin(store: Arc<S>, request: ReadThreadRequest) -> Result<Self, Error> {
        let stream = Stream::new(&request.stream)?;
        let name = ThreadName::new(&request.thread_id)?;
        let summary = directory::find(&*store, &stream, &name, &request.tenant_id).await?;
        let after = match request.from {
            None => After::Nothing,
            Some(From::AfterSequence(sequence)) => After::Sequence(sequence),
            Some(From::After(cursor)) => {
                let at = cursor.offset.map(Offset::new).transpose()?;
                After::Offset { epoch: Epoch::new(cursor.epoch), at }
            }
        };
        let left = if request.records_max == 0 { usize::MAX } else { request.records_max as usize };
        Ok(Self { store, stream, partition: summary.partition, name, after, left })
    }

    /// Answers until the end, or until nobody listens.
    pub(crate) async fn run(mut self, answers: mpsc::Sender<Result<ReadThreadResponse, Status>>) {
        let mut first = true;
        loop {
            let most = self.left.min(PAGE_RECORDS);
            let page =
                self.store.read_thread(&self.stream, self.partition, &self.name, self.after, most).await;
            let answer = match page {
                Ok(Some(page)) => self.take(page, std::mem::take(&mut first)),
                // It went while it was read, or the position is of another life.
                Ok(None) => Err(Error::NoThread(self.name.id().chars().take(64).collect()).into()),
                Err(error) => Err(Error::from(error).into()),
            };
            let done = answer.as_ref().map_or(true, |answer| answer.at_end || self.left == 0);
            if answers.send(answer).await.is_err() || done {
                return;
            }
        }
    }

    fn take(&mut self, page: ThreadPage, first: bool) -> Result<ReadThreadResponse, Status> {
        let gap = if page.trimmed && first { self.gap(&page) } else { None };
        self.left = self.left.saturating_sub(page.records.len());
        let last: Link = page.records.last().map(|record| Offset::clamped(record.offset));
        if last.is_some() {
            self.after = After::Offset { epoch: page.epoch, at: last };
        }
        Ok(ReadThreadResponse {
            partition: page.partition.get(),
            epoch: page.epoch.get(),
            // Without a record there is nowhere to go on from.
            at_end: page.at_end || last.is_none(),
            records: page.records,
            gap,
        })
    }

    /// Offsets among which records of the thread were let go: from the reader's position to its first record.
    fn gap(&self, page: &ThreadPage) -> Option<Gap> {
        let first_offset = match self.after {
            After::Offset { at, .. } => at.map_or(0, |at| at.get() + 1),
            After::Nothing | After::Sequence(_) => 0,
        };
        let last_offset = page.records.first()?.offset.checked_sub(1)?;
        (first_offset <= last_offset).then(|| Gap {
            epoch: page.epoch.get(),
            partition: page.partition.get(),
            first_offset,
            last_offset,
            reason: GapReason::Retention.into(),
        })
    }
}

//! Answers to one reader, no faster than it takes them, and no slower than others can wait for its place.
use futures_util::{Stream, StreamExt, stream};
use std::{pin::Pin, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Answers that wait for a reader before the next page is read.
const QUEUED: usize = 2;

/// What a caller gets.
pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The way to one reader.
#[derive(Debug)]
pub(crate) struct Outlet<T> {
    answers: mpsc::Sender<Result<T, Status>>,
    /// Comes after all answers, where there is more to say.
    end: oneshot::Sender<Status>,
    patience: Duration,
}

/// A reader may leave an answer untaken for `patience`.
pub(crate) fn outlet<T: Send + 'static>(patience: Duration) -> (Outlet<T>, Answers<T>) {
    let (answers, out) = mpsc::channel(QUEUED);
    let (end, ended) = oneshot::channel();
    let ended = stream::once(ended).filter_map(|end| std::future::ready(end.ok().map(Err)));
    (Outlet { answers, end, patience }, Box::pin(ReceiverStream::new(out).chain(ended)))
}

impl<T> Outlet<T> {
    /// The outlet for the next answer; `None` when there is nobody to answer any more: the reader is gone, or was
    /// too slow and is told so.
    pub(crate) async fn send(self, answer: Result<T, Status>) -> Option<Self> {
        match timeout(self.patience, self.answers.send(answer)).await {
            Ok(sent) => sent.is_ok().then_some(self),
            Err(_) => {
                let why =
                    format!("the reader took no answer for {:?}: ask on behind the last", self.patience);
                // A reader that is gone needs no reason.
                let _gone = self.end.send(Status::deadline_exceeded(why));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_is_told_so_behind_what_it_was_sent() {
        let (mut outlet, answers) = outlet::<usize>(PATIENCE);
        for answer in 0..QUEUED {
            outlet = outlet.send(Ok(answer)).await.unwrap();
        }
        let begun = tokio::time::Instant::now();
        assert!(outlet.send(Ok(QUEUED)).await.is_none());
        assert_eq!(begun.elapsed(), PATIENCE);
        let taken: Vec<_> = answers.collect().await;
        let (last, sent) = taken.split_last().unwrap();
        assert_eq!(sent.iter().map(|answer| *answer.as_ref().unwrap()).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(last.as_ref().unwrap_err().code(), Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_all_gets_all_and_one_that_left_is_noticed() {
        let (mut outlet, answers) = outlet::<usize>(PATIENCE);
        let writer = async {
            for answer in 0..5 {
                outlet = outlet.send(Ok(answer)).await.unwrap();
            }
            outlet
        };
        let reader = answers.take(5).map(Result::unwrap).collect::<Vec<_>>();
        let (outlet, taken) = tokio::join!(writer, reader);
        assert_eq!(taken, [0, 1, 2, 3, 4]);
        assert!(outlet.send(Ok(5)).await.is_none());
    }
}

//! One writer's append stream: what waits together goes to the store together, within a window, and answers go back
//! in order. While they wait for the writer, nothing more of it is taken.
use crate::{append::append_all, metrics::Metrics, store::Store};
use dashstream_proto::replay::v1::{AppendRequest, AppendResponse};
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Most requests of one append stream that go to the store at once.
const APPENDS_AT_ONCE: usize = 64;
/// Answers that wait for a writer before its next appends are taken, in such runs.
const ANSWERS_QUEUED: usize = 2;

/// What a writer is told, or why its stream ends.
type Answer = Result<AppendResponse, Status>;

/// Where answers go, bounded, and where they come out.
pub(crate) fn answers() -> (mpsc::Sender<Answer>, mpsc::Receiver<Answer>) {
    mpsc::channel(APPENDS_AT_ONCE * ANSWERS_QUEUED)
}

/// Serves the stream until it ends, the store fails, or the stop. `window` is in bytes of batches.
pub(crate) async fn run<S: Store>(
    store: &S,
    metrics: &Metrics,
    mut requests: impl Stream<Item = Result<AppendRequest, Status>> + Unpin,
    answers: mpsc::Sender<Answer>,
    window: usize,
    stop: CancellationToken,
) {
    loop {
        let first = tokio::select! {
            first = requests.next() => first,
            () = stop.cancelled() => Some(Err(Status::unavailable("replay is draining"))),
        };
        let Some(first) = first else { return };
        let (together, end) = ready_requests(first, &mut requests, window);
        let outcome = append_all(store, metrics, together).await.map_err(Status::from);
        let (done, end) = match outcome {
            Ok(all) => (all, end),
            Err(status) => (Vec::new(), Some(status)),
        };
        for answer in done.into_iter().map(Ok).chain(end.clone().map(Err)) {
            if answers.send(answer).await.is_err() {
                return;
            }
        }
        if end.is_some() {
            return;
        }
    }
}

/// The first request and those that are there already, up to `window` bytes; and how the stream ended, if it
/// did in between.
fn ready_requests(
    first: Result<AppendRequest, Status>,
    requests: &mut (impl Stream<Item = Result<AppendRequest, Status>> + Unpin),
    window: usize,
) -> (Vec<AppendRequest>, Option<Status>) {
    let (mut together, mut bytes, mut next) = (Vec::new(), 0, Some(first));
    while let Some(request) = next {
        match request {
            Ok(request) => {
                bytes += request.batch.as_ref().map_or(0, |batch| batch.records.len());
                together.push(request);
            }
            Err(status) => return (together, Some(status)),
        }
        if bytes >= window || together.len() >= APPENDS_AT_ONCE {
            break;
        }
        next = requests.next().now_or_never().flatten();
    }
    (together, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dashstream_proto::log::v1::Batch;
    use futures_util::stream;

    fn request(bytes: usize) -> Result<AppendRequest, Status> {
        let batch = Batch { records: vec![0; bytes].into(), ..Default::default() };
        Ok(AppendRequest { stream: "runs".into(), batch: Some(batch) })
    }

    fn taken(there: &[usize], window: usize) -> usize {
        let mut waiting = stream::iter(there.iter().skip(1).map(|bytes| request(*bytes)));
        ready_requests(request(there[0]), &mut waiting, window).0.len()
    }

    #[test]
    fn no_more_goes_to_the_store_at_once_than_the_window_and_at_least_one_batch() {
        for (why, there, window, expected) in [
            ("all fit", &[10, 10, 10][..], 100, 3),
            ("what fills the window ends it", &[60, 40, 10], 100, 2),
            ("what is larger goes alone", &[1_000, 10], 100, 1),
        ] {
            assert_eq!(taken(there, window), expected, "{why}");
        }
        assert_eq!(taken(&[1; 100], usize::MAX), APPENDS_AT_ONCE, "nor more batches than fit a pipeline");
    }

    #[test]
    fn what_came_before_the_end_of_a_stream_is_taken() {
        let mut waiting = stream::iter([request(1), Err(Status::cancelled("gone"))]);
        let (together, end) = ready_requests(request(1), &mut waiting, 100);
        assert_eq!((together.len(), end.map(|status| status.code())), (2, Some(tonic::Code::Cancelled)));
    }
}

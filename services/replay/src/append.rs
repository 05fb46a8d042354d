//! The append path: checks what comes in, hands it to the store, and says what became of it.
use crate::{
    error::Error,
    filling::Bounds,
    keys::Stream,
    metrics::Metrics,
    store::{Appended, From, Page, Store},
};
use dashstream_core::{
    batch::{self, Span},
    position::{Epoch, Link, Offset, Partition},
};
use dashstream_kit::telemetry;
use dashstream_proto::{
    log::v1::Batch,
    replay::v1::{AppendRequest, AppendResponse, RefusalReason, Refused, Stored, append_response::Outcome},
};
use std::collections::HashMap;

/// Appends what came together; one answer for each, in order.
///
/// # Errors
/// When the store fails: then it is unknown what of it was done.
pub(crate) async fn append_all<S: Store>(
    store: &S,
    metrics: &Metrics,
    requests: Vec<AppendRequest>,
) -> Result<Vec<AppendResponse>, Error> {
    let mut answers = Vec::with_capacity(requests.len());
    let mut run: Vec<Batch> = Vec::new();
    let mut stream: Option<Stream> = None;
    for request in requests {
        match valid(request) {
            Ok((name, batch)) => {
                // In a cluster, partitions may be on different nodes.
                let other = run.last().is_some_and(|last| last.partition != batch.partition);
                if other || stream.as_ref().is_some_and(|stream| *stream != name) {
                    append_run(store, metrics, stream.as_ref(), &mut run, &mut answers).await?;
                }
                stream = Some(name);
                run.push(batch);
            }
            Err(message) => {
                append_run(store, metrics, stream.as_ref(), &mut run, &mut answers).await?;
                metrics.invalid();
                answers.push(refused(RefusalReason::Invalid, None, None, message));
            }
        }
    }
    append_run(store, metrics, stream.as_ref(), &mut run, &mut answers).await?;
    Ok(answers)
}

async fn append_run<S: Store>(
    store: &S,
    metrics: &Metrics,
    stream: Option<&Stream>,
    run: &mut Vec<Batch>,
    answers: &mut Vec<AppendResponse>,
) -> Result<(), Error> {
    let Some(stream) = stream.filter(|_| !run.is_empty()) else { return Ok(()) };
    let timer = metrics.append_seconds.start_timer();
    let hops = run.iter().map(|batch| telemetry::hops("replay", batch.partition, batch::traced(batch)));
    let hops: Vec<_> = hops.collect();
    let outcomes = store.append(stream, run).await;
    drop(hops);
    timer.observe_duration();
    let outcomes = outcomes.inspect_err(|_| metrics.store_failures.inc())?;
    for (batch, mut outcome) in run.drain(..).zip(outcomes) {
        if let Appended::Held { last } = outcome
            && let Some(at) = divergence(store, stream, &batch).await?
        {
            tracing::error!(stream = stream.as_str(), partition = batch.partition, offset = %at,
                "the store holds other bytes under this offset");
            outcome = Appended::Divergent { epoch: Epoch::new(batch.epoch), held: Some(last) };
        }
        metrics.appended(&outcome);
        if matches!(outcome, Appended::Stored { .. }) {
            metrics.batch_records.observe(batch.record_count.into());
            metrics.appended_records.inc_by(batch.record_count.into());
            metrics.appended_bytes.inc_by(batch.records.len() as u64);
        }
        answers.push(answer(&outcome));
    }
    Ok(())
}

/// The first offset of a batch that the store holds with other bytes. What retention let go can't be compared.
async fn divergence<S: Store>(store: &S, stream: &Stream, batch: &Batch) -> Result<Option<Offset>, Error> {
    let partition = Partition::new(batch.partition)?;
    let mut ours = HashMap::new();
    for record in batch::records(batch) {
        let record = record.map_err(crate::store::Error::from)?;
        ours.insert(record.offset, record);
    }
    let bounds = Bounds::of_bytes(batch.records.len() as u64);
    let mut at = batch.link();
    while at < Some(batch.last()) {
        let from = From::After { epoch: Epoch::new(batch.epoch), at };
        let page = store.read_own(stream, partition, from, bounds).await?;
        let Page::Batches { batches, .. } = page else { return Ok(None) };
        for theirs in batches.iter().flat_map(batch::records) {
            let theirs = theirs.map_err(crate::store::Error::from)?;
            match ours.get(&theirs.offset) {
                Some(ours) if *ours == theirs => {}
                // Theirs is inside of our range and not ours, or not as ours.
                _ if theirs.offset <= batch.last_offset => return Ok(Some(Offset::clamped(theirs.offset))),
                _ => {}
            }
        }
        match batches.last() {
            Some(last) => at = Some(last.last()),
            None => return Ok(None),
        }
    }
    Ok(None)
}

fn valid(request: AppendRequest) -> Result<(Stream, Batch), String> {
    let stream = Stream::new(&request.stream).map_err(|error| error.to_string())?;
    let batch = request.batch.ok_or("batch is missing: expected one")?;
    batch::check(&batch).map_err(|error| error.to_string())?;
    Ok((stream, batch))
}

fn answer(outcome: &Appended) -> AppendResponse {
    let text = |held: &Link| held.map_or("nothing".into(), |held| format!("up to {held}"));
    match outcome {
        Appended::Stored { last, stored_ms } => stored(*last, Some(*stored_ms)),
        Appended::Held { last } => stored(*last, None),
        Appended::Epoch { epoch, held } => {
            let now = epoch.map_or("not open".into(), |epoch| format!("in epoch {epoch}"));
            refused(RefusalReason::Epoch, *epoch, *held, format!("the log is {now}"))
        }
        Appended::Link { epoch, held } => {
            refused(RefusalReason::Link, Some(*epoch), *held, format!("the log holds {}", text(held)))
        }
        Appended::Divergent { epoch, held } => {
            let message = format!("the log holds {}, with other bytes than the batch", text(held));
            refused(RefusalReason::Divergent, Some(*epoch), *held, message)
        }
    }
}

/// Stored now, or before.
fn stored(last: Offset, stored_ms: Option<i64>) -> AppendResponse {
    let stored = Stored { last_offset: last.get(), duplicate: stored_ms.is_none(), stored_ms };
    AppendResponse { outcome: Some(Outcome::Stored(stored)) }
}

fn refused(reason: RefusalReason, epoch: Option<Epoch>, held: Link, message: String) -> AppendResponse {
    AppendResponse {
        outcome: Some(Outcome::Refused(Refused {
            reason: reason.into(),
            epoch: epoch.map(Epoch::get),
            last_offset: held.map(Offset::get),
            message,
        })),
    }
}

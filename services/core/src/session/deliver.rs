//! What a reader puts out for what was found at its place, and where it stands after it.
use super::{
    ActiveStart, CloseReason, From, Output,
    credit::Credit,
    reader::{Appetite, Reader},
    refuse,
};
use crate::{
    batch::{self, Malformed, Piece, Selected, Span},
    filter::{Filter, graphs::Names},
    frame,
    limits::Limits,
    position::{Epoch, Link, Offset, Partition, Step, step},
    slot::{Slot, View},
};
use bytes::Bytes;
use dashstream_proto::{
    log::v1::{Batch, Cursor, Gap, GapReason},
    session::v1::{ErrorCode, Notice, NoticeCode, StaleFrame, server_frame::Frame},
};
use std::sync::Arc;

/// What a session puts out, and what that is bound to.
#[derive(Debug)]
pub(super) struct Out<'a> {
    pub(super) filter: &'a Arc<Filter>,
    pub(super) names: &'a Names,
    pub(super) limits: Limits,
    pub(super) credit: &'a mut Credit,
    pub(super) request_id: u32,
    pub(super) outputs: Vec<Output>,
}

/// Whether a reader goes on to what was found next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    On,
    /// The client gave no credit for more, or the session ends. What is left is found again.
    Stop,
}

impl Out<'_> {
    fn send(&mut self, frame: Bytes) {
        self.outputs.push(Output::Send(frame));
    }

    /// Sends a frame for which credit is needed.
    fn charge(&mut self, frame: Bytes) -> Flow {
        if !self.credit.take(frame.len()) {
            return Flow::Stop;
        }
        self.send(frame);
        Flow::On
    }

    /// What comes from our own services is not what it must be: end the session rather than skip.
    fn broken(&mut self, reader: &mut Reader, what: &str) -> Flow {
        reader.appetite = Appetite::Stale;
        self.outputs.extend(refuse(ErrorCode::Internal, what.to_owned(), CloseReason::Error));
        Flow::Stop
    }
}

/// Puts out all that is for the client of some batches. `Stop` when not all could be.
pub(super) fn deliver_all(reader: &mut Reader, slots: &[Slot], out: &mut Out<'_>) -> Flow {
    let stopped = slots.iter().any(|slot| deliver(reader, slot, out) == Flow::Stop);
    if stopped { Flow::Stop } else { Flow::On }
}

/// Puts out what is for the client of the part of a batch that it does not have, and moves the reader behind it.
fn deliver(reader: &mut Reader, slot: &Slot, out: &mut Out<'_>) -> Flow {
    let batch = slot.batch();
    let epoch = Epoch::new(batch.epoch);
    let mut at = match reader.from {
        From::After { epoch: expected, at } if expected == epoch => at,
        From::After { .. } | From::Active => return out.broken(reader, "a batch of another epoch"),
        From::Earliest | From::Latest | From::Time(_) => batch.link(), // this is where the client begins
    };
    if at >= Some(batch.last()) {
        return Flow::On;
    }
    if let Step::Missing { first, last } = step(at, batch.link(), batch.first()) {
        if lose(reader, missing(batch, first, last), out) == Flow::Stop {
            return Flow::Stop;
        }
        at = Some(last);
    }
    let fits = batch.records.len() <= out.limits.record_bytes_max.min(out.limits.frame_bytes_max) as usize;
    let flow = if at == batch.link() && fits && reader.since.is_none() {
        shared(reader, slot, out)
    } else {
        tailored(reader, slot, at, out)
    };
    match flow {
        Ok(Flow::On) => reader.read_to(epoch, batch.last()),
        Ok(Flow::Stop) => return Flow::Stop,
        Err(error) => return out.broken(reader, &error.to_string()),
    }
    Flow::On
}

/// The frame that all sessions with the same filter get.
fn shared(reader: &mut Reader, slot: &Slot, out: &mut Out<'_>) -> Result<Flow, Malformed> {
    let frame = match slot.view(out.filter, out.names)? {
        View::Whole => slot.frame().clone(),
        View::Part { frame, .. } => frame,
        View::Nothing => return Ok(Flow::On),
    };
    if !out.credit.take(frame.len()) {
        return Ok(Flow::Stop);
    }
    skip(reader, out);
    out.send(frame);
    reader.put_out(Epoch::new(slot.batch().epoch), slot.batch().last());
    Ok(Flow::On)
}

/// What only this session gets: a batch that is cut where it stands, or at its limits, or by where it began.
fn tailored(reader: &mut Reader, slot: &Slot, at: Link, out: &mut Out<'_>) -> Result<Flow, Malformed> {
    let batch = slot.batch();
    let filtered = !out.filter.keeps_all() || reader.since.is_some();
    let rest = if filtered {
        match out.filter.apply(batch, out.names, at, reader.since.as_deref())? {
            Selected::All => Some(batch.clone()),
            Selected::Some(part) => Some(part),
            Selected::Nothing => None,
        }
    } else {
        batch::cut_after(batch, at)?
    };
    let Some(rest) = rest else { return Ok(Flow::On) };
    let (frame_max, record_max) = (out.limits.frame_bytes_max as usize, out.limits.record_bytes_max as usize);
    for piece in batch::split(&rest, frame_max, record_max.min(frame_max))? {
        if put_out(reader, slot, piece, filtered, out) == Flow::Stop {
            return Ok(Flow::Stop);
        }
    }
    Ok(Flow::On)
}

fn put_out(reader: &mut Reader, slot: &Slot, piece: Piece, filtered: bool, out: &mut Out<'_>) -> Flow {
    let (epoch, partition) = (slot.batch().epoch, slot.batch().partition);
    let last = match piece {
        Piece::Run(run) => {
            let (last, own) = (run.last(), run.link());
            let link = if filtered { reader.told.unwrap_or(own) } else { own };
            if out.charge(frame::run(run, link, filtered, slot.stamp())) == Flow::Stop {
                return Flow::Stop;
            }
            last
        }
        Piece::TooLarge { at, link, bytes } => {
            let link = reader.told.unwrap_or(link).map(Offset::get);
            let cursor = Cursor { epoch, partition, offset: Some(at.get()) };
            out.send(frame::too_large(cursor, link, bytes, out.limits.record_bytes_max));
            at
        }
    };
    reader.put_out(Epoch::new(epoch), last);
    Flow::On
}

/// Tells the client of what was nothing for it, so that its cursor is where the reader is.
pub(super) fn skip(reader: &mut Reader, out: &mut Out<'_>) {
    let (Some(told), From::After { epoch, at: Some(at) }) = (reader.told, reader.from) else { return };
    if told < Some(at) {
        out.send(frame::skipped(reader.partition, epoch, told, at));
        reader.told = Some(Some(at));
    }
}

/// As [`skip`], where the client may not know yet where it begins.
pub(super) fn skip_or_begin(reader: &mut Reader, out: &mut Out<'_>) {
    if let (None, From::After { epoch, at: Some(at) }) = (reader.told, reader.from) {
        out.send(frame::skipped(reader.partition, epoch, None, at));
        reader.told = Some(Some(at));
    }
    skip(reader, out);
}

/// A reader that found nothing where it asked to begin has its position there.
pub(crate) fn settle(reader: &mut Reader, epoch: Epoch, mark: Link) {
    if !matches!(reader.from, From::After { .. }) {
        reader.from = From::After { epoch, at: mark };
    }
}

/// The reader has all that the log held.
pub(super) fn caught_up(reader: &mut Reader, source_lag: Option<u64>, out: &mut Out<'_>) {
    let From::After { at, .. } = reader.from else { return };
    if reader.told_caught_up {
        return;
    }
    skip(reader, out);
    reader.told = Some(at);
    reader.told_caught_up = true;
    if let Some(mark) = reader.cursor() {
        out.send(frame::caught_up(mark, source_lag, out.request_id));
    }
}

/// Puts out the states that a start at the running threads begins with, and moves the reader to where its log
/// does. A start that credit interrupted goes on, whatever was found since.
pub(super) fn begin_active(reader: &mut Reader, found: Arc<ActiveStart>, out: &mut Out<'_>) -> Flow {
    let (start, done) = reader.starting.take().unwrap_or((found, 0));
    for (at, state) in start.states.iter().enumerate().skip(done) {
        let frame = match out.filter.apply(state, &start.names, None, None) {
            Ok(Selected::All | Selected::Some(_)) => frame::state(state),
            Ok(Selected::Nothing) => continue,
            Err(error) => return out.broken(reader, &error.to_string()),
        };
        if out.charge(frame) == Flow::Stop {
            reader.starting = Some((start, at));
            return Flow::Stop;
        }
    }
    if let Some(sent) = start.cut_at {
        out.send(frame::active_cut(sent));
    }
    reader.from = From::After { epoch: start.epoch, at: start.begin };
    reader.since = Some(Arc::clone(&start.since)).filter(|since| since.mark > start.begin);
    Flow::On
}

/// The loss that a batch's link shows.
pub(crate) fn missing(batch: &Batch, first: Offset, last: Offset) -> Gap {
    Gap {
        epoch: batch.epoch,
        partition: batch.partition,
        first_offset: first.get(),
        last_offset: last.get(),
        reason: GapReason::Retention.into(),
    }
}

/// Declares a loss, and moves the reader behind it.
pub(super) fn lose(reader: &mut Reader, gap: Gap, out: &mut Out<'_>) -> Flow {
    let (epoch, last) = (Epoch::new(gap.epoch), Offset::clamped(gap.last_offset));
    let From::After { epoch: expected, at } = reader.from else {
        reader.from = From::After { epoch, at: Some(last) };
        return Flow::On;
    };
    if epoch != expected || Some(last) <= at {
        return out.broken(reader, "a gap that is not behind the cursor");
    }
    let frame = frame::gap(gap);
    if !out.credit.take(frame.len()) {
        return Flow::Stop;
    }
    skip(reader, out);
    out.send(frame);
    reader.put_out(epoch, last);
    Flow::On
}

/// The log is another one than the cursor's.
pub(super) fn stale(
    reader: &mut Reader,
    partition: Partition,
    epoch: Epoch,
    earliest: Link,
    mark: Link,
    out: &mut Out<'_>,
) {
    let From::After { epoch: asked, at } = reader.from else {
        reader.park(); // nothing was asked that could be stale: ask again
        return;
    };
    reader.appetite = Appetite::Stale;
    let cursor = Cursor { epoch: asked.get(), partition: partition.get(), offset: at.map(Offset::get) };
    out.send(frame::stale(StaleFrame {
        cursor: Some(cursor),
        epoch: epoch.get(),
        earliest_offset: earliest.map(Offset::get),
        last_offset: mark.map(Offset::get),
    }));
}

/// The store knows nothing of the partition.
pub(super) fn seeding(reader: &mut Reader, partition: Partition, out: &mut Out<'_>) {
    reader.park_seeding();
    if !std::mem::replace(&mut reader.told_seeding, true) {
        let message = format!("partition {partition}: the store holds nothing yet; it may be refilled");
        let notice = Notice { code: NoticeCode::Seeding.into(), message, ..Default::default() };
        out.send(frame::encode(Frame::Notice(notice)));
    }
}

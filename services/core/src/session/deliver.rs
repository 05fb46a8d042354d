//! What a reader puts out for what was found at its place, and where it stands after it.
use super::{Appetite, CloseReason, From, Output, Reader, refuse};
use crate::{
    batch::{self, Piece, Span},
    frame,
    limits::Limits,
    position::{Epoch, Link, Offset, Partition, Step, step},
};
use bytes::Bytes;
use dashstream_proto::{
    log::v1::{Batch, Cursor, Gap, GapReason},
    session::v1::{ErrorCode, Notice, NoticeCode, StaleFrame, server_frame::Frame},
};

/// A reader that asked for the earliest or the latest of an empty place has its position there.
pub(super) fn settle(reader: &mut Reader, epoch: Epoch, mark: Link) {
    if !matches!(reader.from, From::After { .. }) {
        reader.from = From::After { epoch, at: mark };
    }
}

pub(super) fn caught_up(
    reader: &mut Reader,
    partition: Partition,
    epoch: Epoch,
    mark: Link,
    source_lag: Option<u64>,
    request_id: u32,
    out: &mut Vec<Output>,
) {
    if !reader.told_caught_up {
        reader.told_caught_up = true;
        let cursor = Cursor { epoch: epoch.get(), partition: partition.get(), offset: mark.map(Offset::get) };
        out.push(Output::Send(frame::caught_up(cursor, source_lag, request_id)));
    }
}

/// Puts out the part of a batch that the reader does not have, and moves the reader behind it.
pub(super) fn deliver(
    reader: &mut Reader,
    batch: &Batch,
    whole: Option<&Bytes>,
    limits: Limits,
    out: &mut Vec<Output>,
) {
    let epoch = Epoch::new(batch.epoch);
    let at = match reader.from {
        From::After { epoch: expected, at } if expected == epoch => at,
        From::After { .. } => return broken(reader, "a batch of another epoch", out),
        From::Earliest | From::Latest => batch.link(), // this is where the client begins
    };
    let last = batch.last();
    match step(at, batch.link(), batch.first()) {
        Step::Adjacent if at == batch.link() => send(batch, whole, limits, out),
        Step::Overlaps | Step::Adjacent => match batch::cut_after(batch, at) {
            Ok(Some(rest)) => send(&rest, None, limits, out),
            Ok(None) => return,
            Err(error) => return broken(reader, &error.to_string(), out),
        },
        Step::Missing { first, last } => {
            let gap = Gap {
                epoch: batch.epoch,
                partition: batch.partition,
                first_offset: first.get(),
                last_offset: last.get(),
                reason: GapReason::Retention.into(),
            };
            out.push(Output::Send(frame::gap(gap)));
            send(batch, whole, limits, out);
        }
    }
    reader.from = From::After { epoch, at: Some(last) };
}

pub(super) fn send(batch: &Batch, whole: Option<&Bytes>, limits: Limits, out: &mut Vec<Output>) {
    let (frame_max, record_max) = (limits.frame_bytes_max as usize, limits.record_bytes_max as usize);
    if batch.records.len() <= record_max.min(frame_max) {
        out.push(Output::Send(whole.cloned().unwrap_or_else(|| frame::records(batch))));
        return;
    }
    let pieces = match batch::split(batch, frame_max, record_max.min(frame_max)) {
        Ok(pieces) => pieces,
        Err(error) => {
            out.extend(refuse(ErrorCode::Internal, error.to_string(), CloseReason::Error));
            return;
        }
    };
    for piece in pieces {
        out.push(Output::Send(match piece {
            Piece::Run(run) => frame::records(&run),
            Piece::TooLarge { at, link, bytes } => {
                let cursor =
                    Cursor { epoch: batch.epoch, partition: batch.partition, offset: Some(at.get()) };
                frame::too_large(cursor, link.map(Offset::get), bytes, limits.record_bytes_max)
            }
        }));
    }
}

pub(super) fn lose(reader: &mut Reader, gap: Gap, out: &mut Vec<Output>) {
    let last = Some(Offset::clamped(gap.last_offset));
    if let From::After { epoch, at } = reader.from {
        if epoch.get() != gap.epoch || last <= at {
            return broken(reader, "a gap that is not behind the cursor", out);
        }
        out.push(Output::Send(frame::gap(gap)));
    }
    reader.from = From::After { epoch: Epoch::new(gap.epoch), at: last };
}

pub(super) fn stale(
    reader: &mut Reader,
    partition: Partition,
    epoch: Epoch,
    earliest: Link,
    mark: Link,
    out: &mut Vec<Output>,
) {
    let From::After { epoch: asked, at } = reader.from else {
        reader.appetite = Appetite::Parked; // nothing was asked that could be stale: ask again
        return;
    };
    reader.appetite = Appetite::Stale;
    let cursor = Cursor { epoch: asked.get(), partition: partition.get(), offset: at.map(Offset::get) };
    out.push(Output::Send(frame::stale(StaleFrame {
        cursor: Some(cursor),
        epoch: epoch.get(),
        earliest_offset: earliest.map(Offset::get),
        last_offset: mark.map(Offset::get),
    })));
}

pub(super) fn seeding(reader: &mut Reader, partition: Partition, out: &mut Vec<Output>) {
    reader.appetite = Appetite::Parked;
    if !std::mem::replace(&mut reader.told_seeding, true) {
        let message = format!("partition {partition}: the store holds nothing yet; it may be refilled");
        let notice = Notice { code: NoticeCode::Seeding.into(), message, ..Default::default() };
        out.push(Output::Send(frame::encode(Frame::Notice(notice))));
    }
}

/// What comes from our own services is not what it must be: end the session rather than skip.
pub(super) fn broken(reader: &mut Reader, what: &str, out: &mut Vec<Output>) {
    reader.appetite = Appetite::Stale;
    out.extend(refuse(ErrorCode::Internal, what.to_owned(), CloseReason::Error));
}

//! Encoding the frames that a session sends.
use crate::{
    batch,
    limits::Grant,
    position::{Epoch, Link, Offset, Partition},
    ring::Passed,
    slot::Stamp,
};
use bytes::Bytes;
use dashstream_proto::{
    log::v1::{Batch, Cursor, Gap},
    session::v1::{
        CaughtUp, Error, ErrorCode, GapFrame, GoingAway, Notice, NoticeCode, Pong, RecordsFrame, ServerFrame,
        SkippedFrame, StaleFrame, StateFrame, server_frame::Frame,
    },
};
use prost::Message;

/// Encodes any frame.
pub fn encode(frame: Frame) -> Bytes {
    ServerFrame { frame: Some(frame) }.encode_to_vec().into()
}

/// A batch of which nothing is left out: the frame's link and end are the batch's.
pub fn whole(batch: &Batch, stamp: Stamp) -> Bytes {
    records(batch.clone(), batch.prev_offset, batch.last_offset, false, stamp)
}

/// What a filter left of `of`, which the frame spans.
pub fn part(part: &Batch, of: &Batch, stamp: Stamp) -> Bytes {
    records(part.clone(), of.prev_offset, of.last_offset, true, stamp)
}

/// A batch for a session that stands at `link`.
pub fn run(batch: Batch, link: Link, filtered: bool, stamp: Stamp) -> Bytes {
    let through = batch.last_offset;
    records(batch, link.map(Offset::get), through, filtered, stamp)
}

fn records(batch: Batch, link: Option<u64>, through: u64, filtered: bool, stamp: Stamp) -> Bytes {
    encode(Frame::Records(RecordsFrame {
        prev_offset: link,
        through,
        batch: Some(batch),
        filtered,
        high_watermark: stamp.high_watermark,
        made_ms: stamp.made_ms,
        from_replay: stamp.from_replay,
    }))
}

/// The batch in a frame of records, sharing its buffer.
pub fn batch_in(frame: &Bytes) -> Option<Batch> {
    match ServerFrame::decode(frame.clone()).ok()?.frame? {
        Frame::Records(frame) => frame.batch,
        Frame::Welcome(_)
        | Frame::Partitions(_)
        | Frame::Gap(_)
        | Frame::Stale(_)
        | Frame::CaughtUp(_)
        | Frame::Notice(_)
        | Frame::GoingAway(_)
        | Frame::Error(_)
        | Frame::Pong(_)
        | Frame::Skipped(_)
        | Frame::State(_) => None,
    }
}

/// Nothing between two places was for the session.
pub fn skipped(partition: Partition, epoch: Epoch, link: Link, through: Offset) -> Bytes {
    encode(Frame::Skipped(SkippedFrame {
        epoch: epoch.get(),
        partition: partition.get(),
        prev_offset: link.map(Offset::get),
        through: through.get(),
    }))
}

/// Offsets that are lost.
pub fn gap(gap: Gap) -> Bytes {
    encode(Frame::Gap(GapFrame { through: gap.last_offset, gap: Some(gap) }))
}

/// A cursor that can't be resumed.
pub fn stale(frame: StaleFrame) -> Bytes {
    encode(Frame::Stale(frame))
}

/// A running thread's newest whole state, from a batch of one.
pub fn state(state: &Batch) -> Bytes {
    let record = batch::records(state).flatten().next();
    encode(Frame::State(StateFrame { epoch: state.epoch, partition: state.partition, record }))
}

/// More threads run than the `sent` with which a session began.
pub fn active_cut(sent: u64) -> Bytes {
    encode(Frame::Notice(Notice {
        code: NoticeCode::ActiveCut.into(),
        message: format!("of the running threads, the {sent} active last are sent from their state on"),
        records: sent,
        ..Default::default()
    }))
}

/// The session fell out of the gateway's memory.
pub fn behind(cursor: Option<Cursor>, by: Passed) -> Bytes {
    let Passed { records, bytes } = by;
    let message = format!("behind by {records} records ({bytes} bytes): served from replay until caught up");
    let code = NoticeCode::Behind.into();
    encode(Frame::Notice(Notice { code, message, cursor, bytes, records, ..Default::default() }))
}

/// The session's limits are others now.
pub fn limits_changed(grant: Grant) -> Bytes {
    encode(Frame::Notice(Notice {
        code: NoticeCode::LimitsChanged.into(),
        message: "the limits of this session changed".to_owned(),
        limits: Some(grant.limits.into()),
        limited_by: Some(grant.by),
        ..Default::default()
    }))
}

/// Reconnect elsewhere, within `after_ms`.
pub fn going_away(after_ms: u32, cursors: Vec<Cursor>) -> Bytes {
    encode(Frame::GoingAway(GoingAway { reconnect_after_ms: after_ms, cursors }))
}

/// The session has everything up to `mark`.
pub fn caught_up(mark: Cursor, source_lag: Option<u64>, request_id: u32) -> Bytes {
    encode(Frame::CaughtUp(CaughtUp { mark: Some(mark), source_lag, request_id }))
}

/// A record that the client does not take.
pub fn too_large(cursor: Cursor, prev_offset: Option<u64>, bytes: usize, max: u32) -> Bytes {
    encode(Frame::Notice(Notice {
        code: NoticeCode::RecordTooLarge.into(),
        message: format!("a record of {bytes} bytes was not sent: the limit of this session is {max}"),
        cursor: Some(cursor),
        bytes: bytes as u64,
        prev_offset,
        ..Default::default()
    }))
}

/// The answer to a ping, or a sign of life.
pub fn pong(nonce: u64) -> Bytes {
    encode(Frame::Pong(Pong { nonce }))
}

/// A refusal.
pub fn error(code: ErrorCode, message: String, fatal: bool, request_id: u32) -> Bytes {
    encode(Frame::Error(Error { code: code.into(), message, fatal, request_id }))
}

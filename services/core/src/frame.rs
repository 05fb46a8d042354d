//! Encoding the frames that a session sends.
use bytes::Bytes;
use dashstream_proto::{
    log::v1::{Batch, Cursor, Gap},
    session::v1::{
        CaughtUp, Error, ErrorCode, GapFrame, Notice, NoticeCode, Pong, RecordsFrame, ServerFrame,
        StaleFrame, server_frame::Frame,
    },
};
use prost::Message;

/// Encodes any frame.
pub fn encode(frame: Frame) -> Bytes {
    ServerFrame { frame: Some(frame) }.encode_to_vec().into()
}

/// A batch without anything filtered: the frame's link and end are the batch's.
pub fn records(batch: &Batch) -> Bytes {
    encode(Frame::Records(RecordsFrame {
        prev_offset: batch.prev_offset,
        through: batch.last_offset,
        batch: Some(batch.clone()),
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
        limits: None,
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

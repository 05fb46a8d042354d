//! The protocol that a session speaks. What drives it need not know which.
use crate::auth::gate::Turned;
use axum::extract::ws::{CloseCode, CloseFrame, close_code};
use dashstream_core::{
    filter::{Filter, graphs::Names},
    frame,
    limits::Limits,
    position::Partition,
    ring::Passed,
    session::{CloseReason, Delivery, Found, Known, Output, Session, Want},
    v1,
};
use dashstream_proto::{log::v1::Cursor, session::v1::ErrorCode};
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// A session of one of the protocols.
#[derive(Debug)]
pub enum Spoken {
    /// The predecessor's.
    V1(Box<v1::Session>),
    V2(Box<Session>),
}

/// Which protocol, before there is a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    V1,
    V2,
}

impl Protocol {
    /// What a client is told that gets no session, or keeps it no longer.
    pub fn turned(self, turned: Turned) -> Vec<Output> {
        match self {
            Self::V1 => {
                let code = turned.code.as_str_name().trim_start_matches("ERROR_CODE_");
                v1::turned(code, &turned.message, turned.reason)
            }
            Self::V2 => turned.outputs(),
        }
    }

    /// How the socket is closed. The predecessor named no code.
    pub fn close_frame(self, reason: CloseReason) -> Option<CloseFrame> {
        let code = code_of(reason);
        (self == Self::V2).then(|| CloseFrame { code, reason: reason.label().into() })
    }

    /// Whether the client is pinged, and gone when it never answers. The predecessor did neither: to its clients only
    /// what they do not take is held against them.
    pub fn is_pinged(self) -> bool {
        self == Self::V2
    }
}

fn code_of(reason: CloseReason) -> CloseCode {
    match reason {
        CloseReason::ClientClosed => close_code::NORMAL,
        CloseReason::ProtocolError => close_code::PROTOCOL,
        CloseReason::OverLimit => close_code::SIZE,
        CloseReason::Unauthorized => close_code::POLICY,
        CloseReason::Draining | CloseReason::Idle => close_code::AWAY,
        CloseReason::Error | CloseReason::SendTimeout => close_code::ERROR,
    }
}

impl Spoken {
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::V1(_) => Protocol::V1,
            Self::V2(_) => Protocol::V2,
        }
    }

    pub fn filter(&self) -> &Arc<Filter> {
        match self {
            Self::V1(session) => session.filter(),
            Self::V2(session) => session.filter(),
        }
    }

    pub fn delivery(&self) -> Option<Delivery> {
        match self {
            Self::V1(session) => session.delivery(),
            Self::V2(session) => session.delivery(),
        }
    }

    pub fn cursors(&self) -> Vec<Cursor> {
        match self {
            Self::V1(session) => session.cursors(),
            Self::V2(session) => session.cursors(),
        }
    }

    /// Most bytes that may be on their way to the client; 0 when it sets no bound.
    pub fn in_flight_bytes_max(&self) -> u64 {
        match self {
            Self::V1(_) => 0,
            Self::V2(session) => session.limits().in_flight_bytes_max,
        }
    }

    pub fn on_binary(&mut self, message: &[u8], known: &[Known]) -> Vec<Output> {
        match self {
            Self::V1(_) => Vec::new(), // means nothing there
            Self::V2(session) => session.on_message(message, known),
        }
    }

    pub fn on_text(&mut self, text: &str, known: &[Known]) -> Vec<Output> {
        match self {
            Self::V1(session) => session.on_text(text, known),
            Self::V2(_) => {
                let text = "a text message: expected binary frames of dashstream.v2".to_owned();
                vec![
                    Output::Send(frame::error(ErrorCode::MalformedFrame, text, true, 0)),
                    Output::Close(CloseReason::ProtocolError),
                ]
            }
        }
    }

    /// The library refused what the client sent.
    pub fn on_inbound_failure(&self, reason: CloseReason) -> Vec<Output> {
        match self {
            Self::V1(session) if reason == CloseReason::OverLimit => session.on_text_too_large(),
            Self::V1(_) | Self::V2(_) => vec![Output::Close(reason)],
        }
    }

    pub fn on_limits(&mut self, limits: Limits) -> Vec<Output> {
        match self {
            Self::V1(_) => Vec::new(),
            Self::V2(session) => session.on_limits(limits),
        }
    }

    pub fn on_partitions(&mut self, known: &[Known]) -> Vec<Output> {
        match self {
            Self::V1(session) => session.on_partitions(known),
            Self::V2(session) => session.on_partitions(known),
        }
    }

    pub fn next_want(&mut self, busy: &BTreeSet<Partition>) -> Option<Want> {
        match self {
            Self::V1(session) => session.next_want(busy),
            Self::V2(session) => session.next_want(busy),
        }
    }

    pub fn next_thread(&mut self) -> Option<v1::ThreadWant> {
        match self {
            Self::V1(session) => session.next_thread(),
            Self::V2(_) => None,
        }
    }

    pub fn on_advanced(&mut self, partition: Partition) {
        match self {
            Self::V1(session) => session.on_advanced(partition),
            Self::V2(session) => session.on_advanced(partition),
        }
    }

    pub fn on_behind(&mut self, partition: Partition, passed: Passed) -> Vec<Output> {
        match self {
            Self::V1(session) => {
                session.on_behind(partition, passed);
                Vec::new()
            }
            Self::V2(session) => session.on_behind(partition, passed),
        }
    }

    pub fn on_found(&mut self, want: Want, found: Found, names: &Names) -> Vec<Output> {
        match self {
            Self::V1(session) => session.on_found(want, found),
            Self::V2(session) => session.on_found(want, found, names),
        }
    }

    pub fn on_thread(&mut self, want: &v1::ThreadWant, found: v1::ThreadFound) -> Vec<Output> {
        match self {
            Self::V1(session) => session.on_thread(want, found),
            Self::V2(_) => Vec::new(),
        }
    }

    pub fn on_tick(&mut self, age: Duration, known: impl FnOnce() -> Vec<Known>) -> Vec<Output> {
        match self {
            Self::V1(session) => {
                let mut outputs = session.on_partitions(&known());
                outputs.extend(session.on_tick(age));
                outputs
            }
            Self::V2(session) => session.on_tick(age),
        }
    }

    pub fn heartbeat(&mut self, known: impl FnOnce() -> Vec<Known>) -> Vec<Output> {
        match self {
            Self::V1(_) => Vec::new(),
            Self::V2(session) => session.heartbeat(&known()),
        }
    }

    /// The gateway leaves. The predecessor only closed: after a `disconnect` its clients would trust nothing that they
    /// have, and nothing of it is wrong.
    pub fn on_drain(&mut self, after: Duration) -> Vec<Output> {
        match self {
            Self::V1(_) => Vec::new(),
            Self::V2(session) => session.on_drain(after),
        }
    }
}

/// Bytes that a frame is on the wire, about.
pub fn size(output: &Output) -> usize {
    match output {
        Output::Send(frame) => frame.len(),
        Output::Text(text) => text.len(),
        Output::Close(_) => 0,
    }
}

//! The last word to a client, and sends that last no longer than the client takes something.
use super::Ground;
use crate::{auth::gate::Turned, spoken::Protocol, wire::Progress};
use axum::extract::ws::{Message, WebSocket};
use dashstream_core::session::{CloseReason, Output};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use std::{
    pin::pin,
    time::{Duration, Instant},
};
use tokio::time::sleep_until;

/// How long a goodbye may take, and the client's answer to it.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) type Sink = SplitSink<WebSocket, Message>;
pub(super) type Inbound = SplitStream<WebSocket>;

/// Tells a client why it gets no session.
pub async fn turn_away(
    socket: WebSocket,
    protocol: Protocol,
    turned: Turned,
    ground: Ground,
    progress: Progress,
) -> CloseReason {
    let (mut sink, mut inbound) = socket.split();
    let mut reason = CloseReason::ClientClosed;
    for output in protocol.turned(turned) {
        match message(output) {
            Ok(message) => {
                let sending = sink.send(message);
                if let Err(reason) = while_taken(&ground, &progress, sending).await {
                    return reason;
                }
            }
            Err(why) => {
                goodbye(&mut sink, &mut inbound, (protocol, why), ground.send_timeout).await;
                reason = why;
            }
        }
    }
    reason
}

/// Says goodbye, and hears the client's. Whether it arrives matters to nobody but the client.
pub(super) async fn goodbye(
    sink: &mut Sink,
    inbound: &mut Inbound,
    (protocol, reason): (Protocol, CloseReason),
    send_timeout: Duration,
) {
    if reason == CloseReason::SendTimeout {
        return; // nothing more can be said
    }
    let frame = protocol.close_frame(reason);
    let goodbye = async {
        sink.send(Message::Close(frame)).await?;
        sink.close().await?;
        // A connection that is dropped with something unread is reset, and what was last said may be lost.
        while let Some(Ok(_)) = inbound.next().await {}
        Ok::<_, axum::Error>(())
    };
    drop(tokio::time::timeout(GOODBYE_TIMEOUT.min(send_timeout), goodbye).await);
}

/// Sends for as long as the client takes bytes, however few at a time; no longer than the drain lasts.
pub(super) async fn while_taken(
    ground: &Ground,
    progress: &Progress,
    sending: impl Future<Output = Result<(), axum::Error>>,
) -> Result<(), CloseReason> {
    let (begun, timeout) = (Instant::now(), ground.send_timeout);
    let drained = async {
        ground.stop.cancelled().await;
        tokio::time::sleep(ground.drain_window + timeout).await;
    };
    let (mut sending, mut drained) = (pin!(sending), pin!(drained));
    loop {
        let due = progress.written().max(begun) + timeout;
        tokio::select! {
            biased;
            sent = &mut sending => return sent.map_err(|_| CloseReason::ClientClosed),
            () = &mut drained => return Err(CloseReason::Draining),
            () = sleep_until(due.into()) => {
                if progress.written() + timeout <= Instant::now() {
                    return Err(CloseReason::SendTimeout);
                }
            }
        }
    }
}

/// A message for the socket, or why it is closed.
pub(super) fn message(output: Output) -> Result<Message, CloseReason> {
    match output {
        Output::Send(frame) => Ok(Message::Binary(frame)),
        Output::Text(text) => Ok(Message::Text(text.into())),
        Output::Close(reason) => Err(reason),
    }
}

pub(super) fn length(message: &Message) -> usize {
    match message {
        Message::Binary(bytes) | Message::Ping(bytes) | Message::Pong(bytes) => bytes.len(),
        Message::Text(text) => text.len(),
        Message::Close(_) => 0,
    }
}

//! What stands between a websocket and its session: nobody gets a session without a token, and nobody keeps one
//! longer than the token allows.
use super::{Access, Authenticator, Refused};
use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use dashstream_core::{
    frame,
    session::{CloseReason, Output},
};
use dashstream_kit::config::Secret;
use dashstream_proto::session::v1::{ClientFrame, ErrorCode, client_frame::Frame};
use prost::Message as _;
use std::time::{Duration, SystemTime};

/// Why there is no session, and what the client is told.
#[derive(Debug)]
pub struct Turned {
    pub code: ErrorCode,
    pub message: String,
    pub reason: CloseReason,
}

impl From<Refused> for Turned {
    fn from(refused: Refused) -> Self {
        Self { code: refused.code(), message: refused.to_string(), reason: CloseReason::Unauthorized }
    }
}

impl Turned {
    fn malformed(message: &str) -> Self {
        let reason = CloseReason::ProtocolError;
        Self { code: ErrorCode::MalformedFrame, message: message.to_owned(), reason }
    }

    /// As frames of a session that ends.
    pub fn outputs(self) -> Vec<Output> {
        vec![Output::Send(frame::error(self.code, self.message, true, 0)), Output::Close(self.reason)]
    }
}

/// Waits for the hello of a client that had no token when it came. Returns what it may do, and the message, which
/// its session has yet to see.
///
/// # Errors
/// There was no hello in time, or none with a token that is taken.
pub async fn hello(
    socket: &mut WebSocket,
    authenticator: &Authenticator,
    timeout: Duration,
) -> Result<(Access, Bytes), Turned> {
    let first = tokio::time::timeout(timeout, first_message(socket)).await;
    let message = first.map_err(|_| Turned {
        code: ErrorCode::Idle,
        message: format!("no hello within {timeout:?}"),
        reason: CloseReason::Idle,
    })??;
    let hello = match ClientFrame::decode(message.clone()).map(|frame| frame.frame) {
        Ok(Some(Frame::Hello(hello))) => hello,
        Ok(_) => return Err(Refused::Missing.into()),
        Err(_) => return Err(Turned::malformed("the first frame is not a ClientFrame")),
    };
    let access = authenticator.access(token(hello.token).as_ref()).await?;
    Ok((access, message))
}

async fn first_message(socket: &mut WebSocket) -> Result<Bytes, Turned> {
    loop {
        match socket.recv().await {
            Some(Ok(Message::Binary(message))) => return Ok(message),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Text(_))) => {
                return Err(Turned::malformed("a text message: expected binary frames"));
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => {
                let (code, message) = (ErrorCode::Unspecified, "gone".to_owned());
                return Err(Turned { code, message, reason: CloseReason::ClientClosed });
            }
        }
    }
}

fn token(text: String) -> Option<Secret> {
    Some(text).filter(|text| !text.is_empty()).and_then(|text| text.parse().ok())
}

/// Keeps watch over a session: takes fresh tokens, and ends it once the last one has expired.
#[derive(Debug)]
pub struct Guard {
    authenticator: Authenticator,
    access: Access,
}

impl Guard {
    pub fn new(authenticator: Authenticator, access: Access) -> Self {
        Self { authenticator, access }
    }

    /// Takes the frames that bring a token, which the session never sees. `None` for all others.
    pub async fn take(&mut self, message: &[u8]) -> Option<Vec<Output>> {
        if !self.authenticator.is_on() {
            return None;
        }
        let Ok(Some(Frame::Authenticate(fresh))) = ClientFrame::decode(message).map(|frame| frame.frame)
        else {
            return None;
        };
        let judged = self.authenticator.access(token(fresh.token).as_ref()).await;
        Some(self.renew(judged))
    }

    /// A token that is refused changes nothing. One that is taken, but says something else than the one before,
    /// ends the session: what it was sent so far was for somebody else.
    fn renew(&mut self, judged: Result<Access, Refused>) -> Vec<Output> {
        match judged {
            Err(refused) => vec![Output::Send(frame::error(refused.code(), refused.to_string(), false, 0))],
            Ok(fresh) if fresh.subject != self.access.subject => Turned::from(Refused::Subject).outputs(),
            Ok(fresh) if fresh.tenants != self.access.tenants => Turned {
                code: ErrorCode::PermissionDenied,
                message: "the token's tenants are others than the session's: connect anew".to_owned(),
                reason: CloseReason::Unauthorized,
            }
            .outputs(),
            Ok(fresh) => {
                self.access = fresh;
                Vec::new()
            }
        }
    }

    /// The end of the session where its time is up.
    pub fn on_tick(&self, now: SystemTime) -> Option<Turned> {
        self.access.is_over(now).then(|| Turned::from(Refused::Expired))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Permission;
    use dashstream_core::filter::Tenants;

    fn access(subject: &str, tenants: &[&str], expires: u64) -> Access {
        Access {
            subject: subject.to_owned(),
            tenants: Tenants::Only(tenants.iter().map(|name| (*name).to_owned()).collect()),
            permissions: [Permission::Read].into(),
            expires: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(expires)),
        }
    }

    fn ends(outputs: &[Output]) -> bool {
        outputs.contains(&Output::Close(CloseReason::Unauthorized))
    }

    #[test]
    fn a_fresh_token_prolongs_a_session_and_nothing_else() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let authenticator = Authenticator(std::sync::Arc::new(super::super::Judge::Nobody));
        let guard = || Guard::new(authenticator.clone(), access("ann", &["a"], 100));
        let mut prolonged = guard();
        assert!(prolonged.on_tick(at(99)).is_none());
        assert!(ends(&prolonged.on_tick(at(100)).unwrap().outputs()));
        assert_eq!(prolonged.renew(Ok(access("ann", &["a"], 200))), []);
        assert!(prolonged.on_tick(at(199)).is_none());
        assert!(ends(&prolonged.on_tick(at(200)).unwrap().outputs()));

        let outputs = prolonged.renew(Err(Refused::Signature));
        assert!(!ends(&outputs) && outputs.len() == 1, "{outputs:?}");
        assert!(prolonged.on_tick(at(199)).is_none(), "a token that is refused shortens nothing");

        for other in [access("bob", &["a"], 200), access("ann", &["a", "b"], 200), access("ann", &["b"], 200)]
        {
            let outputs = guard().renew(Ok(other.clone()));
            assert!(ends(&outputs), "{other:?}");
        }
    }
}

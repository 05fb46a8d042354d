//! From a request to a session: who may have one, and with what rights.
use crate::{
    admission::{Full, Place},
    auth::{
        Access, Refused, TOKEN_SUBPROTOCOL,
        gate::{self, Guard, Turned},
        token_of,
    },
    http::{App, Client, SUBPROTOCOL, refuse, unauthorized},
    spoken::{Protocol, Spoken},
    viewers::Viewer,
    wire::{Peer, Progress},
    ws,
};
use axum::{
    Extension,
    extract::{State, WebSocketUpgrade, ws::WebSocket},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use dashstream_core::{
    session::{CloseReason, Session},
    v1,
};
use dashstream_proto::session::v1::ErrorCode;
use std::{
    net::IpAddr,
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

/// When to try again where there is no place now.
const RETRY_AFTER: Duration = Duration::from_secs(5);
const DRAINING: &str = "this replica is draining: connect to another";
/// What each connection holds to read into.
const READ_BUFFER_BYTES: usize = 4 << 10;
/// What each connection gathers before it writes.
const WRITE_BUFFER_BYTES: usize = 16 << 10;

pub(crate) async fn upgrade(
    State(app): State<App>,
    Extension(Client(address)): Extension<Client>,
    Extension(Peer { progress, .. }): Extension<Peer>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    if app.tasks.stop_token().is_cancelled() {
        app.metrics.refused("draining");
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "draining", DRAINING, Some(Duration::from_secs(1)));
    }
    let mut place = match app.admission.admit(address) {
        Ok(place) => place,
        Err(full) => return refuse_full(&app, full),
    };
    let upgrade = upgrade.protocols([SUBPROTOCOL]);
    let protocol = protocol(&headers, upgrade.selected_protocol().is_some());
    let access = match offered(&app, &headers, protocol).await {
        Ok(access) => access,
        Err(refused) => {
            app.metrics.refused(refused.label());
            return unauthorized(refused);
        }
    };
    if let Some(Err(full)) = access.as_ref().map(|access| place.of(&access.tenants)) {
        return refuse_full(&app, full);
    }
    let Some(protocol) = protocol else {
        app.metrics.refused("protocol");
        let text =
            format!("Sec-WebSocket-Protocol is unknown: expected {SUBPROTOCOL}, or none for version 1");
        return refuse(StatusCode::BAD_REQUEST, "protocol", &text, None);
    };
    let most = match protocol {
        Protocol::V1 => v1::TEXT_BYTES_MAX,
        Protocol::V2 => app.terms.limits.client_frame_bytes_max as usize,
    };
    let upgrade = upgrade
        .max_message_size(most)
        .max_frame_size(most)
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES);
    upgrade.on_upgrade(async move |socket| {
        app.metrics.sessions.inc();
        let attending = attend(socket, app.clone(), protocol, access, place, (address, progress));
        let reason = app.tasks.spawn("session", attending).await.unwrap_or(CloseReason::Error);
        app.metrics.sessions.dec();
        app.metrics.disconnected(reason);
    })
}

/// What a client speaks: the protocol that was selected, or the predecessor's where none was offered. A token among
/// the subprotocols offers none.
fn protocol(headers: &HeaderMap, selected: bool) -> Option<Protocol> {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let names = offered.flat_map(|value| value.to_str().unwrap_or("?").split(','));
    let mut names = names.map(str::trim).filter(|name| !name.starts_with(TOKEN_SUBPROTOCOL));
    match (selected, names.next()) {
        (true, _) => Some(Protocol::V2),
        (false, None) => Some(Protocol::V1),
        (false, Some(_)) => None,
    }
}

/// What the token of the request allows; `None` where there is none yet and the hello must bring it,
/// which version 1 does not have.
async fn offered(
    app: &App,
    headers: &HeaderMap,
    protocol: Option<Protocol>,
) -> Result<Option<Access>, Refused> {
    match token_of(headers)? {
        None if protocol != Some(Protocol::V1) && app.authenticator.is_on() => Ok(None),
        token => app.authenticator.access(token.as_ref()).await.map(Some),
    }
}

fn refuse_full(app: &App, full: Full) -> Response {
    app.metrics.refused(full.label());
    let status = match full {
        Full::Replica(_) => StatusCode::SERVICE_UNAVAILABLE,
        Full::Address(_) | Full::Tenant(_) => StatusCode::TOO_MANY_REQUESTS,
    };
    refuse(status, full.label(), &full.to_string(), Some(RETRY_AFTER))
}

/// Runs a session from the upgrade to its end. There is none before somebody is known.
async fn attend(
    mut socket: WebSocket,
    app: App,
    protocol: Protocol,
    access: Option<Access>,
    mut place: Place,
    (address, progress): (IpAddr, Progress),
) -> CloseReason {
    let admitted = match access {
        Some(access) => Ok((access, None)),
        None => hello(&mut socket, &app, &mut place).await,
    };
    let (access, first) = match admitted {
        Ok(admitted) => admitted,
        Err(turned) => {
            app.metrics.refused_call(turned.reason.label());
            return ws::turn_away(socket, protocol, turned, app.ground, progress).await;
        }
    };
    let id = format!("{:08x}-{}", std::process::id(), app.sessions.fetch_add(1, Ordering::Relaxed));
    let tenants = access.tenants.clone();
    let session = match protocol {
        Protocol::V1 => Spoken::V1(Box::new(v1::Session::new(tenants, &app.ground.hub.known()))),
        Protocol::V2 => Spoken::V2(Box::new(Session::new(id.clone(), app.terms, tenants))),
    };
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let viewer = Viewer::new(
        id.clone(),
        access.subject.clone(),
        address,
        access.tenants.clone(),
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
    );
    let entrance = ws::Entrance {
        first,
        guard: Guard::new(app.authenticator.clone(), access),
        seat: app.viewers.enter(viewer),
    };
    let reason = ws::run(socket, session, app.ground, entrance, progress).await;
    tracing::debug!(session = id, reason = reason.label(), "session ended");
    reason
}

async fn hello(
    socket: &mut WebSocket,
    app: &App,
    place: &mut Place,
) -> Result<(Access, Option<bytes::Bytes>), Turned> {
    let greeting = gate::hello(socket, &app.authenticator, app.terms.hello_timeout);
    // Those of whom nothing is known yet do not hold up a drain.
    let greeted = app.tasks.stop_token().run_until_cancelled_owned(greeting).await;
    let (access, first) = greeted.ok_or_else(|| Turned {
        code: ErrorCode::Unavailable,
        message: DRAINING.to_owned(),
        reason: CloseReason::Draining,
    })??;
    place.of(&access.tenants).map_err(|full| Turned {
        code: ErrorCode::OverLimit,
        message: full.to_string(),
        reason: CloseReason::OverLimit,
    })?;
    Ok((access, Some(first)))
}

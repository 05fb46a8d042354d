//! Doors of a gateway that leaves.
use super::{guarded, hello, refusal, send, until_closed, upgrade};
use dashstream_proto::session::v1::{
    ErrorCode, GoingAway, StartPolicy, Subscribe, client_frame::Frame as Ours, server_frame::Frame,
};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_leaves_takes_nobody_and_tells_each_session_when_to_go() {
    let (stack, keys, _server) = guarded().await;
    let address = stack.gateway[0].address();
    let token = keys.token(&json!({}));
    let mut sessions = Vec::new();
    for _ in 0..2 {
        let mut socket = upgrade(&address, &[]).await.expect("the hello may bring a token");
        send(&mut socket, hello(&token)).await;
        let start = StartPolicy::Earliest.into();
        send(&mut socket, Ours::Subscribe(Subscribe { start, ..Default::default() })).await;
        sessions.push(socket);
    }
    let mut silent = upgrade(&address, &[]).await.expect("the hello may bring a token");
    stack.gateway[0].terminate();
    let (frames, closed) = until_closed(&mut silent).await;
    assert_eq!((refusal(&frames), closed.as_str()), (ErrorCode::Unavailable, "draining"));
    assert_eq!(upgrade(&address, &[]).await.err(), Some((503, "draining".to_owned())));

    let mut slots = Vec::new();
    for socket in &mut sessions {
        let (frames, closed) = until_closed(socket).await;
        assert_eq!(closed, "draining");
        let mut told = Vec::new();
        for frame in &frames {
            if let Frame::GoingAway(GoingAway { reconnect_after_ms, .. }) = frame {
                told.push(*reconnect_after_ms);
            }
        }
        assert_eq!((told.len(), told[1]), (2, 0), "its slot, and that it is up");
        slots.push(told[0]);
    }
    assert!(slots.contains(&0) && slots.iter().any(|slot| *slot > 1_000), "{slots:?}");
}

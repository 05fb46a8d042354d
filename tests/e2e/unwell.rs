//! Clients that do not read, and clients whose limits are not the server's.
use dashstream_core::chain::Chain;
use dashstream_ctl::client::{Client, Event};
use dashstream_proto::session::v1::{
    ClientFrame, Hello, LimitSource, Limits, NoticeCode, Ping, StartPolicy, Subscribe, client_frame,
};
use dashstream_tests::{Feed, Kind, Service, Shape, Stack, eventually, eventually::pause};
use futures_util::{SinkExt, StreamExt};
use prost::Message as _;
use std::{collections::BTreeMap, time::Duration};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue, protocol::WebSocketConfig},
};

/// What a client's own kernel takes for it, bytes.
const RECEIVE_BUFFER: u32 = 16 << 10;
const TIMEOUT: Duration = Duration::from_secs(5);

/// A client that reads only when it is told to.
async fn connect(gateway: &Service) -> WebSocketStream<TcpStream> {
    let socket = TcpSocket::new_v4().expect("make a socket");
    socket.set_recv_buffer_size(RECEIVE_BUFFER).expect("bound what is received");
    let stream = socket.connect(gateway.address().parse().expect("an address")).await.expect("connect");
    let mut request = format!("ws://{}/ws", gateway.address()).into_client_request().expect("an address");
    request.headers_mut().insert("sec-websocket-protocol", HeaderValue::from_static("dashstream.v2"));
    // It reads no further ahead than it is told to, so that each frame it takes is seen.
    let config = WebSocketConfig::default().read_buffer_size(RECEIVE_BUFFER as usize);
    client_async_with_config(request, stream, Some(config)).await.expect("upgrade").0
}

async fn say(socket: &mut WebSocketStream<TcpStream>, frame: client_frame::Frame) -> bool {
    let bytes = ClientFrame { frame: Some(frame) }.encode_to_vec();
    socket.send(Message::Binary(bytes.into())).await.is_ok()
}

async fn subscribe(socket: &mut WebSocketStream<TcpStream>, start: StartPolicy) {
    assert!(say(socket, client_frame::Frame::Hello(Hello::default())).await);
    let subscribe = Subscribe { request_id: 1, start: start.into(), ..Default::default() };
    assert!(say(socket, client_frame::Frame::Subscribe(subscribe)).await);
}

/// The value of each series of the gateway whose name begins so.
async fn metrics(gateway: &Service, prefix: &str) -> BTreeMap<String, f64> {
    let (_, text) = gateway.get("/metrics").await.expect("the gateway answers");
    let series = text.lines().filter(|line| line.starts_with(prefix));
    series
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
        .collect()
}

async fn disconnects(gateway: &Service, reason: &str) -> f64 {
    let name = format!("dashstream_gateway_disconnects_total{{reason=\"{reason}\"}}");
    metrics(gateway, &name).await.into_values().sum()
}

/// Waits until one more session ended for this reason.
async fn gone(gateway: &Service, phase: &str, reason: &str, before: f64) {
    eventually(&format!("{phase}: gone for {reason}"), TIMEOUT * 4, async || {
        let now = disconnects(gateway, reason).await;
        if now > before {
            Ok(())
        } else {
            Err(format!("{:?}", metrics(gateway, "dashstream_gateway_disc").await))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_reading_is_gone_in_every_phase_and_one_that_reads_a_little_stays() {
    let settings = [
        ("GATEWAY_SEND_TIMEOUT", "5s"),
        ("GATEWAY_HELLO_TIMEOUT", "2s"),
        ("GATEWAY_HEARTBEAT", "2s"),
        ("GATEWAY_RING_BYTES", "256KiB"),
        ("GATEWAY_RINGS_BYTES", "256KiB"),
        ("GATEWAY_PAGES_BYTES", "512KiB"),
    ];
    let settings = settings.map(|(name, value)| (Kind::Gateway, name, value.to_owned())).to_vec();
    let stack = Stack::start(Shape { partitions: 2, settings, ..Shape::default() }).await;
    let gateway = &stack.gateway[0];
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 3, 50);
    feed.send(20_000).await;
    let log = feed.log().await;
    let stored: usize = log.values().flatten().map(|(_, payload)| payload.len()).sum();
    assert!(stored > 2 << 20, "more than all buffers together: {stored}");

    // One that takes four frames a second is there from the first to the last.
    let mut slow = connect(gateway).await;
    subscribe(&mut slow, StartPolicy::Earliest).await;
    let reading = async {
        loop {
            let message = slow.next().await;
            let Some(Ok(Message::Binary(_) | Message::Ping(_))) = message else { return message };
            pause(Duration::from_millis(250)).await;
        }
    };
    tokio::select! {
        message = reading => {
            let ended = metrics(gateway, "dashstream_gateway_disc").await;
            panic!("one that reads a little was cut: {message:?}, {ended:?}")
        }
        () = every_phase(gateway, &mut feed) => {}
    }
    stays_within_its_memory(gateway).await;
}

/// A client that takes nothing: before it said hello, in replay, live, in its answers, with nothing to send, at the end.
async fn every_phase(gateway: &Service, feed: &mut Feed) {
    let before = disconnects(gateway, "idle").await;
    let _silent = connect(gateway).await;
    gone(gateway, "handshake", "idle", before).await;

    let before = disconnects(gateway, "send_timeout").await;
    let mut replay = connect(gateway).await;
    subscribe(&mut replay, StartPolicy::Earliest).await;
    gone(gateway, "replay", "send_timeout", before).await;

    let before = disconnects(gateway, "send_timeout").await;
    let mut live = connect(gateway).await;
    subscribe(&mut live, StartPolicy::Latest).await;
    pause(Duration::from_millis(500)).await;
    feed.send(8_000).await;
    gone(gateway, "live", "send_timeout", before).await;

    let before = disconnects(gateway, "send_timeout").await;
    let mut control = connect(gateway).await;
    assert!(say(&mut control, client_frame::Frame::Hello(Hello::default())).await);
    let pinging =
        async { while say(&mut control, client_frame::Frame::Ping(Ping { nonce: u64::MAX })).await {} };
    tokio::select! {
        () = gone(gateway, "control", "send_timeout", before) => {}
        () = pinging => gone(gateway, "control", "send_timeout", before).await,
    }

    let before = disconnects(gateway, "idle").await;
    let mut quiet = connect(gateway).await;
    subscribe(&mut quiet, StartPolicy::Latest).await;
    gone(gateway, "live without anything to send", "idle", before).await;

    let before = disconnects(gateway, "protocol_error").await;
    let mut close = connect(gateway).await;
    close.send(Message::Text("garbage".into())).await.expect("the gateway takes it");
    gone(gateway, "close", "protocol_error", before).await;
}

async fn stays_within_its_memory(gateway: &Service) {
    assert_eq!(metrics(gateway, "dashstream_gateway_sessions ").await.into_values().sum::<f64>(), 1.0);
    let kept = |kept: BTreeMap<String, f64>| kept.into_values().sum::<f64>();
    assert!(kept(metrics(gateway, "dashstream_gateway_ring_bytes ").await) <= f64::from(256 << 10));
    assert!(kept(metrics(gateway, "dashstream_gateway_page_bytes ").await) <= f64::from(512 << 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lower_limit_wins_and_what_is_larger_is_a_notice() {
    let settings = vec![(Kind::Gateway, "GATEWAY_RECORD_BYTES_MAX", "400".to_owned())];
    let stack = Stack::start(Shape { partitions: 1, settings, ..Shape::default() }).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 4, 5);
    feed.send(300).await;
    let log = feed.log().await;
    let sizes: BTreeMap<_, _> = log[&0].iter().map(|(at, payload)| (*at, payload.len() as u64)).collect();
    // Exactly the size of a record, so that one is of exactly the limit.
    let own = *sizes.values().filter(|bytes| **bytes < 400).max().expect("some are small") as u32;
    for (asked, granted, by) in
        [(0, 400, LimitSource::Server), (500, 400, LimitSource::Server), (own, own, LimitSource::Client)]
    {
        let url = format!("ws://{}/ws", stack.gateway[0].address());
        let limits = Limits { record_bytes_max: asked, ..Limits::default() };
        let mut client = Client::connect(&url, Chain::default(), limits).await.expect("connect");
        let welcome = client.welcome().clone();
        assert_eq!(welcome.limits.expect("limits").record_bytes_max, granted);
        assert_eq!(welcome.limited_by.expect("who set them").record_bytes_max(), by);
        client.subscribe(StartPolicy::Earliest).await.expect("subscribe");
        let (mut received, mut withheld) = (Vec::new(), Vec::new());
        while received.len() + withheld.len() < 300 {
            match client.next().await.expect("the session goes on") {
                Event::Records { records, .. } => received.extend(records.iter().map(|record| record.offset)),
                Event::Notice(notice) if notice.code() == NoticeCode::RecordTooLarge => {
                    let at = notice.cursor.and_then(|cursor| cursor.offset).expect("its place");
                    assert_eq!(notice.bytes, sizes[&at], "its size");
                    withheld.push(at);
                }
                event @ (Event::Gap(_) | Event::Stale(_) | Event::Error(_) | Event::Closed) => {
                    panic!("{event:?}")
                }
                Event::Skipped(_)
                | Event::State(_)
                | Event::CaughtUp(_)
                | Event::Partitions(_)
                | Event::Notice(_)
                | Event::GoingAway(_)
                | Event::Pong => {}
            }
        }
        let fits = |at: &&u64| sizes[*at] <= u64::from(granted);
        assert_eq!(received, sizes.keys().filter(fits).copied().collect::<Vec<_>>());
        assert_eq!(withheld, sizes.keys().filter(|at| !fits(at)).copied().collect::<Vec<_>>());
        assert!(!withheld.is_empty() && received.iter().any(|at| sizes[at] == u64::from(own)));
    }
}

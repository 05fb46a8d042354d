//! Who may read what: on the upgrade, in the first frame, at a resume, in every query, over HTTP.
use dashstream_core::codec;
use dashstream_kit::config::Secret;
use dashstream_proto::{
    gateway::v1::{
        GetCatchUpRequest, GetRetentionRequest, GetRunRequest, ListRunsRequest, ListViewersRequest,
        ReadRunRequest, query_service_client::QueryServiceClient,
    },
    log::v1::Cursor,
    session::v1::{
        Authenticate, ClientFrame, ErrorCode, Hello, ServerFrame, StartPolicy, Subscribe,
        client_frame::Frame as Ours, server_frame::Frame,
    },
    telemetry::{self, DashStreamMessage, Event, EventType, Header, dash_stream_message::Message as Member},
};
use dashstream_tests::{Feed, Kind, Shape, Stack, eventually, net::request};
use futures_util::{SinkExt, StreamExt};
use issuer::{Keys, Server, claims, now};
use prost::Message as _;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest, protocol::CloseFrame},
};
use tonic::{Code, Request, Status, transport::Channel};

mod drain;
pub(super) mod issuer;
mod sessions;

const TIMEOUT: Duration = Duration::from_secs(30);
const CANARY: &str = "canary-of-b";

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A system whose gateway asks for tokens of an issuer, and that issuer.
async fn guarded() -> (Stack, Keys, Server) {
    let keys = Keys::new("one");
    let server = Server::start(&keys).await;
    let settings = [
        ("GATEWAY_AUTH", "jwks".to_owned()),
        ("GATEWAY_JWKS_URL", server.url.clone()),
        ("GATEWAY_JWT_ISSUER", issuer::ISSUER.to_owned()),
        ("GATEWAY_JWT_AUDIENCE", issuer::AUDIENCE.to_owned()),
        ("GATEWAY_JWT_SKEW", "1s".to_owned()),
        ("GATEWAY_HELLO_TIMEOUT", "2s".to_owned()),
        ("GATEWAY_ALLOWED_ORIGINS", "https://console.example".to_owned()),
    ];
    let settings = settings.map(|(name, value)| (Kind::Gateway, name, value)).to_vec();
    (Stack::start(Shape { partitions: 2, settings, ..Shape::default() }).await, keys, server)
}

/// Every way not to be let in, with the word for it.
fn strangers(keys: &Keys) -> Vec<(&'static str, String, &'static str)> {
    let signed = |algorithm: &str, id: &str, kind: &str| keys.sign(algorithm, id, kind, &claims(&json!({})));
    let but = |change: Value| keys.token(&change);
    vec![
        ("expired", but(json!({ "exp": now() - 5 })), "expired"),
        ("not valid yet", but(json!({ "nbf": now() + 60 })), "not_yet_valid"),
        ("another issuer", but(json!({ "iss": "https://evil.example" })), "issuer"),
        ("another audience", but(json!({ "aud": "billing" })), "audience"),
        ("no expiry", but(json!({ "exp": null })), "malformed_token"),
        ("the algorithm none", signed("none", "one-rsa", "nothing"), "malformed_token"),
        ("the public key as a secret", signed("HS256", "one-rsa", "hmac with the public key"), "algorithm"),
        ("the algorithm of another key", signed("RS256", "one-ec", "rsa"), "unknown_key"),
        ("an unknown key", signed("ES256", "two-ec", "ec"), "unknown_key"),
        ("another key's signature", signed("EdDSA", "one-ed", "ec"), "signature"),
        ("no signature", signed("ES256", "one-ec", "nothing"), "signature"),
        ("nonsense", "nonsense".to_owned(), "malformed_token"),
    ]
}

async fn upgrade(address: &str, headers: &[(&'static str, &str)]) -> Result<Socket, (u16, String)> {
    let mut request = format!("ws://{address}/ws").into_client_request().expect("an address");
    request.headers_mut().insert("sec-websocket-protocol", "dashstream.v2".parse().expect("a header"));
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("a header"));
    }
    match connect_async(request).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(answer)) => {
            let reason =
                answer.headers().get("dashstream-refused").map(|word| word.to_str().expect("a word"));
            Err((answer.status().as_u16(), reason.unwrap_or_default().to_owned()))
        }
        Err(error) => panic!("{error}"),
    }
}

async fn send(socket: &mut Socket, frame: Ours) {
    let bytes = ClientFrame { frame: Some(frame) }.encode_to_vec();
    socket.send(Message::Binary(bytes.into())).await.expect("send a frame");
}

fn hello(token: &str) -> Ours {
    Ours::Hello(Hello { client: "test".into(), limits: None, token: token.to_owned() })
}

/// All frames up to the end, and the reason for which the gateway closed.
async fn until_closed(socket: &mut Socket) -> (Vec<Frame>, String) {
    let mut frames = Vec::new();
    let ended = tokio::time::timeout(TIMEOUT, async {
        while let Some(Ok(message)) = socket.next().await {
            match message {
                Message::Binary(bytes) => {
                    frames.extend(ServerFrame::decode(bytes).expect("a frame").frame);
                }
                Message::Close(Some(CloseFrame { reason, .. })) => return reason.to_string(),
                Message::Text(_)
                | Message::Ping(_)
                | Message::Pong(_)
                | Message::Close(_)
                | Message::Frame(_) => {}
            }
        }
        String::new()
    });
    let reason = ended.await.expect("it ends");
    (frames, reason)
}

fn refusal(frames: &[Frame]) -> ErrorCode {
    match frames {
        [Frame::Error(error)] if error.fatal => error.code(),
        other => panic!("expected one fatal error, got {other:?}"),
    }
}

struct Asker {
    client: QueryServiceClient<Channel>,
    token: Option<String>,
}

impl Asker {
    fn new(stack: &Stack, token: Option<&str>) -> Self {
        let channel = dashstream_kit::grpc::channel_to(&stack.gateway[0].grpc_address()).expect("an address");
        Self { client: QueryServiceClient::new(channel), token: token.map(str::to_owned) }
    }

    fn with<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request
                .metadata_mut()
                .insert("authorization", format!("Bearer {token}").parse().expect("a header"));
        }
        request
    }

    async fn read(&mut self, request: ReadRunRequest) -> Result<String, Status> {
        let mut answers = self.client.read_run(self.with(request)).await?.into_inner();
        let mut text = String::new();
        while let Some(answer) = answers.message().await? {
            text += &format!("{answer:?}");
        }
        Ok(text)
    }

    /// What every query answers, as text.
    async fn everything(&mut self, thread_id: &str) -> Vec<(&'static str, Result<String, Status>)> {
        fn text<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>) -> Result<String, Status> {
            answer.map(|answer| format!("{:?}", answer.into_inner()))
        }
        let thread_id = thread_id.to_owned();
        let run = self.with(GetRunRequest { thread_id: thread_id.clone() });
        let read = ReadRunRequest { thread_id: thread_id.clone(), ..Default::default() };
        let viewers = self.with(ListViewersRequest { thread_id });
        let (list, all) = (self.with(ListRunsRequest::default()), self.with(ListViewersRequest::default()));
        let named = self.with(ListRunsRequest { tenant_ids: vec!["b".into()], ..Default::default() });
        let (catch_up, retention) = (self.with(GetCatchUpRequest {}), self.with(GetRetentionRequest {}));
        vec![
            ("ListRuns", text(self.client.list_runs(list).await)),
            ("ListRuns of b", text(self.client.list_runs(named).await)),
            ("GetRun", text(self.client.get_run(run).await)),
            ("ReadRun", self.read(read).await),
            ("GetCatchUp", text(self.client.get_catch_up(catch_up).await)),
            ("GetRetention", text(self.client.get_retention(retention).await)),
            ("ListViewers", text(self.client.list_viewers(viewers).await)),
            ("ListViewers of all", text(self.client.list_viewers(all).await)),
        ]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_a_right_gets_in_by_any_door() {
    let (stack, keys, _server) = guarded().await;
    let address = stack.gateway[0].address();
    for (why, token, reason) in strangers(&keys) {
        let bearer = format!("Bearer {token}");
        let refused = upgrade(&address, &[("authorization", &bearer)]).await.err();
        assert_eq!(refused, Some((401, reason.to_owned())), "{why}: upgrade");
        let offered = format!("dashstream.v2, dashstream.bearer.{token}");
        let refused = upgrade(&address, &[("sec-websocket-protocol", &offered)]).await.err();
        assert_eq!(refused, Some((401, reason.to_owned())), "{why}: subprotocol");

        let mut socket = upgrade(&address, &[]).await.expect("the hello may bring a token");
        send(&mut socket, hello(&token)).await;
        let (frames, closed) = until_closed(&mut socket).await;
        assert_eq!(
            (refusal(&frames), closed.as_str()),
            (ErrorCode::Unauthenticated, "unauthorized"),
            "{why}"
        );

        for (query, answer) in Asker::new(&stack, Some(&token)).everything("a-1").await {
            assert_eq!(answer.expect_err(why).code(), Code::Unauthenticated, "{why}: {query}");
        }
        for method in ["GET", "PUT", "DELETE"] {
            let headers = [("authorization", &*bearer), ("content-type", "application/json")];
            let path = (method, "/api/expected-schema/g");
            let answer = request(&address, path, &headers, br#"{"schema_id":"s"}"#).await;
            assert_eq!(
                (answer.status, answer.header("dashstream-refused")),
                (401, reason),
                "{why}: {method}"
            );
        }
    }
    let log = stack.gateway[0].log_text();
    assert!(strangers(&keys).iter().all(|(_, token, _)| !log.contains(token)), "tokens are in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_a_token_gets_anything() {
    let (stack, keys, _server) = guarded().await;
    let address = stack.gateway[0].address();
    let cursors = vec![Cursor { epoch: 1, partition: 0, offset: Some(1) }];
    let resume =
        Subscribe { request_id: 1, cursors, start: StartPolicy::Earliest.into(), ..Default::default() };
    let ping = Ours::Ping(dashstream_proto::session::v1::Ping { nonce: 1 });
    let fresh = Ours::Authenticate(Authenticate { token: keys.token(&json!({})) });
    for (why, frame) in [
        ("an empty hello", hello("")),
        ("a resume", Ours::Subscribe(resume)),
        ("a ping", ping),
        ("no hello", fresh),
    ] {
        let mut socket = upgrade(&address, &[]).await.expect("the hello may bring a token");
        send(&mut socket, frame).await;
        let (frames, closed) = until_closed(&mut socket).await;
        assert_eq!(
            (refusal(&frames), closed.as_str()),
            (ErrorCode::Unauthenticated, "unauthorized"),
            "{why}"
        );
    }
    let mut silent = upgrade(&address, &[]).await.expect("the hello may bring a token");
    let (frames, closed) = until_closed(&mut silent).await;
    assert_eq!((refusal(&frames), closed.as_str()), (ErrorCode::Idle, "idle"), "no hello in time");

    for (query, answer) in Asker::new(&stack, None).everything("a-1").await {
        assert_eq!(answer.expect_err(query).code(), Code::Unauthenticated, "{query}");
    }
    let token = format!("Bearer {}", keys.token(&json!({})));
    let evil = [("origin", "https://evil.example"), ("authorization", &*token)];
    assert_eq!(upgrade(&address, &evil).await.err(), Some((403, "origin".to_owned())));
    let answer = request(&address, ("GET", "/config"), &evil[..1], b"").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (403, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_key_is_taken_and_a_rotated_one_no_longer() {
    let (stack, keys, server) = guarded().await;
    for (algorithm, id, kind) in
        [("RS256", "one-rsa", "rsa"), ("ES256", "one-ec", "ec"), ("EdDSA", "one-ed", "ed")]
    {
        let token = keys.sign(algorithm, id, kind, &claims(&json!({})));
        let answers = Asker::new(&stack, Some(&token)).everything("none").await;
        let (_, listed) = &answers[0];
        assert!(listed.is_ok(), "{algorithm}: {listed:?}");
    }
    let (old, after) = (keys.token(&json!({})), Keys::new("two"));
    server.rotate(&after);
    let new = after.token(&json!({}));
    eventually("the new key is taken", TIMEOUT, async || {
        let mut asker = Asker::new(&stack, Some(&new));
        let request = asker.with(ListRunsRequest::default());
        asker.client.list_runs(request).await.map(drop).map_err(|status| status.to_string())
    })
    .await;
    let mut asker = Asker::new(&stack, Some(&old));
    let request = asker.with(ListRunsRequest::default());
    assert_eq!(
        asker.client.list_runs(request).await.expect_err("a key taken back").code(),
        Code::Unauthenticated
    );
}

/// An event as a producer writes it.
fn event(tenant: &str, thread: &str, sequence: u64, graph: &str) -> Vec<u8> {
    let header = Header {
        tenant_id: tenant.to_owned(),
        thread_id: thread.to_owned(),
        sequence,
        schema_version: 1,
        ..Default::default()
    };
    let graph = telemetry::AttributeValue {
        value: Some(telemetry::attribute_value::Value::StringValue(graph.to_owned())),
    };
    let event = Event {
        header: Some(header),
        event_type: EventType::GraphStart.into(),
        attributes: [("graph_name".to_owned(), graph)].into(),
        ..Default::default()
    };
    codec::encode(&DashStreamMessage { message: Some(Member::Event(event)) }, usize::MAX)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_records_never_reach_another_tenant_by_a_query() {
    let (stack, keys, _server) = guarded().await;
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    for sequence in 1..=20 {
        feed.send_payload("a-1", &event("a", "a-1", sequence, "graph-of-a")).await;
        feed.send_payload(CANARY, &event("b", CANARY, sequence, CANARY)).await;
        // Two tenants whose threads go by one name.
        feed.send_payload("shared", &event("a", "shared", sequence * 2, "graph-of-a")).await;
        feed.send_payload("shared", &event("b", "shared", sequence * 2 + 1, "graph-of-a")).await;
    }
    let token = |tenants: Value| keys.token(&json!({ "tenants": tenants }));
    let (of_a, of_b, of_both) = (token(json!(["a"])), token(json!("b")), token(json!(["b", "a"])));
    let everything = keys.token(&json!({
        "tenants": null, "scope": "dashstream:read dashstream:all-tenants dashstream:list-viewers",
    }));
    eventually("all runs are listed", TIMEOUT, async || {
        let answers = Asker::new(&stack, Some(&of_both)).everything(CANARY).await;
        let (_, read) = &answers[3];
        let read = read.as_ref().map_err(|status| status.to_string())?;
        if read.matches("prev_offset").count() == 20 { Ok(()) } else { Err(format!("{read:.300}")) }
    })
    .await;

    for thread in [CANARY, "shared", "a-1", ""] {
        for (query, answer) in Asker::new(&stack, Some(&of_a)).everything(thread).await {
            let text = answer
                .unwrap_or_else(|status| status.message().to_owned())
                .replace(&format!("{thread:?}"), "");
            assert!(
                !text.contains(CANARY) && !text.contains("tenant_id: \"b\""),
                "{query} of {thread}: {text:.2000}"
            );
        }
    }
    let mut asker = Asker::new(&stack, Some(&of_a));
    let shared = asker.read(ReadRunRequest { thread_id: "shared".into(), ..Default::default() }).await;
    assert_eq!(shared.expect("it is a's too").matches("tenant_id: \"a\"").count(), 20);
    for request in [GetRunRequest { thread_id: CANARY.into() }, GetRunRequest { thread_id: "none".into() }] {
        let request = asker.with(request);
        assert_eq!(asker.client.get_run(request).await.expect_err("not a's").code(), Code::NotFound);
    }
    for (who, token) in [("b", &of_b), ("both", &of_both), ("all", &everything)] {
        let answers = Asker::new(&stack, Some(token)).everything(CANARY).await;
        for (query, answer) in &answers[..4] {
            assert!(answer.as_ref().is_ok_and(|text| text.contains(CANARY)), "{who}: {query}: {answer:?}");
        }
    }
    let denied = Asker::new(&stack, Some(&of_a)).everything("a-1").await;
    assert_eq!(denied[1].1.as_ref().expect_err("b's").code(), Code::PermissionDenied);
    let reader = keys.token(&json!({ "scope": "dashstream:read" }));
    let denied = Asker::new(&stack, Some(&reader)).everything("a-1").await;
    assert_eq!(denied[7].1.as_ref().expect_err("no right").code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_lives_as_long_as_its_last_token_and_is_listed_meanwhile() {
    let (stack, keys, _server) = guarded().await;
    let address = stack.gateway[0].address();
    let rights = "dashstream:read dashstream:all-tenants dashstream:list-viewers";
    let token = |seconds: u64, subject: &str| {
        keys.token(&json!({ "exp": now() + seconds, "sub": subject, "scope": rights }))
    };
    let (long, short) = (token(600, "ann"), token(3, "ann"));
    // By header, by subprotocol, by hello.
    let mut in_header =
        upgrade(&address, &[("authorization", &format!("Bearer {short}"))]).await.expect("taken");
    send(&mut in_header, hello("")).await;
    let offered = format!("dashstream.v2, dashstream.bearer.{short}");
    let mut prolonged = upgrade(&address, &[("sec-websocket-protocol", &offered)]).await.expect("taken");
    send(&mut prolonged, hello("")).await;
    send(&mut prolonged, Ours::Authenticate(Authenticate { token: "nonsense".into() })).await;
    send(&mut prolonged, Ours::Authenticate(Authenticate { token: long.clone() })).await;
    let mut stolen = upgrade(&address, &[]).await.expect("the hello may bring a token");
    send(&mut stolen, hello(&long)).await;

    let (frames, closed) = until_closed(&mut in_header).await;
    assert!(matches!(frames.first(), Some(Frame::Welcome(_))), "{frames:?}");
    assert_eq!(
        (refusal(&frames[frames.len() - 1..]), closed.as_str()),
        (ErrorCode::Unauthenticated, "unauthorized")
    );
    eventually("the two others are listed", TIMEOUT, async || {
        let mut asker = Asker::new(&stack, Some(&long));
        let request = asker.with(ListViewersRequest::default());
        let viewers =
            asker.client.list_viewers(request).await.map_err(|status| status.to_string())?.into_inner();
        let ours = viewers.viewers.iter().filter(|viewer| viewer.subject == "ann" && viewer.connected_ms > 0);
        if ours.count() == 2 { Ok(()) } else { Err(format!("{viewers:?}")) }
    })
    .await;
    send(&mut prolonged, Ours::Ping(dashstream_proto::session::v1::Ping { nonce: 7 })).await;
    send(&mut prolonged, Ours::Authenticate(Authenticate { token: token(600, "bob") })).await;
    let (frames, closed) = until_closed(&mut prolonged).await;
    assert!(frames.iter().any(|frame| matches!(frame, Frame::Pong(pong) if pong.nonce == 7)), "{frames:?}");
    let told = frames.iter().filter(|frame| matches!(frame, Frame::Error(error) if !error.fatal)).count();
    assert_eq!(
        (told, closed.as_str()),
        (1, "unauthorized"),
        "nonsense is told, another's token ends it: {frames:?}"
    );
    drop(stolen);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tools_show_a_token() {
    let (stack, keys, _server) = guarded().await;
    let everything = keys.token(&json!({ "scope": "dashstream:read dashstream:all-tenants" }));
    let token: Secret = everything.parse().expect("a secret");
    let url = format!("ws://{}/ws", stack.gateway[0].address());
    let connect = |token| {
        dashstream_ctl::client::Client::connect_with(&url, Default::default(), Default::default(), token)
    };
    connect(Some(&token)).await.expect("taken");
    assert!(connect(None).await.is_err());
}

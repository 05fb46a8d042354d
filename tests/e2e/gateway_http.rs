//! The gateway over HTTP: what it grants and how it goes, expected schemas, gRPC-Web, and whom it keeps out.
use dashstream_proto::{
    gateway::v1::{GetRetentionRequest, GetRetentionResponse},
    session::v1::Limits,
};
use dashstream_tests::{Feed, Kind, Shape, Stack, Stop, eventually, net::request};
use prost::Message as _;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const TIMEOUT: Duration = Duration::from_secs(30);
const JSON: (&str, &str) = ("content-type", "application/json");

async fn stack(settings: &[(&'static str, &str)]) -> Stack {
    let settings = settings.iter().map(|(name, value)| (Kind::Gateway, *name, (*value).to_owned())).collect();
    Stack::start(Shape { partitions: 1, gateway: 2, settings, ..Shape::default() }).await
}

async fn get(address: &str, path: &str) -> Value {
    let answer = request(address, ("GET", path), &[], b"").await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    serde_json::from_slice(&answer.body).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_granted_is_told_with_units_and_read_again_only_when_it_changed() {
    let stack = stack(&[("GATEWAY_SESSIONS_PER_TENANT_MAX", "7")]).await;
    let address = stack.gateway[0].address();
    eventually("the retention is known", TIMEOUT, async || {
        let config = get(&address, "/config").await;
        if config["retention"]["age_ms"] == 3_600_000 { Ok(()) } else { Err(config.to_string()) }
    })
    .await;
    let answer = request(&address, ("GET", "/config"), &[], b"").await;
    let config: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(config["authentication"], json!({ "mode": "none", "token_in": [] }));
    assert_eq!((&config["heartbeat_ms"], &config["protocols"]), (&json!(10_000), &json!(["dashstream.v2"])));
    for (name, limit) in config["limits"].as_object().expect("an object") {
        assert!(
            limit["value"].is_u64() && limit["unit"].is_string() && limit["meaning"].is_string(),
            "{name}"
        );
    }
    assert_eq!(config["limits"]["sessions_per_tenant_max"]["value"], 7);
    assert_eq!(config["limits"]["in_flight_bytes_max"]["value"], 4 << 20);
    assert_eq!(
        (&config["limits"]["filter_values_max"]["value"], &config["drain_window_ms"]),
        (&json!(1_024), &json!(10_000))
    );

    let tag = answer.header("etag").to_owned();
    let again = request(&address, ("GET", "/config"), &[("if-none-match", &tag)], b"").await;
    assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, &*tag));
    let other =
        request(&stack.gateway[1].address(), ("GET", "/config"), &[("if-none-match", &tag)], b"").await;
    assert!(
        other.status == 304 || other.status == 200,
        "another replica has the same, once it knows the retention"
    );
    let changed = request(&address, ("GET", "/config"), &[("if-none-match", "\"0\"")], b"").await;
    assert_eq!(changed.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_version_have_the_predecessors_shape() {
    let stack = stack(&[]).await;
    let address = stack.gateway[0].address();
    let version = get(&address, "/version").await;
    for name in
        ["git_sha", "build_date", "schema_version", "component", "resume_namespace", "max_payload_bytes"]
    {
        assert!(!version[name].is_null(), "{name}: {version}");
    }
    assert_eq!(get(&address, "/health").await["status"], "waiting");
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 5, 5);
    feed.send(150).await;
    eventually("records are counted", TIMEOUT, async || {
        let answer = request(&address, ("GET", "/health"), &[], b"").await;
        let text = answer.text();
        if text.contains("\"status\":\"healthy\"") { Ok(()) } else { Err(text) }
    })
    .await;
    let health = get(&address, "/health").await;
    assert_eq!(health["metrics"]["kafka_messages_received"], 150);
    assert_eq!(health["metrics"]["messages_last_120s"], 150);
    assert_eq!(
        (&health["kafka_status"], &health["websocket_status"]),
        (&json!("connected"), &json!("no_clients"))
    );
    assert_eq!(health["circuit_breaker"]["state"], "healthy");
    assert_eq!(health["metrics"]["payload_missing"], Value::Null, "what is not known is not told");
    for path in ["/livez", "/readyz"] {
        assert_eq!(request(&address, ("GET", path), &[], b"").await.status, 200, "{path}");
    }
    feed.send_payload("t", b"\x02this is not a message").await;
    for _ in 0..4 {
        feed.send_payload("t", b"\x02nor is this").await;
    }
    eventually("more than one in a hundred does not decode", TIMEOUT, async || {
        let health = get(&address, "/health").await;
        if health["status"] == "degraded" { Ok(()) } else { Err(health.to_string()) }
    })
    .await;
    stack.ingest[0].stop(Stop::Kill).await;
    eventually("it is cut off", TIMEOUT, async || {
        let health = get(&address, "/health").await;
        let ago = &health["metrics"]["last_infrastructure_error_ago_seconds"];
        if ago.is_u64() { Ok(()) } else { Err(health.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expected_schemas_are_kept_for_all_replicas_in_the_predecessors_api() {
    let stack = stack(&[]).await;
    let (one, two) = (stack.gateway[0].address(), stack.gateway[1].address());
    let path = "/api/expected-schema/my%20graph";
    let absent = request(&one, ("GET", path), &[], b"").await;
    let expected = json!({ "error": "No expected schema set for this graph", "graph_name": "my graph" });
    assert_eq!(
        (absent.status, serde_json::from_slice::<Value>(&absent.body).expect("JSON")),
        (404, expected)
    );
    assert_eq!(get(&one, "/api/expected-schema").await, json!([]));

    let body = br#"{"schema_id":"s-1","environment":"prod","note":"pinned by a test"}"#;
    let set = request(&one, ("PUT", path), &[JSON], body).await;
    let entry: Value = serde_json::from_slice(&set.body).expect("JSON");
    assert_eq!(set.status, 200, "{entry}");
    let pinned_at = entry["pinned_at"].as_i64().expect("a time");
    assert_eq!(
        entry,
        json!({ "schema_id": "s-1", "graph_name": "my graph", "environment": "prod", "pinned_at": pinned_at,
            "pinned_by": null, "note": "pinned by a test" })
    );
    stack.replay[0].restart(Stop::Kill).await;
    eventually("replay is found again", TIMEOUT, async || {
        let read = request(&two, ("GET", path), &[], b"").await;
        if read.status == 200 { Ok(()) } else { Err(read.text()) }
    })
    .await;
    assert_eq!(
        (get(&two, path).await, get(&two, "/api/expected-schema").await),
        (entry.clone(), json!([entry]))
    );
    let of_tenant = get(&two, "/api/expected-schema?tenant=a").await;
    assert_eq!(of_tenant, json!([]), "a tenant has its own");

    let tag = set.header("etag").to_owned();
    let other = ("if-match", "\"1\"");
    assert_eq!(request(&two, ("PUT", path), &[JSON, other], br#"{"schema_id":"s-2"}"#).await.status, 412);
    assert_eq!(request(&two, ("DELETE", path), &[other], b"").await.status, 412);
    assert_eq!(
        request(&two, ("PUT", path), &[JSON, ("if-none-match", "*")], br#"{"schema_id":"s"}"#).await.status,
        412
    );
    assert_eq!(
        request(&two, ("PUT", path), &[JSON, ("if-match", &tag)], br#"{"schema_id":"s-2"}"#).await.status,
        200
    );
    refuses_bad_schemas(&one, path).await;
    let removed = request(&one, ("DELETE", path), &[], b"").await;
    assert_eq!((removed.status, get(&two, "/api/expected-schema").await), (200, json!([])));
    let absent = request(&one, ("DELETE", path), &[], b"").await;
    let expected = json!({ "error": "No expected schema to delete", "graph_name": "my graph" });
    assert_eq!(
        (absent.status, serde_json::from_slice::<Value>(&absent.body).expect("JSON")),
        (404, expected)
    );
}

async fn refuses_bad_schemas(address: &str, path: &str) {
    let long = json!({ "schema_id": "x".repeat(257) }).to_string();
    let huge = json!({ "schema_id": "x".repeat(70_000) }).to_string();
    for (why, headers, body, status) in [
        ("no content type", &[][..], &br#"{"schema_id":"s"}"#[..], 415),
        ("no JSON", &[JSON], b"{", 400),
        ("no id", &[JSON], b"{}", 422),
        ("an empty id", &[JSON], br#"{"schema_id":""}"#, 422),
        ("a long id", &[JSON], long.as_bytes(), 422),
        ("a huge body", &[JSON], huge.as_bytes(), 413),
    ] {
        let answer = request(address, ("PUT", path), headers, body).await;
        assert_eq!(answer.status, status, "{why}: {}", answer.text());
    }
}

/// A call of gRPC-Web as browsers make it.
async fn grpc_web(address: &str, headers: &[(&str, &str)]) -> dashstream_tests::net::Answer {
    let message = GetRetentionRequest {}.encode_to_vec();
    let body = [&[0, 0, 0, 0, message.len() as u8][..], &message].concat();
    let kind = [("content-type", "application/grpc-web+proto"), ("x-grpc-web", "1")];
    let path = "/dashstream.gateway.v1.QueryService/GetRetention";
    request(address, ("POST", path), &[&kind, headers].concat(), &body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_of_listed_origins_may_ask_and_no_others() {
    let stack = stack(&[("GATEWAY_ALLOWED_ORIGINS", "https://console.example")]).await;
    let address = stack.gateway[0].address();
    let (ours, theirs) = (("origin", "https://console.example"), ("origin", "https://evil.example"));
    let answer = grpc_web(&address, &[ours]).await;
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (200, ours.1),
        "{}",
        answer.text()
    );
    let length = u32::from_be_bytes(answer.body[1..5].try_into().expect("four bytes")) as usize;
    let retention = GetRetentionResponse::decode(&answer.body[5..5 + length]).expect("an answer");
    assert_eq!(retention.retention.expect("bounds").age_ms, 3_600_000);

    let own = format!("http://{address}");
    assert_eq!(grpc_web(&address, &[("origin", &own)]).await.status, 200, "a page of the gateway itself");
    let refused = grpc_web(&address, &[theirs]).await;
    assert_eq!((refused.status, refused.header("dashstream-refused")), (403, "origin"));
    let asks =
        [ours, ("access-control-request-method", "POST"), ("access-control-request-headers", "x-grpc-web")];
    let path = ("OPTIONS", "/dashstream.gateway.v1.QueryService/GetRetention");
    assert_eq!(request(&address, path, &asks, b"").await.header("access-control-allow-origin"), ours.1);
    let asks = [theirs, asks[1], asks[2]];
    assert_eq!(request(&address, path, &asks, b"").await.header("access-control-allow-origin"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_counted_by_the_address_that_a_trusted_proxy_names() {
    let stack =
        stack(&[("GATEWAY_SESSIONS_PER_ADDRESS_MAX", "2"), ("GATEWAY_TRUSTED_PROXIES", "127.0.0.1/32")])
            .await;
    let address = stack.gateway[0].address();
    let upgrade = async |client: &'static str| {
        let mut request = tokio_tungstenite::tungstenite::client::IntoClientRequest::into_client_request(
            format!("ws://{address}/ws"),
        )
        .expect("an address");
        request.headers_mut().insert("sec-websocket-protocol", "dashstream.v2".parse().expect("a header"));
        request.headers_mut().insert("x-forwarded-for", client.parse().expect("a header"));
        match tokio_tungstenite::connect_async(request).await {
            Ok((socket, _)) => Ok(socket),
            Err(tokio_tungstenite::tungstenite::Error::Http(answer)) => {
                let retry = answer.headers().get("retry-after").is_some();
                let text = answer.body().as_ref().map(|body| String::from_utf8_lossy(body).into_owned());
                Err((answer.status().as_u16(), retry, text.unwrap_or_default()))
            }
            Err(error) => panic!("{error}"),
        }
    };
    let one = upgrade("203.0.113.1").await.expect("a place");
    let two = upgrade("9.9.9.9, 203.0.113.1").await.expect("a place");
    let (status, retry, text) = upgrade("8.8.8.8, 203.0.113.1").await.expect_err("whatever it makes up");
    assert_eq!((status, retry, text.trim()), (429, true, "Too many connections from this IP"));
    let _other = upgrade("203.0.113.2").await.expect("another address has its own");
    drop((one, two));
    eventually("its places are free again", TIMEOUT, async || {
        upgrade("203.0.113.1").await.map(drop).map_err(|(status, ..)| status.to_string())
    })
    .await;
    let (_, metrics) = stack.gateway[0].get("/metrics").await.expect("metrics");
    assert!(metrics.contains("refused_upgrades_total{reason=\"over_limit_of_address\"}"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_end_its_request_is_gone_and_one_that_sends_too_much_is_closed() {
    let stack =
        stack(&[("GATEWAY_HANDSHAKE_TIMEOUT", "500ms"), ("GATEWAY_CLIENT_FRAME_BYTES_MAX", "64KiB")]).await;
    let address = stack.gateway[0].address();
    let mut slow = TcpStream::connect(&address).await.expect("connect");
    slow.write_all(b"GET /ws HTTP/1.1\r\nhost: x\r\n").await.expect("half a request");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(TIMEOUT, slow.read_to_end(&mut rest)).await.expect("it ends");
    assert!(ended.is_err() || !rest.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&rest));

    let url = format!("ws://{address}/ws");
    let mut client = dashstream_ctl::client::Client::connect(&url, Default::default(), Limits::default())
        .await
        .expect("a session");
    let token = "x".repeat(70_000);
    let frame = dashstream_proto::session::v1::client_frame::Frame::Authenticate(
        dashstream_proto::session::v1::Authenticate { token },
    );
    let _sent = client.send(frame).await;
    eventually("it is closed for its size", TIMEOUT, async || {
        let (_, metrics) = stack.gateway[0].get("/metrics").await?;
        let line = "dashstream_gateway_disconnects_total{reason=\"over_limit\"} 1";
        if metrics.contains(line) { Ok(()) } else { Err(metrics) }
    })
    .await;
}

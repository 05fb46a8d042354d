//! Clients of the predecessor's protocol: its wire, and what was not promised there.
use crate::security::issuer::{self, Keys, Server};
use dashstream_core::codec;
use dashstream_proto::telemetry::{
    DashStreamMessage, Header, TokenChunk, dash_stream_message::Message as Member,
};
use dashstream_tests::{
    Feed, Kind, Shape, Stack, Stop, eventually, feed,
    v1_client::{Heard, V1Client, V1Watcher},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(60);

fn gateways(stack: &Stack) -> Vec<String> {
    stack.gateway.iter().map(dashstream_tests::Service::address).collect()
}

/// Follows one gateway until `enough`, in time.
async fn until(watcher: &mut V1Watcher, gateways: &[String], mut enough: impl FnMut(&V1Watcher) -> bool) {
    let following = async {
        while !enough(watcher) {
            let gateway = &gateways[watcher.connections % gateways.len()];
            watcher.follow(gateway, usize::MAX, &mut enough).await;
        }
    };
    let ended = tokio::time::timeout(TIMEOUT, following).await.is_ok();
    assert!(ended, "{} records, {:?}", watcher.records(), watcher.texts);
}

fn is_complete(watcher: &V1Watcher) -> bool {
    !watcher.of("replay_complete").is_empty()
}

/// A record of a thread, by its number in it.
fn numbered(tenant_id: &str, thread_id: &str, sequence: u64) -> Vec<u8> {
    let (tenant_id, thread_id) = (tenant_id.to_owned(), thread_id.to_owned());
    let header = Header { tenant_id, thread_id, sequence, schema_version: 1, ..Default::default() };
    let chunk = TokenChunk { header: Some(header), text: "word ".repeat(200), ..Default::default() };
    codec::encode(&DashStreamMessage { message: Some(Member::TokenChunk(chunk)) }, 512)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_v1_client_cut_at_random_receives_each_record_once_in_order_and_unchanged() {
    let stack = Stack::start(Shape { gateway: 2, ..Shape::default() }).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 71, 100);
    let (gateways, mut watcher) = (gateways(&stack), V1Watcher::default());
    let mut rng = StdRng::seed_from_u64(7);
    let producing = async {
        feed.send(20_000).await;
        feed.log().await
    };
    let cutting = async {
        for cut in 0..20 {
            let events = rng.random_range(1..600);
            let following = watcher.follow(&gateways[cut % 2], events, |_| false);
            drop(tokio::time::timeout(Duration::from_secs(2), following).await);
        }
    };
    let (log, ()) = tokio::join!(producing, cutting);
    until(&mut watcher, &gateways, |watcher| watcher.records() >= feed::records(&log)).await;
    assert!(watcher.received == log, "not what Kafka has");
    assert!(watcher.connections > 20);
    for told in ["gap", "cursor_stale", "error"] {
        assert_eq!(watcher.of(told), Vec::<&Value>::new(), "nothing was lost");
    }

    // From the earliest record, all of it once more, and the end of that is told where it is.
    let mut late = V1Watcher::default();
    until(&mut late, &gateways, is_complete).await;
    assert!(late.received == log, "not what Kafka has");
    let ends = log.iter().map(|(partition, records)| {
        (partition.to_string(), json!(records.last().expect("a record").0.to_string()))
    });
    let complete = json!({ "type": "replay_complete", "totalReplayed": 20_000, "capped": false, "mode": "cursor",
        "lastOffsetsByPartition": ends.collect::<serde_json::Map<_, _>>() });
    assert_eq!(late.texts, [complete]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_v1_client_begins_where_it_says_and_goes_on_live() {
    let stack = Stack::start(Shape { partitions: 1, ..Shape::default() }).await;
    let address = stack.gateway[0].address();
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 72, 1);
    feed.send_sound(0, 10).await;
    feed.log().await;
    eventually("all of it is there", TIMEOUT, async || {
        let mut client = V1Client::connect(&address, &[]).await.map_err(|status| status.to_string())?;
        client.resume(&json!({ "lastOffsetsByPartition": {}, "from": "latest" })).await;
        let answer = client.next_text().await;
        let ends = &answer["lastOffsetsByPartition"];
        if *ends == json!({ "0": "9" }) { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
    let resumes = [
        (json!({ "lastOffsetsByPartition": { "0": 3 } }), "cursor", 4_u64, 6),
        (json!({ "lastOffsetsByPartition": { "0": "3" }, "from": "earliest" }), "earliest", 0, 10),
        (json!({ "lastOffsetsByPartition": { "0": "3" }, "from": "latest" }), "latest", 10, 0),
    ];
    let mut clients = Vec::new();
    for (fields, mode, first, count) in resumes {
        let mut client = V1Client::connect(&address, &[]).await.expect("a session");
        client.resume(&fields).await;
        for expected in first..10 {
            let heard = client.next().await;
            assert!(matches!(heard, Heard::Record { offset, .. } if offset == expected), "{mode}: {heard:?}");
        }
        let complete = client.next_text().await;
        assert_eq!((&complete["mode"], &complete["totalReplayed"]), (&json!(mode), &json!(count)));
        clients.push(client);
    }
    let mut silent = V1Client::connect(&address, &[]).await.expect("a session");
    silent.say("{\"type\":\"ping\"}").await;
    assert_eq!(silent.next().await, Heard::Text(json!({ "type": "pong" })));
    let mut reset = V1Client::connect(&address, &[]).await.expect("a session");
    reset.say("{\"type\":\"cursor_reset\"}").await;
    let answer = reset.next_text().await;
    assert_eq!(answer["type"], "cursor_reset_complete");
    assert_eq!(answer["latestOffsetsByPartition"], json!({ "0": "9" }));
    clients.extend([silent, reset]);

    feed.send_sound(0, 1).await;
    let log = feed.log().await;
    for mut client in clients {
        let expected = Heard::Record { partition: 0, offset: 10, payload: log[&0][10].1.clone() };
        assert_eq!(tokio::time::timeout(TIMEOUT, client.next()).await.expect("in time"), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_v1_client_resumes_by_threads_and_meets_each_record_once() {
    let stack = Stack::start(Shape { partitions: 2, gateway: 2, ..Shape::default() }).await;
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 73, 1);
    let threads = ["a", "b", "c:d"];
    for sequence in 1..=60 {
        for thread in threads {
            feed.send_payload(thread, &numbered("acme", thread, sequence)).await;
        }
    }
    feed.log().await;
    let mut all = V1Watcher::default();
    until(&mut all, &gateways(&stack), |watcher| watcher.records() == 180).await;
    let mut last = [0_usize; 3];
    for (connection, stop_at) in [10, 25, 180].into_iter().enumerate() {
        let address = stack.gateway[connection % 2].address();
        let mut client = V1Client::connect(&address, &[]).await.expect("a session");
        let named: serde_json::Map<_, _> = threads
            .iter()
            .zip(last)
            .map(|(thread, last)| ((*thread).to_owned(), json!(last.to_string())))
            .collect();
        client.resume(&json!({ "lastSequencesByThread": named })).await;
        for _ in 0..stop_at {
            let heard = tokio::time::timeout(TIMEOUT, client.next()).await.expect("in time");
            match heard {
                Heard::Record { payload, .. } => {
                    let next = |at: &usize| payload == numbered("acme", threads[*at], last[*at] as u64 + 1);
                    let thread = (0..3).find(next).expect("the next record of one of the threads");
                    last[thread] += 1;
                }
                Heard::Text(text) => {
                    assert_eq!((&text["type"], &text["mode"]), (&json!("replay_complete"), &json!("thread")));
                    assert_eq!(text.as_object().map(serde_json::Map::len), Some(3), "{text}");
                    break;
                }
                Heard::Closed(code) => panic!("closed with {code:?}"),
            }
            if last == [60; 3] && connection < 2 {
                break;
            }
        }
        if connection == 2 {
            assert_eq!(last, [60; 3]);
            feed.send_payload("b", &numbered("acme", "b", 61)).await;
            let heard = tokio::time::timeout(TIMEOUT, client.next()).await.expect("in time");
            let live = numbered("acme", "b", 61);
            assert!(matches!(&heard, Heard::Record { payload, .. } if *payload == live), "{heard:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_v1_client_hears_what_it_lost_and_that_its_topic_is_another() {
    let settings = vec![(Kind::Replay, "REPLAY_RETENTION_RECORDS", "200".to_owned())];
    let stack = Stack::start(Shape { partitions: 1, settings, ..Shape::default() }).await;
    let gateways = gateways(&stack);
    let mut watcher = V1Watcher::default();
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 74, 5);
    feed.send(50).await;
    until(&mut watcher, &gateways, |watcher| watcher.records() == 50).await;
    feed.send(3_000).await;
    let log = feed.log().await;
    drop(feed);
    stack.gateway[0].restart(Stop::Terminate).await; // what memory had is gone too
    until(&mut watcher, &gateways, |watcher| watcher.received[&0].last() == log[&0].last()).await;
    let ([stale], [gap]) = (&watcher.of("cursor_stale")[..], &watcher.of("gap")[..]) else {
        panic!("{:?}", watcher.texts)
    };
    let oldest = watcher.received[&0][50].0;
    assert_eq!((&stale["requested"], &stale["oldest"]), (&json!("49"), &json!(oldest.to_string())));
    assert_eq!((&gap["count"], &gap["partition"]), (&json!(oldest - 50), &json!(0)));
    assert!(watcher.received[&0][50..] == log[&0][oldest as usize..], "the rest is whole");

    // While the client is away the topic is made anew, and shorter.
    stack.kafka.delete_topic(&stack.topic).await;
    stack.kafka.create_topic(&stack.topic, 1, &[]).await;
    let mut feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 75, 5);
    feed.send(20).await;
    let log = feed.log().await;
    let mut client = V1Client::connect(&gateways[0], &[]).await.expect("a session");
    client.resume(&watcher.cursors()).await;
    let hearing = async {
        let stale = client.next().await;
        assert!(matches!(&stale, Heard::Text(stale) if stale["type"] == "cursor_stale"), "{stale:?}");
        for (offset, payload) in &log[&0] {
            let expected = Heard::Record { partition: 0, offset: *offset, payload: payload.clone() };
            assert_eq!(client.next().await, expected);
        }
        assert_eq!(client.next_text().await["type"], "replay_complete");
    };
    tokio::time::timeout(TIMEOUT, hearing).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_v1_client_is_refused_by_name_and_a_drain_closes_it_without_a_code() {
    let settings = vec![(Kind::Gateway, "GATEWAY_DRAIN_WINDOW", "1s".to_owned())];
    let stack = Stack::start(Shape { partitions: 1, settings, ..Shape::default() }).await;
    let address = stack.gateway[0].address();
    let entries = |count: usize| -> Value { (0..count).map(|at| (at.to_string(), json!("0"))).collect() };
    for (fields, code) in [
        (json!({ "lastOffsetsByPartition": entries(1_025) }), "RESUME_TOO_MANY_PARTITIONS"),
        (json!({ "lastSequencesByThread": entries(10_001) }), "RESUME_TOO_MANY_THREADS"),
        (json!({ "threadId": "t", "lastSequence": (1_u64 << 53) + 1 }), "RESUME_LOSSY_NUMBER"),
        (json!({ "note": "x".repeat(1 << 20) }), "CONTROL_FRAME_TOO_LARGE"),
    ] {
        let mut client = V1Client::connect(&address, &[]).await.expect("a session");
        client.resume(&fields).await;
        assert_eq!(client.next_text().await["code"], code);
        assert_eq!(client.next().await, Heard::Closed(None), "{code}");
    }
    let mut client = V1Client::connect(&address, &[]).await.expect("a session");
    client.say("no JSON").await;
    client.resume(&json!({ "lastSequencesByThread": entries(100) })).await;
    assert_eq!(client.next_text().await["mode"], "thread");
    stack.gateway[0].terminate();
    let heard = tokio::time::timeout(TIMEOUT, client.next()).await.expect("in time");
    assert_eq!(heard, Heard::Closed(None));

    let unknown = [("sec-websocket-protocol", "dashstream.v9")];
    stack.gateway[0].restart(Stop::Kill).await;
    assert_eq!(V1Client::connect(&stack.gateway[0].address(), &unknown).await.err(), Some(400));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_v1_client_brings_its_token_with_the_request_and_sees_its_own_tenants() {
    let keys = Keys::new("one");
    let server = Server::start(&keys).await;
    let settings = [
        ("GATEWAY_AUTH", "jwks".to_owned()),
        ("GATEWAY_JWKS_URL", server.url.clone()),
        ("GATEWAY_JWT_ISSUER", issuer::ISSUER.to_owned()),
        ("GATEWAY_JWT_AUDIENCE", issuer::AUDIENCE.to_owned()),
    ];
    let settings = settings.map(|(name, value)| (Kind::Gateway, name, value)).to_vec();
    let stack = Stack::start(Shape { partitions: 1, settings, ..Shape::default() }).await;
    let address = stack.gateway[0].address();
    assert_eq!(
        V1Client::connect(&address, &[]).await.err(),
        Some(401),
        "there is no hello that could bring it"
    );
    assert_eq!(V1Client::connect(&address, &[("authorization", "Bearer x")]).await.err(), Some(401));

    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 76, 1);
    for sequence in 1..=5 {
        feed.send_payload("shared", &numbered("a", "shared", 2 * sequence)).await;
        feed.send_payload("shared", &numbered("b", "shared", 2 * sequence + 1)).await;
    }
    feed.log().await;
    let bearer = format!("Bearer {}", keys.token(&json!({ "tenants": ["a"] })));
    for fields in
        [json!({ "lastOffsetsByPartition": {} }), json!({ "threadId": "shared", "lastSequence": "0" })]
    {
        let mut client = V1Client::connect(&address, &[("authorization", &bearer)]).await.expect("a session");
        client.resume(&fields).await;
        for sequence in 1..=5 {
            let expected = numbered("a", "shared", 2 * sequence);
            let payload = tokio::time::timeout(TIMEOUT, client.next_record()).await.expect("in time");
            assert!(payload == expected, "not a's record {sequence}");
        }
    }
}

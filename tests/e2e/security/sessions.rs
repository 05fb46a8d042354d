//! What reaches a tenant's session, whichever way it asks.
use super::{Asker, CANARY, Socket, TIMEOUT, event, guarded, hello, send, upgrade};
use dashstream_core::chain::Chain;
use dashstream_proto::{
    gateway::v1::{DeliveryMode, ListViewersRequest},
    log::v1::Cursor,
    session::v1::{
        Access, ErrorCode, Filter, ServerFrame, StartPolicy, Subscribe, Welcome, client_frame::Frame as Ours,
        server_frame::Frame,
    },
};
use dashstream_tests::{Feed, eventually};
use futures_util::StreamExt;
use prost::Message as _;
use serde_json::json;
use std::collections::BTreeSet;
use tokio_tungstenite::tungstenite::Message;

/// Records of each tenant in each partition, each round.
const ROUND: usize = 20;

/// A session that proves its chain and keeps all that it was sent.
struct Watch {
    socket: Socket,
    chain: Chain,
    welcome: Welcome,
    /// Every frame, as it came.
    bytes: Vec<u8>,
    /// Of each record.
    tenants: Vec<String>,
    caught_up: BTreeSet<i32>,
    /// Whether frames came from replay, from memory or from both.
    from_replay: BTreeSet<bool>,
    refusals: Vec<ErrorCode>,
}

impl Watch {
    /// A session whose token is in its first frame.
    async fn open(address: &str, token: &str, cursors: &[Cursor]) -> Self {
        let mut socket = upgrade(address, &[]).await.expect("the hello may bring a token");
        send(&mut socket, hello(token)).await;
        let mut chain = Chain::resume(cursors).expect("cursors");
        chain.expect_filtered(true);
        Self {
            socket,
            chain,
            welcome: Welcome::default(),
            bytes: Vec::new(),
            tenants: Vec::new(),
            caught_up: BTreeSet::new(),
            from_replay: BTreeSet::new(),
            refusals: Vec::new(),
        }
    }

    async fn subscribe(&mut self, start: StartPolicy, filter: Filter) {
        let start_time_ms = i64::from(start == StartPolicy::Time);
        let cursors = self.chain.cursors();
        let filter = Some(filter);
        let subscribe = Subscribe { request_id: 1, cursors, start: start.into(), filter, start_time_ms };
        send(&mut self.socket, Ours::Subscribe(subscribe)).await;
    }

    async fn until(&mut self, what: &str, enough: impl Fn(&Self) -> bool) {
        let watching = async {
            while !enough(self) {
                match self.socket.next().await {
                    Some(Ok(Message::Binary(bytes))) => {
                        self.bytes.extend_from_slice(&bytes);
                        self.take(ServerFrame::decode(bytes).expect("a frame").frame.expect("a member"));
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    other => panic!("{what}: {other:?}"),
                }
            }
        };
        let watched = tokio::time::timeout(TIMEOUT, watching).await;
        let (count, cursors) = (self.tenants.len(), self.chain.cursors());
        assert!(watched.is_ok(), "{what}: {count} records, {cursors:?}, {:?}", self.refusals);
    }

    fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Welcome(welcome) => self.welcome = welcome,
            Frame::Records(frame) => {
                let records = self.chain.records(&frame).expect("the chain holds");
                self.tenants.extend(records.into_iter().map(|record| record.tenant_id));
                self.from_replay.insert(frame.from_replay);
            }
            Frame::State(state) => self.tenants.extend(state.record.map(|record| record.tenant_id)),
            Frame::Skipped(frame) => self.chain.skipped(&frame).expect("the chain holds"),
            Frame::CaughtUp(frame) => {
                self.chain.caught_up(&frame).expect("the chain holds");
                self.caught_up.extend(frame.mark.map(|mark| mark.partition));
            }
            Frame::Error(error) if !error.fatal => self.refusals.push(error.code()),
            Frame::Partitions(_) | Frame::Notice(_) | Frame::Pong(_) => {}
            Frame::Gap(_) | Frame::Stale(_) | Frame::GoingAway(_) | Frame::Error(_) => panic!("{frame:?}"),
        }
    }

    async fn until_at(&mut self, what: &str, cursors: &[Cursor]) {
        self.until(what, |watch| watch.chain.cursors() == cursors).await;
    }

    fn saw_canary(&self) -> bool {
        self.bytes.windows(CANARY.len()).any(|bytes| bytes == CANARY.as_bytes())
    }

    fn assert_only_of_a(&self, why: &str, count: usize) {
        assert!(self.tenants.iter().all(|tenant| tenant == "a"), "{why}: {:?}", self.tenants);
        assert_eq!(self.tenants.len(), count, "{why}");
        assert!(!self.saw_canary(), "{why}");
    }
}

/// A round: in one partition a thread of each tenant, in the other one whose name both use. Each ends with b's.
async fn produce(feed: &Feed, rounds: std::ops::Range<usize>) {
    for sequence in (rounds.start * ROUND..rounds.end * ROUND).map(|sequence| sequence as u64 + 1) {
        feed.send_to(0, Some(&event("a", "a-1", sequence, "graph-of-a"))).await;
        feed.send_to(0, Some(&event("b", CANARY, sequence, CANARY))).await;
        feed.send_to(1, Some(&event("a", "shared", sequence * 2, "graph-of-a"))).await;
        feed.send_to(1, Some(&event("b", "shared", sequence * 2 + 1, CANARY))).await;
    }
}

fn threads(id: &str) -> Filter {
    Filter { thread_ids: vec![id.into()], ..Filter::default() }
}

fn graphs(name: &str) -> Filter {
    Filter { graph_names: vec![name.into()], ..Filter::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_records_never_reach_another_tenants_session() {
    let (stack, keys, _server) = guarded().await;
    let address = stack.gateway[0].address();
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    let (of_a, of_b) = (keys.token(&json!({})), keys.token(&json!({ "tenants": "b" })));
    produce(&feed, 0..1).await;
    let mut b = Watch::open(&address, &of_b, &[]).await;
    b.subscribe(StartPolicy::Earliest, Filter::default()).await;
    b.until("b's own", |b| b.tenants.len() == 2 * ROUND).await;
    assert!(b.saw_canary() && b.tenants.iter().all(|tenant| tenant == "b"));
    let first_end = b.chain.cursors();

    for (start, count) in [(StartPolicy::Earliest, 2 * ROUND), (StartPolicy::Time, 2 * ROUND)] {
        let mut a = Watch::open(&address, &of_a, &[]).await;
        a.subscribe(start, Filter::default()).await;
        a.until_at(start.as_str_name(), &first_end).await;
        a.assert_only_of_a(start.as_str_name(), count);
        assert!(a.from_replay.contains(&true), "{start:?}");
        assert_eq!(a.welcome.access, Some(Access { all_tenants: false, tenant_ids: vec!["a".into()] }));
    }
    let mut active = Watch::open(&address, &of_a, &[]).await;
    active.subscribe(StartPolicy::Active, Filter::default()).await;
    active.until_at("at the running threads", &first_end).await;
    assert!(active.tenants.len() >= ROUND, "a-1 runs: {}", active.tenants.len());
    active.assert_only_of_a("at the running threads", active.tenants.len());

    let mut live = Watch::open(&address, &of_a, &[]).await;
    live.subscribe(StartPolicy::Latest, Filter::default()).await;
    live.until("at the end", |live| live.caught_up.len() == 2).await;
    produce(&feed, 1..2).await;
    b.until("b's own", |b| b.tenants.len() == 4 * ROUND).await;
    let end = b.chain.cursors();
    live.until_at("live", &end).await;
    live.assert_only_of_a("live", 2 * ROUND);
    assert!(live.from_replay.contains(&false));

    let before =
        |offset| end.iter().map(|cursor| Cursor { offset: Some(offset), ..*cursor }).collect::<Vec<_>>();
    for (why, cursors, count) in [
        ("behind the first round", first_end, 2 * ROUND),
        ("in front of a record of a", before(9), 4 * ROUND - 10),
        ("in front of a record of b", before(10), 4 * ROUND - 12),
        ("at the end", end.clone(), 0),
    ] {
        let mut resumed = Watch::open(&address, &of_a, &cursors).await;
        resumed.subscribe(StartPolicy::Earliest, Filter::default()).await;
        let caught_up = |watch: &Watch| watch.caught_up.len() == 2 && watch.chain.cursors() == end;
        resumed.until(why, caught_up).await;
        resumed.assert_only_of_a(why, count);
    }
    is_seen(&Asker::new(&stack, Some(&of_a)), &live).await;
}

/// The session is listed, with its cursors, as one that is served from memory.
async fn is_seen(asker: &Asker, watch: &Watch) {
    eventually("the session is listed", TIMEOUT, async || {
        let request = asker.with(ListViewersRequest::default());
        let answer = asker.client.clone().list_viewers(request).await.map_err(|status| status.to_string())?;
        let viewers = answer.into_inner().viewers;
        let ours = viewers.iter().find(|viewer| viewer.session_id == watch.welcome.session_id);
        let is_right = ours.is_some_and(|viewer| {
            viewer.delivered == watch.chain.cursors() && viewer.mode() == DeliveryMode::Live
        });
        if is_right { Ok(()) } else { Err(format!("{viewers:?}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_asks_for_another_tenant_is_refused_and_any_other_brings_nothing_of_it() {
    let (stack, keys, _server) = guarded().await;
    let address = stack.gateway[0].address();
    let feed = Feed::new(&stack.kafka.client_config(), &stack.topic, 1, 1);
    produce(&feed, 0..1).await;
    let both = keys.token(&json!({ "tenants": ["a", "b"] }));
    let mut control = Watch::open(&address, &both, &[]).await;
    control.subscribe(StartPolicy::Earliest, graphs(CANARY)).await;
    control.until("both read b", |control| control.tenants.len() == 2 * ROUND).await;
    assert!(control.saw_canary());
    let end = control.chain.cursors();

    let of_a = keys.token(&json!({}));
    let mut a = Watch::open(&address, &of_a, &[]).await;
    let named: [&[&str]; 3] = [&["b"], &["a", "b"], &[""]];
    for tenants in named {
        let tenant_ids = tenants.iter().map(|tenant| (*tenant).to_owned()).collect();
        a.subscribe(StartPolicy::Earliest, Filter { tenant_ids, ..Filter::default() }).await;
    }
    a.until("refused", |a| a.refusals.len() == named.len()).await;
    assert_eq!(a.refusals, [ErrorCode::PermissionDenied; 3]);
    a.assert_only_of_a("refused", 0);
    a.subscribe(StartPolicy::Earliest, Filter { tenant_ids: vec!["a".into()], ..Filter::default() }).await;
    a.until_at("its own tenant", &end).await;
    a.assert_only_of_a("its own tenant", 2 * ROUND);

    for (why, filter, count) in [
        ("b's thread", threads(CANARY), 0),
        ("a thread of both", threads("shared"), ROUND),
        ("b's graph", graphs(CANARY), 0),
        ("its own graph", graphs("graph-of-a"), 2 * ROUND),
    ] {
        for start in [StartPolicy::Earliest, StartPolicy::Active] {
            let mut a = Watch::open(&address, &of_a, &[]).await;
            a.subscribe(start, filter.clone()).await;
            a.until_at(why, &end).await;
            let count = if start == StartPolicy::Active { a.tenants.len() } else { count };
            a.assert_only_of_a(why, count);
        }
    }
}

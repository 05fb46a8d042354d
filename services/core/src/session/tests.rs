#![expect(clippy::wildcard_enum_match_arm, reason = "any other frame fails the test")]
use super::*;
use crate::{
    batch::Span,
    batch::tests::{batch, offset},
    chain::Chain,
    ring::{Read, Ring},
    slot::Stamp,
};
use dashstream_proto::session::v1::{
    Limits as WireLimits, NoticeCode, Ping, ServerFrame, StartPolicy, Subscribe,
};
use proptest::prelude::*;

mod filtered;

const EPOCH: Epoch = Epoch::new(3);

fn terms() -> Terms {
    Terms {
        stream: "runs".into(),
        server_version: "test".into(),
        limits: Limits {
            record_bytes_max: 1 << 20,
            frame_bytes_max: 1 << 20,
            client_frame_bytes_max: 4_096,
            in_flight_bytes_max: 1 << 20,
        },
        heartbeat: Duration::from_secs(10),
        hello_timeout: Duration::from_secs(5),
    }
}

fn partition(value: i32) -> Partition {
    Partition::new(value).unwrap()
}

fn known() -> [Known; 1] {
    [Known { partition: partition(0), epoch: Some(EPOCH), durable: None, source_lag: None }]
}

fn message(frame: client_frame::Frame) -> Vec<u8> {
    ClientFrame { frame: Some(frame) }.encode_to_vec()
}

fn hello() -> Vec<u8> {
    message(client_frame::Frame::Hello(Hello::default()))
}

fn subscribe(cursors: Vec<Cursor>, start: StartPolicy) -> Vec<u8> {
    message(client_frame::Frame::Subscribe(Subscribe {
        request_id: 9,
        cursors,
        start: start.into(),
        ..Default::default()
    }))
}

fn cursor(at: Option<u64>) -> Cursor {
    Cursor { epoch: EPOCH.get(), partition: 0, offset: at }
}

fn subscribed(cursors: Vec<Cursor>, start: StartPolicy) -> Session {
    let mut session = Session::new("s".into(), terms(), Tenants::All);
    session.on_message(&hello(), &known());
    let out = session.on_message(&subscribe(cursors, start), &known());
    assert!(matches!(frames(&out)[..], [Frame::Partitions(_)]), "{out:?}");
    session
}

fn frames(out: &[Output]) -> Vec<Frame> {
    out.iter()
        .filter_map(|output| match output {
            Output::Send(bytes) => ServerFrame::decode(bytes.clone()).unwrap().frame,
            Output::Text(_) | Output::Close(_) => None,
        })
        .collect()
}

fn closed(out: &[Output]) -> Option<CloseReason> {
    out.iter().find_map(|output| match output {
        Output::Close(reason) => Some(*reason),
        Output::Send(_) | Output::Text(_) => None,
    })
}

/// What comes out when `found` is what the session next wants.
fn find(session: &mut Session, found: Found) -> Vec<Output> {
    let want = session.next_want(&BTreeSet::new()).expect("the session wants something");
    session.on_found(want, found, &Names::default())
}

fn slots(batches: impl IntoIterator<Item = Batch>) -> Vec<Slot> {
    batches.into_iter().map(|batch| Slot::new(batch, Stamp::default())).collect()
}

fn page(batches: impl IntoIterator<Item = Batch>) -> Found {
    Found::Page { epoch: EPOCH, slots: slots(batches), at_end: false, mark: None }
}

fn memory(slots: Vec<Slot>) -> Found {
    Found::Slots { slots, passed: Passed::default() }
}

fn at_end(mark: Link, source_lag: Option<u64>) -> Found {
    Found::AtEnd { epoch: EPOCH, mark, source_lag, passed: Passed::default() }
}

fn ring_of(batches: &[Batch]) -> Ring {
    let mut ring = Ring::new(batches[0].link(), 1 << 20);
    for batch in batches {
        assert!(ring.push(batch.clone(), Stamp::default()));
    }
    ring
}

#[test]
fn a_client_out_of_turn_is_refused_with_the_reason() {
    let bad_limits = WireLimits { client_frame_bytes_max: 10, ..Default::default() };
    let long = Hello { client: "x".repeat(CLIENT_NAME_BYTES_MAX + 1), ..Default::default() };
    for (why, first, then, code, reason) in [
        (
            "a subscribe before the hello",
            None,
            subscribe(vec![], StartPolicy::Latest),
            ErrorCode::UnexpectedFrame,
            CloseReason::ProtocolError,
        ),
        ("a second hello", Some(hello()), hello(), ErrorCode::UnexpectedFrame, CloseReason::ProtocolError),
        ("garbage", None, vec![0xff; 9], ErrorCode::MalformedFrame, CloseReason::ProtocolError),
        ("an empty frame", None, vec![], ErrorCode::MalformedFrame, CloseReason::ProtocolError),
        ("a huge frame", None, vec![0; 4_097], ErrorCode::FrameTooLarge, CloseReason::OverLimit),
        (
            "a name that is too long",
            None,
            message(client_frame::Frame::Hello(long)),
            ErrorCode::InvalidArgument,
            CloseReason::ProtocolError,
        ),
        (
            "more than the client itself allows",
            Some(message(client_frame::Frame::Hello(Hello {
                limits: Some(bad_limits),
                ..Default::default()
            }))),
            subscribe(vec![cursor(Some(u64::MAX >> 2))], StartPolicy::Latest),
            ErrorCode::FrameTooLarge,
            CloseReason::OverLimit,
        ),
    ] {
        let mut session = Session::new("s".into(), terms(), Tenants::All);
        if let Some(first) = first {
            assert_eq!(closed(&session.on_message(&first, &[])), None, "{why}");
        }
        let out = session.on_message(&then, &[]);
        assert_eq!(closed(&out), Some(reason), "{why}");
        let Frame::Error(error) = &frames(&out)[0] else { panic!("{why}: {out:?}") };
        assert!(error.code == i32::from(code) && error.fatal, "{why}: {error:?}");
    }
}

#[test]
fn a_subscribe_that_makes_no_sense_is_refused_whole_and_the_session_goes_on() {
    let twice = vec![cursor(Some(1)), cursor(Some(2))];
    let nowhere = vec![Cursor { epoch: 1, partition: -1, offset: None }];
    for (why, frame, expected) in [
        (
            "no start",
            subscribe(vec![], StartPolicy::Unspecified),
            "subscribe.start is 0: expected EARLIEST, LATEST, ACTIVE or TIME",
        ),
        (
            "a partition twice",
            subscribe(twice, StartPolicy::Latest),
            "subscribe.cursors names partition 0 twice",
        ),
        (
            "no partition",
            subscribe(nowhere, StartPolicy::Latest),
            "subscribe.cursors has: partition -1 is out of range: expected 0 to 2147483647",
        ),
        (
            "an offset beyond Kafka's",
            subscribe(vec![cursor(Some(u64::MAX))], StartPolicy::Latest),
            "subscribe.cursors has: offset 18446744073709551615 is out of range: expected 0 to 9223372036854775807",
        ),
    ] {
        let mut session = Session::new("s".into(), terms(), Tenants::All);
        session.on_message(&hello(), &[]);
        let out = session.on_message(&frame, &known());
        let [Frame::Error(error)] = &frames(&out)[..] else { panic!("{why}: {out:?}") };
        assert_eq!((error.message.as_str(), error.fatal, error.request_id), (expected, false, 9), "{why}");
        assert_eq!(session.next_want(&BTreeSet::new()), None, "{why}");
        let ping = session.on_message(&message(client_frame::Frame::Ping(Ping { nonce: 4 })), &[]);
        assert!(matches!(frames(&ping)[..], [Frame::Pong(_)]), "{why}");
    }
}

#[test]
fn a_client_that_says_nothing_is_idle() {
    let mut session = Session::new("s".into(), terms(), Tenants::All);
    assert!(session.on_tick(Duration::from_millis(4_999)).is_empty());
    assert_eq!(closed(&session.on_tick(Duration::from_secs(5))), Some(CloseReason::Idle));
    let mut session = subscribed(vec![], StartPolicy::Latest);
    assert!(session.on_tick(Duration::from_secs(500)).is_empty());
}

#[test]
fn a_batch_that_the_client_has_none_of_goes_out_in_the_shared_frame() {
    let mut session = subscribed(vec![cursor(Some(4))], StartPolicy::Latest);
    let ring = ring_of(&[batch(EPOCH.get(), Some(4), &[5, 6])]);
    let Read::Slots(slots, _) = ring.read(Some(offset(4)), 1) else { panic!() };
    let shared = slots[0].frame().clone();
    let out = find(&mut session, memory(slots));
    let [Output::Send(sent)] = &out[..] else { panic!("{out:?}") };
    assert_eq!(sent.as_ptr(), shared.as_ptr(), "not encoded again");
}

#[test]
fn a_record_over_the_clients_limit_becomes_a_notice_and_the_chain_goes_on() {
    let mut session = Session::new("s".into(), terms(), Tenants::All);
    let limits = WireLimits { record_bytes_max: 12, ..Default::default() };
    session.on_message(
        &message(client_frame::Frame::Hello(Hello { limits: Some(limits), ..Default::default() })),
        &[],
    );
    session.on_message(&subscribe(vec![cursor(None)], StartPolicy::Latest), &known());
    // payloads are "payload N": 9 bytes, 13 for N = 99999
    let found = page([batch(EPOCH.get(), None, &[0, 1, 99_999, 100_000, 1_000_000])]);
    let mut chain = Chain::resume(&[cursor(None)]).unwrap();
    let mut seen = Vec::new();
    for frame in frames(&find(&mut session, found)) {
        match frame {
            Frame::Records(frame) => {
                seen.extend(chain.records(&frame).unwrap().iter().map(|r| r.offset as i64))
            }
            Frame::Notice(notice) => {
                chain.withheld(&notice).unwrap();
                seen.push(-(notice.bytes as i64));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, [0, 1, -13, -14, -15]);
    assert_eq!(chain.cursors()[0].offset, Some(1_000_000));
}

#[test]
fn a_stale_cursor_is_said_once_and_stops_that_partition_only() {
    let mut session = subscribed(vec![cursor(Some(4))], StartPolicy::Latest);
    let found = Found::Stale { epoch: Epoch::new(8), earliest: None, mark: Some(offset(2)) };
    let out = find(&mut session, found);
    let [Frame::Stale(stale)] = &frames(&out)[..] else { panic!("{out:?}") };
    assert_eq!((stale.cursor.unwrap().offset, stale.epoch, stale.last_offset), (Some(4), 8, Some(2)));
    session.on_advanced(partition(0));
    session.on_tick(Duration::from_secs(1));
    assert_eq!(session.next_want(&BTreeSet::new()), None);
    let more = [known()[0], Known { partition: partition(1), ..known()[0] }];
    assert_eq!(session.on_partitions(&more).len(), 1);
    assert_eq!(session.next_want(&BTreeSet::new()).unwrap().partition, partition(1));
}

#[test]
fn partitions_take_turns() {
    let mut session = Session::new("s".into(), terms(), Tenants::All);
    let known: Vec<_> = (0..3).map(|p| Known { partition: partition(p), ..known()[0] }).collect();
    session.on_message(&hello(), &known);
    session.on_message(&subscribe(vec![], StartPolicy::Earliest), &known);
    let turns: Vec<_> =
        (0..6).map(|_| session.next_want(&BTreeSet::new()).unwrap().partition.get()).collect();
    assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn an_input_that_breaks_the_chain_ends_the_session_rather_than_reach_the_client() {
    let mut session = subscribed(vec![cursor(Some(4))], StartPolicy::Latest);
    let found = page([batch(EPOCH.get() + 1, Some(4), &[5])]);
    assert_eq!(closed(&find(&mut session, found)), Some(CloseReason::Error));
}

proptest! {
    /// A log in batches of any size, found in memory or in replay, cut anywhere by either, cursors anywhere:
    /// the client's own proof holds at each frame and it gets exactly what follows its cursor.
    #[test]
    fn a_client_receives_exactly_what_follows_its_cursor(
        sizes in prop::collection::vec(1_u64..6, 1..20), start in prop::option::of(0_u64..40),
        choices in prop::collection::vec((any::<bool>(), 1_usize..4, 0_u64..3), 1..200),
    ) {
        let mut offsets = Vec::new();
        let mut batches = Vec::new();
        let mut link = None;
        for (i, size) in sizes.iter().enumerate() {
            let first = offsets.last().map_or(0, |last| last + 1 + (i as u64 % 3));
            let these: Vec<_> = (first..first + size).collect();
            batches.push(batch(EPOCH.get(), link, &these));
            link = these.last().copied();
            offsets.extend(these);
        }
        let start = start.filter(|start| Some(*start) <= link);
        let mut session = subscribed(vec![cursor(start)], StartPolicy::Latest);
        let mut chain = Chain::resume(&[cursor(start)]).unwrap();
        let (mut got, mut caught_up) = (Vec::new(), false);
        for (in_memory, many, back) in choices.into_iter().chain(std::iter::repeat_n((true, 3, 0), 40)) {
            let Some(want) = session.next_want(&BTreeSet::new()) else { session.on_advanced(partition(0)); continue };
            let From::After { at, .. } = want.from else { panic!("{want:?}") };
            // either source may begin with batches that the client has
            let from = batches.partition_point(|b| Some(b.last()) <= at).saturating_sub(back as usize);
            let some: Vec<_> = batches[from..].iter().take(many).cloned().collect();
            let is_end = at >= link.map(offset);
            let found = match (in_memory, is_end) {
                (true, true) => at_end(at, None),
                (true, false) => memory(slots(some)),
                (false, true) => Found::Page { epoch: EPOCH, slots: vec![], at_end: true, mark: at },
                (false, false) => page(some),
            };
            for frame in frames(&session.on_found(want, found, &Names::default())) {
                match frame {
                    Frame::Records(frame) => got.extend(chain.records(&frame).unwrap().iter().map(|r| r.offset)),
                    Frame::CaughtUp(_) => { prop_assert!(!caught_up && is_end); caught_up = true }
                    other => panic!("{other:?}"),
                }
            }
        }
        let expected: Vec<_> = offsets.into_iter().filter(|at| Some(*at) > start).collect();
        prop_assert_eq!(got, expected);
        prop_assert!(caught_up);
    }
}

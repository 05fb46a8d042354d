use super::*;
use crate::{
    batch::{
        self, Packer,
        tests::{batch, envelope, offset},
    },
    slot::{Slot, Stamp},
};
use dashstream_proto::log::v1::{Batch, Gap, GapReason, Record};
use proptest::prelude::*;
use serde_json::{Value, json};

const EPOCH: u64 = 3;

fn partition(value: i32) -> Partition {
    Partition::new(value).unwrap()
}

fn known(durable: Option<u64>, source_lag: Option<u64>) -> [Known; 1] {
    let durable = durable.map(offset);
    [Known { partition: partition(0), epoch: Some(Epoch::new(EPOCH)), durable, source_lag }]
}

fn session(durable: Option<u64>) -> Session {
    Session::new(Tenants::All, &known(durable, Some(0)))
}

/// What was put out, as a client sees it: texts as JSON, and each payload after its cursor.
fn seen(outputs: &[Output]) -> Vec<Value> {
    let one = |output: &Output| match output {
        Output::Text(text) => serde_json::from_str(text).unwrap(),
        Output::Send(payload) => json!(String::from_utf8_lossy(payload)),
        Output::Close(reason) => json!({ "close": reason.label() }),
    };
    outputs.iter().map(one).collect()
}

fn pair(at: u64) -> [Value; 2] {
    let cursor = json!({ "type": "cursor", "partition": 0, "offset": at.to_string() });
    [cursor, json!(format!("payload {at}"))]
}

fn pairs(of: &[u64]) -> Vec<Value> {
    of.iter().flat_map(|at| pair(*at)).collect()
}

fn find(session: &mut Session, found: Found) -> Vec<Value> {
    let want = session.next_want(&BTreeSet::new()).expect("the session wants something");
    seen(&session.on_found(want, found))
}

fn page(batches: Vec<Batch>, at_end: bool, mark: u64) -> Found {
    let slots = batches.into_iter().map(|batch| Slot::new(batch, Stamp::default())).collect();
    Found::Page { epoch: Epoch::new(EPOCH), slots, at_end, mark: Some(offset(mark)) }
}

/// What replay says of a place in no epoch.
fn log(earliest: u64, mark: u64) -> Found {
    let epoch = Epoch::new(EPOCH);
    Found::Stale { epoch, earliest: Some(offset(earliest)), mark: Some(offset(mark)) }
}

fn gap(first: u64, last: u64, reason: GapReason) -> Gap {
    Gap { epoch: EPOCH, partition: 0, first_offset: first, last_offset: last, reason: reason.into() }
}

fn resume(fields: &Value) -> String {
    let mut message = json!({ "type": "resume" });
    message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    message.to_string()
}

fn resumed(fields: &Value, durable: u64) -> Session {
    let mut session = session(Some(durable));
    assert_eq!(session.on_text(&resume(fields), &known(Some(durable), Some(0))), []);
    session
}

fn complete(mode: &str, total: u64, offsets: &Value) -> Value {
    json!({ "type": "replay_complete", "totalReplayed": total, "lastOffsetsByPartition": offsets,
            "capped": false, "mode": mode })
}

#[test]
fn nothing_comes_before_the_client_had_its_time_to_resume_and_then_all_since_it_came() {
    let mut session = session(Some(5));
    assert_eq!(session.on_tick(Duration::ZERO), []);
    assert_eq!(session.next_want(&BTreeSet::new()), None, "it may resume yet");
    session.on_tick(GRACE);
    let want = session.next_want(&BTreeSet::new()).unwrap();
    assert_eq!(want.from, From::After { epoch: Epoch::new(EPOCH), at: Some(offset(5)) });
    let found = page(vec![batch(EPOCH, Some(5), &[6, 8])], true, 8);
    assert_eq!(seen(&session.on_found(want, found)), pairs(&[6, 8]));
}

#[test]
fn a_resume_is_exactly_what_follows_the_cursor_and_complete_at_the_mark() {
    let mut session = resumed(&json!({ "lastOffsetsByPartition": { "0": "4" }, "from": "cursor" }), 9);
    assert_eq!(find(&mut session, log(0, 7)), Vec::<Value>::new());
    assert_eq!(session.delivery(), Some(Delivery::Replay));
    // It lies within a batch, and the log grew since.
    assert_eq!(find(&mut session, page(vec![batch(EPOCH, Some(2), &[3, 4, 5])], false, 9)), pairs(&[5]));
    let mut expected = pairs(&[7, 9]);
    expected.push(complete("cursor", 2, &json!({ "0": "7" })));
    assert_eq!(find(&mut session, page(vec![batch(EPOCH, Some(5), &[7, 9])], true, 9)), expected);
    assert_eq!(find(&mut session, page(vec![batch(EPOCH, Some(9), &[10])], true, 10)), pairs(&[10]));
    assert_eq!(session.cursors()[0].offset, Some(10));
}

#[test]
fn a_cursor_at_the_end_has_nothing_to_be_replayed() {
    let mut session = resumed(&json!({ "lastOffsetsByPartition": { "0": "7" } }), 7);
    assert_eq!(find(&mut session, log(0, 7)), [complete("cursor", 0, &json!({}))]);
}

#[test]
fn the_earliest_record_follows_no_gap_and_the_latest_is_where_live_begins() {
    let mut session = resumed(&json!({ "lastOffsetsByPartition": {}, "from": "earliest" }), 6);
    assert_eq!(find(&mut session, log(5, 6)), Vec::<Value>::new());
    let mut expected = pairs(&[5, 6]);
    expected.push(complete("earliest", 2, &json!({ "0": "6" })));
    assert_eq!(find(&mut session, page(vec![batch(EPOCH, Some(4), &[5, 6])], true, 6)), expected);

    let mut session = resumed(&json!({ "lastOffsetsByPartition": { "0": "1" }, "from": "latest" }), 6);
    assert_eq!(find(&mut session, log(5, 6)), [complete("latest", 0, &json!({ "0": "6" }))]);
    assert_eq!(find(&mut session, page(vec![batch(EPOCH, Some(6), &[7])], true, 7)), pairs(&[7]));
}

#[test]
fn a_partition_that_the_client_does_not_name_is_read_from_its_earliest_record() {
    let mut session = resumed(&json!({ "lastOffsetsByPartition": { "3": "4" } }), 6);
    let want = session.next_want(&BTreeSet::new()).unwrap();
    assert_eq!(want.partition, partition(0));
    assert_eq!(seen(&session.on_found(want, log(5, 6))), Vec::<Value>::new());
    let want = session.next_want(&BTreeSet::new()).unwrap();
    assert_eq!(want.partition, partition(3));
    // Nobody knows of it: it holds up nobody.
    assert_eq!(seen(&session.on_found(want, Found::Seeding)), Vec::<Value>::new());
    let mut expected = pairs(&[5, 6]);
    expected.push(complete("cursor", 2, &json!({ "0": "6" })));
    assert_eq!(find(&mut session, page(vec![batch(EPOCH, Some(4), &[5, 6])], true, 6)), expected);
}

#[test]
fn a_cursor_that_retention_passed_is_stale_and_what_it_lost_is_counted_once() {
    let mut session = resumed(&json!({ "lastOffsetsByPartition": { "0": "5" } }), 101);
    find(&mut session, log(100, 101));
    let stale = json!({ "type": "cursor_stale", "partition": 0, "requested": "5", "oldest": "100",
        "message": "Cursor is stale; data may have been evicted. State may be incomplete." });
    let lost = |count: u64| {
        json!({ "type": "gap", "count": count, "partition": 0, "severity": "warning",
            "message": "Replay gap detected; some messages may be lost" })
    };
    assert_eq!(find(&mut session, Found::Gap(gap(6, 99, GapReason::Retention))), [stale, lost(94)]);
    let mut expected = pairs(&[100, 101]);
    expected.push(complete("cursor", 2, &json!({ "0": "101" })));
    assert_eq!(find(&mut session, page(vec![batch(EPOCH, Some(99), &[100, 101])], true, 101)), expected);
    // Once it is being read, a loss is a gap and no more.
    assert_eq!(find(&mut session, Found::Gap(gap(102, 103, GapReason::StoreLost))), [lost(2)]);
}

#[test]
fn what_is_no_loss_is_no_gap() {
    let mut packer = Packer::new(Epoch::new(EPOCH), partition(0), Some(offset(4)));
    assert!(packer.push(envelope(8), b"payload 8"), "offsets jump where markers lie");
    assert!(packer.push_gap(offset(9), offset(9), GapReason::Undecodable));
    assert!(packer.push_gap(offset(10), offset(10), GapReason::Skipped));
    assert!(packer.push_gap(offset(11), offset(12), GapReason::SourceRetention));
    assert!(packer.push(envelope(13), b"payload 13"));
    let mut session = resumed(&json!({ "lastOffsetsByPartition": { "0": "4" } }), 13);
    find(&mut session, log(5, 13));
    let seen = find(&mut session, page(vec![packer.finish().unwrap()], false, 13));
    let gaps: Vec<_> = seen.iter().filter(|seen| seen["type"] == "gap").collect();
    assert_eq!((gaps.len(), &gaps[0]["count"]), (1, &json!(2)));
    assert_eq!(seen.iter().filter(|seen| seen.is_string()).count(), 2);
    assert!(!seen.iter().any(|seen| seen["type"] == "cursor_stale"), "{seen:?}");
}

#[test]
fn a_cursor_ahead_of_the_log_is_waited_for_where_the_source_has_it_and_stale_where_it_has_not() {
    let fields = json!({ "lastOffsetsByPartition": { "0": "20" } });
    let mut waits = Session::new(Tenants::All, &known(Some(7), Some(20)));
    waits.on_text(&resume(&fields), &known(Some(7), Some(20)));
    let mut restarted = resumed(&fields, 7);
    for _ in 0..10 {
        assert_eq!(find(&mut waits, log(0, 7)), Vec::<Value>::new());
        (0..4).for_each(|_| drop(waits.on_tick(GRACE)));
    }
    assert_eq!(find(&mut waits, log(0, 20)), [complete("cursor", 0, &json!({}))]);

    for _ in 0..3 {
        assert_eq!(find(&mut restarted, log(0, 7)), Vec::<Value>::new(), "another gateway may be ahead");
        (0..4).for_each(|_| drop(restarted.on_tick(GRACE)));
    }
    let seen = find(&mut restarted, log(0, 7));
    assert_eq!((seen.len(), &seen[0]["type"], &seen[0]["oldest"]), (1, &json!("cursor_stale"), &json!("0")));
    let all = find(&mut restarted, page(vec![batch(EPOCH, None, &[0, 7])], true, 7));
    assert_eq!(all[..4], pairs(&[0, 7]));
    assert_eq!(all[4]["type"], "replay_complete");
}

#[test]
fn a_log_that_begins_anew_under_a_client_is_stale_and_read_from_its_beginning() {
    let mut session = resumed(&json!({ "lastOffsetsByPartition": { "0": "7" } }), 7);
    find(&mut session, log(0, 7));
    let renewed = Found::Stale { epoch: Epoch::new(4), earliest: Some(offset(0)), mark: Some(offset(1)) };
    let seen = find(&mut session, renewed);
    assert_eq!((seen.len(), &seen[0]["requested"], &seen[0]["oldest"]), (1, &json!("7"), &json!("0")));
    let slots = vec![Slot::new(batch(4, None, &[0, 1]), Stamp::default())];
    let found = Found::Page { epoch: Epoch::new(4), slots, at_end: true, mark: Some(offset(1)) };
    assert_eq!(find(&mut session, found), pairs(&[0, 1]));
}

#[test]
fn a_session_reads_its_own_tenants_and_no_others() {
    let only = |tenant: &str| Tenants::Only([tenant.to_owned()].into());
    for (tenant, expected) in [("acme", pairs(&[5, 6])), ("beta", Vec::new())] {
        let mut session = Session::new(only(tenant), &known(Some(4), Some(0)));
        session.on_tick(GRACE);
        assert_eq!(find(&mut session, page(vec![batch(EPOCH, Some(4), &[5, 6])], true, 6)), expected);
        assert_eq!(session.cursors()[0].offset, Some(6));
    }
}

#[test]
fn a_reset_is_the_clients_own() {
    let mut session = session(Some(6));
    session.on_text(&json!({ "type": "cursor_reset" }).to_string(), &known(Some(6), Some(0)));
    assert_eq!(
        find(&mut session, log(0, 6)),
        [
            json!({ "type": "cursor_reset_complete", "latestOffsetsByPartition": { "0": "6" }, "bufferCleared": true,
            "truncated": false, "totalPartitions": 1,
            "message": "This connection goes on behind the newest records; other clients are not affected." })
        ]
    );
    assert_eq!(find(&mut session, page(vec![batch(EPOCH, Some(6), &[7])], true, 7)), pairs(&[7]));

    let many: Vec<_> =
        (0..101).map(|at| Known { partition: partition(at), ..known(Some(6), None)[0] }).collect();
    let mut session = Session::new(Tenants::All, &many);
    session.on_text(&json!({ "type": "cursor_reset" }).to_string(), &many);
    let answers: Vec<_> = many.iter().flat_map(|_| find(&mut session, log(0, 6))).collect();
    let [answer] = &answers[..] else { panic!("{answers:?}") };
    let listed = answer["latestOffsetsByPartition"].as_object().unwrap().len();
    assert_eq!((listed, &answer["truncated"], &answer["totalPartitions"]), (100, &json!(true), &json!(101)));
}

#[test]
fn what_is_refused_ends_the_session_and_names_itself() {
    let mut session = session(None);
    let lossy = session.on_text(&resume(&json!({ "threadId": "t", "lastSequence": (1_u64 << 53) + 1 })), &[]);
    assert_eq!(
        seen(&lossy),
        [
            json!({ "type": "error", "code": "RESUME_LOSSY_NUMBER", "message": "lastSequence is 9007199254740993, \
                which is not exact: expected lastSequencesByThread with a decimal string for each thread" }),
            json!({ "close": "protocol_error" })
        ]
    );
    assert_eq!(seen(&session.on_text("{\"type\":\"ping\"}", &[])), [json!({ "type": "pong" })]);
    for ignored in ["", "{", "[]", "{\"type\":\"eof\"}"] {
        assert_eq!(session.on_text(ignored, &[]), [], "{ignored}");
    }
    let large = seen(&session.on_text_too_large());
    assert_eq!(
        (&large[0]["code"], &large[1]["close"]),
        (&json!("CONTROL_FRAME_TOO_LARGE"), &json!("over_limit"))
    );
}

#[test]
fn a_replay_that_does_not_get_on_ends_with_an_error() {
    let mut session = resumed(&json!({ "lastOffsetsByPartition": { "0": "4" } }), 6);
    for _ in 1..REPLAY_TICKS_MAX {
        assert_eq!(session.on_tick(GRACE), []);
    }
    let seen = seen(&session.on_tick(GRACE));
    assert_eq!((&seen[0]["code"], &seen[1]["close"]), (&json!("REPLAY_TIMEOUT"), &json!("error")));
}

fn part(epoch: u64, offsets: &[u64], gap: Option<Gap>) -> ThreadPart {
    let records: Vec<Record> = if offsets.is_empty() {
        Vec::new()
    } else {
        batch::records(&batch(EPOCH, None, offsets)).map(Result::unwrap).collect()
    };
    ThreadPart { partition: 0, epoch, records, gap }
}

#[test]
fn threads_come_in_turn_up_to_where_live_begins_and_live_after_them() {
    // The sequence of a record is its offset plus 1, and its thread is its offset modulo 3.
    let fields = json!({ "lastSequencesByThread": { "thread-1": "2", "thread-0": 0, "thread-9": 0 } });
    let mut session = resumed(&fields, 6);
    assert_eq!(session.next_want(&BTreeSet::new()), None, "live waits");
    let want = session.next_thread().unwrap();
    assert_eq!((want.thread_id.as_str(), want.from.clone()), ("thread-0", ThreadFrom::AfterSequence(0)));
    assert_eq!(session.next_thread(), None, "one at a time");
    let found = ThreadFound::Records { parts: vec![part(EPOCH, &[0, 3], None)], at_end: false };
    assert_eq!(seen(&session.on_thread(&want, found.clone())), pairs(&[0, 3]));
    assert_eq!(session.on_thread(&want, found), [], "an answer counts once");

    let want = session.next_thread().unwrap();
    let at = Cursor { epoch: EPOCH, partition: 0, offset: Some(3) };
    assert_eq!(want.from, ThreadFrom::After(at));
    let found = ThreadFound::Records { parts: vec![part(EPOCH, &[6, 9], None)], at_end: true };
    assert_eq!(seen(&session.on_thread(&want, found)), pairs(&[6]), "9 is live");

    let want = session.next_thread().unwrap();
    let lost = gap(0, 3, GapReason::Retention);
    let found = ThreadFound::Records { parts: vec![part(EPOCH, &[1, 4, 7], Some(lost))], at_end: true };
    let mut expected =
        vec![json!({ "type": "gap", "count": 2, "threadId": "thread-1", "severity": "warning",
        "message": "Replay gap detected; some messages may be lost" })];
    expected.extend(pairs(&[4]));
    assert_eq!(seen(&session.on_thread(&want, found)), expected, "sequences 3 and 4 are gone, 2 was read");

    let want = session.next_thread().unwrap();
    assert_eq!(session.on_thread(&want, ThreadFound::NotNow), []);
    assert_eq!(session.next_thread(), None, "not before a tick");
    session.on_tick(GRACE);
    let want = session.next_thread().unwrap();
    assert_eq!(
        seen(&session.on_thread(&want, ThreadFound::Unknown)),
        [json!({ "type": "replay_complete", "totalReplayed": 4, "mode": "thread" })]
    );
    assert_eq!(find(&mut session, page(vec![batch(EPOCH, Some(6), &[7, 9])], true, 9)), pairs(&[7, 9]));
}

#[test]
fn a_resume_by_no_thread_has_no_answer() {
    let mut session = session(Some(6));
    assert_eq!(session.on_text(&resume(&json!({ "mode": "thread" })), &known(Some(6), None)), []);
    assert_eq!((session.next_thread(), session.on_tick(Duration::ZERO)), (None, Vec::new()));
}

/// A log of single records with holes, of which each is retained from `kept` on.
fn answer(offsets: &[u64], kept: usize, want: Want, most: usize) -> Vec<Found> {
    let last = *offsets.last().unwrap();
    let At { epoch, at } = place_of(want.from);
    if epoch.is_some_and(|epoch| epoch != EPOCH) {
        return vec![log(offsets[kept], last)];
    }
    let begin = offsets
        .iter()
        .position(|of| epoch.is_none() || Some(*of) > at)
        .map_or(offsets.len(), |of| of.max(kept));
    let link = begin.checked_sub(1).map(|before| offsets[before]);
    let mut found = Vec::new();
    if epoch.is_some() && at < link && begin == kept {
        found.push(Found::Gap(gap(at.map_or(0, |at| at + 1), link.unwrap(), GapReason::Retention)));
    }
    let end = offsets.len().min(begin + most);
    let batches = if begin < end { vec![batch(EPOCH, link, &offsets[begin..end])] } else { Vec::new() };
    found.push(page(batches, end == offsets.len(), last));
    found
}

struct At {
    epoch: Option<u64>,
    at: Option<u64>,
}

fn place_of(from: From) -> At {
    match from {
        From::After { epoch, at } => At { epoch: Some(epoch.get()), at: at.map(Offset::get) },
        From::Earliest | From::Latest | From::Time(_) | From::Active => At { epoch: None, at: None },
    }
}

proptest! {
    #[test]
    fn over_any_cuts_a_client_gets_each_record_behind_its_cursor_once_or_hears_of_its_loss(
        steps in prop::collection::vec(1_u64..4, 2..40),
        cuts in prop::collection::vec((1_usize..12, 0_usize..4), 1..8),
        most in 1_usize..5,
    ) {
        let offsets: Vec<u64> = steps.iter().scan(0, |at, step| { *at += step; Some(*at) }).collect();
        let (mut cursor, mut received, mut lost, mut kept) = (None, Vec::new(), 0, 0);
        for (answers, trimmed) in cuts.into_iter().chain([(200, 0)]) {
            kept = (kept + trimmed).min(offsets.len() - 1);
            let named = cursor.map_or(json!({}), |at: u64| json!({ "0": at.to_string() }));
            let mut session = resumed(&json!({ "lastOffsetsByPartition": named }), *offsets.last().unwrap());
            for _ in 0..answers {
                let Some(mut want) = session.next_want(&BTreeSet::new()) else { break };
                for found in answer(&offsets, kept, want, most) {
                    let behind = want.behind(&found);
                    for frame in seen(&session.on_found(want, found)) {
                        prop_assert!(frame.get("close").is_none(), "{frame}");
                        if frame["type"] == "cursor" {
                            let at: u64 = frame["offset"].as_str().unwrap().parse().unwrap();
                            prop_assert!(Some(at) > cursor, "not forward");
                            cursor = Some(at);
                            received.push(at);
                        }
                        lost += frame["count"].as_u64().unwrap_or(0);
                    }
                    want = behind;
                }
            }
        }
        let first = offsets.iter().position(|at| received.first() == Some(at)).unwrap();
        let missed: Vec<_> = offsets[first..].iter().filter(|at| !received.contains(at)).collect();
        prop_assert_eq!(received.len() + missed.len(), offsets.len() - first);
        prop_assert_eq!(missed.is_empty(), lost == 0, "{} lost, {:?} missed", lost, missed);
        prop_assert_eq!(received.last(), offsets.last());
    }
}

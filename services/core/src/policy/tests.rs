use super::*;
use crate::codec::encode;
use dashstream_proto::telemetry::{DashStreamMessage, Event, Header, dash_stream_message::Message};

fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

fn value(thread_id: &str, schema_version: u32) -> Vec<u8> {
    let header = Header { thread_id: thread_id.into(), schema_version, ..Default::default() };
    let event = Event { header: Some(header), ..Default::default() };
    encode(&DashStreamMessage { message: Some(Message::Event(event)) }, usize::MAX)
}

fn judged(value: Option<&[u8]>) -> Judgement {
    judge(offset(5), Some(offset(4)), value, Limits { message_bytes_max: 2_048 }, |_| None)
}

fn fault(judgement: &Judgement) -> &'static str {
    match judgement {
        Judgement::Bad(fault) => fault.label(),
        Judgement::Known => "known",
        Judgement::Sound(_) => "sound",
        Judgement::Strayed { .. } => "strayed",
    }
}

#[test]
fn each_way_to_be_bad_has_its_own_judgement() {
    let mut bomb = vec![1];
    bomb.extend(zstd::bulk::compress(&vec![0; 1 << 20], 3).unwrap());
    for (why, value, expected) in [
        ("a record of a known version", Some(value("t", 1)), "sound"),
        ("version 0 means 1", Some(value("t", 0)), "sound"),
        ("a later version", Some(value("t", 2)), "unknown_version"),
        ("no thread", Some(value("", 1)), "no_thread"),
        ("a thread id over the limit", Some(value(&"x".repeat(1_025), 1)), "thread_id_too_long"),
        ("a tombstone", None, "missing"),
        ("nothing", Some(vec![]), "empty"),
        ("not a message", Some(b"\x02nonsense".to_vec()), "protobuf"),
        ("over the limit", Some(vec![0; 3_000]), "too_large"),
        ("a bomb", Some(bomb), "inflates_too_large"),
    ] {
        assert_eq!(fault(&judged(value.as_deref())), expected, "{why}");
    }
}

#[test]
fn what_the_log_has_is_not_even_decoded() {
    for (link, expected) in [(Some(offset(5)), "known"), (Some(offset(6)), "known"), (None, "protobuf")] {
        let judgement = judge(offset(5), link, Some(b"\x02nonsense"), Limits::default(), |_| None);
        assert_eq!(fault(&judgement), expected, "{link:?}");
    }
}

#[test]
fn every_judgement_has_one_outcome_under_every_policy() {
    let Judgement::Sound(facts) = judged(Some(&value("t", 1))) else { panic!("it is sound") };
    let strayed = Judgement::Strayed { facts: facts.clone(), home: Partition::new(3).unwrap() };
    let bad = Judgement::Bad(Fault::NoThread);
    let blocked = |everything| Outcome::Blocked { everything };
    let (stored, duplicate, skipped) = (Outcome::Stored, Outcome::Duplicate, Outcome::Skipped);
    // By policy: skip, pause, halt; then the same with an operator's pardon.
    for (why, judgement, expected, pardoned) in [
        ("known", Judgement::Known, [duplicate; 3], [duplicate; 3]),
        ("sound", Judgement::Sound(facts), [stored; 3], [stored; 3]),
        ("strayed", strayed, [stored; 3], [stored; 3]),
        ("bad", bad, [Outcome::DeadLettered, blocked(false), blocked(true)], [skipped; 3]),
    ] {
        let policies = [Policy::Skip, Policy::Pause, Policy::Halt];
        assert_eq!(policies.map(|policy| outcome(&judgement, policy, false)), expected, "{why}");
        assert_eq!(policies.map(|policy| outcome(&judgement, policy, true)), pardoned, "{why}, pardoned");
    }
}

#[test]
fn only_a_blocked_record_holds_its_partition_and_only_what_is_left_out_leaves_a_gap() {
    for (outcome, moves_on, gap) in [
        (Outcome::Stored, true, None),
        (Outcome::DeadLettered, true, Some(GapReason::Undecodable)),
        (Outcome::Skipped, true, Some(GapReason::Skipped)),
        (Outcome::Blocked { everything: false }, false, None),
        (Outcome::Blocked { everything: true }, false, None),
        (Outcome::Duplicate, true, None),
    ] {
        assert_eq!((outcome.moves_on(), outcome.gap()), (moves_on, gap), "{outcome:?}");
    }
}

#[test]
fn a_thread_that_was_elsewhere_is_said_to_have_strayed() {
    let home = Partition::new(7).unwrap();
    let judgement = judge(offset(5), None, Some(&value("t", 1)), Limits::default(), |facts| {
        (facts.thread_id == "t").then_some(home)
    });
    assert!(matches!(judgement, Judgement::Strayed { home: said, .. } if said == home));
}

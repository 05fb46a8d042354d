use super::*;
use std::collections::HashSet;

fn mark(value: u64) -> NextOffset {
    NextOffset::from_kafka(value as i64).unwrap()
}

fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

fn opened(epoch: u64, held: Option<u64>) -> Input {
    Input::Opened { epoch: Epoch::new(epoch), held: held.map(offset) }
}

fn catching_up(head: u64) -> Phase {
    Phase::CatchingUp { head: Some(mark(head)) }
}

fn every_input_up_to(end: u64) -> Vec<Input> {
    let mut inputs = vec![
        Input::Assigned,
        Input::Revoked,
        Input::Refused,
        Input::Resolved,
        Input::Unavailable { why: "store".into() },
        Input::Source { trouble: Some("leader".into()) },
        Input::Source { trouble: None },
        Input::Hold { why: Some("operator".into()) },
        Input::Hold { why: None },
        opened(1, None),
        opened(2, None),
    ];
    for at in 0..end {
        inputs.push(Input::Head(mark(at)));
        inputs.push(Input::Fetched { high_watermark: mark(at + 1) });
        inputs.push(Input::Durable { next: mark(at + 1) });
        inputs.push(Input::Blocked { offset: offset(at), error: "bad".into() });
        inputs.push(opened(1, Some(at)));
    }
    inputs
}

/// What must hold after `input` turned `before` into `after`.
fn check_edge(before: &CatchUp, input: &Input, after: &CatchUp) {
    let edge = format!("{before:?} -- {input:?} -> {after:?}");
    let renewed = matches!(input, Input::Assigned | Input::Revoked);
    let reopened = matches!(input, Input::Opened { .. }) && before.assigned;
    assert!(renewed || reopened || before.next <= after.next, "next decreased: {edge}");
    let anew = reopened && before.epoch.is_some() && before.epoch != after.epoch;
    assert!(before.head.is_none() || renewed || anew || before.head == after.head, "head moved: {edge}");
    if let (Some(next), Some(mark)) = (after.next, after.high_watermark) {
        assert!(mark >= next && after.lag().is_some(), "the end is before what is durable: {edge}");
    }
    let (from, to) = (before.phase(), after.phase());
    let moved = std::mem::discriminant(&from) != std::mem::discriminant(&to);
    let anew_known = renewed && (before.assigned || *input == Input::Assigned);
    assert_eq!(after.since_ms == 1, moved || anew_known, "since: {edge}");
    match to {
        Phase::Unassigned => assert!(!after.assigned, "{edge}"),
        Phase::Live => {
            assert!(after.next.is_some() && after.next >= after.head && after.head.is_some(), "{edge}")
        }
        Phase::CatchingUp { head } => assert!(head.is_none() || after.next < head, "{edge}"),
        Phase::Starting => assert!(after.next.is_none(), "{edge}"),
        Phase::Healing { from } => {
            let healing = after.healing.unwrap();
            assert!(from.is_none() || Some(healing.until) > after.next, "{edge}");
        }
        Phase::Paused { .. } => assert!(after.hold.is_some() && after.blocked.is_none(), "{edge}"),
        Phase::Stalled { .. } => assert!(after.stalled.is_some() || after.source.is_some(), "{edge}"),
        Phase::Blocked { .. } => assert!(after.blocked.is_some(), "{edge}"),
    }
    if let Phase::Blocked { offset, .. } = from {
        let ends = match input {
            Input::Resolved | Input::Assigned | Input::Revoked => true,
            Input::Durable { next } => *next >= offset.next(),
            Input::Opened { .. } => anew,
            Input::Head(_)
            | Input::Fetched { .. }
            | Input::Refused
            | Input::Unavailable { .. }
            | Input::Source { .. }
            | Input::Blocked { .. }
            | Input::Hold { .. } => false,
        };
        assert_eq!(matches!(after.phase(), Phase::Blocked { .. }), !ends, "only a decision unblocks: {edge}");
    }
}

#[test]
fn every_edge_keeps_the_invariants() {
    let (mut seen, mut frontier) = (HashSet::new(), vec![CatchUp::default()]);
    let mut phases = HashSet::new();
    while let Some(before) = frontier.pop() {
        if !seen.insert(before.clone()) {
            continue;
        }
        phases.insert(std::mem::discriminant(&before.phase()));
        for input in every_input_up_to(2) {
            let mut after = before.clone();
            after.on(input.clone(), 1);
            check_edge(&before, &input, &after);
            after.since_ms = 0;
            frontier.push(after);
        }
    }
    assert_eq!(phases.len(), 8, "every phase is reachable");
    assert!(seen.len() > 5_000, "the inputs reach no more than {} states", seen.len());
}

#[test]
fn it_is_live_only_when_a_known_head_is_reached() {
    let mut state = CatchUp::assigned(1);
    assert_eq!((state.phase(), state.lag()), (Phase::Starting, None));
    state.on(opened(1, Some(9)), 2);
    let unknown = Phase::CatchingUp { head: None };
    assert_eq!((state.phase(), state.since_ms(), state.lag()), (unknown.clone(), 2, None));
    state.on(Input::Fetched { high_watermark: mark(20) }, 3);
    assert_eq!(
        (state.phase(), state.lag(), state.head()),
        (unknown, Some(10), None),
        "a mark is not the head"
    );
    state.on(Input::Head(mark(20)), 4);
    assert_eq!((state.phase(), state.since_ms()), (catching_up(20), 2));
    state.on(Input::Durable { next: mark(19) }, 5);
    assert_eq!((state.phase(), state.since_ms()), (catching_up(20), 2));
    state.on(Input::Durable { next: mark(20) }, 6);
    assert_eq!((state.phase(), state.since_ms(), state.lag()), (Phase::Live, 6, Some(0)));
    state.on(Input::Head(mark(50)), 7);
    assert_eq!((state.phase(), state.head(), state.lag()), (Phase::Live, Some(mark(20)), Some(30)));
}

#[test]
fn what_is_below_the_head_is_old_and_nothing_is_guessed_before_it_is_known() {
    let mut state = CatchUp::assigned(1);
    assert_eq!(state.is_old(offset(3)), None);
    state.on(Input::Head(mark(5)), 2);
    assert_eq!([4, 5].map(|at| state.is_old(offset(at))), [Some(true), Some(false)]);
}

#[test]
fn a_store_that_lost_its_end_is_healed_when_it_has_again_what_it_had() {
    let mut state = CatchUp::assigned(1);
    state.on(opened(1, Some(9)), 2);
    state.on(Input::Head(mark(10)), 2);
    assert_eq!(state.phase(), Phase::Live);
    state.on(Input::Refused, 3);
    assert_eq!(state.phase(), Phase::Healing { from: None });
    state.on(opened(1, Some(2)), 4);
    assert_eq!(
        (state.phase(), state.since_ms(), state.lag()),
        (Phase::Healing { from: Some(mark(3)) }, 3, Some(7))
    );
    state.on(Input::Unavailable { why: "no answer".into() }, 5);
    assert_eq!(state.phase(), Phase::Stalled { why: "no answer".into() });
    state.on(opened(1, Some(5)), 6);
    assert_eq!(state.phase(), Phase::Healing { from: Some(mark(6)) }, "trouble on the way does not end it");
    state.on(Input::Durable { next: mark(9) }, 7);
    assert_eq!(state.phase(), Phase::Healing { from: Some(mark(6)) });
    state.on(Input::Durable { next: mark(10) }, 8);
    assert_eq!(state.phase(), Phase::Live);
}

#[test]
fn a_new_life_of_the_log_has_a_head_of_its_own() {
    let mut state = CatchUp::assigned(1);
    state.on(opened(1, Some(9)), 2);
    state.on(Input::Head(mark(10)), 2);
    state.on(opened(2, None), 3);
    assert_eq!(
        (state.phase(), state.next(), state.lag()),
        (Phase::CatchingUp { head: None }, Some(mark(0)), None)
    );
    state.on(Input::Head(mark(4)), 4);
    assert_eq!((state.phase(), state.lag()), (catching_up(4), Some(4)));
}

#[test]
fn what_only_a_person_can_end_is_shown_before_all_else() {
    let mut state = CatchUp::assigned(1);
    state.on(opened(1, Some(9)), 2);
    state.on(Input::Hold { why: Some("maintenance".into()) }, 3);
    state.on(Input::Blocked { offset: offset(10), error: "bad".into() }, 4);
    state.on(Input::Unavailable { why: "no answer".into() }, 5);
    assert_eq!(state.phase(), Phase::Blocked { offset: offset(10), error: "bad".into() });
    state.on(Input::Durable { next: mark(10) }, 6);
    assert!(matches!(state.phase(), Phase::Blocked { .. }), "what came before it is durable only now");
    state.on(Input::Resolved, 7);
    assert_eq!(state.phase(), Phase::Paused { why: "maintenance".into() });
    state.on(Input::Source { trouble: Some("the leader can't be reached".into()) }, 8);
    state.on(Input::Hold { why: None }, 9);
    assert_eq!(state.phase(), Phase::Stalled { why: "the leader can't be reached".into() });
    state.on(Input::Durable { next: mark(11) }, 10);
    assert!(
        matches!(state.phase(), Phase::Stalled { .. }),
        "what was fetched before proves nothing of the leader"
    );
    state.on(Input::Source { trouble: None }, 11);
    assert_eq!(state.phase(), Phase::CatchingUp { head: None });
}

#[test]
fn what_was_read_proves_where_the_end_is_at_least() {
    let mut state = CatchUp::assigned(1);
    state.on(opened(1, Some(0)), 1);
    state.on(Input::Head(mark(5)), 1);
    state.on(Input::Durable { next: mark(8) }, 1);
    assert_eq!((state.lag(), state.high_watermark()), (Some(0), Some(mark(8))));
    state.on(Input::Fetched { high_watermark: mark(6) }, 1);
    assert_eq!((state.lag(), state.high_watermark()), (Some(0), Some(mark(8))), "statistics are late");
    state.on(Input::Fetched { high_watermark: mark(11) }, 1);
    assert_eq!(state.lag(), Some(3));
}

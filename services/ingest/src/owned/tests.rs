use super::*;
use dashstream_core::position::Epoch;
use dashstream_proto::ingest::v1::CatchUpPhase;

fn mark(value: i64) -> NextOffset {
    NextOffset::from_kafka(value).unwrap()
}

fn at(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

fn partition() -> Partition {
    Partition::new(3).unwrap()
}

fn opened(held: u64) -> Input {
    Input::Opened { epoch: Epoch::new(9), held: Offset::new(held).ok() }
}

#[test]
fn a_report_says_unknown_until_it_knows() {
    let owned = Owned::default();
    owned.insert(partition());
    let report = &owned.report()[0];
    assert_eq!((report.epoch, report.head, report.lag, report.next_offset), (None, None, None, None));
    assert!(owned.heartbeat(partition()).is_none() && owned.positions().is_empty());

    owned.on(partition(), opened(4));
    owned.on(partition(), Input::Head(mark(25)));
    owned.sample();
    owned.stored(partition(), Offset::new(14).ok(), 10, Some(77));
    owned.sample();
    let report = &owned.report()[0];
    assert_eq!((report.lag, report.records_per_second, report.seconds_to_live), (Some(10), 10.0, Some(1.0)));
    let position = owned.position(partition()).unwrap();
    assert_eq!((position.epoch, position.next, position.last), (Epoch::new(9), mark(15), Some(at(14))));
    assert_eq!(owned.heartbeat(partition()).unwrap().durable.unwrap().offset, Some(14));

    owned.remove(partition());
    assert!(owned.report().is_empty() && owned.report_of(partition()).is_none());
}

#[test]
fn a_lag_that_does_not_close_is_never_live() {
    let owned = Owned::default();
    owned.insert(partition());
    owned.on(partition(), opened(0));
    owned.on(partition(), Input::Head(mark(100)));
    owned.sample();
    owned.on(partition(), Input::Fetched { high_watermark: mark(200) });
    owned.sample();
    let report = &owned.report()[0];
    assert!(report.never_live && report.seconds_to_live.is_none());
}

#[test]
fn bad_records_are_old_below_the_head_and_counted_once() {
    let owned = Owned::default();
    owned.insert(partition());
    owned.on(partition(), opened(0));
    assert_eq!(owned.bad(partition(), at(3)), (Age::Unclassified, true));
    assert_eq!(owned.bad(partition(), at(3)), (Age::Unclassified, false), "read again");
    assert_eq!(owned.report()[0].decode_errors_unclassified, 1);
    assert_eq!(owned.on(partition(), Input::Head(mark(10))), 1, "it was read before the head was known");
    assert_eq!(owned.bad(partition(), at(9)), (Age::Old, true));
    assert_eq!(owned.bad(partition(), at(10)), (Age::New, true));
    let report = &owned.report()[0];
    let counts = (report.decode_errors_old, report.decode_errors_new, report.decode_errors_unclassified);
    assert_eq!(counts, (2, 1, 0));
}

#[test]
fn an_operator_decides_on_exactly_the_record_that_blocks() {
    let owned = Owned::default();
    let resolve = |offset| owned.resolve(partition(), at(offset), Resolution::Skip);
    assert_eq!(resolve(5), Err(Unmet::NotOwned(partition())));
    let wishes = owned.insert(partition());
    owned.on(partition(), opened(4));
    assert_eq!(resolve(5), Err(Unmet::NotBlocked(partition())));
    owned.on(partition(), Input::Blocked { offset: at(5), error: "bad".into() });
    let elsewhere = Unmet::BlockedElsewhere { partition: partition(), at: at(5), asked: at(6) };
    assert_eq!(resolve(6), Err(elsewhere));
    assert_eq!(resolve(5), Ok(()));
    assert_eq!(wishes.borrow().resolution, Some((at(5), Resolution::Skip)));
    let report = &owned.report()[0];
    assert_eq!((report.phase(), report.blocked_offset), (CatchUpPhase::Blocked, Some(5)));
    owned.resolved(partition());
    assert_eq!((wishes.borrow().resolution, owned.report()[0].phase()), (None, CatchUpPhase::CatchingUp));
}

#[test]
fn a_pause_is_part_of_what_is_committed() {
    let owned = Owned::default();
    let wishes = owned.insert(partition());
    owned.on(partition(), opened(4));
    owned.pause(partition(), Some("maintenance".into())).unwrap();
    assert_eq!(owned.position(partition()).unwrap().paused.as_deref(), Some("maintenance"));
    owned.pause(partition(), None).unwrap();
    assert_eq!((owned.position(partition()).unwrap().paused, wishes.borrow().paused.clone()), (None, None));
}

//! Filters, starts, credit, notices: what a session leaves out, holds back and tells.
use super::*;
use crate::batch::records;
use dashstream_proto::session::v1::{Credit as WireCredit, Filter as WireFilter, SkippedFrame};

fn subscribe_to(threads: &[&str], start: StartPolicy, cursors: Vec<Cursor>) -> Vec<u8> {
    let filter =
        WireFilter { thread_ids: threads.iter().map(ToString::to_string).collect(), ..Default::default() };
    message(client_frame::Frame::Subscribe(Subscribe {
        request_id: 9,
        cursors,
        start: start.into(),
        filter: Some(filter),
        start_time_ms: 0,
    }))
}

fn session_for(threads: &[&str], in_flight: u64, cursors: Vec<Cursor>) -> Session {
    let mut session = Session::new("s".into(), terms(), Tenants::All);
    let limits = Some(WireLimits { in_flight_bytes_max: in_flight, ..Default::default() });
    session.on_message(&message(client_frame::Frame::Hello(Hello { limits, ..Default::default() })), &[]);
    session.on_message(&subscribe_to(threads, StartPolicy::Earliest, cursors), &known());
    session
}

fn credit(bytes: u64) -> Vec<u8> {
    message(client_frame::Frame::Credit(WireCredit { bytes }))
}

fn skipped(out: &[Output]) -> Vec<(Option<u64>, u64)> {
    let span = |frame: Frame| match frame {
        Frame::Skipped(SkippedFrame { prev_offset, through, .. }) => Some((prev_offset, through)),
        _ => None,
    };
    frames(out).into_iter().filter_map(span).collect()
}

/// The records of `threads` in these batches, behind `after`: record `at` is of `thread-{at % 3}`.
fn expected(offsets: &[u64], threads: &[&str], after: Option<u64>) -> Vec<u64> {
    let of = |at: &&u64| threads.is_empty() || threads.contains(&format!("thread-{}", **at % 3).as_str());
    offsets.iter().filter(|at| Some(**at) > after).filter(of).copied().collect()
}

#[test]
fn what_a_session_may_not_read_never_reaches_it_even_unfiltered() {
    let mut session = Session::new("s".into(), terms(), Tenants::Only(["beta".to_owned()].into()));
    let welcome = session.on_message(&hello(), &[]);
    let [Frame::Welcome(welcome)] = &frames(&welcome)[..] else { panic!() };
    assert_eq!(welcome.access.as_ref().unwrap().tenant_ids, ["beta"]);
    session.on_message(&subscribe(vec![cursor(Some(4))], StartPolicy::Latest), &known());
    // every record of the test's batches is acme's
    assert_eq!(find(&mut session, memory(slots([batch(EPOCH.get(), Some(4), &[5, 6])]))), []);
    assert_eq!(skipped(&session.on_tick(Duration::from_secs(1))), [(Some(4), 6)]);
    assert_eq!(session.on_tick(Duration::from_secs(2)), [], "told once");
    let filter = WireFilter { tenant_ids: vec!["acme".into()], ..Default::default() };
    let ask = Subscribe { start: 1, filter: Some(filter), ..Default::default() };
    let out = session.on_message(&message(client_frame::Frame::Subscribe(ask)), &known());
    let [Frame::Error(error)] = &frames(&out)[..] else { panic!("{out:?}") };
    assert_eq!((error.code(), error.fatal), (ErrorCode::PermissionDenied, false));
}

#[test]
fn a_start_at_the_running_threads_begins_with_no_state_that_may_not_be_read() {
    for (tenant, sent) in [("acme", 1), ("beta", 0)] {
        let mut session = Session::new("s".into(), terms(), Tenants::Only([tenant.to_owned()].into()));
        session.on_message(&hello(), &[]);
        session.on_message(&subscribe(vec![], StartPolicy::Active), &known());
        let start = ActiveStart {
            epoch: EPOCH,
            begin: Some(offset(5)),
            since: Arc::default(),
            states: vec![batch(EPOCH.get(), Some(1), &[2])], // acme's
            names: Names::default(),
            cut_at: None,
        };
        assert_eq!(find(&mut session, Found::Active(Arc::new(start))).len(), sent, "{tenant}");
    }
}

#[test]
fn a_span_of_which_nothing_is_left_is_told_before_what_needs_it() {
    let nothing = batch(EPOCH.get(), Some(4), &[5, 8]); // of thread 2
    let next = batch(EPOCH.get(), Some(8), &[9]);
    let gap = Gap { epoch: EPOCH.get(), partition: 0, first_offset: 9, last_offset: 12, reason: 1 };
    for (why, then) in [
        ("a shared frame", memory(slots([next]))),
        ("a gap", Found::Gap(gap)),
        ("being caught up", at_end(Some(offset(8)), None)),
    ] {
        let mut session = session_for(&["thread-0"], 0, vec![cursor(Some(4))]);
        assert_eq!(find(&mut session, memory(slots([nothing.clone()]))), [], "{why}");
        let out = find(&mut session, then);
        assert_eq!(skipped(&out), [(Some(4), 8)], "{why}");
        assert_eq!(out.len(), 2, "{why}: then comes what was found");
    }
}

#[test]
fn sessions_with_equal_filters_get_the_same_frame() {
    let slots = slots([batch(EPOCH.get(), Some(4), &[5, 6, 7, 8])]);
    let sent = |threads: &[&str]| {
        let mut session = session_for(threads, 0, vec![cursor(Some(4))]);
        let out = find(&mut session, memory(slots.clone()));
        let [Output::Send(frame)] = &out[..] else { panic!("{out:?}") };
        frame.clone()
    };
    assert_eq!(sent(&["thread-0", "thread-1"]).as_ptr(), sent(&["thread-1", "thread-0"]).as_ptr());
    assert_ne!(sent(&["thread-1"]).as_ptr(), sent(&["thread-2"]).as_ptr());
}

#[test]
fn nothing_is_read_of_partitions_that_are_not_wanted() {
    let mut session = Session::new("s".into(), terms(), Tenants::All);
    session.on_message(&hello(), &[]);
    let subscribe = |cursors| {
        let filter = Some(WireFilter { partitions: vec![1], ..Default::default() });
        let subscribe =
            Subscribe { start: StartPolicy::Earliest.into(), filter, cursors, ..Default::default() };
        message(client_frame::Frame::Subscribe(subscribe))
    };
    let known: Vec<_> = (0..3).map(|p| Known { partition: partition(p), ..known()[0] }).collect();
    let refused = session.on_message(&subscribe(vec![cursor(Some(1))]), &known);
    assert!(matches!(&frames(&refused)[..], [Frame::Error(error)] if !error.fatal));
    let out = session.on_message(&subscribe(vec![]), &known);
    let [Frame::Partitions(told)] = &frames(&out)[..] else { panic!("{out:?}") };
    assert_eq!(told.partitions.iter().map(|state| state.partition).collect::<Vec<_>>(), [1]);
    let wants: Vec<_> =
        (0..3).map(|_| session.next_want(&BTreeSet::new()).unwrap().partition.get()).collect();
    assert_eq!(wants, [1, 1, 1]);
}

#[test]
fn an_active_start_sends_each_running_thread_from_its_state_on_and_then_everything() {
    let mut session = Session::new("s".into(), terms(), Tenants::All);
    session.on_message(&hello(), &[]);
    session.on_message(&subscribe(vec![], StartPolicy::Active), &known());
    assert_eq!(session.next_want(&BTreeSet::new()).unwrap().from, From::Active);
    let state = batch(EPOCH.get(), Some(1), &[2]); // of thread 2, no longer in the log
    let threads = [("thread-0".to_owned(), 9), ("thread-2".to_owned(), 2)].into();
    let start = ActiveStart {
        epoch: EPOCH,
        begin: Some(offset(5)),
        since: Arc::new(Since { mark: Some(offset(12)), threads }),
        states: vec![state],
        names: Names::default(),
        cut_at: None,
    };
    let mut chain = Chain::default();
    chain.expect_filtered(true);
    let out = find(&mut session, Found::Active(Arc::new(start)));
    let [Frame::State(state)] = &frames(&out)[..] else { panic!("{out:?}") };
    assert_eq!(state.record.as_ref().unwrap().offset, 2);
    let log = [
        batch(EPOCH.get(), Some(3), &[4, 5, 6, 7, 8, 9, 10]),
        batch(EPOCH.get(), Some(10), &[11, 12, 13, 14, 15]),
    ];
    let mut got = Vec::new();
    for frame in frames(&find(&mut session, page(log))) {
        let Frame::Records(frame) = frame else { panic!("{frame:?}") };
        got.extend(chain.records(&frame).unwrap().iter().map(|record| record.offset));
    }
    assert_eq!(got, [8, 9, 11, 12, 13, 14, 15], "thread 0 from 9, thread 2 from 2, and all behind 12");
    let out = find(&mut session, at_end(Some(offset(15)), None));
    let [Frame::CaughtUp(mark)] = &frames(&out)[..] else { panic!("{out:?}") };
    chain.caught_up(mark).unwrap();
}

#[test]
fn an_active_start_that_credit_interrupts_goes_on_where_it_was() {
    let mut session = Session::new("s".into(), terms(), Tenants::All);
    let limits = Some(WireLimits { in_flight_bytes_max: 1, ..Default::default() });
    session.on_message(&message(client_frame::Frame::Hello(Hello { limits, ..Default::default() })), &[]);
    session.on_message(&subscribe(vec![], StartPolicy::Active), &known());
    let start = |states: &[u64]| {
        let states = states.iter().map(|at| batch(EPOCH.get(), at.checked_sub(1), &[*at])).collect();
        let since = Arc::default();
        let names = Names::default();
        Found::Active(Arc::new(ActiveStart {
            epoch: EPOCH,
            begin: Some(offset(9)),
            since,
            states,
            names,
            cut_at: None,
        }))
    };
    let mut got = Vec::new();
    for states in [[1, 2, 3], [7, 8, 9], [7, 8, 9]] {
        for frame in frames(&find(&mut session, start(&states))) {
            let Frame::State(state) = frame else { panic!("{frame:?}") };
            got.push(state.record.unwrap().offset);
        }
        assert_eq!(session.next_want(&BTreeSet::new()).is_none(), got.len() < 3, "one state at a time");
        session.on_message(&credit(u64::MAX), &[]);
    }
    assert_eq!(got, [1, 2, 3]);
    assert!(matches!(session.next_want(&BTreeSet::new()).unwrap().from, From::After { .. }));
}

#[test]
fn a_reader_that_falls_out_of_memory_is_told_how_far_and_when_it_is_back() {
    let mut session = subscribed(vec![cursor(Some(4))], StartPolicy::Latest);
    let passed = |records, bytes| Passed { records, bytes };
    assert_eq!(session.delivery(), Some(Delivery::Replay));
    assert_eq!(session.on_behind(partition(0), passed(9, 900)), [], "it was never in memory");
    let out = find(&mut session, at_end(Some(offset(4)), None));
    assert!(matches!(&frames(&out)[..], [Frame::CaughtUp(_)]));
    session.on_advanced(partition(0));
    let found = Found::Slots { slots: slots([batch(EPOCH.get(), Some(4), &[5])]), passed: passed(10, 1_000) };
    assert_eq!(find(&mut session, found).len(), 1);
    assert_eq!(session.delivery(), Some(Delivery::Memory));
    let out = session.on_behind(partition(0), passed(17, 1_700));
    assert_eq!(session.delivery(), Some(Delivery::Replay));
    let [Frame::Notice(notice)] = &frames(&out)[..] else { panic!("{out:?}") };
    assert_eq!((notice.code(), notice.records, notice.bytes), (NoticeCode::Behind, 7, 700));
    assert_eq!(notice.cursor.unwrap().offset, Some(5));
    assert_eq!(session.on_behind(partition(0), passed(20, 2_000)), [], "once");
    let out = find(&mut session, at_end(Some(offset(5)), Some(3)));
    let [Frame::CaughtUp(back)] = &frames(&out)[..] else { panic!("{out:?}") };
    assert_eq!((back.mark.unwrap().offset, back.source_lag), (Some(5), Some(3)));
}

#[test]
fn limits_that_change_are_told_and_the_lower_one_still_wins() {
    let mut session = Session::new("s".into(), terms(), Tenants::All);
    let asked = Some(WireLimits { record_bytes_max: 500, ..Default::default() });
    session
        .on_message(&message(client_frame::Frame::Hello(Hello { limits: asked, ..Default::default() })), &[]);
    let changed = |record_bytes_max| Limits { record_bytes_max, ..terms().limits };
    let out = session.on_limits(changed(100));
    let [Frame::Notice(notice)] = &frames(&out)[..] else { panic!("{out:?}") };
    let (limits, by) = (notice.limits.unwrap(), notice.limited_by.unwrap());
    assert_eq!((notice.code(), limits.record_bytes_max), (NoticeCode::LimitsChanged, 100));
    assert_eq!(by.record_bytes_max(), dashstream_proto::session::v1::LimitSource::Server);
    assert_eq!(session.on_limits(changed(900)).len(), 1);
    assert_eq!(session.limits().record_bytes_max, 500, "the client's own");
    assert_eq!(session.on_limits(changed(800)), [], "nothing changed for this client");
}

#[test]
fn a_session_that_leaves_tells_where_to_resume_and_all_that_was_nothing() {
    let mut session = session_for(&["thread-0"], 0, vec![cursor(Some(4))]);
    find(&mut session, memory(slots([batch(EPOCH.get(), Some(4), &[5, 8])])));
    let out = session.on_drain(Duration::from_millis(1_500));
    let [Frame::Skipped(_), Frame::GoingAway(away)] = &frames(&out)[..] else { panic!("{out:?}") };
    assert_eq!((away.reconnect_after_ms, away.cursors[0].offset), (1_500, Some(8)));
}

#[test]
fn a_partition_that_nobody_knows_is_asked_for_ever_less_often() {
    let mut session = subscribed(vec![cursor(Some(4))], StartPolicy::Latest);
    let (mut asked, mut told) = (Vec::new(), 0);
    for tick in 0..130 {
        if session.next_want(&BTreeSet::new()).is_some() {
            asked.push(tick);
            told += find(&mut session, Found::Seeding).len();
        }
        assert_eq!(session.next_want(&BTreeSet::new()), None, "never at once");
        session.on_tick(Duration::from_secs(tick));
    }
    assert_eq!(asked, [0, 1, 3, 7, 15, 31, 63, 95, 127]);
    assert_eq!(told, 1);
    session.on_advanced(partition(0));
    assert!(session.next_want(&BTreeSet::new()).is_some(), "but at once when it is heard of");
}

#[test]
fn an_answer_that_brings_nothing_is_not_asked_for_again_at_once() {
    let mut session = subscribed(vec![cursor(Some(9))], StartPolicy::Latest);
    assert_eq!(find(&mut session, page([batch(EPOCH.get(), Some(4), &[5, 9])])), []);
    assert_eq!(session.next_want(&BTreeSet::new()), None);
}

#[test]
fn what_was_asked_before_a_new_subscribe_is_not_delivered() {
    let mut session = subscribed(vec![cursor(Some(4))], StartPolicy::Latest);
    let want = session.next_want(&BTreeSet::new()).unwrap();
    session.on_message(&subscribe(vec![cursor(Some(1))], StartPolicy::Latest), &known());
    assert_eq!(session.on_found(want, page([batch(EPOCH.get(), Some(4), &[5])]), &Names::default()), []);
    assert_eq!(session.cursors()[0].offset, Some(1));
}

#[test]
fn a_client_whose_frames_are_refused_again_and_again_is_disconnected() {
    let mut session = subscribed(vec![], StartPolicy::Latest);
    for _ in 1..REFUSALS_MAX {
        assert_eq!(closed(&session.on_message(&credit(1), &[])), None);
    }
    assert_eq!(closed(&session.on_message(&credit(1), &[])), Some(CloseReason::ProtocolError));
}

proptest! {
    /// Any filter, any credit, cuts anywhere, memory and replay in any order: the chain holds at each frame, what is
    /// on its way is bounded, and the client gets exactly what its filter leaves.
    #[test]
    fn a_filtered_client_receives_exactly_what_its_filter_leaves(
        sizes in prop::collection::vec(1_u64..6, 1..20), which in 0_usize..4,
        in_flight in prop::sample::select(vec![0, 1, 300, 1_000]),
        choices in prop::collection::vec((any::<bool>(), 1_usize..4, 0_u8..8), 1..200),
    ) {
        let threads: &[&str] = [&[][..], &["thread-1"], &["thread-0", "thread-2"], &["none"]][which];
        let (mut offsets, mut batches, mut link) = (Vec::new(), Vec::new(), None);
        for (i, size) in sizes.iter().enumerate() {
            let first = offsets.last().map_or(0, |last| last + 1 + (i as u64 % 3));
            let these: Vec<_> = (first..first + size).collect();
            batches.push(batch(EPOCH.get(), link, &these));
            link = these.last().copied();
            offsets.extend(these);
        }
        let held = slots(batches);
        let mut chain = Chain::default();
        chain.expect_filtered(true);
        let mut session = session_for(threads, in_flight, vec![]);
        let (mut got, mut flying) = (Vec::new(), 0_u64);
        for (in_memory, many, what) in choices.into_iter().chain(std::iter::repeat_n((true, 3, 7), 200)) {
            let out = match (what, session.next_want(&BTreeSet::new())) {
                (0, _) => { // a cut: what was sent has arrived
                    session = session_for(threads, in_flight, chain.cursors());
                    flying = 0;
                    continue;
                }
                (1, _) => session.on_tick(Duration::from_secs(1)),
                (_, None) => {
                    session.on_advanced(partition(0));
                    if in_flight > 0 { session.on_message(&credit(flying), &[]); }
                    flying = 0;
                    continue;
                }
                (_, Some(want)) => {
                    let at = match want.from { From::After { at, .. } => at, _ => None };
                    let from = held.partition_point(|slot| Some(slot.batch().last()) <= at);
                    let some: Vec<_> = held[from..].iter().take(many).cloned().collect();
                    let found = match (in_memory, some.is_empty()) {
                        (true, true) => at_end(at, None),
                        (true, false) => memory(some),
                        (false, last) => Found::Page { epoch: EPOCH, slots: some, at_end: last, mark: at },
                    };
                    session.on_found(want, found, &Names::default())
                }
            };
            for output in &out {
                let Output::Send(bytes) = output else { panic!("{output:?}") };
                for frame in frames(std::slice::from_ref(output)) {
                    match frame {
                        Frame::Records(frame) => {
                            prop_assert!(in_flight == 0 || flying == 0 || flying + bytes.len() as u64 <= in_flight);
                            flying += bytes.len() as u64;
                            got.extend(chain.records(&frame).unwrap().iter().map(|r| r.offset));
                        }
                        Frame::Skipped(frame) => chain.skipped(&frame).unwrap(),
                        Frame::CaughtUp(frame) => chain.caught_up(&frame).unwrap(),
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
        prop_assert_eq!(got, expected(&offsets, threads, None));
        prop_assert_eq!(chain.cursors()[0].offset, link, "the cursor reaches the end, whatever was left out");
    }
}

#[test]
fn a_part_of_a_batch_has_the_records_of_the_filter() {
    let slot = &slots([batch(EPOCH.get(), None, &[0, 1, 2, 3, 4])])[0];
    let session = session_for(&["thread-1"], 0, vec![]);
    let crate::slot::View::Part { batch, .. } = slot.view(session.filter(), &Names::default()).unwrap()
    else {
        panic!()
    };
    assert_eq!(
        records(&batch).map(|r| r.unwrap().offset).collect::<Vec<_>>(),
        expected(&[0, 1, 2, 3, 4], &["thread-1"], None)
    );
}

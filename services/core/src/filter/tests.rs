use super::{graphs::Graphs, *};
use crate::{
    batch::{Packer, records, tests::envelope, tests::offset},
    position::Epoch,
};
use dashstream_proto::log::v1::{GapReason, RunFacts, ThreadSequence};

fn only(names: &[&str]) -> Tenants {
    Tenants::Only(names.iter().map(ToString::to_string).collect())
}

#[test]
fn a_tenant_is_read_only_where_it_is_named() {
    for (why, tenants, tenant, allowed) in [
        ("all means all", Tenants::All, "acme", true),
        ("all means those without a tenant too", Tenants::All, "", true),
        ("one that is named", only(&["acme", "beta"]), "beta", true),
        ("one that is not", only(&["acme"]), "acm", false),
        ("none is none", only(&[]), "acme", false),
        ("no tenant is nobody's, whatever was named", only(&[""]), "", false),
    ] {
        assert_eq!(tenants.allow(tenant), allowed, "{why}");
    }
}

/// Records 0.. of these tenants, threads, kinds and graphs named.
fn batch_of(records: &[(&str, &str, RecordKind, &str)]) -> Batch {
    let mut packer = Packer::new(Epoch::new(1), Partition::new(0).unwrap(), None);
    for (at, (tenant, thread, kind, graph)) in records.iter().enumerate() {
        let mut envelope = envelope(at as u64);
        envelope.facts.tenant_id = (*tenant).into();
        envelope.facts.thread_id = (*thread).into();
        envelope.facts.kind = *kind;
        envelope.facts.run = RunFacts { graph_name: (*graph).into(), ..Default::default() };
        assert!(packer.push(envelope, b"x"));
    }
    packer.finish().unwrap()
}

fn left(filter: &Filter, batch: &Batch, names: &Names) -> Vec<u64> {
    let offsets = |batch: &Batch| records(batch).map(|record| record.unwrap().offset).collect();
    match filter.apply(batch, names, None, None).unwrap() {
        Selected::All => offsets(batch),
        Selected::Nothing => Vec::new(),
        Selected::Some(part) => offsets(&part),
    }
}

#[test]
fn every_list_that_is_not_empty_must_match() {
    use RecordKind::{Checkpoint, Event};
    let batch = batch_of(&[
        ("acme", "t1", Event, ""),
        ("acme", "t2", Checkpoint, ""),
        ("beta", "t1", Checkpoint, ""),
        ("", "t1", Event, ""),
    ]);
    let list = |values: &[&str]| values.iter().map(ToString::to_string).collect::<Vec<_>>();
    let kinds = vec![i32::from(Checkpoint)];
    let none = wire::Filter::default;
    for (why, access, asked, expected) in [
        ("all", Tenants::All, none(), vec![0, 1, 2, 3]),
        ("what may be read", only(&["acme"]), none(), vec![0, 1]),
        ("a tenant", Tenants::All, wire::Filter { tenant_ids: list(&["beta"]), ..none() }, vec![2]),
        ("threads", Tenants::All, wire::Filter { thread_ids: list(&["t1", "t9"]), ..none() }, vec![0, 2, 3]),
        ("kinds", Tenants::All, wire::Filter { kinds: kinds.clone(), ..none() }, vec![1, 2]),
        ("all of them", only(&["acme"]), wire::Filter { thread_ids: list(&["t1"]), kinds, ..none() }, vec![]),
    ] {
        let filter = Filter::new(&access, asked).unwrap();
        assert_eq!(left(&filter, &batch, &Names::default()), expected, "{why}");
    }
}

#[test]
fn a_filter_that_can_not_be_granted_is_refused_by_name() {
    let none = wire::Filter::default;
    for (asked, expected) in [
        (wire::Filter { tenant_ids: vec!["beta".into()], ..none() }, "which this session may not read"),
        (wire::Filter { kinds: vec![0], ..none() }, "kinds has 0"),
        (wire::Filter { kinds: vec![99], ..none() }, "kinds has 99"),
        (wire::Filter { partitions: vec![-1], ..none() }, "partition -1 is out of range"),
        (wire::Filter { thread_ids: vec![String::new(); 1_025], ..none() }, "has 1025 values"),
    ] {
        let error = Filter::new(&only(&["acme"]), asked).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_loss_is_told_whatever_the_filter() {
    let mut packer = Packer::new(Epoch::new(1), Partition::new(0).unwrap(), None);
    assert!(packer.push_gap(offset(0), offset(4), GapReason::Undecodable));
    let batch = packer.finish().unwrap();
    let asked = wire::Filter { thread_ids: vec!["t".into()], ..Default::default() };
    let filter = Filter::new(&only(&["acme"]), asked).unwrap();
    let since = Since { mark: Some(offset(9)), threads: BTreeMap::new() };
    let selected = filter.apply(&batch, &Names::default(), None, Some(&since)).unwrap();
    assert_eq!(selected, Selected::All);
}

#[test]
fn a_batch_of_events_concerns_all_its_threads() {
    let filter = |thread: &str| {
        let asked = wire::Filter { thread_ids: vec![thread.into()], ..Default::default() };
        Filter::new(&Tenants::All, asked).unwrap()
    };
    let record = Record {
        thread_id: "t1".into(),
        more_threads: vec![ThreadSequence { thread_id: "t2".into(), sequence: None }],
        ..Default::default()
    };
    let matches = |thread| filter(thread).matches(&record, &Names::default(), &BTreeMap::new());
    assert!(matches("t1") && matches("t2") && !matches("t3"));
}

#[test]
fn a_graph_is_that_of_the_thread_from_where_it_is_named() {
    use RecordKind::Event;
    let batch = batch_of(&[
        ("a", "t1", Event, ""),
        ("a", "t2", Event, "plan"),
        ("a", "t2", Event, ""),
        ("a", "t3", Event, ""),
        ("a", "t1", Event, "plan"),
        ("a", "t1", Event, ""),
    ]);
    let asked = wire::Filter { graph_names: vec!["plan".into()], ..Default::default() };
    let filter = Filter::new(&Tenants::All, asked).unwrap();
    let mut graphs = Graphs::new(100);
    assert_eq!(graphs.names([&batch].into_iter()).unwrap_err(), ["t1", "t2", "t3"], "each once");
    graphs.learn("t1", Some("other"));
    graphs.learn("t2", None);
    graphs.learn("t3", Some("plan"));
    let names = graphs.names([&batch].into_iter()).unwrap();
    assert!(!names.complete());
    assert_eq!(left(&filter, &batch, &names), [1, 2, 3, 4, 5]);
}

#[test]
fn what_the_log_says_of_a_graph_is_newer_than_the_directory() {
    let mut graphs = Graphs::new(100);
    let batch = batch_of(&[("a", "t", RecordKind::Event, "new")]);
    graphs.note(&batch);
    graphs.learn("t", Some("old"));
    assert_eq!(graphs.names([&batch].into_iter()).unwrap().graph("t"), Some("new"));
}

#[test]
fn a_thread_without_a_graph_is_asked_for_again_and_the_memory_is_bounded() {
    let mut graphs = Graphs::new(10);
    let batch = batch_of(&[("a", "t", RecordKind::Event, "")]);
    graphs.learn("t", None);
    assert!(graphs.names([&batch].into_iter()).is_ok());
    (0..5).for_each(|_| graphs.on_tick());
    assert!(graphs.names([&batch].into_iter()).is_err());
    for thread in 0..1_000 {
        graphs.learn(&thread.to_string(), Some("g"));
        assert!(graphs.len() <= 10);
    }
    assert!(graphs.names([&batch_of(&[("a", "999", RecordKind::Event, "")])].into_iter()).is_ok());
    (0..120).for_each(|_| graphs.on_tick());
    assert!(graphs.is_empty(), "graphs are asked for again too");
}

#[test]
fn up_to_its_mark_only_what_follows_in_its_threads_is_let_through() {
    let batch = batch_of(&[("a", "t1", RecordKind::Event, ""); 4]);
    let other = batch_of(&[("a", "t2", RecordKind::Event, ""); 4]);
    let since = Since { mark: Some(offset(2)), threads: [("t1".to_owned(), 1)].into() };
    let filter = Filter::all(Tenants::All);
    let left = |batch| match filter.apply(batch, &Names::default(), None, Some(&since)).unwrap() {
        Selected::Some(part) => (part.first_offset, part.last_offset),
        other @ (Selected::All | Selected::Nothing) => panic!("{other:?}"),
    };
    assert_eq!(left(&batch), (1, 3));
    assert_eq!(left(&other), (3, 3));
}

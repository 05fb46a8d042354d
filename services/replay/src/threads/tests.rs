//! Threads, without a store.
use super::*;
use dashstream_core::{
    batch::{Envelope, Packer},
    codec::Facts,
};
use dashstream_proto::log::v1::{RecordKind, RunFacts};

fn record(at: u64, thread: &str, run: RunFacts, more: &[(&str, u64)]) -> Envelope {
    let more_threads =
        more.iter().map(|(thread, sequence)| ((*thread).to_owned(), Some(*sequence))).collect();
    Envelope {
        offset: Offset::clamped(at),
        timestamp_ms: Some(at as i64 * 10),
        facts: Facts {
            kind: RecordKind::Event,
            tenant_id: "acme".into(),
            thread_id: thread.into(),
            sequence: Some(at + 1),
            more_threads,
            run,
            produced_us: None,
        },
        traceparent: String::new(),
        tracestate: String::new(),
    }
}

fn batch() -> Batch {
    let mut packer = Packer::new(Epoch::new(1), Partition::new(0).unwrap(), None);
    let started = RunFacts {
        status: RunStatus::Running.into(),
        graph_name: "rag".into(),
        whole_state: true,
        ..Default::default()
    };
    let failed = RunFacts { errors: 1, cost: 0.5, ..Default::default() };
    let ended = RunFacts { status: RunStatus::Completed.into(), tokens: 9, ..Default::default() };
    assert!(packer.push(record(0, "a", started, &[]), b"0"));
    assert!(packer.push(record(1, "b", failed.clone(), &[("a", 70)]), b"1"));
    assert!(packer.push(record(2, "a", failed, &[]), b"2"));
    assert!(packer.push(record(3, "a", ended, &[]), b"3"));
    assert!(packer.push(record(4, "", RunFacts::default(), &[]), b"4"));
    packer.finish().unwrap()
}

#[test]
fn a_batch_adds_to_each_thread_what_its_records_say() {
    let deltas = deltas(&batch()).unwrap();
    let [a, b] = &deltas[..] else { panic!("{deltas:?}") };
    assert_eq!((a.name.as_str(), a.records, a.first_time_ms, a.last_time_ms), ("a", 4, 0, 30));
    assert_eq!(
        (a.status, a.graph_name.as_str(), a.errors, a.tokens, a.cost),
        (RunStatus::Completed, "rag", 1, 9, 0.5)
    );
    assert_eq!((a.last.get(), a.sequence), (3, Some(70)));
    let whole = a.whole_state.as_ref().unwrap();
    batch::check(whole).unwrap();
    assert_eq!((whole.first_offset, whole.last_offset), (0, 0));
    assert_eq!((b.records, b.errors, b.sequence), (1, 1, Some(2)));
}

#[test]
fn a_thread_is_selected_from_wherever_it_appears() {
    let offsets = |after| select(&batch(), "a", after).unwrap().iter().map(|r| r.offset).collect::<Vec<_>>();
    assert_eq!(offsets(After::Nothing), [0, 1, 2, 3]);
    assert_eq!(offsets(After::Sequence(3)), [1, 3]);
    let at = Some(Offset::clamped(1));
    assert_eq!(offsets(After::Offset { epoch: Epoch::new(1), at }), [2, 3]);
}

#[test]
fn an_index_is_exact_to_the_last_bit() {
    let entry = |batch, sequence| IndexEntry { batch: Offset::clamped(batch), sequence };
    let entries = [entry(0, 0), entry((1 << 53) + 1, (1 << 53) + 1), entry(i64::MAX as u64, i64::MAX as u64)];
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_bytes()).collect();
    assert_eq!(IndexEntry::read_all(&bytes), entries);
    assert_eq!(IndexEntry::read_all(&bytes[..40]), entries[..2]);
    assert!(
        entries[1].may_follow(After::Sequence(1 << 53))
            && !entries[1].may_follow(After::Sequence((1 << 53) + 1))
    );
}

#[test]
fn what_is_gone_is_noticed_and_the_whole_state_stands_in() {
    let at = |value| Offset::new(value).ok();
    let entries = [5, 9, 20].map(|batch| IndexEntry { batch: Offset::clamped(batch), sequence: batch });
    let (kept, gone) = plan(&entries, at(9), After::Nothing);
    assert_eq!((kept.len(), gone), (2, true));
    assert_eq!(plan(&entries, at(9), After::Sequence(5)), (kept, false));
    let whole = deltas(&batch()).unwrap().remove(0).whole_state.unwrap();
    let stands_in = |oldest, after| stand_in(&whole, at(oldest), "a", after).unwrap().is_some();
    assert!(stands_in(6, After::Nothing));
    assert!(!stands_in(0, After::Nothing), "it is among the batches");
    let has = After::Offset { epoch: Epoch::new(1), at: at(0) };
    assert!(!stands_in(6, has), "the reader has it");
    assert!(!stands_in(6, After::Sequence(1)), "the reader has it");
}

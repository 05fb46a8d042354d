use super::*;
use proptest::prelude::*;

pub(crate) fn offset(value: u64) -> Offset {
    Offset::new(value).unwrap()
}

pub(crate) fn envelope(at: u64) -> Envelope {
    let facts = Facts {
        kind: RecordKind::Event,
        tenant_id: "acme".into(),
        thread_id: format!("thread-{}", at % 3),
        sequence: Some(at + 1),
        more_threads: Vec::new(),
        run: RunFacts::default(),
        produced_us: None,
    };
    Envelope {
        offset: offset(at),
        timestamp_ms: Some(1),
        facts,
        traceparent: String::new(),
        tracestate: String::new(),
    }
}

/// A batch of epoch `epoch`, partition 0, that follows `link` and holds `offsets`.
pub(crate) fn batch(epoch: u64, link: Option<u64>, offsets: &[u64]) -> Batch {
    let mut packer = Packer::new(Epoch::new(epoch), Partition::new(0).unwrap(), link.map(offset));
    for at in offsets {
        assert!(packer.push(envelope(*at), format!("payload {at}").as_bytes()));
    }
    packer.finish().unwrap()
}

#[test]
fn what_is_packed_is_what_prost_reads_with_the_payload_untouched() {
    let batch = batch(7, Some(2), &[3, 5, 9]);
    check(&batch).unwrap();
    let all: Vec<_> = records(&batch).map(Result::unwrap).collect();
    assert_eq!(
        all.iter().map(|r| (r.prev_offset, r.offset)).collect::<Vec<_>>(),
        [(Some(2), 3), (Some(3), 5), (Some(5), 9)]
    );
    assert_eq!(all[1].payload, "payload 5");
    let whole = dashstream_proto::log::v1::Records::decode(batch.records.clone()).unwrap();
    assert_eq!(whole.records, all);
    assert_eq!(whole.encode_to_vec().len(), batch.records.len(), "not a byte more than prost's own");
}

#[test]
fn a_payload_is_a_slice_of_the_batch() {
    let batch = batch(1, None, &[0, 1]);
    let buffer = batch.records.as_ptr_range();
    for record in records(&batch) {
        let payload = record.unwrap().payload.as_ptr_range();
        assert!(buffer.start <= payload.start && payload.end <= buffer.end);
    }
}

#[test]
fn a_record_read_again_is_not_packed_twice() {
    let mut packer = Packer::new(Epoch::new(1), Partition::new(0).unwrap(), Some(offset(4)));
    assert!(!packer.push(envelope(4), b"again"));
    assert!(packer.push(envelope(6), b"new"));
    assert!(!packer.push(envelope(5), b"late"));
    assert!(!packer.push_gap(offset(5), offset(6), GapReason::Undecodable));
    assert_eq!(packer.finish().unwrap().record_count, 1);
    assert!(packer.finish().is_none());
}

#[test]
fn a_gap_stands_in_the_chain() {
    let mut packer = Packer::new(Epoch::new(1), Partition::new(0).unwrap(), Some(offset(4)));
    assert!(packer.push_gap(offset(5), offset(8), GapReason::SourceRetention));
    assert!(packer.push(envelope(9), b"after"));
    let batch = packer.finish().unwrap();
    check(&batch).unwrap();
    let gap = records(&batch).next().unwrap().unwrap().gap.unwrap();
    assert_eq!((gap.first_offset, gap.last_offset), (5, 8));
}

#[test]
fn parts_of_a_batch_keep_its_times() {
    let whole = Batch { ingested_ms: Some(5), stored_ms: Some(7), ..batch(1, Some(1), &[2, 3, 4]) };
    let cut = cut_after(&whole, Some(offset(2))).unwrap().unwrap();
    let pieces = split(&whole, 1, 100).unwrap().into_iter().filter_map(|piece| match piece {
        Piece::Run(part) => Some(part),
        Piece::TooLarge { .. } => None,
    });
    let parts: Vec<_> = pieces.chain([cut]).map(|part| (part.ingested_ms, part.stored_ms)).collect();
    assert_eq!(parts, [(Some(5), Some(7)); 4]);
}

#[test]
fn a_lying_batch_is_refused_by_name() {
    let good = batch(1, Some(1), &[2, 3]);
    let twice = [good.records.clone(), good.records.clone()].concat();
    for (why, bad, expected) in [
        (
            "a count",
            Batch { record_count: 3, ..good.clone() },
            "the batch's record_count says 3 where its records say 2",
        ),
        (
            "a bound",
            Batch { last_offset: 4, ..good.clone() },
            "the batch's last_offset says 4 where its records say 3",
        ),
        (
            "a link",
            Batch { prev_offset: Some(0), ..good.clone() },
            "the record at 2 is linked to Some(1) where Some(0) comes before it",
        ),
        (
            "no records",
            Batch { records: Bytes::new(), ..good.clone() },
            "the batch has no records: expected at least 1",
        ),
        (
            "backwards",
            Batch { records: twice.into(), ..good.clone() },
            "the record at 2 is linked to Some(1) where Some(3) comes before it",
        ),
        (
            "a packing",
            Batch { packing: 9, ..good.clone() },
            "the batch's packing 9 is unknown: expected 1 (plain)",
        ),
        (
            "a partition",
            Batch { partition: -1, ..good.clone() },
            "the batch holds partition -1 is out of range: expected 0 to 2147483647",
        ),
    ] {
        assert_eq!(check(&bad).unwrap_err().to_string(), expected, "{why}");
    }
}

proptest! {
    #[test]
    fn cutting_anywhere_leaves_a_whole_batch_of_the_rest(
        steps in prop::collection::vec(1_u64..4, 1..30), cut in 0_u64..120,
    ) {
        let offsets: Vec<_> = steps.iter().scan(0, |at, step| { *at += step; Some(*at) }).collect();
        let whole = batch(1, Some(0), &offsets);
        let rest: Vec<_> = offsets.iter().copied().filter(|at| *at > cut).collect();
        match cut_after(&whole, Some(offset(cut))).unwrap() {
            None => prop_assert!(rest.is_empty()),
            Some(part) => {
                check(&part).unwrap();
                let kept: Vec<_> = records(&part).map(|r| r.unwrap().offset).collect();
                prop_assert_eq!(kept, rest);
                prop_assert_eq!(part.records.as_ptr_range().end, whole.records.as_ptr_range().end, "no copy");
            }
        }
    }

    #[test]
    fn pieces_are_whole_batches_and_leave_out_only_what_is_too_large(
        sizes in prop::collection::vec(0_usize..400, 1..30), run in 1_usize..900, most in 0_usize..500,
    ) {
        let mut packer = Packer::new(Epoch::new(1), Partition::new(0).unwrap(), None);
        for (at, size) in sizes.iter().enumerate() {
            prop_assert!(packer.push(envelope(at as u64), &vec![7; *size]));
        }
        let batch = packer.finish().unwrap();
        let mut next = 0;
        for piece in split(&batch, run, most).unwrap() {
            match piece {
                Piece::Run(part) => {
                    check(&part).unwrap();
                    prop_assert_eq!(part.prev_offset, u64::checked_sub(next, 1));
                    prop_assert!(part.records.len() <= run || part.record_count == 1);
                    prop_assert!(batch.records.as_ptr_range().start <= part.records.as_ptr(), "no copy");
                    for record in records(&part) {
                        let record = record.unwrap();
                        prop_assert_eq!(record.offset, next);
                        prop_assert!(record.payload.len() <= most && record.payload.len() == sizes[next as usize]);
                        next += 1;
                    }
                }
                Piece::TooLarge { at, link, bytes } => {
                    prop_assert_eq!((at.get(), link.map(Offset::get)), (next, next.checked_sub(1)));
                    prop_assert!(bytes > most && bytes == sizes[next as usize]);
                    next += 1;
                }
            }
        }
        prop_assert_eq!(next as usize, sizes.len());
    }

    #[test]
    fn no_bytes_make_unpacking_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<u64>()) {
        let batch = Batch { records: bytes.into(), last_offset: at, record_count: 1, packing: 1, ..Default::default() };
        let _checked = check(&batch);
        let _pieces = split(&batch, 10, 10);
        let _cut = cut_after(&batch, Offset::new(at / 2).ok());
    }
}

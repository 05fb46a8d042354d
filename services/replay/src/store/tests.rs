use super::*;
use dashstream_core::batch::Packer;
use proptest::prelude::*;

const EPOCH: Epoch = Epoch::new(7);

fn partition() -> Partition {
    Partition::new(0).unwrap()
}

fn at(value: u64) -> Link {
    Some(Offset::clamped(value))
}

/// A batch of gaps of one offset each, which are the smallest records.
fn batch(link: Link, offsets: &[u64]) -> Batch {
    let mut packer = Packer::new(EPOCH, partition(), link);
    for offset in offsets {
        let here = Offset::clamped(*offset);
        assert!(packer.push_gap(here, here, GapReason::Skipped));
    }
    packer.finish().unwrap()
}

fn after(epoch: Epoch, at: Link) -> From {
    From::After { epoch, at }
}

/// A log that begins behind 499 and holds 500, 501, 510 and 520; and what a store finds there for this reader.
fn found(from: From) -> Raw {
    let all = [batch(at(499), &[500, 501]), batch(at(501), &[510]), batch(at(510), &[520])];
    let batches = match from {
        From::Latest => Vec::new(),
        From::After { at, .. } => all.into_iter().filter(|batch| Some(batch.last()) > at).collect(),
        From::Earliest | From::AtTime(_) => all.to_vec(),
    };
    Raw { epoch: Some(EPOCH), held: at(520), earliest: Some(Offset::clamped(500)), records: 4, batches }
}

/// Offsets read, the bounds of what is lost before them, and whether that is all.
type Told = (Vec<u64>, Option<(u64, u64)>, bool);

fn told(page: Page) -> Told {
    let Page::Batches { gap, batches, at_end, .. } = page else { panic!("{page:?}") };
    let offsets = batches.iter().flat_map(batch::records).map(|record| record.unwrap().offset);
    (offsets.collect(), gap.map(|gap| (gap.first_offset, gap.last_offset)), at_end)
}

#[test]
fn each_position_is_read_from_where_it_says() {
    let all = vec![500, 501, 510, 520];
    for (why, from, expected) in [
        ("the oldest record kept", From::Earliest, (all.clone(), None, true)),
        ("only what comes later", From::Latest, (vec![], None, true)),
        ("nothing had, and the beginning is gone", after(EPOCH, None), (all.clone(), Some((0, 499)), true)),
        ("offset 0 is a position as any other", after(EPOCH, at(0)), (all.clone(), Some((1, 499)), true)),
        ("the last record let go", after(EPOCH, at(499)), (all, None, true)),
        ("in the middle of a batch", after(EPOCH, at(500)), (vec![501, 510, 520], None, true)),
        ("between two batches", after(EPOCH, at(501)), (vec![510, 520], None, true)),
        ("the end", after(EPOCH, at(520)), (vec![], None, true)),
    ] {
        assert_eq!(told(page(partition(), from, found(from)).unwrap()), expected, "{why}");
    }
}

#[test]
fn a_page_that_is_not_all_says_so() {
    let from = after(EPOCH, at(499));
    let mut raw = found(from);
    raw.batches.truncate(2);
    assert_eq!(told(page(partition(), from, raw).unwrap()), (vec![500, 501, 510], None, false));
}

#[test]
fn what_can_not_be_judged_is_never_complete() {
    let unknown = Raw::default();
    for from in [From::Earliest, From::Latest, From::AtTime(0), after(EPOCH, None), after(EPOCH, at(3))] {
        assert_eq!(page(partition(), from, unknown.clone()).unwrap(), Page::Seeding, "{from:?}");
    }
    let beyond = after(EPOCH, at(521));
    assert_eq!(
        page(partition(), beyond, found(beyond)).unwrap(),
        Page::Seeding,
        "it was held, and may come back"
    );
    let other = after(Epoch::new(6), at(501));
    let stale = Page::Stale { epoch: EPOCH, earliest: Some(Offset::clamped(500)), held: at(520) };
    assert_eq!(page(partition(), other, found(other)).unwrap(), stale);
}

#[test]
fn an_empty_log_tells_whether_it_was_lost_or_let_go() {
    for (records, reason) in [(4, GapReason::StoreLost), (0, GapReason::Retention)] {
        let empty = Raw { epoch: Some(EPOCH), held: at(520), earliest: None, records, batches: Vec::new() };
        let read = page(partition(), after(EPOCH, at(500)), empty.clone()).unwrap();
        let Page::Batches { gap: Some(gap), .. } = &read else { panic!("{read:?}") };
        assert_eq!(gap.reason(), reason);
        assert_eq!(told(read), (vec![], Some((501, 520)), true));
        assert_eq!(told(page(partition(), after(EPOCH, at(520)), empty).unwrap()), (vec![], None, true));
    }
}

#[test]
fn fetches_are_joined_only_where_they_follow() {
    let first = || Raw { batches: vec![batch(None, &[0, 1])], ..found(From::Latest) };
    for (why, more, follows) in [
        ("the next batch", Raw { batches: vec![batch(at(1), &[2])], ..first() }, true),
        ("trimming was faster", Raw { batches: vec![batch(at(2), &[3])], ..first() }, false),
        (
            "another life",
            Raw { epoch: Some(Epoch::new(8)), batches: vec![batch(at(1), &[2])], ..first() },
            false,
        ),
        ("nothing", Raw { batches: Vec::new(), ..first() }, false),
    ] {
        let mut raw = first();
        assert_eq!(raw.join(more), follows, "{why}");
        assert_eq!(raw.batches.len(), 1 + usize::from(follows), "{why}");
    }
}

#[test]
fn a_batch_fits_only_behind_what_is_held() {
    let new = batch(at(4), &[5, 7, 9]);
    let last = Offset::clamped;
    for (why, held, expected) in [
        ("it follows", at(4), Fit::Append(new.clone())),
        ("held in part", at(5), Fit::Append(batch(at(5), &[7, 9]))),
        ("held as a whole", at(9), Fit::Done(Appended::Held { last: last(9) })),
        ("held long ago", at(30), Fit::Done(Appended::Held { last: last(30) })),
        ("the store lost its end", at(3), Fit::Done(Appended::Link { epoch: EPOCH, held: at(3) })),
        ("the store lost all", None, Fit::Done(Appended::Link { epoch: EPOCH, held: None })),
        ("it has another record", at(6), Fit::Done(Appended::Divergent { epoch: EPOCH, held: at(6) })),
        ("the last is another", at(8), Fit::Done(Appended::Divergent { epoch: EPOCH, held: at(8) })),
    ] {
        assert_eq!(fit(&new, held).unwrap(), expected, "{why}");
    }
}

proptest! {
    /// Whoever writes what, in whatever order and however often: what a log takes is a chain without a hole.
    #[test]
    fn whatever_is_appended_the_log_is_a_chain(writes in prop::collection::vec((0_u64..30, 1_u64..8), 1..60)) {
        let (mut held, mut next) = (None, 0);
        for (from, count) in writes {
            let offsets: Vec<_> = (from..from + count).collect();
            let batch = batch(from.checked_sub(1).and_then(at), &offsets);
            match fit(&batch, held).unwrap() {
                Fit::Append(rest) => {
                    prop_assert_eq!((rest.link(), rest.first_offset), (held, next));
                    (held, next) = (Some(rest.last()), rest.last_offset + 1);
                }
                Fit::Done(Appended::Held { .. }) => prop_assert!(Some(batch.last()) <= held),
                Fit::Done(Appended::Link { .. }) => prop_assert!(from > next),
                Fit::Done(other) => prop_assert!(false, "{other:?}"),
            }
        }
    }
}

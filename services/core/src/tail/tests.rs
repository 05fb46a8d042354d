use super::*;
use crate::slot::Stamp;
use crate::{
    batch::{
        self,
        tests::{batch, offset},
    },
    ring::Read,
};
use proptest::prelude::*;

const EPOCH: Epoch = Epoch::new(5);

fn on(tail: &mut Tail, input: Input) -> Output {
    tail.on(input, Stamp::default())
}

fn at(value: u64) -> Link {
    Some(offset(value))
}

/// A log of the offsets 0, 2, 4, …: batches between any two of its records.
fn part(from: Link, to: u64) -> Batch {
    let first = from.map_or(0, |from| from.get() + 2);
    batch(EPOCH.get(), from.map(|from| from.get()), &(first..=to).step_by(2).collect::<Vec<_>>())
}

#[test]
fn a_first_word_sets_where_the_ring_stands() {
    let mut tail = Tail::new(1 << 20);
    assert_eq!(on(&mut tail, Input::Heartbeat { epoch: EPOCH, durable: at(8) }), Output::Advanced);
    assert_eq!(tail.ring().end(), at(8));
    assert_eq!(on(&mut tail, Input::Live(part(at(8), 12))), Output::Advanced);
    assert_eq!(tail.ring().end(), at(12));
}

#[test]
fn a_break_in_the_feed_is_filled_from_replay() {
    let mut tail = Tail::new(1 << 20);
    on(&mut tail, Input::Live(part(None, 4)));
    assert_eq!(on(&mut tail, Input::Live(part(at(8), 12))), Output::Fetch { epoch: EPOCH, after: at(4) });
    assert_eq!(on(&mut tail, Input::Live(part(at(12), 14))), Output::Nothing, "one fetch at a time");
    let page = Input::Page { epoch: EPOCH, batches: vec![part(at(4), 8)], end: at(8) };
    assert_eq!(on(&mut tail, page), Output::Advanced);
    assert_eq!(tail.ring().end(), at(14), "what waited is spliced on");
}

#[test]
fn a_record_that_no_feed_brought_is_found_by_the_heartbeat() {
    let mut tail = Tail::new(1 << 20);
    on(&mut tail, Input::Live(part(None, 4)));
    let fetch = Output::Fetch { epoch: EPOCH, after: at(4) };
    assert_eq!(on(&mut tail, Input::Heartbeat { epoch: EPOCH, durable: at(6) }), fetch);
    assert_eq!(on(&mut tail, Input::FetchFailed), Output::Nothing);
    assert_eq!(tail.on_tick(), fetch, "and is tried again");
    let page = Input::Page { epoch: EPOCH, batches: vec![part(at(4), 6)], end: at(6) };
    assert_eq!(on(&mut tail, page), Output::Advanced);
    assert_eq!(tail.on_tick(), Output::Nothing);
}

#[test]
fn what_replay_lost_moves_the_ring_behind_the_gap() {
    let mut tail = Tail::new(1 << 20);
    on(&mut tail, Input::Live(part(None, 4)));
    on(&mut tail, Input::Live(part(at(20), 24)));
    on(&mut tail, Input::Gap { epoch: EPOCH, last: at(20) });
    assert_eq!(tail.ring().end(), at(24));
    assert!(matches!(tail.ring().read(at(4), 1), Read::Behind), "readers meet the gap in replay");
}

#[test]
fn a_later_epoch_replaces_the_log_and_an_earlier_one_is_ignored() {
    let mut tail = Tail::new(1 << 20);
    on(&mut tail, Input::Live(part(None, 40)));
    assert_eq!(on(&mut tail, Input::Live(batch(6, None, &[0, 1]))), Output::Advanced);
    assert_eq!((tail.epoch(), tail.ring().end()), (Some(Epoch::new(6)), at(1)));
    assert_eq!(on(&mut tail, Input::Live(part(at(40), 42))), Output::Nothing);
    assert_eq!(on(&mut tail, Input::Heartbeat { epoch: EPOCH, durable: at(42) }), Output::Nothing);
    assert_eq!((tail.epoch(), tail.durable()), (Some(Epoch::new(6)), at(1)));
}

#[test]
fn a_replay_that_is_a_life_behind_is_asked_again_only_at_the_next_tick() {
    let mut tail = Tail::new(1 << 20);
    on(&mut tail, Input::Heartbeat { epoch: EPOCH, durable: at(4) });
    let fetch = Output::Fetch { epoch: EPOCH, after: at(4) };
    assert_eq!(on(&mut tail, Input::Heartbeat { epoch: EPOCH, durable: at(8) }), fetch);
    assert_eq!(on(&mut tail, Input::Stale { epoch: Epoch::new(4), end: at(90) }), Output::Nothing);
    assert_eq!((tail.epoch(), tail.on_tick()), (Some(EPOCH), fetch));
}

proptest! {
    /// Owners repeat, overtake and lose; replay pages are short or fail. The ring never breaks, and ends whole.
    #[test]
    fn the_ring_is_always_the_log_and_reaches_its_end(
        steps in prop::collection::vec((0_u8..6, 0_u64..6, 1_u64..5), 1..120),
    ) {
        let mut tail = Tail::new(600);
        let (mut end, mut outstanding) = (None::<u64>, None::<Link>);
        let link = |value: Option<u64>| value.map(offset);
        let mut out = Vec::new();
        for (what, back, size) in steps.into_iter().chain(std::iter::repeat_n((3, 0, 50), 60)) {
            let from = end.and_then(|end| end.checked_sub(back * 2));
            match what {
                0 | 1 => { // the log grows; the feed brings it, perhaps with some of what came before
                    let to = end.map_or(0, |end| end + 2) + (size - 1) * 2;
                    end = Some(to);
                    if what == 0 { out.push(on(&mut tail, Input::Live(part(link(from), to)))); }
                }
                2 => out.push(on(&mut tail, Input::Heartbeat { epoch: EPOCH, durable: link(end) })),
                3 => match outstanding.take() { // replay answers what was asked
                    Some(after) => {
                        let next = after.map_or(0, |after| after.get() + 2);
                        let to = (next + (size - 1) * 2).min(end.unwrap_or(0));
                        let batches = if next <= to { vec![part(after, to)] } else { vec![] };
                        out.push(on(&mut tail, Input::Page { epoch: EPOCH, batches, end: link(end) }));
                    }
                    None => {
                        out.push(on(&mut tail, Input::Heartbeat { epoch: EPOCH, durable: link(end) }));
                    }
                },
                4 => if outstanding.take().is_some() { out.push(on(&mut tail, Input::FetchFailed)) },
                _ => out.push(tail.on_tick()),
            }
            for output in out.drain(..) {
                if let Output::Fetch { after, .. } = output {
                    prop_assert!(outstanding.is_none(), "one fetch at a time");
                    outstanding = Some(after);
                }
            }
            prop_assert!(tail.ring().end() <= link(end));
        }
        if let Some(end) = end { // at the end all owners were heard and replay answered
            prop_assert_eq!(tail.ring().end(), at(end));
        }
        let mut reader = match tail.ring().first() {
            Some(first) => first.get().checked_sub(2),
            None => tail.ring().end().map(|end| end.get()),
        };
        while let Read::Slots(slots, _) = tail.ring().read(link(reader), 1) {
            prop_assert_eq!(slots[0].batch().prev_offset, reader);
            batch::check(slots[0].batch()).unwrap();
            reader = Some(slots[0].batch().last_offset);
        }
        prop_assert_eq!(link(reader), tail.ring().end());
    }
}

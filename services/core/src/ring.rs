//! The hot end of one partition's log: contiguous, bounded in bytes, read by any number of clients.
use crate::{
    batch::Span,
    position::{Link, Offset, Step, step},
    slot::{Slot, Stamp},
};
use dashstream_proto::log::v1::Batch;
use std::collections::VecDeque;

/// How much went through a ring since it was made. Differences tell how far a reader that was in it fell behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    pub records: u64,
    /// Of frames.
    pub bytes: u64,
}

/// What a reader finds.
#[derive(Clone, Debug)]
pub enum Read {
    /// The batches behind its position, adjacent to it, and what passed up to the last of them. The first may begin
    /// at or before the position and must be cut.
    Slots(Vec<Slot>, Passed),
    /// It has all that the ring has.
    AtEnd,
    /// It is behind what the ring holds: read from replay.
    Behind,
    /// It is ahead of what the ring has heard of: wait.
    Ahead,
}

/// Invariant: each slot's link is the one's last before it, `base` for the first; `end` is the last slot's
/// last, or `base` when there is none.
#[derive(Debug)]
pub struct Ring {
    base: Link,
    end: Link,
    slots: VecDeque<(Slot, Passed)>,
    bytes: usize,
    bytes_max: usize,
    passed: Passed,
}

impl Ring {
    /// An empty ring that stands at `base`.
    pub fn new(base: Link, bytes_max: usize) -> Self {
        Self { base, end: base, slots: VecDeque::new(), bytes: 0, bytes_max, passed: Passed::default() }
    }

    /// The last record it holds or stands at.
    pub fn end(&self) -> Link {
        self.end
    }

    /// Bytes of frames held. At most the bound, or one slot when that alone is more.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What passed up to its end.
    pub fn passed(&self) -> Passed {
        self.passed
    }

    /// Forgets everything and stands at `base`.
    pub fn rebase(&mut self, base: Link) {
        *self = Self { passed: self.passed, ..Self::new(base, self.bytes_max) };
    }

    /// Sets the bound; what is beyond it is let go of at once. With 0 nothing is kept until more comes.
    pub fn bound(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
        self.shrink(usize::from(bytes_max > 0));
    }

    /// Adds a batch that is adjacent to the end; what of it is held already must have been cut off.
    ///
    /// Returns false, and adds nothing, when it is not adjacent.
    #[must_use]
    pub fn push(&mut self, batch: Batch, stamp: Stamp) -> bool {
        if step(self.end, batch.link(), batch.first()) != Step::Adjacent {
            return false;
        }
        let slot = Slot::new(batch, stamp);
        self.bytes += slot.frame().len();
        self.end = Some(slot.batch().last());
        self.passed.records += u64::from(slot.batch().record_count);
        self.passed.bytes += slot.frame().len() as u64;
        self.slots.push_back((slot, self.passed));
        self.shrink(1);
        true
    }

    fn shrink(&mut self, slots_min: usize) {
        while self.bytes > self.bytes_max && self.slots.len() > slots_min {
            let Some((oldest, _)) = self.slots.pop_front() else { return };
            self.bytes -= oldest.frame().len();
            self.base = Some(oldest.batch().last());
        }
    }

    /// What follows a reader at `at`, up to about `bytes_max` bytes of frames, at least one slot.
    pub fn read(&self, at: Link, bytes_max: usize) -> Read {
        if at == self.end {
            return Read::AtEnd;
        }
        if at > self.end {
            return Read::Ahead;
        }
        if at < self.base {
            return Read::Behind;
        }
        let from = self.slots.partition_point(|(slot, _)| Some(slot.batch().last()) <= at);
        let (mut bytes, mut slots, mut passed) = (0, Vec::new(), Passed::default());
        for (slot, through) in self.slots.range(from..) {
            if bytes > 0 && bytes + slot.frame().len() > bytes_max {
                break;
            }
            bytes += slot.frame().len();
            slots.push(slot.clone());
            passed = *through;
        }
        Read::Slots(slots, passed)
    }

    /// The first offset it holds.
    pub fn first(&self) -> Option<Offset> {
        self.slots.front().map(|(slot, _)| slot.batch().first())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        batch::tests::{batch, offset},
        frame,
    };
    use proptest::prelude::*;

    fn found(ring: &Ring, at: Option<u64>) -> String {
        match ring.read(at.map(offset), usize::MAX) {
            Read::Slots(slots, _) => format!("{} from {}", slots.len(), slots[0].batch().first_offset),
            Read::AtEnd => "end".into(),
            Read::Behind => "behind".into(),
            Read::Ahead => "ahead".into(),
        }
    }

    #[test]
    fn a_reader_is_told_where_it_stands() {
        let mut ring = Ring::new(Some(offset(9)), 1 << 20);
        assert_eq!(
            [found(&ring, Some(9)), found(&ring, Some(8)), found(&ring, Some(10))],
            ["end", "behind", "ahead"]
        );
        assert!(ring.push(batch(1, Some(9), &[10, 12]), Stamp::default()));
        assert!(ring.push(batch(1, Some(12), &[13, 20]), Stamp::default()));
        assert_eq!(found(&ring, Some(9)), "2 from 10");
        assert_eq!(found(&ring, Some(10)), "2 from 10");
        assert_eq!(found(&ring, Some(12)), "1 from 13");
        assert_eq!(found(&ring, Some(20)), "end");
        assert_eq!(found(&ring, None), "behind");
    }

    #[test]
    fn what_is_not_adjacent_is_not_taken() {
        let mut ring = Ring::new(None, 1 << 20);
        assert!(!ring.push(batch(1, Some(3), &[4]), Stamp::default()));
        assert!(ring.push(batch(1, None, &[4]), Stamp::default()));
        assert!(!ring.push(batch(1, Some(5), &[6]), Stamp::default()));
        assert!(!ring.push(batch(1, Some(3), &[4]), Stamp::default()));
        assert_eq!(ring.end(), Some(offset(4)));
    }

    #[test]
    fn a_lower_bound_lets_go_at_once_and_its_readers_are_behind() {
        let mut ring = Ring::new(None, 1 << 20);
        assert!(ring.push(batch(1, None, &[0, 1]), Stamp::default()));
        assert!(ring.push(batch(1, Some(1), &[2]), Stamp::default()));
        ring.bound(1);
        assert_eq!((found(&ring, Some(0)), found(&ring, Some(1))), ("behind".into(), "1 from 2".into()));
        ring.bound(0);
        assert_eq!(
            (ring.bytes(), found(&ring, Some(1)), found(&ring, Some(2))),
            (0, "behind".into(), "end".into())
        );
        assert!(ring.push(batch(1, Some(2), &[3]), Stamp::default()));
        assert_eq!(found(&ring, Some(2)), "1 from 3", "what comes is kept for those who follow");
    }

    proptest! {
        #[test]
        fn the_ring_is_a_contiguous_end_of_the_log_within_its_bound(
            sizes in prop::collection::vec(1_u64..20, 1..60), bound in 100_usize..4_000,
        ) {
            let mut ring = Ring::new(None, bound);
            let (mut link, mut at, mut largest) = (None, 0, 0);
            for size in sizes {
                let offsets: Vec<_> = (at..at + size).collect();
                let batch = batch(1, link, &offsets);
                largest = largest.max(frame::whole(&batch, Stamp::default()).len());
                prop_assert!(ring.push(batch, Stamp::default()));
                at += size;
                link = Some(at - 1);
                prop_assert!(ring.bytes() <= bound.max(largest));
            }
            let mut reader = ring.first().map(|first| first.get()).and_then(|first| first.checked_sub(1));
            while let Read::Slots(slots, passed) = ring.read(reader.map(offset), 1) {
                prop_assert_eq!(slots.len(), 1);
                prop_assert_eq!(slots[0].batch().prev_offset, reader);
                reader = Some(slots[0].batch().last_offset);
                prop_assert_eq!(passed.records, slots[0].batch().last_offset + 1);
            }
            prop_assert_eq!(reader, link);
        }
    }
}

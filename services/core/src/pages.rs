//! Pages of the past that were read lately: what one reader asked for, the next one finds, wherever within it that
//! one stands. Bounded in bytes.
use crate::{
    batch::Span,
    position::{Epoch, Link, Partition},
    slot::Slot,
};
use std::collections::BTreeMap;

/// A page that nobody asked for in so many ticks is forgotten, so that nothing outlives retention by much.
const IDLE_TICKS_MAX: u32 = 30;

/// Adjacent batches of one partition; `used` and `idle` tell when they were asked for last.
#[derive(Debug)]
struct Page {
    slots: Vec<Slot>,
    bytes: usize,
    used: u64,
    idle: u32,
}

/// Invariant: `bytes` is the sum over all pages, and at most the bound.
#[derive(Debug)]
pub struct Pages {
    /// By the link of its first batch.
    pages: BTreeMap<(Partition, Epoch, Link), Page>,
    bytes: usize,
    bytes_max: usize,
    uses: u64,
}

impl Pages {
    /// Keeps at most `bytes_max` bytes of frames.
    pub fn new(bytes_max: usize) -> Self {
        Self { pages: BTreeMap::new(), bytes: 0, bytes_max, uses: 0 }
    }

    /// Bytes of frames kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The batches behind `at`, as far as the page goes that has the first of them. That one may begin before the
    /// position and must be cut.
    pub fn find(&mut self, partition: Partition, epoch: Epoch, at: Link) -> Option<Vec<Slot>> {
        let (key, page) = self.pages.range_mut(..=(partition, epoch, at)).next_back()?;
        if (key.0, key.1) != (partition, epoch) {
            return None;
        }
        let from = page.slots.partition_point(|slot| Some(slot.batch().last()) <= at);
        if from == page.slots.len() {
            return None;
        }
        self.uses += 1;
        (page.used, page.idle) = (self.uses, 0);
        Some(page.slots[from..].to_vec())
    }

    /// Keeps what was read, in place of a page that begins at the same batch.
    pub fn keep(&mut self, partition: Partition, epoch: Epoch, slots: &[Slot]) {
        let Some(first) = slots.first() else { return };
        let bytes = slots.iter().map(|slot| slot.frame().len()).sum();
        if bytes > self.bytes_max {
            return;
        }
        self.uses += 1;
        let page = Page { slots: slots.to_vec(), bytes, used: self.uses, idle: 0 };
        self.bytes += bytes;
        if let Some(before) = self.pages.insert((partition, epoch, first.batch().link()), page) {
            self.bytes -= before.bytes;
        }
        while self.bytes > self.bytes_max {
            let oldest = self.pages.iter().min_by_key(|(_, page)| page.used).map(|(key, _)| *key);
            let Some(page) = oldest.and_then(|key| self.pages.remove(&key)) else { return };
            self.bytes -= page.bytes;
        }
    }

    /// Time passes: a tick is a second.
    pub fn on_tick(&mut self) {
        self.pages.values_mut().for_each(|page| page.idle += 1);
        self.pages.retain(|_, page| page.idle < IDLE_TICKS_MAX);
        self.bytes = self.pages.values().map(|page| page.bytes).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        batch::tests::{batch, offset},
        slot::Stamp,
    };

    fn page(link: Option<u64>, sizes: &[u64]) -> Vec<Slot> {
        let mut link = link;
        let slot = |size: &u64| {
            let first = link.map_or(0, |link| link + 1);
            let slot =
                Slot::new(batch(1, link, &(first..first + size).collect::<Vec<_>>()), Stamp::default());
            link = Some(first + size - 1);
            slot
        };
        sizes.iter().map(slot).collect()
    }

    fn p(value: i32) -> Partition {
        Partition::new(value).unwrap()
    }

    fn found(pages: &mut Pages, partition: i32, epoch: u64, at: Option<u64>) -> Option<(Option<u64>, usize)> {
        let slots = pages.find(p(partition), Epoch::new(epoch), at.map(offset))?;
        Some((slots[0].batch().prev_offset, slots.len()))
    }

    #[test]
    fn a_reader_anywhere_within_a_page_finds_the_rest_of_it() {
        let mut pages = Pages::new(1 << 20);
        pages.keep(p(0), Epoch::new(1), &page(Some(9), &[5, 5]));
        for (why, asked, expected) in [
            ("at its beginning", (0, 1, Some(9)), Some((Some(9), 2))),
            ("within a batch", (0, 1, Some(12)), Some((Some(9), 2))),
            ("between batches", (0, 1, Some(14)), Some((Some(14), 1))),
            ("at its end", (0, 1, Some(19)), None),
            ("before it", (0, 1, Some(8)), None),
            ("before the log", (0, 1, None), None),
            ("another epoch", (0, 2, Some(12)), None),
            ("another partition", (1, 1, Some(12)), None),
        ] {
            assert_eq!(found(&mut pages, asked.0, asked.1, asked.2), expected, "{why}");
        }
    }

    #[test]
    fn the_pages_asked_for_last_are_kept_within_the_bound() {
        let one = page(None, &[10])[0].frame().len();
        let mut pages = Pages::new(2 * one + 20);
        for partition in 0..2 {
            pages.keep(p(partition), Epoch::new(1), &page(None, &[10]));
        }
        assert!(found(&mut pages, 0, 1, None).is_some());
        pages.keep(p(2), Epoch::new(1), &page(None, &[10]));
        assert!(pages.bytes() <= 2 * one + 20);
        assert!(found(&mut pages, 1, 1, None).is_none(), "the one not asked for went");
        assert!(found(&mut pages, 0, 1, None).is_some() && found(&mut pages, 2, 1, None).is_some());
        pages.keep(p(0), Epoch::new(1), &page(None, &[500]));
        assert!(found(&mut pages, 2, 1, None).is_some(), "what alone is too much is not kept");
    }

    #[test]
    fn a_page_that_nobody_asks_for_is_forgotten() {
        let mut pages = Pages::new(1 << 20);
        pages.keep(p(0), Epoch::new(1), &page(None, &[10]));
        (0..29).for_each(|_| pages.on_tick());
        assert!(found(&mut pages, 0, 1, None).is_some());
        (0..30).for_each(|_| pages.on_tick());
        assert_eq!((pages.bytes(), found(&mut pages, 0, 1, None)), (0, None));
    }
}

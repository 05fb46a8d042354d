//! When a page has enough. Pure: the clock is handed in.
use std::time::Duration;

/// What one round trip fetches of a log, bytes as stored: more would hold up all others who use Redis.
pub const FETCH_BYTES: u64 = 1 << 20;
/// Batches of a thread that are fetched first, when nobody knows how large they are.
const BATCHES_AT_FIRST: usize = 16;
/// Most batches of a thread that are fetched at once.
const BATCHES_AT_ONCE: usize = 128;
/// What the batches of a thread that are fetched at once should have together, bytes as stored.
const BATCHES_BYTES: u64 = 4 << 20;

/// What a page may have and take. Whichever is used up first ends it, but never before it holds something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most records. Pages of a partition are not cut to it: their batches are whole.
    pub records: usize,
    /// Most bytes: of a partition as stored, of a thread payloads.
    pub bytes: u64,
    /// No round trip to the store begins later.
    pub time: Duration,
}

impl Bounds {
    /// Nothing else is bounded.
    pub const fn of_bytes(bytes: u64) -> Self {
        Self { records: usize::MAX, bytes, time: Duration::MAX }
    }

    /// Nothing else is bounded.
    pub const fn of_records(records: usize) -> Self {
        Self { records, bytes: u64::MAX, time: Duration::MAX }
    }
}

/// A page that fills up.
#[derive(Debug)]
pub struct Filling {
    bounds: Bounds,
    records: usize,
    bytes: u64,
    fetched_batches: u64,
    fetched_bytes: u64,
}

impl Filling {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, records: 0, bytes: 0, fetched_batches: 0, fetched_bytes: 0 }
    }

    /// The page has more now.
    pub fn add(&mut self, records: usize, bytes: u64) {
        self.records = self.records.saturating_add(records);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// A batch came, of which the page may take little.
    pub fn fetched(&mut self, bytes: u64) {
        self.fetched_batches += 1;
        self.fetched_bytes = self.fetched_bytes.saturating_add(bytes);
    }

    pub fn is_full(&self) -> bool {
        self.records > 0 && (self.records >= self.bounds.records || self.bytes >= self.bounds.bytes)
    }

    /// Whether to ask the store for more, so long after the page was begun.
    pub fn goes_on(&self, elapsed: Duration) -> bool {
        self.records == 0 || !self.is_full() && elapsed < self.bounds.time
    }

    /// Bytes to fetch of a log next; `None` where another fetch would be more than the page may have.
    pub fn next_bytes(&self) -> Option<u64> {
        if self.records == 0 {
            return Some(self.bounds.bytes.min(FETCH_BYTES));
        }
        (self.bytes.saturating_add(FETCH_BYTES) <= self.bounds.bytes).then_some(FETCH_BYTES)
    }

    /// Batches to fetch of a thread next: each has a record of it at least, and those to come are taken to be
    /// as large as those before.
    pub fn next_batches(&self) -> usize {
        let missing = self.bounds.records.saturating_sub(self.records);
        let fit = match self.fetched_bytes.checked_div(self.fetched_batches) {
            None => BATCHES_AT_FIRST,
            Some(size) => usize::try_from(BATCHES_BYTES / size.max(1)).unwrap_or(usize::MAX),
        };
        fit.min(missing).clamp(1, BATCHES_AT_ONCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { records: 100, bytes: 4 * FETCH_BYTES, time: Duration::from_secs(2) };

    fn filled(records: usize, bytes: u64) -> Filling {
        let mut filling = Filling::new(BOUNDS);
        filling.add(records, bytes);
        filling
    }

    #[test]
    fn whatever_is_used_up_first_ends_a_page() {
        let (early, late) = (Duration::from_millis(1_999), Duration::from_secs(2));
        for (records, bytes, elapsed, goes_on) in [
            (99, 1_000, early, true),
            (100, 1_000, early, false),
            (99, 4 * FETCH_BYTES, early, false),
            (1, 1, late, false),
        ] {
            let filling = filled(records, bytes);
            assert_eq!(filling.goes_on(elapsed), goes_on, "{filling:?} after {elapsed:?}");
        }
    }

    #[test]
    fn a_page_that_holds_nothing_goes_on_however_late_it_is() {
        let filling = Filling::new(Bounds { records: 1, bytes: 0, time: Duration::ZERO });
        assert!(filling.goes_on(Duration::MAX) && !filling.is_full());
    }

    #[test]
    fn a_log_is_fetched_in_pieces_that_fit() {
        assert_eq!(Filling::new(Bounds::of_bytes(7)).next_bytes(), Some(7));
        assert_eq!(Filling::new(BOUNDS).next_bytes(), Some(FETCH_BYTES));
        assert_eq!(filled(1, 3 * FETCH_BYTES).next_bytes(), Some(FETCH_BYTES));
        assert_eq!(filled(1, 3 * FETCH_BYTES + 1).next_bytes(), None);
    }

    #[test]
    fn few_large_batches_are_fetched_at_once_and_many_small_ones() {
        let mut filling = Filling::new(Bounds { records: 1_000, ..BOUNDS });
        assert_eq!(filling.next_batches(), 16);
        filling.fetched(1 << 20);
        assert_eq!(filling.next_batches(), 4);
        filling.fetched(100 << 20);
        assert_eq!(filling.next_batches(), 1);
        let mut filling = Filling::new(Bounds { records: 1_000, ..BOUNDS });
        filling.fetched(200);
        assert_eq!(filling.next_batches(), 128);
        filling.add(990, 1);
        assert_eq!(filling.next_batches(), 10, "no more than records are wanted");
    }
}

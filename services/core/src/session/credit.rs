//! How much may be on its way to a client that gives credit.

/// Invariant: at most `max` bytes are on their way, or one frame when that alone is more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credit {
    /// 0 when the client gives no credit.
    max: u64,
    in_flight: u64,
    /// The frame that did not fit, bytes; 0 when none waits.
    waits: u64,
}

impl Credit {
    pub(super) fn new(max: u64) -> Self {
        Self { max, in_flight: 0, waits: 0 }
    }

    /// The client takes part.
    pub(super) fn is_on(self) -> bool {
        self.max > 0
    }

    /// A frame waits for credit.
    pub(super) fn starved(self) -> bool {
        self.waits > 0
    }

    /// True when a frame may go, which is then on its way.
    #[must_use]
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        let goes = self.fits(bytes);
        if goes {
            self.in_flight += bytes;
        } else {
            self.waits = bytes;
        }
        goes
    }

    /// The client has done with so many bytes.
    pub(super) fn give(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.look();
    }

    /// The bound changed.
    pub(super) fn bound(&mut self, max: u64) {
        self.max = max;
        self.look();
    }

    fn look(&mut self) {
        if self.fits(self.waits) {
            self.waits = 0;
        }
    }

    fn fits(self, bytes: u64) -> bool {
        self.max == 0 || self.in_flight == 0 || self.in_flight + bytes <= self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_larger_than_the_bound_goes_alone() {
        let mut credit = Credit::new(10);
        assert!(credit.take(30) && !credit.take(1) && credit.starved());
        credit.give(29);
        assert!(!credit.starved() && credit.take(1));
        credit.give(u64::MAX);
        assert!(credit.take(30), "what is given twice counts once");
    }

    proptest! {
        #[test]
        fn what_is_on_its_way_is_bounded_and_nothing_starves_for_ever(
            steps in prop::collection::vec((any::<bool>(), 1_usize..40), 1..100),
        ) {
            let (mut credit, mut out) = (Credit::new(50), 0);
            for (send, bytes) in steps {
                if send && !credit.starved() {
                    out += if credit.take(bytes) { bytes } else { 0 };
                } else if !send {
                    let given = bytes.min(out);
                    out -= given;
                    credit.give(given as u64);
                }
                prop_assert!(out <= 50);
                prop_assert!(out > 0 || !credit.starved());
            }
        }
    }
}

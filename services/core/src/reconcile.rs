//! Whether a stored log is what its source has. Links prove that nothing is missing between two stored records, and
//! nothing of a record that ingest never stored.
use crate::{dead_letter::Sha256, position::Offset};

/// What the store has at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// A record, by its payload.
    Record { at: Offset, payload: Sha256 },
    /// Offsets that are said to be lost or left out.
    Gap { first: Offset, last: Offset },
}

impl Stored {
    fn last(self) -> Offset {
        match self {
            Self::Record { at, .. } | Self::Gap { last: at, .. } => at,
        }
    }
}

/// A record of the source, by its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    pub at: Offset,
    pub payload: Sha256,
}

/// How the two differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Records that both have, alike.
    pub same: u64,
    /// Records of the source that the store says to be lost or left out.
    pub told: u64,
    /// Records that only the store has: compaction, or an expired transaction, took them from the source since.
    pub only_stored: u64,
    /// Records of the source that the store neither has nor tells of.
    pub missing: Vec<Offset>,
    /// Records that the store has with other payloads.
    pub different: Vec<Offset>,
}

impl Differences {
    /// Nothing of the source is silently missing or changed.
    pub fn is_sound(&self) -> bool {
        self.missing.is_empty() && self.different.is_empty()
    }
}

/// Compares what a store has of a partition with what its source has of the same offsets. Both ascend.
pub fn reconcile(stored: &[Stored], source: &[Source]) -> Differences {
    let mut differences = Differences::default();
    let mut stored = stored.iter().copied().peekable();
    for record in source {
        while let Some(passed) = stored.next_if(|stored| stored.last() < record.at) {
            differences.only_stored += u64::from(matches!(passed, Stored::Record { .. }));
        }
        match stored.peek().copied() {
            Some(Stored::Record { at, payload }) if at == record.at => {
                stored.next();
                if payload == record.payload {
                    differences.same += 1;
                } else {
                    differences.different.push(at);
                }
            }
            Some(Stored::Gap { first, .. }) if first <= record.at => differences.told += 1,
            Some(Stored::Record { .. } | Stored::Gap { .. }) | None => differences.missing.push(record.at),
        }
    }
    differences.only_stored += stored.filter(|rest| matches!(rest, Stored::Record { .. })).count() as u64;
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(value: u64) -> Offset {
        Offset::new(value).unwrap()
    }

    fn payload(of: u64) -> Sha256 {
        Sha256::of(&of.to_be_bytes())
    }

    fn record(value: u64) -> Stored {
        Stored::Record { at: at(value), payload: payload(value) }
    }

    fn source(values: &[u64]) -> Vec<Source> {
        values.iter().map(|value| Source { at: at(*value), payload: payload(*value) }).collect()
    }

    #[test]
    fn what_is_missing_changed_told_and_left_over_is_told_apart() {
        let gap = |first, last| Stored::Gap { first: at(first), last: at(last) };
        let changed = Stored::Record { at: at(6), payload: payload(0) };
        let stored = [record(1), record(2), gap(3, 5), changed, record(8), record(9)];
        let differences = reconcile(&stored, &source(&[1, 3, 5, 6, 7, 8, 10]));
        let expected = Differences {
            same: 2,
            told: 2,
            only_stored: 2,
            missing: vec![at(7), at(10)],
            different: vec![at(6)],
        };
        assert_eq!(differences, expected);
        assert!(!differences.is_sound());
    }

    proptest! {
        #[test]
        fn every_record_that_was_left_out_is_found_and_no_other(
            values in prop::collection::btree_set(0_u64..500, 0..100), left_out in prop::collection::vec(any::<bool>(), 100),
        ) {
            let values: Vec<_> = values.into_iter().collect();
            let kept = values.iter().zip(&left_out).filter(|(_, left_out)| !**left_out);
            let stored: Vec<_> = kept.map(|(value, _)| record(*value)).collect();
            let expected: Vec<_> = values.iter().zip(&left_out).filter(|(_, out)| **out).map(|(v, _)| at(*v)).collect();
            let differences = reconcile(&stored, &source(&values));
            prop_assert_eq!(differences.same, stored.len() as u64);
            prop_assert_eq!((differences.missing, differences.only_stored), (expected, 0));
        }
    }
}

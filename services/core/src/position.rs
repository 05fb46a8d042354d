//! Where a record is, and how two positions relate.
//!
//! A partition is a log. Offsets grow but need not be contiguous (transactions, compaction), so whether
//! anything is missing between two records can't be read off the numbers: each record names the one before
//! it, its *link*.
use std::fmt;

/// A Kafka partition: 0 to `i32::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(i32);

/// The offset *at* which a record is: 0 to `i64::MAX`, as Kafka has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(u64);

/// The least offset that the *following* record can get. What is committed to Kafka is of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextOffset(u64);

/// One life of a partition's log. Later lives have greater epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u64);

/// The record before: its offset, or `None` at the beginning of a log.
///
/// As a reader's position it is the last record that the reader has.
pub type Link = Option<Offset>;

/// A number that is not a position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value} is out of range: expected 0 to {max}")]
pub struct OutOfRange {
    what: &'static str,
    value: i128,
    max: i128,
}

impl Partition {
    /// # Errors
    /// [`OutOfRange`] when negative.
    pub fn new(value: i32) -> Result<Self, OutOfRange> {
        if value < 0 {
            return Err(OutOfRange { what: "partition", value: value.into(), max: i32::MAX.into() });
        }
        Ok(Self(value))
    }

    pub fn get(self) -> i32 {
        self.0
    }
}

impl Offset {
    /// # Errors
    /// [`OutOfRange`] beyond `i64::MAX`, which Kafka can't have.
    pub fn new(value: u64) -> Result<Self, OutOfRange> {
        if value > i64::MAX as u64 {
            return Err(OutOfRange { what: "offset", value: value.into(), max: i64::MAX.into() });
        }
        Ok(Self(value))
    }

    /// For a number that was proved to be an offset before; a greater one becomes the greatest.
    pub fn clamped(value: u64) -> Self {
        Self(value.min(i64::MAX as u64))
    }

    /// # Errors
    /// [`OutOfRange`] when negative: one of Kafka's markers, not an offset.
    pub fn from_kafka(value: i64) -> Result<Self, OutOfRange> {
        u64::try_from(value).map(Self).map_err(|_| OutOfRange {
            what: "offset",
            value: value.into(),
            max: i64::MAX.into(),
        })
    }

    pub fn get(self) -> u64 {
        self.0
    }

    /// As Kafka's clients have it. Never negative.
    pub fn to_kafka(self) -> i64 {
        self.0 as i64
    }

    pub fn next(self) -> NextOffset {
        NextOffset(self.0 + 1)
    }
}

impl NextOffset {
    /// The beginning of a partition that never lost anything.
    pub const ZERO: Self = Self(0);

    /// # Errors
    /// [`OutOfRange`] when negative.
    pub fn from_kafka(value: i64) -> Result<Self, OutOfRange> {
        Offset::from_kafka(value).map(|offset| Self(offset.0))
    }

    /// What follows a link.
    pub fn after(link: Link) -> Self {
        link.map_or(Self::ZERO, Offset::next)
    }

    pub fn get(self) -> u64 {
        self.0
    }

    /// As Kafka's clients have it.
    ///
    /// Saturates at `i64::MAX`: behind that offset nothing can follow.
    pub fn to_kafka(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// Offsets from here to `high_watermark`; `None` where that lies before: the log was made anew.
    pub fn lag(self, high_watermark: Self) -> Option<u64> {
        high_watermark.0.checked_sub(self.0)
    }
}

impl Epoch {
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for NextOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a run of records stands to a reader that has everything up to `at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is missing in between.
    Adjacent,
    /// The reader has its first record already.
    Overlaps,
    /// These offsets are missing in between, both included.
    Missing { first: Offset, last: Offset },
}

/// How the run that begins with the record `first`, linked to `link`, stands to a reader at `at`.
///
/// A reader may stand at an offset that is no record's: everything up to it was skipped for it. So the run is
/// adjacent whenever its link is not beyond the reader. A run that begins a log (`link` is `None`) follows
/// only a reader before the log, or directly before its first offset: what came between is unknown.
pub fn step(at: Link, link: Link, first: Offset) -> Step {
    debug_assert!(link < Some(first), "a record's link is before it");
    if at >= Some(first) {
        return Step::Overlaps;
    }
    match (at, link) {
        (None, None) => Step::Adjacent,
        (None, Some(last)) => Step::Missing { first: Offset(0), last },
        (Some(at), None) if at.next().get() == first.0 => Step::Adjacent,
        (Some(at), None) => Step::Missing { first: Offset(at.0 + 1), last: Offset(first.0 - 1) },
        (Some(at), Some(link)) if link <= at => Step::Adjacent,
        (Some(at), Some(last)) => Step::Missing { first: Offset(at.0 + 1), last },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offset(value: u64) -> Offset {
        Offset::new(value).unwrap()
    }

    #[test]
    fn a_step_says_exactly_what_is_missing() {
        for (why, at, link, first, expected) in [
            ("the first record of a log", None, None, 7, Step::Adjacent),
            (
                "the beginning of the log was trimmed",
                None,
                Some(4),
                7,
                Step::Missing { first: offset(0), last: offset(4) },
            ),
            ("linked to what the reader has", Some(4), Some(4), 7, Step::Adjacent),
            ("the reader stands where no record is", Some(5), Some(4), 7, Step::Adjacent),
            ("records were lost", Some(2), Some(4), 7, Step::Missing { first: offset(3), last: offset(4) }),
            ("the reader has it", Some(7), Some(4), 7, Step::Overlaps),
            ("the reader is beyond it", Some(9), Some(4), 7, Step::Overlaps),
            ("a log that begins anew at once", Some(6), None, 7, Step::Adjacent),
            (
                "a log that begins anew later",
                Some(3),
                None,
                7,
                Step::Missing { first: offset(4), last: offset(6) },
            ),
        ] {
            assert_eq!(step(at.map(offset), link.map(offset), offset(first)), expected, "{why}");
        }
    }

    #[test]
    fn offsets_are_kafkas_and_exact() {
        for value in [0, (1 << 53) - 1, (1 << 53) + 1, i64::MAX as u64] {
            assert_eq!(offset(value).to_kafka() as u64, value);
            assert_eq!(offset(value).to_string(), value.to_string());
        }
        assert!(Offset::new(i64::MAX as u64 + 1).is_err());
        assert_eq!(offset(i64::MAX as u64).next().to_kafka(), i64::MAX);
        let error = Offset::from_kafka(-1001).unwrap_err().to_string();
        assert_eq!(error, "offset -1001 is out of range: expected 0 to 9223372036854775807");
        assert!(Partition::new(-1).is_err());
    }

    proptest! {
        /// A log with holes, a reader anywhere: following steps record by record loses nothing silently.
        #[test]
        fn following_links_finds_every_loss(
            gaps in prop::collection::vec(1_u64..5, 1..40), lost in prop::collection::vec(any::<bool>(), 40),
        ) {
            let mut log = Vec::new();
            let (mut at, mut link) = (0, None);
            for gap in gaps {
                at += gap;
                log.push((link, offset(at)));
                link = Some(offset(at));
            }
            let mut reader: Link = None;
            let mut declared = Vec::new();
            for (i, (link, first)) in log.iter().enumerate() {
                if lost[i] { continue }
                if let Step::Missing { first, last } = step(reader, *link, *first) { declared.push(first..=last) }
                reader = Some(*first);
            }
            for (i, (_, at)) in log.iter().enumerate() {
                let said = declared.iter().any(|gap| gap.contains(at));
                let after = Some(*at) > reader;
                prop_assert_eq!(said || after, lost[i], "record {} of {:?}", at, log);
            }
        }
    }
}

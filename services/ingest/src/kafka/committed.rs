//! What is committed to Kafka with a partition's offset, as metadata: what its next owner must know and the store
//! may have lost.
use dashstream_core::position::{Epoch, Link, NextOffset, Offset, Partition};

/// Longest reason that is committed, bytes: Kafka bounds the metadata of an offset.
const REASON_BYTES_MAX: usize = 512;

/// Where a partition is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub partition: Partition,
    pub epoch: Epoch,
    /// Everything before it is durable.
    pub next: NextOffset,
    /// The last record that was stored.
    pub last: Link,
    /// Why an operator stopped it, if one did.
    pub paused: Option<String>,
}

impl Position {
    /// `epoch=7;last=41;paused=why`, the last two only where there is something to say.
    pub fn metadata(&self) -> String {
        let last = self.last.map(|last| format!(";last={last}")).unwrap_or_default();
        let paused =
            self.paused.as_deref().map(|why| format!(";paused={}", shortened(why))).unwrap_or_default();
        format!("epoch={}{last}{paused}", self.epoch)
    }

    /// Reads it back; `None` when it was not written by us.
    pub(super) fn parse(partition: Partition, next: i64, metadata: &str) -> Option<Self> {
        let (mut epoch, mut last, mut paused) = (None, None, None);
        // A reason may hold anything, so it is the rest.
        let (fields, why) =
            metadata.split_once(";paused=").map_or((metadata, None), |(fields, why)| (fields, Some(why)));
        if let Some(why) = why {
            paused = Some(why.to_owned());
        }
        for field in fields.split(';') {
            match field.split_once('=') {
                Some(("epoch", value)) => epoch = value.parse().ok().map(Epoch::new),
                Some(("last", value)) => last = value.parse().ok().and_then(|last| Offset::new(last).ok()),
                // A later version may say more.
                Some(_) | None => {}
            }
        }
        Some(Self { partition, epoch: epoch?, next: NextOffset::from_kafka(next).ok()?, last, paused })
    }
}

fn shortened(why: &str) -> &str {
    let mut end = why.len().min(REASON_BYTES_MAX);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    &why[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_committed_is_read_back() {
        let partition = Partition::new(3).unwrap();
        for (last, paused) in [
            (None, None),
            (Some(41), None),
            (Some(41), Some("broken disk; ask = Ann")),
            (None, Some("")),
            (Some(i64::MAX as u64 - 1), Some("déjà")),
        ] {
            let position = Position {
                partition,
                epoch: Epoch::new(u64::MAX),
                next: NextOffset::from_kafka(42).unwrap(),
                last: last.and_then(|last| Offset::new(last).ok()),
                paused: paused.map(str::to_owned),
            };
            assert_eq!(Position::parse(partition, 42, &position.metadata()), Some(position));
        }
    }

    #[test]
    fn what_others_committed_says_nothing_and_what_later_versions_add_is_passed_over() {
        let partition = Partition::new(3).unwrap();
        for foreign in ["", "hello", "epoch=x", "epoch"] {
            assert_eq!(Position::parse(partition, 1, foreign), None, "{foreign}");
        }
        let position = Position::parse(partition, 1, "epoch=7;colour=red").unwrap();
        assert_eq!((position.epoch, position.last, position.paused), (Epoch::new(7), None, None));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        assert_eq!(shortened(&"é".repeat(400)).len(), 512);
        assert_eq!(shortened(&format!("x{}", "é".repeat(400))).len(), 511);
    }
}

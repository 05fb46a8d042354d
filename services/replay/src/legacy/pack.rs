//! The predecessor's records as batches of today.
use super::LegacyRecord;
use bytes::Bytes;
use dashstream_core::{
    batch::{Envelope, Packer},
    codec::{Limits, facts},
    position::{Epoch, Link, Offset, Partition},
};
use dashstream_proto::log::v1::{Batch, Gap, GapReason};

/// A batch is closed once its records have this many bytes.
const BATCH_BYTES: usize = 64 << 10;

/// A run of the log, made from what the predecessor kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packed {
    /// They chain, and hold each of `gaps` in its place.
    pub batches: Vec<Batch>,
    pub gaps: Vec<Gap>,
}

/// Packs the records of `partition` that have an offset and are behind `link`, in any order.
///
/// The predecessor kept no links and could lose records without a trace. So offsets that are missing between two
/// records, or between `link` and the first one, become a gap: nothing proves that there were no records. A payload
/// that does not decode becomes a gap too. Without a `link` the run begins a log, with no gap before it.
///
/// For readers only: the records lack Kafka's timestamps and headers, so they must never be appended to a log.
pub fn pack(epoch: Epoch, partition: Partition, records: &[LegacyRecord], link: Link) -> Packed {
    let known = records.iter().filter(|record| record.partition == Some(partition));
    let mut known: Vec<_> = known.filter_map(|record| Some((record.offset?, &record.payload))).collect();
    known.sort_by_key(|(offset, _)| *offset);
    let packer = Packer::new(epoch, partition, link);
    let mut packing = Packing { epoch, partition, packer, packed: Packed::default() };
    for (offset, payload) in known {
        packing.push(offset, payload);
    }
    packing.packed.batches.extend(packing.packer.finish());
    packing.packed
}

struct Packing {
    epoch: Epoch,
    partition: Partition,
    packer: Packer,
    packed: Packed,
}

impl Packing {
    fn push(&mut self, offset: Offset, payload: &Bytes) {
        let link = self.packer.link();
        if link >= Some(offset) {
            return;
        }
        if let Some(at) = link
            && offset.get() - at.get() > 1
        {
            let (first, last) = (Offset::clamped(at.get() + 1), Offset::clamped(offset.get() - 1));
            self.push_gap(first, last, GapReason::StoreLost);
        }
        match facts(Some(payload), Limits::default()) {
            Ok(facts) => {
                let (traceparent, tracestate) = (String::new(), String::new());
                let envelope = Envelope { offset, timestamp_ms: None, facts, traceparent, tracestate };
                let pushed = self.packer.push(envelope, payload);
                debug_assert!(pushed, "it is behind the link");
            }
            Err(_) => self.push_gap(offset, offset, GapReason::Undecodable),
        }
        if self.packer.bytes() >= BATCH_BYTES {
            self.packed.batches.extend(self.packer.finish());
        }
    }

    fn push_gap(&mut self, first: Offset, last: Offset, reason: GapReason) {
        let pushed = self.packer.push_gap(first, last, reason);
        debug_assert!(pushed, "it is behind the link");
        self.packed.gaps.push(Gap {
            epoch: self.epoch.get(),
            partition: self.partition.get(),
            first_offset: first.get(),
            last_offset: last.get(),
            reason: reason.into(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dashstream_core::batch::{check, records};
    use dashstream_proto::log::v1::{Record, RecordKind};

    /// `00`, an event with a header of thread `t`.
    const EVENT: &[u8] = &[0x00, 0x0a, 0x05, 0x0a, 0x03, 0x22, 0x01, b't'];

    fn record(partition: i32, offset: u64, payload: &[u8]) -> LegacyRecord {
        LegacyRecord {
            partition: Some(Partition::new(partition).unwrap()),
            offset: Some(Offset::new(offset).unwrap()),
            sequence: None,
            payload: Bytes::copy_from_slice(payload),
        }
    }

    fn packed(legacy: &[LegacyRecord], link: Link) -> (Packed, Vec<Record>) {
        let packed = pack(Epoch::new(9), Partition::new(3).unwrap(), legacy, link);
        let mut link = link.map(Offset::get);
        for batch in &packed.batches {
            check(batch).unwrap();
            assert_eq!((batch.prev_offset, batch.epoch, batch.partition), (link, 9, 3));
            link = Some(batch.last_offset);
        }
        let found = packed.batches.iter().flat_map(records).collect::<Result<_, _>>().unwrap();
        (packed, found)
    }

    #[test]
    fn missing_offsets_and_broken_payloads_are_gaps_in_their_place() {
        let unknown = LegacyRecord { offset: None, ..record(3, 1, EVENT) };
        let (most, broken) = (i64::MAX as u64, [0x00, 0xff]);
        let legacy = [
            record(3, 9, &broken),
            record(3, 8, EVENT),
            record(3, 5, EVENT),
            record(3, 8, EVENT),
            record(4, 6, EVENT),
            record(3, most, EVENT),
            unknown,
            record(3, 2, EVENT),
        ];
        let (packed, found) = packed(&legacy, Some(Offset::new(3).unwrap()));
        let found: Vec<_> =
            found.iter().map(|record| (record.offset, record.kind(), record.payload.len())).collect();
        let (event, gap) = ((RecordKind::Event, EVENT.len()), (RecordKind::Gap, 0));
        let expected = [(4, gap), (5, event), (7, gap), (8, event), (9, gap), (most - 1, gap), (most, event)];
        assert_eq!(found, expected.map(|(at, (kind, len))| (at, kind, len)));
        let gaps: Vec<_> =
            packed.gaps.iter().map(|gap| (gap.first_offset, gap.last_offset, gap.reason())).collect();
        let lost = GapReason::StoreLost;
        let expected = [(4, 4, lost), (6, 7, lost), (9, 9, GapReason::Undecodable), (10, most - 1, lost)];
        assert_eq!(gaps, expected);
    }

    #[test]
    fn a_run_without_a_link_begins_a_log() {
        let (packed, found) = packed(&[record(3, 5_000, EVENT), record(3, 5_001, EVENT)], None);
        assert_eq!((packed.gaps.len(), packed.batches.len(), found.len()), (0, 1, 2));
        assert_eq!((found[0].prev_offset, found[0].thread_id.as_str()), (None, "t"));
        assert_eq!((found[1].prev_offset, &found[1].payload[..]), (Some(5_000), EVENT));
        assert_eq!(pack(Epoch::new(9), Partition::new(3).unwrap(), &[], None), Packed::default());
    }

    #[test]
    fn many_records_become_several_batches_that_chain() {
        let legacy: Vec<_> = (0..5_000).map(|at| record(3, at, EVENT)).collect();
        let (packed, found) = packed(&legacy, None);
        assert!(
            packed.batches.len() > 1
                && packed.batches.iter().all(|batch| batch.records.len() < 2 * BATCH_BYTES)
        );
        assert_eq!(found.len(), 5_000);
    }
}

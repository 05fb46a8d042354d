//! Parts of a batch that are not one run.
use super::{Malformed, Span, take_entry};
use crate::position::{Offset, Partition};
use bytes::{Bytes, BytesMut};
use dashstream_proto::log::v1::{Batch, Packing, Record};
use prost::Message;

/// What is left of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Selected {
    All,
    Nothing,
    /// Its records keep their links, which may name records that were left out.
    Some(Batch),
}

/// Leaves of a batch the records for which `keep` says yes. Where they are one run they share its buffer.
///
/// # Errors
/// [`Malformed`] when its records do not parse.
pub fn select(batch: &Batch, mut keep: impl FnMut(&Record) -> bool) -> Result<Selected, Malformed> {
    let mut rest = batch.records.clone();
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    let mut kept: Option<Batch> = None;
    while !rest.is_empty() {
        let start = batch.records.len() - rest.len();
        let entry = take_entry(&mut rest)?;
        let end = batch.records.len() - rest.len();
        let record = Record::decode(entry).map_err(|error| Malformed::Records(error.to_string()))?;
        if !keep(&record) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == start => run.end = end,
            Some(_) | None => runs.push(start..end),
        }
        let kept = kept.get_or_insert_with(|| Batch {
            prev_offset: record.prev_offset,
            first_offset: record.offset,
            record_count: 0,
            records: Bytes::new(),
            ..batch.clone()
        });
        kept.last_offset = record.offset;
        kept.record_count += 1;
    }
    Ok(match kept {
        None => Selected::Nothing,
        Some(kept) if kept.record_count == batch.record_count => Selected::All,
        Some(kept) => Selected::Some(Batch { records: join(&batch.records, &runs), ..kept }),
    })
}

fn join(records: &Bytes, runs: &[std::ops::Range<usize>]) -> Bytes {
    if let [run] = runs {
        return records.slice(run.clone());
    }
    let mut joined = BytesMut::with_capacity(runs.iter().map(ExactSizeIterator::len).sum());
    for run in runs {
        joined.extend_from_slice(&records[run.clone()]);
    }
    joined.freeze()
}

/// Proves of a batch that was selected from what still can be: packing, count, bounds and order.
///
/// # Errors
/// [`Malformed`]: the first thing that is wrong.
pub fn check_selected(batch: &Batch) -> Result<(), Malformed> {
    if batch.packing != i32::from(Packing::Plain) {
        return Err(Malformed::Packing(batch.packing));
    }
    Partition::new(batch.partition)?;
    Offset::new(batch.last_offset)?;
    let (mut last, mut first, mut count) = (None, None, 0_u64);
    for record in super::records(batch) {
        let record = record?;
        if record.prev_offset < last || record.prev_offset >= Some(record.offset) {
            return Err(Malformed::Chain { at: record.offset, link: record.prev_offset, expected: last });
        }
        last = Some(record.offset);
        first = first.or(last);
        count += 1;
    }
    let Some(first) = first else { return Err(Malformed::Empty) };
    for (field, said, found) in [
        ("first_offset", batch.first().get(), first),
        ("last_offset", batch.last().get(), last.unwrap_or(first)),
        ("record_count", batch.record_count.into(), count),
    ] {
        if said != found {
            return Err(Malformed::Header { field, said, found });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{check, records, tests::batch};
    use proptest::prelude::*;

    #[test]
    fn what_is_one_run_shares_the_buffer() {
        let whole = batch(1, None, &[0, 1, 2, 3]);
        let Selected::Some(part) = select(&whole, |record| (1..=2).contains(&record.offset)).unwrap() else {
            panic!()
        };
        let (buffer, slice) = (whole.records.as_ptr_range(), part.records.as_ptr_range());
        assert!(buffer.start < slice.start && slice.end < buffer.end);
        check(&part).unwrap();
    }

    #[test]
    fn a_selection_out_of_order_is_refused() {
        let (early, late) = (batch(1, None, &[0, 1]), batch(1, Some(1), &[2, 3]));
        let mixed = [late.records.clone(), early.records.clone()].concat();
        let bad = Batch { record_count: 4, records: mixed.into(), ..late };
        assert!(matches!(check_selected(&bad), Err(Malformed::Chain { at: 0, .. })));
    }

    proptest! {
        #[test]
        fn exactly_what_is_kept_is_left_and_untouched(keep in prop::collection::vec(any::<bool>(), 1..40)) {
            let offsets: Vec<_> = (0..keep.len() as u64).map(|at| at * 2).collect();
            let whole = batch(1, None, &offsets);
            let expected: Vec<_> =
                records(&whole).map(Result::unwrap).filter(|r| keep[r.offset as usize / 2]).collect();
            match select(&whole, |record| keep[record.offset as usize / 2]).unwrap() {
                Selected::All => prop_assert_eq!(expected.len(), keep.len()),
                Selected::Nothing => prop_assert!(expected.is_empty()),
                Selected::Some(part) => {
                    check_selected(&part).unwrap();
                    prop_assert_eq!(records(&part).map(Result::unwrap).collect::<Vec<_>>(), expected);
                }
            }
        }
    }
}

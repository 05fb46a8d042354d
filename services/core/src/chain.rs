//! The client's side of the promise: proves frame by frame that nothing is missing, repeated or reordered.
use crate::{
    batch::{self, Malformed},
    position::{Epoch, Link, Offset, OutOfRange, Step, step},
};
use dashstream_proto::{
    log::v1::{Batch, Cursor, Gap, Record},
    session::v1::{CaughtUp, GapFrame, Notice, RecordsFrame, SkippedFrame},
};
use std::collections::BTreeMap;

/// A frame that breaks the promise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("partition {partition}: the frame is linked to {link:?} where the cursor is {at:?}")]
    Link { partition: i32, link: Option<u64>, at: Option<u64> },
    #[error("partition {partition}: a frame of epoch {got} where the cursor's is {expected}")]
    Epoch { partition: i32, got: u64, expected: u64 },
    #[error("partition {partition}: the frame ends at {through}, and its last record is at {last}")]
    Through { partition: i32, through: u64, last: u64 },
    #[error("partition {partition}: records were left out before {through}, where none may be")]
    Filtered { partition: i32, through: u64 },
    #[error("the frame lacks its {0}")]
    Absent(&'static str),
    #[error(transparent)]
    Batch(#[from] Malformed),
    #[error(transparent)]
    Position(#[from] OutOfRange),
}

/// What a client has of each partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    cursors: BTreeMap<i32, (Epoch, Link)>,
    /// What the client did not ask for, or may not read, is left out.
    filtered: bool,
}

impl Chain {
    /// A client that resumes.
    ///
    /// # Errors
    /// [`OutOfRange`] for an offset that can't be.
    pub fn resume(cursors: &[Cursor]) -> Result<Self, OutOfRange> {
        let mut chain = Self::default();
        for cursor in cursors {
            let link = cursor.offset.map(Offset::new).transpose()?;
            chain.cursors.insert(cursor.partition, (Epoch::new(cursor.epoch), link));
        }
        Ok(chain)
    }

    /// Whether records may be left out. If not, a frame that leaves any out breaks the chain.
    pub fn expect_filtered(&mut self, filtered: bool) {
        self.filtered = filtered;
    }

    /// Where to resume.
    pub fn cursors(&self) -> Vec<Cursor> {
        let cursor = |(partition, (epoch, link)): (&i32, &(Epoch, Link))| Cursor {
            epoch: epoch.get(),
            partition: *partition,
            offset: link.map(Offset::get),
        };
        self.cursors.iter().map(cursor).collect()
    }

    /// Takes a frame of records, and returns them.
    ///
    /// The first frame of a partition that was not resumed sets where it begins.
    ///
    /// # Errors
    /// [`Broken`]; then nothing was taken.
    pub fn records(&mut self, frame: &RecordsFrame) -> Result<Vec<Record>, Broken> {
        let batch = frame.batch.as_ref().ok_or(Broken::Absent("batch"))?;
        let through = Offset::new(frame.through)?;
        if frame.filtered {
            self.may_leave_out(batch.partition, through)?;
            batch::check_selected(batch)?;
        } else {
            batch::check(batch)?;
            is_whole(frame, batch)?;
        }
        if through.get() < batch.last_offset {
            return Err(Broken::Through {
                partition: batch.partition,
                through: through.get(),
                last: batch.last_offset,
            });
        }
        let first = Offset::new(batch.first_offset)?;
        self.advance(batch.partition, batch.epoch, frame.prev_offset, first, through)?;
        Ok(batch::records(batch).collect::<Result<_, _>>()?)
    }

    /// Takes a span of which nothing was for this client.
    ///
    /// # Errors
    /// [`Broken`] when it does not begin at the cursor, or nothing may be left out; then nothing was taken.
    pub fn skipped(&mut self, frame: &SkippedFrame) -> Result<(), Broken> {
        let through = Offset::new(frame.through)?;
        self.may_leave_out(frame.partition, through)?;
        self.advance(frame.partition, frame.epoch, frame.prev_offset, through, through)
    }

    fn may_leave_out(&self, partition: i32, through: Offset) -> Result<(), Broken> {
        if self.filtered { Ok(()) } else { Err(Broken::Filtered { partition, through: through.get() }) }
    }

    /// Takes a declared gap.
    ///
    /// # Errors
    /// [`Broken`] when it does not begin right behind the cursor; then nothing was taken.
    pub fn gap(&mut self, frame: &GapFrame) -> Result<Gap, Broken> {
        let gap = frame.gap.ok_or(Broken::Absent("gap"))?;
        let (first, through) = (Offset::new(gap.first_offset)?, Offset::new(frame.through)?);
        let link = gap.first_offset.checked_sub(1);
        self.advance(gap.partition, gap.epoch, link, first, through)?;
        Ok(gap)
    }

    /// Takes the notice of a record that was too large to send.
    ///
    /// # Errors
    /// [`Broken`] when it is not the next; then nothing was taken.
    pub fn withheld(&mut self, notice: &Notice) -> Result<(), Broken> {
        let cursor = notice.cursor.as_ref().ok_or(Broken::Absent("cursor"))?;
        let at = Offset::new(cursor.offset.ok_or(Broken::Absent("cursor's offset"))?)?;
        self.advance(cursor.partition, cursor.epoch, notice.prev_offset, at, at)
    }

    /// Takes a mark up to which the client was told that it has everything. It sets where a partition begins
    /// that has brought nothing yet.
    ///
    /// # Errors
    /// [`Broken`] when the cursor is elsewhere.
    pub fn caught_up(&mut self, frame: &CaughtUp) -> Result<(), Broken> {
        let mark = frame.mark.as_ref().ok_or(Broken::Absent("mark"))?;
        let link = mark.offset.map(Offset::new).transpose()?;
        let (epoch, at) = *self.cursors.entry(mark.partition).or_insert((Epoch::new(mark.epoch), link));
        if epoch.get() != mark.epoch {
            return Err(Broken::Epoch { partition: mark.partition, got: mark.epoch, expected: epoch.get() });
        }
        if at != link {
            let at = at.map(Offset::get);
            return Err(Broken::Link { partition: mark.partition, link: mark.offset, at });
        }
        Ok(())
    }

    /// A partition's cursor is stale: forget it and take what comes.
    pub fn forget(&mut self, partition: i32) {
        self.cursors.remove(&partition);
    }

    fn advance(
        &mut self,
        partition: i32,
        epoch: u64,
        link: Option<u64>,
        first: Offset,
        through: Offset,
    ) -> Result<(), Broken> {
        if let Some((expected, at)) = self.cursors.get(&partition) {
            if expected.get() != epoch {
                return Err(Broken::Epoch { partition, got: epoch, expected: expected.get() });
            }
            let linked = link.map(Offset::new).transpose()?;
            if linked >= Some(first) || step(*at, linked, first) != Step::Adjacent {
                return Err(Broken::Link { partition, link, at: at.map(Offset::get) });
            }
        }
        self.cursors.insert(partition, (Epoch::new(epoch), Some(through)));
        Ok(())
    }
}

/// A frame that leaves nothing out spans exactly its batch.
fn is_whole(frame: &RecordsFrame, batch: &Batch) -> Result<(), Broken> {
    let (partition, through, last) = (batch.partition, frame.through, batch.last_offset);
    if frame.prev_offset != batch.prev_offset {
        return Err(Broken::Link { partition, link: frame.prev_offset, at: batch.prev_offset });
    }
    if through > last { Err(Broken::Through { partition, through, last }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::tests::batch;

    fn frame(batch: Batch) -> RecordsFrame {
        RecordsFrame {
            prev_offset: batch.prev_offset,
            through: batch.last_offset,
            batch: Some(batch),
            ..Default::default()
        }
    }

    #[test]
    fn what_is_left_out_is_proved_by_the_frame_and_only_where_it_may_be() {
        let part = RecordsFrame {
            prev_offset: Some(4),
            through: 9,
            batch: Some(batch(1, Some(6), &[7])),
            filtered: true,
            ..Default::default()
        };
        let skipped = SkippedFrame { epoch: 1, partition: 0, prev_offset: Some(9), through: 20 };
        let mut strict = Chain::resume(&[Cursor { epoch: 1, partition: 0, offset: Some(4) }]).unwrap();
        let mut chain = strict.clone();
        assert_eq!(strict.records(&part).unwrap_err(), Broken::Filtered { partition: 0, through: 9 });
        let early = SkippedFrame { prev_offset: Some(4), ..skipped };
        assert_eq!(strict.skipped(&early).unwrap_err(), Broken::Filtered { partition: 0, through: 20 });
        let lies = RecordsFrame { filtered: false, ..part.clone() };
        assert!(strict.records(&lies).is_err(), "a batch that does not begin at the frame's link");

        chain.expect_filtered(true);
        assert_eq!(chain.records(&part).unwrap().len(), 1);
        assert!(chain.skipped(&SkippedFrame { prev_offset: Some(10), ..skipped }).is_err(), "a loss");
        assert!(chain.skipped(&SkippedFrame { epoch: 2, ..skipped }).is_err());
        chain.skipped(&skipped).unwrap();
        assert_eq!(chain.cursors()[0].offset, Some(20));
        assert!(chain.skipped(&skipped).is_err(), "a repeat");
    }

    #[test]
    fn only_the_next_frame_is_taken() {
        let mut chain = Chain::default();
        assert_eq!(chain.records(&frame(batch(1, Some(4), &[5, 6]))).unwrap().len(), 2);
        for (why, bad) in [
            ("a repeat", batch(1, Some(4), &[5, 6])),
            ("a partial repeat", batch(1, Some(5), &[6, 7])),
            ("a loss", batch(1, Some(7), &[8])),
            ("another epoch", batch(2, Some(6), &[7])),
        ] {
            let before = chain.clone();
            assert!(chain.records(&frame(bad)).is_err(), "{why}");
            assert_eq!(chain, before, "{why}");
        }
        assert!(chain.records(&frame(batch(1, Some(6), &[9]))).is_ok(), "offsets need not be contiguous");
        assert_eq!(chain.cursors()[0].offset, Some(9));
    }

    #[test]
    fn a_gap_must_begin_where_the_cursor_is() {
        let mut chain = Chain::default();
        chain.records(&frame(batch(1, None, &[0]))).unwrap();
        let gap = |first_offset, last_offset| GapFrame {
            gap: Some(Gap { epoch: 1, partition: 0, first_offset, last_offset, reason: 1 }),
            through: last_offset,
        };
        assert!(chain.gap(&gap(3, 5)).is_err());
        assert!(chain.gap(&gap(1, 5)).is_ok());
        assert!(chain.records(&frame(batch(1, Some(5), &[6]))).is_ok());
    }

    #[test]
    fn caught_up_is_only_true_at_the_mark() {
        let mut chain = Chain::default();
        let mark = |epoch, offset| CaughtUp {
            mark: Some(Cursor { epoch, partition: 0, offset }),
            source_lag: None,
            request_id: 1,
        };
        chain.caught_up(&mark(1, Some(5))).unwrap();
        assert_eq!(chain.cursors()[0].offset, Some(5), "a partition that brought nothing begins there");
        assert!(chain.caught_up(&mark(1, Some(6))).is_err());
        assert!(chain.caught_up(&mark(2, Some(5))).is_err());
        assert!(chain.records(&frame(batch(1, Some(4), &[6]))).is_ok());
    }
}

//! Where a session stands in one partition, and what it says of what is found there.
use super::{nowhere, say};
use crate::{
    batch::{self, Span},
    filter::Tenants,
    position::{Epoch, Link, Offset, Partition, Step, step},
    session::{
        CloseReason, Found, From, Output, Want,
        deliver::{missing, settle},
        reader::{Appetite, Reader},
    },
    slot::Slot,
};
use dashstream_proto::log::v1::{Cursor, Gap, GapReason, Record, RecordKind};
use std::collections::BTreeMap;

/// A cursor ahead of the log is another log's once it was found so often that the store had time to be refilled.
const DOUBTS_MAX: u32 = 3;

/// Where a client wants a partition to be read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Behind(Offset),
    Earliest,
    Latest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    /// Nobody said yet what the log is.
    Planned(Plan),
    /// On the way to the end that the log had when the reader was placed.
    Replaying {
        mark: Link,
    },
    Live,
}

#[derive(Debug)]
pub(super) struct Place {
    pub(super) reader: Reader,
    stand: Stand,
    /// The store knew nothing of it when last asked.
    pub(super) unknown: bool,
    /// Times that the cursor was found ahead of the log.
    doubts: u32,
    /// Nothing was put out since the client named its cursor.
    untouched: bool,
    /// Records put out up to the mark, and the last of them.
    pub(super) replayed: u64,
    pub(super) replayed_to: Link,
}

impl Place {
    pub(super) fn new(partition: Partition, plan: Plan) -> Self {
        let at = match plan {
            Plan::Behind(at) => Some(at),
            Plan::Earliest | Plan::Latest => None,
        };
        Self::at_stand(Reader::new(partition, nowhere(at)), Stand::Planned(plan))
    }

    pub(super) fn live(partition: Partition, epoch: Epoch, at: Link) -> Self {
        Self::at_stand(Reader::new(partition, From::After { epoch, at }), Stand::Live)
    }

    fn at_stand(reader: Reader, stand: Stand) -> Self {
        let untouched = matches!(stand, Stand::Planned(Plan::Behind(_)));
        Self { reader, stand, unknown: false, doubts: 0, untouched, replayed: 0, replayed_to: None }
    }

    pub(super) fn is_live(&self) -> bool {
        self.stand == Stand::Live
    }

    pub(super) fn is_placed(&self) -> bool {
        !matches!(self.stand, Stand::Planned(_))
    }

    /// A partition that neither the store nor the gateway knows has nothing to wait for.
    pub(super) fn is_vacant(&self, known: &BTreeMap<Partition, Option<u64>>) -> bool {
        self.unknown && !known.contains_key(&self.reader.partition)
    }

    pub(super) fn epoch(&self) -> Option<Epoch> {
        match (self.stand, self.reader.from) {
            (Stand::Replaying { .. } | Stand::Live, From::After { epoch, .. }) => Some(epoch),
            _ => None,
        }
    }

    /// The last record behind which it reads on.
    pub(super) fn at(&self) -> Link {
        match self.reader.from {
            From::After { at, .. } => at,
            From::Earliest | From::Latest | From::Time(_) | From::Active => None,
        }
    }

    pub(super) fn cursor(&self) -> Option<Cursor> {
        self.reader.cursor()
    }

    /// Takes what was found where the reader asked.
    pub(super) fn on_found(
        &mut self,
        want: Want,
        found: Found,
        tenants: &Tenants,
        source_end: Option<u64>,
    ) -> Vec<Output> {
        let mut out = Vec::new();
        self.unknown = matches!(found, Found::Seeding);
        match (found, self.stand) {
            (Found::Stale { epoch, earliest, mark }, Stand::Planned(plan)) => {
                self.put(plan, epoch, earliest, mark, source_end, &mut out);
            }
            (Found::Stale { earliest, mark, .. }, Stand::Replaying { .. } | Stand::Live) => {
                self.renew(earliest, mark, &mut out);
            }
            (Found::Slots { slots, passed }, _) => {
                if self.deliver_all(&slots, tenants, &mut out) {
                    self.reader.in_memory(passed);
                }
            }
            (Found::Page { epoch, slots, at_end, mark }, _) => {
                let whole = self.deliver_all(&slots, tenants, &mut out);
                if slots.is_empty() {
                    settle(&mut self.reader, epoch, mark);
                    self.reader.park_at_end();
                }
                if at_end && whole {
                    self.stand = Stand::Live;
                }
            }
            (Found::AtEnd { epoch, mark, passed, .. }, _) => {
                settle(&mut self.reader, epoch, mark);
                self.reader.in_memory(passed);
                self.reader.appetite = Appetite::AtEnd;
                self.stand = Stand::Live;
            }
            (Found::Gap(gap), _) => drop(self.lose(gap, &mut out)),
            (Found::Seeding, _) => self.reader.park_seeding(),
            (Found::NotNow | Found::Active(_), _) => self.reader.park(),
        }
        self.look();
        // Nothing came of it: to ask the same again at once would be to ask for ever.
        if self.reader.from == want.from && self.reader.appetite == Appetite::Hungry {
            self.reader.park();
        }
        out
    }

    /// The log is known: the reader is put where its client wants to be.
    fn put(
        &mut self,
        plan: Plan,
        epoch: Epoch,
        earliest: Link,
        mark: Link,
        source_end: Option<u64>,
        out: &mut Vec<Output>,
    ) {
        let replaying = Stand::Replaying { mark };
        (self.reader.from, self.stand) = match plan {
            Plan::Behind(at) if Some(at) <= mark => (From::After { epoch, at: Some(at) }, replaying),
            Plan::Behind(at) if source_end.is_some_and(|end| at.get() < end) => {
                self.reader.park(); // the store is behind the source: it is being refilled
                return;
            }
            Plan::Behind(_) if self.doubts < DOUBTS_MAX => {
                self.doubts += 1;
                self.reader.park();
                return;
            }
            Plan::Behind(_) => return self.renew(earliest, mark, out),
            Plan::Latest => (From::After { epoch, at: mark }, Stand::Live),
            Plan::Earliest => (From::Earliest, replaying),
        };
    }

    /// The log is another one than the client's: all of it is new to it.
    fn renew(&mut self, earliest: Link, mark: Link, out: &mut Vec<Output>) {
        let oldest = earliest.unwrap_or(Offset::clamped(0));
        out.push(say::cursor_stale(self.reader.partition, self.at(), oldest));
        (self.untouched, self.doubts) = (false, 0);
        self.reader = Reader::new(self.reader.partition, From::Earliest);
        if self.stand != Stand::Live {
            self.stand = Stand::Replaying { mark };
        }
    }

    /// A reader that has all up to its mark is live.
    fn look(&mut self) {
        if let (Stand::Replaying { mark }, From::After { at, .. }) = (self.stand, self.reader.from)
            && at >= mark
        {
            self.stand = Stand::Live;
        }
    }

    /// False when the session ends.
    fn deliver_all(&mut self, slots: &[Slot], tenants: &Tenants, out: &mut Vec<Output>) -> bool {
        slots.iter().all(|slot| self.deliver(slot, tenants, out))
    }

    /// Puts out what is for the client of the part of a batch that it does not have.
    fn deliver(&mut self, slot: &Slot, tenants: &Tenants, out: &mut Vec<Output>) -> bool {
        let batch = slot.batch();
        let epoch = Epoch::new(batch.epoch);
        let mut at = match self.reader.from {
            From::After { epoch: expected, at } if expected == epoch => at,
            From::After { .. } | From::Active => return self.broken("a batch of another epoch", out),
            From::Earliest | From::Latest | From::Time(_) => batch.link(), // this is where the client begins
        };
        if at >= Some(batch.last()) {
            return true;
        }
        if let Step::Missing { first, last } = step(at, batch.link(), batch.first()) {
            if !self.lose(missing(batch, first, last), out) {
                return false;
            }
            at = Some(last);
        }
        for record in batch::records(batch) {
            match record {
                Ok(record) if Some(Offset::clamped(record.offset)) <= at => {}
                Ok(record) => self.pair(record, tenants, out),
                Err(error) => return self.broken(&error.to_string(), out),
            }
        }
        self.reader.put_out(epoch, batch.last());
        true
    }

    /// A record is two frames: its place, and what Kafka holds of it.
    fn pair(&mut self, record: Record, tenants: &Tenants, out: &mut Vec<Output>) {
        if let (RecordKind::Gap, Some(gap)) = (record.kind(), record.gap) {
            return self.tell(gap, out);
        }
        if !tenants.allow(&record.tenant_id) {
            return;
        }
        let at = Offset::clamped(record.offset);
        out.push(say::cursor(self.reader.partition.get(), record.offset));
        out.push(Output::Send(record.payload));
        self.untouched = false;
        if let Stand::Replaying { mark } = self.stand
            && Some(at) <= mark
        {
            (self.replayed, self.replayed_to) = (self.replayed + 1, Some(at));
        }
    }

    /// Moves the reader behind a loss. False when the session ends.
    fn lose(&mut self, gap: Gap, out: &mut Vec<Output>) -> bool {
        let (epoch, last) = (Epoch::new(gap.epoch), Offset::clamped(gap.last_offset));
        match self.reader.from {
            From::After { epoch: expected, at } if epoch != expected || Some(last) <= at => {
                return self.broken("a gap that is not behind the cursor", out);
            }
            From::After { .. } => self.tell(gap, out),
            // Before the first record that is kept, nothing was promised.
            From::Earliest | From::Latest | From::Time(_) | From::Active => {}
        }
        self.reader.put_out(epoch, last);
        true
    }

    /// Declares a loss. A record that never was one is none: the predecessor left bad ones out without a word, and its
    /// clients distrust everything after a gap.
    fn tell(&mut self, gap: Gap, out: &mut Vec<Output>) {
        match gap.reason() {
            GapReason::Undecodable | GapReason::Skipped => return,
            GapReason::Retention
            | GapReason::SourceRetention
            | GapReason::StoreLost
            | GapReason::Unspecified => {}
        }
        let partition = self.reader.partition;
        if std::mem::take(&mut self.untouched) {
            let oldest = Offset::clamped(gap.last_offset.saturating_add(1));
            out.push(say::cursor_stale(partition, self.at(), oldest));
        }
        let count = gap.last_offset.saturating_sub(gap.first_offset).saturating_add(1);
        out.push(say::gap(count, say::Place::Partition(partition)));
    }

    /// What comes from our own services is not what it must be: end the session rather than skip.
    fn broken(&mut self, what: &str, out: &mut Vec<Output>) -> bool {
        self.reader.appetite = Appetite::Stale;
        out.extend([say::error("INTERNAL", what), Output::Close(CloseReason::Error)]);
        false
    }
}

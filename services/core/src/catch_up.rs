//! How far one partition is: a state machine fed with what its pipeline learns.
//!
//! What is unknown stays unknown: nothing here has a default that looks healthy.
use crate::position::{Epoch, Link, NextOffset, Offset};

/// Where the pipeline is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not ours.
    Unassigned,
    /// It asks the store and Kafka where to begin.
    Starting,
    /// Below the head, or the head is unknown.
    CatchingUp { head: Option<NextOffset> },
    /// At or past the head.
    Live,
    /// Stopped on purpose.
    Paused { why: String },
    /// Stopped at a bad record, until an operator decides.
    Blocked { offset: Offset, error: String },
    /// Filling again what the store lost; `from` is unknown until the store said what it holds.
    Healing { from: Option<NextOffset> },
    /// Waiting for what it can't do without.
    Stalled { why: String },
}

/// What the pipeline learned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The partition is ours now. A new assignment knows nothing of the one before.
    Assigned,
    /// The partition is no longer ours.
    Revoked,
    /// The store opened the log and holds records up to `held`.
    Opened { epoch: Epoch, held: Link },
    /// The high watermark that was asked for. The first one of an assignment is its head.
    Head(NextOffset),
    /// The high watermark as the fetcher last heard of it. What was read since proves more.
    Fetched { high_watermark: NextOffset },
    /// Everything before `next` is durable, or will never be a record.
    Durable { next: NextOffset },
    /// The store refused an append: it lost what came before.
    Refused,
    /// Something that it can't do without does not answer.
    Unavailable { why: String },
    /// The leader of the partition can't be reached (`Some`), or can.
    Source { trouble: Option<String> },
    /// It stands at a bad record.
    Blocked { offset: Offset, error: String },
    /// An operator decided on that record.
    Resolved,
    /// It was stopped on purpose (`Some`), or may go on.
    Hold { why: Option<String> },
}

/// Filling again what the store lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Healing {
    /// What the store held; `None` until it said.
    from: Option<NextOffset>,
    /// Healed when this is durable again.
    until: NextOffset,
}

/// Invariants: `next` never decreases but through `Opened`; `head` is set once for each assignment, and again only
/// with a new epoch; the phase follows from the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CatchUp {
    assigned: bool,
    since_ms: i64,
    epoch: Option<Epoch>,
    head: Option<NextOffset>,
    next: Option<NextOffset>,
    high_watermark: Option<NextOffset>,
    healing: Option<Healing>,
    stalled: Option<String>,
    source: Option<String>,
    blocked: Option<(Offset, String)>,
    hold: Option<String>,
}

impl CatchUp {
    /// A partition that was just assigned. Times are milliseconds since 1970.
    pub fn assigned(now_ms: i64) -> Self {
        Self { assigned: true, since_ms: now_ms, ..Self::default() }
    }

    /// What matters most comes first: what only a person can end, then what keeps it from going on, then how far
    /// it is.
    pub fn phase(&self) -> Phase {
        if !self.assigned {
            return Phase::Unassigned;
        }
        if let Some((offset, error)) = &self.blocked {
            return Phase::Blocked { offset: *offset, error: error.clone() };
        }
        if let Some(why) = &self.hold {
            return Phase::Paused { why: why.clone() };
        }
        if let Some(why) = self.stalled.as_ref().or(self.source.as_ref()) {
            return Phase::Stalled { why: why.clone() };
        }
        match (self.healing, self.next, self.head) {
            (Some(Healing { from, .. }), _, _) => Phase::Healing { from },
            (_, None, _) => Phase::Starting,
            (_, Some(next), Some(head)) if next >= head => Phase::Live,
            (_, Some(_), head) => Phase::CatchingUp { head },
        }
    }

    /// When it entered the phase.
    pub fn since_ms(&self) -> i64 {
        self.since_ms
    }

    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// The high watermark when the partition was assigned; `None` until it was fetched.
    pub fn head(&self) -> Option<NextOffset> {
        self.head
    }

    /// Everything before it is durable; `None` until the store said.
    pub fn next(&self) -> Option<NextOffset> {
        self.next
    }

    pub fn high_watermark(&self) -> Option<NextOffset> {
        self.high_watermark
    }

    /// Offsets between what is durable and Kafka's end; `None` while either is unknown.
    pub fn lag(&self) -> Option<u64> {
        self.next?.lag(self.high_watermark?)
    }

    /// Whether the record at `offset` is old, which is to say below the head; `None` while the head is unknown.
    pub fn is_old(&self, offset: Offset) -> Option<bool> {
        self.head.map(|head| offset.next() <= head)
    }

    pub fn on(&mut self, input: Input, now_ms: i64) {
        let before = std::mem::discriminant(&self.phase());
        self.take(input, now_ms);
        if std::mem::discriminant(&self.phase()) != before {
            self.since_ms = now_ms;
        }
    }

    fn take(&mut self, input: Input, now_ms: i64) {
        if !self.assigned && input != Input::Assigned {
            return;
        }
        match input {
            Input::Assigned => *self = Self::assigned(now_ms),
            Input::Revoked => *self = Self { since_ms: now_ms, ..Self::default() },
            Input::Opened { epoch, held } => self.opened(epoch, NextOffset::after(held)),
            Input::Head(mark) => {
                self.head = self.head.or(Some(mark));
                self.mark(mark);
            }
            Input::Fetched { high_watermark } => self.mark(high_watermark),
            Input::Durable { next } => self.durable(next),
            Input::Refused => {
                let until = self.next.unwrap_or(NextOffset::ZERO);
                let until = self.healing.map_or(until, |healing| healing.until.max(until));
                self.healing = Some(Healing { from: None, until });
            }
            Input::Unavailable { why } => self.stalled = Some(why),
            Input::Source { trouble } => self.source = trouble,
            Input::Blocked { offset, error } => self.blocked = Some((offset, error)),
            Input::Resolved => self.blocked = None,
            Input::Hold { why } => self.hold = why,
        }
    }

    fn opened(&mut self, epoch: Epoch, next: NextOffset) {
        self.stalled = None;
        if self.epoch.is_some_and(|before| before != epoch) {
            // What was known is of another log.
            (self.head, self.high_watermark) = (None, None);
            (self.healing, self.blocked) = (None, None);
        }
        let until = self.healing.map(|healing| healing.until).max(self.next);
        let lost = until.filter(|until| *until > next && self.epoch == Some(epoch));
        self.healing = lost.map(|until| Healing { from: Some(next), until });
        self.high_watermark = self.high_watermark.map(|mark| mark.max(next));
        self.epoch = Some(epoch);
        self.next = Some(next);
    }

    fn durable(&mut self, next: NextOffset) {
        self.stalled = None;
        self.next = self.next.max(Some(next));
        self.high_watermark = self.high_watermark.map(|mark| mark.max(next));
        self.healing = self.healing.filter(|healing| Some(healing.until) > self.next);
        self.blocked = self.blocked.take().filter(|(offset, _)| offset.next() > next);
    }

    /// A watermark of the log that the store follows is never below what is durable: the word is older than that.
    fn mark(&mut self, mark: NextOffset) {
        self.high_watermark = Some(mark.max(self.next.unwrap_or(NextOffset::ZERO)));
    }
}

#[cfg(test)]
mod tests;

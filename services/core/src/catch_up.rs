//! How far one assigned partition is: a state machine fed with what its pipeline learns.
//!
//! What is unknown stays unknown: nothing here has a default that looks healthy.
use crate::position::{Epoch, Link, NextOffset};

/// Where the pipeline is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It asks the store and Kafka where to begin.
    Starting,
    /// Below the head, or the head is unknown.
    CatchingUp,
    /// At or past the head.
    Live,
    /// Going back to what the store holds.
    Healing { why: String },
    /// Waiting for the store.
    Stalled { why: String },
}

/// What the pipeline learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The store opened the log and holds records up to `held`.
    Opened { epoch: Epoch, held: Link },
    /// Kafka's high watermark, first fetched when the partition was assigned.
    HighWatermark(NextOffset),
    /// The high watermark as the fetcher last heard of it. What was read since proves more.
    Fetched { high_watermark: NextOffset },
    /// Everything before `next` is durable, or will never be a record.
    Durable { next: NextOffset },
    /// The store refused an append.
    Refused { why: String },
    /// The store does not answer.
    Unavailable { why: String },
}

/// Invariant: `next` never decreases but through `Opened`; `head` is set once for each assignment, and again
/// only with a new epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatchUp {
    phase: Phase,
    since_ms: i64,
    epoch: Option<Epoch>,
    head: Option<NextOffset>,
    next: Option<NextOffset>,
    high_watermark: Option<NextOffset>,
}

impl CatchUp {
    /// A partition that was just assigned. Times are milliseconds since 1970.
    pub fn assigned(now_ms: i64) -> Self {
        Self {
            phase: Phase::Starting,
            since_ms: now_ms,
            epoch: None,
            head: None,
            next: None,
            high_watermark: None,
        }
    }

    pub fn phase(&self) -> &Phase {
        &self.phase
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

    pub fn on(&mut self, input: Input, now_ms: i64) {
        let phase = match input {
            Input::Opened { epoch, held } => {
                if self.epoch.is_some_and(|before| before != epoch) {
                    self.head = self.high_watermark;
                }
                self.epoch = Some(epoch);
                self.next = Some(NextOffset::after(held));
                self.reading()
            }
            Input::HighWatermark(mark) => self.mark(mark),
            Input::Fetched { high_watermark } => {
                self.mark(high_watermark.max(self.next.unwrap_or(NextOffset::ZERO)))
            }
            Input::Durable { next } => {
                self.next = self.next.max(Some(next));
                self.high_watermark = self.high_watermark.map(|mark| mark.max(next));
                self.reading()
            }
            Input::Refused { why } => Phase::Healing { why },
            Input::Unavailable { why } => Phase::Stalled { why },
        };
        if std::mem::discriminant(&phase) != std::mem::discriminant(&self.phase) {
            self.since_ms = now_ms;
        }
        self.phase = phase;
    }

    fn mark(&mut self, mark: NextOffset) -> Phase {
        self.head = self.head.or(Some(mark));
        self.high_watermark = Some(mark);
        match &self.phase {
            Phase::CatchingUp | Phase::Live => self.reading(),
            Phase::Starting | Phase::Healing { .. } | Phase::Stalled { .. } => self.phase.clone(),
        }
    }

    fn reading(&self) -> Phase {
        match (self.next, self.head) {
            (Some(next), Some(head)) if next >= head => Phase::Live,
            _ => Phase::CatchingUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Offset;

    fn mark(value: i64) -> NextOffset {
        NextOffset::from_kafka(value).unwrap()
    }

    fn opened(held: u64) -> Input {
        Input::Opened { epoch: Epoch::new(1), held: Offset::new(held).ok() }
    }

    #[test]
    fn it_is_live_only_when_a_known_head_is_reached() {
        let mut state = CatchUp::assigned(1);
        assert_eq!((state.phase(), state.lag()), (&Phase::Starting, None));
        state.on(opened(9), 2);
        assert_eq!(
            (state.phase(), state.since_ms(), state.lag()),
            (&Phase::CatchingUp, 2, None),
            "head unknown"
        );
        state.on(Input::HighWatermark(mark(20)), 3);
        assert_eq!((state.phase(), state.lag()), (&Phase::CatchingUp, Some(10)));
        state.on(Input::Durable { next: mark(19) }, 4);
        assert_eq!((state.phase(), state.since_ms()), (&Phase::CatchingUp, 2));
        state.on(Input::Durable { next: mark(20) }, 5);
        assert_eq!((state.phase(), state.since_ms(), state.lag()), (&Phase::Live, 5, Some(0)));
        state.on(Input::HighWatermark(mark(50)), 6);
        assert_eq!((state.phase(), state.head(), state.lag()), (&Phase::Live, Some(mark(20)), Some(30)));
    }

    #[test]
    fn trouble_is_a_phase_and_opening_ends_it() {
        let mut state = CatchUp::assigned(1);
        state.on(Input::HighWatermark(mark(5)), 1);
        state.on(Input::Unavailable { why: "no answer".into() }, 2);
        assert_eq!(state.phase(), &Phase::Stalled { why: "no answer".into() });
        state.on(Input::HighWatermark(mark(7)), 3);
        assert!(matches!(state.phase(), Phase::Stalled { .. }), "news of Kafka does not hide it");
        state.on(opened(6), 4);
        assert_eq!(state.phase(), &Phase::Live);
        state.on(Input::Refused { why: "the store holds 2".into() }, 5);
        assert!(matches!(state.phase(), Phase::Healing { .. }));
        state.on(opened(2), 6);
        assert_eq!((state.phase(), state.next()), (&Phase::CatchingUp, Some(mark(3))));
    }

    #[test]
    fn what_was_read_proves_where_the_end_is_at_least() {
        let mut state = CatchUp::assigned(1);
        state.on(opened(0), 1);
        state.on(Input::HighWatermark(mark(5)), 1);
        state.on(Input::Durable { next: mark(8) }, 1);
        assert_eq!((state.lag(), state.high_watermark()), (Some(0), Some(mark(8))));
        state.on(Input::Fetched { high_watermark: mark(6) }, 1);
        assert_eq!((state.lag(), state.high_watermark()), (Some(0), Some(mark(8))), "statistics are late");
        state.on(Input::Fetched { high_watermark: mark(11) }, 1);
        assert_eq!(state.lag(), Some(3));
    }

    #[test]
    fn a_watermark_below_what_is_durable_is_not_a_lag() {
        let mut state = CatchUp::assigned(1);
        state.on(opened(9), 1);
        state.on(Input::HighWatermark(mark(4)), 1);
        assert_eq!(state.lag(), None);
    }
}

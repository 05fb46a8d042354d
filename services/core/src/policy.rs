//! What becomes of a record: one outcome for each, decided here and nowhere else.
//!
//! A judgement says what a record is, the policy says what to do with a bad one, and [`outcome`] turns both into
//! what happens to its offset. Nothing else may move an offset.
use crate::{
    codec::{self, Facts, Limits, Undecodable},
    position::{Link, Offset, Partition},
};
use dashstream_proto::log::v1::GapReason;

/// What to do with a bad record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Write a dead letter, leave a gap in its place, and go on.
    Skip,
    /// Stop its partition at it until an operator decides.
    Pause,
    /// Stop everything until an operator decides.
    Halt,
}

/// What is wrong with a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
    #[error("the message has no thread id: expected one in its header, or in those of its events")]
    NoThread,
}

impl Fault {
    /// A bounded label for metrics and dead letters.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Undecodable(error) => error.label(),
            Self::NoThread => "no_thread",
        }
    }
}

/// What a record is.
#[derive(Clone, Debug, PartialEq)]
pub enum Judgement {
    /// The log has its offset already.
    Known,
    /// Fit for the log.
    Sound(Facts),
    /// Fit for the log, but its thread was seen in another partition before: across the two its records have no
    /// order.
    Strayed { facts: Facts, home: Partition },
    /// Not fit for the log.
    Bad(Fault),
}

/// Judges the record at `at` for a log that has everything up to `link`. `home` tells where a thread was seen
/// first.
///
/// What is known is not decoded again, and what is too large not copied.
pub fn judge(
    at: Offset,
    link: Link,
    value: Option<&[u8]>,
    limits: Limits,
    home: impl FnOnce(&Facts) -> Option<Partition>,
) -> Judgement {
    if link >= Some(at) {
        return Judgement::Known;
    }
    match codec::facts(value, limits) {
        Err(error) => Judgement::Bad(error.into()),
        Ok(facts) if facts.thread_id.is_empty() => Judgement::Bad(Fault::NoThread),
        Ok(facts) => match home(&facts) {
            Some(home) => Judgement::Strayed { facts, home },
            None => Judgement::Sound(facts),
        },
    }
}

/// What happens to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It goes into the log.
    Stored,
    /// A gap goes into the log in its place, once its dead letter is acknowledged.
    DeadLettered,
    /// A gap goes into the log in its place: an operator said so.
    Skipped,
    /// It stays where it is, and so does its partition; with `everything`, so do all others.
    Blocked { everything: bool },
    /// The log has it.
    Duplicate,
}

impl Outcome {
    /// A bounded label for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::DeadLettered => "dead_lettered",
            Self::Skipped => "skipped",
            Self::Blocked { .. } => "blocked",
            Self::Duplicate => "duplicate",
        }
    }

    /// Why there is a gap in its place; `None` when there is none.
    pub fn gap(self) -> Option<GapReason> {
        match self {
            Self::DeadLettered => Some(GapReason::Undecodable),
            Self::Skipped => Some(GapReason::Skipped),
            Self::Stored | Self::Blocked { .. } | Self::Duplicate => None,
        }
    }

    /// Whether the record behind it may be read.
    pub fn moves_on(self) -> bool {
        match self {
            Self::Stored | Self::DeadLettered | Self::Skipped | Self::Duplicate => true,
            Self::Blocked { .. } => false,
        }
    }
}

/// The outcome of a record. `pardoned`: an operator said to pass over the record at this offset if it is bad.
pub fn outcome(judgement: &Judgement, policy: Policy, pardoned: bool) -> Outcome {
    match (judgement, policy) {
        (Judgement::Known, _) => Outcome::Duplicate,
        // What is in order within its partition must not be lost for what another partition has.
        (Judgement::Sound(_) | Judgement::Strayed { .. }, _) => Outcome::Stored,
        (Judgement::Bad(_), _) if pardoned => Outcome::Skipped,
        (Judgement::Bad(_), Policy::Skip) => Outcome::DeadLettered,
        (Judgement::Bad(_), Policy::Pause) => Outcome::Blocked { everything: false },
        (Judgement::Bad(_), Policy::Halt) => Outcome::Blocked { everything: true },
    }
}

#[cfg(test)]
mod tests;

//! Who is let in when there is little room.
use dashstream_proto::telemetry::EventType;

/// What a message is, in numbers and labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Event,
    StateDiff,
    TokenChunk,
    ToolExecution,
    Checkpoint,
    Metrics,
    Error,
}

impl Kind {
    pub const ALL: [Self; 7] = [
        Self::Event,
        Self::StateDiff,
        Self::TokenChunk,
        Self::ToolExecution,
        Self::Checkpoint,
        Self::Metrics,
        Self::Error,
    ];

    /// A bounded label for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::StateDiff => "state_diff",
            Self::TokenChunk => "token_chunk",
            Self::ToolExecution => "tool_execution",
            Self::Checkpoint => "checkpoint",
            Self::Metrics => "metrics",
            Self::Error => "error",
        }
    }
}

/// How dear a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Tokens and metrics: there will be more.
    Lossy,
    /// What a run is told by.
    Kept,
    /// How a run stands: its end, or that somebody is waited for. Nothing comes after it that would say so.
    Last,
}

impl Lane {
    pub(crate) fn of(kind: Kind, event: Option<EventType>) -> Self {
        let last = [EventType::GraphEnd, EventType::GraphError, EventType::HumanInterrupt];
        if event.is_some_and(|event| last.contains(&event)) {
            Self::Last
        } else if matches!(kind, Kind::TokenChunk | Kind::Metrics) {
            Self::Lossy
        } else {
            Self::Kept
        }
    }

    /// How much of a budget may be taken when one of this lane comes in, bytes.
    fn share(self, budget: usize) -> usize {
        match self {
            Self::Lossy => budget / 4 * 3,
            Self::Kept => budget / 16 * 15,
            Self::Last => budget,
        }
    }

    /// Whether `bytes` more fit beside those `taken`.
    pub(crate) fn admits(self, bytes: usize, taken: usize, budget: usize) -> bool {
        taken.saturating_add(bytes) <= self.share(budget)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dearer_a_message_the_longer_it_is_let_in() {
        let admitted =
            |taken| [Lane::Lossy, Lane::Kept, Lane::Last].map(|lane| lane.admits(10, taken, 1_600));
        assert_eq!(admitted(1_190), [true, true, true]);
        assert_eq!(admitted(1_191), [false, true, true]);
        assert_eq!(admitted(1_490), [false, true, true]);
        assert_eq!(admitted(1_491), [false, false, true]);
        assert_eq!(admitted(1_590), [false, false, true]);
        assert_eq!(admitted(1_591), [false, false, false]);
        assert_eq!(admitted(usize::MAX), [false, false, false]);
    }

    #[test]
    fn tokens_and_metrics_give_way_and_ends_come_last() {
        assert_eq!(Lane::of(Kind::TokenChunk, None), Lane::Lossy);
        assert_eq!(Lane::of(Kind::Metrics, None), Lane::Lossy);
        assert_eq!(Lane::of(Kind::StateDiff, None), Lane::Kept);
        assert_eq!(Lane::of(Kind::Event, Some(EventType::NodeEnd)), Lane::Kept);
        assert_eq!(Lane::of(Kind::Event, Some(EventType::GraphError)), Lane::Last);
    }
}

//! What became of every message: accepted = delivered + dropped + failed + in flight, at any moment.
//!
//! A message moves from one column to the next by one call here, and by nothing else.
use crate::budget::Kind;
use rdkafka::{error::KafkaError, types::RDKafkaErrorCode as Code};

/// Why a message was never given to Kafka's client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The budget of memory is used up, for messages of its kind.
    QueueFull,
    /// It does not fit into a record.
    TooLarge,
    /// A state that can't be published, or a checkpoint of one that is not known.
    StateUnavailable,
    /// States are not to be published.
    StatesWithheld,
    /// The producer had been shut down, or its time for that was up.
    ShutDown,
}

impl Dropped {
    pub const ALL: [Self; 5] =
        [Self::QueueFull, Self::TooLarge, Self::StateUnavailable, Self::StatesWithheld, Self::ShutDown];

    /// A bounded label for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::TooLarge => "too_large",
            Self::StateUnavailable => "state_unavailable",
            Self::StatesWithheld => "states_withheld",
            Self::ShutDown => "shut_down",
        }
    }
}

/// Why a message that was given to Kafka's client did not reach Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// Kafka did not take it in time.
    TimedOut,
    /// Larger than the broker or the topic takes.
    TooLarge,
    /// This producer may not write there.
    Unauthorised,
    /// There is no such topic or partition.
    UnknownTopic,
    /// It was on its way when the time for the shutdown was up.
    ShutDown,
    /// Anything else that Kafka or its client says.
    Other,
}

impl Failed {
    pub const ALL: [Self; 6] =
        [Self::TimedOut, Self::TooLarge, Self::Unauthorised, Self::UnknownTopic, Self::ShutDown, Self::Other];

    /// A bounded label for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::TooLarge => "too_large",
            Self::Unauthorised => "unauthorised",
            Self::UnknownTopic => "unknown_topic",
            Self::ShutDown => "shut_down",
            Self::Other => "other",
        }
    }

    pub(crate) fn of(error: &KafkaError) -> Self {
        let reasons: [(Self, &[Code]); 5] = [
            (Self::TimedOut, &[Code::MessageTimedOut, Code::RequestTimedOut]),
            (Self::TooLarge, &[Code::MessageSizeTooLarge, Code::InvalidMessageSize]),
            (
                Self::Unauthorised,
                &[
                    Code::TopicAuthorizationFailed,
                    Code::ClusterAuthorizationFailed,
                    Code::SaslAuthenticationFailed,
                ],
            ),
            (
                Self::UnknownTopic,
                &[Code::UnknownTopic, Code::UnknownTopicOrPartition, Code::UnknownPartition],
            ),
            (Self::ShutDown, &[Code::PurgeQueue, Code::PurgeInflight]),
        ];
        let code = error.rdkafka_error_code();
        let reason = reasons.into_iter().find(|(_, codes)| code.is_some_and(|code| codes.contains(&code)));
        reason.map_or(Self::Other, |(reason, _)| reason)
    }
}

/// What of a state could not be published as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Degraded {
    /// The whole state was smaller than what had changed.
    PatchLargerThanState,
    /// The state followed the start of its graph in a record of its own.
    InitialStateSplit,
    /// The state does not fit into a record: readers are told that there is none.
    StateTooLarge,
    /// The application's state is no JSON: readers are told that there is none.
    NotSerialisable,
    /// The graph's schema was left off.
    SchemaTooLarge,
}

impl Degraded {
    pub const ALL: [Self; 5] = [
        Self::PatchLargerThanState,
        Self::InitialStateSplit,
        Self::StateTooLarge,
        Self::NotSerialisable,
        Self::SchemaTooLarge,
    ];

    /// A bounded label for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::PatchLargerThanState => "patch_larger_than_state",
            Self::InitialStateSplit => "initial_state_split",
            Self::StateTooLarge => "state_too_large",
            Self::NotSerialisable => "serialization_failed",
            Self::SchemaTooLarge => "schema_too_large",
        }
    }
}

/// Messages of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Ever said by the application, or by the producer itself (checkpoints, warnings).
    pub accepted: u64,
    /// Ever given to Kafka's client.
    pub sent: u64,
    /// Acknowledged by Kafka.
    pub delivered: u64,
    /// By reason, as in [`Dropped::ALL`].
    pub dropped: [u64; Dropped::ALL.len()],
    /// By reason, as in [`Failed::ALL`].
    pub failed: [u64; Failed::ALL.len()],
    /// Here, not yet given to Kafka's client.
    pub queued: u64,
    /// With Kafka's client, which has not said yet what became of them.
    pub unsettled: u64,
}

impl Row {
    /// Neither delivered nor lost yet.
    pub fn in_flight(&self) -> u64 {
        self.queued + self.unsettled
    }

    /// Lost for good.
    pub fn lost(&self) -> u64 {
        self.dropped.iter().chain(&self.failed).sum()
    }

    /// Whether every message is in exactly one place.
    pub fn balances(&self) -> bool {
        self.accepted == self.delivered + self.lost() + self.in_flight()
    }
}

/// What became of every message so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Books {
    rows: [Row; Kind::ALL.len()],
    degraded: [u64; Degraded::ALL.len()],
}

impl Books {
    /// Messages of a kind.
    pub fn row(&self, kind: Kind) -> &Row {
        &self.rows[kind as usize]
    }

    /// Messages of all kinds.
    pub fn total(&self) -> Row {
        self.rows.iter().fold(Row::default(), |mut sum, row| {
            sum.accepted += row.accepted;
            sum.sent += row.sent;
            sum.delivered += row.delivered;
            sum.dropped.iter_mut().zip(row.dropped).for_each(|(sum, count)| *sum += count);
            sum.failed.iter_mut().zip(row.failed).for_each(|(sum, count)| *sum += count);
            sum.queued += row.queued;
            sum.unsettled += row.unsettled;
            sum
        })
    }

    /// How often a state was published otherwise than asked for.
    pub fn degraded(&self, how: Degraded) -> u64 {
        self.degraded[how as usize]
    }

    pub(crate) fn degrade(&mut self, how: Degraded) {
        self.degraded[how as usize] += 1;
    }

    /// The application said it, and there was room.
    pub(crate) fn queue(&mut self, kind: Kind) {
        self.row_mut(kind).accepted += 1;
        self.row_mut(kind).queued += 1;
    }

    /// The application said it, and it was refused.
    pub(crate) fn refuse(&mut self, kind: Kind, reason: Dropped) {
        self.row_mut(kind).accepted += 1;
        self.row_mut(kind).dropped[reason as usize] += 1;
    }

    /// It was queued and is not wanted after all.
    pub(crate) fn drop_queued(&mut self, kind: Kind, reason: Dropped) {
        self.row_mut(kind).queued -= 1;
        self.row_mut(kind).dropped[reason as usize] += 1;
    }

    /// It was queued, and Kafka's client has it.
    pub(crate) fn send(&mut self, kind: Kind) {
        self.row_mut(kind).queued -= 1;
        self.row_mut(kind).sent += 1;
        self.row_mut(kind).unsettled += 1;
    }

    /// Kafka's client said what became of it.
    pub(crate) fn settle(&mut self, kind: Kind, failed: Option<Failed>) {
        let row = self.row_mut(kind);
        row.unsettled -= 1;
        match failed {
            None => row.delivered += 1,
            Some(reason) => row.failed[reason as usize] += 1,
        }
    }

    fn row_mut(&mut self, kind: Kind) -> &mut Row {
        &mut self.rows[kind as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_places_agree() {
        assert!(Kind::ALL.iter().enumerate().all(|(at, kind)| *kind as usize == at));
        assert!(Dropped::ALL.iter().enumerate().all(|(at, reason)| *reason as usize == at));
        assert!(Failed::ALL.iter().enumerate().all(|(at, reason)| *reason as usize == at));
        assert!(Degraded::ALL.iter().enumerate().all(|(at, how)| *how as usize == at));
    }

    #[test]
    fn the_books_balance_after_every_entry() {
        let mut books = Books::default();
        let steps: [fn(&mut Books); 7] = [
            |books| books.queue(Kind::Event),
            |books| books.refuse(Kind::Metrics, Dropped::QueueFull),
            |books| books.queue(Kind::StateDiff),
            |books| books.drop_queued(Kind::StateDiff, Dropped::StateUnavailable),
            |books| books.send(Kind::Event),
            |books| books.settle(Kind::Event, Some(Failed::TimedOut)),
            |books| books.degrade(Degraded::StateTooLarge),
        ];
        for step in steps {
            step(&mut books);
            assert!(books.total().balances(), "{books:?}");
        }
        assert_eq!(books.row(Kind::Event).failed[Failed::TimedOut as usize], 1);
        assert_eq!((books.total().accepted, books.total().lost(), books.total().in_flight()), (3, 3, 0));
    }
}

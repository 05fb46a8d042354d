//! What this replica knows of the partitions that it owns, for reports, heartbeats and commits; and what operators
//! want of them.
use crate::kafka::Position;
use dashstream_core::{
    catch_up::{CatchUp, Input, Phase},
    dead_letter::Age,
    position::{Epoch, Link, NextOffset, Offset, Partition},
    rates::{Rates, Sample},
};
use dashstream_proto::ingest::v1::{Heartbeat, PartitionCatchUp, Resolution};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};
use tokio::sync::watch;

mod report;

/// Shared by the pipelines, which write their own partition, and by those who report.
#[derive(Clone, Debug, Default)]
pub struct Owned(Arc<Mutex<BTreeMap<Partition, State>>>);

/// What an operator wants of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Stop reading, and why.
    pub paused: Option<String>,
    /// What to do with the record that blocks.
    pub resolution: Option<(Offset, Resolution)>,
}

/// Why an operator's wish can't be met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmet {
    #[error("partition {0} is not owned by this replica: ask its owner")]
    NotOwned(Partition),
    #[error("partition {0} is not blocked")]
    NotBlocked(Partition),
    #[error("partition {partition} is blocked at offset {at}, not at {asked}")]
    BlockedElsewhere { partition: Partition, at: Offset, asked: Offset },
}

/// Bad records since the assignment, by where they stand to the head.
#[derive(Clone, Copy, Debug, Default)]
struct BadRecords {
    old: u64,
    new: u64,
    unclassified: u64,
    /// The last one that was counted: a record that is read again is not counted again.
    last: Link,
}

#[derive(Debug)]
struct State {
    catch_up: CatchUp,
    durable: Link,
    records: u64,
    last_record_ms: Option<i64>,
    bad: BadRecords,
    /// Times that a record was judged to block.
    blocks: u64,
    rates: Rates,
    wish: watch::Sender<Wish>,
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Owned {
    fn states(&self) -> MutexGuard<'_, BTreeMap<Partition, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A partition was assigned. Returns what operators want of it, now and later.
    pub fn insert(&self, partition: Partition) -> watch::Receiver<Wish> {
        let (wish, wishes) = watch::channel(Wish::default());
        let state = State {
            catch_up: CatchUp::assigned(now_ms()),
            durable: None,
            records: 0,
            last_record_ms: None,
            bad: BadRecords::default(),
            blocks: 0,
            rates: Rates::default(),
            wish,
        };
        self.states().insert(partition, state);
        wishes
    }

    /// A partition was revoked: nothing is known of it any more.
    pub fn remove(&self, partition: Partition) {
        self.states().remove(&partition);
    }

    pub fn count(&self) -> usize {
        self.states().len()
    }

    /// The pipeline learned something. Returns how many bad records it proved to be old.
    pub fn on(&self, partition: Partition, input: Input) -> u64 {
        let mut states = self.states();
        let Some(state) = states.get_mut(&partition) else { return 0 };
        let epoch = state.catch_up.epoch();
        state.blocks += u64::from(matches!(input, Input::Blocked { .. }));
        if let Input::Opened { held, .. } = &input {
            state.durable = *held;
        }
        state.catch_up.on(input, now_ms());
        if state.catch_up.epoch() != epoch && epoch.is_some() {
            state.bad.last = None;
        }
        state.classify()
    }

    /// A batch became durable.
    pub fn stored(&self, partition: Partition, last: Link, records: u32, last_record_ms: Option<i64>) {
        if let Some(state) = self.states().get_mut(&partition) {
            state.durable = state.durable.max(last);
            state.records += u64::from(records);
            state.last_record_ms = last_record_ms.or(state.last_record_ms);
            state.catch_up.on(Input::Durable { next: NextOffset::after(last) }, now_ms());
        }
    }

    /// A bad record was judged. Says where it stands to the head, and whether it was judged for the first time.
    pub fn bad(&self, partition: Partition, at: Offset) -> (Age, bool) {
        let mut states = self.states();
        let Some(state) = states.get_mut(&partition) else { return (Age::Unclassified, false) };
        let (age, count) = match state.catch_up.is_old(at) {
            Some(true) => (Age::Old, &mut state.bad.old),
            Some(false) => (Age::New, &mut state.bad.new),
            None => (Age::Unclassified, &mut state.bad.unclassified),
        };
        let first = state.bad.last < Some(at);
        if first {
            *count += 1;
            state.bad.last = Some(at);
        }
        (age, first)
    }

    /// Takes the samples of a second.
    pub fn sample(&self) {
        for state in self.states().values_mut() {
            state.rates.push(Sample {
                records: state.records,
                next: state.catch_up.next(),
                high_watermark: state.catch_up.high_watermark(),
            });
        }
    }

    /// What to commit of each partition of which the epoch and the next offset are known.
    pub fn positions(&self) -> Vec<Position> {
        let states = self.states();
        states.iter().filter_map(|(partition, state)| state.position(*partition)).collect()
    }

    pub fn position(&self, partition: Partition) -> Option<Position> {
        self.states().get(&partition)?.position(partition)
    }

    pub fn heartbeats(&self) -> Vec<Heartbeat> {
        let states = self.states();
        states.iter().filter_map(|(partition, state)| report::heartbeat(*partition, state)).collect()
    }

    pub fn heartbeat(&self, partition: Partition) -> Option<Heartbeat> {
        report::heartbeat(partition, self.states().get(&partition)?)
    }

    pub fn report(&self) -> Vec<PartitionCatchUp> {
        self.states().iter().map(|(partition, state)| report::report(*partition, state)).collect()
    }

    /// How far one partition is; `None` when it is not ours.
    pub fn report_of(&self, partition: Partition) -> Option<PartitionCatchUp> {
        Some(report::report(partition, self.states().get(&partition)?))
    }

    /// How often a record of the partition was judged to block it.
    pub fn blocks(&self, partition: Partition) -> u64 {
        self.states().get(&partition).map_or(0, |state| state.blocks)
    }

    /// Whether it is at or past its head.
    pub fn is_live(&self, partition: Partition) -> bool {
        self.states().get(&partition).is_some_and(|state| state.catch_up.phase() == Phase::Live)
    }

    /// An operator stops a partition (`Some`), or lets it go on.
    ///
    /// # Errors
    /// [`Unmet::NotOwned`].
    pub fn pause(&self, partition: Partition, why: Option<String>) -> Result<(), Unmet> {
        let states = self.states();
        let state = states.get(&partition).ok_or(Unmet::NotOwned(partition))?;
        state.wish.send_modify(|wish| wish.paused = why);
        Ok(())
    }

    /// An operator decides on the record that blocks a partition.
    ///
    /// # Errors
    /// [`Unmet`] when another record blocks it, or none.
    pub fn resolve(&self, partition: Partition, offset: Offset, resolution: Resolution) -> Result<(), Unmet> {
        let states = self.states();
        let state = states.get(&partition).ok_or(Unmet::NotOwned(partition))?;
        match state.catch_up.phase() {
            Phase::Blocked { offset: at, .. } if at == offset => {
                state.wish.send_modify(|wish| wish.resolution = Some((offset, resolution)));
                Ok(())
            }
            Phase::Blocked { offset: at, .. } => {
                Err(Unmet::BlockedElsewhere { partition, at, asked: offset })
            }
            Phase::Unassigned
            | Phase::Starting
            | Phase::CatchingUp { .. }
            | Phase::Live
            | Phase::Paused { .. }
            | Phase::Healing { .. }
            | Phase::Stalled { .. } => Err(Unmet::NotBlocked(partition)),
        }
    }

    /// The pipeline acts on the operator's decision.
    pub fn resolved(&self, partition: Partition) {
        if let Some(state) = self.states().get_mut(&partition) {
            state.wish.send_modify(|wish| wish.resolution = None);
            state.catch_up.on(Input::Resolved, now_ms());
        }
    }
}

impl State {
    fn position(&self, partition: Partition) -> Option<Position> {
        let (epoch, next) = (self.catch_up.epoch()?, self.catch_up.next()?);
        Some(Position {
            partition,
            epoch,
            next,
            last: self.durable,
            paused: self.wish.borrow().paused.clone(),
        })
    }

    /// What was read before the head became known is below it.
    fn classify(&mut self) -> u64 {
        if self.catch_up.head().is_none() {
            return 0;
        }
        let old = std::mem::take(&mut self.bad.unclassified);
        self.bad.old += old;
        old
    }

    fn epoch(&self) -> Option<Epoch> {
        self.catch_up.epoch()
    }
}

#[cfg(test)]
mod tests;

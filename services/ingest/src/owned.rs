//! What this replica knows of the partitions that it owns, for reports, heartbeats and commits.
use dashstream_core::{
    catch_up::{CatchUp, Input, Phase},
    position::{Epoch, Link, NextOffset, Partition},
};
use dashstream_proto::{
    ingest::v1::{CatchUpPhase, Heartbeat, PartitionCatchUp},
    log::v1::Cursor,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// Seconds over which rates are taken.
const RATE_WINDOW: usize = 5;

/// Shared by the pipelines, which write their own partition, and by those who report.
#[derive(Clone, Debug, Default)]
pub struct Owned(Arc<Mutex<BTreeMap<Partition, State>>>);

#[derive(Debug)]
struct State {
    catch_up: CatchUp,
    durable: Link,
    records: u64,
    last_record_ms: Option<i64>,
    undecodable_old: u64,
    undecodable_new: u64,
    /// Of each of the last seconds: records and high watermark.
    seconds: VecDeque<(u64, Option<NextOffset>)>,
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

    /// A partition was assigned.
    pub fn insert(&self, partition: Partition) {
        let state = State {
            catch_up: CatchUp::assigned(now_ms()),
            durable: None,
            records: 0,
            last_record_ms: None,
            undecodable_old: 0,
            undecodable_new: 0,
            seconds: VecDeque::new(),
        };
        self.states().insert(partition, state);
    }

    /// A partition was revoked: nothing is known of it any more.
    pub fn remove(&self, partition: Partition) {
        self.states().remove(&partition);
    }

    pub fn count(&self) -> usize {
        self.states().len()
    }

    /// The pipeline learned something.
    pub fn on(&self, partition: Partition, input: Input) {
        if let Some(state) = self.states().get_mut(&partition) {
            if let Input::Opened { held, .. } = &input {
                state.durable = *held;
            }
            state.catch_up.on(input, now_ms());
        }
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

    /// A record does not decode: old when it is below the head, new when it is not or the head is unknown.
    pub fn undecodable(&self, partition: Partition, next: NextOffset) {
        if let Some(state) = self.states().get_mut(&partition) {
            match state.catch_up.head() {
                Some(head) if next <= head => state.undecodable_old += 1,
                Some(_) | None => state.undecodable_new += 1,
            }
        }
    }

    /// Takes the samples of a second.
    pub fn sample(&self) {
        for state in self.states().values_mut() {
            state.seconds.push_back((state.records, state.catch_up.high_watermark()));
            if state.seconds.len() > RATE_WINDOW + 1 {
                state.seconds.pop_front();
            }
        }
    }

    /// What to commit: the epoch and the next offset of each partition that has both.
    pub fn positions(&self) -> Vec<(Partition, Epoch, NextOffset)> {
        let states = self.states();
        let position = |(partition, state): (&Partition, &State)| {
            Some((*partition, state.catch_up.epoch()?, state.catch_up.next()?))
        };
        states.iter().filter_map(position).collect()
    }

    pub fn heartbeats(&self) -> Vec<Heartbeat> {
        let states = self.states();
        states.iter().filter_map(|(partition, state)| heartbeat(*partition, state)).collect()
    }

    pub fn heartbeat(&self, partition: Partition) -> Option<Heartbeat> {
        heartbeat(partition, self.states().get(&partition)?)
    }

    pub fn report(&self) -> Vec<PartitionCatchUp> {
        self.states().iter().map(|(partition, state)| report(*partition, state)).collect()
    }
}

/// None while it is not known what is durable.
fn heartbeat(partition: Partition, state: &State) -> Option<Heartbeat> {
    let durable = Cursor {
        epoch: state.catch_up.epoch()?.get(),
        partition: partition.get(),
        offset: state.durable.map(|offset| offset.get()),
    };
    Some(Heartbeat {
        durable: Some(durable),
        high_watermark: state.catch_up.high_watermark().map(NextOffset::get),
        phase: phase(state.catch_up.phase()).0.into(),
        head: state.catch_up.head().map(NextOffset::get),
    })
}

fn phase(phase: &Phase) -> (CatchUpPhase, String) {
    match phase {
        Phase::Starting => (CatchUpPhase::Starting, String::new()),
        Phase::CatchingUp => (CatchUpPhase::CatchingUp, String::new()),
        Phase::Live => (CatchUpPhase::Live, String::new()),
        Phase::Healing { why } => (CatchUpPhase::Healing, why.clone()),
        Phase::Stalled { why } => (CatchUpPhase::Stalled, why.clone()),
    }
}

fn report(partition: Partition, state: &State) -> PartitionCatchUp {
    let catch_up = &state.catch_up;
    let (phase, reason) = phase(catch_up.phase());
    let (consumed, produced) = rates(&state.seconds);
    let lag = catch_up.lag();
    let closing = consumed - produced.unwrap_or(0.0);
    let behind = matches!(catch_up.phase(), Phase::CatchingUp);
    let seconds_to_live = match lag {
        Some(lag) if behind && closing > 0.0 => Some(lag as f64 / closing),
        Some(_) | None => None,
    };
    PartitionCatchUp {
        partition: partition.get(),
        epoch: catch_up.epoch().map(Epoch::get),
        phase: phase.into(),
        phase_since_ms: catch_up.since_ms(),
        head: catch_up.head().map(NextOffset::get),
        next_offset: catch_up.next().map(NextOffset::get),
        high_watermark: catch_up.high_watermark().map(NextOffset::get),
        lag,
        records_per_second: consumed,
        last_record_ms: state.last_record_ms,
        decode_errors_old: state.undecodable_old,
        decode_errors_new: state.undecodable_new,
        reason,
        blocked_offset: None,
        produced_per_second: produced,
        seconds_to_live,
        decode_errors_unclassified: 0,
        healing_from: None,
        never_live: false,
    }
}

/// Records stored and offsets gained in Kafka, each second, over the samples.
fn rates(seconds: &VecDeque<(u64, Option<NextOffset>)>) -> (f64, Option<f64>) {
    let (Some((first, first_mark)), Some((last, last_mark))) = (seconds.front(), seconds.back()) else {
        return (0.0, None);
    };
    let span = (seconds.len() - 1) as f64;
    if span == 0.0 {
        return (0.0, None);
    }
    let produced = match (first_mark, last_mark) {
        (Some(first), Some(last)) => Some(last.get().saturating_sub(first.get()) as f64 / span),
        _ => None,
    };
    (last.saturating_sub(*first) as f64 / span, produced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dashstream_core::position::Offset;

    fn mark(value: i64) -> NextOffset {
        NextOffset::from_kafka(value).unwrap()
    }

    #[test]
    fn a_report_says_unknown_until_it_knows() {
        let (owned, partition) = (Owned::default(), Partition::new(3).unwrap());
        owned.insert(partition);
        let report = &owned.report()[0];
        assert_eq!((report.epoch, report.head, report.lag, report.next_offset), (None, None, None, None));
        assert!(owned.heartbeat(partition).is_none() && owned.positions().is_empty());

        owned.on(partition, Input::Opened { epoch: Epoch::new(9), held: Offset::new(4).ok() });
        owned.on(partition, Input::HighWatermark(mark(25)));
        owned.sample();
        owned.stored(partition, Offset::new(14).ok(), 10, Some(77));
        owned.sample();
        let report = &owned.report()[0];
        assert_eq!(
            (report.lag, report.records_per_second, report.seconds_to_live),
            (Some(10), 10.0, Some(1.0))
        );
        assert_eq!(owned.positions(), [(partition, Epoch::new(9), mark(15))]);
        assert_eq!(owned.heartbeat(partition).unwrap().durable.unwrap().offset, Some(14));

        owned.remove(partition);
        assert!(owned.report().is_empty());
    }
}

//! What others are told of a partition.
use super::State;
use dashstream_core::{
    catch_up::Phase,
    position::{Epoch, NextOffset, Offset, Partition},
    rates::Eta,
};
use dashstream_proto::{
    ingest::v1::{CatchUpPhase, Heartbeat, PartitionCatchUp},
    log::v1::Cursor,
};

/// None while it is not known what is durable.
pub(super) fn heartbeat(partition: Partition, state: &State) -> Option<Heartbeat> {
    let durable = Cursor {
        epoch: state.epoch()?.get(),
        partition: partition.get(),
        offset: state.durable.map(Offset::get),
    };
    Some(Heartbeat {
        durable: Some(durable),
        high_watermark: state.catch_up.high_watermark().map(NextOffset::get),
        phase: phase(&state.catch_up.phase()).into(),
        head: state.catch_up.head().map(NextOffset::get),
    })
}

pub(super) fn report(partition: Partition, state: &State) -> PartitionCatchUp {
    let catch_up = &state.catch_up;
    let now = catch_up.phase();
    let behind = !matches!(now, Phase::Live);
    let eta = if behind { state.rates.eta(catch_up.lag()) } else { Eta::Unknown };
    PartitionCatchUp {
        partition: partition.get(),
        epoch: catch_up.epoch().map(Epoch::get),
        phase: phase(&now).into(),
        phase_since_ms: catch_up.since_ms(),
        head: catch_up.head().map(NextOffset::get),
        next_offset: catch_up.next().map(NextOffset::get),
        high_watermark: catch_up.high_watermark().map(NextOffset::get),
        lag: catch_up.lag(),
        records_per_second: state.rates.records(),
        last_record_ms: state.last_record_ms,
        decode_errors_old: state.bad.old,
        decode_errors_new: state.bad.new,
        reason: reason(&now),
        blocked_offset: match &now {
            Phase::Blocked { offset, .. } => Some(offset.get()),
            Phase::Unassigned
            | Phase::Starting
            | Phase::CatchingUp { .. }
            | Phase::Live
            | Phase::Paused { .. }
            | Phase::Healing { .. }
            | Phase::Stalled { .. } => None,
        },
        produced_per_second: state.rates.produced(),
        seconds_to_live: match eta {
            Eta::Seconds(seconds) => Some(seconds),
            Eta::Never | Eta::Unknown => None,
        },
        decode_errors_unclassified: state.bad.unclassified,
        healing_from: if let Phase::Healing { from } = now { from.map(NextOffset::get) } else { None },
        never_live: eta == Eta::Never,
    }
}

fn phase(phase: &Phase) -> CatchUpPhase {
    match phase {
        Phase::Unassigned => CatchUpPhase::Unspecified,
        Phase::Starting => CatchUpPhase::Starting,
        Phase::CatchingUp { .. } => CatchUpPhase::CatchingUp,
        Phase::Live => CatchUpPhase::Live,
        Phase::Paused { .. } => CatchUpPhase::Paused,
        Phase::Blocked { .. } => CatchUpPhase::Blocked,
        Phase::Healing { .. } => CatchUpPhase::Healing,
        Phase::Stalled { .. } => CatchUpPhase::Stalled,
    }
}

fn reason(phase: &Phase) -> String {
    match phase {
        Phase::Unassigned | Phase::Starting | Phase::CatchingUp { .. } | Phase::Live => String::new(),
        Phase::Paused { why } | Phase::Stalled { why } => why.clone(),
        Phase::Blocked { offset, error } => format!("offset {offset}: {error}"),
        Phase::Healing { from } => match from {
            Some(from) => format!("the store lost records: filling it again from offset {from}"),
            None => "the store lost records: asking what it holds".into(),
        },
    }
}

//! What the service does beside requests: keeps the inventory alive, and counts what is kept.
use crate::{
    config::Retention,
    error::Error,
    keys::Stream,
    metrics::Kept,
    store::{Description, Store},
};
use dashstream_core::position::{Offset, Partition};
use dashstream_proto::replay::v1 as wire;
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;

const MAINTAIN_INTERVAL: Duration = Duration::from_secs(1);
/// The gauges are counted anew every so many times.
const GAUGES_EVERY: u32 = 5;

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Milliseconds until the oldest batch falls to retention; 0 when it is due.
fn headroom_ms(kept: &Description, age: Duration) -> i64 {
    let due = kept.oldest_append_ms.saturating_add(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    due.saturating_sub(now_ms()).max(0)
}

/// As clients are told.
pub(crate) fn described(kept: &Description, age: Duration) -> wire::PartitionDescription {
    wire::PartitionDescription {
        partition: kept.partition.get(),
        epoch: kept.epoch.get(),
        earliest_offset: kept.earliest.map(Offset::get),
        last_offset: kept.held.map(Offset::get),
        records: kept.records,
        bytes: kept.bytes,
        last_append_ms: kept.last_append_ms,
        headroom_ms: headroom_ms(kept, age),
    }
}

/// As clients are told.
pub(crate) fn told(retention: Retention) -> wire::Retention {
    wire::Retention {
        age_ms: u64::try_from(retention.age.as_millis()).unwrap_or(u64::MAX),
        records_max: retention.records_max,
        bytes_max: retention.bytes_max,
    }
}

/// Bounds that a client asked for.
///
/// # Errors
/// Names the one that can't be.
pub(crate) fn checked(asked: &wire::Retention) -> Result<Retention, Error> {
    // Beyond it a script's numbers would not be exact.
    const MOST: u64 = 1 << 53;
    for (field, value, most, expected) in [
        ("retention.age_ms", asked.age_ms, Retention::AGE_MAX.as_millis() as u64, "1 to ten years"),
        ("retention.records_max", asked.records_max, MOST, "1 to 2^53"),
        ("retention.bytes_max", asked.bytes_max, MOST, "1 to 2^53"),
    ] {
        if value == 0 || value > most {
            return Err(Error::Invalid { field, value: value.to_string(), expected });
        }
    }
    let age = Duration::from_millis(asked.age_ms);
    Ok(Retention { age, records_max: asked.records_max, bytes_max: asked.bytes_max })
}

/// Runs until `stop`.
pub(crate) async fn run<S: Store>(store: Arc<S>, default: Retention, kept: Kept, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(MAINTAIN_INTERVAL);
    let mut series = BTreeSet::new();
    for round in 0_u32.. {
        if stop.run_until_cancelled(ticks.tick()).await.is_none() {
            return;
        }
        let streams = match store.maintain().await {
            Ok(streams) => streams,
            Err(error) => {
                tracing::debug!(%error, "upkeep waits for the store");
                continue;
            }
        };
        if round % GAUGES_EVERY == 0
            && let Err(error) = count(&*store, default, &kept, &streams, &mut series).await
        {
            tracing::debug!(%error, "what is kept is unknown for now");
        }
    }
}

/// Sets the gauges of what is there, and takes away those of what is gone.
async fn count<S: Store>(
    store: &S,
    default: Retention,
    kept: &Kept,
    streams: &[Stream],
    series: &mut BTreeSet<(String, String)>,
) -> Result<(), Error> {
    let mut now = BTreeSet::new();
    for stream in streams {
        let age = store.retention(stream).await?.unwrap_or(default).age;
        let mut holding = 0;
        for partition in store.partitions(stream).await? {
            let Some(description) = store.describe_partition(stream, partition).await? else { continue };
            holding += 1;
            set(kept, stream, partition, &description, age);
            now.insert((stream.as_str().to_owned(), partition.to_string()));
        }
        kept.partitions.with_label_values(&[stream.as_str()]).set(holding);
    }
    for (stream, partition) in series.difference(&now) {
        for gauge in kept.by_partition() {
            // A series that is not there needs no removing.
            drop(gauge.remove_label_values(&[stream.as_str(), partition.as_str()]));
        }
    }
    *series = now;
    Ok(())
}

fn set(kept: &Kept, stream: &Stream, partition: Partition, description: &Description, age: Duration) {
    let partition = partition.to_string();
    let labels = &[stream.as_str(), partition.as_str()];
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    if let (Some(earliest), Some(held)) = (description.earliest, description.held) {
        kept.earliest_offset.with_label_values(labels).set(earliest.to_kafka());
        kept.last_offset.with_label_values(labels).set(held.to_kafka());
        kept.last_append_ms.with_label_values(labels).set(description.last_append_ms);
        kept.headroom_seconds.with_label_values(labels).set(headroom_ms(description, age) / 1_000);
    } else {
        for gauge in [&kept.earliest_offset, &kept.last_offset, &kept.last_append_ms, &kept.headroom_seconds]
        {
            // A series that is not there needs no removing.
            drop(gauge.remove_label_values(labels));
        }
    }
    kept.records.with_label_values(labels).set(number(description.records));
    kept.bytes.with_label_values(labels).set(number(description.bytes));
    kept.threads.with_label_values(labels).set(number(description.threads));
}

//! `dashstream verify`: whether replay has what Kafka has, record by record. Links can't tell what was never stored.
use crate::{
    output::{say, warn},
    source::partitions::{self, Part},
    topics::Names,
};
use anyhow::{Context, bail};
use dashstream_core::{
    batch,
    dead_letter::Sha256,
    position::{Offset, Partition},
    reconcile::{Differences, Source, Stored, reconcile},
};
use dashstream_kit::{
    auth::{self, Trust},
    config::Targets,
    grpc::Channel,
};
use dashstream_proto::{
    log::v1::{Earliest, Position, Record, RecordKind, position::From},
    replay::v1::{
        ReadPartitionsRequest, read_partitions_response::Step, replay_service_client::ReplayServiceClient,
    },
};
use rdkafka::Message;

/// Offsets that are named of those that are wrong.
const NAMED_MAX: usize = 10;
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Settings of `dashstream verify`.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "verify")]
pub struct Config {
    #[command(flatten)]
    pub names: Names,

    /// A replica of replay, gRPC: `host:port`.
    #[arg(long, env = "REPLAY_TARGETS", default_value = "127.0.0.1:7201")]
    pub replay_targets: Targets,

    /// Name of the stream at replay. The topic's name unless given.
    #[arg(long, env = "DASHSTREAM_STREAM")]
    pub stream: Option<String>,

    /// Only this partition.
    #[arg(long)]
    pub partition: Option<i32>,

    #[command(flatten)]
    pub trust: auth::Config,
}

/// Compares all partitions, or one.
///
/// # Errors
/// When a record of Kafka is missing in replay without a word, or is another one there; and when either does not
/// answer.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let parts = parts(&config).await?;
    let address = config.replay_targets.addresses().first().context("no replay")?.clone();
    let replay = ReplayServiceClient::new(Trust::new(&config.trust)?.channel_to(&address)?)
        .max_decoding_message_size(MESSAGE_BYTES_MAX);
    let (mut unsound, count) = (0, parts.len());
    say(format_args!(
        "{:>9}  {:>12} {:>8} {:>8} {:>8} {:>12}",
        "PARTITION", "SAME", "TOLD", "MISSING", "OTHER", "ONLY STORED"
    ));
    for part in parts {
        let stream = config.stream.as_deref().unwrap_or(&config.names.topic);
        let stored = stored(replay.clone(), stream, part.partition).await;
        let stored =
            stored.with_context(|| format!("read partition {} from replay at {address}", part.partition))?;
        let differences = compare(&config.names, part, stored).await?;
        show(part.partition, &differences);
        unsound += usize::from(!differences.is_sound());
    }
    if unsound > 0 {
        bail!("{unsound} of {count} partitions are not what Kafka has");
    }
    Ok(())
}

async fn parts(config: &Config) -> anyhow::Result<Vec<Part>> {
    let (names, only) = (config.names.clone(), config.partition);
    let asking = move || {
        let parts = partitions::ends(&names.consumer()?, &names.topic)?;
        let parts: Vec<_> =
            parts.into_iter().filter(|part| only.is_none_or(|only| part.partition.get() == only)).collect();
        anyhow::Ok(parts)
    };
    let parts = tokio::task::spawn_blocking(asking).await??;
    if let (true, Some(only)) = (parts.is_empty(), config.partition) {
        bail!("--partition: the topic {} has no partition {only}", config.names.topic);
    }
    Ok(parts)
}

/// All that replay has of a partition.
async fn stored(
    mut replay: ReplayServiceClient<Channel>,
    stream: &str,
    partition: Partition,
) -> anyhow::Result<Vec<Stored>> {
    let position = Position { partition: partition.get(), from: Some(From::Earliest(Earliest {})) };
    let request =
        ReadPartitionsRequest { stream: stream.into(), positions: vec![position], ..Default::default() };
    let mut steps = replay.read_partitions(request).await?.into_inner();
    let mut stored = Vec::new();
    while let Some(step) = steps.message().await? {
        match step.step {
            Some(Step::Page(page)) => {
                for record in page.batches.iter().flat_map(batch::records) {
                    stored.push(of(&record?)?);
                }
            }
            Some(Step::Gap(gap)) => {
                let (first, last) = (Offset::new(gap.first_offset)?, Offset::new(gap.last_offset)?);
                stored.push(Stored::Gap { first, last });
            }
            // It holds nothing of the partition.
            Some(Step::Stale(_)) | None => {}
        }
    }
    Ok(stored)
}

fn of(record: &Record) -> anyhow::Result<Stored> {
    if record.kind() == RecordKind::Gap {
        let gap = record.gap.as_ref().context("a gap record without bounds")?;
        return Ok(Stored::Gap {
            first: Offset::new(gap.first_offset)?,
            last: Offset::new(gap.last_offset)?,
        });
    }
    Ok(Stored::Record { at: Offset::new(record.offset)?, payload: Sha256::of(&record.payload) })
}

/// Compares what is stored with the same offsets in Kafka: from the first stored one, or the first that Kafka still
/// has, to the last stored one.
async fn compare(names: &Names, part: Part, mut stored: Vec<Stored>) -> anyhow::Result<Differences> {
    let (Some(low), Some(high)) = (stored.first().copied().map(first), stored.last().copied().map(last))
    else {
        if part.low < part.high {
            warn(format_args!(
                "partition {}: replay holds nothing, Kafka has {} to {}",
                part.partition,
                part.low,
                part.high - 1
            ));
        }
        return Ok(Differences::default());
    };
    let part = part.between(low, high);
    stored.retain(|stored| last(*stored) >= part.low);
    let names = names.clone();
    let comparing = move || {
        let mut source = Vec::new();
        partitions::read(&names.consumer()?, &names.topic, &[part], |_, record| {
            if let Ok(at) = Offset::from_kafka(record.offset()) {
                source.push(Source { at, payload: Sha256::of(record.payload().unwrap_or_default()) });
            }
        })?;
        anyhow::Ok(reconcile(&stored, &source))
    };
    tokio::task::spawn_blocking(comparing).await?
}

fn first(stored: Stored) -> i64 {
    match stored {
        Stored::Record { at, .. } | Stored::Gap { first: at, .. } => at.to_kafka(),
    }
}

fn last(stored: Stored) -> i64 {
    match stored {
        Stored::Record { at, .. } | Stored::Gap { last: at, .. } => at.to_kafka(),
    }
}

fn show(partition: Partition, differences: &Differences) {
    let Differences { same, told, only_stored, missing, different } = differences;
    say(format_args!(
        "{partition:>9}  {same:>12} {told:>8} {:>8} {:>8} {only_stored:>12}",
        missing.len(),
        different.len()
    ));
    for (what, offsets) in [("missing without a word", missing), ("other bytes", different)] {
        if offsets.is_empty() {
            continue;
        }
        let named: Vec<_> = offsets.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        let more = offsets.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        say(format_args!("           {what}: {}{more}", named.join(", ")));
    }
}

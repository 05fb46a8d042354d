//! `dashstream partitions`: stops a partition on purpose, and lets it go on.
use crate::{
    output::{plain, say},
    owners::{self, Operator, Owners},
};
use anyhow::bail;
use dashstream_core::position::Partition;
use dashstream_proto::ingest::v1::{CatchUpPhase, PartitionCatchUp};

/// What to do with a partition.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Stop reading a partition. Nothing is lost: its records wait in Kafka, as long as Kafka keeps them, and
    /// clients are served from what is stored. It stays so until `resume`.
    Pause(Verb),
    /// Let a paused partition go on where it was.
    Resume(Verb),
}

/// Which partition, and why.
#[derive(Clone, Debug, clap::Args)]
pub struct Verb {
    /// Number of the partition.
    #[arg(value_parser = partition)]
    pub partition: Partition,

    /// Why; it is shown by `dashstream status` and written into the log of ingest.
    #[arg(long)]
    pub reason: String,

    #[command(flatten)]
    pub operator: Operator,

    #[command(flatten)]
    pub ingest: owners::Config,
}

fn partition(text: &str) -> Result<Partition, String> {
    let number = text.parse().ok().and_then(|number| Partition::new(number).ok());
    number.ok_or_else(|| "expected the number of a partition, such as `3`".to_owned())
}

/// Does it, and says what came of it.
///
/// # Errors
/// When the owner can't be found, refuses, or the partition is not as it was asked to be.
pub async fn run(command: Command) -> anyhow::Result<()> {
    let (verb, pause) = match &command {
        Command::Pause(verb) => (verb, true),
        Command::Resume(verb) => (verb, false),
    };
    let owners = Owners::ask(&verb.ingest).await?;
    let (owner, _) = owners.of(verb.partition)?;
    let reason = verb.operator.says(&verb.reason);
    let after = if pause { owner.pause(reason).await? } else { owner.resume(reason).await? };
    say(format_args!("partition {} of {} is {}", verb.partition, owner.name, state(&after)));
    match (after.phase(), pause) {
        (CatchUpPhase::Paused, false) => bail!("it did not resume"),
        // It stands at a bad record, and stays there once that is decided.
        (CatchUpPhase::Paused | CatchUpPhase::Blocked, true) => Ok(()),
        (_, true) => bail!("it did not pause"),
        (_, false) => Ok(()),
    }
}

/// The phase, where it is, and the reason.
pub fn state(partition: &PartitionCatchUp) -> String {
    let next = partition.next_offset.map_or("unknown".into(), |next| next.to_string());
    let reason =
        if partition.reason.is_empty() { String::new() } else { format!(": {}", plain(&partition.reason)) };
    format!("{}, next {next}{reason}", owners::phase(partition))
}

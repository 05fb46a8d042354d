//! `dashstream dlq`: what became of records that do not decode, and what to do with them.
use crate::{
    output::{say, say_all, warn},
    owners::{self, Operator, Owner, Owners},
    partitions::state,
    source,
    topics::Names,
};
use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use dashstream_core::{
    dead_letter::{Coordinates, Sha256},
    position::{Offset, Partition},
};
use dashstream_kit::config::duration;
use dashstream_proto::ingest::v1::Resolution;
use std::{
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

pub mod letters;
pub mod text;

use letters::{Filter, Found};

/// What to do with dead letters.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Show the newest dead letters, newest first, or follow them as they come.
    ///
    /// A dead letter says which record was passed over, and why. The record itself stays in the topic that it came
    /// from, at the place in the column RECORD, until Kafka's retention takes it. Reading changes nothing: no
    /// group is joined and no offset committed.
    List(Box<List>),
    /// Show one dead letter: all that it says, and the beginning of the record's value.
    Show(Box<Show>),
    /// Give a record another chance.
    ///
    /// A record that blocks its partition now is judged again, where it is: it goes through if ingest has learned
    /// to read it. A record that became a dead letter is written to its topic again, as a new record of the same
    /// partition with the same key and headers, so it comes behind all that is there. With --payload its value is
    /// the file's; a record that blocks is then passed over, once the new one is in Kafka.
    ///
    /// The new record says what it is in its headers: `dashstream-retry-of`, where the first one lay, and
    /// `dashstream-retry-count`. If it does not decode either, its dead letter has them.
    Retry(Box<Retry>),
    /// Pass over the record that blocks its partition now, for good. A gap takes its place, and all clients are
    /// told.
    Skip(Box<Skip>),
}

/// The place of a record in the topic that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub partition: Partition,
    pub offset: Offset,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (partition, offset) = text.split_once(':')?;
            let partition = Partition::new(partition.parse().ok()?).ok()?;
            Some(Self { partition, offset: Offset::new(offset.parse().ok()?).ok()? })
        };
        read().ok_or_else(|| "expected PARTITION:OFFSET, such as `3:1234`".to_owned())
    }
}

/// How letters are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A line for each.
    Table,
    /// A JSON object for each: the letter as it is in Kafka, and where it lies there (`letter`).
    Json,
}

/// Settings of `dashstream dlq list`.
#[derive(Clone, Debug, clap::Args)]
pub struct List {
    /// Most letters to show.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,

    /// Only records of this partition.
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..))]
    pub partition: Option<i32>,

    /// Only records with this error, such as `protobuf` or `too_large`.
    #[arg(long)]
    pub class: Option<String>,

    /// Only records that were judged this long ago at most, such as `2h`.
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    pub since: Option<Duration>,

    /// Show the letters that come from now on, as they come, until Ctrl-C.
    #[arg(long, conflicts_with_all = ["since", "limit"])]
    pub follow: bool,

    /// How to print them.
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,

    #[command(flatten)]
    pub kafka: Names,
}

/// Settings of `dashstream dlq show`.
#[derive(Clone, Debug, clap::Args)]
pub struct Show {
    /// Where the record lies in the topic that is read: PARTITION:OFFSET, from the column RECORD of `list`.
    pub place: Place,

    /// Write the record's whole value into this file. It is fetched from the topic that the record came from, and
    /// proved to be the same by its SHA-256.
    #[arg(long, value_name = "FILE")]
    pub payload: Option<PathBuf>,

    #[command(flatten)]
    pub kafka: Names,
}

/// Settings of `dashstream dlq retry`.
#[derive(Clone, Debug, clap::Args)]
pub struct Retry {
    /// Where the record lies in the topic that is read: PARTITION:OFFSET.
    pub place: Place,

    /// Use the bytes of this file as the record's value.
    #[arg(long, value_name = "FILE")]
    pub payload: Option<PathBuf>,

    /// Why; written into the log of ingest where the record blocks its partition.
    #[arg(long, default_value = "dashstream dlq retry")]
    pub reason: String,

    #[command(flatten)]
    pub operator: Operator,

    #[command(flatten)]
    pub ingest: owners::Config,

    #[command(flatten)]
    pub kafka: Names,
}

/// Settings of `dashstream dlq skip`.
#[derive(Clone, Debug, clap::Args)]
pub struct Skip {
    /// The record that blocks: PARTITION:OFFSET, as `dashstream status` shows it. Refused when it is another.
    pub place: Place,

    /// Why; written into the log of ingest.
    #[arg(long)]
    pub reason: String,

    #[command(flatten)]
    pub operator: Operator,

    #[command(flatten)]
    pub ingest: owners::Config,
}

/// Does it, and says what came of it.
///
/// # Errors
/// When it could not be done.
pub async fn run(command: Command, stop: CancellationToken) -> anyhow::Result<()> {
    match command {
        Command::List(list) => self::list(*list, stop).await,
        Command::Show(show) => self::show(*show).await,
        Command::Retry(retry) => self::retry(*retry).await,
        Command::Skip(skip) => self::skip(*skip).await,
    }
}

async fn list(list: List, stop: CancellationToken) -> anyhow::Result<()> {
    let List { limit, partition, class, since, follow, format, kafka } = list;
    let filter = Filter { partition, class, since_ms: since.map(letters::ago_ms) };
    if follow {
        if format == Format::Table {
            say(format_args!("{}", text::HEAD));
        }
        let print = move |found: &Found| match format {
            Format::Table => say_all(&text::row(found)),
            Format::Json => say_all(&text::json(found)),
        };
        return letters::follow(&kafka, filter, stop, print).await;
    }
    let newest = letters::newest(&kafka, filter, limit as usize).await?;
    match format {
        Format::Table if newest.found.is_empty() => say(format_args!("no dead letters in {}", kafka.dlq())),
        Format::Table => say_all(&text::table(&newest.found)),
        Format::Json => say_all(&newest.found.iter().map(text::json).collect::<String>()),
    }
    if newest.foreign > 0 {
        tracing::warn!("{} records of {} are no dead letters of this version", newest.foreign, kafka.dlq());
    }
    Ok(())
}

/// The newest letter of a record.
async fn letter(kafka: &Names, place: Place) -> anyhow::Result<Found> {
    let at = kafka.coordinates(place);
    let found = letters::of(kafka, &at).await?;
    found.with_context(|| format!("there is no dead letter of {at} in {}", kafka.dlq()))
}

async fn show(show: Show) -> anyhow::Result<()> {
    let found = letter(&show.kafka, show.place).await?;
    say_all(&text::whole(&found));
    let Some(file) = &show.payload else { return Ok(()) };
    let value = original_value(&show.kafka, &found).await?;
    let value = value.context("the record has no value (a tombstone): there is nothing to write")?;
    std::fs::write(file, &value).with_context(|| format!("write {}", file.display()))?;
    say(format_args!("{} bytes with this SHA-256 are in {}", value.len(), file.display()));
    Ok(())
}

/// The value of the record that a letter is of: from its topic, or from the letter if that has all of it.
async fn original_value(kafka: &Names, found: &Found) -> anyhow::Result<Option<Vec<u8>>> {
    let letter = &found.letter;
    match source::fetch(kafka, &letter.at).await {
        Ok(record) => {
            proved(record.value.as_deref(), found)?;
            Ok(record.value)
        }
        Err(error) => match letter.value.as_ref().and_then(|value| value.whole.clone()) {
            Some(whole) => {
                warn(format_args!("{error:#}: the value is taken from the dead letter"));
                Ok(Some(whole))
            }
            None => Err(error),
        },
    }
}

/// The bytes are those that the letter is of.
fn proved(value: Option<&[u8]>, found: &Found) -> anyhow::Result<()> {
    let (expected, at) = (found.letter.value.as_ref().map(|value| value.sha256), &found.letter.at);
    let sha256 = value.map(Sha256::of);
    let said =
        |sha256: Option<Sha256>| sha256.map_or("no value".to_owned(), |sha256| format!("SHA-256 {sha256}"));
    ensure!(
        sha256 == expected,
        "another record is at {at} now: it has {}, the dead letter {}; the topic was made anew",
        said(sha256),
        said(expected)
    );
    Ok(())
}

async fn retry(retry: Retry) -> anyhow::Result<()> {
    let payload = retry.payload.as_deref().map(read).transpose()?;
    let Place { partition, offset } = retry.place;
    let owners = Owners::ask(&retry.ingest).await?;
    let (owner, now) = owners.of(partition)?;
    let blocks = now.blocked_offset == Some(offset.get());
    let reason = retry.operator.says(&retry.reason);
    match (blocks, payload) {
        (true, None) => {
            owner.resolve(offset, Resolution::Retry, reason).await?;
            decided(&owner, retry.place, "was judged again").await
        }
        (true, Some(payload)) => {
            let at = retry.kafka.coordinates(retry.place);
            let original = source::fetch(&retry.kafka, &at).await?;
            let new = source::produce_again(&retry.kafka, &at, original, Some(payload)).await?;
            say(format_args!("{at} with the new value is {new}"));
            owner.resolve(offset, Resolution::Skip, reason).await.with_context(|| {
                format!("{new} is written, but {at} still blocks: `dashstream dlq skip {partition}:{offset}`")
            })?;
            decided(&owner, retry.place, "was passed over").await
        }
        (false, payload) => again(&retry, payload).await,
    }
}

/// Writes a record that became a dead letter to its topic again.
async fn again(retry: &Retry, payload: Option<Vec<u8>>) -> anyhow::Result<()> {
    let Place { partition, offset } = retry.place;
    let found = letter(&retry.kafka, retry.place).await;
    let found = found.with_context(|| format!("{partition}:{offset} does not block its partition"))?;
    let at = &found.letter.at;
    let original = match source::fetch(&retry.kafka, at).await {
        Ok(record) => {
            proved(record.value.as_deref(), &found)?;
            record
        }
        Err(error) => source::Record::from_letter(&found.letter, payload.is_some()).context(error)?,
    };
    let changed = if payload.is_some() { "with the new value " } else { "" };
    let new = source::produce_again(&retry.kafka, at, original, payload).await?;
    say(format_args!("{at} {changed}is {new}"));
    Ok(())
}

async fn skip(skip: Skip) -> anyhow::Result<()> {
    let owners = Owners::ask(&skip.ingest).await?;
    let (owner, now) = owners.of(skip.place.partition)?;
    let Place { partition, offset } = skip.place;
    match now.blocked_offset {
        Some(blocked) if blocked == offset.get() => {}
        Some(blocked) => bail!("it is {partition}:{blocked} that blocks partition {partition}, not {offset}"),
        None => bail!("nothing blocks partition {partition}: it is {}", state(now)),
    }
    owner.resolve(offset, Resolution::Skip, skip.operator.says(&skip.reason)).await?;
    decided(&owner, skip.place, "was passed over").await
}

/// Says how the partition is after a decision.
async fn decided(owner: &Owner, place: Place, what: &str) -> anyhow::Result<()> {
    let Place { partition, offset } = place;
    let after = owner.settled(offset).await?;
    let whose = format!("partition {partition} of {}", owner.name);
    ensure!(
        after.blocked_offset != Some(offset.get()),
        "{partition}:{offset} still blocks {whose}: {}",
        after.reason
    );
    ensure!(
        owners::is_past(&after, offset),
        "{partition}:{offset} does not block any more, but is not passed yet: {whose} is {}",
        state(&after)
    );
    say(format_args!("{partition}:{offset} {what}; {whose} is {}", state(&after)));
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("read {}", file.display()))
}

impl Names {
    /// Where a record of the topic that is read lies.
    fn coordinates(&self, place: Place) -> Coordinates {
        let Place { partition, offset } = place;
        Coordinates { topic: self.topic.clone(), partition, offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_partition_and_an_offset() {
        let place = Place { partition: Partition::new(3).unwrap(), offset: Offset::new(1234).unwrap() };
        assert_eq!("3:1234".parse(), Ok(place));
        for wrong in ["", "3", "3:", "-1:5", "3:-5", "3:9223372036854775808", "a:b", "3:4:5"] {
            assert!(wrong.parse::<Place>().unwrap_err().contains("PARTITION:OFFSET"), "{wrong}");
        }
    }
}

//! `dashstream topics`: makes Kafka's topics as DashStream needs them, and looks whether they are.
use crate::output::{say, say_all};
use anyhow::Context;
use clap::builder::NonEmptyStringValueParser;
use dashstream_ingest::topic::kept_by_replay;
use dashstream_kafka::{Admin, Connection, Topic, admin};
use dashstream_kit::auth::{self, Trust};
use dashstream_kit::config::{Targets, duration};
use dashstream_proto::replay::v1::replay_service_client::ReplayServiceClient;
use plan::{Asked, Defaults, Outcome, Plan, Step};
use std::time::Duration;

pub mod plan;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What records of runs are kept in.
const RECORDS: Defaults = Defaults {
    partitions: 10,
    replication: 3,
    min_insync: 2,
    retention: DAY.saturating_mul(7),
    settings: &[
        ("cleanup.policy", "delete"),
        ("compression.type", "zstd"),
        ("segment.bytes", "1073741824"),
        ("unclean.leader.election.enable", "false"),
    ],
};

/// What dead letters are kept in. One that is written twice has the same key, and is compacted.
const DEAD_LETTERS: Defaults = Defaults {
    partitions: 3,
    replication: 3,
    min_insync: 2,
    retention: DAY.saturating_mul(30),
    settings: &[
        ("cleanup.policy", "compact,delete"),
        ("compression.type", "zstd"),
        ("segment.bytes", "268435456"),
        ("unclean.leader.election.enable", "false"),
    ],
};

/// What to do with topics.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Make the topic of records and that of its dead letters. Of one that exists only what is asked for is changed;
    /// where something can't be, nothing is.
    Ensure(Box<Ensure>),
    /// Show both topics, and what of them endangers records.
    Describe(Box<Describe>),
}

/// Which topics.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "topics")]
pub struct Names {
    #[command(flatten)]
    pub kafka: Connection,

    /// Topic of records.
    #[arg(long = "kafka-topic", env = "KAFKA_TOPIC", default_value = "dashstream-events",
          value_parser = NonEmptyStringValueParser::new())]
    pub topic: String,

    /// Topic of dead letters. The topic's name with `-dlq` unless given.
    #[arg(long = "dlq-topic", env = "KAFKA_DLQ_TOPIC")]
    pub dlq_topic: Option<String>,
}

/// Settings of `dashstream topics ensure`.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "topics-ensure")]
pub struct Ensure {
    #[command(flatten)]
    pub names: Names,

    /// Partitions of the topic of records. A new one has 10 unless given. Adding some to one that is in use tears runs
    /// that go on apart.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub partitions: Option<u16>,

    /// Partitions of the topic of dead letters. A new one has 3 unless given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub dlq_partitions: Option<u16>,

    /// Copies of each partition. New topics have 3 unless given; those of others are never changed.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub replication: Option<u16>,

    /// Copies that must have a record before it is acknowledged. New topics ask for 2 unless given.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub min_insync: Option<u16>,

    /// How long records are kept. A new topic keeps them for 7 days unless given.
    #[arg(long, value_parser = duration)]
    pub retention: Option<Duration>,

    /// How long dead letters are kept. A new topic keeps them for 30 days unless given.
    #[arg(long, value_parser = duration)]
    pub dlq_retention: Option<Duration>,

    /// Change nothing; say what would be.
    #[arg(long)]
    pub dry_run: bool,
}

/// Settings of `dashstream topics describe`.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "topics-describe")]
pub struct Describe {
    #[command(flatten)]
    pub names: Names,

    /// A replica of replay, whose retention the topic's is compared with: `host:port`.
    #[arg(long, env = "REPLAY_TARGETS")]
    pub replay_targets: Option<Targets>,

    /// Name of the stream at replay. The topic's name unless given.
    #[arg(long, env = "DASHSTREAM_STREAM")]
    pub stream: Option<String>,

    #[command(flatten)]
    pub trust: auth::Config,
}

impl Names {
    /// The topic of dead letters.
    pub fn dlq(&self) -> String {
        let given = self.dlq_topic.clone().filter(|name| !name.is_empty());
        given.unwrap_or_else(|| format!("{}-dlq", self.topic))
    }

    fn admin(&self) -> anyhow::Result<Admin> {
        Ok(Admin::new(&self.kafka, "dashstream-topics")?)
    }
}

impl Ensure {
    fn asked(&self) -> [(Asked, &'static Defaults); 2] {
        let records = Asked {
            name: self.names.topic.clone(),
            partitions: self.partitions.map(usize::from),
            replication: self.replication.map(usize::from),
            min_insync: self.min_insync.map(usize::from),
            retention: self.retention,
        };
        let dead_letters = Asked {
            name: self.names.dlq(),
            partitions: self.dlq_partitions.map(usize::from),
            retention: self.dlq_retention,
            ..records.clone()
        };
        [(records, &RECORDS), (dead_letters, &DEAD_LETTERS)]
    }
}

/// Runs a command to its end.
///
/// # Errors
/// When Kafka does not answer or refuses, or a topic is not what it should be.
pub async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Ensure(config) => ensure(&config).await,
        Command::Describe(config) => describe(&config).await,
    }
}

/// Makes the topics and shows what was done.
///
/// # Errors
/// When Kafka does not answer or refuses, or something that was asked for can't be changed: then nothing was.
pub async fn ensure(config: &Ensure) -> anyhow::Result<()> {
    let admin = config.names.admin()?;
    let mut plans = Vec::new();
    for (asked, defaults) in config.asked() {
        let is = admin.topic(&asked.name).await?;
        plans.push(Plan::new(is.as_ref(), &asked, defaults));
    }
    let outcome = if plans.iter().any(Plan::is_refused) {
        Outcome::Refused
    } else if config.dry_run {
        Outcome::Would
    } else {
        Outcome::Done
    };
    for plan in &plans {
        if outcome != Outcome::Refused {
            take(&admin, plan, outcome).await?;
        }
        say_all(&plan.table(outcome));
    }
    anyhow::ensure!(
        outcome != Outcome::Refused,
        "what is marked as refused differs and is not changed here; nothing was changed"
    );
    if plans.iter().all(|plan| plan.step == Step::Nothing) {
        say(format_args!("nothing to do"));
    }
    Ok(())
}

async fn take(admin: &Admin, plan: &Plan, outcome: Outcome) -> Result<(), admin::Error> {
    let only_check = outcome != Outcome::Done;
    match &plan.step {
        Step::Create { partitions, replication, settings } => {
            let (name, partitions, replication) = (plan.name.as_str(), *partitions, *replication);
            admin.create(&admin::New { name, partitions, replication, settings }, only_check).await
        }
        Step::Change { grow_to, own } if !only_check => {
            if let Some(own) = own {
                admin.set_own(&plan.name, own).await?;
            }
            match grow_to {
                Some(count) => admin.grow(&plan.name, *count).await,
                None => Ok(()),
            }
        }
        Step::Change { .. } | Step::Nothing => Ok(()),
    }
}

/// Shows both topics.
///
/// # Errors
/// When Kafka does not answer, or there is no topic of records.
pub async fn describe(config: &Describe) -> anyhow::Result<()> {
    let admin = config.names.admin()?;
    let (name, dlq) = (&config.names.topic, config.names.dlq());
    let topic = admin.topic(name).await?.with_context(|| format!("there is no topic {name}"))?;
    let kept = match &config.replay_targets {
        Some(replay) => {
            let trust = Trust::new(&config.trust)?;
            Some(retention_of(&trust, replay, config.stream.as_deref().unwrap_or(name)).await?)
        }
        None => None,
    };
    let short = kept.and_then(|kept| topic.falls_short_of(kept));
    show(&topic, topic.concerns().into_iter().chain(short));
    match admin.topic(&dlq).await? {
        // Compaction is what dead letters are for.
        Some(letters) => {
            let concerns = letters.concerns();
            show(
                &letters,
                concerns.into_iter().filter(|it| *it != dashstream_kafka::topic::Concern::Compaction),
            );
        }
        None => say(format_args!("{dlq}\n  there is no such topic")),
    }
    Ok(())
}

fn show(topic: &Topic, concerns: impl IntoIterator<Item = impl std::fmt::Display>) {
    say(format_args!("{}\n  {topic}", topic.name));
    for concern in concerns {
        say(format_args!("  danger: {concern}"));
    }
}

async fn retention_of(trust: &Trust, replay: &Targets, stream: &str) -> anyhow::Result<Duration> {
    let address = replay.addresses().first().context("no replay")?;
    let client = ReplayServiceClient::new(trust.channel_to(address)?);
    kept_by_replay(client, stream).await.with_context(|| format!("ask replay at {address}"))
}

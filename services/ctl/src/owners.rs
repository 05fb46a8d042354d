//! The replicas of ingest: which one owns a partition, and what an operator may tell it.
use anyhow::{Context, bail};
use dashstream_core::position::{Offset, Partition};
use dashstream_kit::{
    auth::{self, Trust},
    config::Targets,
    grpc as kit_grpc,
};
use dashstream_proto::ingest::v1::{
    CatchUpPhase, GetCatchUpRequest, GetCatchUpResponse, PartitionCatchUp, PausePartitionRequest, Resolution,
    ResolveBlockedRequest, ResumePartitionRequest, ingest_service_client::IngestServiceClient,
};
use futures_util::future::join_all;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use tonic::Status;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a decision may take to show.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
const SETTLE_LOOK: Duration = Duration::from_millis(50);

/// Where ingest is.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "owners")]
pub struct Config {
    /// Replicas of ingest, gRPC: `host:port`, comma-separated. A name with several addresses stands for all of
    /// them. The one that owns the partition is found by asking all.
    #[arg(long = "ingest", env = "INGEST_TARGETS", default_value = "127.0.0.1:7101", value_name = "TARGETS")]
    pub targets: Targets,

    #[command(flatten)]
    pub auth: auth::Config,
}

/// Who decides, for the log of the replica.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "operators")]
pub struct Operator {
    /// Who you are; written into the log of ingest beside the reason.
    #[arg(long, env = "USER", default_value = "unknown", value_name = "NAME")]
    pub operator: String,
}

impl Operator {
    /// The line for the log.
    pub fn says(&self, reason: &str) -> String {
        format!("{}: {reason}", self.operator)
    }
}

/// What all replicas answered.
#[derive(Clone, Debug)]
pub struct Owners {
    trust: Trust,
    answers: Vec<(SocketAddr, GetCatchUpResponse)>,
    unreachable: Vec<String>,
}

impl Owners {
    /// Asks all replicas.
    ///
    /// # Errors
    /// When none answers.
    pub async fn ask(config: &Config) -> anyhow::Result<Self> {
        let trust = Trust::new(&config.auth)?;
        let addresses = kit_grpc::resolve(&config.targets).await;
        let (mut answers, mut unreachable) = (Vec::new(), Vec::new());
        for (address, answer) in join_all(addresses.into_iter().map(|address| ask(&trust, address))).await {
            match answer {
                Ok(answer) => answers.push((address, answer)),
                Err(error) => unreachable.push(format!("{address}: {error:#}")),
            }
        }
        if answers.is_empty() {
            bail!(
                "no replica of ingest answers at {} (--ingest): {}",
                config.targets,
                unreachable.join(", ")
            );
        }
        Ok(Self { trust, answers, unreachable })
    }

    /// Who owns the partition, and how far it is.
    ///
    /// # Errors
    /// When nobody does, or two say that they do.
    pub fn of(&self, partition: Partition) -> anyhow::Result<(Owner, &PartitionCatchUp)> {
        let owned = |answer: &'_ (SocketAddr, GetCatchUpResponse)| {
            answer.1.partitions.iter().position(|owned| owned.partition == partition.get())
        };
        let mut owners = self.answers.iter().filter_map(|answer| Some((answer, owned(answer)?)));
        match (owners.next(), owners.next()) {
            (Some(((address, answer), at)), None) => {
                let owner = Owner {
                    address: *address,
                    name: answer.owner.clone(),
                    partition,
                    trust: self.trust.clone(),
                };
                Ok((owner, &answer.partitions[at]))
            }
            (Some(((one, _), _)), Some(((other, _), _))) => {
                bail!("both {one} and {other} say that they own partition {partition}: try again")
            }
            (None, _) => self.nobody(partition),
        }
    }

    fn nobody<T>(&self, partition: Partition) -> anyhow::Result<T> {
        let count = self.answers.iter().map(|(_, answer)| answer.partition_count).max().unwrap_or(0);
        if count > 0 && partition.get() >= count {
            bail!("there is no partition {partition}: the topic has {count}, from 0 on");
        }
        if self.unreachable.is_empty() {
            bail!("no replica owns partition {partition} now: a rebalance may be under way");
        }
        bail!(
            "no replica that answers owns partition {partition}; no answer from {}",
            self.unreachable.join(", ")
        )
    }
}

async fn ask(trust: &Trust, address: SocketAddr) -> (SocketAddr, anyhow::Result<GetCatchUpResponse>) {
    let asked = async {
        let mut client = client(trust, address)?;
        answered(client.get_catch_up(GetCatchUpRequest {})).await
    };
    (address, asked.await)
}

fn client(trust: &Trust, address: SocketAddr) -> anyhow::Result<IngestServiceClient<kit_grpc::Channel>> {
    Ok(IngestServiceClient::new(trust.channel_to(&address.to_string())?))
}

async fn answered<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> anyhow::Result<T> {
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, call).await.context("no answer in 10 s")?;
    let answer = answer.map_err(|status| anyhow::anyhow!("{}: {}", status.code(), status.message()))?;
    Ok(answer.into_inner())
}

/// The replica that owns a partition.
#[derive(Clone, Debug)]
pub struct Owner {
    pub address: SocketAddr,
    pub name: String,
    partition: Partition,
    trust: Trust,
}

impl Owner {
    /// Decides on the record that blocks the partition. Returns the partition after it; so do all below.
    ///
    /// # Errors
    /// When the owner does not answer or refuses.
    pub async fn resolve(
        &self,
        offset: Offset,
        resolution: Resolution,
        reason: String,
    ) -> anyhow::Result<PartitionCatchUp> {
        let request = ResolveBlockedRequest {
            partition: self.partition.get(),
            offset: offset.get(),
            resolution: resolution.into(),
            reason,
        };
        let answer = answered(client(&self.trust, self.address)?.resolve_blocked(request)).await;
        self.after(answer.map(|answer| answer.partition))
    }

    /// The partition once its pipeline is past `offset`, or stands at it again: a record that is judged again does not
    /// block meanwhile. When that takes long, the partition as it is then.
    ///
    /// # Errors
    /// When the owner does not answer, or owns the partition no more.
    pub async fn settled(&self, offset: Offset) -> anyhow::Result<PartitionCatchUp> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            let answer = ask(&self.trust, self.address).await.1?;
            let mut partitions = answer.partitions.into_iter();
            let partition = partitions
                .find(|owned| owned.partition == self.partition.get())
                .with_context(|| format!("{} owns partition {} no more", self.address, self.partition))?;
            let stands = partition.blocked_offset == Some(offset.get());
            if stands || is_past(&partition, offset) || Instant::now() >= deadline {
                return Ok(partition);
            }
            tokio::time::sleep(SETTLE_LOOK).await;
        }
    }

    /// Stops the partition.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub async fn pause(&self, reason: String) -> anyhow::Result<PartitionCatchUp> {
        let request = PausePartitionRequest { partition: self.partition.get(), reason };
        let answer = answered(client(&self.trust, self.address)?.pause_partition(request)).await;
        self.after(answer.map(|answer| answer.partition))
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub async fn resume(&self, reason: String) -> anyhow::Result<PartitionCatchUp> {
        let request = ResumePartitionRequest { partition: self.partition.get(), reason };
        let answer = answered(client(&self.trust, self.address)?.resume_partition(request)).await;
        self.after(answer.map(|answer| answer.partition))
    }

    fn after(&self, answer: anyhow::Result<Option<PartitionCatchUp>>) -> anyhow::Result<PartitionCatchUp> {
        let answer = answer
            .with_context(|| format!("ask {}, which owns partition {}", self.address, self.partition))?;
        answer.with_context(|| format!("{} does not say how far the partition is", self.address))
    }
}

/// What was decided on the record at `offset` is durable.
pub fn is_past(partition: &PartitionCatchUp, offset: Offset) -> bool {
    partition.next_offset.is_some_and(|next| next > offset.get())
}

/// The phase in a word or two.
pub fn phase(partition: &PartitionCatchUp) -> String {
    named(partition.phase())
}

fn named(phase: CatchUpPhase) -> String {
    phase.as_str_name().trim_start_matches("CATCH_UP_PHASE_").to_lowercase().replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(port: u16, partitions: &[i32]) -> (SocketAddr, GetCatchUpResponse) {
        let partitions = partitions
            .iter()
            .map(|partition| PartitionCatchUp { partition: *partition, ..Default::default() });
        let answer = GetCatchUpResponse {
            owner: format!("ingest-{port}"),
            partition_count: 4,
            partitions: partitions.collect(),
            ..Default::default()
        };
        (SocketAddr::from(([127, 0, 0, 1], port)), answer)
    }

    #[test]
    fn the_owner_is_found_or_it_is_said_why_not() {
        let owners = |unreachable: &[&str]| Owners {
            trust: Trust::default(),
            answers: vec![answer(1, &[0, 1]), answer(2, &[1, 2])],
            unreachable: unreachable.iter().map(|address| (*address).to_owned()).collect(),
        };
        let of = |partition, unreachable: &[&str]| {
            let owners = owners(unreachable);
            let of = owners.of(Partition::new(partition).unwrap());
            of.map(|(owner, found)| (owner.name, found.partition)).map_err(|error| error.to_string())
        };
        assert_eq!(of(2, &[]), Ok(("ingest-2".to_owned(), 2)));
        for (why, partition, unreachable, expected) in [
            ("two owners", 1, [].as_slice(), "both 127.0.0.1:1 and 127.0.0.1:2"),
            ("no owner", 3, &[], "no replica owns partition 3"),
            ("perhaps one that is silent", 3, &["127.0.0.1:3"], "no answer from 127.0.0.1:3"),
            ("beyond the topic", 4, &[], "the topic has 4"),
        ] {
            let error = of(partition, unreachable).unwrap_err();
            assert!(error.contains(expected), "{why}: {error}");
        }
    }
}

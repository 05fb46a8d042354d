//! `dashstream status`: how far every partition is, as the gateway's query service tells it.
use crate::{
    client::bearer,
    output::{plain, say_all},
    owners::phase,
};
use anyhow::Context;
use dashstream_kit::config::{Secret, Targets};
use dashstream_proto::{
    gateway::v1::{GetCatchUpRequest, GetCatchUpResponse, query_service_client::QueryServiceClient},
    ingest::v1::{CatchUpPhase, PartitionCatchUp},
};
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;
use tonic::Request;

const WATCH_INTERVAL: Duration = Duration::from_secs(1);
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of `dashstream status`.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "status")]
pub struct Config {
    /// A gateway's gRPC address: `host:port`.
    #[arg(long, env = "DASHSTREAM_GATEWAY", default_value = "127.0.0.1:7301")]
    pub gateway: Targets,

    /// Bearer token, for a gateway that asks for one.
    #[arg(long, env = "DASHSTREAM_TOKEN", hide_env_values = true)]
    pub token: Option<Secret>,

    /// Show it again every second.
    #[arg(long)]
    pub watch: bool,
}

/// Prints the table, once or until `stop`.
///
/// # Errors
/// When no gateway answers; while it is shown again and again, that is said in its place.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    loop {
        let answer = ask(&config).await;
        if !config.watch {
            say_all(&table(&answer?, now_ms()));
            return Ok(());
        }
        let text = answer.map_or_else(|error| format!("{error:#}\n"), |answer| table(&answer, now_ms()));
        say_all(&format!("\x1b[2J\x1b[H{text}"));
        if stop.run_until_cancelled(tokio::time::sleep(WATCH_INTERVAL)).await.is_none() {
            return Ok(());
        }
    }
}

async fn ask(config: &Config) -> anyhow::Result<GetCatchUpResponse> {
    let address = config.gateway.addresses().first().context("no gateway")?.clone();
    let channel = dashstream_kit::grpc::channel_to(&address)?;
    let mut client = QueryServiceClient::new(channel);
    let mut request = Request::new(GetCatchUpRequest {});
    if let Some(token) = &config.token {
        request.metadata_mut().as_mut().insert("authorization", bearer(token)?);
    }
    let answer = tokio::time::timeout(ASK_TIMEOUT, client.get_catch_up(request)).await;
    let answer = answer.with_context(|| format!("the gateway {address} does not answer"))?;
    Ok(answer.with_context(|| format!("ask the gateway {address}"))?.into_inner())
}

fn unknown<T: ToString>(value: Option<T>) -> String {
    value.map_or("unknown".into(), |value| value.to_string())
}

/// The table, with what is wrong below it and what to do about it.
pub fn table(answer: &GetCatchUpResponse, now_ms: i64) -> String {
    let mut rows: Vec<_> = answer
        .owners
        .iter()
        .flat_map(|owner| owner.partitions.iter().map(move |partition| (owner.owner.as_str(), partition)))
        .collect();
    rows.sort_by_key(|(_, partition)| partition.partition);
    let mut text = format!(
        "{:>9}  {:<21} {:<12} {:>10} {:>12} {:>12} {:>10} {:>10} {:>10}  {}\n",
        "PARTITION", "OWNER", "PHASE", "SINCE", "NEXT", "END", "LAG", "RECORDS/S", "LIVE IN", "BAD OLD/NEW/?"
    );
    for (owner, partition) in &rows {
        text.push_str(&row(owner, partition, now_ms));
    }
    for (_, partition) in &rows {
        text.push_str(&trouble(partition));
    }
    for owner in answer.owners.iter().filter(|owner| !owner.halted.is_empty()) {
        text.push_str(&format!("{} is halted and reads nothing: {}\n", owner.owner, plain(&owner.halted)));
    }
    if !answer.unowned_partitions.is_empty() {
        text.push_str(&format!("no owner: {:?}\n", answer.unowned_partitions));
    }
    if !answer.unreachable.is_empty() {
        text.push_str(&format!("no answer from: {}\n", answer.unreachable.join(", ")));
    }
    text
}

fn row(owner: &str, partition: &PartitionCatchUp, now_ms: i64) -> String {
    let live_in = match (partition.phase(), partition.seconds_to_live) {
        (CatchUpPhase::Live, _) => "live".to_owned(),
        (_, Some(seconds)) => format!("{seconds:.0} s"),
        (_, None) if partition.never_live => "never".to_owned(),
        (_, None) => "unknown".to_owned(),
    };
    format!(
        "{:>9}  {owner:<21} {:<12} {:>10} {:>12} {:>12} {:>10} {:>10.0} {live_in:>10}  {}/{}/{}\n",
        partition.partition,
        phase(partition),
        since(partition.phase_since_ms, now_ms),
        unknown(partition.next_offset),
        unknown(partition.high_watermark),
        unknown(partition.lag),
        partition.records_per_second,
        partition.decode_errors_old,
        partition.decode_errors_new,
        partition.decode_errors_unclassified,
    )
}

/// Why a partition does not go on, and what an operator can do.
fn trouble(partition: &PartitionCatchUp) -> String {
    let (number, reason) = (partition.partition, plain(&partition.reason));
    let mut text = String::new();
    if let Some(offset) = partition.blocked_offset {
        text.push_str(&format!(
            "partition {number} is blocked at {offset}: {reason}\n\
             \x20 try it again   dashstream dlq retry {number}:{offset}\n\
             \x20 give it up     dashstream dlq skip {number}:{offset} --reason WHY\n"
        ));
    } else if !reason.is_empty() {
        let from = partition.healing_from.map_or(String::new(), |from| format!(" from {from} on"));
        text.push_str(&format!("partition {number} is {}{from}: {reason}\n", phase(partition)));
    }
    if partition.phase() == CatchUpPhase::Paused {
        text.push_str(&format!("  let it go on   dashstream partitions resume {number} --reason WHY\n"));
    }
    text
}

/// How long ago that was, in its two greatest units.
fn since(ms: i64, now_ms: i64) -> String {
    let Ok(ms) = u64::try_from(now_ms.saturating_sub(ms)) else { return "0s".to_owned() };
    let text = humantime::format_duration(Duration::from_secs(ms / 1_000)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dashstream_proto::ingest::v1::GetCatchUpResponse as Owner;

    fn shown(partition: PartitionCatchUp) -> String {
        let owner = Owner {
            owner: "10.0.0.1:7101".into(),
            halted: "told to".into(),
            partitions: vec![partition],
            ..Default::default()
        };
        let answer = GetCatchUpResponse {
            owners: vec![owner],
            unowned_partitions: vec![0, 1],
            unreachable: vec!["10.0.0.2:7101".into()],
        };
        table(&answer, 200_000)
    }

    #[test]
    fn what_is_unknown_is_said_to_be_and_what_is_wrong_is_below() {
        let table = shown(PartitionCatchUp {
            partition: 3,
            phase: CatchUpPhase::Stalled.into(),
            phase_since_ms: 10_000,
            reason: "replay does not answer".into(),
            decode_errors_old: 5,
            decode_errors_unclassified: 7,
            ..Default::default()
        });
        for expected in [
            "unknown",
            "3m 10s",
            "5/0/7",
            "partition 3 is stalled: replay does not answer",
            "10.0.0.1:7101 is halted and reads nothing: told to",
            "no owner: [0, 1]",
            "no answer from: 10.0.0.2:7101",
        ] {
            assert!(table.contains(expected), "{expected} in\n{table}");
        }
        assert!(!table.contains(" 0 s"), "{table}");
    }

    #[test]
    fn what_only_a_person_can_end_comes_with_the_commands() {
        let base = PartitionCatchUp { partition: 3, reason: "bad \x1b[2J".into(), ..Default::default() };
        let blocked = PartitionCatchUp {
            phase: CatchUpPhase::Blocked.into(),
            blocked_offset: Some(17),
            ..base.clone()
        };
        let paused = PartitionCatchUp { phase: CatchUpPhase::Paused.into(), never_live: true, ..base };
        for (partition, expected) in [
            (&blocked, "partition 3 is blocked at 17: bad"),
            (&blocked, "dashstream dlq retry 3:17\n"),
            (&blocked, "dashstream dlq skip 3:17 --reason WHY"),
            (&paused, "dashstream partitions resume 3 --reason WHY"),
            (&paused, " never "),
        ] {
            let table = shown(partition.clone());
            assert!(table.contains(expected) && !table.contains('\x1b'), "{expected} in\n{table}");
        }
    }
}

//! `dashstream status`: how far every partition is, as the gateway's query service tells it.
use crate::{client::bearer, output::say_all};
use anyhow::Context;
use dashstream_kit::config::{Secret, Targets};
use dashstream_proto::{
    gateway::v1::{GetCatchUpRequest, GetCatchUpResponse, query_service_client::QueryServiceClient},
    ingest::v1::{CatchUpPhase, PartitionCatchUp},
};
use std::time::Duration;
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
/// When no gateway answers.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    loop {
        let answer = ask(&config).await?;
        let clear = if config.watch { "\x1b[2J\x1b[H" } else { "" };
        say_all(&format!("{clear}{}", table(&answer)));
        if !config.watch || stop.run_until_cancelled(tokio::time::sleep(WATCH_INTERVAL)).await.is_none() {
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

/// The table, with what is wrong below it.
pub fn table(answer: &GetCatchUpResponse) -> String {
    let mut rows: Vec<_> = answer
        .owners
        .iter()
        .flat_map(|owner| owner.partitions.iter().map(move |partition| (owner.owner.as_str(), partition)))
        .collect();
    rows.sort_by_key(|(_, partition)| partition.partition);
    let mut text = format!(
        "{:>9}  {:<21} {:<12} {:>12} {:>12} {:>10} {:>10} {:>10}\n",
        "PARTITION", "OWNER", "PHASE", "NEXT", "END", "LAG", "RECORDS/S", "LIVE IN"
    );
    for (owner, partition) in rows {
        text.push_str(&row(owner, partition));
    }
    if !answer.unowned_partitions.is_empty() {
        text.push_str(&format!("no owner: {:?}\n", answer.unowned_partitions));
    }
    if !answer.unreachable.is_empty() {
        text.push_str(&format!("no answer from: {}\n", answer.unreachable.join(", ")));
    }
    text
}

fn row(owner: &str, partition: &PartitionCatchUp) -> String {
    let phase = partition.phase();
    let name = phase.as_str_name().trim_start_matches("CATCH_UP_PHASE_").to_lowercase().replace('_', " ");
    let live_in = match (phase, partition.seconds_to_live) {
        (CatchUpPhase::Live, _) => "live".to_owned(),
        (_, Some(seconds)) => format!("{seconds:.0} s"),
        (_, None) => "unknown".to_owned(),
    };
    let reason = if partition.reason.is_empty() { String::new() } else { format!("  {}", partition.reason) };
    format!(
        "{:>9}  {owner:<21} {name:<12} {:>12} {:>12} {:>10} {:>10.0} {live_in:>10}{reason}\n",
        partition.partition,
        unknown(partition.next_offset),
        unknown(partition.high_watermark),
        unknown(partition.lag),
        partition.records_per_second,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use dashstream_proto::ingest::v1::GetCatchUpResponse as Owner;

    #[test]
    fn what_is_unknown_is_said_to_be() {
        let partition = PartitionCatchUp {
            partition: 3,
            phase: CatchUpPhase::Stalled.into(),
            reason: "replay does not answer".into(),
            ..Default::default()
        };
        let owner =
            Owner { owner: "10.0.0.1:7101".into(), partitions: vec![partition], ..Default::default() };
        let table = table(&GetCatchUpResponse {
            owners: vec![owner],
            unowned_partitions: vec![0, 1],
            unreachable: vec!["10.0.0.2:7101".into()],
        });
        for expected in [
            "stalled",
            "unknown",
            "replay does not answer",
            "no owner: [0, 1]",
            "no answer from: 10.0.0.2:7101",
        ] {
            assert!(table.contains(expected), "{expected} in\n{table}");
        }
        assert!(!table.contains(" 0 s"), "{table}");
    }
}

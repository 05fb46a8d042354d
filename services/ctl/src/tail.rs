//! `dashstream tail`: follows the stream, proves that nothing is missing, and resumes after a cut.
use crate::{
    client::{Ask, Client, Event},
    output::{say, say_all},
};
use anyhow::bail;
use clap::ValueEnum;
use dashstream_core::{backoff::Backoff, chain::Chain};
use dashstream_kit::config::Secret;
use dashstream_proto::{
    log::v1::{GapReason, Record, RecordKind},
    session::v1::{Filter, Limits, StartPolicy},
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

const BACKOFF: Backoff = Backoff { base: Duration::from_millis(200), cap: Duration::from_secs(5) };
const SUMMARY_INTERVAL: Duration = Duration::from_secs(2);

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Start {
    /// The oldest record kept.
    Earliest,
    /// Only what comes now.
    Latest,
    /// Each running thread from its newest whole state, then everything.
    Active,
}

/// What to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A line for each record.
    Lines,
    /// A JSON object for each record; 64-bit numbers are decimal strings.
    Json,
    /// Only counts, every two seconds.
    Counts,
}

/// Settings of `dashstream tail`.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "tail")]
pub struct Config {
    /// Gateways, comma-separated: after a cut the next one is tried.
    #[arg(long, env = "DASHSTREAM_URL", value_delimiter = ',', default_value = "ws://127.0.0.1:8080/ws")]
    pub url: Vec<String>,

    /// Bearer token, for a gateway that asks for one.
    #[arg(long, env = "DASHSTREAM_TOKEN", hide_env_values = true)]
    pub token: Option<Secret>,

    /// Where to begin.
    #[arg(long, value_enum, default_value = "latest")]
    pub from: Start,

    /// Only records of these tenants, comma-separated.
    #[arg(long, value_delimiter = ',')]
    pub tenant: Vec<String>,

    /// Only records that concern these threads, comma-separated.
    #[arg(long, value_delimiter = ',')]
    pub thread: Vec<String>,

    /// Only threads of these graphs, comma-separated.
    #[arg(long, value_delimiter = ',')]
    pub graph: Vec<String>,

    /// What to print.
    #[arg(long, value_enum, default_value = "lines")]
    pub format: Format,

    /// Stop after so many records; 0 for never.
    #[arg(long, default_value_t = 0)]
    pub count: u64,

    /// Stop when every partition has been delivered up to its end.
    #[arg(long)]
    pub until_caught_up: bool,
}

impl Config {
    /// `None` when everything is wanted.
    fn filter(&self) -> Option<Filter> {
        let filter = Filter {
            tenant_ids: self.tenant.clone(),
            thread_ids: self.thread.clone(),
            graph_names: self.graph.clone(),
            ..Filter::default()
        };
        Some(filter).filter(|filter| *filter != Filter::default())
    }
}

/// What came so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub records: u64,
    pub bytes: u64,
    pub gaps: u64,
    pub stale: u64,
    pub withheld: u64,
    pub sessions: u64,
}

#[derive(Debug)]
struct Tail {
    config: Config,
    totals: Totals,
    attempts: usize,
    begun: Instant,
    first_record: Option<Instant>,
    said: (Instant, u64),
    partitions: BTreeSet<i32>,
    caught_up: BTreeSet<i32>,
}

/// Follows until done or `stop`.
///
/// # Errors
/// When a frame breaks the chain, which no reconnect can mend, or the gateway refuses.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<Totals> {
    let now = Instant::now();
    let mut tail = Tail {
        config,
        totals: Totals::default(),
        attempts: 0,
        begun: now,
        first_record: None,
        said: (now, 0),
        partitions: BTreeSet::new(),
        caught_up: BTreeSet::new(),
    };
    let mut chain = Chain::default();
    let mut attempt = 0;
    while !stop.is_cancelled() {
        let before = tail.totals.records;
        let url = tail.config.url[tail.attempts % tail.config.url.len()].clone();
        match stop.run_until_cancelled(tail.session(&url, &mut chain)).await {
            None | Some(Ok(true)) => break,
            Some(Ok(false)) => tracing::info!(url, "the session ended; resuming"),
            Some(Err(error)) if error.is::<dashstream_core::chain::Broken>() => return Err(error),
            Some(Err(error)) => tracing::warn!(url, error = format!("{error:#}"), "resuming"),
        }
        attempt = if tail.totals.records > before { 0 } else { attempt + 1 };
        stop.run_until_cancelled(tokio::time::sleep(BACKOFF.delay(attempt, rand::random()))).await;
    }
    tail.summary();
    Ok(tail.totals)
}

impl Tail {
    /// One session. True when there is nothing more to do.
    async fn session(&mut self, url: &str, chain: &mut Chain) -> anyhow::Result<bool> {
        self.attempts += 1;
        let mut client =
            Client::connect_with(url, chain.clone(), Limits::default(), self.config.token.as_ref()).await?;
        self.totals.sessions += 1;
        let start = match self.config.from {
            // What appears while the client is away is new to it, and none of it may be missed.
            _ if self.totals.sessions > 1 => StartPolicy::Earliest,
            Start::Earliest => StartPolicy::Earliest,
            Start::Latest => StartPolicy::Latest,
            Start::Active => StartPolicy::Active,
        };
        client.subscribe(Ask { filter: self.config.filter(), ..start.into() }).await?;
        self.caught_up.clear();
        loop {
            let event = client.next().await;
            *chain = client.chain().clone();
            match self.take(event?)? {
                Some(done) => return Ok(done),
                None => continue,
            }
        }
    }

    /// Takes an event. `Some` when the session is over, true when there is nothing more to do.
    fn take(&mut self, event: Event) -> anyhow::Result<Option<bool>> {
        match event {
            Event::Records { partition, epoch, bytes, records, .. } => {
                self.first_record.get_or_insert_with(Instant::now);
                self.totals.bytes += bytes as u64;
                self.totals.records += records.len() as u64;
                self.print(partition, epoch, &records);
            }
            Event::Gap(gap) => {
                self.totals.gaps += 1;
                let reason = GapReason::try_from(gap.reason).map_or("unknown", |reason| reason.as_str_name());
                say(format_args!(
                    "gap: partition {} lost {} to {}: {reason}",
                    gap.partition, gap.first_offset, gap.last_offset
                ));
            }
            Event::Stale(stale) => {
                self.totals.stale += 1;
                let partition = stale.cursor.as_ref().map_or(-1, |cursor| cursor.partition);
                say(format_args!(
                    "stale: partition {partition} began anew in epoch {}; resubscribing",
                    stale.epoch
                ));
                return Ok(Some(false));
            }
            Event::Notice(notice) => {
                self.totals.withheld += u64::from(notice.prev_offset.is_some());
                say(format_args!("notice: {}", notice.message));
            }
            Event::Partitions(partitions) => {
                self.partitions = partitions.partitions.iter().map(|state| state.partition).collect();
            }
            Event::CaughtUp(caught_up) => {
                self.caught_up.extend(caught_up.mark.iter().map(|mark| mark.partition));
            }
            Event::Error(error) if error.fatal => bail!("the gateway ended the session: {}", error.message),
            Event::Error(error) => bail!("the gateway refused: {}", error.message),
            // Served until its slot is up; then the gateway closes.
            Event::GoingAway(_) | Event::Skipped(_) | Event::Pong => {}
            Event::State(state) => self.print(state.partition, state.epoch, state.record.as_slice()),
            Event::Closed => return Ok(Some(false)),
        }
        let enough = self.config.count > 0 && self.totals.records >= self.config.count;
        let at_end = !self.partitions.is_empty() && self.partitions.is_subset(&self.caught_up);
        Ok((enough || self.config.until_caught_up && at_end).then_some(true))
    }

    fn print(&mut self, partition: i32, epoch: u64, records: &[Record]) {
        match self.config.format {
            Format::Lines => {
                say_all(&records.iter().fold(String::new(), |text, record| line(text, partition, record)))
            }
            Format::Json => {
                say_all(
                    &records.iter().fold(String::new(), |text, record| json(text, partition, epoch, record)),
                );
            }
            Format::Counts if self.said.0.elapsed() >= SUMMARY_INTERVAL => {
                let rate = (self.totals.records - self.said.1) as f64 / self.said.0.elapsed().as_secs_f64();
                say(format_args!("{} records, {rate:.0} a second", self.totals.records));
                self.said = (Instant::now(), self.totals.records);
            }
            Format::Counts => {}
        }
    }

    fn summary(&self) {
        let Totals { records, bytes, gaps, stale, withheld, sessions } = &self.totals;
        let seconds = self.first_record.unwrap_or(self.begun).elapsed().as_secs_f64().max(1e-9);
        say(format_args!(
            "{records} records ({:.1} MB) in {seconds:.2} s: {:.0} a second; every link proved; \
             {gaps} gaps, {stale} stale, {withheld} withheld, {sessions} sessions",
            *bytes as f64 / 1e6,
            *records as f64 / seconds,
        ));
    }
}

fn kind(record: &Record) -> &'static str {
    RecordKind::try_from(record.kind)
        .map_or("UNKNOWN", |kind| kind.as_str_name())
        .trim_start_matches("RECORD_KIND_")
}

fn line(mut text: String, partition: i32, record: &Record) -> String {
    let sequence = record.sequence.map_or("-".into(), |sequence| sequence.to_string());
    let (offset, kind, bytes) = (record.offset, kind(record), record.payload.len());
    text.push_str(&format!(
        "{partition:>3}:{offset:<10} {kind:<15} {:<32} {sequence:>6} {bytes:>7} B\n",
        record.thread_id
    ));
    text
}

fn json(mut text: String, partition: i32, epoch: u64, record: &Record) -> String {
    let object = serde_json::json!({
        "partition": partition,
        "epoch": epoch.to_string(),
        "offset": record.offset.to_string(),
        "prev_offset": record.prev_offset.map(|offset| offset.to_string()),
        "timestamp_ms": record.timestamp_ms.map(|ms| ms.to_string()),
        "kind": kind(record),
        "tenant_id": record.tenant_id,
        "thread_id": record.thread_id,
        "sequence": record.sequence.map(|sequence| sequence.to_string()),
        "payload_bytes": record.payload.len(),
    });
    text.push_str(&format!("{object}\n"));
    text
}

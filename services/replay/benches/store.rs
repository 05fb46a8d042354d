//! The store on Redis against plain Redis and against the layout that it replaces:
//! `cargo bench -p dashstream-replay`, with `-- --json FILE` for a machine.
//!
//! Every repetition measures all candidates in turn, so that what else the machine does meets them all.
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
use anyhow::{Context, Result, ensure};
use clap::Parser;
use std::{fs, path::PathBuf, time::Instant};
use support::{
    measure::measure,
    ours::Ours,
    plain,
    predecessor::{Predecessor, rows},
    report::{Sample, Table},
    server::{Cores, Server},
    workload::{BATCH_RECORDS, Content, Mix, PARTITION_RECORDS, PARTITIONS, RECORDS, Shape, Workload},
};

mod support;

/// Rows that the predecessor writes from several callers, and one by one: it is slow.
const PREDECESSOR_RECORDS: usize = 20_000;
const PREDECESSOR_RECORDS_ONE_BY_ONE: usize = 640;
/// Threads that are read, and records of each.
const THREADS_READ: usize = 25;
const THREAD_RECORDS: usize = 100;

const SHAPES: [Shape; 5] = [
    Shape { payload_bytes: 200, content: Content::Random, mix: Mix::Scattered },
    Shape { payload_bytes: 200, content: Content::Text, mix: Mix::Scattered },
    Shape { payload_bytes: 1_024, content: Content::Random, mix: Mix::Scattered },
    Shape { payload_bytes: 1_024, content: Content::Text, mix: Mix::Scattered },
    Shape { payload_bytes: 1_024, content: Content::Text, mix: Mix::Bursts },
];

/// Measures the store on Redis.
#[derive(Debug, Parser)]
struct Args {
    /// Times that everything is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..))]
    repetitions: u32,

    /// Where to write all samples, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Cargo passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Tables {
    appends: Table,
    reads: Table,
    memory: Table,
}

impl Tables {
    fn new() -> Self {
        let ratios = &["x SET", "x predecessor"];
        Self {
            appends: Table::new("Appends", "thousand records/s", ratios, 1),
            reads: Table::new("Reads", "ms", &["x predecessor"], 2),
            memory: Table::new("Memory", "bytes/record", ratios, 0),
        }
    }

    fn all(&self) -> [&Table; 3] {
        [&self.appends, &self.reads, &self.memory]
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let cores = Cores::bind();
    // One thread, so that the client is one core.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(&args, cores))
}

async fn run(args: &Args, cores: Option<Cores>) -> Result<()> {
    let began = Instant::now();
    let server = Server::start(cores).await?;
    let version = server.version().await?;
    println!(
        "Redis {version}; {}; {PARTITIONS} partitions, {BATCH_RECORDS} records a batch; median of {}\n",
        cores.map_or("server and client share all cores".to_owned(), |cores| format!("{cores:?}")),
        args.repetitions
    );
    let mut bench = Bench {
        empty_bytes: 0.0,
        ours: Ours::new(&server.url())?,
        predecessor: Predecessor::new(Ours::new(&server.url())?.connection),
        server,
        tables: Tables::new(),
    };
    let workloads = SHAPES.map(Workload::new).into_iter().collect::<Result<Vec<_>>>()?;
    bench.warm_up(&workloads[0]).await?;
    for _ in 0..args.repetitions {
        for workload in &workloads {
            bench.repetition(workload).await?;
        }
    }
    for table in bench.tables.all() {
        println!("{}", table.markdown());
    }
    println!("{:.0} s in all", began.elapsed().as_secs_f64());
    if let Some(path) = &args.json {
        let tables = bench.tables.all().map(Table::json);
        let json = serde_json::json!({ "redis": version, "pinned": cores.is_some(), "tables": tables });
        fs::write(path, serde_json::to_string_pretty(&json)?).context("write the JSON file")?;
    }
    ensure!(bench.tables.all().into_iter().all(Table::is_valid), "a measurement is invalid");
    Ok(())
}

struct Bench {
    server: Server,
    ours: Ours,
    predecessor: Predecessor,
    /// What Redis uses when it holds nothing.
    empty_bytes: f64,
    tables: Tables,
}

impl Bench {
    /// Connects, loads the scripts and has Redis get the memory that it needs.
    async fn warm_up(&mut self, workload: &Workload) -> Result<()> {
        self.ours.open().await?;
        self.ours.append(workload, 1, 1).await?;
        self.ours.check(workload).await?;
        self.predecessor.write(&rows(workload)[..PREDECESSOR_RECORDS], 1).await?;
        self.clear().await
    }

    async fn clear(&mut self) -> Result<()> {
        self.server.clear().await?;
        self.empty_bytes = self.server.memory_bytes().await?;
        Ok(())
    }

    /// Each candidate's first append fills the store for its reads.
    async fn repetition(&mut self, workload: &Workload) -> Result<()> {
        let name = workload.shape.to_string();
        self.ours(workload, &name).await?;
        self.set(workload, &name).await?;
        self.predecessor(workload, &name).await?;
        self.redis_benchmark(workload.shape.payload_bytes, &name)
    }

    async fn ours(&mut self, workload: &Workload, name: &str) -> Result<()> {
        for (candidate, against, batches, callers) in [
            ("ours, 8 batches a call", &["SET, 512 a call", PREDECESSOR], 8, 1),
            ("ours, 8 callers, 1 batch a call", &["SET, 8 callers, 64 a call", PREDECESSOR_8], 1, 8),
            ("ours, 1 batch a call", &["SET, 64 a call", PREDECESSOR], 1, 1),
        ] {
            self.clear().await?;
            self.ours.open().await?;
            let append = self.ours.append(workload, batches, callers);
            let sample = measure(&self.server, RECORDS, append).await?;
            self.tables.appends.add(name, candidate, against, rate(sample, RECORDS));
        }
        self.memory(name, OURS, &["SET", PREDECESSOR_MEMORY]).await?;
        self.ours.check(workload).await?;
        self.reads_of_ours(workload, name).await
    }

    async fn reads_of_ours(&mut self, workload: &Workload, name: &str) -> Result<()> {
        let (server, ours) = (&self.server, &self.ours);
        let sample = measure(server, PARTITION_RECORDS, ours.read_partition()).await?;
        self.tables.reads.add(name, "partition: ours", &["partition: predecessor"], millis(sample, 1));
        let entries = (1 << 20) / (BATCH_RECORDS * workload.shape.payload_bytes);
        let log = ours.log();
        let xrange = plain::xrange(&ours.connection, &log, entries);
        let sample = measure(server, PARTITION_RECORDS, xrange).await?;
        self.tables.reads.add(
            name,
            "partition: XRANGE of our log",
            &["partition: predecessor"],
            millis(sample, 1),
        );
        let threads = threads(workload)?;
        let read = ours.read_threads(threads, THREAD_RECORDS);
        let sample = measure(server, threads.len() * THREAD_RECORDS, read).await?;
        let sample = millis(sample, threads.len());
        self.tables.reads.add(name, "thread: ours", &["thread: predecessor"], sample);
        Ok(())
    }

    async fn set(&mut self, workload: &Workload, name: &str) -> Result<()> {
        for (candidate, against, pipelined, callers) in [
            ("SET, 512 a call", &["SET, 512 a call", PREDECESSOR], 512, 1),
            ("SET, 8 callers, 64 a call", &["SET, 8 callers, 64 a call", PREDECESSOR_8], 64, 8),
            ("SET, 64 a call", &["SET, 64 a call", PREDECESSOR], 64, 1),
        ] {
            self.clear().await?;
            let set = plain::set(&self.ours.connection, &workload.messages, pipelined, callers);
            let sample = measure(&self.server, RECORDS, set).await?;
            self.tables.appends.add(name, candidate, against, rate(sample, RECORDS));
        }
        self.memory(name, "SET", &["SET", PREDECESSOR_MEMORY]).await?;
        let get = plain::get(&self.ours.connection, PARTITION_RECORDS);
        let sample = millis(measure(&self.server, PARTITION_RECORDS, get).await?, 1);
        self.tables.reads.add(name, "partition: GET", &["partition: predecessor"], sample);
        Ok(())
    }

    async fn predecessor(&mut self, workload: &Workload, name: &str) -> Result<()> {
        let rows = rows(workload);
        let few = &rows[..PREDECESSOR_RECORDS_ONE_BY_ONE];
        self.clear().await?;
        let write = self.predecessor.write_one_by_one(few);
        let sample = rate(measure(&self.server, few.len(), write).await?, few.len());
        self.tables.appends.add(name, "predecessor, one by one", &["SET, 64 a call", PREDECESSOR], sample);
        for (candidate, against, rows, callers) in [
            (PREDECESSOR_8, &["SET, 8 callers, 64 a call", PREDECESSOR_8], &rows[..PREDECESSOR_RECORDS], 8),
            (PREDECESSOR, &["SET, 64 a call", PREDECESSOR], &rows[..], 1),
        ] {
            self.clear().await?;
            let write = self.predecessor.write(rows, callers);
            let sample = rate(measure(&self.server, rows.len(), write).await?, rows.len());
            self.tables.appends.add(name, candidate, against, sample);
        }
        self.memory(name, PREDECESSOR_MEMORY, &["SET", PREDECESSOR_MEMORY]).await?;
        self.reads_of_predecessor(workload, name).await
    }

    async fn reads_of_predecessor(&mut self, workload: &Workload, name: &str) -> Result<()> {
        let read = self.predecessor.read_partition();
        let sample = millis(measure(&self.server, PARTITION_RECORDS, read).await?, 1);
        self.tables.reads.add(name, "partition: predecessor", &["partition: predecessor"], sample);
        let threads = threads(workload)?;
        let read = self.predecessor.read_threads(threads, THREAD_RECORDS);
        let sample = measure(&self.server, threads.len() * THREAD_RECORDS, read).await?;
        let sample = millis(sample, threads.len());
        self.tables.reads.add(name, "thread: predecessor", &["thread: predecessor"], sample);
        Ok(())
    }

    /// What the store takes for each record now.
    async fn memory(&mut self, name: &str, candidate: &str, against: &'static [&'static str]) -> Result<()> {
        let bytes = self.server.memory_bytes().await? - self.empty_bytes;
        self.tables.memory.add(name, candidate, against, Sample::of(bytes / RECORDS as f64));
        Ok(())
    }

    fn redis_benchmark(&mut self, payload_bytes: usize, name: &str) -> Result<()> {
        for (candidate, against, clients) in [
            ("redis-benchmark, 1 client", &["SET, 64 a call", PREDECESSOR], 1),
            ("redis-benchmark, 8 clients", &["SET, 8 callers, 64 a call", PREDECESSOR_8], 8),
        ] {
            if let Some(rate) = self.server.benchmark(payload_bytes, RECORDS, clients)? {
                self.tables.appends.add(name, candidate, against, Sample::of(rate / 1e3));
            }
        }
        Ok(())
    }
}

const OURS: &str = "ours";
const PREDECESSOR: &str = "predecessor, 64 records a call";
const PREDECESSOR_8: &str = "predecessor, 8 callers, 64 records a call";
const PREDECESSOR_MEMORY: &str = "predecessor";

fn threads(workload: &Workload) -> Result<&[String]> {
    workload.threads.get(..THREADS_READ).context("too few threads have enough records")
}

/// Thousand records a second.
fn rate(sample: Sample, records: usize) -> Sample {
    sample.map(|seconds| records as f64 / seconds / 1e3)
}

/// Milliseconds for one of `parts` equal parts.
fn millis(sample: Sample, parts: usize) -> Sample {
    sample.map(|seconds| seconds * 1e3 / parts as f64)
}

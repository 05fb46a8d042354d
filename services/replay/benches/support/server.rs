//! A Redis of the benchmark's own, on a core of its own where that can be had.
use anyhow::{Context, Result, bail};
use redis::{Cmd, aio::MultiplexedConnection};
use std::{
    collections::HashMap,
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Cores for the server and for the client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    server: usize,
    client: usize,
}

impl Cores {
    /// Two cores that this process may use, with this process bound to the second; `None` where there are not
    /// two, or no `taskset`.
    pub(crate) fn bind() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        let cores = list.trim().split(',').flat_map(range).collect::<Vec<_>>();
        let (server, client) = (*cores.first()?, *cores.get(1)?);
        let id = std::process::id().to_string();
        let bound = quietly("taskset", &["--all-tasks", "--cpu-list", "--pid", &client.to_string(), &id])
            || quietly("taskset", &["-a", "-c", "-p", &client.to_string(), &id]);
        bound.then_some(Self { server, client })
    }
}

/// The cores of `3` or `0-3`.
fn range(part: &str) -> Vec<usize> {
    let mut bounds = part.split('-').map(str::parse::<usize>);
    match (bounds.next(), bounds.next()) {
        (Some(Ok(first)), Some(Ok(last))) => (first..=last).collect(),
        (Some(Ok(only)), _) => vec![only],
        _ => Vec::new(),
    }
}

fn quietly(program: &str, args: &[&str]) -> bool {
    let status = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn pinned(program: &str, core: Option<usize>) -> Command {
    match core {
        None => Command::new(program),
        Some(core) => {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string(), program]);
            command
        }
    }
}

/// A running server. Killed on `Drop`.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    port: u16,
    cores: Option<Cores>,
    admin: MultiplexedConnection,
}

impl Server {
    pub(crate) async fn start(cores: Option<Cores>) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = pinned("redis-server", cores.map(|cores| cores.server));
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]);
        let mut process = command.stdout(Stdio::null()).spawn().context("start redis-server")?;
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}"))?;
        let began = Instant::now();
        let admin = loop {
            if let Ok(connection) = client.get_multiplexed_async_connection().await {
                break connection;
            }
            if let Some(status) = process.try_wait()? {
                bail!("redis-server ended: {status}");
            }
            if began.elapsed() > START_TIMEOUT {
                process.kill()?;
                bail!("redis-server does not answer");
            }
            thread::sleep(Duration::from_millis(20));
        };
        Ok(Self { process, port, cores, admin })
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Forgets everything but scripts, before it returns.
    pub(crate) async fn clear(&self) -> Result<()> {
        Ok(Cmd::new().arg("FLUSHALL").arg("SYNC").exec_async(&mut self.admin.clone()).await?)
    }

    async fn info(&self, section: &str) -> Result<HashMap<String, String>> {
        let text: String = redis::cmd("INFO").arg(section).query_async(&mut self.admin.clone()).await?;
        Ok(text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect())
    }

    pub(crate) async fn version(&self) -> Result<String> {
        self.info("server").await?.remove("redis_version").context("redis tells its version")
    }

    pub(crate) async fn memory_bytes(&self) -> Result<f64> {
        Ok(self.info("memory").await?.get("used_memory").context("redis tells its memory")?.parse()?)
    }

    /// Processor time that the server used so far, seconds.
    pub(crate) async fn cpu_seconds(&self) -> Result<f64> {
        let info = self.info("cpu").await?;
        let part = |name: &str| -> Result<f64> {
            Ok(info.get(name).context("redis tells its processor time")?.parse()?)
        };
        Ok(part("used_cpu_user")? + part("used_cpu_sys")?)
    }

    /// SETs a second by `redis-benchmark`, 64 in a pipeline; `None` where there is no such program.
    pub(crate) fn benchmark(
        &self,
        payload_bytes: usize,
        commands: usize,
        clients: usize,
    ) -> Result<Option<f64>> {
        let mut command = pinned("redis-benchmark", self.cores.map(|cores| cores.client));
        let (port, size, count) = (self.port.to_string(), payload_bytes.to_string(), commands.to_string());
        command.args(["-p", &port, "-t", "set", "-P", "64", "-c", &clients.to_string(), "--csv"]);
        command.args(["-d", &size, "-n", &count, "-r", &count]).stderr(Stdio::null());
        let Ok(output) = command.output() else { return Ok(None) };
        let text = String::from_utf8(output.stdout)?;
        let line = text.lines().find_map(|line| line.strip_prefix("\"SET\",\""));
        let Some(rate) = line.and_then(|line| line.split('"').next()) else { return Ok(None) };
        Ok(Some(rate.parse()?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended on its own.
        if self.process.kill().is_ok() {
            drop(self.process.wait());
        }
    }
}

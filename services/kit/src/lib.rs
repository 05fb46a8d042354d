//! What every process needs and nothing about streams: settings, logs, traces, metrics, readiness,
//! the operations port, tasks and their drain, gRPC servers and channels.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;

pub mod auth;
pub mod config;
pub mod grpc;
pub mod metrics;
pub mod ops;
pub mod tasks;
pub mod telemetry;

/// All crates of the workspace share one version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Drain timeout of a kit without settings: tests shall not wait for streams nobody closed.
const EMBEDDED_DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// What a service is given to live in its process. A cheap handle.
#[derive(Clone, Debug)]
pub struct Kit {
    /// Where the metrics of the service go; never the global registry, so that tests and services
    /// that share a process stay apart.
    pub registry: Registry,
    /// The tasks of the service.
    pub tasks: tasks::Tasks,
    /// Whether the service may be given work.
    pub readiness: ops::Readiness,
    /// How it and other services know each other.
    pub trust: auth::Trust,
    /// The short name of the service: `ingest`.
    pub service: &'static str,
    process: Arc<Process>,
}

/// What belongs to the process and ends with it.
#[derive(Debug, Default)]
struct Process {
    drain_timeout: Duration,
    telemetry: telemetry::Telemetry,
    ops: Option<Ops>,
}

#[derive(Debug)]
struct Ops {
    address: SocketAddr,
    server: AbortOnDropHandle<()>,
}

impl Kit {
    /// Makes a process of this: logs and traces, the operations port, and a stop on SIGTERM or
    /// SIGINT. To be called once, in `main`.
    ///
    /// # Errors
    /// If the log subscriber, the operations port or the signal handlers cannot be had, or what
    /// services know each other by.
    pub async fn start(service: &'static str, config: &config::Config) -> anyhow::Result<Self> {
        let mut kit = Self::embedded(service);
        let telemetry = telemetry::Telemetry::install(service, config)?;
        metrics::build_info(&kit.registry, service).context("register the build metric")?;
        let ops = Some(kit.serve_ops(config.ops_listen).await?);
        kit.trust = auth::Trust::new(&config.trust)?;
        kit.process = Arc::new(Process { drain_timeout: config.drain_timeout, telemetry, ops });
        kit.stop_on_signals()?;
        Ok(kit)
    }

    /// A kit without a process around it: no logs, signals or operations port. For tests, and for
    /// several services in one process.
    pub fn embedded(service: &'static str) -> Self {
        let tasks = tasks::Tasks::new();
        Self {
            registry: Registry::new(),
            readiness: ops::Readiness::new(tasks.stop_token()),
            tasks,
            trust: auth::Trust::default(),
            service,
            process: Arc::new(Process { drain_timeout: EMBEDDED_DRAIN_TIMEOUT, ..Process::default() }),
        }
    }

    /// The address of the operations port, if there is one.
    pub fn ops_address(&self) -> Option<SocketAddr> {
        self.process.ops.as_ref().map(|ops| ops.address)
    }

    /// A channel to one replica of another service, `host:port`, connected by its first call and again when it
    /// broke.
    ///
    /// # Errors
    /// If the address does not parse.
    pub fn channel_to(&self, address: &str) -> Result<grpc::Channel, tonic::transport::Error> {
        self.trust.channel_to(address)
    }

    /// Stops the service, waits until its tasks have ended, and sends the last traces. The
    /// operations port answers until then.
    ///
    /// # Errors
    /// If tasks have not ended after `timeout`; the error names them.
    pub async fn drain(&self, timeout: Duration) -> anyhow::Result<()> {
        let drained = self.tasks.drain(timeout).await;
        self.process.telemetry.flush().await;
        if let Some(ops) = &self.process.ops {
            ops.server.abort();
        }
        Ok(drained?)
    }

    /// How long requests in flight may take once the stop is told. Half of the drain timeout: the
    /// rest is for what comes after them.
    pub(crate) fn grace(&self) -> Duration {
        self.process.drain_timeout / 2
    }

    async fn serve_ops(&self, listen: SocketAddr) -> anyhow::Result<Ops> {
        let listener =
            TcpListener::bind(listen).await.with_context(|| format!("bind the operations port {listen}"))?;
        let address = listener.local_addr()?;
        let router = ops::router(self.service, self.registry.clone(), self.readiness.clone());
        let server = tasks::detached(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "ops stopped listening");
            }
        });
        tracing::info!(listen = %address, "ops listening");
        Ok(Ops { address, server: AbortOnDropHandle::new(server) })
    }

    fn stop_on_signals(&self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
        let tasks = self.tasks.clone();
        tasks::detached(async move {
            let name = either(&mut terminate, &mut interrupt).await;
            tracing::info!(signal = name, "stopping");
            tasks.stop();
            let name = either(&mut terminate, &mut interrupt).await;
            tracing::warn!(signal = name, "told twice, leaving without a drain");
            std::process::exit(1);
        });
        Ok(())
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

#[cfg(test)]
mod tests;

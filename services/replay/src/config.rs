//! Settings of the replay service.
use clap::ValueEnum;
use dashstream_kit::config::{byte_size, duration};
use std::{net::SocketAddr, time::Duration};

/// Where records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// Redis: the only one for production.
    Redis,
    /// This process's memory: for local mode; gone with the process.
    Memory,
}

/// Settings of the replay service.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "replay")]
pub struct Config {
    /// Address of the gRPC service.
    #[arg(long = "listen", env = "REPLAY_LISTEN", default_value = "0.0.0.0:7201")]
    pub listen: SocketAddr,

    /// Where records are kept.
    #[arg(long, env = "REPLAY_STORE", value_enum, default_value = "redis")]
    pub store: StoreKind,

    /// Redis, as `redis://[user:password@]host:port/db` or `rediss://` for TLS. Only for the Redis store.
    #[arg(long, env = "REDIS_URL", default_value = "redis://127.0.0.1:6379", hide_env_values = true)]
    pub redis_url: String,

    /// How long one Redis command may take. Far above what is normal: a slow answer is better than a
    /// retry under load.
    #[arg(long, env = "REDIS_TIMEOUT", default_value = "5s", value_parser = duration)]
    pub redis_timeout: Duration,

    #[command(flatten)]
    pub retention: Retention,

    /// Largest page of records that one read answers with, bytes. A page always has at least one batch.
    #[arg(long, env = "REPLAY_PAGE_BYTES_MAX", default_value = "1MiB", value_parser = byte_size)]
    pub page_bytes_max: u64,

    /// Most bytes of batches of one append stream that wait for the store.
    #[arg(long, env = "REPLAY_APPEND_WINDOW", default_value = "4MiB", value_parser = byte_size)]
    pub append_window_bytes: u64,
}

/// What is kept of each partition. Whichever bound is met first holds; a partition that gets nothing new
/// vanishes whole once it is as old as `age`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Retention {
    /// How long records are kept.
    #[arg(long = "retention", env = "REPLAY_RETENTION", default_value = "1h", value_parser = duration)]
    pub age: Duration,

    /// Most records kept of a partition.
    #[arg(long = "retention-records", env = "REPLAY_RETENTION_RECORDS", default_value_t = 10_000_000,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub records_max: u64,

    /// Most bytes of batches kept of a partition.
    #[arg(long = "retention-bytes", env = "REPLAY_RETENTION_BYTES", default_value = "1GiB", value_parser = byte_size)]
    pub bytes_max: u64,
}

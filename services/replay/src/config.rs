//! Settings of the replay service.
use clap::ValueEnum;
use dashstream_kit::config::{Secret, byte_size, duration};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

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

    #[command(flatten)]
    pub redis: Redis,

    #[command(flatten)]
    pub retention: Retention,

    /// Largest page of records that one read answers with, bytes. A page always has at least one batch, or one
    /// record of a thread.
    #[arg(long, env = "REPLAY_PAGE_BYTES_MAX", default_value = "1MiB", value_parser = byte_size)]
    pub page_bytes_max: u64,

    /// How long one page is read for: what there is of it then is the answer, and the reader asks on. It has at
    /// least what one round trip to Redis brings.
    #[arg(long, env = "REPLAY_PAGE_TIME_MAX", default_value = "2s", value_parser = duration)]
    pub page_time_max: Duration,

    /// What all keys of a predecessor begin with, `dashstream-replay:` and its resume namespace (which its
    /// `/version` tells): its records are read where there are none of ours. Nothing of it is read unless this is
    /// set, and nothing is ever written to it.
    #[arg(long, env = "REPLAY_LEGACY_PREFIX")]
    pub legacy_prefix: Option<String>,

    /// Most reads in flight. Another one waits a second, then is told to come back. Appends are not counted.
    #[arg(long, env = "REPLAY_READS_MAX", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub reads_max: u32,

    /// How long a reader may leave an answer untaken before its place goes to another one: it is told so, and may
    /// ask on behind what it has.
    #[arg(long, env = "REPLAY_READER_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub reader_timeout: Duration,

    /// Replicas of Redis that must have an append before it is acknowledged: what they have, a failover does
    /// not lose. 0 for none.
    #[arg(long, env = "REPLAY_WAIT_REPLICAS", default_value_t = 0)]
    pub wait_replicas: u32,

    /// How long an append waits for those replicas before it fails.
    #[arg(long, env = "REPLAY_WAIT_TIMEOUT", default_value = "1s", value_parser = duration)]
    pub wait_timeout: Duration,

    /// Most bytes of batches of one append stream that wait for the store.
    #[arg(long, env = "REPLAY_APPEND_WINDOW", default_value = "4MiB", value_parser = byte_size)]
    pub append_window_bytes: u64,
}

/// What is kept of each partition. Whichever bound is met first holds; a partition that gets nothing new
/// vanishes whole once it is as old as `age`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub struct Retention {
    /// How long records are kept.
    #[arg(long = "retention", env = "REPLAY_RETENTION", default_value = "1h", value_parser = age)]
    pub age: Duration,

    /// Most records kept of a partition.
    #[arg(long = "retention-records", env = "REPLAY_RETENTION_RECORDS", default_value_t = 10_000_000,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub records_max: u64,

    /// Most bytes of batches kept of a partition.
    #[arg(long = "retention-bytes", env = "REPLAY_RETENTION_BYTES", default_value = "1GiB", value_parser = byte_size)]
    pub bytes_max: u64,
}

impl Retention {
    /// The longest age: ten years. Redis takes no expiry that is much longer than a lifetime.
    pub const AGE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
}

fn age(text: &str) -> Result<Duration, String> {
    let age = duration(text)?;
    if age > Retention::AGE_MAX { Err("expected at most ten years".into()) } else { Ok(age) }
}

/// How Redis is reached. Only for the Redis store.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "redis")]
pub struct Redis {
    /// Redis: `redis://[user:password@]host:port/db` for one server,
    /// `redis+sentinel://[user:password@]host:port,host:port/<master name>/db` for the primary that Sentinels
    /// name, `redis+cluster://[user:password@]host:port,host:port` for a cluster. TLS with `rediss` instead of
    /// `redis`.
    #[arg(
        id = "redis-url",
        long,
        env = "REDIS_URL",
        default_value = "redis://127.0.0.1:6379",
        hide_env_values = true
    )]
    pub url: Secret,

    /// User to log in as, instead of the URL's. Empty for none.
    #[arg(id = "redis-username", long, env = "REDIS_USERNAME")]
    pub username: Option<String>,

    /// Password to log in with, instead of the URL's. Empty for none.
    #[arg(id = "redis-password", long, env = "REDIS_PASSWORD", hide_env_values = true)]
    pub password: Option<Secret>,

    /// User to log in to the Sentinels as; they know none of the users of Redis itself.
    #[arg(id = "redis-sentinel-username", long, env = "REDIS_SENTINEL_USERNAME")]
    pub sentinel_username: Option<String>,

    /// Password to log in to the Sentinels with.
    #[arg(id = "redis-sentinel-password", long, env = "REDIS_SENTINEL_PASSWORD", hide_env_values = true)]
    pub sentinel_password: Option<Secret>,

    /// Certificates (PEM file) of the authorities that Redis's certificate is trusted by, instead of the
    /// system's.
    #[arg(id = "redis-tls-ca", long, env = "REDIS_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,

    /// Certificate (PEM file) that this process shows to Redis. Needs its key as well.
    #[arg(id = "redis-tls-cert", long, env = "REDIS_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Key (PEM file) of the certificate that this process shows to Redis.
    #[arg(id = "redis-tls-key", long, env = "REDIS_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// How long one Redis command may take. Far above what is normal: a slow answer is better than a
    /// retry under load.
    #[arg(id = "redis-timeout", long, env = "REDIS_TIMEOUT", default_value = "5s", value_parser = duration)]
    pub timeout: Duration,

    /// Accept a Redis that deletes records on its own when its memory is full (any `maxmemory-policy` but
    /// `noeviction`), or that does not tell whether it does. Records that are still promised then vanish
    /// without a trace.
    #[arg(id = "redis-allow-eviction", long, env = "REDIS_ALLOW_EVICTION", default_value_t = false,
          action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub allow_eviction: bool,
}

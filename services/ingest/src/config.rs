//! Settings of the ingest service.
use crate::dlq;
use clap::builder::NonEmptyStringValueParser;
use dashstream_core::policy::Policy;
use dashstream_kafka::Connection;
use dashstream_kit::config::{Targets, byte_size, duration};
use std::{net::SocketAddr, time::Duration};

/// Settings of the ingest service.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "ingest")]
pub struct Config {
    /// Address of the gRPC service.
    #[arg(long = "listen", env = "INGEST_LISTEN", default_value = "0.0.0.0:7101")]
    pub listen: SocketAddr,

    #[command(flatten)]
    pub kafka: Kafka,

    /// Replicas of replay: `host:port`, comma-separated. A name with several addresses stands for all of them.
    #[arg(long, env = "REPLAY_TARGETS", default_value = "127.0.0.1:7201")]
    pub replay_targets: Targets,

    /// Name of the stream under which records are stored. The topic's name unless given.
    #[arg(long, env = "DASHSTREAM_STREAM")]
    pub stream: Option<String>,

    /// Most bytes of one partition's batches that wait for replay's acknowledgement. When it is full the
    /// partition is not read on.
    #[arg(long, env = "INGEST_APPEND_WINDOW", default_value = "4MiB", value_parser = byte_size)]
    pub append_window_bytes: u64,

    /// Most records of one batch.
    #[arg(long, env = "INGEST_BATCH_RECORDS", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch_records_max: u32,

    /// Bytes of packed records at which a batch is closed.
    #[arg(long, env = "INGEST_BATCH_BYTES", default_value = "64KiB", value_parser = byte_size)]
    pub batch_bytes: u64,

    /// Largest message, bytes, compressed or not. A larger one does not decode.
    #[arg(long, env = "INGEST_MESSAGE_BYTES_MAX", default_value = "10MiB", value_parser = byte_size)]
    pub message_bytes_max: u64,

    /// What to do with a bad record: one that does not decode, breaks a limit, is of an unknown version or names no
    /// thread. `skip`: write a dead letter, leave a gap in its place and go on. `pause`: stop its partition at it
    /// until an operator decides (`dashstream dlq`). `halt`: stop everything that this replica consumes, and turn
    /// readiness off.
    #[arg(long, env = "KAFKA_ON_DECODE_ERROR", value_enum, default_value = "skip")]
    pub on_decode_error: OnDecodeError,

    #[command(flatten)]
    pub dlq: dlq::Config,

    /// Name of this replica in reports and dead letters. Unless given, the group instance id, or else the host's
    /// name and the port.
    #[arg(long, env = "INGEST_NAME")]
    pub name: Option<String>,

    /// How far back an empty store is refilled from Kafka: `retention`, as far as replay keeps records;
    /// `earliest`, all that Kafka has.
    #[arg(long, env = "INGEST_REFILL", value_enum, default_value = "retention")]
    pub refill: Refill,

    /// Most bytes of batches that wait for one subscriber of the live feed. One that is slower is cut and
    /// goes on from replay.
    #[arg(long, env = "INGEST_LIVE_BUFFER", default_value = "8MiB", value_parser = byte_size)]
    pub live_buffer_bytes: u64,

    /// How often subscribers hear where each partition is.
    #[arg(long, env = "INGEST_HEARTBEAT", default_value = "1s", value_parser = duration)]
    pub heartbeat: Duration,

    /// How long appends in flight may take when a partition is revoked.
    #[arg(long, env = "INGEST_REVOKE_TIMEOUT", default_value = "5s", value_parser = duration)]
    pub revoke_timeout: Duration,
}

/// What to do with a bad record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnDecodeError {
    Skip,
    Pause,
    Halt,
}

/// How far back an empty store is refilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Refill {
    Retention,
    Earliest,
}

/// How Kafka is reached and read.
#[derive(Clone, Debug, clap::Args)]
pub struct Kafka {
    #[command(flatten)]
    pub connection: Connection,

    /// Topic to read.
    #[arg(long = "kafka-topic", env = "KAFKA_TOPIC", default_value = "dashstream-events")]
    pub topic: String,

    /// Consumer group, such as `dashstream-staging`. All replicas of one deployment share it; another deployment or
    /// program in it would take partitions away from them.
    #[arg(long = "kafka-group-id", env = "KAFKA_GROUP_ID", value_name = "KAFKA_GROUP_ID",
          value_parser = NonEmptyStringValueParser::new())]
    pub group_id: String,

    /// Name of this member that outlives the process, such as the pod's. With it a restart within the session
    /// timeout moves no partition.
    #[arg(long = "kafka-group-instance-id", env = "KAFKA_GROUP_INSTANCE_ID")]
    pub group_instance_id: Option<String>,

    /// How long the group waits for a member that is gone before its partitions move.
    #[arg(long = "kafka-session-timeout", env = "KAFKA_SESSION_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub session_timeout: Duration,

    /// Look at the topic's settings at the start, and warn of what endangers records. Not every broker that speaks
    /// Kafka's protocol tells them.
    #[arg(long = "kafka-topic-check", env = "KAFKA_TOPIC_CHECK", default_value_t = true,
          action = clap::ArgAction::Set)]
    pub topic_check: bool,
}

impl Config {
    /// What to do with a bad record.
    pub fn policy(&self) -> Policy {
        match self.on_decode_error {
            OnDecodeError::Skip => Policy::Skip,
            OnDecodeError::Pause => Policy::Pause,
            OnDecodeError::Halt => Policy::Halt,
        }
    }

    /// The stream's name.
    pub fn stream(&self) -> &str {
        self.stream.as_deref().unwrap_or(&self.kafka.topic)
    }
}

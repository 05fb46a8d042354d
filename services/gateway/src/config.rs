//! Settings of the gateway service.
use crate::{addresses::Proxies, admission, auth::config::Auth, hub::Budget, origins::Origins};
use dashstream_core::{limits::Limits, session::Terms};
use dashstream_kit::config::{Targets, byte_size, duration};
use std::{net::SocketAddr, time::Duration};

/// Settings of the gateway service.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "gateway")]
pub struct Config {
    /// Address of HTTP and websockets.
    #[arg(long = "listen", env = "GATEWAY_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Address of the gRPC query service.
    #[arg(long = "grpc-listen", env = "GATEWAY_GRPC_LISTEN", default_value = "0.0.0.0:7301")]
    pub grpc_listen: SocketAddr,

    /// Replicas of ingest: `host:port`, comma-separated. A name with several addresses stands for all of them.
    #[arg(long, env = "INGEST_TARGETS", default_value = "127.0.0.1:7101")]
    pub ingest_targets: Targets,

    /// Replicas of replay: `host:port`, comma-separated. A name with several addresses stands for all of them.
    #[arg(long, env = "REPLAY_TARGETS", default_value = "127.0.0.1:7201")]
    pub replay_targets: Targets,

    /// Name of the stream to serve: as ingest has it, which is the topic's unless it was named.
    #[arg(long, env = "DASHSTREAM_STREAM", default_value = "dashstream-events")]
    pub stream: String,

    /// Most bytes of recent records kept in memory for each partition.
    #[arg(long, env = "GATEWAY_RING_BYTES", default_value = "16MiB", value_parser = byte_size)]
    pub ring_bytes: u64,

    /// Most bytes of recent records kept in memory for all partitions together; those in which something happens
    /// share it equally. What filters leave of them may take as much again.
    #[arg(long, env = "GATEWAY_RINGS_BYTES", default_value = "256MiB", value_parser = byte_size)]
    pub rings_bytes: u64,

    /// Most bytes of older records kept in memory after they were read from replay, for others who read the same.
    #[arg(long, env = "GATEWAY_PAGES_BYTES", default_value = "64MiB", value_parser = byte_size)]
    pub pages_bytes: u64,

    /// How long a client may take nothing of what is sent before it is disconnected. One that takes little at a time
    /// stays; what its own library reads ahead, such as 128 KiB, is taken at once.
    #[arg(long, env = "GATEWAY_SEND_TIMEOUT", default_value = "5s", value_parser = duration)]
    pub send_timeout: Duration,

    /// How long a client has to say hello.
    #[arg(long, env = "GATEWAY_HELLO_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub hello_timeout: Duration,

    /// A client hears something, and is pinged, at least this often. One that answers no ping for three times as
    /// long, and takes nothing either, is gone.
    #[arg(long, env = "GATEWAY_HEARTBEAT", default_value = "10s", value_parser = duration)]
    pub heartbeat: Duration,

    /// Time over which clients are sent elsewhere when this replica stops. Keep it below DRAIN_TIMEOUT by more than
    /// GATEWAY_SEND_TIMEOUT.
    #[arg(long, env = "GATEWAY_DRAIN_WINDOW", default_value = "10s", value_parser = duration)]
    pub drain_window: Duration,

    #[command(flatten)]
    pub auth: Auth,

    /// Origins of pages that may use this gateway from a browser: `https://console.example`, comma-separated, or `*`
    /// for every page. A page that came from this gateway may where the gateway was called by an address or as
    /// `localhost`; by any other name it must be listed.
    #[arg(long, env = "GATEWAY_ALLOWED_ORIGINS", default_value = "", value_name = "ORIGINS")]
    pub allowed_origins: Origins,

    /// Networks of proxies whose `X-Forwarded-For` names the client: `10.0.0.0/8,192.0.2.7`.
    #[arg(long, env = "GATEWAY_TRUSTED_PROXIES", default_value = "", value_name = "NETWORKS")]
    pub trusted_proxies: Proxies,

    /// How long a client has to send the head of a request.
    #[arg(long, env = "GATEWAY_HANDSHAKE_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub handshake_timeout: Duration,

    /// Most sessions of one address at this replica; of IPv6, of one network of 64 bits.
    #[arg(long, env = "GATEWAY_SESSIONS_PER_ADDRESS_MAX", default_value_t = 1_000,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub sessions_per_address_max: u32,

    /// Most sessions of one tenant at this replica.
    #[arg(long, env = "GATEWAY_SESSIONS_PER_TENANT_MAX", default_value_t = 5_000,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub sessions_per_tenant_max: u32,

    /// Most sessions of this replica.
    #[arg(long, env = "GATEWAY_SESSIONS_MAX", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub sessions_max: u32,

    /// Largest record payload that is sent to a client, bytes. A larger one becomes a notice.
    #[arg(long, env = "GATEWAY_RECORD_BYTES_MAX", default_value = "10486784", value_parser = byte_size)]
    pub record_bytes_max: u64,

    /// Largest frame to a client, bytes.
    #[arg(long, env = "GATEWAY_FRAME_BYTES_MAX", default_value = "16MiB", value_parser = byte_size)]
    pub frame_bytes_max: u64,

    /// Largest frame from a client, bytes.
    #[arg(long, env = "GATEWAY_CLIENT_FRAME_BYTES_MAX", default_value = "1MiB", value_parser = byte_size)]
    pub client_frame_bytes_max: u64,

    /// Most bytes on their way to a client that gives credit for them.
    #[arg(long, env = "GATEWAY_IN_FLIGHT_BYTES_MAX", default_value = "4MiB", value_parser = byte_size)]
    pub in_flight_bytes_max: u64,
}

impl Config {
    /// What rings may take.
    pub fn budget(&self) -> Budget {
        Budget { ring: self.ring_bytes as usize, rings: self.rings_bytes as usize }
    }

    /// How many sessions there may be.
    pub fn admission(&self) -> admission::Limits {
        admission::Limits {
            replica: self.sessions_max,
            address: self.sessions_per_address_max,
            tenant: self.sessions_per_tenant_max,
        }
    }

    /// What every session is told.
    pub fn terms(&self) -> Terms {
        let size = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        Terms {
            stream: self.stream.clone(),
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            limits: Limits {
                record_bytes_max: size(self.record_bytes_max),
                frame_bytes_max: size(self.frame_bytes_max),
                client_frame_bytes_max: size(self.client_frame_bytes_max),
                in_flight_bytes_max: self.in_flight_bytes_max,
            },
            heartbeat: self.heartbeat,
            hello_timeout: self.hello_timeout,
        }
    }
}

//! Redis as it is run in production: a cluster, a primary with a replica under Sentinels, and a server that
//! takes TLS only from those it knows.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use dashstream_replay::config;

use crate::{
    Redis,
    certificates::{authority, certificate},
    eventually,
    folder::Folder,
    net::free_port,
    warden::{Child, Inherit, Spec},
};

const AGREED_TIMEOUT: Duration = Duration::from_secs(20);
const SLOTS: u16 = 16_384;
const MASTER: &str = "main";
/// A primary waits 5 s for more replicas before it serves the first.
const AT_ONCE: &[&str] = &["--repl-diskless-sync-delay", "0"];

/// The settings of a replay service that uses `url`, all others at their defaults.
pub fn settings(url: &str) -> config::Redis {
    config::Redis {
        url: secret(url),
        username: None,
        password: None,
        sentinel_username: None,
        sentinel_password: None,
        tls_ca: None,
        tls_cert: None,
        tls_key: None,
        timeout: Duration::from_secs(5),
        allow_eviction: false,
    }
}

/// A text as a setting that is not shown.
pub fn secret(text: &str) -> dashstream_kit::config::Secret {
    text.parse().unwrap_or_else(|never: std::convert::Infallible| match never {})
}

/// Three primaries that share the slots.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Redis>,
    replicas: Vec<Redis>,
}

impl Cluster {
    /// Starts three servers and waits until they agree.
    ///
    /// # Panics
    /// If they do not within 20 s.
    pub async fn start() -> Self {
        let cluster = Self { nodes: three().await, replicas: Vec::new() };
        let third = SLOTS / 3;
        let ends = [(0, third), (third + 1, 2 * third), (2 * third + 1, SLOTS - 1)];
        for (number, (node, (first, last))) in cluster.nodes.iter().zip(ends).enumerate() {
            ask(node, &["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]).await;
            ask(node, &["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]).await;
        }
        cluster.meet(&cluster.nodes).await;
        cluster
    }

    /// As [`Cluster::start`], with a replica of each that takes over a second after its primary is gone.
    ///
    /// # Panics
    /// As [`Cluster::start`].
    pub async fn start_with_replicas() -> Self {
        let mut cluster = Self::start().await;
        cluster.replicas = three().await;
        cluster.meet(&cluster.replicas).await;
        for (replica, node) in cluster.replicas.iter().zip(&cluster.nodes) {
            ask(replica, &["CLUSTER", "REPLICATE", &text(node, &["CLUSTER", "MYID"]).await]).await;
        }
        for replica in &cluster.replicas {
            eventually("the replica follows", AGREED_TIMEOUT, async || {
                let info = text(replica, &["INFO", "replication"]).await;
                info.contains("master_link_status:up").then_some(()).ok_or(info)
            })
            .await;
        }
        for node in &cluster.nodes {
            eventually("all know the replicas", AGREED_TIMEOUT, async || {
                let known = text(node, &["CLUSTER", "NODES"]).await;
                (known.matches(" slave ").count() == 3).then_some(()).ok_or(known)
            })
            .await;
        }
        cluster
    }

    /// Waits until all know all.
    async fn meet(&self, newcomers: &[Redis]) {
        let bus = config_of(&self.nodes[0], "cluster-port").await;
        let (host, port) = split(&self.nodes[0]);
        for node in newcomers.iter().filter(|node| node.address() != self.nodes[0].address()) {
            ask(node, &["CLUSTER", "MEET", host, &port, &bus]).await;
        }
        let known = format!("cluster_known_nodes:{}", self.nodes.len() + self.replicas.len());
        for node in self.nodes.iter().chain(&self.replicas) {
            eventually("the cluster agrees", AGREED_TIMEOUT, async || {
                let info = text(node, &["CLUSTER", "INFO"]).await;
                (info.contains("cluster_state:ok") && info.contains(&known)).then_some(()).ok_or(info)
            })
            .await;
        }
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        let addresses: Vec<_> = self.nodes.iter().map(Redis::address).collect();
        format!("redis+cluster://{}", addresses.join(","))
    }

    /// Its primaries, in the order of their slots.
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }

    /// The node that serves `key`, and one that does not.
    pub async fn owner_and_other(&self, key: &str) -> (&Redis, &Redis) {
        let slot: u16 = self.slot(key).await.parse().expect("a number");
        let owner = usize::from((slot.saturating_sub(1) / (SLOTS / 3)).min(2));
        (&self.nodes[owner], &self.nodes[(owner + 1) % 3])
    }

    /// Begins to move the slot of `key`: `from` sends those who ask for keys that it does not have to `to`.
    pub async fn begin_move(&self, key: &str, from: &Redis, to: &Redis) {
        let slot = self.slot(key).await;
        let (from_id, to_id) = (text(from, &["CLUSTER", "MYID"]).await, text(to, &["CLUSTER", "MYID"]).await);
        ask(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]).await;
        ask(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]).await;
    }

    /// Moves some keys of a slot in between [`Cluster::begin_move`] and [`Cluster::end_move`].
    pub async fn move_keys(&self, keys: &[&str], from: &Redis, to: &Redis) {
        let (host, port) = split(to);
        for key in keys {
            ask(from, &["MIGRATE", host, &port, key, "0", "5000"]).await;
        }
    }

    /// Ends a move, of which all keys have gone: `to` serves the slot of `key`.
    pub async fn end_move(&self, key: &str, to: &Redis) {
        let (slot, to_id) = (self.slot(key).await, text(to, &["CLUSTER", "MYID"]).await);
        ask(to, &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).await;
        for node in &self.nodes {
            ask(node, &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).await;
        }
    }

    async fn slot(&self, key: &str) -> String {
        let slot: u16 = redis::cmd("CLUSTER")
            .arg("KEYSLOT")
            .arg(key)
            .query_async(&mut self.nodes[0].connection().await)
            .await
            .expect("ask for a slot");
        slot.to_string()
    }
}

async fn three() -> Vec<Redis> {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let bus = free_port().to_string();
        let own = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "1000"];
        nodes.push(Redis::start(&[&own[..], AT_ONCE].concat()).await);
    }
    nodes
}

/// A primary, its replica, and three Sentinels that promote the replica half a second after the primary is gone.
#[derive(Debug)]
pub struct Sentinels {
    servers: [Redis; 2],
    ports: Vec<u16>,
    _sentinels: Vec<Child>,
    _folder: Folder,
}

impl Sentinels {
    /// Starts all and waits until the Sentinels know one another and the replica.
    ///
    /// # Panics
    /// If they do not within 20 s.
    pub async fn start() -> Self {
        let primary = Redis::start(AT_ONCE).await;
        let (host, port) = split(&primary);
        let replica = Redis::start(&["--replicaof", host, &port]).await;
        let folder = Folder::new("sentinels");
        let ports: Vec<_> = (0..3).map(|_| free_port()).collect();
        let sentinels: Vec<_> = ports.iter().map(|own| sentinel(&folder, *own, &port)).collect();
        let fleet = Self { servers: [primary, replica], ports, _sentinels: sentinels, _folder: folder };
        for own in &fleet.ports {
            let own = format!("redis://127.0.0.1:{own}");
            eventually("the Sentinels know one another", AGREED_TIMEOUT, async || {
                let client = redis::Client::open(own.as_str())?;
                let mut connection = client.get_multiplexed_async_connection().await?;
                let known: std::collections::HashMap<String, String> =
                    redis::cmd("SENTINEL").arg("MASTER").arg(MASTER).query_async(&mut connection).await?;
                let knows = |what: &str, count: &str| known.get(what).is_some_and(|known| known == count);
                let agreed = knows("num-other-sentinels", "2") && knows("num-slaves", "1");
                agreed.then_some(()).ok_or(anyhow::anyhow!("{known:?}"))
            })
            .await;
        }
        fleet
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        let addresses: Vec<_> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{}/{MASTER}", addresses.join(","))
    }

    /// The primary of the start.
    pub fn primary(&self) -> &Redis {
        &self.servers[0]
    }

    /// The replica of the start.
    pub fn replica(&self) -> &Redis {
        &self.servers[1]
    }
}

fn sentinel(folder: &Folder, own: u16, primary: &str) -> Child {
    let file = folder.join(&format!("{own}.conf"));
    let dir = folder.path().display();
    let settings = format!(
        "port {own}\nbind 127.0.0.1\ndir {dir}\nsentinel monitor {MASTER} 127.0.0.1 {primary} 2\n\
         sentinel down-after-milliseconds {MASTER} 500\nsentinel failover-timeout {MASTER} 3000\n"
    );
    fs::write(&file, settings).expect("write a Sentinel's settings");
    Child::start(&Spec {
        program: Path::new("redis-server"),
        args: vec![file.display().to_string(), "--sentinel".to_owned()],
        env: &[],
        inherit: Inherit::Everything,
        log: folder.join(&format!("sentinel-{own}.log")),
    })
}

/// A server that takes TLS from those who show a certificate of its own authority. Besides the default user it
/// knows those that the test gives it.
#[derive(Debug)]
pub struct Tls {
    redis: Redis,
    port: u16,
    folder: Folder,
}

impl Tls {
    /// Starts it with an ACL user, as `["replay", "on", ">secret", "~*", "+@all"]`.
    ///
    /// # Panics
    /// If it does not answer, or `openssl` can't make certificates.
    pub async fn start(user: &[&str]) -> Self {
        let folder = Folder::new("tls");
        authority(&folder, "ca");
        for name in ["server", "client"] {
            certificate(&folder, name);
        }
        let port = free_port();
        let path = |name: &str| folder.join(name).display().to_string();
        let (ca, cert, key, port_text) =
            (path("ca.crt"), path("server.crt"), path("server.key"), port.to_string());
        #[rustfmt::skip]
        let args = [
            &["--tls-port", &port_text, "--tls-ca-cert-file", &ca, "--tls-cert-file", &cert,
              "--tls-key-file", &key, "--tls-auth-clients", "yes", "--user"],
            user,
        ]
        .concat();
        let redis = Redis::start(&args).await;
        Self { redis, port, folder }
    }

    /// The settings of a replay service that is let in over TLS; who logs in is left to the test.
    pub fn settings(&self) -> config::Redis {
        config::Redis {
            tls_ca: Some(self.path("ca.crt")),
            tls_cert: Some(self.path("client.crt")),
            tls_key: Some(self.path("client.key")),
            ..settings(&format!("rediss://127.0.0.1:{}", self.port))
        }
    }

    /// The server itself, without TLS and with all rights.
    pub fn redis(&self) -> &Redis {
        &self.redis
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

fn split(redis: &Redis) -> (&'static str, String) {
    let address = redis.address();
    ("127.0.0.1", address.rsplit_once(':').expect("host and port").1.to_owned())
}

async fn ask(redis: &Redis, command: &[&str]) {
    let sent = cmd(command).exec_async(&mut redis.connection().await).await;
    sent.unwrap_or_else(|error| panic!("{command:?}: {error}"));
}

async fn text(redis: &Redis, command: &[&str]) -> String {
    let answer = cmd(command).query_async(&mut redis.connection().await).await;
    answer.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

async fn config_of(redis: &Redis, setting: &str) -> String {
    let command = cmd(&["CONFIG", "GET", setting]);
    let (_, value): (String, String) =
        command.query_async(&mut redis.connection().await).await.expect("ask for a setting");
    value
}

fn cmd(words: &[&str]) -> redis::Cmd {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command
}

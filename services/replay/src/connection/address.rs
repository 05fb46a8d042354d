//! `REDIS_URL` and its companions, read and checked before anything is connected.
use crate::config;
use dashstream_kit::config::Secret;
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, TlsCertificates, TlsMode,
    cluster::{ClusterClient, ClusterClientBuilder},
    io::tcp::TcpSettings,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::Mutex;

const EXPECTED: &str = "expected redis://[user:password@]host:port[/db], \
     redis+sentinel://[user:password@]host:port,host:port/<master name>[/db] or \
     redis+cluster://[user:password@]host:port,host:port (rediss for TLS)";
const SENTINEL_PORT: u16 = 26_379;

/// A setting of Redis that is wrong. Never repeats the URL: it may hold a password.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    #[error("REDIS_URL: {reason}; {EXPECTED}")]
    Url { reason: String },
    #[error("{setting}: read {}", path.display())]
    File { setting: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{setting}: {} holds no certificate in PEM form", path.display())]
    Pem { setting: &'static str, path: PathBuf },
    #[error("REDIS_TLS_CERT and REDIS_TLS_KEY need each other: one of them is missing")]
    HalfIdentity,
    #[error("REDIS_TLS_CA, REDIS_TLS_CERT and REDIS_TLS_KEY are for TLS: REDIS_URL must begin with rediss")]
    NoTls,
    #[error("the settings of Redis do not fit together")]
    Client(#[from] RedisError),
}

impl Wrong {
    fn url(reason: impl Into<String>) -> Self {
        Self::Url { reason: reason.into() }
    }
}

/// Whom to connect to. Cheap to clone.
#[derive(Clone)]
pub(super) enum Target {
    Node(Box<Client>),
    /// The client remembers its connections to the Sentinels, hence the lock.
    Sentinel(Arc<Mutex<SentinelClient>>),
    Cluster(Box<ClusterClient>),
}

impl Target {
    pub(super) fn new(config: &config::Redis) -> Result<(Self, i64), Wrong> {
        let address = Address::parse(config.url.expose())?;
        let certificates = certificates(config)?;
        if certificates.is_some() && !address.tls() {
            return Err(Wrong::NoTls);
        }
        let db = address.login().db();
        let target = match address {
            Address::Node(info) => Self::Node(Box::new(node(info, config, certificates)?)),
            Address::Sentinel { sentinels, master, .. } => {
                let client = sentinel(&sentinels, &master, config, certificates)?;
                Self::Sentinel(Arc::new(Mutex::new(client)))
            }
            Address::Cluster(nodes) => Self::Cluster(Box::new(cluster(nodes, config, certificates)?)),
        };
        Ok((target, db))
    }
}

fn node(
    info: ConnectionInfo,
    config: &config::Redis,
    certificates: Option<TlsCertificates>,
) -> Result<Client, Wrong> {
    let login = login(info.redis_settings().clone(), config);
    let info = info.set_redis_settings(login).set_tcp_settings(tcp());
    Ok(match certificates {
        Some(certificates) => Client::build_with_tls(info, certificates)?,
        None => Client::open(info)?,
    })
}

fn cluster(
    nodes: Vec<ConnectionInfo>,
    config: &config::Redis,
    certificates: Option<TlsCertificates>,
) -> Result<ClusterClient, Wrong> {
    let nodes: Vec<_> = nodes
        .into_iter()
        .map(|info| {
            let login = login(info.redis_settings().clone(), config);
            info.set_redis_settings(login)
        })
        .collect();
    let builder = ClusterClientBuilder::new(nodes)
        .tcp_settings(tcp())
        .connection_timeout(connect_timeout(config.timeout))
        .response_timeout(config.timeout)
        // The client would also send again what may have been executed.
        .retries(0);
    Ok(match certificates {
        Some(certificates) => builder.certs(certificates),
        None => builder,
    }
    .build()?)
}

fn sentinel(
    sentinels: &[ConnectionInfo],
    master: &str,
    config: &config::Redis,
    certificates: Option<TlsCertificates>,
) -> Result<SentinelClient, Wrong> {
    let addresses: Vec<ConnectionAddr> = sentinels.iter().map(|info| info.addr().clone()).collect();
    let first = sentinels.first().ok_or_else(|| Wrong::url("no Sentinel is named"))?;
    let tls = matches!(first.addr(), ConnectionAddr::TcpTls { .. });
    let login = login(first.redis_settings().clone(), config);
    let mut builder = SentinelClientBuilder::new(addresses, master, SentinelServerType::Master)?
        .set_client_to_redis_db(login.db())
        .set_client_to_redis_tcp_settings(tcp())
        .set_client_to_sentinel_tcp_settings(tcp());
    if let Some(username) = login.username() {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = login.password() {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(username) = text(config.sentinel_username.as_deref()) {
        builder = builder.set_client_to_sentinel_username(username);
    }
    if let Some(password) = text(config.sentinel_password.as_ref().map(Secret::expose)) {
        builder = builder.set_client_to_sentinel_password(password);
    }
    if tls {
        builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
    }
    if let Some(certificates) = certificates {
        builder = builder
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_certificates(certificates);
    }
    Ok(builder.build()?)
}

/// Reaching a node is quick or does not happen; a command may take longer.
pub(super) fn connect_timeout(command: Duration) -> Duration {
    command.min(Duration::from_secs(2))
}

/// Without it the system holds a small command back until the answer to the one before has come.
fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

/// The URL's login, or what the settings say instead.
fn login(mut login: RedisConnectionInfo, config: &config::Redis) -> RedisConnectionInfo {
    if let Some(username) = text(config.username.as_deref()) {
        login = login.set_username(username);
    }
    if let Some(password) = text(config.password.as_ref().map(Secret::expose)) {
        login = login.set_password(password);
    }
    login
}

/// Charts set a variable always, and leave it empty for none.
fn text(setting: Option<&str>) -> Option<&str> {
    setting.filter(|text| !text.is_empty())
}

fn certificates(config: &config::Redis) -> Result<Option<TlsCertificates>, Wrong> {
    let read = |setting: &'static str, path: &Option<PathBuf>| -> Result<Option<Vec<u8>>, Wrong> {
        let Some(path) = path.as_ref().filter(|path| !path.as_os_str().is_empty()) else { return Ok(None) };
        match std::fs::read(path) {
            Ok(bytes) if bytes.windows(11).any(|window| window == b"-----BEGIN ") => Ok(Some(bytes)),
            Ok(_) => Err(Wrong::Pem { setting, path: path.clone() }),
            Err(source) => Err(Wrong::File { setting, path: path.clone(), source }),
        }
    };
    let root_cert = read("REDIS_TLS_CA", &config.tls_ca)?;
    let client_cert = read("REDIS_TLS_CERT", &config.tls_cert)?;
    let client_tls = match (client_cert, read("REDIS_TLS_KEY", &config.tls_key)?) {
        (Some(client_cert), Some(client_key)) => Some(ClientTlsConfig { client_cert, client_key }),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => return Err(Wrong::HalfIdentity),
    };
    let any = root_cert.is_some() || client_tls.is_some();
    Ok(any.then_some(TlsCertificates { client_tls, root_cert }))
}

/// What the URL says.
#[derive(Debug)]
enum Address {
    Node(ConnectionInfo),
    Sentinel { sentinels: Vec<ConnectionInfo>, master: String },
    Cluster(Vec<ConnectionInfo>),
}

impl Address {
    fn parse(url: &str) -> Result<Self, Wrong> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| Wrong::url("it has no scheme"))?;
        let (single, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        match (single, kind) {
            ("redis" | "rediss", "") | ("redis", "unix") | ("unix", "") => Ok(Self::Node(one(url)?)),
            ("redis" | "rediss", "sentinel") => {
                let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
                let (master, db) = path.split_once('/').unwrap_or((path, ""));
                if master.is_empty() {
                    return Err(Wrong::url("the master's name is missing"));
                }
                let sentinels = several(single, authority, db, SENTINEL_PORT)?;
                Ok(Self::Sentinel { sentinels, master: master.to_owned() })
            }
            ("redis" | "rediss", "cluster") => {
                let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
                if !matches!(path, "" | "0") {
                    return Err(Wrong::url("a cluster has no databases but 0"));
                }
                Ok(Self::Cluster(several(single, authority, "", 6_379)?))
            }
            _ => Err(Wrong::url(format!("{scheme:?} is not a scheme of Redis"))),
        }
    }

    /// One of those named; they share what is asked of it.
    fn any(&self) -> &ConnectionInfo {
        match self {
            Self::Node(info) => info,
            Self::Sentinel { sentinels: nodes, .. } | Self::Cluster(nodes) => &nodes[0],
        }
    }

    fn login(&self) -> &RedisConnectionInfo {
        self.any().redis_settings()
    }

    fn tls(&self) -> bool {
        matches!(self.any().addr(), ConnectionAddr::TcpTls { .. })
    }
}

/// The client's texts name what is wrong and not the URL.
fn one(url: &str) -> Result<ConnectionInfo, Wrong> {
    url.into_connection_info().map_err(|error| Wrong::url(error.to_string()))
}

/// Hosts separated by commas, as the URLs of single nodes, so that the client reads what it is used to. At
/// least one.
fn several(scheme: &str, authority: &str, db: &str, port: u16) -> Result<Vec<ConnectionInfo>, Wrong> {
    let (login, hosts) = authority.rsplit_once('@').map_or(("", authority), |(login, hosts)| (login, hosts));
    let at = if login.is_empty() { "" } else { "@" };
    hosts
        .split(',')
        .map(|host| {
            if host.is_empty() {
                return Err(Wrong::url("a host is missing"));
            }
            let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            let host = if has_port { host.to_owned() } else { format!("{host}:{port}") };
            one(&format!("{scheme}://{login}{at}{host}/{db}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(address: &Address) -> Vec<String> {
        match address {
            Address::Node(info) => vec![info.addr().to_string()],
            Address::Sentinel { sentinels: nodes, .. } | Address::Cluster(nodes) => {
                nodes.iter().map(|info| info.addr().to_string()).collect()
            }
        }
    }

    #[test]
    fn every_form_is_understood() {
        let node = Address::parse("redis://h:1/2").unwrap();
        assert!(matches!(&node, Address::Node(_)) && !node.tls());
        assert_eq!((addresses(&node), node.login().db()), (vec!["h:1".to_owned()], 2));
        assert!(Address::parse("rediss://h").unwrap().tls());
        assert_eq!(addresses(&Address::parse("redis+unix:///run/redis.sock").unwrap()), ["/run/redis.sock"]);

        let sentinel = Address::parse("redis+sentinel://us%40er:p%3Aw@a,b:2,[::1]:3/main/4").unwrap();
        assert_eq!(addresses(&sentinel), ["a:26379", "b:2", "::1:3"]);
        let login = sentinel.login();
        assert_eq!((login.username(), login.password(), login.db()), (Some("us@er"), Some("p:w"), 4));
        assert!(matches!(sentinel, Address::Sentinel { master, .. } if master == "main"));

        let cluster = Address::parse("rediss+cluster://:secret@a:1,b/").unwrap();
        assert_eq!((addresses(&cluster), cluster.tls()), (vec!["a:1".into(), "b:6379".into()], true));
        assert_eq!(cluster.login().password(), Some("secret"));
    }

    #[test]
    fn what_is_wrong_is_named_and_the_password_is_not() {
        for (url, reason) in [
            ("localhost:6379", "no scheme"),
            ("http://:hunter2@h", "\"http\" is not a scheme of Redis"),
            ("redis+sentinel://:hunter2@h:1", "the master's name is missing"),
            ("redis+sentinel://:hunter2@h:1/main/x", "Invalid database number"),
            ("redis+cluster://:hunter2@h:1,,i:2", "a host is missing"),
            ("redis+cluster://:hunter2@h:1/3", "no databases but 0"),
            ("redis://:hunter2@h/x", "Invalid database number"),
            ("redis://:hunter2@h:port", "did not parse"),
        ] {
            let error = Address::parse(url).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains(reason) && text.contains("redis+sentinel://"), "{url}: {text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}

//! How Redis is reached: one server, the primary that Sentinels name, or a cluster.
//!
//! A connection that is lost is made anew by the next command that needs it; the command that lost it fails,
//! because nobody knows whether it was executed. The client's own connection manager is not used: it asks no
//! Sentinel, and after a refused password it never tries again.
use crate::config;
use dashstream_core::backoff::Backoff;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult,
    ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterConfig,
    cluster_async::ClusterConnection,
};
use std::{
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep_until, timeout};

mod address;
mod cluster;

use address::{Target, connect_timeout};

pub use address::Wrong;

/// Between attempts to connect. The cap bounds how late a Redis that came back is noticed.
const BACKOFF: Backoff = Backoff { base: Duration::from_millis(20), cap: Duration::from_secs(1) };

/// The connections of one process. Appends and reads have one each, so that neither waits for the other's
/// answers.
#[derive(Clone, Debug)]
pub struct Connections {
    pub appends: Connection,
    pub reads: Connection,
}

impl Connections {
    /// Connects when first used: Redis may be away.
    ///
    /// # Errors
    /// When a setting is wrong, or a file that it names can't be read.
    pub fn new(config: &config::Redis) -> Result<Self, Wrong> {
        Ok(Self { appends: Connection::new(config)?, reads: Connection::new(config)? })
    }
}

/// A handle on one connection, shared by all its clones.
#[derive(Clone)]
pub struct Connection {
    line: Arc<Line>,
    repeating: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("repeating", &self.repeating).finish_non_exhaustive()
    }
}

impl Connection {
    fn new(config: &config::Redis) -> Result<Self, Wrong> {
        let (target, db) = Target::new(config)?;
        let dialer = Dialer { target, patience: config.timeout };
        let attempt = Mutex::new(dialer.clone().dial(Duration::ZERO));
        let line = Line { dialer, db, attempt, failures: AtomicU32::new(0) };
        Ok(Self { line: Arc::new(line), repeating: false })
    }

    /// A handle for pipelines that may be executed twice. In a cluster a slot may move while a pipeline is under
    /// way; what this handle sends is then sent again to the new node from the beginning, without it the
    /// pipeline fails. Nothing is sent twice after a lost connection.
    #[must_use]
    pub fn repeating(self) -> Self {
        Self { repeating: true, ..self }
    }

    /// Loads a script where calls with `key` are executed.
    ///
    /// # Errors
    /// When the node that serves `key` does not take it.
    pub async fn load(&self, script: &redis::Script, key: &str) -> RedisResult<()> {
        let (attempt, link) = self.line.link().await?;
        let answer = match link {
            Link::Node(mut node) => script.prepare_invoke().load_async(&mut node).await.map(|_| ()),
            Link::Cluster(mut nodes) => {
                cluster::load(&mut nodes, script, key, self.line.dialer.patience).await
            }
        };
        self.line.judge(&attempt, answer.as_ref().err());
        answer
    }

    /// What each node that takes writes answers, by its name.
    pub(crate) async fn every_primary(
        &self,
        command: &Cmd,
    ) -> RedisResult<Vec<(String, RedisResult<Value>)>> {
        let (attempt, link) = self.line.link().await?;
        let answers = match link {
            Link::Node(mut node) => match node.send_packed_command(command).await {
                Err(error) if !matches!(error.kind(), ErrorKind::Server(_)) => Err(error),
                answer => Ok(vec![("redis".to_owned(), answer)]),
            },
            Link::Cluster(mut nodes) => cluster::every_primary(&mut nodes, command).await,
        };
        self.line.judge(&attempt, answers.as_ref().err());
        answers
    }

    async fn command(&self, command: &Cmd) -> RedisResult<Value> {
        let (attempt, link) = self.line.link().await?;
        let answer = match link {
            Link::Node(mut node) => node.send_packed_command(command).await,
            Link::Cluster(mut nodes) => {
                cluster::command(&mut nodes, command, self.line.dialer.patience).await
            }
        };
        let answer = answer.and_then(Value::extract_error);
        self.line.judge(&attempt, answer.as_ref().err());
        answer
    }

    async fn pipeline(&self, pipeline: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let (attempt, link) = self.line.link().await?;
        let answers = match link {
            Link::Node(mut node) => node.send_packed_commands(pipeline, offset, count).await,
            Link::Cluster(mut nodes) => {
                let patience = if self.repeating { self.line.dialer.patience } else { Duration::ZERO };
                cluster::pipeline(&mut nodes, pipeline, (offset, count), patience).await
            }
        };
        match &answers {
            // Each command's error is an answer of its own.
            Ok(answers) => self.line.judge(&attempt, answers.iter().find_map(read_only).as_ref()),
            Err(error) => self.line.judge(&attempt, Some(error)),
        }
        answers
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        self.command(command).boxed()
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.pipeline(pipeline, offset, count).boxed()
    }

    fn get_db(&self) -> i64 {
        self.line.db
    }
}

/// An established connection.
#[derive(Clone)]
enum Link {
    Node(MultiplexedConnection),
    Cluster(ClusterConnection),
}

/// One attempt to connect, awaited by all who need it.
type Attempt = Shared<BoxFuture<'static, RedisResult<Link>>>;

/// The connection of now, and how to get the next.
struct Line {
    dialer: Dialer,
    db: i64,
    attempt: Mutex<Attempt>,
    /// Attempts that brought no answer, since the last one that did.
    failures: AtomicU32,
}

impl Line {
    fn attempt(&self) -> Attempt {
        self.attempt.lock().expect("nobody panics with this lock").clone()
    }

    async fn link(&self) -> RedisResult<(Attempt, Link)> {
        let attempt = self.attempt();
        match attempt.clone().await {
            Ok(link) => Ok((attempt, link)),
            Err(error) => {
                self.renew(&attempt);
                Err(error)
            }
        }
    }

    /// Looks at what came of a command: a link that can't be used on is given up.
    fn judge(&self, attempt: &Attempt, error: Option<&RedisError>) {
        match error {
            Some(error) if is_lost(error) || self.dialer.is_off(error) => self.renew(attempt),
            Some(_) | None => self.failures.store(0, Ordering::Relaxed),
        }
    }

    /// Commands on the old link go on; it is closed with the last of them.
    fn renew(&self, old: &Attempt) {
        let mut current = self.attempt.lock().expect("nobody panics with this lock");
        if current.ptr_eq(old) {
            let failures = self.failures.fetch_add(1, Ordering::Relaxed);
            *current = self.dialer.clone().dial(BACKOFF.delay(failures, rand::random()));
        }
    }
}

/// Makes connections.
#[derive(Clone)]
struct Dialer {
    target: Target,
    /// How long a command may take.
    patience: Duration,
}

impl Dialer {
    fn dial(self, delay: Duration) -> Attempt {
        let begin = Instant::now() + delay;
        let attempt = async move {
            sleep_until(begin).await;
            // Sentinels are asked one after the other, and each may be away.
            let patience = connect_timeout(self.patience) + self.patience;
            match timeout(patience, self.connect()).await {
                Ok(connected) => connected,
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "connect to redis").into()),
            }
        };
        attempt.boxed().shared()
    }

    async fn connect(&self) -> RedisResult<Link> {
        let connect = connect_timeout(self.patience);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(connect))
            .set_response_timeout(Some(self.patience));
        let client = match &self.target {
            Target::Node(client) => Client::clone(client),
            Target::Sentinel(sentinel) => sentinel.lock().await.async_get_client().await?,
            Target::Cluster(client) => {
                let config =
                    ClusterConfig::new().set_connection_timeout(connect).set_response_timeout(self.patience);
                let cluster = client.get_async_connection_with_config(config).await?;
                tracing::info!("connected to the redis cluster");
                return Ok(Link::Cluster(cluster));
            }
        };
        let address = client.get_connection_info().addr();
        let node = client.get_multiplexed_async_connection_with_config(&config).await;
        let node = node.map_err(|error| located(error, &address.to_string()))?;
        tracing::info!(%address, "connected to redis");
        Ok(Link::Node(node))
    }

    /// Whether the link itself is of no use after this error. A cluster's looks after its nodes, unless it has
    /// none left.
    fn is_off(&self, error: &RedisError) -> bool {
        match self.target {
            Target::Node(_) | Target::Sentinel(_) => error.is_unrecoverable_error(),
            Target::Cluster(_) => error.kind() == ErrorKind::ClusterConnectionNotFound,
        }
    }
}

/// Whether another node may have taken over: this one is a replica, or gives no answer while its connection
/// stands.
fn is_lost(error: &RedisError) -> bool {
    error.is_timeout() || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly)
}

fn read_only(answer: &Value) -> Option<RedisError> {
    let Value::ServerError(error) = answer else { return None };
    (error.kind() == Some(ServerErrorKind::ReadOnly)).then(|| error.clone().into())
}

/// The client does not say where a login was refused, nor which settings it is made of.
fn located(error: RedisError, address: &str) -> RedisError {
    if error.kind() != ErrorKind::AuthenticationFailed {
        return error;
    }
    let what = "redis refuses the login (REDIS_USERNAME, REDIS_PASSWORD or the URL's)";
    (ErrorKind::AuthenticationFailed, what, address.to_owned()).into()
}

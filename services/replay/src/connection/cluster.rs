//! Commands to a cluster, whose slots move between nodes.
//!
//! The client is told not to try again on its own, because it would do so after a lost connection as well,
//! when nobody knows whether the command was executed. What a node *refused* was not, so it is sent again
//! here.
use dashstream_core::backoff::Backoff;
use redis::{
    Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value,
    aio::ConnectionLike,
    cluster_async::ClusterConnection,
    cluster_routing::{MultipleNodeRoutingInfo, Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr},
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const BACKOFF: Backoff = Backoff { base: Duration::from_millis(10), cap: Duration::from_millis(200) };

/// The answer of the node that serves the slot now.
pub(super) async fn command(
    connection: &mut ClusterConnection,
    command: &Cmd,
    patience: Duration,
) -> RedisResult<Value> {
    let mut refusals = Refusals::new(patience);
    loop {
        let answer = match refusals.node.take() {
            None => connection.req_packed_command(command).await,
            Some(node) => {
                let mut pipeline = redis::pipe();
                pipeline.add_command(command.clone());
                asking(connection, &pipeline, node).await.and_then(only)
            }
        };
        match answer {
            Err(error) if refusals.another(&error).await => {}
            answer => return answer,
        }
    }
}

/// The answers to a pipeline. A refusal is of the pipeline as a whole, although its first commands may have been
/// executed: a slot can move between two of them.
pub(super) async fn pipeline(
    connection: &mut ClusterConnection,
    pipeline: &Pipeline,
    (offset, count): (usize, usize),
    patience: Duration,
) -> RedisResult<Vec<Value>> {
    let mut refusals = Refusals::new(patience);
    loop {
        let answer = match refusals.node.take() {
            // A transaction cannot be asked for command by command: it waits for the end of the migration.
            Some(node) if offset == 0 => asking(connection, pipeline, node).await,
            Some(_) | None => connection.req_packed_commands(pipeline, offset, count).await,
        };
        match answer {
            Err(error) if refusals.another(&error).await => {}
            answer => return answer,
        }
    }
}

/// Loads a script on the node that serves `key`, and on the other primaries as far as they can be reached: a
/// slot in migration is served by two.
pub(super) async fn load(
    connection: &mut ClusterConnection,
    script: &redis::Script,
    key: &str,
    patience: Duration,
) -> RedisResult<()> {
    let route = Route::with_key(key, SlotAddr::Master);
    let route = RoutingInfo::SingleNode(SingleNodeRoutingInfo::SpecificNode(route));
    let mut refusals = Refusals::new(patience);
    while let Err(error) = load_at(connection, script, route.clone()).await {
        if !refusals.another(&error).await {
            return Err(error);
        }
    }
    let others = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
    load_at(connection, script, others).await.ok();
    Ok(())
}

async fn load_at(
    connection: &mut ClusterConnection,
    script: &redis::Script,
    route: RoutingInfo,
) -> RedisResult<()> {
    script.prepare_invoke().load_async(&mut Routed { connection, route }).await.map(|_| ())
}

/// What each primary answers, by its address.
pub(super) async fn every_primary(
    connection: &mut ClusterConnection,
    command: &Cmd,
) -> RedisResult<Vec<(String, RedisResult<Value>)>> {
    let route = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
    let answers = connection.route_command(command.clone(), route).await?;
    let answers = answers.into_map_iter().map_err(|_| unexpected())?;
    answers
        .map(|(node, answer)| Ok((redis::from_redis_value(node)?, answer.extract_error())))
        .collect::<RedisResult<_>>()
}

/// Whether a node said no before it did anything.
fn is_refusal(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, BusyLoading, ClusterDown, MasterDown, Moved, ReadOnly, TryAgain};
    matches!(
        error.kind(),
        ErrorKind::ClusterConnectionNotFound
            | ErrorKind::Server(Ask | BusyLoading | ClusterDown | MasterDown | Moved | ReadOnly | TryAgain)
    )
}

/// The refusals of one command, and how long they are put up with.
struct Refusals {
    until: Instant,
    count: u32,
    /// The node that a slot in migration is moving to, to be asked next.
    node: Option<SingleNodeRoutingInfo>,
}

impl Refusals {
    fn new(patience: Duration) -> Self {
        Self { until: Instant::now() + patience, count: 0, node: None }
    }

    /// Whether to try again, after a pause.
    async fn another(&mut self, error: &RedisError) -> bool {
        let delay = BACKOFF.delay(self.count, rand::random());
        self.count += 1;
        if !is_refusal(error) || Instant::now() + delay > self.until {
            return false;
        }
        // The node to ask is one address among those of the cluster; a new one, that serves no slot yet, is
        // not among them, and then the slot is waited for.
        let ask = error.kind() == ErrorKind::Server(ServerErrorKind::Ask);
        self.node = error.redirect_node().filter(|_| ask).and_then(|(address, _)| {
            let (host, port) = address.rsplit_once(':')?;
            let host = host.trim_matches(['[', ']']).to_owned();
            Some(SingleNodeRoutingInfo::ByAddress { host, port: port.parse().ok()? })
        });
        if self.node.is_none() {
            sleep(delay).await;
        }
        true
    }
}

/// Sends commands to a node that does not serve their slot yet: each has to say that it knows.
async fn asking(
    connection: &mut ClusterConnection,
    pipeline: &Pipeline,
    node: SingleNodeRoutingInfo,
) -> RedisResult<Vec<Value>> {
    let mut asking = redis::pipe();
    for command in pipeline.cmd_iter() {
        asking.cmd("ASKING").add_command(command.clone());
    }
    let count = asking.len();
    let answers = connection.route_pipeline(asking, 0, count, node).await?;
    Ok(answers.into_iter().skip(1).step_by(2).collect())
}

fn only(mut answers: Vec<Value>) -> RedisResult<Value> {
    answers.pop().ok_or_else(unexpected)?.extract_error()
}

fn unexpected() -> RedisError {
    (ErrorKind::UnexpectedReturnType, "not the answer of a cluster").into()
}

/// A cluster that sends everything along one route.
struct Routed<'a> {
    connection: &'a mut ClusterConnection,
    route: RoutingInfo,
}

impl ConnectionLike for Routed<'_> {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> redis::RedisFuture<'a, Value> {
        Box::pin(self.connection.route_command(command.clone(), self.route.clone()))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> redis::RedisFuture<'a, Vec<Value>> {
        self.connection.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        0
    }
}

//! The replay service's connection on Redis as it is run in production.
use dashstream_replay::{
    config,
    connection::{Connection, Connections},
    eviction::{Refused, check_eviction},
};
use dashstream_tests::{
    Redis, eventually,
    redis_fleet::{Cluster, Sentinels, Tls, secret, settings},
};
use redis::{ErrorKind, RedisResult, Script, ServerErrorKind};
use std::time::Duration;

/// Failing over takes the Sentinels some 1.5 s, noticing it one second more; the rest is for a busy machine.
const FAILED_OVER: Duration = Duration::from_secs(20);

fn connect(settings: &config::Redis) -> Connections {
    Connections::new(settings).expect("settings")
}

async fn set(connection: &Connection, key: &str, value: &str) -> RedisResult<()> {
    redis::cmd("SET").arg(key).arg(value).exec_async(&mut connection.clone()).await
}

async fn get(connection: &Connection, key: &str) -> RedisResult<Option<String>> {
    redis::cmd("GET").arg(key).query_async(&mut connection.clone()).await
}

/// Appends to one key and counts in another, as the store's scripts do.
fn script() -> Script {
    Script::new("redis.call('APPEND', KEYS[2], ARGV[1]) return redis.call('INCR', KEYS[1])")
}

async fn calls(connection: &Connection, tag: &str, args: &[&str]) -> RedisResult<Vec<RedisResult<u64>>> {
    let mut pipeline = redis::pipe();
    pipeline.ignore_errors();
    for arg in args {
        pipeline.cmd("EVALSHA").arg(script().get_hash()).arg(2);
        pipeline.arg(format!("{{{tag}}}:meta")).arg(format!("{{{tag}}}:log")).arg(arg);
    }
    pipeline.query_async(&mut connection.clone()).await
}

async fn counts(connection: &Connection, tag: &str, args: &[&str]) -> Vec<u64> {
    let answers = calls(connection, tag, args).await.expect("answers");
    answers.into_iter().map(|answer| answer.expect("a count")).collect()
}

/// A pipeline of scripts that the server does not know, then does, and what it left behind.
async fn round(connections: &Connections, tag: &str) {
    let unknown = calls(&connections.appends, tag, &["x"]).await.expect("an answer").remove(0);
    let kind = unknown.expect_err("nobody has loaded it").kind();
    assert_eq!(kind, ErrorKind::Server(ServerErrorKind::NoScript));
    connections.appends.load(&script(), &format!("{{{tag}}}:meta")).await.expect("load");
    assert_eq!(counts(&connections.appends, tag, &["a", "b", "c"]).await, [1, 2, 3]);
    let log = get(&connections.reads, &format!("{{{tag}}}:log")).await.expect("read");
    assert_eq!(log.as_deref(), Some("abc"));
}

#[tokio::test]
async fn records_are_written_and_read_on_one_server() {
    let redis = Redis::start(&[]).await;
    round(&connect(&settings(&redis.url())), "one").await;
    let connections = connect(&settings(&redis.socket_url()));
    assert_eq!(get(&connections.reads, "{one}:log").await.expect("read").as_deref(), Some("abc"));
}

#[tokio::test]
async fn records_are_written_and_read_on_every_node_of_a_cluster() {
    let cluster = Cluster::start().await;
    let connections = connect(&settings(&cluster.url()));
    let mut owners = std::collections::BTreeSet::new();
    for tag in ["a", "b", "c", "d", "e", "f"] {
        let key = format!("{{{tag}}}:count");
        set(&connections.appends, &key, tag).await.expect("write");
        assert_eq!(get(&connections.reads, &key).await.expect("read").as_deref(), Some(tag));
        owners.insert(cluster.owner_and_other(&key).await.0.address());
    }
    assert_eq!(owners.len(), 3, "the keys lie on all nodes");
    round(&connections, "a").await;
}

#[tokio::test]
async fn a_slot_that_moves_is_followed() {
    let cluster = Cluster::start().await;
    let connections = connect(&settings(&cluster.url()));
    let (from, to) = cluster.owner_and_other("{moving}:meta").await;
    round(&connections, "moving").await;
    set(&connections.appends, "{moving}:held", "here").await.expect("write");

    cluster.begin_move("{moving}:meta", from, to).await;
    cluster.move_keys(&["{moving}:meta", "{moving}:log"], from, to).await;
    assert_eq!(get(&connections.reads, "{moving}:held").await.expect("read").as_deref(), Some("here"));
    set(&connections.appends, "{moving}:new", "there").await.expect("write at the new node");
    let appends = connections.appends.clone().repeating();
    assert_eq!(counts(&appends, "moving", &["d", "e"]).await, [4, 5]);
    let refused = calls(&connections.appends, "moving", &["f"]).await.expect_err("not sent again unasked");
    assert_eq!(refused.kind(), ErrorKind::Server(ServerErrorKind::Ask));

    cluster.move_keys(&["{moving}:held"], from, to).await;
    cluster.end_move("{moving}:meta", to).await;
    assert_eq!(get(&connections.reads, "{moving}:held").await.expect("read").as_deref(), Some("here"));
    assert_eq!(counts(&appends, "moving", &["f"]).await, [6]);
    assert_eq!(get(&connections.reads, "{moving}:log").await.expect("read").as_deref(), Some("abcdef"));
}

#[tokio::test]
async fn a_cluster_that_goes_away_is_used_again_when_it_is_back() {
    let cluster = Cluster::start().await;
    let connections = connect(&settings(&cluster.url()));
    let key = "{back}:meta";
    set(&connections.appends, key, "v").await.expect("write");
    let (owner, _) = cluster.owner_and_other(key).await;
    let all: Vec<_> = cluster.nodes().iter().collect();
    for gone in [vec![owner], all] {
        gone.iter().for_each(|node| node.kill());
        set(&connections.appends, key, "v").await.expect_err("nobody serves it");
        for node in gone {
            node.start_again().await;
        }
        eventually("a write", FAILED_OVER, async || set(&connections.appends, key, "v").await).await;
        eventually("a pipeline", FAILED_OVER, async || calls(&connections.appends, "back", &["a"]).await)
            .await;
    }
}

#[tokio::test]
async fn a_replica_that_takes_over_in_a_cluster_is_found() {
    let cluster = Cluster::start_with_replicas().await;
    let short = config::Redis { timeout: Duration::from_millis(500), ..settings(&cluster.url()) };
    let connections = connect(&short);
    let mut gone = std::collections::BTreeSet::new();
    for (tag, leave) in [("hung", Redis::pause as fn(&Redis)), ("dead", Redis::kill)] {
        let key = format!("{{{tag}}}:meta");
        let (owner, _) = cluster.owner_and_other(&key).await;
        assert!(gone.insert(owner.address()), "one after the other");
        set(&connections.appends, &key, "before").await.expect("write");
        leave(owner);
        eventually("a write at the replica", FAILED_OVER, async || {
            set(&connections.appends, &key, "after").await
        })
        .await;
        eventually("a script there", FAILED_OVER, async || {
            connections.appends.load(&script(), &key).await?;
            calls(&connections.appends, tag, &["a"]).await
        })
        .await;
    }
}

#[tokio::test]
async fn the_new_primary_is_found_when_the_old_one_dies() {
    let fleet = Sentinels::start().await;
    let connections = connect(&settings(&fleet.url()));
    round(&connections, "before").await;
    fleet.primary().kill();
    eventually("a write at the new primary", FAILED_OVER, async || set(&connections.appends, "k", "v").await)
        .await;
    eventually("a read there", FAILED_OVER, async || {
        let value = get(&connections.reads, "k").await?;
        if value.as_deref() == Some("v") { Ok(()) } else { Err(anyhow::anyhow!("{value:?}")) }
    })
    .await;
    let direct: String =
        redis::cmd("GET").arg("k").query_async(&mut fleet.replica().connection().await).await.expect("read");
    assert_eq!(direct, "v");
}

#[tokio::test]
async fn a_primary_that_hangs_is_left_for_the_new_one() {
    let fleet = Sentinels::start().await;
    let mut settings = settings(&fleet.url());
    settings.timeout = Duration::from_millis(500);
    let connections = connect(&settings);
    set(&connections.appends, "k", "old").await.expect("write");
    fleet.primary().pause();
    eventually("a write at the new primary", FAILED_OVER, async || {
        set(&connections.appends, "k", "new").await
    })
    .await;
    fleet.primary().resume();
    assert_eq!(get(&connections.appends, "k").await.expect("read").as_deref(), Some("new"));
}

#[tokio::test]
async fn a_connection_to_a_node_that_became_a_replica_is_left() {
    let [redis, other] = [Redis::start(&[]).await, Redis::start(&[]).await];
    let connections = connect(&settings(&redis.url()));
    set(&connections.appends, "k", "v").await.expect("write");
    let id = client_id(&connections.appends).await;
    let (host, port) =
        other.address().rsplit_once(':').map(|(h, p)| (h.to_owned(), p.to_owned())).expect("both");
    let mut direct = redis.connection().await;
    redis::cmd("REPLICAOF").arg(host).arg(port).exec_async(&mut direct).await.expect("demote");
    let mut pipeline = redis::pipe();
    pipeline.ignore_errors().cmd("SET").arg("k").arg("w");
    let answers: Vec<RedisResult<()>> =
        pipeline.query_async(&mut connections.appends.clone()).await.expect("an answer");
    let refused = answers[0].as_ref().expect_err("it is a replica");
    assert_eq!(refused.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly));
    assert_ne!(client_id(&connections.appends).await, id, "another connection");
}

async fn client_id(connection: &Connection) -> u64 {
    redis::cmd("CLIENT").arg("ID").query_async(&mut connection.clone()).await.expect("an id")
}

#[tokio::test]
async fn redis_may_come_later_and_go_and_come_back() {
    let redis = Redis::start(&[]).await;
    redis.kill();
    let connections = connect(&settings(&redis.url()));
    set(&connections.appends, "k", "v").await.expect_err("there is no server");
    for _ in 0..2 {
        redis.start_again().await;
        eventually("a write", Duration::from_secs(10), async || set(&connections.appends, "k", "v").await)
            .await;
        redis.kill();
        set(&connections.appends, "k", "v").await.expect_err("there is no server");
    }
}

#[tokio::test]
async fn a_command_without_an_answer_is_not_sent_again() {
    let redis = Redis::start(&[]).await;
    let cluster = Cluster::start().await;
    let (node, _) = cluster.owner_and_other("count").await;
    for (url, redis) in [(redis.url(), &redis), (cluster.url(), node)] {
        let connections = connect(&config::Redis { timeout: Duration::from_millis(400), ..settings(&url) });
        set(&connections.appends, "count", "0").await.expect("write");
        redis.pause();
        let unanswered = redis::cmd("INCR").arg("count").exec_async(&mut connections.appends.clone()).await;
        assert!(unanswered.expect_err("it hangs").is_timeout(), "{url}");
        redis.resume();
        eventually("an answer", Duration::from_secs(10), async || {
            set(&connections.appends, "{count}", "").await
        })
        .await;
        assert_eq!(get(&connections.appends, "count").await.expect("read").as_deref(), Some("1"), "{url}");
    }
}

const USER: [&str; 5] = ["replay", "on", ">right", "~*", "+@all"];

#[tokio::test]
async fn records_are_written_and_read_over_tls_by_a_user() {
    let tls = Tls::start(&USER).await;
    let mut settings = tls.settings();
    settings.username = Some("replay".into());
    settings.password = Some(secret("right"));
    let connections = connect(&settings);
    round(&connections, "tls").await;
    let who: String =
        redis::cmd("ACL").arg("WHOAMI").query_async(&mut connections.reads.clone()).await.expect("a name");
    assert_eq!(who, "replay");

    let stranger = config::Redis { tls_ca: None, ..settings.clone() };
    set(&connect(&stranger).appends, "k", "v").await.expect_err("the system does not know the authority");
    let nobody = config::Redis { tls_cert: None, tls_key: None, ..settings };
    set(&connect(&nobody).appends, "k", "v").await.expect_err("the server asks for a certificate");
}

#[tokio::test]
async fn a_wrong_password_is_said_clearly_and_may_be_corrected_on_the_server() {
    let tls = Tls::start(&USER).await;
    let mut settings = tls.settings();
    settings.username = Some("replay".into());
    settings.password = Some(secret("wrong-password"));
    let connections = connect(&settings);
    let error = set(&connections.appends, "k", "v").await.expect_err("the password is wrong");
    let text = format!("{error} {error:?} {connections:?} {settings:?}");
    assert!(text.contains("refuses the login (REDIS_USERNAME, REDIS_PASSWORD"), "{text}");
    assert!(text.contains("127.0.0.1:") && !text.contains("wrong-password"), "{text}");

    let mut direct = tls.redis().connection().await;
    let correct = redis::cmd("ACL").arg(&["SETUSER", "replay", ">wrong-password"]).take();
    correct.exec_async(&mut direct).await.expect("add the password");
    eventually("a write", Duration::from_secs(10), async || set(&connections.appends, "k", "v").await).await;
}

#[tokio::test]
async fn an_evicting_redis_is_refused_unless_it_is_allowed_by_name() {
    let redis = Redis::start(&["--maxmemory-policy", "allkeys-lru"]).await;
    let connection = connect(&settings(&redis.url())).reads;
    let refused = check_eviction(&connection, false).await.expect_err("it deletes on its own");
    assert!(refused.is_certain());
    let text = refused.to_string();
    for part in ["allkeys-lru", "deletes records", "noeviction", "REDIS_ALLOW_EVICTION=true"] {
        assert!(text.contains(part), "{text}");
    }
    check_eviction(&connection, true).await.expect("allowed");

    set_policy(&redis, "noeviction").await;
    check_eviction(&connection, false).await.expect("safe now");
    redis.kill();
    let away = check_eviction(&connection, false).await.expect_err("nobody answers");
    assert!(matches!(away, Refused::Away(_)) && !away.is_certain());
}

#[tokio::test]
async fn one_evicting_node_of_a_cluster_is_found() {
    let cluster = Cluster::start().await;
    let connection = connect(&settings(&cluster.url())).reads;
    check_eviction(&connection, false).await.expect("all are safe");
    let odd = &cluster.nodes()[1];
    set_policy(odd, "volatile-lfu").await;
    let refused = check_eviction(&connection, false).await.expect_err("one deletes on its own").to_string();
    assert!(refused.contains(&odd.address()) && refused.contains("volatile-lfu"), "{refused}");
}

#[tokio::test]
async fn the_policy_is_learnt_with_few_rights() {
    let tls = Tls::start(&["replay", "on", ">right", "~*", "+@all", "-config"]).await;
    let mut settings = tls.settings();
    settings.username = Some("replay".into());
    settings.password = Some(secret("right"));
    let connection = connect(&settings).reads;
    check_eviction(&connection, false).await.expect("INFO says so");
    set_policy(tls.redis(), "allkeys-random").await;
    let refused = check_eviction(&connection, false).await.expect_err("INFO says so");
    assert!(refused.is_certain() && refused.to_string().contains("allkeys-random"));

    let forbid = redis::cmd("ACL").arg(&["SETUSER", "replay", "-info"]).take();
    forbid.exec_async(&mut tls.redis().connection().await).await.expect("forbid");
    let unknown = check_eviction(&connection, false).await.expect_err("nobody says");
    assert!(matches!(unknown, Refused::Unknown { .. }), "{unknown}");
}

async fn set_policy(redis: &Redis, policy: &str) {
    let set = redis::cmd("CONFIG").arg(&["SET", "maxmemory-policy", policy]).take();
    set.exec_async(&mut redis.connection().await).await.expect("set the policy");
}

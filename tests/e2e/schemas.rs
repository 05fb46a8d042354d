//! Expected schemas: the memory store is the model, Redis must do the same.
use dashstream_proto::replay::v1::ExpectedSchema;
use dashstream_replay::{
    config::Retention,
    connection::Connections,
    keys::{Key, Stream, TenantName},
    memory_store::MemoryStore,
    redis_store::RedisStore,
    schemas::{Changed, SchemaStore},
};
use dashstream_tests::{Redis, redis_fleet::settings};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::time::Duration;

const RETENTION: Retention =
    Retention { age: Duration::from_secs(3_600), records_max: 100, bytes_max: 1 << 20 };

fn schema(graph: u32, version: u64) -> ExpectedSchema {
    ExpectedSchema {
        graph_name: format!("graph {graph}"),
        schema_id: format!("schema {version}"),
        version,
        ..Default::default()
    }
}

fn redis_store(redis: &Redis) -> RedisStore {
    RedisStore::new(Connections::new(&settings(&redis.url())).expect("settings"), RETENTION, None)
}

#[tokio::test]
async fn both_stores_answer_the_same_to_any_changes_of_schemas() {
    let redis = Redis::start(&[]).await;
    let (memory, stored) = (MemoryStore::new(RETENTION), redis_store(&redis));
    let stream = Stream::new("runs").expect("a name");
    let tenants = ["", "a", "b:c"].map(|id| TenantName::new(id).expect("a tenant"));
    let mut rng = StdRng::seed_from_u64(5);
    for step in 1..=400_u64 {
        let (tenant, graph) = (&tenants[rng.random_range(0..3)], rng.random_range(0..4));
        let held = memory.schema(&stream, tenant, &format!("graph {graph}")).await.expect("memory");
        assert_eq!(
            stored.schema(&stream, tenant, &format!("graph {graph}")).await.expect("redis"),
            held,
            "{step}"
        );
        let version = held.map_or(0, |held| held.version);
        let outcomes = if rng.random_bool(0.7) {
            let expected = [None, Some(version), Some(version + 1)][rng.random_range(0..3)];
            let set = schema(graph, step);
            (
                memory.set_schema(&stream, tenant, &set, expected).await.expect("memory"),
                stored.set_schema(&stream, tenant, &set, expected).await.expect("redis"),
            )
        } else {
            let version = version + rng.random_range(0..2);
            let name = format!("graph {graph}");
            (
                memory.delete_schema(&stream, tenant, &name, version).await.expect("memory"),
                stored.delete_schema(&stream, tenant, &name, version).await.expect("redis"),
            )
        };
        assert_eq!(outcomes.0, outcomes.1, "step {step}");
        for tenant in &tenants {
            let all = memory.schemas(&stream, tenant).await.expect("memory");
            assert_eq!(stored.schemas(&stream, tenant).await.expect("redis"), all, "step {step}");
        }
    }
}

#[tokio::test]
async fn a_tenant_has_only_so_many_schemas_and_they_end() {
    let redis = Redis::start(&[]).await;
    let store = redis_store(&redis);
    let (stream, tenant) = (Stream::new("runs").expect("a name"), TenantName::new("a").expect("a tenant"));
    for at in 0..1_000_u32 {
        let set = store.set_schema(&stream, &tenant, &schema(at, u64::from(at) + 1), Some(0)).await;
        assert_eq!(set.expect("redis"), Changed::Done);
    }
    let one_more = store.set_schema(&stream, &tenant, &schema(1_000, 2_000), None).await;
    assert_eq!(one_more.expect("redis"), Changed::Full);
    let instead = store.set_schema(&stream, &tenant, &schema(7, 2_001), Some(8)).await;
    assert_eq!(instead.expect("redis"), Changed::Done);
    let repeated = store.set_schema(&stream, &tenant, &schema(7, 2_001), Some(8)).await;
    assert_eq!(repeated.expect("redis"), Changed::Done, "done before, and the answer was lost");

    let left: i64 = redis::cmd("PTTL")
        .arg(Key::Schemas(&stream, &tenant).to_string())
        .query_async(&mut redis.connection().await)
        .await
        .expect("ask");
    let days = left / (24 * 3_600 * 1_000);
    assert!((364..=365).contains(&days), "{left} ms");
}

//! Expected schemas in memory.
use super::MemoryStore;
use crate::{
    keys::{Stream, TenantName},
    schemas::{Changed, SCHEMAS_MAX, SchemaStore, judge},
    store::Error,
};
use dashstream_proto::replay::v1::ExpectedSchema;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

type ByGraph = BTreeMap<String, ExpectedSchema>;

/// Of all streams and tenants.
#[derive(Debug, Default)]
pub(super) struct Schemas(Mutex<HashMap<(String, TenantName), ByGraph>>);

impl Schemas {
    fn all(&self) -> MutexGuard<'_, HashMap<(String, TenantName), ByGraph>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of<T>(&self, stream: &Stream, tenant: &TenantName, act: impl FnOnce(&mut ByGraph) -> T) -> T {
        act(self.all().entry((stream.as_str().to_owned(), tenant.clone())).or_default())
    }
}

impl SchemaStore for MemoryStore {
    async fn schemas(&self, stream: &Stream, tenant: &TenantName) -> Result<Vec<ExpectedSchema>, Error> {
        Ok(self.schemas.of(stream, tenant, |schemas| schemas.values().cloned().collect()))
    }

    async fn schema(
        &self,
        stream: &Stream,
        tenant: &TenantName,
        graph_name: &str,
    ) -> Result<Option<ExpectedSchema>, Error> {
        Ok(self.schemas.of(stream, tenant, |schemas| schemas.get(graph_name).cloned()))
    }

    async fn set_schema(
        &self,
        stream: &Stream,
        tenant: &TenantName,
        schema: &ExpectedSchema,
        expected: Option<u64>,
    ) -> Result<Changed, Error> {
        Ok(self.schemas.of(stream, tenant, |schemas| {
            let held = schemas.get(&schema.graph_name).map(|held| held.version);
            if judge(held, expected) == Changed::Conflict {
                return Changed::Conflict;
            }
            if held.is_none() && schemas.len() >= SCHEMAS_MAX {
                return Changed::Full;
            }
            schemas.insert(schema.graph_name.clone(), schema.clone());
            Changed::Done
        }))
    }

    async fn delete_schema(
        &self,
        stream: &Stream,
        tenant: &TenantName,
        graph_name: &str,
        version: u64,
    ) -> Result<Changed, Error> {
        Ok(self.schemas.of(stream, tenant, |schemas| match schemas.get(graph_name) {
            None => Changed::Absent,
            Some(held) if held.version != version => Changed::Conflict,
            Some(_) => {
                schemas.remove(graph_name);
                Changed::Done
            }
        }))
    }
}

//! The schemas that graphs are expected to have: set by people, compared by consoles. They belong to a stream and a
//! tenant, and live as long as somebody uses them.
use crate::{
    error::Error,
    keys::{Stream, TenantName},
    store,
};
use dashstream_proto::replay::v1::{
    DeleteExpectedSchemaRequest, ExpectedSchema, ListExpectedSchemasRequest, SetExpectedSchemaRequest,
};
use std::{
    future::Future,
    time::{Duration, SystemTime},
};

/// Most schemas of one tenant.
pub(crate) const SCHEMAS_MAX: usize = 1_000;
/// They are kept so long after the last use of any of a tenant's.
pub(crate) const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often a deletion is tried again while others change the same schema.
const ATTEMPTS_MAX: usize = 3;

const NAME_BYTES_MAX: usize = 256;
const NOTE_BYTES_MAX: usize = 4_096;

/// The outcome of a change. Its version tells each setting from every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    Done,
    /// There is none.
    Absent,
    /// It has another version than expected.
    Conflict,
    /// The tenant has as many as it may.
    Full,
}

/// A store of expected schemas. Each change is atomic, and does no harm when it is done twice.
pub trait SchemaStore: Send + Sync + 'static {
    /// By graph name.
    fn schemas(
        &self,
        stream: &Stream,
        tenant: &TenantName,
    ) -> impl Future<Output = Result<Vec<ExpectedSchema>, store::Error>> + Send;

    fn schema(
        &self,
        stream: &Stream,
        tenant: &TenantName,
        graph_name: &str,
    ) -> impl Future<Output = Result<Option<ExpectedSchema>, store::Error>> + Send;

    /// Sets it where the version is as expected: 0 for none, `None` for any.
    fn set_schema(
        &self,
        stream: &Stream,
        tenant: &TenantName,
        schema: &ExpectedSchema,
        expected: Option<u64>,
    ) -> impl Future<Output = Result<Changed, store::Error>> + Send;

    /// Deletes it where it has this version.
    fn delete_schema(
        &self,
        stream: &Stream,
        tenant: &TenantName,
        graph_name: &str,
        version: u64,
    ) -> impl Future<Output = Result<Changed, store::Error>> + Send;
}

/// What a version is judged by.
pub(crate) fn judge(held: Option<u64>, expected: Option<u64>) -> Changed {
    match expected {
        Some(expected) if expected != held.unwrap_or(0) => Changed::Conflict,
        Some(_) | None => Changed::Done,
    }
}

fn owner(stream: &str, tenant_id: &str) -> Result<(Stream, TenantName), Error> {
    Ok((Stream::new(stream)?, TenantName::new(tenant_id)?))
}

pub(crate) async fn list<S: SchemaStore>(
    store: &S,
    request: &ListExpectedSchemasRequest,
) -> Result<Vec<ExpectedSchema>, Error> {
    let (stream, tenant) = owner(&request.stream, &request.tenant_id)?;
    Ok(store.schemas(&stream, &tenant).await?)
}

pub(crate) async fn get<S: SchemaStore>(
    store: &S,
    stream: &str,
    tenant_id: &str,
    graph_name: &str,
) -> Result<ExpectedSchema, Error> {
    let (stream, tenant) = owner(stream, tenant_id)?;
    checked("graph_name", graph_name, 1, NAME_BYTES_MAX)?;
    let found = store.schema(&stream, &tenant, graph_name).await?;
    found.ok_or_else(|| no_schema(graph_name))
}

/// `version` must be unlike any other.
pub(crate) async fn set<S: SchemaStore>(
    store: &S,
    request: SetExpectedSchemaRequest,
    version: u64,
) -> Result<ExpectedSchema, Error> {
    let (stream, tenant) = owner(&request.stream, &request.tenant_id)?;
    let expected = "the schema to set";
    let schema = request.schema.ok_or(Error::Missing { field: "schema", expected })?;
    check(&schema)?;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let pinned_at_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    let schema = ExpectedSchema { pinned_at_ms, version, ..schema };
    match store.set_schema(&stream, &tenant, &schema, request.expected_version).await? {
        Changed::Done => Ok(schema),
        Changed::Absent | Changed::Conflict => Err(Error::SchemaVersion),
        Changed::Full => Err(Error::TooManySchemas(SCHEMAS_MAX)),
    }
}

pub(crate) async fn delete<S: SchemaStore>(
    store: &S,
    request: &DeleteExpectedSchemaRequest,
) -> Result<ExpectedSchema, Error> {
    let (stream, tenant) = owner(&request.stream, &request.tenant_id)?;
    for _ in 0..ATTEMPTS_MAX {
        let held = get(store, &request.stream, &request.tenant_id, &request.graph_name).await?;
        if judge(Some(held.version), request.expected_version) == Changed::Conflict {
            return Err(Error::SchemaVersion);
        }
        match store.delete_schema(&stream, &tenant, &held.graph_name, held.version).await? {
            // Gone is gone: it was there a moment ago.
            Changed::Done | Changed::Absent => return Ok(held),
            Changed::Conflict | Changed::Full => {}
        }
    }
    Err(Error::SchemaVersion)
}

fn check(schema: &ExpectedSchema) -> Result<(), Error> {
    checked("schema.graph_name", &schema.graph_name, 1, NAME_BYTES_MAX)?;
    checked("schema.schema_id", &schema.schema_id, 1, NAME_BYTES_MAX)?;
    for (field, text, most) in [
        ("schema.environment", &schema.environment, NAME_BYTES_MAX),
        ("schema.pinned_by", &schema.pinned_by, NAME_BYTES_MAX),
        ("schema.note", &schema.note, NOTE_BYTES_MAX),
    ] {
        checked(field, text.as_deref().unwrap_or_default(), 0, most)?;
    }
    Ok(())
}

fn checked(field: &'static str, text: &str, least: usize, most: usize) -> Result<(), Error> {
    let expected = match (least, most) {
        (1, _) => "1 to 256 bytes",
        (_, NOTE_BYTES_MAX) => "at most 4096 bytes",
        (_, _) => "at most 256 bytes",
    };
    if (least..=most).contains(&text.len()) {
        return Ok(());
    }
    Err(Error::Invalid { field, value: format!("{} bytes long", text.len()), expected })
}

fn no_schema(graph_name: &str) -> Error {
    Error::NoSchema(graph_name.chars().take(64).collect())
}

//! The schemas that graphs are expected to have, in the predecessor's API. They are kept by replay: for a tenant, or
//! for everybody where callers have none.
use crate::{
    auth::{Access, Permission, Refused},
    http::{App, refuse},
};
use axum::{
    Json,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use dashstream_core::filter::Tenants;
use dashstream_proto::replay::v1::{
    DeleteExpectedSchemaRequest, ExpectedSchema, GetExpectedSchemaRequest, ListExpectedSchemasRequest,
    SetExpectedSchemaRequest,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;
use tonic::{Code, Status};

/// How long replay may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What is told of one.
#[derive(Debug, Serialize)]
struct Entry {
    schema_id: String,
    graph_name: String,
    environment: Option<String>,
    /// Milliseconds since 1970.
    pinned_at: i64,
    pinned_by: Option<String>,
    note: Option<String>,
}

/// What is set of one.
#[derive(Debug, Deserialize)]
pub(crate) struct Body {
    schema_id: String,
    environment: Option<String>,
    pinned_by: Option<String>,
    note: Option<String>,
}

/// Whose, for callers of several tenants.
#[derive(Debug, Deserialize)]
pub(crate) struct Of {
    #[serde(default)]
    tenant: String,
}

/// Why there is no entry.
enum Failed {
    Who(Refused),
    Tenants,
    Version,
    Replay(Status),
}

impl From<Refused> for Failed {
    fn from(refused: Refused) -> Self {
        Self::Who(refused)
    }
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self::Replay(status)
    }
}

impl Failed {
    fn answer(self, app: &App) -> Response {
        match self {
            Self::Who(refused) => app.refuse_call(refused),
            Self::Tenants => {
                let text = "the token names several tenants: expected `?tenant=` with one of them";
                refuse(StatusCode::BAD_REQUEST, "tenant", text, None)
            }
            Self::Version => refuse(
                StatusCode::BAD_REQUEST,
                "version",
                "If-Match is no version: expected the ETag of an entry",
                None,
            ),
            Self::Replay(status) => failure(&status),
        }
    }
}

fn failure(status: &Status) -> Response {
    let is_busy = status.metadata().get("grpc-retry-pushback-ms").is_some();
    let (code, reason, retry) = if status.code() == Code::InvalidArgument {
        (StatusCode::UNPROCESSABLE_ENTITY, "invalid", None)
    } else if status.code() == Code::FailedPrecondition {
        (StatusCode::PRECONDITION_FAILED, "version", None)
    } else if status.code() == Code::ResourceExhausted && !is_busy {
        (StatusCode::INSUFFICIENT_STORAGE, "full", None)
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "unavailable", Some(Duration::from_secs(1)))
    };
    refuse(code, reason, status.message(), retry)
}

/// Whose schemas the caller means: its tenant's; everybody's where it is not bound to any.
fn owner(access: &Access, of: Of) -> Result<String, Failed> {
    match &access.tenants {
        Tenants::All => Ok(of.tenant),
        Tenants::Only(own) if own.contains(&of.tenant) => Ok(of.tenant),
        Tenants::Only(own) if of.tenant.is_empty() && own.len() == 1 => Ok(own.iter().cloned().collect()),
        Tenants::Only(_) if of.tenant.is_empty() => Err(Failed::Tenants),
        Tenants::Only(_) => Err(Refused::Tenant.into()),
    }
}

async fn within<T>(answer: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
    let late = |_| Err(Status::deadline_exceeded("replay does not answer"));
    answer.unwrap_or_else(late).map(tonic::Response::into_inner)
}

/// The version that a change expects; 0 for `If-None-Match: *`.
fn expected(headers: &HeaderMap) -> Result<Option<u64>, Failed> {
    if headers.get(header::IF_NONE_MATCH).is_some_and(|held| held == "*") {
        return Ok(Some(0));
    }
    let Some(tag) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let version = tag.to_str().ok().and_then(|tag| tag.trim_matches('"').parse().ok());
    version.map(Some).ok_or(Failed::Version)
}

fn entry(schema: Option<ExpectedSchema>) -> Response {
    let schema = schema.unwrap_or_default();
    let version = HeaderValue::try_from(format!("\"{}\"", schema.version)).ok();
    let mut answer = Json(told(schema)).into_response();
    if let Some(version) = version {
        answer.headers_mut().insert(header::ETAG, version);
    }
    answer
}

fn told(schema: ExpectedSchema) -> Entry {
    let ExpectedSchema { graph_name, schema_id, environment, pinned_at_ms, pinned_by, note, .. } = schema;
    Entry { schema_id, graph_name, environment, pinned_at: pinned_at_ms, pinned_by, note }
}

fn absent(text: &str, graph_name: &str) -> Response {
    (StatusCode::NOT_FOUND, Json(json!({ "error": text, "graph_name": graph_name }))).into_response()
}

/// The answer, or the one to a failure; `absent` where there is no entry.
fn answer(app: &App, done: Result<Response, Failed>, absent: impl FnOnce() -> Response) -> Response {
    match done {
        Ok(answer) => answer,
        Err(Failed::Replay(status)) if status.code() == Code::NotFound => absent(),
        Err(failed) => failed.answer(app),
    }
}

pub(crate) async fn list(State(app): State<App>, Query(of): Query<Of>, headers: HeaderMap) -> Response {
    let listed = async {
        let tenant_id = owner(&app.access(&headers).await?, of)?;
        let (mut client, stream) = app.ground.replay.asking();
        let request = ListExpectedSchemasRequest { stream, tenant_id };
        let listed = within(client.list_expected_schemas(request)).await?;
        let entries: Vec<_> = listed.schemas.into_iter().map(told).collect();
        Ok(Json(entries).into_response())
    };
    answer(&app, listed.await, || absent("No expected schemas", ""))
}

pub(crate) async fn read(
    State(app): State<App>,
    Path(graph_name): Path<String>,
    Query(of): Query<Of>,
    headers: HeaderMap,
) -> Response {
    let read = async {
        let tenant_id = owner(&app.access(&headers).await?, of)?;
        let (mut client, stream) = app.ground.replay.asking();
        let request = GetExpectedSchemaRequest { stream, tenant_id, graph_name: graph_name.clone() };
        Ok(entry(within(client.get_expected_schema(request)).await?.schema))
    };
    answer(&app, read.await, || absent("No expected schema set for this graph", &graph_name))
}

pub(crate) async fn write(
    State(app): State<App>,
    Path(graph_name): Path<String>,
    Query(of): Query<Of>,
    headers: HeaderMap,
    Json(body): Json<Body>,
) -> Response {
    let written = async {
        let access = app.access(&headers).await?;
        access.require(Permission::WriteSchemas)?;
        let (tenant_id, expected_version) = (owner(&access, of)?, expected(&headers)?);
        let Body { schema_id, environment, pinned_by, note } = body;
        let named = graph_name.clone();
        let schema = ExpectedSchema {
            graph_name: named,
            schema_id,
            environment,
            pinned_by,
            note,
            ..Default::default()
        };
        let (mut client, stream) = app.ground.replay.asking();
        let request = SetExpectedSchemaRequest { stream, tenant_id, schema: Some(schema), expected_version };
        let set = within(client.set_expected_schema(request)).await?.schema;
        tracing::info!(audit = true, subject = access.subject, graph_name, "expected schema set");
        Ok(entry(set))
    };
    answer(&app, written.await, || absent("No expected schema set for this graph", &graph_name))
}

pub(crate) async fn remove(
    State(app): State<App>,
    Path(graph_name): Path<String>,
    Query(of): Query<Of>,
    headers: HeaderMap,
) -> Response {
    let removed = async {
        let access = app.access(&headers).await?;
        access.require(Permission::WriteSchemas)?;
        let (tenant_id, expected_version) = (owner(&access, of)?, expected(&headers)?);
        let (mut client, stream) = app.ground.replay.asking();
        let graph_name = graph_name.clone();
        let request = DeleteExpectedSchemaRequest { stream, tenant_id, graph_name, expected_version };
        let deleted = within(client.delete_expected_schema(request)).await?.schema;
        tracing::info!(audit = true, subject = access.subject, "expected schema deleted");
        Ok(entry(deleted))
    };
    answer(&app, removed.await, || absent("No expected schema to delete", &graph_name))
}

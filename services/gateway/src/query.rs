//! Questions of tools and the console, over gRPC and gRPC-Web. Each is answered within what its caller may read, and
//! within a time.
use crate::{
    auth::{Access, Authenticator, Permission, Refused, token_of},
    fleet::Fleet,
    metrics::Metrics,
    replay::Replay,
    viewers::{Viewer, Viewers, Watching},
};
use dashstream_core::filter::Tenants;
use dashstream_proto::{
    gateway::v1::{self as wire, query_service_server::QueryService},
    replay::v1 as replay,
};
use futures_util::Stream;
use std::{collections::BTreeSet, future::Future, pin::Pin, sync::Arc, time::Duration};
use tonic::{Request, Response, Status, metadata::MetadataMap};

mod runs;

/// How long an answer may take, but for the records of a run.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A cheap handle.
#[derive(Clone, Debug)]
pub struct Query {
    pub authenticator: Authenticator,
    pub fleet: Fleet,
    pub replay: Replay,
    pub viewers: Viewers,
    pub metrics: Metrics,
}

impl Query {
    /// What the caller may do.
    async fn access(&self, metadata: &MetadataMap) -> Result<Access, Status> {
        let judged = match token_of(metadata.as_ref()) {
            Ok(token) => self.authenticator.access(token.as_ref()).await,
            Err(refused) => Err(refused),
        };
        judged.map_err(|refused| self.refuse(refused))
    }

    fn refuse(&self, refused: Refused) -> Status {
        self.metrics.refused_query(refused);
        refused.into()
    }
}

/// Puts a bound to an answer: the caller's own deadline, where it is nearer, ends the call by itself.
async fn timely<T>(answer: impl Future<Output = Result<T, Status>>) -> Result<Response<T>, Status> {
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
    let late =
        |_| Err(Status::deadline_exceeded(format!("no answer within {ANSWER_TIMEOUT:?}: ask for less")));
    answer.unwrap_or_else(late).map(Response::new)
}

/// The tenants to ask replay for: those that the caller named, or else all that it may read; empty for all there are.
fn asked(access: &Access, named: Vec<String>) -> Result<Vec<String>, Refused> {
    match &access.tenants {
        Tenants::All => Ok(named),
        Tenants::Only(own) if named.is_empty() => Ok(own.iter().cloned().collect()),
        Tenants::Only(own) => {
            let both: BTreeSet<_> = named.into_iter().filter(|name| own.contains(name)).collect();
            if both.is_empty() { Err(Refused::Tenant) } else { Ok(both.into_iter().collect()) }
        }
    }
}

fn viewer((viewer, watching): (Arc<Viewer>, Watching)) -> wire::Viewer {
    wire::Viewer {
        session_id: viewer.session_id.clone(),
        subject: viewer.subject.clone(),
        address: viewer.address.to_string(),
        connected_ms: viewer.connected_ms,
        delivered: watching.delivered,
        mode: watching.mode.into(),
    }
}

#[tonic::async_trait]
impl QueryService for Query {
    async fn get_catch_up(
        &self,
        request: Request<wire::GetCatchUpRequest>,
    ) -> Result<Response<wire::GetCatchUpResponse>, Status> {
        self.access(request.metadata()).await?;
        timely(async { Ok(self.fleet.catch_up().await) }).await
    }

    async fn list_runs(
        &self,
        request: Request<wire::ListRunsRequest>,
    ) -> Result<Response<wire::ListRunsResponse>, Status> {
        let access = self.access(request.metadata()).await?;
        timely(self.list(&access, request.into_inner())).await
    }

    async fn get_run(
        &self,
        request: Request<wire::GetRunRequest>,
    ) -> Result<Response<wire::GetRunResponse>, Status> {
        let access = self.access(request.metadata()).await?;
        let thread_id = request.into_inner().thread_id;
        timely(async {
            let run = Some(self.run(&access, thread_id).await?);
            Ok(wire::GetRunResponse { run })
        })
        .await
    }

    type ReadRunStream = Pin<Box<dyn Stream<Item = Result<wire::ReadRunResponse, Status>> + Send>>;

    async fn read_run(
        &self,
        request: Request<wire::ReadRunRequest>,
    ) -> Result<Response<Self::ReadRunStream>, Status> {
        let access = self.access(request.metadata()).await?;
        timely(self.read(access, request.into_inner())).await
    }

    async fn get_retention(
        &self,
        request: Request<wire::GetRetentionRequest>,
    ) -> Result<Response<wire::GetRetentionResponse>, Status> {
        self.access(request.metadata()).await?;
        timely(async {
            let (mut client, stream) = self.replay.asking();
            let described = client.describe_partitions(replay::DescribePartitionsRequest {
                stream: stream.clone(),
                partitions: Vec::new(),
            });
            let partitions = described.await?.into_inner().partitions;
            let retention = client.get_retention(replay::GetRetentionRequest { stream }).await?;
            Ok(wire::GetRetentionResponse { partitions, retention: retention.into_inner().retention })
        })
        .await
    }

    async fn list_viewers(
        &self,
        request: Request<wire::ListViewersRequest>,
    ) -> Result<Response<wire::ListViewersResponse>, Status> {
        let access = self.access(request.metadata()).await?;
        access.require(Permission::ListViewers).map_err(|refused| self.refuse(refused))?;
        let thread_id = request.into_inner().thread_id;
        timely(async {
            let viewers = if thread_id.is_empty() {
                self.viewers.list(&access.tenants, None)
            } else {
                let run = self.run(&access, thread_id).await?;
                self.viewers.list(&access.tenants, Some((&run.tenant_id, &run.thread_id)))
            };
            Ok(wire::ListViewersResponse { viewers: viewers.into_iter().map(viewer).collect() })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replay_is_asked_for_no_tenant_but_the_callers_own() {
        let access = |tenants| Access {
            subject: String::new(),
            tenants,
            permissions: Permission::ALL.into(),
            expires: None,
        };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let own = access(Tenants::Only(names(&["a", "b"]).into_iter().collect()));
        assert_eq!(asked(&own, names(&[])), Ok(names(&["a", "b"])), "never empty, which means everybody");
        assert_eq!(asked(&own, names(&["b"])), Ok(names(&["b"])));
        assert_eq!(asked(&own, names(&["b", "c"])), Ok(names(&["b"])));
        assert_eq!(asked(&own, names(&["c"])), Err(Refused::Tenant));
        assert_eq!(asked(&own, names(&[""])), Err(Refused::Tenant));
        let all = access(Tenants::All);
        assert_eq!(asked(&all, names(&["c"])), Ok(names(&["c"])));
        assert_eq!(asked(&all, names(&[])), Ok(names(&[])));
    }
}

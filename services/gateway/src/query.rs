//! Questions of tools and the console, over gRPC.
use crate::config::Config;
use dashstream_kit::grpc as kit_grpc;
use dashstream_proto::{
    gateway::v1::{
        GetCatchUpRequest, GetCatchUpResponse, GetRetentionRequest, GetRetentionResponse, GetRunRequest,
        GetRunResponse, ListRunsRequest, ListRunsResponse, ListViewersRequest, ListViewersResponse,
        ReadRunRequest, ReadRunResponse, query_service_server::QueryService,
    },
    ingest::v1::{self as ingest, ingest_service_client::IngestServiceClient},
};
use futures_util::future::join_all;
use std::{collections::BTreeSet, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};
use tonic::{Request, Response, Status};

/// How long one replica may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Clone, Debug)]
pub struct Query {
    pub config: Arc<Config>,
}

async fn ask(address: SocketAddr) -> Result<ingest::GetCatchUpResponse, String> {
    let channel = kit_grpc::channel_to(&address.to_string()).map_err(|_| address.to_string())?;
    let mut client = IngestServiceClient::new(channel);
    let answer =
        tokio::time::timeout(ANSWER_TIMEOUT, client.get_catch_up(ingest::GetCatchUpRequest {})).await;
    match answer {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(_)) | Err(_) => Err(address.to_string()),
    }
}

#[tonic::async_trait]
impl QueryService for Query {
    async fn get_catch_up(
        &self,
        _request: Request<GetCatchUpRequest>,
    ) -> Result<Response<GetCatchUpResponse>, Status> {
        let addresses = kit_grpc::resolve(&self.config.ingest_targets).await;
        let (mut owners, mut unreachable) = (Vec::new(), Vec::new());
        for answer in join_all(addresses.into_iter().map(ask)).await {
            match answer {
                Ok(owner) => owners.push(owner),
                Err(address) => unreachable.push(address),
            }
        }
        let count = owners.iter().map(|owner| owner.partition_count).max().unwrap_or(0);
        let owned: BTreeSet<_> =
            owners.iter().flat_map(|owner| &owner.partitions).map(|partition| partition.partition).collect();
        let unowned_partitions = (0..count).filter(|partition| !owned.contains(partition)).collect();
        Ok(Response::new(GetCatchUpResponse { owners, unowned_partitions, unreachable }))
    }

    async fn list_runs(
        &self,
        _request: Request<ListRunsRequest>,
    ) -> Result<Response<ListRunsResponse>, Status> {
        Err(unimplemented("ListRuns"))
    }

    async fn get_run(&self, _request: Request<GetRunRequest>) -> Result<Response<GetRunResponse>, Status> {
        Err(unimplemented("GetRun"))
    }

    type ReadRunStream = Pin<Box<dyn futures_util::Stream<Item = Result<ReadRunResponse, Status>> + Send>>;

    async fn read_run(
        &self,
        _request: Request<ReadRunRequest>,
    ) -> Result<Response<Self::ReadRunStream>, Status> {
        Err(unimplemented("ReadRun"))
    }

    async fn get_retention(
        &self,
        _request: Request<GetRetentionRequest>,
    ) -> Result<Response<GetRetentionResponse>, Status> {
        Err(unimplemented("GetRetention"))
    }

    async fn list_viewers(
        &self,
        _request: Request<ListViewersRequest>,
    ) -> Result<Response<ListViewersResponse>, Status> {
        Err(unimplemented("ListViewers"))
    }
}

fn unimplemented(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not implemented by this version"))
}

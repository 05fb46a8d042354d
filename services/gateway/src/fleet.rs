//! What all ingest replicas say of themselves.
use dashstream_kit::{Kit, config::Targets, grpc as kit_grpc};
use dashstream_proto::{
    gateway::v1::GetCatchUpResponse,
    ingest::v1::{self as ingest, ingest_service_client::IngestServiceClient},
};
use futures_util::future::join_all;
use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

/// How long one replica may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// A cheap handle.
#[derive(Clone, Debug)]
pub struct Fleet {
    kit: Kit,
    targets: Arc<Targets>,
}

impl Fleet {
    pub fn new(kit: &Kit, targets: &Targets) -> Self {
        Self { kit: kit.clone(), targets: Arc::new(targets.clone()) }
    }

    /// How far each partition is. Whoever does not answer is named.
    pub async fn catch_up(&self) -> GetCatchUpResponse {
        let addresses = kit_grpc::resolve(&self.targets).await;
        let (mut owners, mut unreachable) = (Vec::new(), Vec::new());
        for answer in join_all(addresses.into_iter().map(|address| self.ask(address))).await {
            match answer {
                Ok(owner) => owners.push(owner),
                Err(address) => unreachable.push(address.to_string()),
            }
        }
        let count = owners.iter().map(|owner| owner.partition_count).max().unwrap_or(0);
        let owned: BTreeSet<_> =
            owners.iter().flat_map(|owner| &owner.partitions).map(|partition| partition.partition).collect();
        let unowned_partitions = (0..count).filter(|partition| !owned.contains(partition)).collect();
        GetCatchUpResponse { owners, unowned_partitions, unreachable }
    }

    async fn ask(&self, address: SocketAddr) -> Result<ingest::GetCatchUpResponse, SocketAddr> {
        let channel = self.kit.channel_to(&address.to_string()).map_err(|_| address)?;
        let mut client = IngestServiceClient::new(channel);
        let answer = client.get_catch_up(ingest::GetCatchUpRequest {});
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
        answer.ok().and_then(Result::ok).map(tonic::Response::into_inner).ok_or(address)
    }
}

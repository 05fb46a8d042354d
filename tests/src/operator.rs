//! An operator at the gRPC service of ingest.
use crate::{Service, eventually};
use dashstream_kit::grpc::channel_to;
use dashstream_proto::ingest::v1::{
    CatchUpPhase, GetCatchUpRequest, GetCatchUpResponse, PartitionCatchUp, PausePartitionRequest, Resolution,
    ResolveBlockedRequest, ResumePartitionRequest, WatchCatchUpRequest, WatchCatchUpResponse,
    ingest_service_client::IngestServiceClient,
};
use std::time::Duration;
use tonic::{Status, Streaming, transport::Channel};

/// Sends one replica what an operator would.
#[derive(Clone, Debug)]
pub struct Operator(IngestServiceClient<Channel>);

/// What a replica tells who watches.
#[derive(Debug)]
pub struct Changes(Streaming<WatchCatchUpResponse>);

impl Changes {
    /// # Panics
    /// When the replica ends the stream.
    pub async fn next(&mut self) -> GetCatchUpResponse {
        let change = self.0.message().await.expect("the stream goes on").expect("a change");
        change.catch_up.unwrap_or_default()
    }
}

impl Operator {
    /// # Panics
    /// If the service has no address.
    pub fn of(ingest: &Service) -> Self {
        Self(IngestServiceClient::new(channel_to(&ingest.address()).expect("an address")))
    }

    /// # Errors
    /// When the replica does not answer.
    pub async fn catch_up(&self) -> Result<GetCatchUpResponse, Status> {
        Ok(self.0.clone().get_catch_up(GetCatchUpRequest {}).await?.into_inner())
    }

    /// How far all partitions are, now and whenever that changes.
    ///
    /// # Panics
    /// When the replica refuses.
    pub async fn watch(&self, interval: Duration) -> Changes {
        let request = WatchCatchUpRequest { interval_ms: interval.as_millis() as u32 };
        let watched = self.0.clone().watch_catch_up(request).await.expect("the replica answers");
        Changes(watched.into_inner())
    }

    /// How far one partition is.
    ///
    /// # Errors
    /// When the replica does not answer, or does not own it.
    pub async fn partition(&self, partition: i32) -> Result<PartitionCatchUp, String> {
        let answer = self.catch_up().await.map_err(|status| status.message().to_owned())?;
        let found = answer.partitions.into_iter().find(|report| report.partition == partition);
        found.ok_or_else(|| format!("partition {partition} is not owned"))
    }

    /// Waits until a partition is as `right` says.
    ///
    /// # Panics
    /// When that takes longer than `timeout`.
    pub async fn until(
        &self,
        partition: i32,
        what: &str,
        timeout: Duration,
        right: impl Fn(&PartitionCatchUp) -> bool,
    ) -> PartitionCatchUp {
        eventually(&format!("partition {partition} {what}"), timeout, async || {
            let report = self.partition(partition).await?;
            if right(&report) { Ok(report) } else { Err(format!("{report:?}")) }
        })
        .await
    }

    /// Waits until a partition stands at a bad record.
    ///
    /// # Panics
    /// When that takes longer than `timeout`.
    pub async fn until_blocked(&self, partition: i32, at: u64, timeout: Duration) -> PartitionCatchUp {
        let blocked = |report: &PartitionCatchUp| {
            report.phase() == CatchUpPhase::Blocked && report.blocked_offset == Some(at)
        };
        self.until(partition, &format!("is blocked at {at}"), timeout, blocked).await
    }

    /// Decides on a bad record.
    ///
    /// # Errors
    /// What the replica refuses.
    pub async fn resolve(
        &self,
        partition: i32,
        offset: u64,
        resolution: Resolution,
    ) -> Result<PartitionCatchUp, Status> {
        let reason = "the test decided".to_owned();
        let request = ResolveBlockedRequest { partition, offset, resolution: resolution.into(), reason };
        let answer = self.0.clone().resolve_blocked(request).await?.into_inner();
        Ok(answer.partition.unwrap_or_default())
    }

    /// Stops a partition.
    ///
    /// # Errors
    /// What the replica refuses.
    pub async fn pause(&self, partition: i32, reason: &str) -> Result<PartitionCatchUp, Status> {
        let request = PausePartitionRequest { partition, reason: reason.to_owned() };
        Ok(self.0.clone().pause_partition(request).await?.into_inner().partition.unwrap_or_default())
    }

    /// Lets a partition go on.
    ///
    /// # Errors
    /// What the replica refuses.
    pub async fn resume(&self, partition: i32, reason: &str) -> Result<PartitionCatchUp, Status> {
        let request = ResumePartitionRequest { partition, reason: reason.to_owned() };
        Ok(self.0.clone().resume_partition(request).await?.into_inner().partition.unwrap_or_default())
    }
}

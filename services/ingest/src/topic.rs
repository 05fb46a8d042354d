//! Whether the topic is what our promises need. Looked at once, and said; whether its partitions are still as many is
//! looked at again and again.
use crate::{config::Config, metrics::Metrics};
use dashstream_kafka::{Admin, Topic, admin};
use dashstream_kit::grpc::Channel;
use dashstream_proto::replay::v1::{GetRetentionRequest, replay_service_client::ReplayServiceClient};
use std::{sync::Arc, time::Duration};
use tonic::Status;

/// How long replay may take to say what it keeps.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// What is known of the topic, and what is still to be found out.
#[derive(Debug)]
pub struct Check {
    config: Arc<Config>,
    replay: ReplayServiceClient<Channel>,
    metrics: Metrics,
    partitions: Option<usize>,
    found: Found,
}

/// How far the check is. Each step is tried until it succeeds, and said once.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// The brokers do not describe the topic, which was said.
    NotDescribed,
    /// The topic; it was not compared with what replay keeps.
    Topic(Topic),
    All,
}

impl Check {
    pub fn new(config: Arc<Config>, replay: ReplayServiceClient<Channel>, metrics: Metrics) -> Self {
        Self { config, replay, metrics, partitions: None, found: Found::Nothing }
    }

    /// To be told the topic's number of partitions whenever it was asked for. Goes on with the check.
    pub async fn on_partitions(&mut self, partitions: usize) {
        self.metrics.source.topic_partitions.set(i64::try_from(partitions).unwrap_or(i64::MAX));
        if let Some(before) = self.partitions.replace(partitions).filter(|before| *before != partitions) {
            self.metrics.source.topic_partitions_changed(before, partitions);
        }
        if matches!(self.found, Found::Nothing | Found::NotDescribed) {
            self.look().await;
        }
        if let Found::Topic(topic) = &self.found
            && let Ok(kept) = kept_by_replay(self.replay.clone(), self.config.stream()).await
        {
            if let Some(concern) = topic.falls_short_of(kept) {
                tracing::warn!(topic = topic.name, %concern, "the topic endangers records");
            }
            self.found = Found::All;
        }
    }

    async fn look(&mut self) {
        match self.describe().await {
            Ok(Some(topic)) => {
                tracing::info!(topic = topic.name, is = %topic, "the topic");
                for concern in topic.concerns() {
                    tracing::warn!(topic = topic.name, %concern, "the topic endangers records");
                }
                self.found = Found::Topic(topic);
            }
            // It has gone since its partitions were counted, which the next count tells.
            Ok(None) => {}
            Err(error @ admin::Error::Refused { .. }) => {
                tracing::warn!(%error, "the topic is not checked: it may not be described");
                self.found = Found::All;
            }
            Err(error) if self.found == Found::Nothing => {
                tracing::warn!(%error, "the topic is not checked until its settings can be read");
                self.found = Found::NotDescribed;
            }
            Err(error) => tracing::debug!(%error, "describe the topic"),
        }
    }

    async fn describe(&self) -> Result<Option<Topic>, admin::Error> {
        let kafka = &self.config.kafka;
        let admin = Admin::new(&kafka.connection, "dashstream-ingest")?;
        let topic = admin.topic(&kafka.topic).await;
        // Which blocks for a moment, and nobody waits for.
        drop(tokio::task::spawn_blocking(move || drop(admin)));
        topic
    }
}

/// How long replay keeps the records of a stream.
///
/// # Errors
/// When it does not say within 5 s.
pub async fn kept_by_replay(
    mut replay: ReplayServiceClient<Channel>,
    stream: &str,
) -> Result<Duration, Status> {
    let request = GetRetentionRequest { stream: stream.to_owned() };
    let answered = tokio::time::timeout(ASK_TIMEOUT, replay.get_retention(request)).await;
    let answered = answered.map_err(|_| Status::deadline_exceeded("replay does not answer"))??;
    let retention = answered.into_inner().retention;
    let retention = retention.ok_or_else(|| Status::internal("replay's answer has no retention"))?;
    Ok(Duration::from_millis(retention.age_ms))
}

//! A client that keeps everything it received, to be compared with what Kafka has.
use crate::feed::{Log, records};
use anyhow::bail;
use bytes::Bytes;
use dashstream_core::chain::{Broken, Chain};
use dashstream_ctl::client::{Client, Event};
use dashstream_proto::{
    log::v1::Gap,
    session::v1::{Limits, StartPolicy},
};
use std::time::Duration;

/// Reconnects too soon would only burn the machine that everything runs on.
const RETRY: Duration = Duration::from_millis(50);

/// What a client has seen over all of its sessions.
#[derive(Debug, Default)]
pub struct Watcher {
    chain: Chain,
    received: Log,
    pub gaps: Vec<Gap>,
    pub sessions: usize,
}

impl Watcher {
    pub fn new() -> Self {
        Self::default()
    }

    /// What was received, in the order in which it came.
    pub fn received(&self) -> &Log {
        &self.received
    }

    pub fn records(&self) -> usize {
        records(&self.received)
    }

    /// Follows one gateway until `enough` says so, or after `events` events; then cuts the connection.
    ///
    /// # Errors
    /// When the connection breaks. What was received until then is kept.
    ///
    /// # Panics
    /// When a frame breaks the chain.
    pub async fn follow(
        &mut self,
        gateway: &str,
        events: usize,
        enough: &mut impl FnMut(&Self) -> bool,
    ) -> anyhow::Result<()> {
        self.sessions += 1;
        let mut client =
            Client::connect(&format!("ws://{gateway}/ws"), self.chain.clone(), Limits::default()).await?;
        client.subscribe(StartPolicy::Earliest).await?;
        for _ in 0..events {
            if enough(self) {
                break;
            }
            let event = client.next().await.inspect_err(|error| {
                assert!(!error.is::<Broken>(), "the chain is broken: {error}");
            })?;
            self.chain = client.chain().clone();
            self.take(event)?;
        }
        Ok(())
    }

    /// Follows whichever gateway answers until `enough` says so.
    ///
    /// # Panics
    /// When that takes longer than `timeout`, or a frame breaks the chain.
    pub async fn until(
        &mut self,
        gateways: &[String],
        timeout: Duration,
        mut enough: impl FnMut(&Self) -> bool,
    ) {
        let following = async {
            let mut last = String::new();
            while !enough(self) {
                let gateway = &gateways[self.sessions % gateways.len()];
                if let Err(error) = self.follow(gateway, usize::MAX, &mut enough).await {
                    last = format!("{error:#}");
                    crate::eventually::pause(RETRY).await;
                }
            }
            last
        };
        if tokio::time::timeout(timeout, following).await.is_err() {
            panic!("{} records in {} sessions, not enough within {timeout:?}", self.records(), self.sessions);
        }
    }

    fn take(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Records { partition, records, .. } => {
                let received = self.received.entry(partition).or_default();
                // Copied, so that one small record does not hold its whole frame.
                received.extend(
                    records.iter().map(|record| (record.offset, Bytes::copy_from_slice(&record.payload))),
                );
                self.gaps.extend(records.iter().filter_map(|record| record.gap));
            }
            Event::Gap(gap) => self.gaps.push(gap),
            Event::Stale(stale) => bail!("stale: {stale:?}"),
            Event::Error(error) => bail!("refused: {error:?}"),
            Event::Closed => bail!("the gateway ended the session"),
            Event::CaughtUp(_)
            | Event::Partitions(_)
            | Event::Notice(_)
            | Event::GoingAway(_)
            | Event::Skipped(_)
            | Event::State(_)
            | Event::Pong => {}
        }
        Ok(())
    }

    /// Fails unless exactly the records of `log` came, each once, in order, byte for byte.
    ///
    /// # Panics
    /// At the first difference.
    pub fn assert_received(&self, log: &Log) {
        for (partition, expected) in log {
            let received = self.received.get(partition).map(Vec::as_slice).unwrap_or_default();
            let differs = expected.iter().zip(received).position(|(expected, received)| expected != received);
            if let Some(at) = differs {
                let (expected, received) = (&expected[at], &received[at]);
                panic!(
                    "partition {partition}: record {at} is at offset {} ({} bytes), expected {} ({} bytes)",
                    received.0,
                    received.1.len(),
                    expected.0,
                    expected.1.len()
                );
            }
            assert_eq!(received.len(), expected.len(), "partition {partition}");
        }
        assert_eq!(self.records(), records(log), "records of partitions that the log does not have");
        assert_eq!(self.gaps, []);
    }
}

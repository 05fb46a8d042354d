//! A client that wants only some records, at a pace of its own, and is compared with what its filter should leave.
use crate::{eventually::pause, feed::Log};
use anyhow::bail;
use bytes::Bytes;
use dashstream_core::{
    chain::{Broken, Chain},
    codec,
};
use dashstream_ctl::client::{Ask, Client, Event};
use dashstream_proto::{
    log::v1::{Gap, RecordKind},
    session::v1::{Filter, Limits, StartPolicy},
};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

/// Reconnects too soon would only burn the machine that everything runs on.
const RETRY: Duration = Duration::from_millis(200);

/// What a viewer asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    All,
    Threads(Vec<String>),
    Kinds(Vec<RecordKind>),
    Graph(String),
}

impl Want {
    fn filter(&self) -> Option<Filter> {
        let none = Filter::default();
        match self.clone() {
            Self::All => None,
            Self::Threads(thread_ids) => Some(Filter { thread_ids, ..none }),
            Self::Kinds(kinds) => Some(Filter { kinds: kinds.into_iter().map(i32::from).collect(), ..none }),
            Self::Graph(graph) => Some(Filter { graph_names: vec![graph], ..none }),
        }
    }

    /// Whether a payload is wanted. Threads of the demo's runs bear their graph's name.
    ///
    /// # Panics
    /// If the payload does not decode.
    pub fn matches(&self, payload: &[u8]) -> bool {
        let facts =
            codec::facts(Some(payload), codec::Limits::default()).expect("the test's payloads decode");
        match self {
            Self::All => true,
            Self::Threads(threads) => threads.contains(&facts.thread_id),
            Self::Kinds(kinds) => kinds.contains(&facts.kind),
            Self::Graph(graph) => facts.thread_id.contains(graph.as_str()),
        }
    }
}

/// What a viewer has received over all of its sessions: of each partition, offset and hash of each payload.
#[derive(Debug)]
pub struct Viewer {
    pub want: Want,
    /// Bytes that may be on their way; 0 gives no credit.
    pub in_flight: u64,
    chain: Chain,
    received: BTreeMap<i32, Vec<(u64, u64)>>,
    pub gaps: Vec<Gap>,
    pub sessions: usize,
}

fn hash(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    hasher.finish()
}

impl Viewer {
    pub fn new(want: Want, in_flight: u64) -> Self {
        let chain = Chain::default();
        Self { want, in_flight, chain, received: BTreeMap::new(), gaps: Vec::new(), sessions: 0 }
    }

    /// How many records came.
    pub fn records(&self) -> usize {
        self.received.values().map(Vec::len).sum()
    }

    /// Its cursors are at the ends of a log.
    pub fn is_at_end(&self, log: &Log) -> bool {
        let cursors: BTreeMap<_, _> =
            self.chain.cursors().into_iter().map(|cursor| (cursor.partition, cursor.offset)).collect();
        log.iter().all(|(partition, records)| {
            let end = records.last().map(|(offset, _)| *offset);
            cursors.get(partition).copied().flatten() >= end
        })
    }

    /// One session at a gateway: `next` says after each event whether to go on, and may take its time.
    ///
    /// # Errors
    /// When the connection breaks. What was received until then is kept.
    ///
    /// # Panics
    /// When a frame breaks the chain.
    pub async fn follow(
        &mut self,
        gateway: &str,
        mut next: impl AsyncFnMut(&Self) -> bool,
    ) -> anyhow::Result<()> {
        self.sessions += 1;
        let limits = Limits { in_flight_bytes_max: self.in_flight, ..Limits::default() };
        let mut client = Client::connect(&format!("ws://{gateway}/ws"), self.chain.clone(), limits).await?;
        let ask = Ask { filter: self.want.filter(), ..StartPolicy::Earliest.into() };
        client.subscribe(ask).await?;
        while next(self).await {
            let event = client.next().await.inspect_err(|error| {
                assert!(!error.is::<Broken>(), "{:?}: the chain is broken: {error}", self.want);
            })?;
            self.chain = client.chain().clone();
            let charged = matches!(event, Event::Records { .. } | Event::Gap(_));
            self.take(event)?;
            if charged && self.in_flight > 0 {
                client.give_credit().await?;
            }
        }
        Ok(())
    }

    /// Follows one gateway after the other until it is at the end of a log.
    pub async fn until_end(&mut self, gateways: &[String], log: &Log) {
        while !self.is_at_end(log) {
            let gateway = &gateways[self.sessions % gateways.len()];
            if self.follow(gateway, async |viewer| !viewer.is_at_end(log)).await.is_err() {
                pause(RETRY).await;
            }
        }
    }

    fn take(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Records { partition, records, .. } => {
                let received = self.received.entry(partition).or_default();
                received.extend(records.iter().map(|record| (record.offset, hash(&record.payload))));
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

    /// Fails unless exactly what its filter leaves of `log` came, each once, in order, with its own payload.
    ///
    /// # Panics
    /// At the first difference.
    pub fn assert_received(&self, log: &Log) {
        let wanted = |records: &Vec<(u64, Bytes)>| -> Vec<_> {
            let wanted = records.iter().filter(|(_, payload)| self.want.matches(payload));
            wanted.map(|(offset, payload)| (*offset, hash(payload))).collect()
        };
        for (partition, records) in log {
            let (expected, received) = (wanted(records), self.received.get(partition));
            let received = received.map(Vec::as_slice).unwrap_or_default();
            let differs = expected.iter().zip(received).position(|(expected, received)| expected != received);
            let differs = differs.map(|at| (expected[at], received[at]));
            assert_eq!(differs, None, "{:?}: partition {partition}", self.want);
            assert_eq!(received.len(), expected.len(), "{:?}: partition {partition}", self.want);
        }
        assert_eq!(self.gaps, [], "{:?}", self.want);
    }
}

//! What a session may read, and what of it the client wants.
use crate::{
    batch::{self, Malformed, Selected},
    position::{Link, Offset, OutOfRange, Partition},
};
use dashstream_proto::{
    log::v1::{Batch, Record, RecordKind},
    session::v1 as wire,
};
use std::collections::{BTreeMap, BTreeSet};

pub mod graphs;

use graphs::Names;

/// Most values of all lists of one filter together.
pub const FILTER_VALUES_MAX: usize = 1_024;
/// Of a client's text, so much is repeated in errors, characters.
const ECHO_MAX: usize = 64;

/// Tenants whose records a session may read. A record without a tenant is for those who may read all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tenants {
    All,
    Only(BTreeSet<String>),
}

impl Tenants {
    /// Whether records of this tenant may be read; empty for records that have none.
    pub fn allow(&self, tenant_id: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(tenants) => !tenant_id.is_empty() && tenants.contains(tenant_id),
        }
    }
}

impl From<&Tenants> for wire::Access {
    fn from(tenants: &Tenants) -> Self {
        match tenants {
            Tenants::All => Self { all_tenants: true, tenant_ids: Vec::new() },
            Tenants::Only(tenants) => {
                Self { all_tenants: false, tenant_ids: tenants.iter().cloned().collect() }
            }
        }
    }
}

/// A filter that can't be granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFilter {
    #[error("subscribe.filter has {0} values: expected at most {FILTER_VALUES_MAX}")]
    TooMany(usize),
    #[error("subscribe.filter.kinds has {0}: expected values of RecordKind other than 0")]
    Kind(i32),
    #[error("subscribe.filter.partitions has: {0}")]
    Partition(#[from] OutOfRange),
    #[error("subscribe.filter.tenant_ids names {0:?}, which this session may not read")]
    Tenant(String),
}

/// Which records of the stream a session is sent: those that it may read and its client wants.
///
/// Empty lists match everything. A gap record always matches, since nobody can say what was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    tenants: Tenants,
    threads: BTreeSet<String>,
    graphs: BTreeSet<String>,
    kinds: BTreeSet<i32>,
    partitions: BTreeSet<Partition>,
}

impl Filter {
    /// All that may be read.
    pub fn all(access: Tenants) -> Self {
        Self {
            tenants: access,
            threads: BTreeSet::new(),
            graphs: BTreeSet::new(),
            kinds: BTreeSet::new(),
            partitions: BTreeSet::new(),
        }
    }

    /// What a client asks for, within what it may read.
    ///
    /// # Errors
    /// [`BadFilter`] when a value can't be, there are too many, or a tenant is not the session's.
    pub fn new(access: &Tenants, asked: wire::Filter) -> Result<Self, BadFilter> {
        let wire::Filter { tenant_ids, thread_ids, kinds, partitions, graph_names } = asked;
        let values = tenant_ids.len() + thread_ids.len() + kinds.len() + partitions.len() + graph_names.len();
        if values > FILTER_VALUES_MAX {
            return Err(BadFilter::TooMany(values));
        }
        if let Some(tenant) = tenant_ids.iter().find(|tenant| !access.allow(tenant)) {
            return Err(BadFilter::Tenant(tenant.chars().take(ECHO_MAX).collect()));
        }
        let known =
            |kind: &&i32| RecordKind::try_from(**kind).is_ok_and(|kind| kind != RecordKind::Unspecified);
        if let Some(kind) = kinds.iter().find(|kind| !known(kind)) {
            return Err(BadFilter::Kind(*kind));
        }
        let tenants = if tenant_ids.is_empty() {
            access.clone()
        } else {
            Tenants::Only(tenant_ids.into_iter().collect())
        };
        Ok(Self {
            tenants,
            threads: thread_ids.into_iter().collect(),
            graphs: graph_names.into_iter().collect(),
            kinds: kinds.into_iter().collect(),
            partitions: partitions.into_iter().map(Partition::new).collect::<Result<_, _>>()?,
        })
    }

    /// Nothing of a partition that is read is left out.
    pub fn keeps_all(&self) -> bool {
        self.tenants == Tenants::All
            && self.threads.is_empty()
            && self.graphs.is_empty()
            && self.kinds.is_empty()
    }

    /// Whether anything of this partition is read.
    pub fn reads(&self, partition: Partition) -> bool {
        self.partitions.is_empty() || self.partitions.contains(&partition)
    }

    /// It can only be applied where the graphs of the threads are known.
    pub fn by_graph(&self) -> bool {
        !self.graphs.is_empty()
    }

    /// The tenants of the records that pass.
    pub fn tenants(&self) -> &Tenants {
        &self.tenants
    }

    /// Whether any record of this thread may pass. Its graph, and the kinds of its records, are not asked.
    pub fn may_pass(&self, tenant_id: &str, thread_id: &str) -> bool {
        self.tenants.allow(tenant_id) && (self.threads.is_empty() || self.threads.contains(thread_id))
    }

    /// What it leaves of the records of a batch behind `after`.
    ///
    /// # Errors
    /// [`Malformed`] when its records do not parse.
    pub fn apply(
        &self,
        batch: &Batch,
        names: &Names,
        after: Link,
        since: Option<&Since>,
    ) -> Result<Selected, Malformed> {
        let mut named = BTreeMap::new();
        batch::select(batch, |record| {
            if self.by_graph()
                && let Some(graph) = graph_of(record)
            {
                named.insert(record.thread_id.clone(), graph.to_owned());
            }
            Some(Offset::clamped(record.offset)) > after
                && since.is_none_or(|since| since.lets(record))
                && self.matches(record, names, &named)
        })
    }

    fn matches(&self, record: &Record, names: &Names, named: &BTreeMap<String, String>) -> bool {
        if record.kind() == RecordKind::Gap {
            return true;
        }
        let of_graph = |thread: &str| {
            let graph = named.get(thread).map(String::as_str).or_else(|| names.graph(thread));
            graph.is_some_and(|graph| self.graphs.contains(graph))
        };
        self.tenants.allow(&record.tenant_id)
            && (self.kinds.is_empty() || self.kinds.contains(&record.kind))
            && (self.threads.is_empty() || threads_of(record).any(|thread| self.threads.contains(thread)))
            && (self.graphs.is_empty() || threads_of(record).any(of_graph))
    }
}

/// Up to a mark, only what follows in some threads; behind it everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// The last offset of which only the threads' records are let through.
    pub mark: Link,
    /// Each thread's first record to let through.
    pub threads: BTreeMap<String, u64>,
}

impl Since {
    fn lets(&self, record: &Record) -> bool {
        let begun = |thread: &str| self.threads.get(thread).is_some_and(|first| *first <= record.offset);
        Some(Offset::clamped(record.offset)) > self.mark
            || record.kind() == RecordKind::Gap
            || threads_of(record).any(begun)
    }
}

/// Every thread that a record concerns.
pub fn threads_of(record: &Record) -> impl Iterator<Item = &str> {
    let more = record.more_threads.iter().map(|thread| thread.thread_id.as_str());
    std::iter::once(record.thread_id.as_str()).chain(more)
}

/// The graph that a record names; `None` where it says nothing.
pub fn graph_of(record: &Record) -> Option<&str> {
    record.facts.as_ref().map(|facts| facts.graph_name.as_str()).filter(|graph| !graph.is_empty())
}

#[cfg(test)]
mod tests;

//! Which graph each thread runs, as far as the gateway knows.
//!
//! A record says it only where its run begins. What passes live is noted; the rest is asked of replay's
//! directory, and remembered within a bound.
use super::{graph_of, threads_of};
use crate::batch;
use dashstream_proto::log::v1::Batch;
use std::collections::{BTreeMap, BTreeSet};

/// A thread that had named no graph is asked for again after so many ticks: what it named since may have passed
/// elsewhere.
const UNNAMED_TICKS: u32 = 5;
/// A graph is asked for again after as many ticks, or twice as many.
const NAMED_TICKS: u32 = 60;

/// Graphs of the threads of some batches: all of them are in it. `None` for one that has named none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(BTreeMap<String, Option<String>>);

impl FromIterator<(String, Option<String>)> for Names {
    fn from_iter<T: IntoIterator<Item = (String, Option<String>)>>(graphs: T) -> Self {
        Self(graphs.into_iter().collect())
    }
}

impl Names {
    /// The thread's graph, where it has named one.
    pub fn graph(&self, thread: &str) -> Option<&str> {
        self.0.get(thread)?.as_deref()
    }

    /// Every thread has named its graph, so what a filter leaves will not change.
    pub fn complete(&self) -> bool {
        self.0.values().all(Option::is_some)
    }
}

/// A bounded memory of threads' graphs, in two generations: what was not renewed in the younger one goes with the
/// older.
#[derive(Debug)]
pub struct Graphs {
    young: BTreeMap<String, Option<String>>,
    old: BTreeMap<String, Option<String>>,
    threads_max: usize,
    ticks: u32,
}

impl Graphs {
    /// Remembers at most `threads_max` threads, at least 2.
    pub fn new(threads_max: usize) -> Self {
        Self { young: BTreeMap::new(), old: BTreeMap::new(), threads_max, ticks: 0 }
    }

    /// Threads remembered.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What records of the log's end say is newer than anything known.
    pub fn note(&mut self, batch: &Batch) {
        for record in batch::records(batch).flatten() {
            if let Some(graph) = graph_of(&record) {
                self.put(record.thread_id.clone(), Some(graph.to_owned()));
            }
        }
    }

    /// What the directory says: no news where the thread is known.
    pub fn learn(&mut self, thread: &str, graph: Option<&str>) {
        let known = self.young.get(thread).or_else(|| self.old.get(thread));
        if !matches!(known, Some(Some(_))) {
            self.put(thread.to_owned(), graph.map(str::to_owned));
        }
    }

    /// The graphs of all threads of these batches.
    ///
    /// # Errors
    /// Those that are not known, each once.
    pub fn names<'a>(&self, batches: impl Iterator<Item = &'a Batch>) -> Result<Names, Vec<String>> {
        let (mut names, mut unknown) = (BTreeMap::new(), BTreeSet::new());
        for record in batches.flat_map(batch::records).flatten() {
            for thread in threads_of(&record).filter(|thread| !thread.is_empty()) {
                if names.contains_key(thread) || unknown.contains(thread) {
                    continue;
                }
                match self.young.get(thread).or_else(|| self.old.get(thread)) {
                    Some(graph) => drop(names.insert(thread.to_owned(), graph.clone())),
                    None => drop(unknown.insert(thread.to_owned())),
                }
            }
        }
        if unknown.is_empty() { Ok(Names(names)) } else { Err(unknown.into_iter().collect()) }
    }

    /// Time passes: a tick is a second.
    pub fn on_tick(&mut self) {
        self.ticks += 1;
        if self.ticks.is_multiple_of(UNNAMED_TICKS) {
            self.young.retain(|_, graph| graph.is_some());
            self.old.retain(|_, graph| graph.is_some());
        }
        if self.ticks.is_multiple_of(NAMED_TICKS) {
            self.old = std::mem::take(&mut self.young);
        }
    }

    fn put(&mut self, thread: String, graph: Option<String>) {
        self.old.remove(&thread);
        self.young.insert(thread, graph);
        if self.young.len() >= self.threads_max / 2 {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

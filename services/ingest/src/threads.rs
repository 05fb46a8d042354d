//! In which partition each thread was seen first. A thread that appears in two has no order across them: its
//! producers do not agree on how keys become partitions, or the topic was given more of them.
use dashstream_core::position::Partition;
use quick_cache::sync::Cache;
use std::{collections::hash_map::RandomState, hash::BuildHasher, sync::Arc};

/// Threads that are remembered; those not seen for longest are forgotten first.
const THREADS_MAX: usize = 100_000;

/// Shared by the pipelines. Threads are known by a 64-bit hash with a key of this process.
#[derive(Clone, Debug)]
pub struct Threads {
    homes: Arc<Cache<u64, Partition>>,
    hasher: RandomState,
}

impl Default for Threads {
    fn default() -> Self {
        Self { homes: Arc::new(Cache::new(THREADS_MAX)), hasher: RandomState::new() }
    }
}

impl Threads {
    /// The partition in which a thread was seen before, when it is another than this one.
    pub fn home(&self, tenant: &str, thread: &str, here: Partition) -> Option<Partition> {
        let name = self.hasher.hash_one((tenant, thread));
        match self.homes.get(&name) {
            Some(home) => (home != here).then_some(home),
            None => {
                self.homes.insert(name, here);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_at_home_where_it_was_first() {
        let threads = Threads::default();
        let [one, two] = [1, 2].map(|partition| Partition::new(partition).unwrap());
        assert_eq!(threads.home("acme", "t", one), None);
        assert_eq!(threads.home("acme", "t", one), None);
        assert_eq!(threads.home("acme", "t", two), Some(one));
        assert_eq!(threads.home("other", "t", two), None, "another tenant's thread");
    }
}

//! From names to addresses, again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::unfold;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::Stream;

use crate::config::Targets;

const INTERVAL: Duration = Duration::from_secs(5);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Every address behind `targets`, sorted, each once: for a caller that holds a stream per replica.
///
/// Names that do not resolve now are left out. Of a name with addresses of both families only the
/// IPv4 ones count, or each replica would be there twice.
pub async fn resolve(targets: &Targets) -> Vec<SocketAddr> {
    let found = lookup_all(targets).await.into_iter();
    let addresses: BTreeSet<_> = found.filter_map(|(_, found)| found.ok()).flatten().collect();
    addresses.into_iter().collect()
}

/// What [`resolve`] finds, at once and then every 5 s, except that a name which no longer resolves
/// keeps the addresses it had: a DNS server that is away must not take the replicas with it.
pub(super) fn follow(targets: Targets) -> impl Stream<Item = BTreeSet<SocketAddr>> + Send {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    unfold((targets, Known::default(), ticks), |(targets, mut known, mut ticks)| async move {
        ticks.tick().await;
        for (name, found) in lookup_all(&targets).await {
            known.update(name, found);
        }
        Some((known.addresses(), (targets, known, ticks)))
    })
}

/// The last good answer for each name, and whether the last answer was a good one.
#[derive(Debug, Default)]
struct Known(BTreeMap<String, (BTreeSet<SocketAddr>, bool)>);

impl Known {
    /// Logs a name that ceases to resolve or does so again, not each attempt.
    fn update(&mut self, name: String, found: io::Result<BTreeSet<SocketAddr>>) {
        let (addresses, good) = self.0.entry(name.clone()).or_insert((BTreeSet::new(), true));
        match found {
            Ok(found) => {
                if !*good {
                    tracing::info!(name, "name resolves again");
                }
                (*addresses, *good) = (found, true);
            }
            Err(error) => {
                if *good {
                    tracing::warn!(name, %error, "name does not resolve, keeping what is known");
                }
                *good = false;
            }
        }
    }

    fn addresses(&self) -> BTreeSet<SocketAddr> {
        self.0.values().flat_map(|(addresses, _)| addresses).copied().collect()
    }
}

async fn lookup_all(targets: &Targets) -> Vec<(String, io::Result<BTreeSet<SocketAddr>>)> {
    join_all(targets.addresses().iter().map(async |name| (name.clone(), lookup(name).await))).await
}

async fn lookup(name: &str) -> io::Result<BTreeSet<SocketAddr>> {
    let found = timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host(name)).await??;
    Ok(one_family(found.collect()))
}

fn one_family(addresses: BTreeSet<SocketAddr>) -> BTreeSet<SocketAddr> {
    let v4: BTreeSet<_> = addresses.iter().filter(|address| address.is_ipv4()).copied().collect();
    if v4.is_empty() { addresses } else { v4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> BTreeSet<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn addresses_are_sorted_and_each_is_there_once() {
        let targets = "127.0.0.1:8,127.0.0.1:7,127.0.0.1:8".parse().unwrap();
        let found = resolve(&targets).await;
        assert_eq!(found, ["127.0.0.1:7".parse().unwrap(), "127.0.0.1:8".parse().unwrap()]);
    }

    #[test]
    fn a_replica_with_both_families_counts_once() {
        let both = addresses(&["[::1]:7", "127.0.0.1:7"]);
        assert_eq!(one_family(both), addresses(&["127.0.0.1:7"]));
        let only = addresses(&["[::1]:7"]);
        assert_eq!(one_family(only.clone()), only);
    }

    #[test]
    fn a_name_that_ceases_to_resolve_keeps_its_addresses() {
        let mut known = Known::default();
        known.update("replay:1".to_owned(), Ok(addresses(&["10.0.0.1:1"])));
        known.update("replay:1".to_owned(), Err(io::ErrorKind::NotFound.into()));
        assert_eq!(known.addresses(), addresses(&["10.0.0.1:1"]));
        known.update("replay:1".to_owned(), Ok(addresses(&["10.0.0.2:1"])));
        assert_eq!(known.addresses(), addresses(&["10.0.0.2:1"]));
    }
}

//! Which replicas a balanced channel may use: those that resolve and say that they serve.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::{Pin, pin};

use tokio::sync::mpsc::Sender;
use tokio_stream::{Stream, StreamExt as _, StreamMap};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic::transport::channel::Change;

use super::{health, resolve};
use crate::auth::Trust;
use crate::config::Targets;

/// How many changes may wait for the channel, which takes them only when it is called.
pub(super) const CHANGES_MAX: usize = 1024;

type Changes = Sender<Change<SocketAddr, Endpoint>>;
type Watches = StreamMap<SocketAddr, Pin<Box<dyn Stream<Item = bool> + Send>>>;

/// Keeps the channel behind `changes` up to date until the stop, or until nobody holds it.
pub(super) async fn run(targets: Targets, trust: Trust, changes: Changes, stop: CancellationToken) {
    let mut resolved = pin!(resolve::follow(targets));
    let mut watches = Watches::new();
    let mut fleet = Fleet::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = changes.closed() => return,
            Some(addresses) = resolved.next() => {
                fleet.resolved(&addresses);
                follow(&mut watches, &addresses, &trust);
            }
            Some((address, serving)) = watches.next() => fleet.heard(address, serving),
        }
        fleet.tell(&changes, &trust);
    }
}

fn follow(watches: &mut Watches, addresses: &BTreeSet<SocketAddr>, trust: &Trust) {
    let gone: Vec<_> = watches.keys().filter(|key| !addresses.contains(key)).copied().collect();
    for address in gone {
        watches.remove(&address);
    }
    for address in addresses {
        if !watches.contains_key(address) {
            watches.insert(*address, Box::pin(health::watch(*address, trust.clone())));
        }
    }
}

/// The replicas of one service.
#[derive(Debug, Default)]
struct Fleet {
    /// Those that resolve, and whether they serve; a new one is not known to.
    serving: BTreeMap<SocketAddr, bool>,
    /// Those the channel was told of.
    told: BTreeSet<SocketAddr>,
}

impl Fleet {
    fn resolved(&mut self, addresses: &BTreeSet<SocketAddr>) {
        self.serving.retain(|address, _| addresses.contains(address));
        for address in addresses {
            self.serving.entry(*address).or_insert(false);
        }
    }

    fn heard(&mut self, address: SocketAddr, serving: bool) {
        if let Some(known) = self.serving.get_mut(&address)
            && std::mem::replace(known, serving) != serving
        {
            tracing::info!(%address, serving, "replica changed");
        }
    }

    /// Those that serve. If none does then all, so that calls fail with a reason, not in silence.
    fn wanted(&self) -> BTreeSet<SocketAddr> {
        let serving = self.serving.iter().filter(|(_, serving)| **serving);
        let serving: BTreeSet<_> = serving.map(|(address, _)| *address).collect();
        if serving.is_empty() { self.serving.keys().copied().collect() } else { serving }
    }

    /// Sends what changed. What does not fit is left for the next time, at most 5 s later.
    fn tell(&mut self, changes: &Changes, trust: &Trust) {
        let wanted = self.wanted();
        for address in wanted.difference(&self.told.clone()) {
            let Ok(endpoint) = super::endpoint(&address.to_string(), trust) else {
                continue;
            };
            if changes.try_send(Change::Insert(*address, endpoint)).is_ok() {
                self.told.insert(*address);
            }
        }
        for address in self.told.clone().difference(&wanted) {
            if changes.try_send(Change::Remove(*address)).is_ok() {
                self.told.remove(address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn addresses(ports: &[u16]) -> BTreeSet<SocketAddr> {
        ports.iter().copied().map(address).collect()
    }

    #[test]
    fn only_replicas_that_serve_are_used_unless_none_does() {
        let mut fleet = Fleet::default();
        fleet.resolved(&addresses(&[1, 2]));
        assert_eq!(fleet.wanted(), addresses(&[1, 2]), "nothing heard yet");
        fleet.heard(address(1), true);
        assert_eq!(fleet.wanted(), addresses(&[1]));
        fleet.heard(address(1), false);
        assert_eq!(fleet.wanted(), addresses(&[1, 2]), "none serves");
    }

    #[test]
    fn a_replica_that_vanished_is_forgotten() {
        let mut fleet = Fleet::default();
        fleet.resolved(&addresses(&[1, 2]));
        fleet.heard(address(1), true);
        fleet.resolved(&addresses(&[2]));
        fleet.heard(address(1), true);
        assert_eq!(fleet.wanted(), addresses(&[2]));
    }

    #[test]
    fn the_channel_is_told_of_changes_only() {
        let (changes, mut told) = tokio::sync::mpsc::channel(CHANGES_MAX);
        let mut fleet = Fleet::default();
        fleet.resolved(&addresses(&[1]));
        fleet.tell(&changes, &Trust::default());
        fleet.tell(&changes, &Trust::default());
        fleet.resolved(&addresses(&[2]));
        fleet.tell(&changes, &Trust::default());
        assert!(matches!(told.try_recv(), Ok(Change::Insert(a, _)) if a == address(1)));
        assert!(matches!(told.try_recv(), Ok(Change::Insert(a, _)) if a == address(2)));
        assert!(matches!(told.try_recv(), Ok(Change::Remove(a)) if a == address(1)));
        assert!(told.try_recv().is_err());
    }
}

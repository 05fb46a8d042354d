//! Whether this process may be given work, and if not, what it waits for.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a latch says before its holder has said anything.
const STARTING: &str = "starting";

/// Ready when every [`Latch`] is, and until the process is told to stop. A cheap handle.
#[derive(Clone, Debug)]
pub struct Readiness {
    state: Arc<watch::Sender<State>>,
    stop: CancellationToken,
}

/// Only latches that are not ready are kept.
#[derive(Debug, Default)]
struct State {
    last_id: u64,
    waiting: BTreeMap<u64, (&'static str, String)>,
}

/// One thing that must be there before the process is ready; held by who knows about it. Dropping
/// it withdraws the condition.
#[derive(Debug)]
pub struct Latch {
    readiness: Readiness,
    id: u64,
    waits_for: &'static str,
}

impl Readiness {
    /// Ready at once, as nothing is waited for; no longer when `stop` is cancelled.
    pub fn new(stop: CancellationToken) -> Self {
        Self { state: Arc::new(watch::Sender::new(State::default())), stop }
    }

    /// Adds a condition, which is not met until [`Latch::ready`]. `waits_for` names it in the answer
    /// of `/readyz`: `kafka`, `replay`.
    pub fn latch(&self, waits_for: &'static str) -> Latch {
        let mut id = 0;
        self.state.send_modify(|state| {
            state.last_id += 1;
            id = state.last_id;
            state.waiting.insert(id, (waits_for, STARTING.to_owned()));
        });
        Latch { readiness: self.clone(), id, waits_for }
    }

    /// What is waited for, and why, oldest first. Empty means ready.
    pub fn waiting(&self) -> Vec<(&'static str, String)> {
        let draining = self.stop.is_cancelled().then(|| ("process", "draining".to_owned()));
        draining.into_iter().chain(self.state.borrow().waiting.values().cloned()).collect()
    }

    /// Whether the process may be given work.
    pub fn is_ready(&self) -> bool {
        !self.stop.is_cancelled() && self.state.borrow().waiting.is_empty()
    }

    /// Waits until readiness is not what the caller knows, and tells what it is. No change between
    /// two calls is lost, since it is the value that is compared.
    pub async fn differs_from(&self, known: bool) -> bool {
        let mut state = self.state.subscribe();
        while self.is_ready() == known {
            tokio::select! {
                // The sender is held by `self`, so this cannot fail.
                _ = state.changed() => {}
                () = self.stop.cancelled(), if !self.stop.is_cancelled() => {}
            }
        }
        !known
    }

    /// Waits until readiness is not what it is now. In a loop use [`Readiness::differs_from`].
    pub async fn changed(&self) -> bool {
        self.differs_from(self.is_ready()).await
    }
}

impl Latch {
    /// The condition is met.
    pub fn ready(&self) {
        self.readiness.state.send_if_modified(|state| state.waiting.remove(&self.id).is_some());
    }

    /// The condition is not met, or no longer.
    pub fn not_ready(&self, why: impl Into<String>) {
        let why = (self.waits_for, why.into());
        self.readiness.state.send_if_modified(|state| {
            let before = state.waiting.insert(self.id, why.clone());
            before.as_ref() != Some(&why)
        });
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.ready();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_every_latch_is() {
        let readiness = Readiness::new(CancellationToken::new());
        assert!(readiness.is_ready());
        let (kafka, replay) = (readiness.latch("kafka"), readiness.latch("replay"));
        kafka.ready();
        assert_eq!(readiness.waiting(), [("replay", "starting".to_owned())]);
        replay.ready();
        assert!(readiness.is_ready());
        kafka.not_ready("no broker answers");
        assert_eq!(readiness.waiting(), [("kafka", "no broker answers".to_owned())]);
    }

    #[test]
    fn a_dropped_latch_is_withdrawn() {
        let readiness = Readiness::new(CancellationToken::new());
        drop(readiness.latch("kafka"));
        assert!(readiness.is_ready());
    }

    #[tokio::test]
    async fn a_change_before_the_wait_is_not_lost() {
        let readiness = Readiness::new(CancellationToken::new());
        let latch = readiness.latch("kafka");
        let known = readiness.is_ready();
        latch.ready();
        assert!(readiness.differs_from(known).await);
    }

    #[tokio::test]
    async fn a_stop_is_a_change_and_final() {
        let stop = CancellationToken::new();
        let readiness = Readiness::new(stop.clone());
        let (changed, ()) = tokio::join!(readiness.changed(), async { stop.cancel() });
        assert!(!changed);
        assert_eq!(readiness.waiting(), [("process", "draining".to_owned())]);
    }
}

//! What stops all consumption of this replica: a bad record, where the policy is to halt.
use dashstream_core::position::{Offset, Partition};
use dashstream_kit::ops::Latch;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Held by each partition that stands at a bad record. A cheap handle.
#[derive(Clone, Debug, Default)]
pub struct Brake(Arc<watch::Sender<Held>>);

type Held = BTreeMap<Partition, (Offset, String)>;

impl Brake {
    /// Stops everything until [`Self::release`].
    pub fn pull(&self, partition: Partition, at: Offset, why: String) {
        let held = self.0.send_if_modified(|held| held.insert(partition, (at, why.clone())).is_none());
        if held {
            tracing::error!(%partition, offset = %at, why, "halted: nothing is consumed until an operator decides");
        }
    }

    /// The partition no longer stands at a bad record, or is not ours any more.
    pub fn release(&self, partition: Partition) {
        if self.0.send_if_modified(|held| held.remove(&partition).is_some()) {
            tracing::warn!(%partition, halted = self.reason(), "brake released");
        }
    }

    /// Why nothing is consumed; `None` while something is.
    pub fn reason(&self) -> Option<String> {
        let held = self.0.borrow();
        let (partition, (at, why)) = held.first_key_value()?;
        Some(format!("halted at partition {partition}, offset {at}: {why}"))
    }

    /// To wait for a change.
    pub fn subscribe(&self) -> watch::Receiver<Held> {
        self.0.subscribe()
    }

    /// Turns readiness off while it is held.
    pub(crate) async fn guard(self, latch: Latch, stop: CancellationToken) {
        let mut held = self.subscribe();
        loop {
            match self.reason() {
                Some(reason) => latch.not_ready(reason),
                None => latch.ready(),
            }
            if stop.run_until_cancelled(held.changed()).await.is_none() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_until_the_last_one_lets_go() {
        let brake = Brake::default();
        let [three, five] = [3, 5].map(|partition| Partition::new(partition).unwrap());
        let at = Offset::new(17).unwrap();
        assert_eq!(brake.reason(), None);
        brake.pull(five, at, "it is empty".into());
        brake.pull(three, at, "it is corrupt".into());
        brake.pull(three, at, "judged again".into());
        brake.release(three);
        assert_eq!(brake.reason().unwrap(), "halted at partition 5, offset 17: it is empty");
        brake.release(three);
        brake.release(five);
        assert_eq!(brake.reason(), None);
    }
}

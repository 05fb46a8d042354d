//! Requests in flight, of which equal ones are made once.
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

/// Ended requests are swept up when there are so many entries.
const SWEEP_AT: usize = 64;

type Weak<V> = WeakShared<BoxFuture<'static, V>>;

/// A cheap handle.
#[derive(Debug)]
pub struct Flights<K, V: Clone>(Arc<Mutex<HashMap<K, Weak<V>>>>);

impl<K, V: Clone> Clone for Flights<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V: Clone> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash, V: Clone> Flights<K, V> {
    /// Joins an equal request that is in flight, or makes it. It ends when all who wait for it are gone.
    pub async fn join(&self, key: K, make: impl FnOnce() -> BoxFuture<'static, V>) -> V {
        self.flight(key, make).await
    }

    fn flight(&self, key: K, make: impl FnOnce() -> BoxFuture<'static, V>) -> Shared<BoxFuture<'static, V>> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let flying = flights.get(&key).and_then(WeakShared::upgrade).filter(|flight| flight.peek().is_none());
        if let Some(flight) = flying {
            return flight;
        }
        if flights.len() >= SWEEP_AT {
            flights.retain(|_, flight| flight.upgrade().is_some());
        }
        let flight = make().shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(key, weak);
        }
        flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::watch;

    /// Asks `requests` times at once for what comes when `gate` opens; says how often it was made.
    async fn made(flights: &Flights<u8, u32>, requests: usize, key: impl Fn(usize) -> u8) -> u32 {
        let (gate, made) = (watch::Sender::new(false), Arc::new(AtomicU32::new(0)));
        let ask = |request| {
            let (mut open, made) = (gate.subscribe(), Arc::clone(&made));
            let make = move || {
                let made = made.fetch_add(1, Ordering::Relaxed) + 1;
                async move { open.wait_for(|open| *open).await.map_or(0, |_| made) }.boxed()
            };
            flights.join(key(request), make)
        };
        let asking = futures_util::future::join_all((0..requests).map(ask));
        let opening = async {
            gate.send_replace(true);
        };
        tokio::join!(asking, opening);
        made.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn equal_requests_in_flight_are_made_once_and_later_ones_anew() {
        let flights = Flights::default();
        assert_eq!(made(&flights, 100, |_| 1).await, 1);
        assert_eq!(made(&flights, 100, |_| 1).await, 1, "not answered with what ended");
        assert_eq!(made(&flights, 100, |request| request as u8 % 3).await, 3);
    }

    #[tokio::test]
    async fn a_request_that_nobody_waits_for_is_given_up_and_forgotten() {
        let flights: Flights<u32, u32> = Flights::default();
        for key in 0..1_000 {
            let waits = flights.join(key, || std::future::pending().boxed());
            assert!(waits.now_or_never().is_none());
        }
        assert!(flights.0.lock().unwrap().len() <= SWEEP_AT);
        assert_eq!(flights.join(7, || async { 5 }.boxed()).await, 5);
    }
}

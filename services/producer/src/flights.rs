//! The messages that Kafka's client has, by the number under which it will tell what became of them.
use crate::{budget::Kind, thread::Carries};
use std::{collections::VecDeque, time::Instant};

/// A message with Kafka's client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    pub(crate) run: u64,
    pub(crate) kind: Kind,
    pub(crate) carries: Carries,
    /// Memory that it takes, bytes.
    pub(crate) bytes: usize,
    /// When the application said it.
    pub(crate) said: Instant,
}

/// Flights, of which those longest out come back first as a rule.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    first: usize,
    out: VecDeque<Option<Flight>>,
}

impl Flights {
    /// Takes a flight in, and gives it its number.
    pub(crate) fn depart(&mut self, flight: Flight) -> usize {
        self.out.push_back(Some(flight));
        self.first.wrapping_add(self.out.len() - 1)
    }

    /// A flight is over. `None` if there is none of that number.
    pub(crate) fn arrive(&mut self, number: usize) -> Option<Flight> {
        let flight = self.out.get_mut(number.wrapping_sub(self.first))?.take();
        while let Some(None) = self.out.front() {
            self.out.pop_front();
            self.first = self.first.wrapping_add(1);
        }
        flight
    }

    /// When the application said the first of those that are out.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.out.front().copied().flatten().map(|flight| flight.said)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Ends all flights at once.
    pub(crate) fn abandon(&mut self) -> impl Iterator<Item = Flight> {
        self.first = self.first.wrapping_add(self.out.len());
        std::mem::take(&mut self.out).into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flight_arrives_once_in_any_order_and_the_oldest_is_known() {
        let said = Instant::now();
        let flight = |run| Flight { run, kind: Kind::Event, carries: Carries::NoState, bytes: 1, said };
        let mut flights = Flights::default();
        let numbers: Vec<_> = (0..4).map(|run| flights.depart(flight(run))).collect();
        for at in [2, 0, 3, 1] {
            assert_eq!(flights.oldest(), Some(said));
            assert_eq!(flights.arrive(numbers[at]).map(|flight| flight.run), Some(at as u64));
            assert!(flights.arrive(numbers[at]).is_none());
        }
        assert!(flights.is_empty() && flights.oldest().is_none());
        let last = flights.depart(flight(9));
        assert_eq!(flights.abandon().map(|flight| flight.run).collect::<Vec<_>>(), [9]);
        assert!(flights.arrive(last).is_none());
    }
}

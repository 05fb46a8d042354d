//! Keeps a partition's ring whole: takes what the owners feed, in whatever state they are, and says what must
//! be fetched from replay to close the chain.
//!
//! Where records come from does not matter: old owners, new owners and replay may repeat and overtake each
//! other. Only what is adjacent enters the ring.
use crate::{
    batch::{Span, cut_after},
    position::{Epoch, Link, Step, step},
    ring::Ring,
    slot::Stamp,
};
use dashstream_proto::log::v1::Batch;
use std::collections::VecDeque;

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// An owner fed a batch, which is durable.
    Live(Batch),
    /// An owner said what its last durable record is.
    Heartbeat { epoch: Epoch, durable: Link },
    /// Replay answered a fetch. `end` is the last record that it holds.
    Page { epoch: Epoch, batches: Vec<Batch>, end: Link },
    /// Replay no longer holds what lies up to `last`.
    Gap { epoch: Epoch, last: Link },
    /// Replay's log is in this epoch, and holds records up to `end`.
    Stale { epoch: Epoch, end: Link },
    /// Replay did not answer, or knows nothing of the partition.
    FetchFailed,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Nothing,
    /// Readers find more.
    Advanced,
    /// Ask replay for what follows `after`. One fetch is out at a time.
    Fetch {
        epoch: Epoch,
        after: Link,
    },
}

/// Invariant: the ring is of `epoch`; `durable` is at least the ring's end; `waiting` is beyond the ring's end.
#[derive(Debug)]
pub struct Tail {
    epoch: Option<Epoch>,
    ring: Ring,
    durable: Link,
    waiting: VecDeque<Batch>,
    waiting_bytes: usize,
    waiting_bytes_max: usize,
    fetching: bool,
}

impl Tail {
    /// Knows nothing yet. The ring is bounded by `ring_bytes_max`, batches that wait for a fetch by as much.
    pub fn new(ring_bytes_max: usize) -> Self {
        Self {
            epoch: None,
            ring: Ring::new(None, ring_bytes_max),
            durable: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            waiting_bytes_max: ring_bytes_max,
            fetching: false,
        }
    }

    /// The epoch of the ring; `None` before anything was heard.
    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The last record that is known to be durable.
    pub fn durable(&self) -> Link {
        self.durable
    }

    /// Bounds the ring, and what waits for a fetch, to other bytes.
    pub fn bound(&mut self, bytes_max: usize) {
        self.ring.bound(bytes_max);
        self.waiting_bytes_max = bytes_max;
    }

    /// Takes what was heard. Frames that are made of it carry `stamp`.
    pub fn on(&mut self, input: Input, stamp: Stamp) -> Output {
        let (end_before, epoch_before) = (self.ring.end(), self.epoch);
        match input {
            Input::Live(batch) => {
                if self.enter(Epoch::new(batch.epoch), batch.link()) {
                    self.durable = self.durable.max(Some(batch.last()));
                    self.wait(batch);
                    self.splice(stamp);
                }
            }
            Input::Heartbeat { epoch, durable } => {
                if self.enter(epoch, durable) {
                    self.durable = self.durable.max(durable);
                }
            }
            Input::Page { epoch, batches, end } => {
                self.fetching = false;
                if self.enter(epoch, end) {
                    self.durable = self.durable.max(end);
                    self.take_page(batches, Stamp { from_replay: true, ..stamp });
                    self.splice(stamp);
                }
                if (self.ring.end(), self.epoch) == (end_before, epoch_before) {
                    return Output::Nothing; // replay is behind the owner: ask again at the next tick
                }
            }
            Input::Gap { epoch, last } => {
                if self.enter(epoch, last) && last > self.ring.end() {
                    self.ring.rebase(last);
                    self.durable = self.durable.max(last);
                    self.splice(stamp);
                }
            }
            Input::Stale { epoch, end } => {
                self.fetching = false;
                if !self.enter(epoch, end) {
                    return Output::Nothing; // replay is in an earlier life than the owner: ask again at the next tick
                }
            }
            Input::FetchFailed => {
                self.fetching = false;
                return Output::Nothing;
            }
        }
        self.next(end_before, epoch_before)
    }

    /// What a tick of the clock asks for: a fetch that failed, or brought nothing, is tried again.
    pub fn on_tick(&mut self) -> Output {
        self.fetch().unwrap_or(Output::Nothing)
    }

    fn next(&mut self, end_before: Link, epoch_before: Option<Epoch>) -> Output {
        let moved = self.ring.end() != end_before || self.epoch != epoch_before;
        match self.fetch() {
            Some(fetch) => fetch,
            None if moved => Output::Advanced,
            None => Output::Nothing,
        }
    }

    fn fetch(&mut self) -> Option<Output> {
        let epoch = self.epoch?;
        if self.fetching || self.ring.end() >= self.durable {
            return None;
        }
        self.fetching = true;
        Some(Output::Fetch { epoch, after: self.ring.end() })
    }

    /// Goes over to a later epoch, standing at `at`. False when the input is of an earlier one.
    fn enter(&mut self, epoch: Epoch, at: Link) -> bool {
        if Some(epoch) > self.epoch {
            self.epoch = Some(epoch);
            self.ring.rebase(at);
            self.durable = at;
            self.waiting.clear();
            self.waiting_bytes = 0;
        }
        Some(epoch) == self.epoch
    }

    fn wait(&mut self, batch: Batch) {
        if Some(batch.last()) <= self.ring.end() {
            return;
        }
        self.waiting_bytes += batch.records.len();
        self.waiting.push_back(batch);
        // What is dropped here is durable, and comes from replay.
        while self.waiting_bytes > self.waiting_bytes_max && self.waiting.len() > 1 {
            if let Some(oldest) = self.waiting.pop_front() {
                self.waiting_bytes -= oldest.records.len();
            }
        }
    }

    /// Moves into the ring what has become adjacent to it.
    fn splice(&mut self, stamp: Stamp) {
        while let Some(batch) = self.waiting.front() {
            if step(self.ring.end(), batch.link(), batch.first()) == Step::Adjacent || self.overlaps(batch) {
                let Some(batch) = self.waiting.pop_front() else { return };
                self.waiting_bytes -= batch.records.len();
                self.push(&batch, stamp);
            } else {
                return;
            }
        }
    }

    fn overlaps(&self, batch: &Batch) -> bool {
        step(self.ring.end(), batch.link(), batch.first()) == Step::Overlaps
    }

    fn take_page(&mut self, batches: Vec<Batch>, stamp: Stamp) {
        for batch in &batches {
            self.push(batch, stamp);
        }
    }

    fn push(&mut self, batch: &Batch, stamp: Stamp) {
        if let Ok(Some(rest)) = cut_after(batch, self.ring.end()) {
            // What is not adjacent is left to the next fetch.
            let _taken: bool = self.ring.push(rest, stamp);
        }
    }
}

#[cfg(test)]
mod tests;

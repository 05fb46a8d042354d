//! How fast a partition is read and written, and when it will be live.
use crate::position::NextOffset;
use std::collections::VecDeque;

/// Seconds over which rates are taken.
const WINDOW: usize = 5;

/// What was known at one second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Records made durable since the beginning.
    pub records: u64,
    /// Everything before it is durable.
    pub next: Option<NextOffset>,
    /// One past the newest readable record.
    pub high_watermark: Option<NextOffset>,
}

/// Invariant: samples are a second apart, and at most one more than the window has seconds.
#[derive(Clone, Debug, Default)]
pub struct Rates(VecDeque<Sample>);

/// When the lag will be gone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Eta {
    Seconds(f64),
    /// It does not close: at least as much is produced as is read.
    Never,
    Unknown,
}

impl Rates {
    /// Takes the sample of a second.
    pub fn push(&mut self, sample: Sample) {
        // What went back was refilled or belongs to another life: a rate across it says nothing.
        if self
            .0
            .back()
            .is_some_and(|last| last.next > sample.next || last.high_watermark > sample.high_watermark)
        {
            self.0.clear();
        }
        self.0.push_back(sample);
        if self.0.len() > WINDOW + 1 {
            self.0.pop_front();
        }
    }

    /// A value's growth each second; `None` while it is unknown.
    fn rate(&self, of: impl Fn(&Sample) -> Option<u64>) -> Option<f64> {
        let (first, last) = (self.0.front()?, self.0.back()?);
        let seconds = self.0.len() - 1;
        if seconds == 0 {
            return None;
        }
        Some((of(last)?.saturating_sub(of(first)?)) as f64 / seconds as f64)
    }

    /// Records made durable each second.
    pub fn records(&self) -> f64 {
        self.rate(|sample| Some(sample.records)).unwrap_or(0.0)
    }

    /// Offsets that Kafka gained each second; `None` while unknown.
    pub fn produced(&self) -> Option<f64> {
        self.rate(|sample| sample.high_watermark.map(NextOffset::get))
    }

    /// When `lag` will be gone at these rates. Both sides are counted in offsets, as the lag is.
    pub fn eta(&self, lag: Option<u64>) -> Eta {
        let consumed = self.rate(|sample| sample.next.map(NextOffset::get));
        match (lag, consumed, self.produced()) {
            (Some(0), _, _) => Eta::Seconds(0.0),
            (Some(lag), Some(consumed), Some(produced)) if consumed > produced => {
                Eta::Seconds(lag as f64 / (consumed - produced))
            }
            (Some(_), Some(_), Some(_)) => Eta::Never,
            _ => Eta::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(samples: &[(u64, u64)]) -> Rates {
        let mut rates = Rates::default();
        for (next, high_watermark) in samples {
            let mark = |value: u64| NextOffset::from_kafka(value as i64).ok();
            rates.push(Sample { records: *next, next: mark(*next), high_watermark: mark(*high_watermark) });
        }
        rates
    }

    #[test]
    fn the_time_to_live_is_the_lag_over_what_it_shrinks_by() {
        for (why, samples, lag, expected) in [
            ("nothing known", &[][..], Some(10), Eta::Unknown),
            ("one sample is no rate", &[(0, 100)], Some(100), Eta::Unknown),
            ("twice as fast as produced", &[(0, 100), (20, 110)], Some(90), Eta::Seconds(9.0)),
            ("it does not close", &[(0, 100), (10, 110)], Some(100), Eta::Never),
            ("it grows", &[(0, 100), (0, 110)], Some(110), Eta::Never),
            ("no lag", &[(0, 100), (100, 100)], Some(0), Eta::Seconds(0.0)),
            ("lag unknown", &[(0, 100), (20, 110)], None, Eta::Unknown),
            ("what went back begins anew", &[(50, 100), (10, 100)], Some(90), Eta::Unknown),
            (
                "only the window counts",
                &[(0, 0), (9, 9), (9, 9), (9, 9), (9, 9), (9, 9), (9, 9)],
                Some(1),
                Eta::Never,
            ),
        ] {
            assert_eq!(rates(samples).eta(lag), expected, "{why}");
        }
    }

    #[test]
    fn what_is_unknown_has_no_rate() {
        let mut rates = Rates::default();
        for records in [0, 8] {
            rates.push(Sample { records, next: None, high_watermark: None });
        }
        assert_eq!((rates.records(), rates.produced()), (8.0, None));
    }
}

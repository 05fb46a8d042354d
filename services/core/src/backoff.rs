//! How long to wait before trying again.
use std::time::Duration;

/// Doubling delays with full jitter, between 0 and a cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Upper bound of the first delay.
    pub base: Duration,
    /// Upper bound of every delay.
    pub cap: Duration,
}

impl Backoff {
    /// The delay before attempt `attempt` (0 is the first retry).
    ///
    /// `random` is uniform in 0..1; it spreads callers that failed together.
    pub fn delay(self, attempt: u32, random: f64) -> Duration {
        let ceiling = self.base.saturating_mul(1_u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(self.cap);
        ceiling.mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_are_spread() {
        let backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(1) };
        let ceilings: Vec<_> = (0..6).map(|attempt| backoff.delay(attempt, 1.0).as_millis()).collect();
        assert_eq!(ceilings, [100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(backoff.delay(3, 0.0), Duration::ZERO);
        assert_eq!(backoff.delay(3, 0.5), Duration::from_millis(400));
        assert_eq!(backoff.delay(u32::MAX, 1.0), Duration::from_secs(1));
    }
}

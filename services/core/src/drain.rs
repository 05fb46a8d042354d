//! How clients are spread over the time in which a gateway leaves.
use std::time::Duration;

/// Multiples of it fall as evenly into the unit interval as any numbers can, however many there are.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

/// When the `turn`-th client shall go, within `window` from the beginning of the drain.
pub fn slot(turn: u64, window: Duration) -> Duration {
    // Beyond 2^32 clients the turns begin anew: an f64 has no digits to spare.
    let turn = (turn & u64::from(u32::MAX)) as f64;
    window.mul_f64((turn * GOLDEN).fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_clients_is_spread_evenly() {
        let window = Duration::from_secs(10);
        for clients in [10_u64, 137, 2_000] {
            let mut seconds = [0_u64; 10];
            for turn in 5_000_000_000..5_000_000_000 + clients {
                let slot = slot(turn, window);
                assert!(slot < window);
                seconds[slot.as_secs() as usize] += 1;
            }
            let (least, most) = (seconds.iter().min().unwrap(), seconds.iter().max().unwrap());
            assert!(most - least <= 3, "{clients}: {seconds:?}");
        }
    }
}

//! When the next check of a backend is due: at its interval, less a lot of up to a
//! tenth, so that checks of many backends, and of many hosts, do not fall together.

use std::time::Duration;

use shifter_common::hash::siphash13;

/// First checks are spread over this long at most.
const SPREAD: Duration = Duration::from_secs(1);
/// At most this part of an interval is taken off.
const JITTER: u32 = 10;

/// Draws lots from a seed; one for each backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lots {
    seed: [u64; 2],
    drawn: u64,
}

impl Lots {
    pub fn new(seed: [u64; 2]) -> Self {
        Self { seed, drawn: 0 }
    }

    /// Evenly spread in `[0, span)`.
    fn draw(&mut self, span: Duration) -> Duration {
        self.drawn += 1;
        let lot = siphash13(self.seed, [self.drawn]) >> 32;
        let span_ns = span.as_nanos() as u64;
        Duration::from_nanos(((u128::from(span_ns) * u128::from(lot)) >> 32) as u64)
    }

    /// From now to the first check.
    pub fn first(&mut self, interval: Duration) -> Duration {
        self.draw(interval.min(SPREAD))
    }

    /// From the beginning of one check to that of the next.
    pub fn next(&mut self, interval: Duration) -> Duration {
        interval - self.draw(interval / JITTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_and_another_does_not() {
        let draws = |seed| {
            let mut lots = Lots::new(seed);
            [0; 8].map(|_| lots.next(Duration::from_secs(2)))
        };
        assert_eq!(draws([1, 2]), draws([1, 2]));
        assert_ne!(draws([1, 2]), draws([1, 3]));
    }

    #[test]
    fn a_check_is_never_later_than_its_interval_and_at_most_a_tenth_earlier() {
        for interval_ms in [100, 2_000, 3_600_000] {
            let interval = Duration::from_millis(interval_ms);
            let mut lots = Lots::new([interval_ms, 7]);
            let mut sum = Duration::ZERO;
            for _ in 0..1_000 {
                let next = lots.next(interval);
                assert!(next <= interval && next >= interval * 9 / 10, "{next:?}");
                sum += next;
            }
            let mean = sum.as_secs_f64() / 1e3 / interval.as_secs_f64();
            assert!((0.94..0.96).contains(&mean), "{mean}");
        }
    }

    #[test]
    fn first_checks_of_many_backends_are_spread() {
        let mut tenths = [0; 10];
        for seed in 0..1_000 {
            let first = Lots::new([seed, 1]).first(Duration::from_secs(60));
            assert!(first < SPREAD);
            tenths[first.as_millis() as usize / 100] += 1;
        }
        assert!(tenths.iter().all(|n| (60..140).contains(n)), "{tenths:?}");
        let short = Duration::from_millis(100);
        assert!(Lots::new([1, 1]).first(short) < short);
    }
}

//! When a candidate has failed too often, as a pure function over counts of a
//! window in two halves: the present one and the one before.

/// Bounds of a breaker; it trips when all are passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// More failures than these.
    pub max_failures: u32,
    /// Of at least so many attempts.
    pub min_attempts: u32,
    /// And a larger share of them, of `2^32`.
    pub max_ratio: u32,
}

impl Bounds {
    /// Whether so many failures of so many attempts are too many.
    #[inline(always)]
    pub const fn are_passed(&self, attempts: u64, failures: u64) -> bool {
        // A flow may have been chosen in the window before the one it failed in.
        let attempts = if attempts < failures {
            failures
        } else {
            attempts
        };
        // No window holds more than 2^31 flows; past it the product would not fit.
        if attempts > MOST {
            return false;
        }
        failures > self.max_failures as u64
            && attempts >= self.min_attempts as u64
            && failures << 32 > attempts * self.max_ratio as u64
    }
}

/// Attempts in a window that are still judged.
const MOST: u64 = 1 << 31;

/// Number of the half window that a time lies in.
#[inline(always)]
pub const fn half_of(now_ns: u64, window_ns: u64) -> u64 {
    let half = window_ns / 2;
    if half == 0 { now_ns } else { now_ns / half }
}

/// Which of the two halves' counts, by index, are no longer of the window when
/// `now` follows `before`: (index 0, index 1).
#[inline(always)]
pub const fn outdated(before: u64, now: u64) -> (bool, bool) {
    if now == before {
        return (false, false);
    }
    if now == before.wrapping_add(1) {
        return (now & 1 == 0, now & 1 == 1);
    }
    (true, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        max_failures: 20,
        min_attempts: 50,
        // 20%
        max_ratio: 858_993_459,
    };

    #[test]
    fn all_bounds_must_be_passed() {
        assert!(BOUNDS.are_passed(100, 21));
        assert!(!BOUNDS.are_passed(100, 20), "20 failures are allowed");
        assert!(!BOUNDS.are_passed(49, 21), "too few attempts");
        assert!(!BOUNDS.are_passed(106, 21), "less than 20%");
        assert!(BOUNDS.are_passed(1 << 31, 1 << 31));
        assert!(!BOUNDS.are_passed(0, 0));
    }

    #[test]
    fn failures_of_earlier_attempts_count_as_attempts() {
        assert!(BOUNDS.are_passed(0, 50));
        assert!(!BOUNDS.are_passed(0, 49));
    }

    #[test]
    fn a_half_is_forgotten_when_it_has_left_the_window() {
        let half = |ns| half_of(ns, 10_000);
        assert_eq!((half(4_999), half(5_000), half(9_999)), (0, 1, 1));
        assert_eq!(outdated(6, 6), (false, false));
        assert_eq!(outdated(6, 7), (false, true));
        assert_eq!(outdated(7, 8), (true, false));
        assert_eq!(outdated(6, 8), (true, true));
        assert_eq!(outdated(8, 6), (true, true));
    }
}

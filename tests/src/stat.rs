//! Exact binomial intervals, for judging shares.

use std::ops::RangeInclusive;

/// Two-sided confidence of a run with a fixed list of seeds.
pub const FIXED_SEEDS: f64 = 0.999;
/// Two-sided confidence of a run with fresh seeds, which must not fail by chance.
pub const FRESH_SEEDS: f64 = 1.0 - 1e-6;

/// Natural logarithm of the gamma function for `x >= 1` (Lanczos, g = 7, n = 9;
/// relative error below 1e-14).
pub fn ln_gamma(x: f64) -> f64 {
    const C: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let t = x + 7.5;
    let sum = C[1..]
        .iter()
        .zip(1u8..)
        .fold(C[0], |sum, (c, i)| sum + c / (x + f64::from(i)));
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

/// Logarithm of P(X = k) for X binomial with `n` and `p`, 0 < p < 1.
fn ln_probability(n: u64, p: f64, k: u64) -> f64 {
    let (n, k) = (n as f64, k as f64);
    ln_gamma(n + 1.0) - ln_gamma(k + 1.0) - ln_gamma(n - k + 1.0)
        + k * p.ln()
        + (n - k) * (-p).ln_1p()
}

/// The counts that X, binomial with `n` and `p`, has with at least
/// `confidence`: each tail outside holds at most half of the rest, exactly.
/// At p = 0 and p = 1 it is the one possible count.
pub fn interval(n: u64, p: f64, confidence: f64) -> RangeInclusive<u64> {
    if p <= 0.0 || n == 0 {
        return 0..=0;
    }
    if p >= 1.0 {
        return n..=n;
    }
    let tail = (1.0 - confidence) / 2.0;
    // `low` is the greatest k with P(X < k) <= tail. Terms are summed from the
    // end of the range; those that underflow add nothing that would count.
    let mut below = 0.0;
    let mut low = 0;
    while low < n {
        below += ln_probability(n, p, low).exp();
        if below > tail {
            break;
        }
        low += 1;
    }
    let mut above = 0.0;
    let mut high = n;
    while high > low {
        above += ln_probability(n, p, high).exp();
        if above > tail {
            break;
        }
        high -= 1;
    }
    low..=high
}

/// Asserts that `green` of `total` is what the share `p` may give.
///
/// # Panics
///
/// When the count lies outside the interval.
pub fn assert_share(what: &str, green: u64, total: u64, p: f64, confidence: f64) {
    let range = interval(total, p, confidence);
    assert!(
        range.contains(&green),
        "{what}: {green} of {total} went to green; a share of {p} gives {range:?} \
         with a probability of {confidence}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gamma_function_gives_factorials() {
        let mut factorial = 1.0f64;
        for n in 1..100u8 {
            factorial *= f64::from(n);
            let error = (ln_gamma(f64::from(n) + 1.0) - factorial.ln()).abs();
            assert!(error < 1e-10, "{n}! is off by {error}");
        }
    }

    #[test]
    fn probabilities_add_up_to_one() {
        for (n, p) in [(10, 0.5), (1_000, 0.05), (100_000, 0.0005)] {
            let sum: f64 = (0..=n).map(|k| ln_probability(n, p, k).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-8, "n {n}, p {p}: {sum}");
        }
    }

    #[test]
    fn intervals_are_those_of_the_tables() {
        // By hand: X ~ B(10, 1/2), P(X <= 1) = 11/1024 = 1.07%, P(X <= 2) = 56/1024 = 5.5%.
        assert_eq!(interval(10, 0.5, 0.95), 2..=8);
        // P(X = 0) = 1/1024 > 0.05%: nothing is outside at 99.9%.
        assert_eq!(interval(10, 0.5, 0.999), 0..=10);
        assert_eq!(interval(100, 0.0, 0.999), 0..=0);
        assert_eq!(interval(100, 1.0, 0.999), 100..=100);
    }

    #[test]
    fn large_intervals_are_close_to_the_normal_ones() {
        let (n, p): (u64, f64) = (100_000, 0.5);
        let range = interval(n, p, FIXED_SEEDS);
        // 3.2905 standard deviations of 158.11.
        assert!((range.start().abs_diff(50_000 - 520)) <= 2, "{range:?}");
        assert!((range.end().abs_diff(50_000 + 520)) <= 2, "{range:?}");
        // 4.8916 standard deviations.
        let range = interval(n, p, FRESH_SEEDS);
        assert!((range.start().abs_diff(50_000 - 773)) <= 2, "{range:?}");
    }

    #[test]
    fn each_tail_outside_holds_at_most_half_of_the_rest() {
        for (n, p) in [(100_000, 0.0005), (100_000, 0.05), (3_000, 1.0 / 3.0)] {
            let range = interval(n, p, FIXED_SEEDS);
            let below: f64 = (0..*range.start())
                .map(|k| ln_probability(n, p, k).exp())
                .sum();
            let next = below + ln_probability(n, p, *range.start()).exp();
            assert!(below <= 0.0005 && next > 0.0005, "n {n}, p {p}: {below}");
        }
    }
}

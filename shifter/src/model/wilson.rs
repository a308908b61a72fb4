//! The interval of an observed share.

/// z of a two-sided 95% interval.
const Z: f64 = 1.959_963_984_540_054;

/// `(share, low, high)`: the 95% Wilson score interval of `hits` out of
/// `total`; `None` without data. Edwin B. Wilson, "Probable inference, the law
/// of succession, and statistical inference", 1927.
pub fn interval(hits: u64, total: u64) -> Option<(f64, f64, f64)> {
    if total == 0 {
        return None;
    }
    let n = total as f64;
    let share = hits.min(total) as f64 / n;
    let z2 = Z * Z;
    let centre = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    Some((share, (centre - half).max(0.0), (centre + half).min(1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_published_values() {
        // R: binom::binom.confint(5, 100, methods = "wilson").
        let (share, low, high) = interval(5, 100).unwrap();
        assert_eq!(share, 0.05);
        assert!((low - 0.021_543_7).abs() < 1e-6, "{low}");
        assert!((high - 0.111_750_5).abs() < 1e-6, "{high}");
    }

    #[test]
    fn nothing_observed_gives_no_interval_and_extremes_stay_within_bounds() {
        assert_eq!(interval(0, 0), None);
        let (share, low, high) = interval(0, 10).unwrap();
        assert!(share == 0.0 && low.abs() < 1e-12 && high > 0.2 && high < 0.3);
        let (share, low, high) = interval(10, 10).unwrap();
        assert!(share == 1.0 && high > 1.0 - 1e-12 && low > 0.7);
    }
}

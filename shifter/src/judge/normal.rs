//! The normal distribution.

use std::f64::consts::PI;

fn density(z: f64) -> f64 {
    (-0.5 * z * z).exp() / (2.0 * PI).sqrt()
}

/// Share above `z`. By the series of G. Marsaglia, "Evaluating the normal
/// distribution", Journal of Statistical Software 11 (2004), and far out by the
/// asymptotic one.
pub(super) fn above(z: f64) -> f64 {
    if z < 0.0 {
        return 1.0 - above(-z);
    }
    if z > 6.0 {
        let z2 = z * z;
        return density(z) / z * (1.0 - 1.0 / z2 + 3.0 / (z2 * z2) - 15.0 / (z2 * z2 * z2));
    }
    let (mut sum, mut term, mut k) = (z, z, 3.0);
    while term > 1e-18 {
        term *= z * z / k;
        sum += term;
        k += 2.0;
    }
    (0.5 - density(z) * sum).max(0.0)
}

/// The `z` above which a share in `(0, 0.5]` lies.
pub(super) fn quantile_above(share: f64) -> f64 {
    let (mut low, mut high) = (0.0, 40.0);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if above(middle) > share {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_published_values() {
        for (z, share) in [
            (0.0, 0.5),
            (1.0, 0.158_655_253_931_457_05),
            (1.959_963_984_540_054, 0.025),
            (2.326_347_874_040_841, 0.01),
            (5.0, 2.866_515_718_791_939e-7),
        ] {
            assert!((above(z) / share - 1.0).abs() < 1e-8, "{z}: {}", above(z));
            assert!((quantile_above(share) - z).abs() < 1e-8);
        }
        assert!((above(-1.0) + above(1.0) - 1.0).abs() < 1e-15);
        assert!((above(7.0) / 1.279_812_543_885_835e-12 - 1.0).abs() < 1e-3);
    }
}

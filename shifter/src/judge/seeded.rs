//! Pseudo-random numbers from a seed, for simulation and A/A.

/// Pseudo-random numbers: splitmix64 (G. Steele, D. Lea, C. Flood, 2014).
#[derive(Clone, Copy, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller, 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (2.0 * std::f64::consts::PI * self.uniform()).cos()
    }

    /// How many of `count` happen, each with a chance of `share`.
    pub fn binomial(&mut self, count: u64, share: f64) -> u64 {
        // Above this the normal approximation is off by less than a part in a thousand.
        const ONE_BY_ONE: u64 = 1_000_000;
        if count <= ONE_BY_ONE {
            return (0..count).filter(|_| self.uniform() < share).count() as u64;
        }
        let mean = count as f64 * share;
        let sigma = (mean * (1.0 - share)).sqrt();
        (mean + sigma * self.normal())
            .round()
            .clamp(0.0, count as f64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_moments_of_their_distributions() {
        let mut random = Random(1);
        let n = 100_000;
        let (mut mean, mut square) = (0.0, 0.0);
        for _ in 0..n {
            let z = random.normal();
            mean += z / f64::from(n);
            square += z * z / f64::from(n);
        }
        assert!(
            mean.abs() < 0.02 && (square - 1.0).abs() < 0.03,
            "{mean} {square}"
        );
        let hits = random.binomial(100_000, 0.3);
        assert!((29_300..30_700).contains(&hits), "{hits}");
        let hits = random.binomial(10_000_000, 0.3);
        assert!((2_993_000..3_007_000).contains(&hits), "{hits}");
        assert_eq!(
            (random.binomial(50, 0.0), random.binomial(50, 1.0)),
            (0, 50)
        );
    }
}

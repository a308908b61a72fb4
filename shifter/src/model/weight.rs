//! Weights: the share of new flows that goes to green.

use std::{fmt, str::FromStr};

use shifter_common::abi::service::THRESHOLD_ONE;

/// An exact share in `[0, 1]`, kept as the fraction it was written as.
/// `5%` is 5/100, `0.05%` is 5/10000, `1/3` is itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Weight {
    numerator: u32,
    denominator: u32,
}

/// Why a text is no weight.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{text:?} is no weight: write a percentage with up to 4 decimals (\"5%\", \"0.05%\") or a fraction (\"1/3\"), from 0 to 100%"
)]
pub struct WeightError {
    pub text: String,
}

impl Weight {
    /// No new flow goes to green.
    pub const ZERO: Self = Self {
        numerator: 0,
        denominator: 100,
    };
    /// Every new flow goes to green.
    pub const ONE: Self = Self {
        numerator: 100,
        denominator: 100,
    };

    /// Hash values in `[0, 2^32)` below it are green's; 0 is none, `2^32` all,
    /// and no weight between rounds to either.
    pub fn threshold(self) -> u64 {
        let (n, d) = (u64::from(self.numerator), u64::from(self.denominator));
        if n == 0 {
            return 0;
        }
        if n == d {
            return THRESHOLD_ONE;
        }
        ((n * THRESHOLD_ONE + d / 2) / d).clamp(1, THRESHOLD_ONE - 1)
    }

    /// A weight with this threshold: a percentage if one fits, else the
    /// simplest fraction, else (for none that a text could have given) the
    /// nearest of 9 digits.
    pub fn from_threshold(threshold: u64) -> Self {
        const NINES: u64 = 999_999_999;
        match threshold {
            0 => return Self::ZERO,
            THRESHOLD_ONE.. => return Self::ONE,
            _ => {}
        }
        let at = |numerator: u128, denominator: u128| Self {
            numerator: numerator as u32,
            denominator: denominator as u32,
        };
        for denominator in [100u128, 1_000, 10_000, 100_000, 1_000_000] {
            let one = u128::from(THRESHOLD_ONE);
            let weight = at(
                (u128::from(threshold) * denominator + one / 2) / one,
                denominator,
            );
            if weight.threshold() == threshold {
                return weight;
            }
        }
        let (t, two) = (u128::from(threshold), 2 * u128::from(THRESHOLD_ONE));
        let (numerator, denominator) = simplest(2 * t - 1, two, 2 * t + 1, two);
        if denominator <= u128::from(NINES) && at(numerator, denominator).threshold() == threshold {
            return at(numerator, denominator);
        }
        at(
            u128::from(threshold * NINES / THRESHOLD_ONE),
            u128::from(NINES),
        )
    }

    /// The nearest share in millionths.
    pub fn millionths(self) -> u64 {
        let (n, d) = (u64::from(self.numerator), u64::from(self.denominator));
        (n * 1_000_000 + d / 2) / d
    }

    /// So many millionths, at most all: a percentage with up to 4 decimals.
    pub fn from_millionths(millionths: u32) -> Self {
        let decimals = [100u32, 1_000, 10_000, 100_000];
        let whole = decimals
            .into_iter()
            .find(|d| millionths.is_multiple_of(1_000_000 / d));
        let denominator = whole.unwrap_or(1_000_000);
        Self {
            numerator: millionths.min(1_000_000) / (1_000_000 / denominator),
            denominator,
        }
    }

    /// As a share in `[0, 1]`.
    pub fn share(self) -> f64 {
        f64::from(self.numerator) / f64::from(self.denominator)
    }

    /// What is left for the other pool.
    pub fn complement(self) -> Self {
        Self {
            numerator: self.denominator - self.numerator,
            denominator: self.denominator,
        }
    }
}

/// The fraction of the smallest denominator between `a/b` and `c/d`, by
/// continued fractions.
fn simplest(a: u128, b: u128, c: u128, d: u128) -> (u128, u128) {
    let whole = a / b;
    if whole * b == a {
        return (whole, 1);
    }
    if whole < c / d {
        return (whole + 1, 1);
    }
    let (n, m) = simplest(d, c - whole * d, b, a - whole * b);
    (whole * n + m, n)
}

/// The share of the hash space below a threshold.
pub fn threshold_share(threshold: u64) -> f64 {
    threshold as f64 / THRESHOLD_ONE as f64
}

impl FromStr for Weight {
    type Err = WeightError;

    fn from_str(text: &str) -> Result<Self, WeightError> {
        let parsed = if let Some(percent) = text.strip_suffix('%') {
            parse_percent(percent)
        } else if let Some((n, d)) = text.split_once('/') {
            parse_digits(n).zip(parse_digits(d))
        } else {
            (text == "0").then_some((0, 100))
        };
        match parsed {
            Some((numerator, denominator)) if denominator > 0 && numerator <= denominator => {
                Ok(Self {
                    numerator,
                    denominator,
                })
            }
            _ => Err(WeightError {
                text: text.to_owned(),
            }),
        }
    }
}

fn parse_digits(text: &str) -> Option<u32> {
    (!text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

fn parse_percent(text: &str) -> Option<(u32, u32)> {
    let (whole, decimals) = match text.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (text, ""),
    };
    if decimals.len() > 4 || whole.len() > 3 {
        return None;
    }
    let scale = 10u32.pow(decimals.len() as u32);
    let fraction = if decimals.is_empty() {
        0
    } else {
        parse_digits(decimals)?
    };
    Some((parse_digits(whole)? * scale + fraction, 100 * scale))
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            numerator,
            denominator,
        } = *self;
        // 100, 1000, ... 1,000,000 come from percentages of 0 to 4 decimals.
        let decimals = [100u32, 1_000, 10_000, 100_000, 1_000_000]
            .iter()
            .position(|d| *d == denominator);
        match decimals {
            Some(0) => write!(f, "{numerator}%"),
            Some(decimals) => {
                let scale = denominator / 100;
                let text = format!("{}.{:0decimals$}", numerator / scale, numerator % scale);
                write!(f, "{}%", text.trim_end_matches('0').trim_end_matches('.'))
            }
            None => write!(f, "{numerator}/{denominator}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_and_written_as_they_were_meant() {
        for text in [
            "0%", "5%", "0.05%", "12.5%", "1/3", "100%", "99.9999%", "2/7",
        ] {
            assert_eq!(text.parse::<Weight>().unwrap().to_string(), text);
        }
        assert_eq!("0".parse::<Weight>().unwrap(), Weight::ZERO);
        assert_eq!("5.00%".parse::<Weight>().unwrap().to_string(), "5%");
    }

    #[test]
    fn zero_is_none_all_is_all_and_nothing_between_rounds_to_either() {
        let threshold = |t: &str| t.parse::<Weight>().unwrap().threshold();
        assert_eq!(threshold("0%"), 0);
        assert_eq!(threshold("100%"), 1 << 32);
        assert_eq!(threshold("3/3"), 1 << 32);
        assert_eq!(threshold("50%"), 1 << 31);
        assert_eq!(threshold("1/999999999"), 4);
        assert!(threshold("999999998/999999999") < 1 << 32);
        assert_eq!(threshold("1/3"), 1_431_655_765);
    }

    #[test]
    fn a_weight_is_found_again_by_its_threshold() {
        for text in [
            "0%",
            "5%",
            "0.05%",
            "99.9999%",
            "1/3",
            "2/7",
            "12345/67891",
            "100%",
        ] {
            let weight: Weight = text.parse().unwrap();
            assert_eq!(Weight::from_threshold(weight.threshold()), weight, "{text}");
        }
        for threshold in [1, 2, 12_345, 987_654_321, THRESHOLD_ONE - 1] {
            let off = Weight::from_threshold(threshold)
                .threshold()
                .abs_diff(threshold);
            assert!(off <= 8, "{threshold} is off by {off}");
        }
    }

    #[test]
    fn what_is_no_weight_is_refused() {
        for text in [
            "", "%", "5", "-5%", "101%", "100.1%", "5.00001%", "1/0", "3/2", "1/", "/3", "5 %",
            "+5%", "5.%", "nan%", "1e1%",
        ] {
            assert!(text.parse::<Weight>().is_err(), "{text:?} was taken");
        }
    }
}

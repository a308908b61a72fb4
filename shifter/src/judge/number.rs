//! Numbers as gates have them: shares in millionths, and finite ones.

use std::{fmt, str::FromStr};

/// A share or a count a flow, in millionths; may be above one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ratio {
    pub ppm: u32,
}

/// Why a text is no ratio.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is no percentage: write one with up to 4 decimals, as \"0.5%\"")]
pub struct RatioError {
    pub text: String,
}

impl Ratio {
    /// Of a whole percentage.
    pub const fn percent(percent: u32) -> Self {
        Self {
            ppm: percent * 10_000,
        }
    }

    /// As a number; 1 is 100%.
    pub fn share(self) -> f64 {
        f64::from(self.ppm) / 1e6
    }
}

impl FromStr for Ratio {
    type Err = RatioError;

    fn from_str(text: &str) -> Result<Self, RatioError> {
        let read = || {
            let number = text.strip_suffix('%')?;
            let (whole, part) = number.split_once('.').unwrap_or((number, ""));
            let is_digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
            if whole.is_empty() || !is_digits(whole) || !is_digits(part) || part.len() > 4 {
                return None;
            }
            if number.ends_with('.') {
                return None;
            }
            let part: u32 = format!("{part:0<4}").parse().ok()?;
            let whole: u32 = whole.parse().ok()?;
            let ppm = whole.checked_mul(10_000)?.checked_add(part)?;
            Some(Self { ppm })
        };
        read().ok_or_else(|| RatioError {
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.ppm / 10_000, self.ppm % 10_000);
        let text = format!("{whole}.{part:04}");
        write!(f, "{}%", text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// A finite number, so that gates can be compared.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub struct Number(f64);

impl Number {
    /// `None` for what is not finite.
    pub fn new(number: f64) -> Option<Self> {
        // Minus zero and zero are one.
        number.is_finite().then_some(Self(number + 0.0))
    }

    /// Of a constant that is finite.
    pub(super) const fn of(number: f64) -> Self {
        assert!(number.is_finite());
        Self(number)
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

// A finite number equals itself.
impl Eq for Number {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_read_and_shown() {
        for (text, ppm) in [
            ("0%", 0),
            ("0.5%", 5_000),
            ("1%", 10_000),
            ("0.0001%", 1),
            ("250%", 2_500_000),
            ("99.9999%", 999_999),
        ] {
            let ratio: Ratio = text.parse().unwrap();
            assert_eq!(ratio.ppm, ppm);
            assert_eq!(ratio.to_string(), text);
        }
        for text in [
            "", "%", "1", "1.%", ".5%", "-1%", "1.00001%", "1e3%", "999999%", "+1%",
        ] {
            assert!(text.parse::<Ratio>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn numbers_are_finite() {
        assert_eq!(Number::new(-0.0), Number::new(0.0));
        assert_eq!(Number::new(f64::NAN), None);
        assert_eq!(Number::new(f64::INFINITY), None);
    }
}

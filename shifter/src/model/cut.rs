//! How fast flows are ended where somebody asks for it.

use std::{fmt, num::NonZeroU32, str::FromStr};

/// Flows a second at most.
const MAX_PER_SECOND: u32 = 100_000;

/// Flows a second; never none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CutRate(NonZeroU32);

/// Of drained backends, where none is given.
pub const DRAIN_RATE: CutRate = CutRate(NonZeroU32::new(100).unwrap());
/// Of backends that are down: their clients wait.
pub const DOWN_RATE: CutRate = CutRate(NonZeroU32::new(1_000).unwrap());

/// Why a pace is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no pace: write flows a second from 1/s to {MAX_PER_SECOND}/s, as \"100/s\"")]
pub struct CutRateFault(String);

impl CutRate {
    /// From a number of flows a second.
    ///
    /// # Errors
    /// When it is none, or more than the agent ends.
    pub fn per_second(flows: u32) -> Result<Self, CutRateFault> {
        NonZeroU32::new(flows)
            .filter(|flows| flows.get() <= MAX_PER_SECOND)
            .map(Self)
            .ok_or_else(|| CutRateFault(format!("{flows}/s")))
    }

    /// Flows a second.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl FromStr for CutRate {
    type Err = CutRateFault;

    fn from_str(text: &str) -> Result<Self, CutRateFault> {
        let flows = text.strip_suffix("/s").and_then(|n| n.parse().ok());
        flows
            .and_then(|flows| Self::per_second(flows).ok())
            .ok_or_else(|| CutRateFault(text.to_owned()))
    }
}

impl fmt::Display for CutRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paces_are_read_as_they_are_shown() {
        for text in ["1/s", "50/s", "100000/s"] {
            assert_eq!(text.parse::<CutRate>().unwrap().to_string(), text);
        }
        for text in ["", "0/s", "100", "100001/s", "-1/s", "1.5/s", "10/m"] {
            let error = text.parse::<CutRate>().unwrap_err().to_string();
            assert!(error.contains("as \"100/s\""), "{error}");
        }
    }
}

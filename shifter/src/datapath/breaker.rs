//! The breaker of a service as the kernel has it: past its bounds no new flow
//! goes to the candidate, whether an agent lives or not.

use shifter_common::{abi::service::THRESHOLD_ONE, breaker::Bounds};

/// When the kernel gives every new flow to the live pool. All bounds must be passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BreakerImage {
    /// Attempts and failures are counted over about so long: at least half of
    /// it, at most all of it.
    pub window_ns: u64,
    /// More failures of the candidate than these.
    pub max_failures: u32,
    /// Of at least so many attempts.
    pub min_attempts: u32,
    /// And a larger share of them, in `[0, 2^32)`.
    pub max_ratio: u32,
}

impl BreakerImage {
    /// As the programs read it.
    pub const fn bounds(&self) -> Bounds {
        Bounds {
            max_failures: self.max_failures,
            min_attempts: self.min_attempts,
            max_ratio: self.max_ratio,
        }
    }

    /// Share of attempts that may fail, in `[0, 1)`.
    pub fn ratio(&self) -> f64 {
        f64::from(self.max_ratio) / THRESHOLD_ONE as f64
    }
}

/// What a breaker has counted, and whether it has tripped.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BreakerState {
    /// Attempts on the candidate in the present window.
    pub attempts: u64,
    /// Failures among them.
    pub failures: u64,
    /// The last time it tripped since its service was made.
    pub trip: Option<Trip>,
}

/// A breaker that tripped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trip {
    /// Under which generation; it holds as long as that is the service's.
    pub generation: u32,
    /// CLOCK_BOOTTIME in ns.
    pub at_ns: u64,
    /// Attempts in the window then.
    pub attempts: u64,
    /// And failures.
    pub failures: u64,
}

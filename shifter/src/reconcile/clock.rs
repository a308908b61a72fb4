//! The clocks that the reconciler reads; a test gives its own.

use std::time::{SystemTime, UNIX_EPOCH};

/// Three clocks of Linux.
pub trait Clock: Send + Sync + 'static {
    /// CLOCK_MONOTONIC in ns.
    fn monotonic_ns(&self) -> u64;
    /// CLOCK_BOOTTIME in ns.
    fn boot_ns(&self) -> u64;
    /// Wall clock in ms since 1970.
    fn unix_ms(&self) -> i64;
}

/// The host's clocks.
#[derive(Clone, Copy, Default, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn monotonic_ns(&self) -> u64 {
        crate::datapath::monotonic_ns()
    }

    fn boot_ns(&self) -> u64 {
        crate::datapath::boot_ns()
    }

    fn unix_ms(&self) -> i64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as i64)
    }
}

//! What the programs see of how pools do: counters and histograms per CPU, the
//! times of flows, and the records of breakers.

use core::mem::size_of;

use crate::histogram::BUCKETS;

/// TCP flows that were chosen. These numbers are indices of [`SignalCounts`].
pub const ATTEMPTS: usize = 0;
/// Handshakes that the backend answered with a SYN-ACK.
pub const ANSWERED: usize = 1;
/// SYNs that were sent again before any answer.
pub const SYN_RETRANSMITS: usize = 2;
/// Handshakes that gave way to another flow without an answer; the agent counts
/// those that it frees in [`BreakerRecord::expired`].
pub const UNANSWERED: usize = 3;
/// SYNs answered with a RST.
pub const REFUSED: usize = 4;
/// Connections that the backend reset before it had sent data.
pub const RESETS_BEFORE_DATA: usize = 5;
/// And after.
pub const RESETS_AFTER_DATA: usize = 6;
/// Connections that the client reset.
pub const CLIENT_RESETS: usize = 7;
/// Segments with data that a client sent again, of watched flows.
pub const CLIENT_RETRANSMITS: usize = 8;
/// And that a backend did.
pub const BACKEND_RETRANSMITS: usize = 9;
/// Connections that came to an end, by FIN both ways or RST.
pub const ENDED: usize = 10;
/// Number of counters.
pub const SIGNAL_COUNTERS: usize = 12;

/// Per service and pool, by the numbers above; index `2 * service + pool`. 96 bytes.
pub type SignalCounts = [u64; SIGNAL_COUNTERS];

/// Services with histograms: those with an id below it.
pub const HISTOGRAM_SERVICES: u32 = 512;
/// From the SYN to the SYN-ACK.
pub const HANDSHAKE: u32 = 0;
/// From the client's first data to the backend's.
pub const FIRST_BYTE: u32 = 1;
/// From the SYN to the end.
pub const DURATION: u32 = 2;
/// Kinds of histograms.
pub const HISTOGRAMS: u32 = 3;

/// One histogram on one CPU: counts by bucket. 1,472 bytes.
pub type HistogramCounts = [u64; BUCKETS];

/// Index of a histogram; below `HISTOGRAM_SERVICES * 2 * HISTOGRAMS` where the
/// service has any.
#[inline(always)]
pub const fn histogram_index(service: u32, pool: u32, kind: u32) -> u32 {
    (service * 2 + pool) * HISTOGRAMS + kind
}

/// Times of a flow and how far its sides have sent, beside its entry: same set,
/// same place. 16 bytes; times in units of 1,024 ns of CLOCK_MONOTONIC, 0 unset.
#[repr(C, align(16))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowTimes {
    /// Of the SYN.
    pub syn: u32,
    /// Of the client's first data.
    pub data: u32,
    /// End of what the client has sent, of watched flows.
    pub client_end: u32,
    /// End of what the backend has sent, of watched flows.
    pub backend_end: u32,
}

/// The times of a set's flows.
pub type TimesSet = [FlowTimes; super::flow::SET_ENTRIES];

/// Sets whose flows have times, at most: those of a `flow_capacity` of 1 Mi. A
/// larger table has them for a part of its flows, which its keyed hash draws.
pub const TIMED_SETS: u32 = 131_072;

/// What the breaker of a service has counted; index service id. 128 bytes,
/// shared by all CPUs and the agent: words change one by one.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BreakerRecord {
    /// Generation under which the counts below were begun.
    pub generation: u64,
    /// Number of the present half of a window.
    pub half: u64,
    /// Attempts on the candidate, by the parity of the half.
    pub attempts: [u64; 2],
    /// Its failures.
    pub failures: [u64; 2],
    /// Generation under which it last tripped, written last; 0: never.
    pub tripped: u64,
    /// CLOCK_BOOTTIME in ns.
    pub tripped_at_ns: u64,
    /// Attempts and failures in the window then.
    pub trip_counts: [u64; 2],
    /// Handshakes of blue and green that the agent freed unanswered.
    pub expired: [u64; 2],
    /// Zero.
    pub pad: [u64; 4],
}

const _: () = assert!(size_of::<SignalCounts>() == 96);
const _: () = assert!(size_of::<HistogramCounts>() == 1_472);
const _: () = assert!(size_of::<FlowTimes>() == 16);
const _: () = assert!(size_of::<BreakerRecord>() == 128);

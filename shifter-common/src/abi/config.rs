//! The one record of the installation that every packet reads.

use core::mem::size_of;

/// Timeouts, as indices of [`Config::timeouts`].
pub const TIMEOUT_HALF_OPEN: usize = 0;
/// Proven or adopted TCP.
pub const TIMEOUT_ESTABLISHED: usize = 1;
/// FIN seen both ways.
pub const TIMEOUT_CLOSING: usize = 2;
/// After a plausible RST.
pub const TIMEOUT_RESET: usize = 3;
/// UDP without an answer.
pub const TIMEOUT_UDP_UNANSWERED: usize = 4;
/// UDP with an answer.
pub const TIMEOUT_UDP_ANSWERED: usize = 5;
/// A proven flow goes by time alone after this.
pub const TIMEOUT_PROVEN_MAX: usize = 6;
/// Number of timeouts.
pub const TIMEOUTS: usize = 8;

/// One tick of the coarse clock that flows are stamped with is `1 << 24` ns, 16.8 ms.
pub const TICK_SHIFT: u32 = 24;

/// Defaults in seconds, in the order of the indices above.
pub const DEFAULT_TIMEOUTS_S: [u32; TIMEOUTS] = [75, 7_440, 60, 10, 30, 180, 432_000, 0];

/// Ticks in `seconds`, rounded up.
pub const fn ticks_of_seconds(seconds: u32) -> u32 {
    ((seconds as u64 * 1_000_000_000 + (1 << TICK_SHIFT) - 1) >> TICK_SHIFT) as u32
}

/// Interfaces that XDP can redirect into, at most.
pub const XDP_INTERFACES: usize = 12;

/// 128 bytes, written by the agent; single words change under readers.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// [`super::ABI_VERSION`] of the writer.
    pub abi_version: u32,
    /// Number of sets less one; the number is a power of two.
    pub set_mask: u32,
    /// Rises when a route or neighbour changed; flows look their next hop up again.
    pub route_generation: u32,
    /// One flow in so many, less one, is watched for what is sent again; that
    /// number is a power of two.
    pub watch_mask: u32,
    /// Key of the flow table's hash, random per table.
    pub table_key: [u64; 2],
    /// In ticks.
    pub timeouts: [u32; TIMEOUTS],
    /// Which installation these maps belong to.
    pub tag: [u8; 16],
    /// Interfaces with our XDP program in force, 0 where unused: only into
    /// these does XDP redirect, others may have no way to send a frame.
    pub xdp_interfaces: [u32; XDP_INTERFACES],
}

const _: () = assert!(size_of::<Config>() == 128);

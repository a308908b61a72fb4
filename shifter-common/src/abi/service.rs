//! The record of a service and the word that publishes it.
//!
//! `service_head[id]` is one 64-bit word: body slot in the low half, check in
//! the high half; 0 means no such service. `service_body[slot]` is immutable
//! while a head names it.

use core::mem::size_of;

use super::{AddressKey, RingRegion};

/// The live pool is green; unset: blue.
pub const SERVICE_LIVE_GREEN: u32 = 1 << 0;
/// The live pool holds the VIP itself as a backend.
pub const SERVICE_LIVE_HAS_VIP: u32 = 1 << 1;

/// New flows are shared by counting, not by hash.
pub const SERVICE_EXACT: u32 = 1 << 2;
/// Clients of the service's cohorts get the pool that these force.
pub const SERVICE_COHORTS: u32 = 1 << 3;

/// Affinity key is the flow's client address and port.
pub const AFFINITY_FLOW: u8 = 0;
/// Affinity key is the client's address cut to `affinity_prefix` bits.
pub const AFFINITY_CLIENT: u8 = 1;

/// Local backends a pool names for socket look-ups, at most.
pub const LOCAL_BACKENDS: usize = 8;

/// A threshold at which every new flow goes to green.
pub const THRESHOLD_ONE: u64 = 1 << 32;

/// 192 bytes. Filled, then published by one aligned store to the head.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServiceBody {
    /// The high half of the head that publishes this body.
    pub check: u32,
    /// Own service id: a body that names another counts as not ours.
    pub service: u32,
    /// Rises with every change published to the kernel.
    pub generation: u32,
    /// `SERVICE_*` bits.
    pub flags: u32,
    /// New flows with a hash below it go to green; in `[0, THRESHOLD_ONE]`.
    pub threshold: u64,
    /// Holds from `deadline_ns` on.
    pub safe_threshold: u64,
    /// CLOCK_BOOTTIME in ns; 0: no dead-man.
    pub deadline_ns: u64,
    /// CLOCK_MONOTONIC in ns: until then the service is settling.
    pub settle_until_ns: u64,
    /// Key of the selection hash.
    pub seed: [u64; 2],
    /// Hash of the desired state that this body carries out.
    pub desired_hash: u64,
    /// Rings of blue and green.
    pub rings: [RingRegion; 2],
    /// The VIP.
    pub vip: AddressKey,
    /// Backend id of the VIP itself.
    pub vip_backend: u16,
    /// `AFFINITY_*`.
    pub affinity: u8,
    /// Prefix length in bits of the client's own family.
    pub affinity_prefix: u8,
    /// Backends of blue and green with sockets that can be looked up;
    /// unused places are `NO_BACKEND`.
    pub local_backends: [[u16; LOCAL_BACKENDS]; 2],
    /// Set of cohort prefixes, looked at with [`SERVICE_COHORTS`] only.
    pub cohort_set: u32,
    /// Zero.
    pub pad: [u32; 3],
    /// Window of the breaker in ns; 0: there is none.
    pub breaker_window_ns: u64,
    /// More failures than these.
    pub breaker_failures: u32,
    /// Of at least so many attempts.
    pub breaker_attempts: u32,
    /// And a larger share of them, of `2^32`.
    pub breaker_ratio: u32,
    /// Zero.
    pub pad_end: u32,
}

const _: () = assert!(size_of::<ServiceBody>() == 192);

/// The word that publishes `slot` with `check`.
#[inline(always)]
pub const fn head_word(slot: u32, check: u32) -> u64 {
    (check as u64) << 32 | slot as u64
}

/// `(slot, check)` of a head word.
#[inline(always)]
pub const fn head_parts(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

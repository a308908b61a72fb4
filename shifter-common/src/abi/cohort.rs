//! Cohorts: client prefixes that force a pool, in sets that a service's record names.
//!
//! The map is a trie of longest prefixes (BPF_MAP_TYPE_LPM_TRIE, kernel 4.11).
//! Its prefixes cannot be replaced all at once under readers, so a set is
//! written whole under an id that no record names, then published with the record.

use core::mem::{offset_of, size_of};

/// Prefixes of all services together that a user can configure.
pub const MAX_COHORT_PREFIXES: u32 = 65_536;
/// Elements of the map: those in force and those that replace them.
pub const MAX_COHORT_ELEMENTS: u32 = 2 * MAX_COHORT_PREFIXES;
/// Ids of sets, from 1: one in force and one being replaced per service.
pub const MAX_COHORT_SETS: u32 = 2 * super::MAX_SERVICES;
/// The id that names no set.
pub const NO_COHORT_SET: u16 = 0;

/// As [`CohortRule::pool`]: the pool that is not live.
pub const COHORT_CANDIDATE: u16 = 2;

/// Bits of [`CohortAddress`] before the client's address, which every prefix
/// counts in.
pub const COHORT_HEAD_BITS: u32 = 32;

/// What a prefix is of, 20 bytes in network order. The kernel counts prefixes
/// in bits from the first byte on; the length stands before it in the map's key.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CohortAddress {
    /// Id of the set, network order.
    pub set: [u8; 2],
    /// 4 or 6.
    pub family: u8,
    /// Zero.
    pub pad: u8,
    /// An IPv4 address in the first four bytes, the rest zero.
    pub addr: [u8; 16],
}

/// What a prefix forces, 4 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CohortRule {
    /// Index of per-pool arrays, or [`COHORT_CANDIDATE`].
    pub pool: u16,
    /// Place of the cohort in its service's list.
    pub cohort: u16,
}

const _: () = assert!(size_of::<CohortAddress>() == 20);
const _: () = assert!(offset_of!(CohortAddress, addr) * 8 == COHORT_HEAD_BITS as usize);
const _: () = assert!(size_of::<CohortRule>() == 4);
const _: () = assert!(MAX_COHORT_SETS <= 1 << 16);

impl CohortAddress {
    /// Of a set; `addr` and `family` as in a packet's headers.
    #[inline(always)]
    pub const fn new(set: u16, family: u8, addr: [u8; 16]) -> Self {
        Self {
            set: set.to_be_bytes(),
            family,
            pad: 0,
            addr,
        }
    }
}

/// Pool that a rule forces where `live` is live; out of range counts as the candidate.
#[inline(always)]
pub const fn forced_pool(rule_pool: u16, live: usize) -> usize {
    if rule_pool < COHORT_CANDIDATE {
        rule_pool as usize
    } else {
        1 - live
    }
}

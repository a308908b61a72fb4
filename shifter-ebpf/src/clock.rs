//! The coarse clock that flows are stamped with.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use shifter_common::abi::config::TICK_SHIFT;

/// CLOCK_MONOTONIC_COARSE in ns (kernel 5.11).
#[inline(always)]
pub fn coarse_ns() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The tick of a time.
#[inline(always)]
pub fn tick(ns: u64) -> u32 {
    (ns >> TICK_SHIFT) as u32
}

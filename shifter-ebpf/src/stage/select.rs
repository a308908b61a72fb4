//! Which pool and backend a flow without an entry gets.

use aya_ebpf::{helpers::bpf_ktime_get_boot_ns, maps::lpm_trie::Key};
use shifter_common::{
    abi::{
        BLUE, Backend, CohortAddress, GREEN, ServiceBody,
        backend::*,
        cohort::{COHORT_HEAD_BITS, forced_pool},
        ring::RING_LANES,
        service::{SERVICE_COHORTS, SERVICE_EXACT, SERVICE_LIVE_GREEN, THRESHOLD_ONE},
    },
    packet::parse::Headers,
    select::{RING_TRIES, affinity_hash, diffuse, next_ring_hash, pool_of, ring_hash, ring_slot},
};

use crate::{
    maps::{BACKENDS, COHORTS, RINGS, SPLIT_ERRORS, element},
    stage::signals,
};

/// A pool and a backend of it.
#[derive(Clone, Copy)]
pub struct Choice {
    pub pool: usize,
    pub backend: u16,
    pub origin: Origin,
}

/// How a flow came to its backend.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Origin {
    /// By weight.
    Chosen = 0,
    /// Taken over in mid-stream, or while settling.
    Adopted = 1,
    /// Taken over, and its socket is known: proven from the start.
    Socket = 2,
    /// New, and a cohort forced its pool.
    Cohort = 3,
}

impl Origin {
    /// Chosen as a new flow, by weight or by a cohort.
    #[inline(always)]
    pub fn is_new(self) -> bool {
        matches!(self, Self::Chosen | Self::Cohort)
    }
}

/// Hash of the client's affinity key.
#[inline(always)]
pub fn hash_of(body: &ServiceBody, headers: &Headers) -> u64 {
    affinity_hash(
        body.seed,
        body.affinity,
        body.affinity_prefix,
        &headers.source,
        headers.source_port,
        headers.family,
    )
}

/// The pool that is live.
#[inline(always)]
pub fn live_pool(body: &ServiceBody) -> usize {
    if body.flags & SERVICE_LIVE_GREEN != 0 {
        GREEN
    } else {
        BLUE
    }
}

/// The threshold in force: past the dead-man's deadline the safe one, and where
/// the breaker has tripped that of the live pool. Who forces a pool in spite of
/// it asks [`signals::has_tripped`] first.
#[inline(always)]
pub fn threshold(body: &ServiceBody) -> u64 {
    if signals::has_tripped(body) {
        return if body.flags & SERVICE_LIVE_GREEN != 0 {
            THRESHOLD_ONE
        } else {
            0
        };
    }
    if is_reverted(body) {
        body.safe_threshold
    } else {
        body.threshold
    }
}

/// Past the dead-man's deadline.
#[inline(always)]
fn is_reverted(body: &ServiceBody) -> bool {
    // SAFETY: takes nothing.
    body.deadline_ns != 0 && unsafe { bpf_ktime_get_boot_ns() } >= body.deadline_ns
}

/// A new flow's pool and backend: the pool that a cohort of the client forces,
/// else the pool by weight. A cohort's pool without a backend gives its flows to
/// the other. Past the dead-man's deadline cohorts are off: then the live pool
/// has everything.
#[inline(always)]
pub fn of_new_flow(body: &ServiceBody, headers: &Headers, hash: u64) -> Option<Choice> {
    if body.flags & SERVICE_COHORTS != 0 && !is_reverted(body) && !signals::has_tripped(body) {
        let forced = cohort_pool(headers, body.cohort_set, live_pool(body) as u32) as usize;
        if forced == BLUE || forced == GREEN {
            let choice = in_pool(body, forced, hash, 0);
            return choice
                .or_else(|| in_pool(body, 1 - forced, hash, 0))
                .map(|choice| Choice {
                    origin: Origin::Cohort,
                    ..choice
                });
        }
    }
    by_weight(body, hash)
}

/// Stands for "no cohort".
const NO_COHORT: u32 = 2;

/// Pool that the longest prefix of the client in a set forces, or [`NO_COHORT`].
/// A global function: verified once, and its key lies on a stack of its own.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn cohort_pool(headers: *const Headers, set: u32, live: u32) -> u32 {
    // SAFETY: null or whole; the verifier knows which.
    let Some(headers) = (unsafe { headers.as_ref() }) else {
        return NO_COHORT;
    };
    // The whole array counts: what lies behind an IPv4 address is zero, and in
    // prefixes too.
    let address = CohortAddress::new(set as u16, headers.family, headers.source);
    let key = Key::new(COHORT_HEAD_BITS + 128, address);
    match COHORTS.get(&key) {
        Some(rule) => forced_pool(rule.pool, live as usize & 1) as u32,
        None => NO_COHORT,
    }
}

/// Pool by threshold, backend by ring. A pool without a backend gives its flows to the
/// other.
#[inline(always)]
pub fn by_weight(body: &ServiceBody, hash: u64) -> Option<Choice> {
    let pool = if body.flags & SERVICE_EXACT != 0 {
        diffuse(owed(body), threshold(body)).0
    } else {
        pool_of(hash, threshold(body))
    };
    in_pool(body, pool, hash, 0).or_else(|| in_pool(body, 1 - pool, hash, 0))
}

/// What this CPU owes green under the exact split.
#[inline(always)]
fn owed(body: &ServiceBody) -> u64 {
    // Bounded whatever the map holds.
    SPLIT_ERRORS
        .get(body.service)
        .map_or(0, |owed| *owed & (THRESHOLD_ONE - 1))
}

/// Counts a new flow under the exact split. A flow that went to the other pool
/// because its own had no backend is not made up for later: a pool that comes
/// back would get every flow for a while.
#[inline(always)]
pub fn settle_debt(body: &ServiceBody, pool: usize) {
    if body.flags & SERVICE_EXACT == 0 {
        return;
    }
    let (due, next) = diffuse(owed(body), threshold(body));
    if due == pool
        && let Some(owed) = SPLIT_ERRORS.get_ptr_mut(body.service)
    {
        // SAFETY: per CPU, and programs of one CPU do not interleave.
        unsafe { *owed = next };
    }
}

/// A backend of one pool.
#[inline(always)]
pub fn in_pool(body: &ServiceBody, pool: usize, hash: u64, avoid: u32) -> Option<Choice> {
    let region = if pool == GREEN {
        body.rings[GREEN]
    } else {
        body.rings[BLUE]
    };
    let backend = in_ring(region.offset, region.slots, ring_hash(hash), avoid) as u16;
    let origin = Origin::Chosen;
    if backend == NO_BACKEND {
        None
    } else {
        Some(Choice {
            pool,
            backend,
            origin,
        })
    }
}

/// From the hash's slot of the ring on, the first backend that takes new flows and is
/// none of the two in `avoid`: ids of 16 bits each, 0 for none. A global function:
/// verified once for all its callers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn in_ring(offset: u32, slots: u32, hash: u32, avoid: u32) -> u64 {
    if slots == 0 {
        return u64::from(NO_BACKEND);
    }
    let mut hash = hash;
    let mut turn = 0;
    while turn < RING_TRIES {
        let id = slot_backend(offset + ring_slot(hash, slots));
        if id != avoid as u16 && id != (avoid >> 16) as u16 && is_open(id) {
            return u64::from(id);
        }
        hash = next_ring_hash(hash);
        turn += 1;
    }
    u64::from(NO_BACKEND)
}

#[inline(always)]
fn slot_backend(slot: u32) -> u16 {
    match RINGS.get(slot / RING_LANES) {
        Some(lanes) => (lanes >> (16 * (slot % RING_LANES))) as u16,
        None => NO_BACKEND,
    }
}

/// Record of a backend in use.
#[inline(always)]
pub fn record(id: u16) -> Option<&'static Backend> {
    // SAFETY: a record in the map; whoever reads more than a word of it bears with a change.
    let backend = unsafe { element(&BACKENDS, u32::from(id))?.as_ref() }?;
    (backend.flags & BACKEND_USED != 0).then_some(backend)
}

/// Whether a backend takes new flows.
#[inline(always)]
pub fn is_open(id: u16) -> bool {
    match record(id) {
        Some(backend) => backend.flags & (BACKEND_MAINT | BACKEND_DOWN) == 0,
        None => false,
    }
}

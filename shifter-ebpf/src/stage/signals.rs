//! How pools do, as packets tell it: counters, times, and the breaker. What an
//! event is says `shifter_common::signals`.

use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_ktime_get_ns};
use shifter_common::{
    abi::{FlowEntry, FlowTimes, ServiceBody, flow::*, service::SERVICE_LIVE_GREEN, signals::*},
    breaker::{Bounds, half_of, outdated},
    histogram::{BUCKETS, bucket_of},
    packet::parse::Headers,
    signals::*,
};

use crate::{
    atomic, clock,
    flow_table::{FlowKey, PLACE_FOUND, get, transition},
    maps::{BREAKERS, FLOW_TIMES, HISTOGRAMS, SIGNALS},
    stage::{
        classify,
        track::{From, Seen},
    },
};

/// Events that a counter stands for.
const COUNTED: u32 = (1 << SIGNAL_COUNTERS) - 1;
/// Events that have a time.
const TIMED: u32 = 1 << ANSWERED | 1 << ENDED | EVENT_CLIENT_DATA | EVENT_BACKEND_DATA;

/// A flow was chosen, and its entry is there.
#[inline(always)]
pub fn opened(body: &ServiceBody, pool: u32, key: &FlowKey, entry: *mut FlowEntry) {
    let index = body.service * 2 + pool;
    note_opened(key.place, index);
    if body.breaker_window_ns != 0 {
        judge(index, 1 << ATTEMPTS, get!(entry, generation));
    }
}

/// An attempt, and when it began: a global function.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn note_opened(place: u64, index: u32) -> u64 {
    if let Some(counts) = SIGNALS.get_ptr_mut(index) {
        // SAFETY: per CPU, and programs of one CPU do not interleave.
        unsafe { (*counts)[ATTEMPTS] += 1 };
    }
    if let Some(times) = times_of(place) {
        let fresh = FlowTimes {
            // SAFETY: takes nothing.
            syn: units(unsafe { bpf_ktime_get_ns() }),
            ..FlowTimes::default()
        };
        // SAFETY: a map value; only this flow's packets use it.
        unsafe { core::ptr::write_volatile(times, fresh) };
    }
    0
}

/// Where a flow is counted, by its entry and the flags in it.
#[inline(always)]
pub fn index_of(entry: *const FlowEntry, flags: u16) -> u32 {
    u32::from(get!(entry, service)) * 2 + u32::from(flags & FLOW_GREEN != 0)
}

/// Counts events of a flow. `place`: where its entry lies, 0 if it has none any more.
#[inline(always)]
pub fn note(place: u64, entry: *const FlowEntry, events: u32) {
    let flags = get!(entry, flags);
    let index = index_of(entry, flags);
    note_events(
        place,
        index,
        events,
        get!(entry, generation),
        get!(entry, created),
    );
}

/// Frees an entry that its flow has no use for any more.
#[inline(always)]
pub fn free(entry: *mut FlowEntry, control: u64, now: u32) -> bool {
    // Before it is given up: the place may be another flow's right after.
    let flags = get!(entry, flags);
    let index = index_of(entry, flags);
    let (generation, created) = (get!(entry, generation), get!(entry, created));
    let freed = transition(entry, control, STATE_FREE, now);
    if freed && is_unanswered(control_state(control), flags) {
        note_events(0, index, unanswered_events(flags), generation, created);
    }
    freed
}

/// [`note`], verified once: a global function.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn note_events(
    place: u64,
    index: u32,
    events: u32,
    generation: u32,
    created: u32,
) -> u64 {
    if events & COUNTED != 0
        && let Some(counts) = SIGNALS.get_ptr_mut(index)
    {
        // Not to be unrolled: most segments move one counter, or none.
        let mut counter = 0;
        while counter < SIGNAL_COUNTERS as u32 && (events & COUNTED) >> counter != 0 {
            if events >> counter & 1 != 0 {
                // SAFETY: per CPU, and programs of one CPU do not interleave.
                unsafe { (*counts)[counter as usize] += 1 };
            }
            counter = atomic::next(counter);
        }
    }
    if events & EVENT_FAILED != 0 {
        judge(index, events, generation);
    }
    if events & TIMED != 0
        && let Some(times) = times_of(place)
    {
        time(times, index, events, created);
    }
    0
}

/// The times of a place, where it has any.
#[inline(always)]
fn times_of(place: u64) -> Option<*mut FlowTimes> {
    if place & PLACE_FOUND == 0 {
        return None;
    }
    let set = FLOW_TIMES.get_ptr_mut(((place & (PLACE_FOUND - 1)) >> 4) as u32)?;
    let offset = (place as usize & (SET_ENTRIES - 1)) * size_of::<FlowTimes>();
    // Not to be moved before the check for null.
    Some(atomic::add(set as usize, offset) as *mut FlowTimes)
}

#[inline(always)]
fn time(times: *mut FlowTimes, index: u32, events: u32, created: u32) {
    // SAFETY: takes nothing.
    let ns = unsafe { bpf_ktime_get_ns() };
    let now = units(ns);
    let tick = clock::tick(ns);
    let syn = get!(times, syn);
    if events & 1 << ANSWERED != 0 && syn != 0 {
        put(index, HANDSHAKE, elapsed_ns(syn, now, created, tick));
    }
    if events & EVENT_CLIENT_DATA != 0 {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*times).data, now) };
    }
    let data = get!(times, data);
    if events & EVENT_BACKEND_DATA != 0 && data != 0 {
        // When the data came is known in units only, which tell apart what lies
        // half an hour back; the flow may be older than that.
        put(index, FIRST_BYTE, elapsed_ns(data, now, tick, tick));
    }
    if events & 1 << ENDED != 0 && syn != 0 {
        put(index, DURATION, elapsed_ns(syn, now, created, tick));
    }
}

/// Counts a time in a histogram of this CPU.
#[inline(always)]
fn put(index: u32, kind: u32, ns: u64) {
    let Some(counts) = HISTOGRAMS.get_ptr_mut(histogram_index(index >> 1, index & 1, kind)) else {
        return;
    };
    let bucket = bucket_of(ns);
    if bucket < BUCKETS {
        let at = atomic::add(counts as usize, bucket * size_of::<u64>()) as *mut u64;
        // SAFETY: within the value; per CPU, and programs of one CPU do not interleave.
        unsafe { *at += 1 };
    }
}

/// A segment of a watched flow: counts what is sent again.
#[inline(always)]
pub fn watch(seen: &Seen, entry: *const FlowEntry) {
    let index = index_of(entry, get!(entry, flags));
    let from = u32::from(seen.from);
    watch_segment(seen.place, index, from, seen.sequence, seen.payload);
}

/// [`watch`], verified once: a global function.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn watch_segment(
    place: u64,
    index: u32,
    from: u32,
    sequence: u32,
    payload: u32,
) -> u64 {
    let Some(times) = times_of(place) else {
        return 0;
    };
    let is_client = from == From::Client as u32;
    let end = if is_client {
        get!(times, client_end)
    } else {
        get!(times, backend_end)
    };
    let (next, again) = sent(end, sequence, payload);
    if next != end {
        // SAFETY: a map value; a race of two CPUs costs a segment counted too many.
        unsafe {
            if is_client {
                core::ptr::write_volatile(&raw mut (*times).client_end, next);
            } else {
                core::ptr::write_volatile(&raw mut (*times).backend_end, next);
            }
        }
    }
    if again && let Some(counts) = SIGNALS.get_ptr_mut(index) {
        // SAFETY: per CPU, and programs of one CPU do not interleave.
        unsafe {
            if is_client {
                (*counts)[CLIENT_RETRANSMITS] += 1;
            } else {
                (*counts)[BACKEND_RETRANSMITS] += 1;
            }
        }
    }
    0
}

/// Flag of a new flow that is watched.
#[inline(always)]
pub fn watched_flag(headers: &Headers, tag: u32, mask: u32) -> u16 {
    if headers.protocol != 17 && is_watched(tag, mask) {
        FLOW_WATCHED
    } else {
        0
    }
}

/// Whether the breaker of a service gives every new flow to the live pool.
#[inline(always)]
pub fn has_tripped(body: &ServiceBody) -> bool {
    if body.breaker_window_ns == 0 {
        return false;
    }
    match BREAKERS.get_ptr(body.service) {
        Some(record) => get!(record, tripped) == u64::from(body.generation),
        None => false,
    }
}

/// Counts an attempt on the candidate or its failure, and trips the breaker.
/// Where halves of a window meet, two CPUs may lose a few counts. A global function:
/// verified once for both its callers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn judge(index: u32, events: u32, generation: u32) -> u64 {
    let Some(body) = classify::body(index >> 1) else {
        return 0;
    };
    let live_green = body.flags & SERVICE_LIVE_GREEN != 0;
    // A flow chosen before the last write says nothing of what was written.
    if body.breaker_window_ns == 0
        || (index & 1 != 0) == live_green
        || generation != body.generation
    {
        return 0;
    }
    let Some(record) = BREAKERS.get_ptr_mut(body.service) else {
        return 0;
    };
    let half = half_of(clock::coarse_ns(), body.breaker_window_ns);
    if !turn(record, u64::from(generation), half) {
        return 0;
    }
    // SAFETY: words of a map value, aligned to 8.
    unsafe {
        let odd = half & 1 != 0;
        if events & 1 << ATTEMPTS != 0 {
            let counts = if odd {
                &raw mut (*record).attempts[1]
            } else {
                &raw mut (*record).attempts[0]
            };
            atomic::fetch_add(counts, 1);
        }
        if events & EVENT_FAILED == 0 {
            return 0;
        }
        let counts = if odd {
            &raw mut (*record).failures[1]
        } else {
            &raw mut (*record).failures[0]
        };
        atomic::fetch_add(counts, 1);
    }
    // SAFETY: as above.
    let (attempts, failures) = unsafe {
        (
            sum(&raw const (*record).attempts),
            sum(&raw const (*record).failures),
        )
    };
    let bounds = Bounds {
        max_failures: body.breaker_failures,
        min_attempts: body.breaker_attempts,
        max_ratio: body.breaker_ratio,
    };
    if get!(record, tripped) != u64::from(generation) && bounds.are_passed(attempts, failures) {
        // SAFETY: a map value; the word that is read for a decision is written last.
        unsafe {
            let at_ns = bpf_ktime_get_boot_ns();
            core::ptr::write_volatile(&raw mut (*record).tripped_at_ns, at_ns);
            core::ptr::write_volatile(&raw mut (*record).trip_counts, [attempts, failures]);
            core::ptr::write_volatile(&raw mut (*record).tripped, u64::from(generation));
        }
    }
    0
}

/// Counts of both halves of the window, in two loads.
///
/// # Safety
/// `halves` must point into a map value.
#[inline(always)]
unsafe fn sum(halves: *const [u64; 2]) -> u64 {
    let first = halves.cast::<u64>();
    // SAFETY: the caller's promise.
    unsafe { core::ptr::read_volatile(first) + core::ptr::read_volatile(first.add(1)) }
}

/// As [`BreakerRecord::generation`]: the counts of another are being taken back.
const TURNING: u64 = u64::MAX;

/// Forgets what is of another generation or has left the window. False while another
/// CPU does so for a generation: what is counted then would be taken back, or judged
/// with the counts of before.
#[inline(always)]
fn turn(record: *mut BreakerRecord, generation: u64, half: u64) -> bool {
    let (of, before) = (get!(record, generation), get!(record, half));
    // SAFETY: words of a map value, aligned to 8.
    unsafe {
        let is_new = of != generation;
        let stale = if is_new {
            if of == TURNING
                || atomic::compare_exchange(&raw mut (*record).generation, of, TURNING) != of
            {
                return false;
            }
            core::ptr::write_volatile(&raw mut (*record).half, half);
            (true, true)
        } else {
            if before == half
                || atomic::compare_exchange(&raw mut (*record).half, before, half) != before
            {
                return true;
            }
            outdated(before, half)
        };
        if stale.0 {
            core::ptr::write_volatile(&raw mut (*record).attempts[0], 0);
            core::ptr::write_volatile(&raw mut (*record).failures[0], 0);
        }
        if stale.1 {
            core::ptr::write_volatile(&raw mut (*record).attempts[1], 0);
            core::ptr::write_volatile(&raw mut (*record).failures[1], 0);
        }
        if is_new {
            atomic::compare_exchange(&raw mut (*record).generation, TURNING, generation);
        }
    }
    true
}

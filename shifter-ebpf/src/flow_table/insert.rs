//! A new flow's entry: a place is claimed, written, looked at for rivals, and
//! only then visible.

use shifter_common::{
    abi::flow::*,
    life::{
        RIVAL_HIGHER, RIVAL_LIVE, RIVAL_LOWER, RIVAL_NONE, claimed, freed, gives_up, moved, rival,
    },
    signals::{is_unanswered, unanswered_events},
    table::{RANK_CLOSING, RANK_FREE, RANK_NONE, RANK_UNPROVEN, idle_ticks, rank},
};

use super::{
    FlowKey, Match, PLACE_FOUND, PLACE_SHARED, at, entry_at, find_place, get, home_of,
    is_marked_from, place_of, set, set_of,
};
use crate::{atomic, maps::EVICTED, stage::signals};

/// How an insert ended, from bit 42 of a place.
const INSERT_SHIFT: u32 = 42;
const _: () = assert!(PLACE_SHARED < 1 << INSERT_SHIFT);
const INSERT_NEW: u64 = 1;
const INSERT_EXISTING: u64 = 2;
const INSERT_PENDING: u64 = 3;
const INSERT_FULL: u64 = 4;

/// What a new entry says.
#[repr(C)]
pub struct NewFlow {
    pub state: u8,
    pub flags: u16,
    pub service: u16,
    pub backend: u16,
    pub generation: u32,
    pub now: u32,
    /// Events of the flow that gave way; 0: none.
    pub gone: u32,
    /// Where they are counted: 2 × service + pool.
    pub gone_index: u32,
    /// Generation of that flow.
    pub gone_generation: u32,
}

/// How an insert ended.
pub enum Inserted {
    /// The entry is there and visible.
    New(*mut FlowEntry),
    /// Another packet of the flow was first: follow its entry.
    Existing(*mut FlowEntry),
    /// Another packet is at it: forward by choice, write nothing.
    Pending,
    /// Nothing gives way.
    Full,
}

/// Best place of one set for a new flow, as [`score`] of it; 0: nothing gives way.
#[inline(always)]
fn best_place(set: *mut FlowSet, home: u32, now: u32) -> u64 {
    let mut best = 0;
    let mut distance = 0;
    while distance < SET_ENTRIES as u32 {
        let entry = at(set, home, distance);
        let score = score(get!(entry, control), get!(entry, last_seen), now, distance);
        if score > best {
            best = score;
        }
        if score >> 40 == u64::from(RANK_FREE) {
            return score;
        }
        distance += 1;
    }
    best
}

/// Whether no place is free or expired for this flow: then an entry of its own may
/// have given way to others just now. A closing one may have begun to close since. A
/// global function: verified once, and its stack is gone when it returns.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_pressed(key: *const FlowKey, now: u32) -> u32 {
    // SAFETY: null or a whole key; the verifier knows which.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return 0;
    };
    let (Some(first), Some(second)) = (set_of(&key.places, 0), set_of(&key.places, 1)) else {
        return 0;
    };
    if best_place(first, key.places.homes[0], now) >> 40 > u64::from(RANK_CLOSING) {
        return 0;
    }
    u32::from(best_place(second, key.places.homes[1], now) >> 40 <= u64::from(RANK_CLOSING))
}

/// How willingly an entry gives way: rank from bit 40, time idle from bit 8,
/// distance below. Of one that is free nobody asks for how long.
#[inline(always)]
fn score(control: u64, last_seen: u32, now: u32, distance: u32) -> u64 {
    if control_state(control) == STATE_FREE {
        return u64::from(RANK_FREE) << 40 | u64::from(distance & 15);
    }
    score_of(control, last_seen, now, distance)
}

/// [`score`] of one that may be in use. A global function: verified once, not once an entry.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn score_of(control: u64, last_seen: u32, now: u32, distance: u32) -> u64 {
    let Some(config) = crate::stage::classify::config() else {
        return 0;
    };
    let rank = rank(control, last_seen, now, &config.timeouts);
    if rank == RANK_NONE {
        return 0;
    }
    u64::from(rank) << 40 | u64::from(idle_ticks(last_seen, now)) << 8 | u64::from(distance & 15)
}

/// Takes a place for a new flow and makes it visible.
#[inline(always)]
pub fn insert(key: &mut FlowKey, new: &mut NewFlow) -> Inserted {
    new.gone = 0;
    let place = insert_at(key, new);
    if new.gone != 0 {
        // Here and not where it is found out: the stack is deepest there.
        signals::note_events(0, new.gone_index, new.gone, new.gone_generation, 0);
    }
    key.place = place & (2 * PLACE_FOUND - 1);
    match (place >> INSERT_SHIFT, entry_at(place)) {
        (INSERT_NEW, Some(entry)) => Inserted::New(entry),
        (INSERT_EXISTING, Some(entry)) => Inserted::Existing(entry),
        (INSERT_FULL, _) => Inserted::Full,
        _ => Inserted::Pending,
    }
}

/// [`insert`], verified once: a global function.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn insert_at(key: *const FlowKey, new: *mut NewFlow) -> u64 {
    // SAFETY: null or whole; the verifier knows which.
    let (Some(key), Some(new)) = (unsafe { (key.as_ref(), new.as_mut()) }) else {
        return INSERT_FULL << INSERT_SHIFT;
    };
    let (Some(first), Some(second)) = (set_of(&key.places, 0), set_of(&key.places, 1)) else {
        return INSERT_FULL << INSERT_SHIFT;
    };
    let mut best = best_place(first, key.places.homes[0], new.now);
    let mut which = 0;
    if best >> 40 < u64::from(RANK_CLOSING) {
        let other = best_place(second, key.places.homes[1], new.now);
        if other >> 8 > best >> 8 {
            best = other;
            which = 1;
        }
    }
    if best >> 40 < u64::from(RANK_UNPROVEN) {
        return INSERT_FULL << INSERT_SHIFT;
    }
    let (set, home, index) = if which == 0 {
        (first, key.places.homes[0], key.places.sets[0])
    } else {
        (second, key.places.homes[1], key.places.sets[1])
    };
    let distance = best as u32 & (SET_ENTRIES as u32 - 1);
    let place = place_of(index, home, distance);
    let entry = at(set, home, distance);
    let control = get!(entry, control);
    if score(control, get!(entry, last_seen), new.now, distance) < best {
        // It came to life since, or went to another flow.
        return INSERT_PENDING << INSERT_SHIFT;
    }
    let claim = claimed(control, key.places.tag, new.now);
    // SAFETY: an entry is aligned to 64.
    if unsafe { atomic::compare_exchange(&raw mut (*entry).control, control, claim) } != control {
        return INSERT_PENDING << INSERT_SHIFT;
    }
    count_evicted(control_state(control));
    let flags = get!(entry, flags);
    if is_unanswered(control_state(control), flags) {
        new.gone = unanswered_events(flags);
        new.gone_index = signals::index_of(entry, flags);
        new.gone_generation = get!(entry, generation);
    }
    fill(entry, key, new);
    mark(at(set, home, 0), 1 << distance);
    if which == 1 {
        mark(at(first, key.places.homes[0], 0), HOME_OVERFLOW);
    }
    if yields(key, new, number(which, distance)) {
        let free = freed(claim, new.now);
        // SAFETY: as above.
        unsafe { atomic::compare_exchange(&raw mut (*entry).control, claim, free) };
        let rival = find_place(key, 0, u32::from(new.service));
        if rival & PLACE_FOUND == 0 {
            return INSERT_PENDING << INSERT_SHIFT;
        }
        return INSERT_EXISTING << INSERT_SHIFT | rival;
    }
    if publish(entry, claim, new) {
        INSERT_NEW << INSERT_SHIFT | place
    } else {
        INSERT_PENDING << INSERT_SHIFT
    }
}

/// Whether another packet of the flow goes before a claim.
#[inline(always)]
fn yields(key: &FlowKey, new: &NewFlow, own: u32) -> bool {
    let mut passes = 1;
    loop {
        let rival = rival_of(key, u32::from(new.service), new.now, own);
        if let Some(gives_up) = gives_up(rival, passes) {
            return gives_up;
        }
        passes += 1;
    }
}

/// Counts a flow that gave way to a new one.
#[inline(always)]
fn count_evicted(state: u8) {
    if is_live(state)
        && let Some(counter) = EVICTED.get_ptr_mut(u32::from(state))
    {
        // SAFETY: per CPU, and programs of one CPU do not interleave.
        unsafe { *counter += 1 };
    }
}

/// Sets bits of the `home` word, which shares eight aligned bytes with `high`.
#[inline(always)]
fn mark(entry: *mut FlowEntry, bits: u32) {
    if get!(entry, home) & bits != bits {
        // SAFETY: `high` lies at offset 56 of an entry aligned to 64.
        unsafe { atomic::atomic_or((&raw mut (*entry).high).cast(), u64::from(bits) << 32) };
    }
}

#[inline(always)]
fn fill(entry: *mut FlowEntry, key: &FlowKey, new: &NewFlow) {
    // SAFETY: the address lies at offset 8 of an entry aligned to 64.
    unsafe {
        let words = (&raw mut (*entry).client).cast::<u64>();
        core::ptr::write_volatile(words, key.client[0]);
        core::ptr::write_volatile(words.add(1), key.client[1]);
    }
    set!(entry, client_port, key.port);
    set!(entry, flags, new.flags | key.flags());
    set!(entry, service, new.service);
    set!(entry, backend, new.backend);
    set!(entry, next_hop, 0);
    set!(entry, route_generation, 0);
    set!(entry, generation, new.generation);
    set!(entry, last_seen, new.now);
    set!(entry, created, new.now);
    set!(entry, seq_a, 0);
    set!(entry, seq_b, 0);
    set!(entry, high, 0);
}

/// Makes a claimed entry visible. It fails only if the claim was so old that
/// another packet took it.
#[inline(always)]
fn publish(entry: *mut FlowEntry, claim: u64, new: &NewFlow) -> bool {
    let live = moved(claim, new.state, new.now);
    // SAFETY: as in `insert_at`.
    unsafe { atomic::compare_exchange(&raw mut (*entry).control, claim, live) == claim }
}

/// A place of a key among those of both its sets, in the order in which they are looked at.
#[inline(always)]
fn number(which: usize, distance: u32) -> u32 {
    which as u32 * SET_ENTRIES as u32 + distance
}

/// Looks at both sets again for another entry of the same flow: a live one
/// wins, of two claims the one at the lower place. `own` is the number of the set
/// times its entries, and the distance. A global function: verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rival_of(key: *const FlowKey, service: u32, now: u32, own: u32) -> u32 {
    // SAFETY: null or a whole key; the verifier knows which.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return RIVAL_NONE;
    };
    let mut higher = RIVAL_NONE;
    let mut which = 0;
    while which < 2 {
        let Some(set) = set_of(&key.places, which) else {
            return RIVAL_NONE;
        };
        let home = home_of(&key.places, which);
        let mark = get!(at(set, home, 0), home);
        let mut distance = 0;
        while is_marked_from(mark, distance) {
            let here = number(which, distance);
            if mark >> distance & 1 != 0 && here != own {
                let entry = at(set, home, distance);
                match rival_at(key, service as u16, now, entry, here < own) {
                    RIVAL_LIVE => return RIVAL_LIVE,
                    RIVAL_LOWER => return RIVAL_LOWER,
                    RIVAL_HIGHER => higher = RIVAL_HIGHER,
                    _ => {}
                }
            }
            distance = atomic::next(distance);
        }
        if mark & HOME_OVERFLOW == 0 {
            return higher;
        }
        which += 1;
    }
    higher
}

/// What lies at one place, to a claim of this flow.
#[inline(always)]
fn rival_at(key: &FlowKey, service: u16, now: u32, entry: *mut FlowEntry, is_lower: bool) -> u32 {
    let found = rival(get!(entry, control), key.places.tag, now, is_lower);
    if found == RIVAL_LIVE && !key.is_of(entry, Match::Service(service)) {
        return RIVAL_NONE;
    }
    found
}

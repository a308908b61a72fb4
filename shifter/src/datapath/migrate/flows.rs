//! Flows of one table into another, while packets use both.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use shifter_common::{
    abi::{
        Config, FlowEntry,
        flow::*,
        old::{FlowLayout, read_entry},
    },
    hash::address_words,
    life::{freed, held, moved, offered},
    table::{Places, RANK_UNPROVEN, flow_hash, is_claim_stale, places, rank},
};

use crate::datapath::{flows::now_tick, memory::MappedArray};

/// What a segment of either direction leaves in the flags.
const SEEN: u16 = FLOW_FIN_CLIENT
    | FLOW_FIN_BACKEND
    | FLOW_SYN_ACK
    | FLOW_REPLIED
    | FLOW_CLIENT_DATA
    | FLOW_BACKEND_DATA
    | FLOW_SYN_AGAIN
    | FLOW_SYN_LOST;

/// First version whose entries say whether data was sent.
const NOTES_DATA: u32 = 4;

/// Flags of an entry of a version as this one reads them. What is kept beside the
/// entry does not move, so nobody watches a flow that did. And where nobody noted
/// whether a proven flow has had data, it has: else its reset would count as one
/// before data.
fn flags_of(version: u32, flags: u16, state: u8) -> u16 {
    let flags = flags & !FLOW_WATCHED;
    match version < NOTES_DATA && is_proven(state) {
        true => flags | FLOW_CLIENT_DATA | FLOW_BACKEND_DATA,
        false => flags,
    }
}

/// A table that flows come from.
pub struct OldTable {
    pub sets: MappedArray<FlowSet>,
    pub layout: FlowLayout,
    /// Version of its layout.
    pub version: u32,
}

impl OldTable {
    /// A live entry, if it was the same flow before and after the copy.
    fn read(&self, set: u32, place: usize) -> Option<FlowEntry> {
        const WORDS: usize = size_of::<FlowEntry>() / 8;
        // SAFETY: `place` is below SET_ENTRIES, and an entry of any layout has this size.
        let base = unsafe { self.sets.at(set).cast::<u64>().add(place * WORDS) };
        // SAFETY: aligned, within the mapping, and only ever used as a 64-bit word.
        let control = unsafe { AtomicU64::from_ptr(base.add(self.layout.control / 8)) };
        let before = control.load(Ordering::Acquire);
        if !is_live(control_state(before)) {
            return None;
        }
        let mut bytes = [0u8; size_of::<FlowEntry>()];
        for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            // SAFETY: within the entry.
            let word = unsafe { std::ptr::read_volatile(base.add(i)) };
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        std::sync::atomic::fence(Ordering::Acquire);
        let after = control.load(Ordering::Acquire);
        let same = control_sequence(before) == control_sequence(after)
            && control_tag(before) == control_tag(after)
            && is_live(control_state(after));
        let mut entry = read_entry(&self.layout, &bytes);
        entry.control = after;
        entry.flags = flags_of(self.version, entry.flags, control_state(after));
        same.then_some(entry)
    }

    /// Visits every live flow.
    pub fn for_each(&self, mut visit: impl FnMut(&FlowEntry)) {
        for set in 0..self.sets.count() {
            for place in 0..SET_ENTRIES {
                if let Some(entry) = self.read(set, place) {
                    visit(&entry);
                }
            }
        }
    }
}

/// What became of the flows in one pass.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Passed {
    /// Not there before.
    pub placed: u64,
    /// There, and brought up to date.
    pub merged: u64,
    /// Unproven flows without a place: they give way, as ever.
    pub given_up: u64,
    /// Proven flows without a place.
    pub without_place: u64,
}

/// The table that flows go to. Packets use it at the same time.
pub struct NewTable<'a> {
    pub sets: &'a MappedArray<FlowSet>,
    pub config: Config,
    /// Told set and position of a place where another flow lay: what is kept beside
    /// its entry is not of the flow that comes there.
    pub forget_times: &'a dyn Fn(u32, u32),
}

/// Tries of a flow whose places packets take.
const TRIES: u32 = 100;

enum Put {
    Placed,
    Merged,
    Same,
    Full,
}

impl NewTable<'_> {
    /// Copies what is not there, and merges what is.
    pub fn take_in(&self, old: &OldTable) -> Passed {
        let mut passed = Passed::default();
        old.for_each(|entry| {
            let mut put = self.put(entry);
            // Only a packet that took the very place: there are others.
            let mut tries = 0;
            while put.is_none() && tries < TRIES {
                put = self.put(entry);
                tries += 1;
            }
            match put {
                Some(Put::Placed) => passed.placed += 1,
                Some(Put::Merged) => passed.merged += 1,
                Some(Put::Same) => {}
                _ if is_proven(control_state(entry.control)) => passed.without_place += 1,
                _ => passed.given_up += 1,
            }
        });
        passed
    }

    fn places(&self, entry: &FlowEntry) -> Places {
        let family = if entry.flags & FLOW_IPV6 != 0 { 6 } else { 4 };
        let protocol = if entry.flags & FLOW_UDP != 0 { 17 } else { 6 };
        let hash = flow_hash(
            self.config.table_key,
            address_words(&entry.client),
            entry.client_port,
            protocol,
            family,
        );
        places(hash, self.config.set_mask)
    }

    fn at(&self, set: u32, position: u32) -> *mut FlowEntry {
        let position = position as usize & (SET_ENTRIES - 1);
        // SAFETY: below SET_ENTRIES.
        unsafe { self.sets.at(set).cast::<FlowEntry>().add(position) }
    }

    /// `None`: a packet was at it, to be tried again.
    fn put(&self, flow: &FlowEntry) -> Option<Put> {
        let places = self.places(flow);
        if let Some(entry) = self.find(&places, flow, None) {
            return Some(match merge(flow, entry) {
                true => Put::Merged,
                false => Put::Same,
            });
        }
        let now = now_tick();
        let Some((which, distance, best)) = self.free_place(&places, flow, now) else {
            return Some(Put::Full);
        };
        let (set, home) = (places.sets[which], places.homes[which]);
        let position = (home + distance) & (SET_ENTRIES as u32 - 1);
        let entry = self.at(set, position);
        let control = control(entry);
        let seen = control.load(Ordering::Acquire);
        // After that: to a clock that was read before, a claim of just now would look stale.
        let now = now_tick();
        if control_state(seen) != STATE_FREE {
            // What gives way does so first, by one transition, unless a packet came there
            // since and another place may be more willing now.
            if self.score(entry, seen, flow, now) >= best {
                swap(control, seen, freed(seen, now));
            }
            return None;
        }
        let held = hold(entry, seen, places.tag, now)?;
        if seen != 0 {
            (self.forget_times)(set, position);
        }
        fill(entry, flow);
        mark(self.at(set, home), 1 << distance);
        if which == 1 {
            mark(self.at(places.sets[0], places.homes[0]), HOME_OVERFLOW);
        }
        let claim = offered(held, places.tag, now_tick());
        swap(control, held, claim)?;
        swap_last_seen(entry, now, flow.last_seen);
        let is_rivalled = self.find(&places, flow, Some((entry, true))).is_some();
        if is_rivalled || is_claim_stale(claim, now_tick()) {
            swap(control, claim, freed(claim, now));
            return None;
        }
        let live = moved(claim, control_state(flow.control), now_tick());
        swap(control, claim, live)?;
        // Where this was kept from running since it looked, a packet may have taken
        // the claim for one left behind, and made an entry of its own.
        if self.find(&places, flow, Some((entry, true))).is_some() {
            withdraw(control, live);
            return None;
        }
        Some(Put::Placed)
    }

    /// Frees what an agent left that was killed while flows moved: entries that it
    /// held, and the one of two entries of a flow that no packet finds. Returns how many.
    pub fn mend(&self) -> u64 {
        let mut mended = 0;
        for (set, position) in (0..self.sets.count())
            .flat_map(|set| (0..SET_ENTRIES as u32).map(move |position| (set, position)))
        {
            let entry = self.at(set, position);
            let word = control(entry).load(Ordering::Acquire);
            if !is_live(control_state(word)) {
                continue;
            }
            // SAFETY: within the mapping; every bit pattern is a valid entry.
            let flow = unsafe { std::ptr::read_volatile(entry) };
            let places = self.places(&flow);
            let is_held = control_tag(word) != places.tag;
            let is_second = || {
                let first = self.find(&places, &flow, None);
                first.is_some_and(|first| first != entry)
            };
            if is_held || is_second() {
                let free = freed(word, now_tick());
                mended += u64::from(swap(control(entry), word, free).is_some());
            }
        }
        mended
    }

    /// The entry of a flow, the first by place, as packets find it. `but`: another than
    /// this one, and with `true` a claim of the flow's tag as well.
    fn find(
        &self,
        places: &Places,
        flow: &FlowEntry,
        but: Option<(*mut FlowEntry, bool)>,
    ) -> Option<*mut FlowEntry> {
        let is_it = |entry: *mut FlowEntry| {
            let word = control(entry).load(Ordering::Acquire);
            if control_tag(word) != places.tag || but.is_some_and(|(but, _)| but == entry) {
                return false;
            }
            if !is_live(control_state(word)) {
                // The clock is read after the word, or a claim of just now would look stale.
                return but.is_some_and(|(_, with_claims)| with_claims)
                    && control_state(word) == STATE_CLAIMING
                    && !is_claim_stale(word, now_tick());
            }
            // SAFETY: within the mapping; every bit pattern is a valid entry.
            let there = unsafe { std::ptr::read_volatile(entry) };
            there.client == flow.client
                && there.client_port == flow.client_port
                && (there.service == flow.service || there.backend == flow.backend)
                && (there.flags ^ flow.flags) & (FLOW_IPV6 | FLOW_UDP) == 0
        };
        (0..2)
            .flat_map(|which| (0..SET_ENTRIES as u32).map(move |distance| (which, distance)))
            .map(|(which, distance)| self.at(places.sets[which], places.homes[which] + distance))
            .find(|entry| is_it(*entry))
    }

    /// How willingly a place takes the flow; 0: not at all. Only a proven flow
    /// has others give way to it.
    fn score(&self, entry: *mut FlowEntry, seen: u64, flow: &FlowEntry, now: u32) -> u32 {
        // SAFETY: within the mapping.
        let last_seen = unsafe { std::ptr::read_volatile(&raw const (*entry).last_seen) };
        let rank = rank(seen, last_seen, now, &self.config.timeouts);
        let least = if is_proven(control_state(flow.control)) {
            RANK_UNPROVEN
        } else {
            RANK_UNPROVEN + 1
        };
        if rank < least { 0 } else { rank }
    }

    /// The most willing place, the first set and the nearest distance before others.
    fn free_place(&self, places: &Places, flow: &FlowEntry, now: u32) -> Option<(usize, u32, u32)> {
        let mut best = (0, 0, 0);
        for which in 0..2 {
            for distance in 0..SET_ENTRIES as u32 {
                let entry = self.at(places.sets[which], places.homes[which] + distance);
                let seen = control(entry).load(Ordering::Acquire);
                let score = self.score(entry, seen, flow, now);
                if score > best.0 {
                    best = (score, which, distance);
                }
            }
        }
        (best.0 > 0).then_some((best.1, best.2, best.0))
    }
}

/// The control word of an entry.
fn control<'a>(entry: *mut FlowEntry) -> &'a AtomicU64 {
    // SAFETY: aligned to 64, in a mapping that outlives the pass, and only ever
    // used as a 64-bit word.
    unsafe { AtomicU64::from_ptr(&raw mut (*entry).control) }
}

fn swap(control: &AtomicU64, from: u64, to: u64) -> Option<()> {
    control
        .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
        .ok()
        .map(drop)
}

/// Takes a free entry out of packets' reach: gives its word. First it is brought up to
/// date when it was last seen, which says nothing of a free one, or it would give way at once.
fn hold(entry: *mut FlowEntry, seen: u64, tag: u32, now: u32) -> Option<u64> {
    // SAFETY: within the mapping.
    let before = unsafe { std::ptr::read_volatile(&raw const (*entry).last_seen) };
    if before != now && !swap_last_seen(entry, before, now) {
        return None;
    }
    let held = held(seen, tag, now);
    swap(control(entry), seen, held)?;
    Some(held)
}

/// When a flow was last seen, if nobody has said otherwise since.
fn swap_last_seen(entry: *mut FlowEntry, from: u32, to: u32) -> bool {
    // SAFETY: aligned and within the mapping.
    let last_seen = unsafe { AtomicU32::from_ptr(&raw mut (*entry).last_seen) };
    last_seen
        .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}

/// Frees an entry that was made visible, whatever state packets brought it to since.
fn withdraw(control: &AtomicU64, live: u64) {
    let mut word = live;
    while is_live(control_state(word))
        && control_sequence(word) == control_sequence(live)
        && swap(control, word, freed(word, now_tick())).is_none()
    {
        word = control.load(Ordering::Acquire);
    }
}

/// Sets bits of a place's `home` word, which packets do too.
fn mark(entry: *mut FlowEntry, bits: u32) {
    // SAFETY: aligned and within the mapping.
    let home = unsafe { AtomicU32::from_ptr(&raw mut (*entry).home) };
    home.fetch_or(bits, Ordering::AcqRel);
}

/// Writes all but the control word, the place's marks and when it was last seen, of an
/// entry that is held.
fn fill(entry: *mut FlowEntry, flow: &FlowEntry) {
    macro_rules! copy {
        ($($field:ident),*) => {
            // SAFETY: within the mapping, and held.
            unsafe { $(std::ptr::write_volatile(&raw mut (*entry).$field, flow.$field);)* }
        };
    }
    copy!(
        client,
        client_port,
        flags,
        service,
        backend,
        next_hop,
        route_generation,
        generation,
        created,
        seq_a,
        seq_b,
        high
    );
}

/// Takes over what a packet has still written in the old entry while, or right
/// after, it was copied. Returns whether there was anything. A flow that was
/// chosen anew since stays as it is.
fn merge(old: &FlowEntry, entry: *mut FlowEntry) -> bool {
    let word = control(entry);
    let seen = word.load(Ordering::Acquire);
    // SAFETY: within the mapping; every bit pattern is a valid entry.
    let new = unsafe { std::ptr::read_volatile(entry) };
    let Some(change) = change(
        old,
        &FlowEntry {
            control: seen,
            ..new
        },
    ) else {
        return false;
    };
    // SAFETY: within the mapping; single words, which packets write as well.
    unsafe {
        if change.sequences {
            std::ptr::write_volatile(&raw mut (*entry).seq_a, old.seq_a);
            std::ptr::write_volatile(&raw mut (*entry).seq_b, old.seq_b);
            std::ptr::write_volatile(&raw mut (*entry).high, old.high);
        }
        if change.last_seen {
            std::ptr::write_volatile(&raw mut (*entry).last_seen, old.last_seen);
        }
    }
    if change.flags != 0 {
        raise_flags(entry, change.flags);
    }
    if let Some(state) = change.state {
        // Where a packet was first, it knows better.
        swap(word, seen, moved(seen, state, now_tick()));
    }
    true
}

/// Raises bits as packets do: neither side loses the other's.
fn raise_flags(entry: *mut FlowEntry, bits: u16) {
    // SAFETY: aligned and within the mapping.
    let flags = unsafe { std::sync::atomic::AtomicU16::from_ptr(&raw mut (*entry).flags) };
    flags.fetch_or(bits, Ordering::AcqRel);
}

/// What an old entry has beyond the new one of the same flow.
#[derive(PartialEq, Eq, Debug)]
struct Change {
    flags: u16,
    sequences: bool,
    last_seen: bool,
    state: Option<u8>,
}

fn change(old: &FlowEntry, new: &FlowEntry) -> Option<Change> {
    let is_same = (old.service, old.backend, old.created, old.generation)
        == (new.service, new.backend, new.created, new.generation);
    if !is_same || !is_live(control_state(new.control)) {
        return None;
    }
    let (was, is) = (control_state(old.control), control_state(new.control));
    let is_later = old.last_seen.wrapping_sub(new.last_seen) as i32 >= 0;
    let flags = old.flags & SEEN & !new.flags;
    let grows = is_unproven(is) && (is_proven(was) || is_closing(was));
    let ends = is_proven(is) && is_closing(was) && is_later;
    let change = Change {
        flags,
        // Of a handshake only: later the next segment brings its own.
        sequences: grows || (is == STATE_HALF_OPEN && flags & FLOW_SYN_ACK != 0),
        last_seen: is_later && old.last_seen != new.last_seen,
        state: (grows || ends).then_some(was),
    };
    let nothing = Change {
        flags: 0,
        sequences: false,
        last_seen: false,
        state: None,
    };
    (change != nothing).then_some(change)
}

#[cfg(test)]
mod tests;

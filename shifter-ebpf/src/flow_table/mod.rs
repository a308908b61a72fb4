//! The flow table: find, insert, expire. One cache line a flow, two sets a key.

mod insert;

use core::mem::offset_of;

use shifter_common::{
    abi::{Config, flow::*},
    hash::address_words,
    life::moved,
    table::{Places, flow_hash, is_expired, places},
};

use crate::{atomic, maps::FLOWS};
pub use insert::{Inserted, NewFlow, insert, is_pressed};

/// A client's side of a flow, and where its entry may lie.
#[repr(C)]
pub struct FlowKey {
    /// The address as the words it lies in.
    pub client: [u64; 2],
    pub port: [u8; 2],
    pub family: u8,
    pub protocol: u8,
    pub places: Places,
    /// Where the entry that was last found or made lies, with `PLACE_FOUND`; where none was
    /// found, `PLACE_SHARED` or 0.
    pub place: u64,
}

/// The other side of the key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Match {
    Service(u16),
    Backend(u16),
}

impl Match {
    #[inline(always)]
    fn is_of(self, entry: *const FlowEntry) -> bool {
        match self {
            Self::Service(id) => get!(entry, service) == id,
            Self::Backend(id) => get!(entry, backend) == id,
        }
    }
}

/// In a place: there is an entry. Below lie set (from bit 4) and position.
pub const PLACE_FOUND: u64 = 1 << 40;
/// In what a look gives: the client has an entry by another service or backend.
pub const PLACE_SHARED: u64 = 1 << 41;
macro_rules! get {
    ($entry:expr, $field:ident) => {
        // SAFETY: entries point into a map value; other CPUs may write, so volatile.
        unsafe { core::ptr::read_volatile(&raw const (*$entry).$field) }
    };
}
macro_rules! set {
    ($entry:expr, $field:ident, $value:expr) => {
        // SAFETY: as for `get!`.
        unsafe { core::ptr::write_volatile(&raw mut (*$entry).$field, $value) }
    };
}
pub(crate) use {get, set};

impl FlowKey {
    /// Fills a key in place: it lies in scratch space, not on the stack.
    #[inline(always)]
    pub fn set(
        &mut self,
        config: &Config,
        client: &[u8; 16],
        port: [u8; 2],
        protocol: u8,
        family: u8,
    ) {
        self.client = address_words(client);
        let hash = flow_hash(config.table_key, self.client, port, protocol, family);
        self.port = port;
        self.family = family;
        self.protocol = protocol;
        self.places = places(hash, config.set_mask);
    }

    /// Whether the client had an entry, of whatever service, when it was last looked for.
    #[inline(always)]
    pub fn has_entry(&self) -> bool {
        self.place != 0
    }

    #[inline(always)]
    fn flags(&self) -> u16 {
        let family = if self.family == 6 { FLOW_IPV6 } else { 0 };
        let protocol = if self.protocol == 17 { FLOW_UDP } else { 0 };
        family | protocol
    }

    #[inline(always)]
    fn is_of(&self, entry: *const FlowEntry, wanted: Match) -> bool {
        wanted.is_of(entry) && self.is_of_client(entry)
    }

    #[inline(always)]
    fn is_of_client(&self, entry: *const FlowEntry) -> bool {
        get!(entry, client_port) == self.port
            && client_words(entry) == self.client
            && (get!(entry, flags) ^ self.flags()) & (FLOW_IPV6 | FLOW_UDP) == 0
    }
}

/// The client's address of an entry, in two loads.
#[inline(always)]
pub fn client_words(entry: *const FlowEntry) -> [u64; 2] {
    // SAFETY: the address lies at offset 8 of an entry aligned to 64.
    unsafe {
        let words = (&raw const (*entry).client).cast::<u64>();
        [
            core::ptr::read_volatile(words),
            core::ptr::read_volatile(words.add(1)),
        ]
    }
}

/// The entry at a place that `find_place` or `insert_at` gave; what says how it was found
/// lies above the 36 bits that are looked at.
#[inline(always)]
pub fn entry_at(place: u64) -> Option<*mut FlowEntry> {
    let set = FLOWS.get_ptr_mut((place >> 4) as u32)?;
    let offset = (place as usize & (SET_ENTRIES - 1)) * size_of::<FlowEntry>();
    // Not to be moved before the check for null.
    Some(atomic::add(set as usize, offset) as *mut FlowEntry)
}

/// Entry at `distance` from a home.
#[inline(always)]
pub fn at(set: *mut FlowSet, home: u32, distance: u32) -> *mut FlowEntry {
    let index = (home + distance) & (SET_ENTRIES as u32 - 1);
    // SAFETY: `index` is below SET_ENTRIES.
    unsafe { set.cast::<FlowEntry>().add(index as usize) }
}

#[inline(always)]
fn set_of(places: &Places, which: usize) -> Option<*mut FlowSet> {
    FLOWS.get_ptr_mut(if which == 0 {
        places.sets[0]
    } else {
        places.sets[1]
    })
}

#[inline(always)]
fn home_of(places: &Places, which: usize) -> u32 {
    if which == 0 {
        places.homes[0]
    } else {
        places.homes[1]
    }
}

/// Whether a home word marks this distance or a greater one. Most mark none or the
/// first, so loops over them end here; they are not to be unrolled, which makes
/// kilobytes of code that every packet jumps through.
#[inline(always)]
fn is_marked_from(mark: u32, distance: u32) -> bool {
    distance < SET_ENTRIES as u32 && (mark & (HOME_OVERFLOW - 1)) >> distance != 0
}

/// The live entry of a flow. Where two were written at once, both directions
/// and every CPU find the same one: the first by place.
#[inline(always)]
pub fn find(key: &mut FlowKey, wanted: Match) -> Option<*mut FlowEntry> {
    let (is_backend, id) = match wanted {
        Match::Service(id) => (0, id),
        Match::Backend(id) => (1, id),
    };
    let place = find_place(key, is_backend, u32::from(id));
    key.place = place;
    if place & PLACE_FOUND == 0 {
        None
    } else {
        entry_at(place)
    }
}

/// [`find`], verified once for all its callers: a global function, which takes
/// and gives only what the verifier knows of such.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_place(key: *const FlowKey, is_backend: u32, id: u32) -> u64 {
    // SAFETY: null or a whole key; the verifier knows which.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return 0;
    };
    let wanted = if is_backend == 0 {
        Match::Service(id as u16)
    } else {
        Match::Backend(id as u16)
    };
    let mut shared = 0;
    let mut which = 0;
    while which < 2 {
        let index = if which == 0 {
            key.places.sets[0]
        } else {
            key.places.sets[1]
        };
        let Some(set) = FLOWS.get_ptr_mut(index) else {
            return shared;
        };
        let home = home_of(&key.places, which);
        let mark = get!(at(set, home, 0), home);
        let mut distance = 0;
        while is_marked_from(mark, distance) {
            if mark >> distance & 1 != 0 {
                let entry = at(set, home, distance);
                let control = get!(entry, control);
                if control_tag(control) == key.places.tag
                    && is_live(control_state(control))
                    && key.is_of_client(entry)
                {
                    if wanted.is_of(entry) {
                        return place_of(index, home, distance);
                    }
                    shared = PLACE_SHARED;
                }
            }
            distance = atomic::next(distance);
        }
        if mark & HOME_OVERFLOW == 0 {
            return shared;
        }
        which += 1;
    }
    shared
}

#[inline(always)]
pub fn place_of(set: u32, home: u32, distance: u32) -> u64 {
    let position = (home + distance) & (SET_ENTRIES as u32 - 1);
    PLACE_FOUND | u64::from(set) << 4 | u64::from(position)
}

/// Moves an entry from the state it was seen in to another.
#[inline(always)]
pub fn transition(entry: *mut FlowEntry, seen: u64, state: u8, now: u32) -> bool {
    let word = moved(seen, state, now);
    // SAFETY: as in `insert_at`.
    unsafe { atomic::compare_exchange(&raw mut (*entry).control, seen, word) == seen }
}

/// Whether the entry is past its timeout.
#[inline(always)]
pub fn expired(entry: *const FlowEntry, control: u64, now: u32, config: &Config) -> bool {
    is_expired(
        control_state(control),
        get!(entry, last_seen),
        now,
        &config.timeouts,
    )
}

/// Sets bits of an entry's flags, and returns all that are set then. Two CPUs
/// see the FINs of both directions at the same time: neither may lose its own.
#[inline(always)]
pub fn raise_flags(entry: *mut FlowEntry, bits: u16) -> u16 {
    const WORD: usize = 24;
    const SHIFT: usize = 8 * (offset_of!(FlowEntry, flags) - WORD);
    // SAFETY: an entry is aligned to 64, and its word at 24 holds port, flags,
    // service and backend.
    let was =
        unsafe { atomic::fetch_or(entry.cast::<u64>().add(WORD / 8), u64::from(bits) << SHIFT) };
    (was >> SHIFT) as u16 | bits
}

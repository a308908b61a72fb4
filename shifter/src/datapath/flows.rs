//! The flow table through shared memory: listing, counting, expiry.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use shifter_common::{
    abi::{
        Config, FlowEntry,
        config::{TICK_SHIFT, TIMEOUTS},
        flow::*,
    },
    table::{flow_hash, is_due, places},
};

use super::{Census, FlowFilter, FlowRow, ServiceId, memory::MappedArray, monotonic_ns};
use crate::model::{PoolName, Protocol};

/// The table and what is needed to read it.
pub struct FlowTable {
    sets: MappedArray<FlowSet>,
}

/// The present tick.
pub fn now_tick() -> u32 {
    (monotonic_ns() >> TICK_SHIFT) as u32
}

fn seconds(ticks: u32) -> f64 {
    // A packet on another CPU may be a tick ahead.
    let ticks = if (ticks as i32) < 0 { 0 } else { ticks };
    (u64::from(ticks) << TICK_SHIFT) as f64 / 1e9
}

impl FlowTable {
    pub fn new(sets: MappedArray<FlowSet>) -> Self {
        Self { sets }
    }

    /// Entries of the whole table.
    pub fn entries(&self) -> u64 {
        u64::from(self.sets.count()) * SET_ENTRIES as u64
    }

    fn entry(&self, set: u32, place: usize) -> *mut FlowEntry {
        // SAFETY: `place` is below SET_ENTRIES by the loops of this module.
        unsafe { self.sets.at(set).cast::<FlowEntry>().add(place) }
    }

    /// Control word of an entry, shared with packets.
    fn control(&self, set: u32, place: usize) -> &AtomicU64 {
        // SAFETY: aligned to 64, within the mapping, and only ever used as a 64-bit word.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.entry(set, place)).control) }
    }

    /// A live entry, if it was the same flow before and after the copy.
    fn read(&self, set: u32, place: usize) -> Option<FlowEntry> {
        let control = self.control(set, place);
        let before = control.load(Ordering::Acquire);
        if !is_live(control_state(before)) {
            return None;
        }
        // SAFETY: within the mapping; every bit pattern is a valid entry.
        let mut entry = unsafe { std::ptr::read_volatile(self.entry(set, place)) };
        std::sync::atomic::fence(Ordering::Acquire);
        let after = control.load(Ordering::Acquire);
        let same = control_sequence(before) == control_sequence(after)
            && control_tag(before) == control_tag(after)
            && is_live(control_state(after));
        entry.control = after;
        same.then_some(entry)
    }

    fn for_each(&self, mut visit: impl FnMut(FlowEntry)) {
        for set in 0..self.sets.count() {
            for place in 0..SET_ENTRIES {
                if let Some(entry) = self.read(set, place) {
                    visit(entry);
                }
            }
        }
    }

    /// Frees entries that go by time alone, one compare-and-swap each.
    pub fn sweep(&self, timeouts: &[u32; TIMEOUTS]) -> u64 {
        let now = now_tick();
        let mut freed = 0;
        for set in 0..self.sets.count() {
            for place in 0..SET_ENTRIES {
                let control = self.control(set, place);
                let word = control.load(Ordering::Acquire);
                let state = control_state(word);
                if !is_live(state) {
                    continue;
                }
                // SAFETY: within the mapping.
                let last_seen = unsafe {
                    std::ptr::read_volatile(&raw const (*self.entry(set, place)).last_seen)
                };
                if is_due(state, last_seen, now, timeouts) {
                    let free = control_word(STATE_FREE, 0, control_sequence(word), now as u16);
                    let done = control
                        .compare_exchange(word, free, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok();
                    freed += u64::from(done);
                }
            }
        }
        freed
    }

    /// Services that live entries name.
    pub fn services(&self) -> std::collections::BTreeSet<ServiceId> {
        let mut services = std::collections::BTreeSet::new();
        self.for_each(|entry| {
            services.insert(entry.service);
        });
        services
    }

    /// Visits every flow that is not closing.
    pub fn for_each_open(&self, mut visit: impl FnMut(&FlowEntry)) {
        self.for_each(|entry| {
            if !is_closing(control_state(entry.control)) {
                visit(&entry);
            }
        });
    }

    /// Counts the whole table.
    pub fn census(&self) -> Census {
        let start = Instant::now();
        let mut census = Census::default();
        let mut services: HashMap<ServiceId, [u64; 2]> = HashMap::new();
        let mut backends: HashMap<u16, u64> = HashMap::new();
        self.for_each(|entry| {
            let state = control_state(entry.control);
            census.live += 1;
            if is_closing(state) {
                census.closing += 1;
                return;
            }
            if is_proven(state) {
                census.proven += 1;
            } else {
                census.unproven += 1;
            }
            let pool = usize::from(entry.flags & FLOW_GREEN != 0);
            services.entry(entry.service).or_default()[pool] += 1;
            *backends.entry(entry.backend).or_default() += 1;
        });
        census.services = services;
        census.backends = backends;
        census.took_ns = start.elapsed().as_nanos() as u64;
        census
    }

    /// Flows that match, at most `filter.limit`, and the number of all that match.
    pub fn list(&self, filter: &FlowFilter) -> (Vec<FlowRow>, u64) {
        let now = now_tick();
        let mut rows = Vec::new();
        let mut matched = 0;
        self.for_each(|entry| {
            let row = row(&entry, now);
            if matches(&row, filter) {
                matched += 1;
                if rows.len() < filter.limit {
                    rows.push(row);
                }
            }
        });
        (rows, matched)
    }

    /// The flow of one client and service, by the places that a packet would look at.
    pub fn find(
        &self,
        config: &Config,
        service: ServiceId,
        client: SocketAddr,
        protocol: Protocol,
    ) -> Option<FlowRow> {
        let (addr, family) = super::backends::address_bytes(client.ip());
        let port = client.port().to_be_bytes();
        let number = super::backends::protocol_number(protocol);
        let places = places(
            flow_hash(config.table_key, &addr, port, number, family),
            config.set_mask,
        );
        for set in places.sets {
            for place in 0..SET_ENTRIES {
                let Some(entry) = self.read(set, place) else {
                    continue;
                };
                let row = row(&entry, now_tick());
                if row.service == service && row.client == client && row.protocol == protocol {
                    return Some(row);
                }
            }
        }
        None
    }

    /// Distinct clients `(green, total)` of a service's chosen flows within the window.
    pub fn new_clients(&self, service: ServiceId, window_s: u32) -> (u64, u64) {
        let now = now_tick();
        let window = shifter_common::abi::config::ticks_of_seconds(window_s);
        let mut clients: [HashSet<[u8; 16]>; 2] = Default::default();
        self.for_each(|entry| {
            let age = now.wrapping_sub(entry.created);
            let is_new = (age as i32) < 0 || age <= window;
            if entry.service == service && entry.flags & FLOW_ADOPTED == 0 && is_new {
                clients[usize::from(entry.flags & FLOW_GREEN != 0)].insert(entry.client);
            }
        });
        let green = clients[1].len() as u64;
        (green, green + clients[0].len() as u64)
    }
}

fn row(entry: &FlowEntry, now: u32) -> FlowRow {
    let state = control_state(entry.control);
    let ip = if entry.flags & FLOW_IPV6 != 0 {
        IpAddr::V6(Ipv6Addr::from(entry.client))
    } else {
        let [a, b, c, d, ..] = entry.client;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    let is_udp = entry.flags & FLOW_UDP != 0;
    FlowRow {
        service: entry.service,
        client: SocketAddr::new(ip, u16::from_be_bytes(entry.client_port)),
        protocol: if is_udp { Protocol::Udp } else { Protocol::Tcp },
        pool: if entry.flags & FLOW_GREEN != 0 {
            PoolName::Green
        } else {
            PoolName::Blue
        },
        backend: entry.backend,
        state: state_name(state),
        proven: is_proven(state),
        adopted: entry.flags & FLOW_ADOPTED != 0,
        generation: entry.generation,
        age_s: seconds(now.wrapping_sub(entry.created)),
        idle_s: seconds(now.wrapping_sub(entry.last_seen)),
        bytes: if state == STATE_HALF_OPEN {
            0
        } else {
            u64::from(entry.high) * BYTES_UNIT
        },
    }
}

fn state_name(state: u8) -> &'static str {
    match state {
        STATE_HALF_OPEN => "half_open",
        STATE_ADOPTED => "adopted",
        STATE_UDP_UNANSWERED => "udp_unanswered",
        STATE_ESTABLISHED => "established",
        STATE_UDP_ANSWERED => "udp_answered",
        STATE_CLOSING => "closing",
        STATE_RESET => "reset",
        _ => "free",
    }
}

fn matches(row: &FlowRow, filter: &FlowFilter) -> bool {
    filter.service.is_none_or(|service| row.service == service)
        && filter.pool.is_none_or(|pool| row.pool == pool)
        && filter.backend.is_none_or(|backend| row.backend == backend)
        && filter.client.is_none_or(|client| row.client.ip() == client)
        && filter
            .client_port
            .is_none_or(|port| row.client.port() == port)
}

//! The flow table through shared memory: listing, counting, expiry.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use shifter_common::{
    abi::{
        Config, FlowEntry,
        config::{TICK_SHIFT, TIMEOUTS, ticks_of_seconds},
        flow::*,
    },
    hash::address_words,
    life::freed,
    signals::is_unanswered,
    table::{flow_hash, idle_ticks, is_due, places},
};

use super::{
    BackendId, Census, FlowFilter, FlowRow, IdleFlow, LONG_IDLE_S, NamedIds, ServiceId,
    memory::MappedArray, monotonic_ns,
};
use crate::model::{PoolName, Protocol};

/// The table and what is needed to read it.
pub struct FlowTable {
    sets: MappedArray<FlowSet>,
    /// Live flows at the last pass over the whole table.
    counted: AtomicU64,
}

/// Distinct clients of blue and green.
type Clients = [HashSet<[u8; 16]>; 2];

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
        Self {
            sets,
            counted: AtomicU64::new(0),
        }
    }

    /// The table itself.
    pub fn sets(&self) -> &MappedArray<FlowSet> {
        &self.sets
    }

    /// Live flows at the last sweep or census, whichever came later.
    pub fn counted(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
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
    pub(super) fn read(&self, set: u32, place: usize) -> Option<FlowEntry> {
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
        self.for_each_place(|_, _, entry| visit(*entry));
    }

    pub(super) fn for_each_place(&self, mut visit: impl FnMut(u32, usize, &FlowEntry)) {
        for set in 0..self.sets.count() {
            for place in 0..SET_ENTRIES {
                if let Some(entry) = self.read(set, place) {
                    visit(set, place, &entry);
                }
            }
        }
    }

    /// Frees entries that go by time alone, one compare-and-swap each.
    /// `unanswered`: told service and pool of handshakes that no SYN-ACK came for.
    pub fn sweep(&self, timeouts: &[u32; TIMEOUTS], unanswered: impl Fn(ServiceId, usize)) -> u64 {
        let now = now_tick();
        let (mut freed, mut live) = (0, 0);
        let sets = self.sets.count();
        for set in 0..sets {
            if set == sets / 2 {
                crate::fault::point("sweep");
            }
            for place in 0..SET_ENTRIES {
                let control = self.control(set, place);
                let word = control.load(Ordering::Acquire);
                let state = control_state(word);
                if !is_live(state) {
                    continue;
                }
                live += 1;
                if is_due(state, self.last_seen(set, place), now, timeouts) {
                    // Theirs if the word is still the one that was read.
                    let (flags, service) = self.kind(set, place);
                    let is_freed = free(control, word, now);
                    freed += u64::from(is_freed);
                    if is_freed && is_unanswered(state, flags) {
                        unanswered(service, usize::from(flags & FLOW_GREEN != 0));
                    }
                }
            }
        }
        self.counted.store(live - freed, Ordering::Relaxed);
        freed
    }

    /// Tick of the last packet of the flow that lies there.
    fn last_seen(&self, set: u32, place: usize) -> u32 {
        // SAFETY: within the mapping.
        unsafe { std::ptr::read_volatile(&raw const (*self.entry(set, place)).last_seen) }
    }

    /// Flags and service of the flow that lies there.
    fn kind(&self, set: u32, place: usize) -> (u16, ServiceId) {
        let entry = self.entry(set, place);
        // SAFETY: within the mapping.
        unsafe {
            (
                std::ptr::read_volatile(&raw const (*entry).flags),
                std::ptr::read_volatile(&raw const (*entry).service),
            )
        }
    }

    /// Frees all flows of the services, one compare-and-swap each.
    pub fn free(&self, services: &BTreeSet<ServiceId>) -> u64 {
        let mut freed = 0;
        let now = now_tick();
        self.for_each_place(|set, place, entry| {
            if services.contains(&entry.service) {
                freed += u64::from(free(self.control(set, place), entry.control, now));
            }
        });
        freed
    }

    /// TCP flows in mid-stream on the backends without a packet for `idle_s`.
    pub fn idle(&self, backends: &BTreeSet<BackendId>, idle_s: u32) -> Vec<IdleFlow> {
        let (now, least) = (now_tick(), ticks_of_seconds(idle_s));
        let mut found = Vec::new();
        self.for_each_place(|set, place, entry| {
            let state = control_state(entry.control);
            if matches!(state, STATE_ESTABLISHED | STATE_ADOPTED)
                && idle_ticks(entry.last_seen, now) > least
                && backends.contains(&entry.backend)
                && entry.flags & FLOW_UDP == 0
            {
                found.push(IdleFlow {
                    place: (set, place as u8),
                    control: entry.control,
                    backend: entry.backend,
                    client: client_of(entry),
                });
            }
        });
        found
    }

    /// Frees flows that are still as they were read. With `idle_s` one that had a packet
    /// since is left: its time is read again right before the compare-and-swap.
    pub fn release(&self, flows: &[IdleFlow], idle_s: Option<u32>) -> u64 {
        let least = idle_s.map(ticks_of_seconds);
        let mut freed = 0;
        for flow in flows {
            let (set, place) = (flow.place.0, usize::from(flow.place.1));
            let now = now_tick();
            let is_same = self
                .read(set, place)
                .is_some_and(|entry| entry.control == flow.control);
            let is_idle = |least| idle_ticks(self.last_seen(set, place), now) > least;
            if is_same && least.is_none_or(is_idle) {
                freed += u64::from(free(self.control(set, place), flow.control, now));
            }
        }
        freed
    }

    /// Ids that live entries name.
    pub fn named_ids(&self) -> NamedIds {
        let mut named = NamedIds::default();
        self.for_each(|entry| {
            named.services.insert(entry.service);
            named.backends.insert(entry.backend);
        });
        named
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
        let now = now_tick();
        let mut services: HashMap<ServiceId, [u64; 2]> = HashMap::new();
        let mut idle: HashMap<ServiceId, [u64; 2]> = HashMap::new();
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
            if is_long_idle(&entry, now) {
                idle.entry(entry.service).or_default()[pool] += 1;
            }
            *backends.entry(entry.backend).or_default() += 1;
        });
        self.counted.store(census.live, Ordering::Relaxed);
        census.services = services;
        census.idle = idle;
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
        let now = now_tick();
        let is_it = |row: &FlowRow| {
            row.service == service && row.client == client && row.protocol == protocol
        };
        self.of_client(config, client, protocol)
            .map(|entry| row(&entry, now))
            .find(is_it)
    }

    /// Whether a live TCP flow of the client is on the backend.
    pub fn carries(&self, config: &Config, backend: BackendId, client: SocketAddr) -> bool {
        self.of_client(config, client, Protocol::Tcp)
            .any(|entry| entry.backend == backend && client_of(&entry) == client)
    }

    /// Entries in the two sets where flows of a client lie, others' too.
    fn of_client(
        &self,
        config: &Config,
        client: SocketAddr,
        protocol: Protocol,
    ) -> impl Iterator<Item = FlowEntry> {
        let (addr, family) = super::backends::address_bytes(client.ip());
        let number = super::backends::protocol_number(protocol);
        let port = client.port().to_be_bytes();
        let hash = flow_hash(config.table_key, address_words(&addr), port, number, family);
        let sets = places(hash, config.set_mask).sets;
        sets.into_iter()
            .flat_map(move |set| (0..SET_ENTRIES).filter_map(move |place| self.read(set, place)))
    }

    /// Distinct clients `(green, total)` of each service's chosen flows within its window.
    pub fn new_clients(
        &self,
        windows: &BTreeMap<ServiceId, u32>,
    ) -> BTreeMap<ServiceId, (u64, u64)> {
        let now = now_tick();
        let mut clients: BTreeMap<ServiceId, (u32, Clients)> = windows
            .iter()
            .map(|(id, window_s)| (*id, (ticks_of_seconds(*window_s), Default::default())))
            .collect();
        self.for_each(|entry| {
            let Some((window, clients)) = clients.get_mut(&entry.service) else {
                return;
            };
            let is_new = idle_ticks(entry.created, now) <= *window;
            if entry.flags & (FLOW_ADOPTED | FLOW_COHORT) == 0 && is_new {
                clients[usize::from(entry.flags & FLOW_GREEN != 0)].insert(entry.client);
            }
        });
        let counts = |[blue, green]: &Clients| {
            let green = green.len() as u64;
            (green, green + blue.len() as u64)
        };
        clients
            .iter()
            .map(|(id, (_, clients))| (*id, counts(clients)))
            .collect()
    }
}

/// From a state that was read to free, by one compare-and-swap.
fn free(control: &AtomicU64, word: u64, now: u32) -> bool {
    control
        .compare_exchange(word, freed(word, now), Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}

/// Whether a flow had no packet for [`LONG_IDLE_S`].
pub fn is_long_idle(entry: &FlowEntry, now: u32) -> bool {
    idle_ticks(entry.last_seen, now) > ticks_of_seconds(LONG_IDLE_S)
}

pub(super) fn client_of(entry: &FlowEntry) -> SocketAddr {
    let ip = if entry.flags & FLOW_IPV6 != 0 {
        IpAddr::V6(Ipv6Addr::from(entry.client))
    } else {
        let [a, b, c, d, ..] = entry.client;
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    SocketAddr::new(ip, u16::from_be_bytes(entry.client_port))
}

fn row(entry: &FlowEntry, now: u32) -> FlowRow {
    let state = control_state(entry.control);
    let is_udp = entry.flags & FLOW_UDP != 0;
    FlowRow {
        service: entry.service,
        client: client_of(entry),
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
        cohort: entry.flags & FLOW_COHORT != 0,
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

/// The word for a state.
pub fn state_name(state: u8) -> &'static str {
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
        && !(filter.open_only && matches!(row.state, "closing" | "reset"))
}

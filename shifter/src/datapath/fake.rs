//! A packet path in memory, for tests without root.
//!
//! It keeps the rules of the kernel's: a ring names only backends that exist,
//! a backend that a ring or flow names is not deleted, generations rise.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use shifter_common::{
    abi::{BackendCounters, MAX_BACKEND_IDS, MAX_RING_SLOTS, MAX_SERVICES, PoolCounters},
    select::ring_slot,
};

use super::{
    BackendId, BackendImage, BreakerState, Census, CohortSet, CutFilter, CutFlow, Datapath,
    DatapathError, FlowFilter, FlowRow, HookStatus, IdleFlow, Inventory, LONG_IDLE_S, LimitUse,
    NamedIds, ServiceId, ServiceImage, VerdictCount, monotonic_ns,
};
use crate::model::{PoolName, Protocol, cohort::Rule, signals::PoolSignals};

/// See the module.
#[derive(Default)]
pub struct FakeDatapath {
    state: Mutex<State>,
    /// Run once, in the middle of the next reading of signals.
    pub signals_gate: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

/// What the fake kernel holds; tests may look at it and change it.
#[derive(Default)]
pub struct State {
    pub services: BTreeMap<ServiceId, ServiceImage>,
    pub rings: HashMap<ServiceId, [Vec<BackendId>; 2]>,
    pub backends: BTreeMap<BackendId, BackendImage>,
    pub flows: Vec<FlowRow>,
    pub pool_counters: HashMap<ServiceId, [PoolCounters; 2]>,
    pub backend_counters: HashMap<BackendId, BackendCounters>,
    /// Answer of `signals`.
    pub signals: HashMap<ServiceId, [PoolSignals; 2]>,
    /// Answer of `breaker` for services that have one.
    pub breakers: HashMap<ServiceId, BreakerState>,
    /// Sets of cohort prefixes that are written.
    pub cohort_sets: BTreeMap<CohortSet, Arc<[Rule]>>,
    /// Sets that were given up and are still named.
    pub dropped_sets: BTreeSet<CohortSet>,
    /// Sets written so far.
    pub cohort_writes: u64,
    /// The write of a set with this number fails (counted from 1).
    pub fail_cohorts: Option<u64>,
    pub first_flows: HashMap<ServiceId, (u32, u64)>,
    /// Answer of `new_clients`.
    pub new_clients: HashMap<ServiceId, (u64, u64)>,
    /// Passes over the table that `new_clients` made.
    pub client_passes: u64,
    /// Grace periods waited for.
    pub grace_periods: u64,
    /// Flows that packets under way make before the next grace period ends.
    pub late_flows: Vec<FlowRow>,
    /// Publications so far.
    pub publications: u64,
    /// Those that brought rings.
    pub ring_publications: u64,
    /// The publication with this number fails (counted from 1).
    pub fail_publication: Option<u64>,
}

impl FakeDatapath {
    /// Runs `f` on what the kernel holds.
    pub fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn is_idle(flow: &FlowRow, idle_s: u32) -> bool {
    flow.protocol == Protocol::Tcp
        && matches!(flow.state, "established" | "adopted")
        && flow.idle_s > f64::from(idle_s)
}

fn idle_flow(flow: &FlowRow) -> IdleFlow {
    IdleFlow {
        place: (u32::from(flow.service), 0),
        control: 0,
        backend: flow.backend,
        client: flow.client,
    }
}

fn refused<T>(text: String) -> Result<T, DatapathError> {
    Err(DatapathError::Refused(text))
}

impl State {
    fn check_publication(
        &mut self,
        image: &ServiceImage,
        rings: Option<&[Vec<BackendId>; 2]>,
    ) -> Result<(), DatapathError> {
        self.publications += 1;
        if self.fail_publication == Some(self.publications) {
            return Err(DatapathError::Kernel {
                operation: format!("publishing service {}", image.id),
                source: std::io::Error::from_raw_os_error(libc::ENOMEM),
                remedy: String::new(),
            });
        }
        if u32::from(image.id) >= MAX_SERVICES {
            return refused(format!("service id {} is out of range", image.id));
        }
        if let Some(before) = self.services.get(&image.id) {
            // A dead-man alone may be put off under the same generation.
            let put_off = ServiceImage {
                dead_man: image.dead_man,
                ..before.clone()
            };
            let renews = rings.is_none() && put_off == *image;
            if before.generation >= image.generation && !renews {
                return refused(format!("generation {} does not rise", image.generation));
            }
            if before.vip != image.vip {
                return refused(format!("the VIP of service {} changes", image.id));
            }
        } else if rings.is_none() {
            return refused("a new service has no rings".into());
        }
        if self
            .services
            .values()
            .any(|s| s.id != image.id && s.vip == image.vip)
        {
            return refused(format!("the VIP {} is in use", image.vip));
        }
        if image.cohort_set != 0 && !self.cohort_sets.contains_key(&image.cohort_set) {
            return refused(format!(
                "set {} of cohorts does not exist",
                image.cohort_set
            ));
        }
        let named = rings.iter().flat_map(|r| r.iter().flatten());
        let named = named.chain(image.local_backends.iter().flatten());
        for id in named.chain([&image.vip_backend]) {
            if !self.backends.contains_key(id) {
                return refused(format!("backend {id} is named but does not exist"));
            }
        }
        Ok(())
    }
}

impl State {
    /// Sets that were given up go once no service names them.
    fn take_out_sets(&mut self) {
        let named: BTreeSet<CohortSet> = self.services.values().map(|s| s.cohort_set).collect();
        for set in &self.dropped_sets - &named {
            self.dropped_sets.remove(&set);
            self.cohort_sets.remove(&set);
        }
    }
}

impl Datapath for FakeDatapath {
    fn inventory(&self) -> Result<Inventory, DatapathError> {
        let state = self.lock();
        Ok(Inventory {
            services: state.services.values().cloned().collect(),
            backends: state
                .backends
                .iter()
                .map(|(id, b)| (*id, b.addr, b.protocol))
                .collect(),
        })
    }

    fn put_backend(&self, id: BackendId, backend: &BackendImage) -> Result<(), DatapathError> {
        let mut state = self.lock();
        if id == 0 || u32::from(id) >= MAX_BACKEND_IDS {
            return refused(format!("backend id {id} is out of range"));
        }
        if state
            .backends
            .get(&id)
            .is_some_and(|b| (b.addr, b.protocol) != (backend.addr, backend.protocol))
        {
            return refused(format!("the address of backend {id} changes"));
        }
        state.backends.insert(id, *backend);
        Ok(())
    }

    fn delete_backend(&self, id: BackendId) -> Result<(), DatapathError> {
        let mut state = self.lock();
        if state.rings.values().flatten().any(|r| r.contains(&id)) {
            return refused(format!("a ring names backend {id}"));
        }
        if state.services.values().any(|s| s.vip_backend == id) {
            return refused(format!("backend {id} is the VIP of a service"));
        }
        if state.flows.iter().any(|f| f.backend == id) {
            return refused(format!("a flow names backend {id}"));
        }
        state.backends.remove(&id);
        Ok(())
    }

    fn publish(
        &self,
        image: &ServiceImage,
        rings: Option<&[Vec<BackendId>; 2]>,
    ) -> Result<u64, DatapathError> {
        let mut state = self.lock();
        state.check_publication(image, rings)?;
        state.services.insert(image.id, image.clone());
        state.take_out_sets();
        if let Some(rings) = rings {
            state.ring_publications += 1;
            state.rings.insert(image.id, rings.clone());
        }
        Ok(monotonic_ns())
    }

    fn write_cohorts(&self, rules: &[Rule]) -> Result<CohortSet, DatapathError> {
        if rules.is_empty() {
            return Ok(0);
        }
        let mut state = self.lock();
        state.cohort_writes += 1;
        if state.fail_cohorts == Some(state.cohort_writes) {
            return Err(DatapathError::Full {
                what: "prefixes of cohorts",
                limit: 0,
                remedy: "write fewer",
            });
        }
        let set = (1..).find(|set| !state.cohort_sets.contains_key(set));
        let set = set.unwrap_or(CohortSet::MAX);
        state.cohort_sets.insert(set, rules.into());
        Ok(set)
    }

    fn drop_cohorts(&self, set: CohortSet) {
        let mut state = self.lock();
        state.dropped_sets.insert(set);
        state.take_out_sets();
    }

    fn cohort_rules(&self, set: CohortSet) -> Arc<[Rule]> {
        self.lock()
            .cohort_sets
            .get(&set)
            .cloned()
            .unwrap_or_default()
    }

    fn delete_service(&self, id: ServiceId) -> Result<(), DatapathError> {
        let mut state = self.lock();
        state.services.remove(&id);
        state.take_out_sets();
        state.rings.remove(&id);
        Ok(())
    }

    fn ring_choice(&self, id: ServiceId, pool: PoolName, ring_hash: u32) -> Option<BackendId> {
        let state = self.lock();
        let ring = &state.rings.get(&id)?[pool.index()];
        ring.get(ring_slot(ring_hash, ring.len() as u32) as usize)
            .copied()
    }

    fn rings(&self, id: ServiceId) -> Option<[Vec<BackendId>; 2]> {
        self.lock().rings.get(&id).cloned()
    }

    fn grace_period(&self) -> Result<(), DatapathError> {
        let mut state = self.lock();
        state.grace_periods += 1;
        let late = std::mem::take(&mut state.late_flows);
        state.flows.extend(late);
        Ok(())
    }

    fn reset_service_counters(&self, id: ServiceId) -> Result<(), DatapathError> {
        let mut state = self.lock();
        state.pool_counters.remove(&id);
        state.signals.remove(&id);
        state.breakers.remove(&id);
        Ok(())
    }

    fn reset_backend_counters(&self, id: BackendId) -> Result<(), DatapathError> {
        self.lock().backend_counters.remove(&id);
        Ok(())
    }

    fn first_flow(&self, id: ServiceId) -> Option<(u32, u64)> {
        self.lock().first_flows.get(&id).copied()
    }

    fn pool_counters(&self, id: ServiceId) -> Result<[PoolCounters; 2], DatapathError> {
        let state = self.lock();
        Ok(state.pool_counters.get(&id).copied().unwrap_or_default())
    }

    fn signals(&self, id: ServiceId) -> Result<[PoolSignals; 2], DatapathError> {
        let gate = self.signals_gate.lock();
        let gate = gate
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        if let Some(gate) = gate {
            gate();
        }
        Ok(self.lock().signals.get(&id).cloned().unwrap_or_default())
    }

    fn breaker(&self, id: ServiceId) -> Result<Option<BreakerState>, DatapathError> {
        let state = self.lock();
        let has_one = state.services.get(&id).is_some_and(|s| s.breaker.is_some());
        let counted = state.breakers.get(&id).copied().unwrap_or_default();
        Ok(has_one.then_some(counted))
    }

    fn backend_counters(&self, id: BackendId) -> Result<BackendCounters, DatapathError> {
        let state = self.lock();
        Ok(state.backend_counters.get(&id).copied().unwrap_or_default())
    }

    fn verdicts(&self) -> Result<Vec<VerdictCount>, DatapathError> {
        Ok(Vec::new())
    }

    fn flows(&self, filter: &FlowFilter) -> (Vec<FlowRow>, u64) {
        let state = self.lock();
        let matching: Vec<&FlowRow> = state
            .flows
            .iter()
            .filter(|f| filter.service.is_none_or(|s| s == f.service))
            .filter(|f| filter.pool.is_none_or(|p| p == f.pool))
            .filter(|f| filter.backend.is_none_or(|b| b == f.backend))
            .filter(|f| filter.client.is_none_or(|c| c == f.client.ip()))
            .filter(|f| filter.client_port.is_none_or(|p| p == f.client.port()))
            .filter(|f| !(filter.open_only && matches!(f.state, "closing" | "reset")))
            .collect();
        let count = matching.len() as u64;
        let rows = matching.into_iter().take(filter.limit).cloned().collect();
        (rows, count)
    }

    fn find_flow(
        &self,
        service: ServiceId,
        client: SocketAddr,
        protocol: Protocol,
    ) -> Option<FlowRow> {
        let state = self.lock();
        let mut flows = state.flows.iter();
        flows
            .find(|f| (f.service, f.client, f.protocol) == (service, client, protocol))
            .cloned()
    }

    fn named_ids(&self) -> NamedIds {
        let state = self.lock();
        NamedIds {
            services: state.flows.iter().map(|flow| flow.service).collect(),
            backends: state.flows.iter().map(|flow| flow.backend).collect(),
        }
    }

    fn census(&self) -> Census {
        let state = self.lock();
        let mut census = Census::default();
        for flow in &state.flows {
            census.live += 1;
            match flow.proven {
                true => census.proven += 1,
                false => census.unproven += 1,
            }
            if matches!(flow.state, "closing" | "reset") {
                census.closing += 1;
                continue;
            }
            census.services.entry(flow.service).or_default()[flow.pool.index()] += 1;
            if flow.idle_s > f64::from(LONG_IDLE_S) {
                census.idle.entry(flow.service).or_default()[flow.pool.index()] += 1;
            }
            *census.backends.entry(flow.backend).or_default() += 1;
        }
        census
    }

    fn sweep(&self) -> u64 {
        let mut state = self.lock();
        let before = state.flows.len();
        state
            .flows
            .retain(|f| !matches!(f.state, "closing" | "reset"));
        (before - state.flows.len()) as u64
    }

    fn free_flows(&self, services: &BTreeSet<ServiceId>) -> u64 {
        let mut state = self.lock();
        let before = state.flows.len();
        state.flows.retain(|f| !services.contains(&f.service));
        (before - state.flows.len()) as u64
    }

    fn idle_flows(&self, backends: &BTreeSet<BackendId>, idle_s: u32) -> Vec<IdleFlow> {
        let state = self.lock();
        let flows = state.flows.iter();
        flows
            .filter(|f| is_idle(f, idle_s) && backends.contains(&f.backend))
            .map(idle_flow)
            .collect()
    }

    fn carries(&self, backend: BackendId, client: SocketAddr) -> bool {
        let state = self.lock();
        let mut flows = state.flows.iter();
        flows.any(|f| (f.backend, f.client, f.protocol) == (backend, client, Protocol::Tcp))
    }

    fn release(&self, flows: &[IdleFlow], idle_s: Option<u32>) -> u64 {
        let mut state = self.lock();
        let before = state.flows.len();
        state
            .flows
            .retain(|f| !idle_s.is_none_or(|s| is_idle(f, s)) || !flows.contains(&idle_flow(f)));
        (before - state.flows.len()) as u64
    }

    fn flows_to_cut(&self, filter: &CutFilter, limit: usize) -> (Vec<CutFlow>, u64) {
        let state = self.lock();
        let wanted = |f: &&FlowRow| {
            f.service == filter.service
                && filter.pool.is_none_or(|pool| pool == f.pool)
                && filter
                    .backends
                    .as_ref()
                    .is_none_or(|on| on.contains(&f.backend))
                && filter.before.is_none_or(|before| f.generation < before)
                && !matches!(f.state, "half_open" | "closing" | "reset")
        };
        let found: Vec<CutFlow> = state.flows.iter().filter(wanted).map(cut_flow).collect();
        let count = found.len() as u64;
        (found.into_iter().take(limit).collect(), count)
    }

    fn look_again(&self, flow: &CutFlow) -> Option<CutFlow> {
        let state = self.lock();
        let open = state
            .flows
            .iter()
            .filter(|f| !matches!(f.state, "closing" | "reset"));
        open.map(cut_flow).find(|f| f.id() == flow.id())
    }

    fn new_clients(&self, windows: &BTreeMap<ServiceId, u32>) -> BTreeMap<ServiceId, (u64, u64)> {
        let mut state = self.lock();
        state.client_passes += 1;
        let count = |id| state.new_clients.get(id).copied().unwrap_or_default();
        windows.keys().map(|id| (*id, count(id))).collect()
    }

    fn hooks(&self) -> Vec<HookStatus> {
        Vec::new()
    }

    fn limits(&self) -> Vec<LimitUse> {
        let state = self.lock();
        let slots = state.rings.values().flatten().map(|r| r.len() as u64).sum();
        let limit = |name, used, limit: u32| LimitUse {
            name,
            used,
            limit: u64::from(limit),
            memory_bytes: 0,
        };
        vec![
            limit("services", state.services.len() as u64, MAX_SERVICES),
            limit("backends", state.backends.len() as u64, MAX_BACKEND_IDS),
            limit("ring_slots", slots, MAX_RING_SLOTS),
        ]
    }

    fn tag(&self) -> String {
        "fake".into()
    }
}

fn cut_flow(row: &FlowRow) -> CutFlow {
    CutFlow {
        place: (0, 0),
        control: 0,
        backend: row.backend,
        client: row.client,
        protocol: row.protocol,
        client_acked: 1,
        backend_acked: 1,
    }
}

//! The datapath in the kernel: maps, programs and hooks behind one lock each.

mod config;
mod counters;
mod hooks;
mod moving;
mod signals;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, Map},
};
use shifter_common::{
    abi::{
        self, BackendCounters, Config, FirstFlow, PoolCounters,
        config::{TIMEOUTS, ticks_of_seconds},
        ring::RING_LANES,
    },
    known::KNOWN_WORDS,
};

use super::{
    BackendId, BackendImage, BreakerState, Census, CohortSet, CutFilter, CutFlow, Datapath,
    DatapathError, FlowFilter, FlowRow, HookStatus, IdleFlow, Inventory, LimitUse, NamedIds,
    NextHopImage, ServiceId, ServiceImage, VerdictCount,
    attach::{Attacher, Egress, load_programs},
    backends::{Backends, Known, NextHops, Whose, addr_of},
    cohorts::Cohorts,
    flows::FlowTable,
    inspect,
    load::{self, Pins, failed, map_fd},
    memory::{MappedArray, NO_BARRIER, grace_period},
    migrate::{self, Ground, Migration},
    services::{Services, image_of},
};
use crate::model::{PoolName, Protocol, cohort::Rule, signals::PoolSignals};
use config::prepare_config;
use counters::Counters;
pub use hooks::Look;
use signals::Signals;

/// How an installation is set up; fixed at start.
#[derive(Clone, Debug)]
pub struct Setup {
    /// A mounted BPF file system.
    pub bpffs: std::path::PathBuf,
    /// Flows really pinned.
    pub flow_capacity: u32,
    /// In seconds, in the order of `abi::config`.
    pub timeouts_s: [u32; TIMEOUTS],
    pub egress: Egress,
    /// One flow in so many is watched for what is sent again; a power of two.
    pub watch_one_in: u32,
}

/// What changes together.
struct Tables {
    services: Services,
    backends: Backends,
    next_hops: NextHops,
    known: Known,
}

/// The datapath of this host.
pub struct KernelDatapath {
    tables: Mutex<Tables>,
    cohorts: Cohorts,
    flows: FlowTable,
    config: MappedArray<Config>,
    first_flow: MappedArray<FirstFlow>,
    counters: Counters,
    signals: Signals,
    attacher: Mutex<Attacher>,
    /// This agent's programs.
    own: hooks::Own,
    hooks: Mutex<Vec<HookStatus>>,
    /// Who programs of others are, by their id.
    identities: Mutex<BTreeMap<u32, inspect::ProgramIdentity>>,
    /// What is wrong with the hooks, for `status`.
    alarms: Mutex<Vec<String>>,
    /// What follows from a grace period that was refused.
    barrier: Mutex<Option<String>>,
    /// One at a time: what ripens before a grace period is reclaimed after that one.
    reclaiming: Mutex<()>,
    /// Flows that have still to come from another table.
    migration: Mutex<Option<Box<Migration>>>,
    flow_capacity: u32,
    timeouts: [u32; TIMEOUTS],
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panicking holder left is whole: every change ends in one store.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, DatapathError> {
    ebpf.take_map(name).ok_or_else(|| {
        DatapathError::Refused(format!(
            "the eBPF object has no map {name}: build it with this version's shifter-ebpf"
        ))
    })
}

fn mapped<T: Copy>(
    ebpf: &mut Ebpf,
    name: &str,
    elements: u32,
) -> Result<MappedArray<T>, DatapathError> {
    let map = take(ebpf, name)?;
    MappedArray::new(map_fd(&map)?, elements).map_err(|error| {
        failed(
            format!("mapping {name}"),
            error,
            "memory or RLIMIT_AS is short",
        )
    })
}

fn typed<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> Result<T, DatapathError>
where
    T::Error: std::error::Error + Send + Sync + 'static,
{
    T::try_from(take(ebpf, name)?).map_err(|error| failed(format!("opening map {name}"), error, ""))
}

impl KernelDatapath {
    /// Loads the programs over the pinned maps, or makes new ones. Attaches nothing.
    pub fn open(setup: &Setup) -> Result<Self, DatapathError> {
        let pins = Pins::new(&setup.bpffs);
        pins.create()?;
        let migration = match migrate::look(&pins, setup.flow_capacity)? {
            Ground::Own => return Self::open_over(setup, pins, None),
            Ground::Other(migration) => migration,
        };
        match Self::open_over(setup, pins, Some(&migration)) {
            Ok(datapath) => {
                *lock(&datapath.migration) = Some(migration);
                Ok(datapath)
            }
            Err(error) => Err(migration.give_up(&error)),
        }
    }

    fn open_over(
        setup: &Setup,
        pins: Pins,
        migration: Option<&Migration>,
    ) -> Result<Self, DatapathError> {
        let maps = migration.map_or_else(|| Ok(pins.maps()), Migration::maps)?;
        let mut ebpf = load::load(&maps, setup.flow_capacity)?;
        crate::fault::point("maps-pinned");
        load_programs(&mut ebpf)?;
        let inherited = migration.map_or(Ok(None), Migration::fill)?;
        let sets = load::flow_sets(setup.flow_capacity);
        let timeouts = setup.timeouts_s.map(ticks_of_seconds);
        let config: MappedArray<Config> = mapped(&mut ebpf, "CONFIG", 1)?;
        let watched_before =
            prepare_config(&config, sets, setup.watch_one_in - 1, &timeouts, inherited)?;
        let mut known = Known::new(mapped(&mut ebpf, "KNOWN", KNOWN_WORDS as u32)?);
        let services = Services::adopt(
            mapped(&mut ebpf, "SERVICE_HEAD", abi::MAX_SERVICES)?,
            mapped(&mut ebpf, "SERVICE_BODY", abi::MAX_SERVICE_BODIES)?,
            mapped(&mut ebpf, "RINGS", abi::MAX_RING_SLOTS / RING_LANES)?,
            typed::<BpfHashMap<_, _, _>>(&mut ebpf, "VIPS")?,
        );
        let backends = Backends {
            records: mapped(&mut ebpf, "BACKENDS", abi::MAX_BACKEND_IDS)?,
            ids: typed(&mut ebpf, "BACKEND_IDS")?,
        };
        let next_hops = NextHops::adopt(
            mapped(&mut ebpf, "NEXT_HOPS", abi::MAX_NEXT_HOPS)?,
            typed(&mut ebpf, "NEXT_HOP_IDS")?,
        );
        let cohorts = Cohorts::adopt(typed(&mut ebpf, "COHORTS")?, &services.cohort_sets())?;
        services.count_known(&mut known);
        for (_, record) in backends.used() {
            known.add(Whose::Backend, &record.key);
        }
        let flows = FlowTable::new(mapped(&mut ebpf, "FLOWS", sets)?);
        let first_flow = mapped(&mut ebpf, "FIRST_FLOW", abi::MAX_SERVICES)?;
        let counters = Counters {
            pools: Mutex::new(typed(&mut ebpf, "POOL_COUNTERS")?),
            backends: Mutex::new(typed(&mut ebpf, "BACKEND_COUNTERS")?),
            verdicts: typed(&mut ebpf, "VERDICTS")?,
            evicted: typed(&mut ebpf, "EVICTED")?,
        };
        let signals = Signals {
            counts: Mutex::new(typed(&mut ebpf, "SIGNALS")?),
            histograms: Mutex::new(typed(&mut ebpf, "HISTOGRAMS")?),
            breakers: mapped(&mut ebpf, "BREAKERS", abi::MAX_SERVICES)?,
            watched_one_in: setup.watch_one_in,
        };
        if let Some(before) = watched_before {
            signals.rescale(before)?;
        }
        let attacher = Attacher::new(ebpf, pins, setup.egress);
        attacher.know_own()?;
        Ok(Self {
            flows,
            first_flow,
            counters,
            signals,
            own: attacher.programs()?,
            attacher: Mutex::new(attacher),
            tables: Mutex::new(Tables {
                services,
                backends,
                next_hops,
                known,
            }),
            cohorts,
            config,
            hooks: Mutex::default(),
            identities: Mutex::default(),
            alarms: Mutex::default(),
            barrier: Mutex::default(),
            reclaiming: Mutex::default(),
            migration: Mutex::default(),
            flow_capacity: setup.flow_capacity,
            timeouts,
        })
    }

    /// Next hops of clients: what `bpf_fib_lookup` can answer. Those not named
    /// and not a backend's are forgotten.
    pub fn set_next_hops(&self, hops: &[NextHopImage]) -> Result<(), DatapathError> {
        let mut tables = lock(&self.tables);
        let Tables {
            backends,
            next_hops,
            ..
        } = &mut *tables;
        // Those without room are looked up by each packet, until what goes makes
        // room for them: an error must not keep that from going.
        let mut offered = Ok(());
        for hop in hops {
            offered = offered.and(next_hops.offer(hop));
        }
        let held: Vec<u32> = backends.used().map(|(_, record)| record.next_hop).collect();
        let changed = next_hops.retain(hops, &held);
        drop(tables);
        if changed {
            self.raise_route_generation();
        }
        offered
    }

    /// Lets what was replaced be used again, after a grace period of some ms.
    pub fn reclaim(&self) {
        let _turn = lock(&self.reclaiming);
        {
            let mut tables = lock(&self.tables);
            tables.services.ripen();
            tables.next_hops.ripen();
        }
        let ripe = self
            .cohorts
            .ripen(|| lock(&self.tables).services.cohort_sets());
        // Off the lock: it takes up to 20 ms.
        match grace_period() {
            Ok(()) => {
                *lock(&self.barrier) = None;
                let mut tables = lock(&self.tables);
                tables.services.reclaim();
                tables.next_hops.reclaim();
                drop(tables);
                self.cohorts.reclaim(&ripe);
            }
            Err(error) => *lock(&self.barrier) = Some(format!("{NO_BARRIER} ({error})")),
        }
    }
}

impl Datapath for KernelDatapath {
    fn inventory(&self) -> Result<Inventory, DatapathError> {
        let tables = lock(&self.tables);
        let services = tables
            .services
            .ids()
            .filter_map(|id| tables.services.body(id))
            .map(|body| image_of(&body))
            .collect();
        let backends = tables
            .backends
            .used()
            .map(|(id, record)| {
                let (addr, protocol) = addr_of(&record.key);
                (id, addr, protocol)
            })
            .collect();
        Ok(Inventory { services, backends })
    }

    fn put_backend(&self, id: BackendId, backend: &BackendImage) -> Result<(), DatapathError> {
        let Tables {
            backends,
            next_hops,
            known,
            ..
        } = &mut *lock(&self.tables);
        backends.put(id, backend, next_hops, known)
    }

    fn delete_backend(&self, id: BackendId) -> Result<(), DatapathError> {
        let Tables {
            backends, known, ..
        } = &mut *lock(&self.tables);
        backends.delete(id, known)
    }

    fn publish(
        &self,
        image: &ServiceImage,
        rings: Option<&[Vec<BackendId>; 2]>,
    ) -> Result<u64, DatapathError> {
        let Tables {
            services, known, ..
        } = &mut *lock(&self.tables);
        services.publish(image, rings, known)
    }

    fn write_cohorts(&self, rules: &[Rule]) -> Result<CohortSet, DatapathError> {
        match self.cohorts.write(rules) {
            // Applies that follow each other within a second fill the map with sets that
            // were replaced: no reason to refuse what fits without them.
            Err(DatapathError::Full { .. }) if self.cohorts.has_dropped() => {
                self.reclaim();
                self.cohorts.write(rules)
            }
            written => written,
        }
    }

    fn drop_cohorts(&self, set: CohortSet) {
        self.cohorts.drop(set);
    }

    fn cohort_rules(&self, set: CohortSet) -> Arc<[Rule]> {
        self.cohorts.rules(set)
    }

    fn delete_service(&self, id: ServiceId) -> Result<(), DatapathError> {
        let Tables {
            services, known, ..
        } = &mut *lock(&self.tables);
        services.delete(id, known)
    }

    fn ring_choice(&self, id: ServiceId, pool: PoolName, ring_hash: u32) -> Option<BackendId> {
        lock(&self.tables).services.ring_choice(id, pool, ring_hash)
    }

    fn rings(&self, id: ServiceId) -> Option<[Vec<BackendId>; 2]> {
        lock(&self.tables).services.rings_of(id)
    }

    fn grace_period(&self) -> Result<(), DatapathError> {
        grace_period().map_err(|error| failed("waiting for readers (membarrier)", error, ""))
    }

    fn reset_service_counters(&self, id: ServiceId) -> Result<(), DatapathError> {
        if let Some(migration) = &*lock(&self.migration) {
            migration.forget_service(u32::from(id))?;
        }
        self.counters.zero_pools(id)?;
        self.signals.zero(id)
    }

    fn reset_backend_counters(&self, id: BackendId) -> Result<(), DatapathError> {
        if let Some(migration) = &*lock(&self.migration) {
            migration.forget_backend(u32::from(id))?;
        }
        self.counters.zero_backend(id)
    }

    fn first_flow(&self, id: ServiceId) -> Option<(u32, u64)> {
        let first = self.first_flow.read(u32::from(id));
        (first.generation != 0).then_some((first.generation as u32, first.at_ns))
    }

    fn pool_counters(&self, id: ServiceId) -> Result<[PoolCounters; 2], DatapathError> {
        self.counters.pools(id)
    }

    fn signals(&self, id: ServiceId) -> Result<[PoolSignals; 2], DatapathError> {
        self.signals.of(id, &self.counters.pools(id)?)
    }

    fn breaker(&self, id: ServiceId) -> Result<Option<BreakerState>, DatapathError> {
        let body = lock(&self.tables).services.body(id);
        Ok(body.and_then(|body| self.signals.breaker(&body)))
    }

    fn backend_counters(&self, id: BackendId) -> Result<BackendCounters, DatapathError> {
        self.counters.backend(id)
    }

    fn verdicts(&self) -> Result<Vec<VerdictCount>, DatapathError> {
        self.counters.verdicts()
    }

    fn flows(&self, filter: &FlowFilter) -> (Vec<FlowRow>, u64) {
        self.flows.list(filter)
    }

    fn find_flow(
        &self,
        service: ServiceId,
        client: SocketAddr,
        protocol: Protocol,
    ) -> Option<FlowRow> {
        self.flows
            .find(&self.config.read(0), service, client, protocol)
    }

    fn census(&self) -> Census {
        Census {
            evicted: self.counters.evicted(),
            ..self.flows.census()
        }
    }

    fn named_ids(&self) -> NamedIds {
        let mut named = self.flows.named_ids();
        if let Some(migration) = &*lock(&self.migration) {
            migration.named_ids(&mut named);
        }
        named
    }

    fn sweep(&self) -> u64 {
        let unanswered = |service, pool| self.signals.count_expired(service, pool);
        self.flows.sweep(&self.timeouts, unanswered)
    }

    fn free_flows(&self, services: &BTreeSet<ServiceId>) -> u64 {
        self.flows.free(services)
    }

    fn idle_flows(&self, backends: &BTreeSet<BackendId>, idle_s: u32) -> Vec<IdleFlow> {
        self.flows.idle(backends, idle_s)
    }

    fn carries(&self, backend: BackendId, client: SocketAddr) -> bool {
        self.flows.carries(&self.config.read(0), backend, client)
    }

    fn release(&self, flows: &[IdleFlow], idle_s: Option<u32>) -> u64 {
        self.flows.release(flows, idle_s)
    }

    fn flows_to_cut(&self, filter: &CutFilter, limit: usize) -> (Vec<CutFlow>, u64) {
        self.flows.to_cut(filter, limit)
    }

    fn look_again(&self, flow: &CutFlow) -> Option<CutFlow> {
        self.flows.look_again(flow)
    }

    fn new_clients(&self, windows: &BTreeMap<ServiceId, u32>) -> BTreeMap<ServiceId, (u64, u64)> {
        self.flows.new_clients(windows)
    }

    fn hooks(&self) -> Vec<HookStatus> {
        lock(&self.hooks).clone()
    }

    fn limits(&self) -> Vec<LimitUse> {
        let mut limits = counters::limits(&lock(&self.tables), self.flow_capacity, &self.flows);
        limits.push(counters::cohort_limit(self.cohorts.used()));
        limits
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = lock(&self.alarms).clone();
        warnings.extend(lock(&self.barrier).clone());
        warnings
    }

    fn tag(&self) -> String {
        inspect::installation_tag(&self.config.read(0))
    }
}

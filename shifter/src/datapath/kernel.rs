//! The datapath in the kernel: maps, programs and hooks behind one lock each.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use shifter_common::abi::{
    self, BackendCounters, Config, FirstFlow, PoolCounters,
    config::{TIMEOUTS, XDP_INTERFACES, ticks_of_seconds},
    ring::RING_LANES,
    stats::{HOOKS, REASONS, VERDICTS},
};

use super::{
    BackendId, BackendImage, Census, Datapath, DatapathError, FlowFilter, FlowRow, HookStatus,
    IdleFlow, Inventory, LimitUse, NamedIds, NextHopImage, ServiceId, ServiceImage, VerdictCount,
    attach::{Attacher, Egress, Ingress, Place, load_programs},
    backends::{Backends, NextHops, Plain, Ports, addr_of},
    flows::FlowTable,
    load::{self, Pins, failed, map_fd},
    memory::{MappedArray, grace_period},
    services::{Services, image_of},
};
use crate::model::{PoolName, Protocol};

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
}

/// What changes together.
struct Tables {
    services: Services,
    backends: Backends,
    next_hops: NextHops,
    ports: Ports,
}

/// The datapath of this host.
pub struct KernelDatapath {
    tables: Mutex<Tables>,
    flows: FlowTable,
    config: MappedArray<Config>,
    first_flow: MappedArray<FirstFlow>,
    pool_counters: Mutex<PerCpuArray<MapData, Plain<PoolCounters>>>,
    backend_counters: Mutex<PerCpuArray<MapData, Plain<BackendCounters>>>,
    verdicts: PerCpuArray<MapData, u64>,
    attacher: Mutex<Attacher>,
    hooks: Mutex<Vec<HookStatus>>,
    flow_capacity: u32,
    timeouts: [u32; TIMEOUTS],
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
        let mut ebpf = load::load(&pins, setup.flow_capacity)?;
        load_programs(&mut ebpf)?;
        let sets = load::flow_sets(setup.flow_capacity);
        let timeouts = setup.timeouts_s.map(ticks_of_seconds);
        let config: MappedArray<Config> = mapped(&mut ebpf, "CONFIG", 1)?;
        prepare_config(&config, sets, &timeouts)?;
        let mut ports = Ports::new(mapped(&mut ebpf, "PORTS", 2_048)?);
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
        services.count_ports(&mut ports);
        for (_, record) in backends.used() {
            ports.add(1, addr_of(&record.key).0.port());
        }
        Ok(Self {
            flows: FlowTable::new(mapped(&mut ebpf, "FLOWS", sets)?),
            first_flow: mapped(&mut ebpf, "FIRST_FLOW", abi::MAX_SERVICES)?,
            pool_counters: Mutex::new(typed(&mut ebpf, "POOL_COUNTERS")?),
            backend_counters: Mutex::new(typed(&mut ebpf, "BACKEND_COUNTERS")?),
            verdicts: typed(&mut ebpf, "VERDICTS")?,
            attacher: Mutex::new(Attacher::new(ebpf, pins, setup.egress)),
            tables: Mutex::new(Tables {
                services,
                backends,
                next_hops,
                ports,
            }),
            config,
            hooks: Mutex::new(Vec::new()),
            flow_capacity: setup.flow_capacity,
            timeouts,
        })
    }

    /// A descriptor of a loaded program.
    pub(super) fn program(&self, place: Place) -> Result<OwnedFd, DatapathError> {
        lock(&self.attacher).program_fd(place)
    }

    /// Attaches (or replaces) the un-NAT at egress of an interface. All
    /// interfaces get it before any gets its ingress.
    pub fn attach_egress(&self, name: &str, ifindex: u32) -> Result<(), DatapathError> {
        lock(&self.attacher).attach_egress(name, ifindex)
    }

    /// Attaches (or replaces) the ingress program of an interface.
    pub fn attach_ingress(
        &self,
        name: &str,
        ifindex: u32,
        hook: Ingress,
        why: &str,
    ) -> Result<(), DatapathError> {
        let mut attacher = lock(&self.attacher);
        attacher.attach_ingress(name, ifindex, hook)?;
        let egress = match attacher.egress() {
            Egress::Tcx => "tcx",
            Egress::Clsact => "clsact",
        };
        let status = HookStatus {
            interface: name.to_owned(),
            ifindex,
            hook: match hook {
                Ingress::Xdp => "xdp".to_owned(),
                Ingress::Tc => "tc".to_owned(),
            },
            egress: egress.to_owned(),
            why: why.to_owned(),
            tag: self.tag(),
            up: true,
        };
        let mut hooks = lock(&self.hooks);
        hooks.retain(|hook| hook.interface != name);
        hooks.push(status);
        let xdp = hooks.iter().filter(|hook| hook.hook == "xdp");
        self.allow_xdp_into(xdp.map(|hook| hook.ifindex));
        Ok(())
    }

    /// Tells packets which interfaces XDP can redirect into: those with our XDP
    /// program in force, at most `XDP_INTERFACES`.
    pub fn allow_xdp_into(&self, interfaces: impl IntoIterator<Item = u32>) {
        let mut named = [0; XDP_INTERFACES];
        for (place, ifindex) in named.iter_mut().zip(interfaces) {
            *place = ifindex;
        }
        let config = self.config.at(0);
        // SAFETY: within the mapping; a packet sees each word old or new.
        unsafe { std::ptr::write_volatile(&raw mut (*config).xdp_interfaces, named) };
    }

    /// Takes everything off an interface again, ingress first.
    pub fn take_off(&self, name: &str, ifindex: u32) -> Result<(), DatapathError> {
        lock(&self.attacher).take_off(name, ifindex)?;
        lock(&self.hooks).retain(|hook| hook.interface != name);
        Ok(())
    }

    /// An interface is gone, and with it the programs on it.
    pub fn interface_gone(&self, name: &str, ifindex: u32) -> Result<(), DatapathError> {
        lock(&self.attacher).forget(ifindex)?;
        for hook in lock(&self.hooks)
            .iter_mut()
            .filter(|hook| hook.interface == name)
        {
            hook.hook = "none".to_owned();
            hook.egress = "none".to_owned();
            hook.why = "the interface is gone; it is attached again when it comes back".to_owned();
            hook.up = false;
        }
        Ok(())
    }

    /// An interface came up or went down.
    pub fn interface_up(&self, name: &str, up: bool) {
        for hook in lock(&self.hooks)
            .iter_mut()
            .filter(|hook| hook.interface == name)
        {
            hook.up = up;
        }
    }

    /// An interface goes by another name, programs and all.
    pub fn interface_renamed(&self, from: &str, to: &str, ifindex: u32) {
        let mut hooks = lock(&self.hooks);
        for hook in hooks.iter_mut().filter(|hook| hook.ifindex == ifindex) {
            hook.interface = to.to_owned();
            hook.why = format!("attached as {from}, renamed since");
        }
    }

    /// Somebody detached an interface while the agent ran.
    pub fn hook_taken_off(&self, name: &str) {
        for hook in lock(&self.hooks)
            .iter_mut()
            .filter(|hook| hook.interface == name)
        {
            hook.hook = "none".to_owned();
            hook.egress = "none".to_owned();
            hook.why = "it was detached; restart the agent to attach it again".to_owned();
        }
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
        for hop in hops {
            next_hops.intern(hop)?;
        }
        let held: Vec<u32> = backends.used().map(|(_, record)| record.next_hop).collect();
        let changed = next_hops.retain(hops, &held);
        drop(tables);
        if changed {
            self.raise_route_generation();
        }
        Ok(())
    }

    /// Makes every flow look its next hop up once more.
    pub fn raise_route_generation(&self) {
        let config = self.config.at(0);
        // SAFETY: within the mapping; one aligned word, written only here under no race:
        // a lost increment still changes the number.
        unsafe {
            let word = &raw mut (*config).route_generation;
            std::ptr::write_volatile(word, std::ptr::read_volatile(word).wrapping_add(1));
        }
    }

    /// Lets what was replaced be used again, after a grace period of some ms.
    pub fn reclaim(&self) {
        {
            let mut tables = lock(&self.tables);
            tables.services.ripen();
            tables.next_hops.ripen();
        }
        // Off the lock: it takes up to 20 ms.
        match grace_period() {
            Ok(()) => {
                let mut tables = lock(&self.tables);
                tables.services.reclaim();
                tables.next_hops.reclaim();
            }
            Err(error) => tracing::error!(
                %error,
                "waiting for readers failed (membarrier): records that were replaced cannot be used again, and writes will end; a kernel with nohz_full has no such barrier"
            ),
        }
    }
}

/// Writes the settings of a new installation, or checks those that are there.
fn prepare_config(
    config: &MappedArray<Config>,
    sets: u32,
    timeouts: &[u32; TIMEOUTS],
) -> Result<(), DatapathError> {
    let old = config.read(0);
    if old.abi_version != 0 && old.abi_version != abi::ABI_VERSION {
        return Err(DatapathError::Refused(format!(
            "the pinned maps have layout version {}, this agent works with {}: start the version that made them, or give up its flows with `shifter detach --force`",
            old.abi_version,
            abi::ABI_VERSION
        )));
    }
    if old.abi_version == abi::ABI_VERSION {
        let record = config.at(0);
        // SAFETY: within the mapping; single words.
        unsafe { std::ptr::write_volatile(&raw mut (*record).timeouts, *timeouts) };
        return Ok(());
    }
    let mut random = [0u8; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .map_err(|error| failed("reading /dev/urandom", error, ""))?;
    let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| random[at + i]));
    let fresh = Config {
        abi_version: 0,
        set_mask: sets - 1,
        route_generation: 1,
        pad: 0,
        table_key: [word(0), word(8)],
        timeouts: *timeouts,
        tag: std::array::from_fn(|i| random[16 + i]),
        xdp_interfaces: [0; XDP_INTERFACES],
    };
    // Packets take the record for real once the version is there: last.
    config.write(0, fresh);
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    config.write(
        0,
        Config {
            abi_version: abi::ABI_VERSION,
            ..fresh
        },
    );
    Ok(())
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
            ports,
            ..
        } = &mut *lock(&self.tables);
        backends.put(id, backend, next_hops, ports)
    }

    fn delete_backend(&self, id: BackendId) -> Result<(), DatapathError> {
        let Tables {
            backends, ports, ..
        } = &mut *lock(&self.tables);
        backends.delete(id, ports)
    }

    fn publish(
        &self,
        image: &ServiceImage,
        rings: Option<&[Vec<BackendId>; 2]>,
    ) -> Result<u64, DatapathError> {
        let Tables {
            services, ports, ..
        } = &mut *lock(&self.tables);
        services.publish(image, rings, ports)
    }

    fn delete_service(&self, id: ServiceId) -> Result<(), DatapathError> {
        let Tables {
            services, ports, ..
        } = &mut *lock(&self.tables);
        services.delete(id, ports)
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
        let mut counters = lock(&self.pool_counters);
        for pool in 0..2 {
            zero(&mut counters, u32::from(id) * 2 + pool, "a pool's counters")?;
        }
        Ok(())
    }

    fn reset_backend_counters(&self, id: BackendId) -> Result<(), DatapathError> {
        let mut counters = lock(&self.backend_counters);
        zero(&mut counters, u32::from(id), "a backend's counters")
    }

    fn first_flow(&self, id: ServiceId) -> Option<(u32, u64)> {
        let first = self.first_flow.read(u32::from(id));
        (first.generation != 0).then_some((first.generation as u32, first.at_ns))
    }

    fn pool_counters(&self, id: ServiceId) -> Result<[PoolCounters; 2], DatapathError> {
        let read = |pool: u32| {
            lock(&self.pool_counters)
                .get(&(u32::from(id) * 2 + pool), 0)
                .map(|values| {
                    values
                        .iter()
                        .fold(PoolCounters::default(), |sum, v| add_pool(sum, v.0))
                })
                .map_err(|error| failed("reading a pool's counters", error, ""))
        };
        Ok([read(0)?, read(1)?])
    }

    fn backend_counters(&self, id: BackendId) -> Result<BackendCounters, DatapathError> {
        lock(&self.backend_counters)
            .get(&u32::from(id), 0)
            .map(|values| {
                values
                    .iter()
                    .fold(BackendCounters::default(), |sum, Plain(v)| {
                        BackendCounters {
                            flows: sum.flows + v.flows,
                            forward_packets: sum.forward_packets + v.forward_packets,
                            forward_bytes: sum.forward_bytes + v.forward_bytes,
                            reply_packets: sum.reply_packets + v.reply_packets,
                            reply_bytes: sum.reply_bytes + v.reply_bytes,
                        }
                    })
            })
            .map_err(|error| failed("reading a backend's counters", error, ""))
    }

    fn verdicts(&self) -> Result<Vec<VerdictCount>, DatapathError> {
        let names = ["xdp", "tc", "egress"];
        let mut counts = Vec::with_capacity(HOOKS as usize * VERDICTS.len());
        for (hook, name) in (0..HOOKS).zip(names) {
            for (verdict, reason) in VERDICTS {
                let number = verdict as u32;
                let packets = self
                    .verdicts
                    .get(&(hook * REASONS + number), 0)
                    .map_err(|error| failed("reading verdict counters", error, ""))?
                    .iter()
                    .sum();
                counts.push(VerdictCount {
                    hook: name,
                    number,
                    reason,
                    packets,
                });
            }
        }
        Ok(counts)
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
        self.flows.census()
    }

    fn named_ids(&self) -> NamedIds {
        self.flows.named_ids()
    }

    fn sweep(&self) -> u64 {
        self.flows.sweep(&self.timeouts)
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

    fn release(&self, flows: &[IdleFlow], idle_s: u32) -> u64 {
        self.flows.release(flows, idle_s)
    }

    fn new_clients(&self, windows: &BTreeMap<ServiceId, u32>) -> BTreeMap<ServiceId, (u64, u64)> {
        self.flows.new_clients(windows)
    }

    fn hooks(&self) -> Vec<HookStatus> {
        lock(&self.hooks).clone()
    }

    fn limits(&self) -> Vec<LimitUse> {
        let tables = lock(&self.tables);
        let bytes = |elements: u32, size: usize| u64::from(elements) * size as u64;
        vec![
            LimitUse {
                name: "flow_capacity",
                used: 0,
                limit: u64::from(self.flow_capacity),
                memory_bytes: self.flows.entries() * size_of::<abi::FlowEntry>() as u64,
            },
            LimitUse {
                name: "services",
                used: tables.services.ids().count() as u64,
                limit: u64::from(abi::MAX_SERVICES),
                memory_bytes: bytes(abi::MAX_SERVICE_BODIES, size_of::<abi::ServiceBody>()),
            },
            LimitUse {
                name: "backends",
                used: tables.backends.used().count() as u64,
                limit: u64::from(abi::MAX_BACKENDS),
                memory_bytes: bytes(abi::MAX_BACKEND_IDS, size_of::<abi::Backend>()),
            },
            LimitUse {
                name: "ring_slots",
                used: tables.services.ring_slots(),
                limit: u64::from(abi::MAX_RING_SLOTS),
                memory_bytes: bytes(abi::MAX_RING_SLOTS, size_of::<u16>()),
            },
            LimitUse {
                name: "next_hops",
                used: tables.next_hops.used(),
                limit: u64::from(abi::MAX_NEXT_HOPS),
                memory_bytes: bytes(abi::MAX_NEXT_HOPS, size_of::<abi::NextHop>()),
            },
        ]
    }

    fn tag(&self) -> String {
        self.config
            .read(0)
            .tag
            .iter()
            .take(4)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// Writes zeros for all CPUs.
fn zero<T: Copy + Default + 'static>(
    counters: &mut PerCpuArray<MapData, Plain<T>>,
    index: u32,
    what: &str,
) -> Result<(), DatapathError> {
    let failed = |error: MapError| failed(format!("setting {what} to zero"), error, "");
    let cpus = counters.get(&index, 0).map_err(failed)?.len();
    let zeros = PerCpuValues::try_from(vec![Plain(T::default()); cpus])
        .map_err(|error| failed(MapError::IoError(error)))?;
    counters.set(index, zeros, 0).map_err(failed)
}

fn add_pool(a: PoolCounters, b: PoolCounters) -> PoolCounters {
    PoolCounters {
        new_flows: a.new_flows + b.new_flows,
        adopted_flows: a.adopted_flows + b.adopted_flows,
        unpinned_flows: a.unpinned_flows + b.unpinned_flows,
        forward_packets: a.forward_packets + b.forward_packets,
        forward_bytes: a.forward_bytes + b.forward_bytes,
        reply_packets: a.reply_packets + b.reply_packets,
        reply_bytes: a.reply_bytes + b.reply_bytes,
        cohort_flows: a.cohort_flows + b.cohort_flows,
        fragments: a.fragments + b.fragments,
    }
}

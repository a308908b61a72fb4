//! Counters of packets, summed over CPUs, and what of each limit is used.

use std::{collections::BTreeMap, sync::Mutex};

use aya::maps::{MapData, MapError, PerCpuArray, PerCpuValues};
use shifter_common::abi::{
    self, BackendCounters, FlowTimes, PoolCounters,
    cohort::MAX_COHORT_PREFIXES,
    flow::{SET_ENTRIES, STATE_HALF_OPEN, STATE_RESET},
    signals::{HISTOGRAM_SERVICES, HISTOGRAMS, HistogramCounts},
    stats::{HOOKS, REASONS, VERDICTS},
};

use super::{Tables, lock};
use crate::datapath::{
    BackendId, DatapathError, LimitUse, ServiceId, VerdictCount,
    backends::Plain,
    flows::{FlowTable, state_name},
    load::{failed, possible_cpus, timed_sets},
};

/// The per-CPU maps.
pub(super) struct Counters {
    pub pools: Mutex<PerCpuArray<MapData, Plain<PoolCounters>>>,
    pub backends: Mutex<PerCpuArray<MapData, Plain<BackendCounters>>>,
    pub verdicts: PerCpuArray<MapData, u64>,
    pub evicted: PerCpuArray<MapData, u64>,
}

impl Counters {
    /// Of blue and green.
    pub fn pools(&self, id: ServiceId) -> Result<[PoolCounters; 2], DatapathError> {
        let read = |pool: u32| {
            lock(&self.pools)
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

    pub fn backend(&self, id: BackendId) -> Result<BackendCounters, DatapathError> {
        lock(&self.backends)
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

    /// Blue's and green's begin anew.
    pub fn zero_pools(&self, id: ServiceId) -> Result<(), DatapathError> {
        let mut counters = lock(&self.pools);
        for pool in 0..2 {
            zero(&mut counters, u32::from(id) * 2 + pool, "a pool's counters")?;
        }
        Ok(())
    }

    /// A backend's begin anew.
    pub fn zero_backend(&self, id: BackendId) -> Result<(), DatapathError> {
        let mut counters = lock(&self.backends);
        zero(&mut counters, u32::from(id), "a backend's counters")
    }

    /// Flows that gave way, by the state they were in; zeros included.
    pub fn evicted(&self) -> BTreeMap<&'static str, u64> {
        let count = |state: u8| {
            // An array's element is always there.
            let values = self.evicted.get(&u32::from(state), 0).ok();
            values.map_or(0, |values| values.iter().sum())
        };
        (STATE_HALF_OPEN..=STATE_RESET)
            .map(|state| (state_name(state), count(state)))
            .collect()
    }

    /// Every verdict, zeros included.
    pub fn verdicts(&self) -> Result<Vec<VerdictCount>, DatapathError> {
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
}

/// What of each limit is used. Flows are those of the last pass over the table:
/// reading a limit makes none.
pub(super) fn limits(tables: &Tables, flow_capacity: u32, flows: &FlowTable) -> Vec<LimitUse> {
    let cpus = possible_cpus();
    let has_histograms = |id: &ServiceId| u32::from(*id) < HISTOGRAM_SERVICES;
    let timed = u64::from(timed_sets(flow_capacity)) * SET_ENTRIES as u64;
    let bytes = |elements: u32, size: usize| u64::from(elements) * size as u64;
    vec![
        LimitUse {
            name: "flow_capacity",
            used: flows.counted(),
            limit: u64::from(flow_capacity),
            memory_bytes: flows.entries() * size_of::<abi::FlowEntry>() as u64,
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
        LimitUse {
            name: "histograms",
            used: tables.services.ids().filter(has_histograms).count() as u64,
            limit: u64::from(HISTOGRAM_SERVICES),
            memory_bytes: cpus
                * bytes(
                    2 * HISTOGRAM_SERVICES * HISTOGRAMS,
                    size_of::<HistogramCounts>(),
                ),
        },
        LimitUse {
            name: "timed_flows",
            // The hash of the table draws them.
            used: flows.counted() * timed / flows.entries(),
            limit: timed / 2,
            memory_bytes: timed * size_of::<FlowTimes>() as u64,
        },
    ]
}

/// What of the limit of cohort prefixes is used. A prefix takes up to two nodes
/// of 64 bytes in the kernel, and nothing until it is written.
pub(super) fn cohort_limit(used: u64) -> LimitUse {
    LimitUse {
        name: "cohort_prefixes",
        used,
        limit: u64::from(MAX_COHORT_PREFIXES),
        memory_bytes: u64::from(MAX_COHORT_PREFIXES) * 2 * 64,
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

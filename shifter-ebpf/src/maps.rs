//! Every map, once. docs/maps.md says who writes and who reads each.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, ProgramArray},
};
use shifter_common::{
    abi::{
        cohort::MAX_COHORT_ELEMENTS,
        flow::FlowSet,
        miss::{TC_MISSES, XDP_MISSES},
        stats::{HOOKS, REASONS},
        *,
    },
    known::KNOWN_WORDS,
    packet::parse::Headers,
};

use crate::{
    atomic,
    flow_table::{FlowKey, NewFlow},
    stage::select::Choice,
};

/// A table as the one value of its map. The map is asked where it lies, always
/// with index 0: that waits for nothing which the packet says. An element is
/// then an addition away.
pub type Table<T, const N: usize> = Array<[T; N]>;

/// The element of a table.
#[inline(always)]
pub fn element<T, const N: usize>(table: &Table<T, N>, index: u32) -> Option<*const T> {
    element_of(table.get_ptr(0)?, index)
}

/// The element of a table that was asked for already.
#[inline(always)]
pub fn element_of<T, const N: usize>(table: *const [T; N], index: u32) -> Option<*const T> {
    if index as usize >= N {
        return None;
    }
    Some(atomic::element::<T, N>(table as usize, index) as *const T)
}

/// Installation-wide settings. One element. Written by the agent.
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// VIP to service id. With port 0: some VIP has this address. Written by the agent.
#[map]
pub static VIPS: HashMap<AddressKey, u32> = HashMap::with_max_entries(2 * MAX_SERVICES, 0);

/// Backend to backend id. Written by the agent.
#[map]
pub static BACKEND_IDS: HashMap<AddressKey, u32> = HashMap::with_max_entries(MAX_BACKEND_IDS, 0);

/// Bits of what VIPs and backends use: see `shifter_common::known`. Written by
/// the agent.
#[map]
pub static KNOWN: Table<u64, KNOWN_WORDS> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Records of backends. Written by the agent.
#[map]
pub static BACKENDS: Table<Backend, { MAX_BACKEND_IDS as usize }> =
    Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Which body is in force, by service id. Written by the agent.
#[map]
pub static SERVICE_HEAD: Table<u64, { MAX_SERVICES as usize }> =
    Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Records of services. Written by the agent, immutable while a head names them.
#[map]
pub static SERVICE_BODY: Table<ServiceBody, { MAX_SERVICE_BODIES as usize }> =
    Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Rings, four backend ids an element. Written by the agent.
#[map]
pub static RINGS: Array<u64> =
    Array::with_max_entries(MAX_RING_SLOTS / ring::RING_LANES, BPF_F_MMAPABLE);

/// Prefixes of cohorts, in sets: see `abi::cohort`. Without preallocation, as
/// the kernel asks of such maps. Written by the agent, immutable while a body
/// names the set.
#[map]
pub static COHORTS: LpmTrie<CohortAddress, CohortRule> =
    LpmTrie::with_max_entries(MAX_COHORT_ELEMENTS, 0);

/// Next hops. Written by the agent, immutable while valid.
#[map]
pub static NEXT_HOPS: Table<NextHop, { MAX_NEXT_HOPS as usize }> =
    Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Interface and MAC to next-hop id. Written by the agent.
#[map]
pub static NEXT_HOP_IDS: HashMap<NextHopKey, u32> = HashMap::with_max_entries(MAX_NEXT_HOPS, 0);

/// The flow table, one set an element; the size is set when it is created.
/// Written by packets; the agent expires entries.
#[map]
pub static FLOWS: Array<FlowSet> = Array::with_max_entries(64, BPF_F_MMAPABLE);

/// First flow chosen under a generation, by service id. Written by packets.
#[map]
pub static FIRST_FLOW: Array<FirstFlow> = Array::with_max_entries(MAX_SERVICES, BPF_F_MMAPABLE);

/// By 2 × service id + pool. Written by packets.
#[map]
pub static POOL_COUNTERS: PerCpuArray<PoolCounters> =
    PerCpuArray::with_max_entries(2 * MAX_SERVICES, 0);

/// What green is owed under the exact split, by service id. Written by packets.
#[map]
pub static SPLIT_ERRORS: PerCpuArray<u64> = PerCpuArray::with_max_entries(MAX_SERVICES, 0);

/// What packets tell of how a pool does, by 2 × service id + pool. Written by packets.
#[map]
pub static SIGNALS: PerCpuArray<signals::SignalCounts> =
    PerCpuArray::with_max_entries(2 * MAX_SERVICES, 0);

/// Times of flows in log-linear buckets, by `histogram_index`. Written by packets.
#[map]
pub static HISTOGRAMS: PerCpuArray<signals::HistogramCounts> =
    PerCpuArray::with_max_entries(2 * signals::HISTOGRAM_SERVICES * signals::HISTOGRAMS, 0);

/// Beside the flow table, one set an element; the size is set when it is
/// created. Written by packets.
#[map]
pub static FLOW_TIMES: Array<signals::TimesSet> = Array::with_max_entries(64, 0);

/// What breakers have counted, by service id. Written by packets; the agent
/// adds the handshakes that it frees.
#[map]
pub static BREAKERS: Array<BreakerRecord> = Array::with_max_entries(MAX_SERVICES, BPF_F_MMAPABLE);

/// By backend id. Written by packets.
#[map]
pub static BACKEND_COUNTERS: PerCpuArray<BackendCounters> =
    PerCpuArray::with_max_entries(MAX_BACKEND_IDS, 0);

/// By hook × 64 + verdict number. Written by packets.
#[map]
pub static VERDICTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(HOOKS * REASONS, 0);

/// Flows that gave way to new ones, by the state they were in. Written by packets.
#[map]
pub static EVICTED: PerCpuArray<u64> = PerCpuArray::with_max_entries(stats::STATES, 0);

/// XDP programs of the layout before, by `MISS_*`, while flows move over; empty
/// otherwise. Written by the agent.
#[map]
pub static OLD_XDP: ProgramArray = ProgramArray::with_max_entries(XDP_MISSES, 0);

/// The same at tc.
#[map]
pub static OLD_TC: ProgramArray = ProgramArray::with_max_entries(TC_MISSES, 0);

/// What one packet needs and the stack has no room for. Programs of one CPU do
/// not interleave: each runs with softirqs off.
pub struct Scratch {
    pub headers: Headers,
    pub key: FlowKey,
    pub new: NewFlow,
    pub choice: Choice,
    pub address: AddressKey,
}

/// One element. Not pinned.
#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

//! The packet path as the rest of the agent sees it.
//!
//! [`Datapath`] is the seam: `kernel` carries it out with aya, `fake` in
//! memory for tests without root.

pub mod allocator;
pub mod attach;
pub mod backends;
pub mod breaker;
pub mod carry;
mod clsact;
mod cohorts;
mod cut;
pub mod fake;
pub mod flows;
mod inspect;
pub mod kernel;
pub mod load;
pub mod memory;
pub mod mend;
pub mod migrate;
pub mod noted;
pub mod off;
pub mod pinned;
pub mod services;
pub mod trial;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use shifter_common::abi::{BackendCounters, PoolCounters};

pub use crate::model::text::plural;
pub use breaker::{BreakerImage, BreakerState, Trip};

use crate::model::{
    Affinity, PoolName, Protocol, Seed, SplitMethod, Vip, cohort::Rule, signals::PoolSignals,
};

/// Index of `service_head`; `0..MAX_SERVICES`.
pub type ServiceId = u16;
/// Index of the backend table; `1..MAX_BACKEND_IDS`.
pub type BackendId = u16;
/// Id of a set of cohort prefixes; 0 names none.
pub type CohortSet = u16;

/// A service as published to the kernel, whole.
#[derive(Clone, PartialEq, Debug)]
pub struct ServiceImage {
    pub id: ServiceId,
    pub vip: Vip,
    /// Backend id of the VIP itself.
    pub vip_backend: BackendId,
    pub generation: u32,
    /// New flows with a hash below it go to green; in `[0, 2^32]`.
    pub threshold: u64,
    pub dead_man: Option<DeadManImage>,
    pub breaker: Option<BreakerImage>,
    pub live: PoolName,
    pub live_has_vip: bool,
    pub split: SplitMethod,
    pub affinity: Affinity,
    pub seed: Seed,
    /// Hash of the desired state.
    pub desired_hash: u64,
    /// Until this CLOCK_MONOTONIC time in ns the service is settling; 0: it is not.
    pub settle_until_ns: u64,
    /// Backends of blue and green whose sockets can be looked up, at most
    /// `LOCAL_BACKENDS` each.
    pub local_backends: [Vec<BackendId>; 2],
    /// Prefixes of its cohorts, from [`Datapath::write_cohorts`].
    pub cohort_set: CohortSet,
    /// The set is looked at; never without one.
    pub cohorts_on: bool,
}

/// The dead-man of a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeadManImage {
    /// Threshold that holds from the deadline on.
    pub safe_threshold: u64,
    /// CLOCK_BOOTTIME in ns.
    pub deadline_ns: u64,
}

/// A backend as the kernel holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendImage {
    pub addr: SocketAddr,
    pub protocol: Protocol,
    pub placement: Placement,
    pub maint: bool,
    pub down: bool,
}

/// Where packets for a backend go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// An address of this host; its sockets can be looked up.
    Host,
    /// The kernel routes it (container, namespace, or an interface without a
    /// hook). `netns`: namespace id whose sockets can be looked up.
    Kernel { netns: Option<i32> },
    /// Redirected to a neighbour on an interface with a hook.
    NextHop(NextHopImage),
}

/// A resolved neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NextHopImage {
    pub ifindex: u32,
    /// Longest layer-3 packet in bytes.
    pub mtu: u32,
    pub source: [u8; 6],
    pub destination: [u8; 6],
}

/// What the kernel holds when the agent starts.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Inventory {
    pub services: Vec<ServiceImage>,
    pub backends: Vec<(BackendId, SocketAddr, Protocol)>,
}

/// Which flows to list.
#[derive(Clone, Default, Debug)]
pub struct FlowFilter {
    pub service: Option<ServiceId>,
    pub pool: Option<PoolName>,
    pub backend: Option<BackendId>,
    pub client: Option<std::net::IpAddr>,
    pub client_port: Option<u16>,
    /// Leave out those in "closing" and "reset".
    pub open_only: bool,
    pub limit: usize,
}

/// One live flow.
#[derive(Clone, PartialEq, Debug)]
pub struct FlowRow {
    pub service: ServiceId,
    pub client: SocketAddr,
    pub protocol: Protocol,
    pub pool: PoolName,
    pub backend: BackendId,
    /// "half_open", "adopted", "udp_unanswered", "established",
    /// "udp_answered", "closing" or "reset".
    pub state: &'static str,
    pub proven: bool,
    pub adopted: bool,
    /// A cohort forced its pool.
    pub cohort: bool,
    pub generation: u32,
    pub age_s: f64,
    pub idle_s: f64,
    pub bytes: u64,
}

/// A flow without a packet for this long in seconds is named apart: it may
/// have ended unseen.
pub const LONG_IDLE_S: u32 = 7_200;

/// ` (9 of them idle for more than 2 h)`, or nothing.
pub fn idle_note(idle: u64) -> String {
    match idle {
        0 => String::new(),
        idle => format!(
            " ({idle} of them idle for more than {} h)",
            LONG_IDLE_S / 3_600
        ),
    }
}

/// A TCP flow without a packet for some time, as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdleFlow {
    /// Set and place in the table.
    pub place: (u32, u8),
    /// Control word that was read.
    pub control: u64,
    pub backend: BackendId,
    pub client: SocketAddr,
}

/// Flows that shall be ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CutFilter {
    pub service: ServiceId,
    pub pool: Option<PoolName>,
    pub backends: Option<BTreeSet<BackendId>>,
    /// Chosen under a generation before this one.
    pub before: Option<u32>,
}

/// A flow that shall be ended, as it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CutFlow {
    /// Set and place in the table.
    pub place: (u32, u8),
    /// Control word that was read.
    pub control: u64,
    pub backend: BackendId,
    pub client: SocketAddr,
    pub protocol: Protocol,
    /// What the client has acknowledged last (TCP).
    pub client_acked: u32,
    /// What the backend has; 0 of one that was taken over and has not answered.
    pub backend_acked: u32,
}

impl CutFlow {
    /// What stays the same as long as it is this flow.
    pub fn id(&self) -> ((u32, u8), u16, u32, SocketAddr) {
        use shifter_common::abi::flow::{control_sequence, control_tag};
        let (sequence, tag) = (control_sequence(self.control), control_tag(self.control));
        (self.place, sequence, tag, self.client)
    }
}

/// Ids that entries of the flow table name, closing ones too.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct NamedIds {
    pub services: BTreeSet<ServiceId>,
    pub backends: BTreeSet<BackendId>,
}

/// Counts over the whole flow table, one pass.
#[derive(Clone, Default, Debug)]
pub struct Census {
    pub live: u64,
    pub proven: u64,
    pub unproven: u64,
    pub closing: u64,
    /// Live flows (not closing) by service: `[blue, green]`.
    pub services: HashMap<ServiceId, [u64; 2]>,
    /// Those of them without a packet for [`LONG_IDLE_S`]: `[blue, green]`.
    pub idle: HashMap<ServiceId, [u64; 2]>,
    /// Live flows (not closing) by backend.
    pub backends: HashMap<BackendId, u64>,
    /// Flows that gave way to new ones so far, by the state they were in.
    pub evicted: BTreeMap<&'static str, u64>,
    /// Time of the pass in ns.
    pub took_ns: u64,
}

/// Packets that ended for one reason on one hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerdictCount {
    /// "xdp", "tc" or "egress".
    pub hook: &'static str,
    pub number: u32,
    pub reason: &'static str,
    pub packets: u64,
}

/// One limit of the installation and what of it is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LimitUse {
    pub name: &'static str,
    pub used: u64,
    pub limit: u64,
    /// Memory that the whole limit takes in the kernel, in bytes.
    pub memory_bytes: u64,
}

/// Whose program the kernel says is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ProgramState {
    /// Loaded by this agent.
    Ours,
    /// In our place, but another's or another start's.
    Other,
    #[default]
    Absent,
}

impl ProgramState {
    /// "ours", "other" or "absent".
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Other => "other",
            Self::Absent => "absent",
        }
    }
}

/// What the kernel says runs in one direction of an interface.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProgramStatus {
    /// "ingress" or "egress".
    pub direction: &'static str,
    /// "xdp", "tcx", "clsact" or "none".
    pub at: &'static str,
    /// 0 without one.
    pub id: u32,
    pub name: String,
    /// Hash of its instructions, as `bpftool prog` shows it.
    pub tag: String,
    pub state: ProgramState,
}

/// A hook in force on an interface.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HookStatus {
    pub interface: String,
    pub ifindex: u32,
    /// "xdp", "tc" or "none".
    pub hook: String,
    /// "tcx", "clsact" or "none".
    pub egress: String,
    /// Why this hook: driver, mode asked for, what stood in the way.
    pub why: String,
    /// Tag of the installation whose program really runs there; empty where
    /// none of shifter does.
    pub tag: String,
    pub up: bool,
    /// What the kernel says is attached, as last asked: ingress, egress.
    pub programs: Vec<ProgramStatus>,
}

/// What a call on the datapath failed at. Every text says what would mend it.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error("{operation} failed: {source}{remedy}")]
    Kernel {
        operation: String,
        source: std::io::Error,
        remedy: String,
    },
    #[error("the limit of {limit} {what} is reached: {remedy}")]
    Full {
        what: &'static str,
        limit: u64,
        remedy: &'static str,
    },
    #[error("{0}")]
    Refused(String),
}

/// The packet path. All calls are short, but `census` and `flows`, which pass
/// over the whole flow table (tens of ms for a million flows).
pub trait Datapath: Send + Sync {
    /// What the kernel holds now.
    fn inventory(&self) -> Result<Inventory, DatapathError>;

    /// Writes or updates the record of a backend. The address of an id in use never changes.
    fn put_backend(&self, id: BackendId, backend: &BackendImage) -> Result<(), DatapathError>;
    /// Forgets a backend that no ring names; the caller knows that no flow does.
    fn delete_backend(&self, id: BackendId) -> Result<(), DatapathError>;

    /// Publishes a service whole, by one store; `rings` are those of blue and
    /// green (a backend id per slot, empty: no backend for new flows), `None`
    /// keeps those in force. The generation rises, but where a dead-man alone is put
    /// off. Returns CLOCK_MONOTONIC ns right after the store.
    fn publish(
        &self,
        image: &ServiceImage,
        rings: Option<&[Vec<BackendId>; 2]>,
    ) -> Result<u64, DatapathError>;
    /// Writes a set of cohort prefixes beside those in force; no packet looks at
    /// it until a service that names it is published. Some ms for 10,000. No
    /// rules: the set 0.
    fn write_cohorts(&self, rules: &[Rule]) -> Result<CohortSet, DatapathError>;
    /// Gives a set up: it goes once no service that is published names it, off
    /// the request's path.
    fn drop_cohorts(&self, set: CohortSet);
    /// What a set holds, sorted.
    fn cohort_rules(&self, set: CohortSet) -> Arc<[Rule]>;
    /// Takes the VIP out of service; flows without a service pass untouched.
    fn delete_service(&self, id: ServiceId) -> Result<(), DatapathError>;
    /// Backend of the slot that this ring hash (upper half of the selection hash) leads
    /// to, whether or not it takes new flows.
    fn ring_choice(&self, id: ServiceId, pool: PoolName, ring_hash: u32) -> Option<BackendId>;
    /// Rings in force, as `publish` takes them.
    fn rings(&self, id: ServiceId) -> Option<[Vec<BackendId>; 2]>;
    /// Waits until no packet is under way that has read what was replaced
    /// before; some ms.
    fn grace_period(&self) -> Result<(), DatapathError>;
    /// Counters of a service begin at zero; the caller knows that no packet counts there.
    fn reset_service_counters(&self, id: ServiceId) -> Result<(), DatapathError>;
    /// The same for a backend.
    fn reset_backend_counters(&self, id: BackendId) -> Result<(), DatapathError>;

    /// `(generation, CLOCK_MONOTONIC ns)` of the first flow chosen under the newest generation that chose one.
    fn first_flow(&self, id: ServiceId) -> Option<(u32, u64)>;
    /// Sums over CPUs, `[blue, green]`.
    fn pool_counters(&self, id: ServiceId) -> Result<[PoolCounters; 2], DatapathError>;
    /// What the kernel has seen of how the pools do, `[blue, green]`; sums over CPUs.
    fn signals(&self, id: ServiceId) -> Result<[PoolSignals; 2], DatapathError>;
    /// What the breaker of a service has counted; `None`: it has none.
    fn breaker(&self, id: ServiceId) -> Result<Option<BreakerState>, DatapathError>;
    /// Sum over CPUs.
    fn backend_counters(&self, id: BackendId) -> Result<BackendCounters, DatapathError>;
    /// Every verdict that was counted, zeros included.
    fn verdicts(&self) -> Result<Vec<VerdictCount>, DatapathError>;

    /// Live flows that match, at most `limit`, and the number of all that match.
    fn flows(&self, filter: &FlowFilter) -> (Vec<FlowRow>, u64);
    /// The live flow of one client on one service, if there is one.
    fn find_flow(
        &self,
        service: ServiceId,
        client: SocketAddr,
        protocol: Protocol,
    ) -> Option<FlowRow>;
    /// Counts the table in one pass.
    fn census(&self) -> Census;
    /// Ids that any live flow names; one pass.
    fn named_ids(&self) -> NamedIds;
    /// Frees what expired; returns how many entries.
    fn sweep(&self) -> u64;
    /// Frees all flows of these services, which are out of service; returns how many entries.
    fn free_flows(&self, services: &BTreeSet<ServiceId>) -> u64;
    /// TCP flows in mid-stream on these backends without a packet for `idle_s`.
    fn idle_flows(&self, backends: &BTreeSet<BackendId>, idle_s: u32) -> Vec<IdleFlow>;
    /// Whether a live TCP flow of this client is on the backend.
    fn carries(&self, backend: BackendId, client: SocketAddr) -> bool;
    /// Frees those of the flows that are still as they were read, and idle for
    /// `idle_s` where that is given; returns how many entries.
    fn release(&self, flows: &[IdleFlow], idle_s: Option<u32>) -> u64;
    /// Flows in mid-stream that match, at most `limit`, and the number of all that
    /// match, half-open ones too.
    fn flows_to_cut(&self, filter: &CutFilter, limit: usize) -> (Vec<CutFlow>, u64);
    /// The same flow as it is now; `None`: it has ended.
    fn look_again(&self, flow: &CutFlow) -> Option<CutFlow>;
    /// Distinct clients `(green, total)` among flows created within the window
    /// in seconds that each service is given with, neither adopted nor forced
    /// by a cohort; one pass.
    fn new_clients(&self, windows: &BTreeMap<ServiceId, u32>) -> BTreeMap<ServiceId, (u64, u64)>;

    /// Hooks in force.
    fn hooks(&self) -> Vec<HookStatus>;
    /// What is loud about the hooks and the kernel, with what mends it.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
    /// Limits of this installation.
    fn limits(&self) -> Vec<LimitUse>;
    /// Which installation the programs belong to.
    fn tag(&self) -> String;
}

/// CLOCK_MONOTONIC in ns.
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// CLOCK_BOOTTIME in ns; runs on in suspend.
pub fn boot_ns() -> u64 {
    clock_ns(libc::CLOCK_BOOTTIME)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writes and the clock ids above exist on every Linux.
    let failed = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(failed, 0, "clock_gettime of a known clock cannot fail");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

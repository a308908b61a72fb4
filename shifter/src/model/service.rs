//! A service as its owner describes it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::{CohortSpec, HealthSpec, Weight};
use crate::rollout::RolloutSpec;

/// Protocol of a VIP and its backends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// Name of one of the two pools.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PoolName {
    Blue,
    Green,
}

/// Where clients connect to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Vip {
    pub addr: SocketAddr,
    pub protocol: Protocol,
}

/// Forwarding mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    #[default]
    Nat,
}

/// What keeps a client on its pool and backend for new flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Affinity {
    /// The flow's address and port.
    #[default]
    Flow,
    /// The client's address, cut to this many bits of its own family;
    /// `None` is the whole address.
    Client(Option<u8>),
}

/// How new flows are shared between the pools.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SplitMethod {
    /// By a keyed hash of the affinity key: a share in the mean, and a client
    /// keeps its pool.
    #[default]
    Hash,
    /// By counting: after n new flows green is off p·n by less than the number
    /// of CPUs.
    Exact,
}

/// Whether a backend is offered new flows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum BackendState {
    #[default]
    Ready,
    Drain,
    Maint,
}

/// One server of a pool.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BackendSpec {
    pub addr: SocketAddr,
    /// Share within the pool, at least 1.
    pub weight: u32,
    pub state: BackendState,
}

/// 128-bit key of the selection hash. Never shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub [u64; 2]);

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// A service as desired.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceSpec {
    pub name: String,
    pub vip: Vip,
    pub mode: Mode,
    pub live: PoolName,
    /// Share of new flows that goes to green.
    pub green: Weight,
    pub split: SplitMethod,
    pub affinity: Affinity,
    /// `None`: keep the stored one, or make one at creation.
    pub seed: Option<Seed>,
    /// The VIP is routed here without being one of the host's addresses.
    pub vip_routed: bool,
    pub blue_pool: Vec<BackendSpec>,
    pub green_pool: Vec<BackendSpec>,
    /// `None`: the kernel takes no flow from the candidate by itself.
    pub breaker: Option<super::breaker::Breaker>,
    /// Clients that get a pool whatever the weight.
    pub cohorts: Vec<CohortSpec>,
    /// Unset: cohorts are suspended, and the weight holds for everybody.
    pub cohorts_on: bool,
    /// `None`: backends are not checked.
    pub health: Option<HealthSpec>,
    /// How a rollout of it goes unless told otherwise.
    pub rollout: Option<RolloutSpec>,
}

impl PoolName {
    /// Index of per-pool arrays, as `shifter_common::abi::{BLUE, GREEN}`.
    pub const fn index(self) -> usize {
        match self {
            Self::Blue => 0,
            Self::Green => 1,
        }
    }

    /// Green's share where this pool has everything: the good split of a live pool.
    pub const fn all(self) -> Weight {
        match self {
            Self::Blue => Weight::ZERO,
            Self::Green => Weight::ONE,
        }
    }

    /// The other pool.
    pub const fn other(self) -> Self {
        match self {
            Self::Blue => Self::Green,
            Self::Green => Self::Blue,
        }
    }
}

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blue => "blue",
            Self::Green => "green",
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.protocol)
    }
}

impl Vip {
    /// The address that must be local to the host.
    pub fn ip(&self) -> IpAddr {
        self.addr.ip()
    }
}

impl ServiceSpec {
    /// Backends of a pool.
    pub fn pool(&self, name: PoolName) -> &[BackendSpec] {
        match name {
            PoolName::Blue => &self.blue_pool,
            PoolName::Green => &self.green_pool,
        }
    }

    /// Cohorts that are in force.
    pub fn active_cohorts(&self) -> &[CohortSpec] {
        if self.cohorts_on { &self.cohorts } else { &[] }
    }

    /// Whether a pool holds the VIP itself, that is, takes over a server that listens there.
    pub fn pool_has_vip(&self, name: PoolName) -> bool {
        self.pool(name).iter().any(|b| b.addr == self.vip.addr)
    }
}

//! Layouts of everything that lies in a BPF map.
//!
//! All structs are `repr(C)` with explicit zeroed padding; addresses and ports
//! are byte arrays in network order; numbers are host order. A change here, or of
//! where a flow's entry lies (`table::flow_hash`, `table::places`), raises [`ABI_VERSION`].

pub mod backend;
pub mod cohort;
pub mod config;
pub mod flow;
pub mod key;
pub mod miss;
pub mod next_hop;
pub mod old;
pub mod ring;
pub mod service;
pub mod signals;
pub mod stats;

pub use backend::Backend;
pub use cohort::{CohortAddress, CohortRule};
pub use config::Config;
pub use flow::FlowEntry;
pub use key::AddressKey;
pub use next_hop::{NextHop, NextHopKey};
pub use ring::RingRegion;
pub use service::ServiceBody;
pub use signals::{BreakerRecord, FlowTimes};
pub use stats::{BackendCounters, FirstFlow, PoolCounters};

/// Version of the layouts in this module; checked when pinned maps are adopted.
#[cfg(not(feature = "next_layout"))]
pub const ABI_VERSION: u32 = 5;
/// That of the layout that tests move to.
#[cfg(feature = "next_layout")]
pub const ABI_VERSION: u32 = 1_000_000;

/// Services an installation can hold.
pub const MAX_SERVICES: u32 = 8_192;
/// Slots for service bodies: one in force and one being replaced per service.
pub const MAX_SERVICE_BODIES: u32 = 2 * MAX_SERVICES;
/// Backends a user can configure on one host.
pub const MAX_BACKENDS: u32 = 16_384;
/// Backend ids: those of the user and one per VIP.
pub const MAX_BACKEND_IDS: u32 = 32_768;
/// Ring slots of all pools together.
pub const MAX_RING_SLOTS: u32 = 4 * 1_048_576;
/// Next hops an installation can hold.
pub const MAX_NEXT_HOPS: u32 = 4_096;
/// Flows really pinned by default; the table has twice as many entries.
pub const DEFAULT_FLOW_CAPACITY: u32 = 1_048_576;

/// Blue, as an index of per-pool arrays.
pub const BLUE: usize = 0;
/// Green, as an index of per-pool arrays.
pub const GREEN: usize = 1;

/// IP protocol numbers that a service can have (IANA).
pub const PROTOCOL_TCP: u8 = 6;
/// See [`PROTOCOL_TCP`].
pub const PROTOCOL_UDP: u8 = 17;

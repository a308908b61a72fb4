//! Next hops: where a redirected packet leaves and with which MACs.

use core::mem::size_of;

/// The id that names no next hop: ask the kernel's routing table.
pub const NO_NEXT_HOP: u16 = 0;

/// 24 bytes, immutable while `ifindex` is not zero. A change takes a new id.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NextHop {
    /// Egress interface; 0 when the slot is not valid.
    pub ifindex: u32,
    /// Longest layer-3 packet in bytes.
    pub mtu: u32,
    /// Destination MAC, that of the neighbour: first, as in a frame.
    pub destination: [u8; 6],
    /// Source MAC, that of the interface.
    pub source: [u8; 6],
    /// Zero.
    pub pad: u32,
}

/// What `bpf_fib_lookup` answers, as the key that leads to a next-hop id.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NextHopKey {
    /// Egress interface.
    pub ifindex: u32,
    /// Destination MAC.
    pub destination: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<NextHop>() == 24);
const _: () = assert!(size_of::<NextHopKey>() == 12);

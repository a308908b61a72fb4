//! The record of a backend, indexed by backend id.

use core::mem::size_of;

use super::AddressKey;

/// The id that names no backend.
pub const NO_BACKEND: u16 = 0;

/// The record is in use. Unset: the id is free or being removed.
pub const BACKEND_USED: u32 = 1 << 0;
/// Not to be given new flows, and flows on it are chosen anew at their next SYN.
pub const BACKEND_MAINT: u32 = 1 << 1;
/// As [`BACKEND_MAINT`], set by health.
pub const BACKEND_DOWN: u32 = 1 << 2;
/// Packets for it are redirected to its next hop; unset: the kernel delivers them.
pub const BACKEND_REDIRECT: u32 = 1 << 3;
/// Sockets of this backend can be looked up in `netns` (this host or a container).
pub const BACKEND_SOCKETS: u32 = 1 << 4;

/// `netns` of a backend in the namespace that the program runs in
/// (BPF_F_CURRENT_NETNS of the kernel's `uapi/linux/bpf.h`).
pub const NETNS_CURRENT: i32 = -1;

/// 40 bytes, written by the agent only. `key` never changes while the id is
/// named by a ring or a flow; the other words change one at a time.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backend {
    /// Where packets go.
    pub key: AddressKey,
    /// `BACKEND_*` bits.
    pub flags: u32,
    /// Namespace id for socket look-ups, or [`NETNS_CURRENT`].
    pub netns: i32,
    /// Index of the next hop, with [`BACKEND_REDIRECT`].
    pub next_hop: u32,
    /// Zero.
    pub pad: [u32; 2],
}

const _: () = assert!(size_of::<Backend>() == 40);

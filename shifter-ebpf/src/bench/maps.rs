//! Maps of the bench. The host's side of each record is in `tests/src/bench/records.rs`.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, LruHashMap, ProgramArray},
};
/// Words of a template; frames are 64 (IPv4) or 80 bytes (IPv6) long.
pub const TEMPLATE_WORDS: usize = 16;

/// One frame.
#[repr(C, align(64))]
pub struct Template {
    pub words: [u64; TEMPLATE_WORDS],
}

/// Where the driver is on its way through the templates. 32 bytes.
#[repr(C)]
pub struct Course {
    /// Packets so far.
    pub next: u64,
    /// Number of templates less one; the number is a power of two.
    pub mask: u32,
    /// Half of its bits.
    pub shift: u32,
    /// 0, but the processor has to wait for it after [`crate::driver::wait`].
    pub seen: u64,
    /// 0.
    pub zero: u64,
}

/// A VIP or backend, laid out as `AddressKey`, aligned for its words. 20 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Key {
    /// Network order; an IPv4 address in the first word.
    pub addr: [u32; 4],
    /// Network order.
    pub port: u16,
    pub protocol: u8,
    pub family: u8,
}

/// A destination of the reference program and of the bare NAT. 40 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Destination {
    pub addr: [u32; 4],
    /// Destination and source MAC, in one row.
    pub macs: [u32; 3],
    pub ifindex: u32,
    pub port: u16,
    pub pad: [u16; 3],
}

/// Key of a pin: both addresses, both ports, protocol. 40 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tuple {
    pub source: [u32; 4],
    pub destination: [u32; 4],
    pub ports: [u16; 2],
    pub protocol: u32,
}

/// Slots of a service's ring.
pub const RING_SLOTS: u32 = 65_537;
/// Services of the reference program.
pub const SERVICES: u32 = 8;

/// The frames; their number is set when the map is created.
#[map]
pub static TEMPLATES: Array<Template> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// One element, which host and driver both write.
#[map]
pub static COURSE: Array<Course> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The program under test.
#[map]
pub static XDP_SUBJECT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// As [`XDP_SUBJECT`], for tc.
#[map]
pub static TC_SUBJECT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// VIP to number of the service.
#[map]
pub static REF_VIPS: HashMap<Key, u32> = HashMap::with_max_entries(SERVICES, 0);

/// Backend to what its replies are rewritten to: the VIP, by the clients' next hop.
#[map]
pub static REF_REPLIES: HashMap<Key, Destination> = HashMap::with_max_entries(64, 0);

/// Number of a backend by service and hash.
#[map]
pub static REF_RINGS: Array<u32> = Array::with_max_entries(SERVICES * RING_SLOTS, BPF_F_MMAPABLE);

/// Backends.
#[map]
pub static REF_BACKENDS: Array<Destination> = Array::with_max_entries(64, BPF_F_MMAPABLE);

/// Pins: number of a backend. Twice as many as flows are measured.
#[map]
pub static REF_PINS: LruHashMap<Tuple, u32> = LruHashMap::with_max_entries(1, 0);

/// Packets of the reference program whose pin was not there. One element.
#[map]
pub static REF_MISSES: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

//! What shifter does, the usual way: service in a hash map, pin in the kernel's
//! LRU hash, backend by a ring. No proof, no timeouts, no counters, and a pin
//! may be evicted at any time.

use aya_ebpf::bindings::BPF_ANY;

use crate::{
    frame::Frame,
    maps::{REF_BACKENDS, REF_MISSES, REF_PINS, REF_RINGS, REF_VIPS, Tuple},
    nat::{Job, Parsed, Side, parse, reply, send, slot},
};

/// SYN of the TCP flags.
const SYN: u8 = 0x02;

/// Forwards what goes to a VIP or comes from a backend.
pub struct Reference;

impl Job for Reference {
    #[inline(always)]
    fn run<F: Frame, const L4: usize>(frame: &mut F) -> Option<i32> {
        let parsed = parse::<F, L4>(frame)?;
        // SAFETY: written before packets are sent.
        let Some(service) = (unsafe { REF_VIPS.get(&parsed.destination) }) else {
            return reply::<F, L4>(frame, &parsed);
        };
        let number = pinned(&parsed, *service)?;
        send::<F, L4>(frame, &parsed, Side::Destination, REF_BACKENDS.get(number)?)
    }
}

/// Number of the backend that the flow is pinned to, or is pinned to from here on.
#[inline(always)]
fn pinned(parsed: &Parsed, service: u32) -> Option<u32> {
    let tuple = Tuple {
        source: parsed.source.addr,
        destination: parsed.destination.addr,
        ports: [parsed.source.port, parsed.destination.port],
        protocol: u32::from(parsed.source.protocol),
    };
    if parsed.tcp_flags & SYN == 0 {
        // SAFETY: a word of a map value.
        if let Some(number) = unsafe { REF_PINS.get(&tuple) } {
            return Some(*number);
        }
    }
    let number = *REF_RINGS.get(slot(parsed, service))?;
    if let Some(misses) = REF_MISSES.get_ptr_mut(0) {
        // SAFETY: a map value; one CPU runs the bench.
        unsafe { *misses += 1 };
    }
    // Without a place the flow goes on unpinned, as is usual.
    let _ = REF_PINS.insert(&tuple, &number, u64::from(BPF_ANY));
    Some(number)
}

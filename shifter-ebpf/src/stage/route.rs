//! Out of the right interface with the right MACs, or to the kernel.

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup},
    helpers::bpf_fib_lookup,
};
use core::mem::{MaybeUninit, size_of};
use shifter_common::{
    abi::{FlowEntry, NextHop, NextHopKey, flow::control_tag, next_hop::NO_NEXT_HOP},
    packet::parse::{Headers, Kind, narrow},
};

use crate::{
    atomic,
    flow_table::{get, set},
    hook::Hook,
    maps::{NEXT_HOP_IDS, NEXT_HOPS, element},
    stage::classify,
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A valid next hop by id.
#[inline(always)]
pub fn next_hop(id: u32) -> Option<NextHop> {
    next_hop_at(id).copied()
}

/// A valid next hop where it lies.
#[inline(always)]
pub fn next_hop_at(id: u32) -> Option<&'static NextHop> {
    if id == NO_NEXT_HOP as u32 {
        return None;
    }
    // SAFETY: a record in the map, immutable while it is valid.
    let hop = unsafe { element(&NEXT_HOPS, id)?.as_ref() }?;
    (hop.ifindex != 0).then_some(hop)
}

/// Next hop towards the client of a flow: the one kept in the entry, or one
/// look-up in the kernel's routing table where routes have changed since.
/// A frame of its own on the stack.
#[inline(never)]
pub fn to_client<H: Hook>(
    hook: &H,
    headers: &Headers,
    entry: *mut FlowEntry,
    tag: u32,
) -> Option<NextHop> {
    let config = classify::config()?;
    // SAFETY: a word of a map that the agent writes.
    let generation = unsafe { core::ptr::read_volatile(&raw const config.route_generation) } as u16;
    if get!(entry, route_generation) == generation
        && let Some(hop) = next_hop(u32::from(get!(entry, next_hop)))
    {
        return Some(hop);
    }
    let hop = look_up(hook, headers)?;
    let key = NextHopKey {
        ifindex: hop.ifindex,
        destination: hop.destination,
        pad: [0; 2],
    };
    // SAFETY: values are single words.
    if let Some(id) = unsafe { NEXT_HOP_IDS.get(&key) } {
        // A route with a smaller MTU than its link is asked for each time.
        if let Some(known) = next_hop(*id)
            && hop.mtu >= known.mtu
        {
            set!(entry, next_hop, *id as u16);
            set!(entry, route_generation, generation);
            if control_tag(get!(entry, control)) != tag {
                // It went to another flow meanwhile, which has to look for itself.
                set!(entry, route_generation, generation.wrapping_sub(1));
            }
            return Some(known);
        }
    }
    Some(hop)
}

/// Room for what is asked.
#[repr(C)]
struct Words([MaybeUninit<u64>; size_of::<FibLookup>() / 8]);

/// One look-up in the kernel's routing table.
#[inline(always)]
fn look_up<H: Hook>(hook: &H, headers: &Headers) -> Option<NextHop> {
    let (source, client) = (&headers.source, &headers.destination);
    let mut space = Words([MaybeUninit::uninit(); _]);
    atomic::zero(&mut space.0);
    // SAFETY: all bit patterns are valid, and these are zero.
    let lookup = unsafe { &mut *(&raw mut space).cast::<FibLookup>() };
    lookup.ifindex = hook.ifindex();
    if headers.family == 4 {
        lookup.family = AF_INET;
        lookup.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(narrow(source));
        lookup.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(narrow(client));
    } else {
        lookup.family = AF_INET6;
        lookup.__bindgen_anon_3.ipv6_src = words(source);
        lookup.__bindgen_anon_4.ipv6_dst = words(client);
    }
    lookup.l4_protocol = if headers.kind == Kind::Error {
        0
    } else {
        headers.protocol
    };
    // Compared with the route's MTU; without it XDP hears of none.
    let length = hook.wire_length(headers);
    lookup.__bindgen_anon_1.tot_len = if length > 0xffff {
        0xffff
    } else {
        length as u16
    };
    // SAFETY: the context is the program's own, the size that of the struct.
    let result =
        unsafe { bpf_fib_lookup(hook.context(), lookup, size_of::<FibLookup>() as i32, 0) };
    if result != BPF_FIB_LKUP_RET_SUCCESS as i64 {
        return None;
    }
    // SAFETY: on success the kernel has written the MTU.
    let mtu = u32::from(unsafe { lookup.__bindgen_anon_1.mtu_result });
    Some(NextHop {
        ifindex: lookup.ifindex,
        mtu,
        source: lookup.smac,
        destination: lookup.dmac,
        pad: 0,
    })
}

#[inline(always)]
fn words(addr: &[u8; 16]) -> [u32; 4] {
    let word = |i: usize| u32::from_ne_bytes([addr[i], addr[i + 1], addr[i + 2], addr[i + 3]]);
    [word(0), word(4), word(8), word(12)]
}

//! Sockets of this host and its namespaces: who serves a connection that we
//! did not see begin.

use core::{ffi::c_void, mem::size_of};

use aya_ebpf::{
    bindings::{
        bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
    },
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp},
};
use shifter_common::{
    abi::{AddressKey, backend::NETNS_CURRENT},
    packet::parse::{Headers, narrow},
};

/// TCP_LISTEN of the kernel's `net/tcp_states.h`.
const LISTEN: u32 = 10;

/// Whether a socket other than a listener has the connection from the client
/// to `server` in namespace `netns`.
#[inline(never)]
pub fn serves(context: *mut c_void, headers: &Headers, server: &AddressKey, netns: i32) -> bool {
    // SAFETY: all bit patterns are valid; the kernel reads the part of the family.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if headers.family == 4 {
        tuple.__bindgen_anon_1.ipv4 = Tuple4 {
            saddr: u32::from_ne_bytes(narrow(&headers.source)),
            daddr: u32::from_ne_bytes(narrow(&server.addr)),
            sport: u16::from_ne_bytes(headers.source_port),
            dport: u16::from_ne_bytes(server.port),
        };
        size_of::<Tuple4>()
    } else {
        tuple.__bindgen_anon_1.ipv6 = Tuple6 {
            saddr: words(&headers.source),
            daddr: words(&server.addr),
            sport: u16::from_ne_bytes(headers.source_port),
            dport: u16::from_ne_bytes(server.port),
        };
        size_of::<Tuple6>()
    };
    let namespace = if netns == NETNS_CURRENT {
        u64::MAX
    } else {
        netns as u32 as u64
    };
    // SAFETY: the context is the program's own; the reference is released below.
    unsafe {
        let socket = bpf_skc_lookup_tcp(context, &mut tuple, size as u32, namespace, 0);
        if socket.is_null() {
            return false;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        state != LISTEN
    }
}

#[inline(always)]
fn words(addr: &[u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    let mut i = 0;
    while i < 4 {
        words[i] = u32::from_ne_bytes([
            addr[4 * i],
            addr[4 * i + 1],
            addr[4 * i + 2],
            addr[4 * i + 3],
        ]);
        i += 1;
    }
    words
}

//! Whose packet is it: a client's to a VIP, a backend's to a client, or not ours.

use shifter_common::{
    abi::{AddressKey, Config, ServiceBody, service::head_parts, stats::Verdict},
    known::{BACKEND_PORTS, KNOWN_WORDS, VIP_PORTS},
    packet::parse::{Headers, Kind, is_whole, parse},
};

use crate::{
    hook::Hook,
    maps::{
        BACKEND_IDS, CONFIG, KNOWN, POOL_COUNTERS, SCRATCH, SERVICE_BODY, SERVICE_HEAD, Scratch,
        VIPS, element, element_of,
    },
    stage::{
        fast,
        forward::{self, Packet},
        reply,
    },
    verdict::Outcome,
};

/// Parses into this CPU's scratch space; a frame of its own on the stack.
#[inline(never)]
fn parse_into<H: Hook>(hook: &H, headers: &mut Headers) -> bool {
    if fast::read_plain(hook, headers) {
        return true;
    }
    if hook.pull() && fast::read_plain(hook, headers) {
        return true;
    }
    match parse(hook) {
        Some(parsed) => {
            *headers = parsed;
            is_whole(hook, headers)
        }
        None => false,
    }
}

/// At ingress of an interface. `is_read`: the headers lie in scratch space already.
#[inline(always)]
pub fn ingress<H: Hook>(hook: &mut H, is_read: bool) -> Outcome {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return Outcome::pass(hook, Verdict::Unparsed);
    };
    // SAFETY: per CPU, and programs of one CPU do not interleave.
    let scratch = unsafe { &mut *scratch };
    let Scratch {
        headers,
        key,
        new,
        choice,
        address,
    } = scratch;
    if !is_read && !parse_into(hook, headers) {
        return Outcome::pass(hook, Verdict::Unparsed);
    }
    let headers = &*headers;
    if headers.kind == Kind::Fragment {
        return fragment(hook, headers);
    }
    let Some(bits) = KNOWN.get_ptr(0) else {
        return Outcome::pass(hook, Verdict::NotOurs);
    };
    let to_vip = is_port_known(bits, VIP_PORTS, headers.destination_port);
    let from_backend = is_port_known(bits, BACKEND_PORTS, headers.source_port);
    if !to_vip && !from_backend {
        return Outcome::pass(hook, Verdict::NotOurs);
    }
    let Some(config) = config() else {
        return Outcome::pass(hook, Verdict::NotOurs);
    };
    if to_vip {
        *address = destination_key(headers);
        // SAFETY: values are single words.
        if let Some(service) = unsafe { VIPS.get(&*address) } {
            return match body(*service) {
                Some(body) => forward::forward(
                    hook,
                    &mut Packet {
                        headers,
                        config,
                        body,
                        key,
                        new,
                        choice,
                    },
                ),
                None => Outcome::pass(hook, Verdict::BadBody),
            };
        }
    }
    if from_backend {
        *address = source_key(headers);
        // SAFETY: values are single words.
        if let Some(backend) = unsafe { BACKEND_IDS.get(&*address) } {
            return reply::at_ingress(hook, headers, config, key, *backend as u16);
        }
    }
    Outcome::pass(hook, Verdict::NoFlow)
}

/// At egress of an interface: only replies are looked for.
#[inline(always)]
pub fn egress<H: Hook>(hook: &mut H) -> Outcome {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return Outcome::pass(hook, Verdict::Unparsed);
    };
    // SAFETY: per CPU, and programs of one CPU do not interleave.
    let scratch = unsafe { &mut *scratch };
    let Scratch {
        headers,
        key,
        address,
        ..
    } = scratch;
    if !parse_into(hook, headers) {
        return Outcome::pass(hook, Verdict::Unparsed);
    }
    let headers = &*headers;
    let Some(bits) = KNOWN.get_ptr(0) else {
        return Outcome::pass(hook, Verdict::NotOurs);
    };
    if headers.kind == Kind::Fragment || !is_port_known(bits, BACKEND_PORTS, headers.source_port) {
        return Outcome::pass(hook, Verdict::NotOurs);
    }
    let Some(config) = config() else {
        return Outcome::pass(hook, Verdict::NotOurs);
    };
    *address = source_key(headers);
    // SAFETY: values are single words.
    match unsafe { BACKEND_IDS.get(&*address) } {
        Some(backend) => reply::at_egress(hook, headers, config, key, *backend as u16),
        None => Outcome::pass(hook, Verdict::NoFlow),
    }
}

/// The record in force of a service; `None` when there is none or it names another.
#[inline(always)]
pub fn body(service: u32) -> Option<&'static ServiceBody> {
    let head = element(&SERVICE_HEAD, service)?;
    // SAFETY: an aligned word of a map, written by the agent while we read.
    let (slot, check) = head_parts(unsafe { core::ptr::read_volatile(head) });
    if slot == 0 {
        return None;
    }
    // SAFETY: a record in the map, immutable while a head names it.
    let body = unsafe { element(&SERVICE_BODY, slot)?.as_ref() }?;
    (body.service == service && body.check == check).then_some(body)
}

/// Installation-wide settings, once the agent has written them.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    let config = CONFIG.get(0)?;
    (config.abi_version == shifter_common::abi::ABI_VERSION).then_some(config)
}

/// Where the bits of what VIPs and backends use lie.
pub type Bits = *const [u64; KNOWN_WORDS];

/// One of these bits.
#[inline(always)]
pub fn is_known(bits: Bits, bit: u32) -> bool {
    let Some(word) = element_of(bits, bit >> 6) else {
        return false;
    };
    // SAFETY: an aligned word of a map, written by the agent while we read.
    let word = unsafe { core::ptr::read_volatile(word) };
    word >> (bit & 63) & 1 != 0
}

#[inline(always)]
pub fn is_port_known(bits: Bits, first: u32, port: [u8; 2]) -> bool {
    is_known(bits, first + u32::from(u16::from_be_bytes(port)))
}

#[inline(always)]
fn source_key(headers: &Headers) -> AddressKey {
    AddressKey {
        addr: headers.source,
        port: headers.source_port,
        protocol: headers.protocol,
        family: headers.family,
    }
}

#[inline(always)]
fn destination_key(headers: &Headers) -> AddressKey {
    AddressKey {
        addr: headers.destination,
        port: headers.destination_port,
        protocol: headers.protocol,
        family: headers.family,
    }
}

/// Fragments pass untouched, the first one too; those to a VIP are counted.
#[inline(always)]
fn fragment<H: Hook>(hook: &H, headers: &Headers) -> Outcome {
    let first = destination_key(headers);
    // SAFETY: values are single words.
    if let Some(service) = unsafe { VIPS.get(&first) } {
        if let Some(counters) = POOL_COUNTERS.get_ptr_mut(*service * 2) {
            // SAFETY: per CPU.
            unsafe { (*counters).fragments += 1 };
        }
        return Outcome::pass(hook, Verdict::Fragment);
    }
    let address = AddressKey {
        port: [0; 2],
        protocol: 0,
        ..first
    };
    // SAFETY: values are single words.
    if unsafe { VIPS.get(&address) }.is_some() {
        return Outcome::pass(hook, Verdict::Fragment);
    }
    Outcome::pass(hook, Verdict::NotOurs)
}

//! Whose packet is it: a client's to a VIP, a backend's to a client, or not ours.

use shifter_common::{
    abi::{AddressKey, Config, ServiceBody, service::head_parts, stats::Verdict},
    packet::parse::{Headers, Kind, is_whole, parse},
};

use crate::{
    hook::Hook,
    maps::{
        BACKEND_IDS, CONFIG, POOL_COUNTERS, PORTS, SCRATCH, SERVICE_BODY, SERVICE_HEAD, Scratch,
        VIPS,
    },
    stage::{
        forward::{self, Packet},
        reply,
    },
    verdict::Outcome,
};

/// Words of the port bitmap that belong to VIPs; those of backends follow.
pub const PORT_WORDS: u32 = 1_024;

/// Parses into this CPU's scratch space; a frame of its own on the stack.
#[inline(never)]
fn parse_into<H: Hook>(hook: &H, headers: &mut Headers) -> bool {
    match parse(hook) {
        Some(parsed) => {
            *headers = parsed;
            is_whole(hook, headers)
        }
        None => false,
    }
}

/// At ingress of an interface.
#[inline(always)]
pub fn ingress<H: Hook>(hook: &mut H) -> Outcome {
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
    } = scratch;
    if !parse_into(hook, headers) {
        return Outcome::pass(hook, Verdict::Unparsed);
    }
    let headers = &*headers;
    if headers.kind == Kind::Fragment {
        return fragment(hook, headers);
    }
    let to_vip = is_port_known(0, headers.destination_port);
    let from_backend = is_port_known(PORT_WORDS, headers.source_port);
    if !to_vip && !from_backend {
        return Outcome::pass(hook, Verdict::NotOurs);
    }
    let Some(config) = config() else {
        return Outcome::pass(hook, Verdict::NotOurs);
    };
    if to_vip {
        let vip = destination_key(headers);
        // SAFETY: values are single words.
        if let Some(service) = unsafe { VIPS.get(&vip) } {
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
        let source = source_key(headers);
        // SAFETY: values are single words.
        if let Some(backend) = unsafe { BACKEND_IDS.get(&source) } {
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
    let Scratch { headers, key, .. } = unsafe { &mut *scratch };
    if !parse_into(hook, headers) {
        return Outcome::pass(hook, Verdict::Unparsed);
    }
    let headers = &*headers;
    if headers.kind == Kind::Fragment || !is_port_known(PORT_WORDS, headers.source_port) {
        return Outcome::pass(hook, Verdict::NotOurs);
    }
    let Some(config) = config() else {
        return Outcome::pass(hook, Verdict::NotOurs);
    };
    let source = source_key(headers);
    // SAFETY: values are single words.
    match unsafe { BACKEND_IDS.get(&source) } {
        Some(backend) => reply::at_egress(hook, headers, config, key, *backend as u16),
        None => Outcome::pass(hook, Verdict::NoFlow),
    }
}

/// The record in force of a service; `None` when there is none or it names another.
#[inline(always)]
pub fn body(service: u32) -> Option<&'static ServiceBody> {
    let head = SERVICE_HEAD.get_ptr(service)?;
    // SAFETY: an aligned word of a map, written by the agent while we read.
    let (slot, check) = head_parts(unsafe { core::ptr::read_volatile(head) });
    if slot == 0 {
        return None;
    }
    let body = SERVICE_BODY.get(slot)?;
    (body.service == service && body.check == check).then_some(body)
}

/// Installation-wide settings, once the agent has written them.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    let config = CONFIG.get(0)?;
    (config.abi_version == shifter_common::abi::ABI_VERSION).then_some(config)
}

#[inline(always)]
pub fn is_port_known(first_word: u32, port: [u8; 2]) -> bool {
    let port = u32::from(u16::from_be_bytes(port));
    match PORTS.get(first_word + (port >> 6)) {
        Some(word) => word >> (port & 63) & 1 != 0,
        None => false,
    }
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

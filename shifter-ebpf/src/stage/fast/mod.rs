//! The way of most packets: a flow that has its entry, in a frame without
//! tags, options, extension headers or fragments. Everything lies at offsets
//! known at compile time, behind one check of the frame's end for each kind of
//! header; the flow is found by its client alone, and its entry leads to the service
//! and the backend, so that neither is looked up. What is not so leaves with nothing
//! changed, for the stages to look at.

/// A value by family: offsets of loads and stores must be constants.
macro_rules! by {
    ($six:expr, $four:expr) => {
        if V6 { $six } else { $four }
    };
}

mod frame;
mod headers;
mod write;

use shifter_common::{
    abi::{
        Backend, Config, FlowEntry, NextHop, ServiceBody,
        backend::BACKEND_REDIRECT,
        flow::*,
        stats::{HOOK_EGRESS, Verdict},
    },
    known::{BACKEND_HASHES, BACKEND_PORTS, VIP_HASHES, VIP_PORTS, hash_bit},
    life::needs_stamp,
    packet::parse::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    table::{flow_hash, places},
};

use crate::{
    atomic::{load8_at, load32_at},
    clock,
    flow_table::{at, client_words, expired, get, place_of, set},
    hook::Hook,
    maps::{FLOWS, KNOWN, SCRATCH},
    stage::{
        classify::{self, Bits},
        count,
        forward::pool_of,
        route, select,
        track::{From, Seen, track_at},
    },
    verdict::{Outcome, conclude},
};
use frame::{Frame, Side, ether_type, length_of, read};
use headers::fill;
pub use headers::{read_plain, write_plain};
use write::write;

/// Where the IP header begins: behind Ethernet.
const L3: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// EtherTypes as they lie in memory.
const IPV4: u16 = 0x0800u16.to_be();
const IPV6: u16 = 0x86ddu16.to_be();
/// Segments that change more than the last acknowledgement.
const TURNS: u8 = TCP_SYN | TCP_FIN | TCP_RST;
/// A SYN-ACK.
const ANSWER: u8 = TCP_SYN | TCP_ACK;
/// With both set, the next packet closes the flow.
const BOTH_FINS: u16 = FLOW_FIN_CLIENT | FLOW_FIN_BACKEND;
// Of the flags of `track` one FIN alone is at most this.
const _: () = assert!(FLOW_FIN_BACKEND > FLOW_FIN_CLIENT && FLOW_WATCHED > BOTH_FINS);
/// Set in what [`established`] gives when it has handled the packet.
const DONE: u64 = 1 << 32;
/// What it gives when the packet is for the stages, and its headers lie in scratch space.
pub const READ: u64 = 1 << 33;
/// Places of a key's first set that are looked at.
const PLACES: u32 = 4;

/// How far this way goes with a packet.
enum Taken {
    Done(Outcome),
    /// The stages are to go on from the headers that were read.
    Read,
}

/// Handles a packet of a flow that has its entry, or one that is none of ours; 0 or
/// [`READ`]: it is for the stages. A function of its own, so that its frame on the stack is
/// gone when they begin. In the low half of the result lies the action.
#[inline(never)]
pub fn established<H: Hook>(hook: &mut H) -> u64 {
    match take(hook) {
        Some(Taken::Done(outcome)) => DONE | u64::from(conclude::<H>(outcome).cast_unsigned()),
        Some(Taken::Read) => READ,
        None => 0,
    }
}

#[inline(always)]
fn take<H: Hook>(hook: &mut H) -> Option<Taken> {
    match ether_type(hook)? {
        IPV4 => look::<H, false>(hook),
        IPV6 => look::<H, true>(hook),
        _ => None,
    }
}

#[inline(always)]
fn look<H: Hook, const V6: bool>(hook: &mut H) -> Option<Taken> {
    let frame = read::<H, V6>(hook)?;
    let bits = KNOWN.get_ptr(0)?;
    let to_vip = H::NUMBER != HOOK_EGRESS
        && classify::is_port_known(bits, VIP_PORTS, frame.destination.port().to_ne_bytes());
    let from_backend =
        classify::is_port_known(bits, BACKEND_PORTS, frame.source.port().to_ne_bytes());
    if !to_vip && !from_backend {
        return Some(Taken::Done(Outcome::pass(hook, Verdict::NotOurs)));
    }
    let to_vip = to_vip && is_known(bits, VIP_HASHES, frame.destination);
    let from_backend = from_backend && is_known(bits, BACKEND_HASHES, frame.source);
    if !to_vip && !from_backend {
        // Only the port is known: a packet to or from somebody else.
        return Some(Taken::Done(Outcome::pass(hook, Verdict::NoFlow)));
    }
    if frame.tcp_flags & TCP_SYN != 0 {
        if H::NUMBER != HOOK_EGRESS {
            // SAFETY: per CPU, and programs of one CPU do not interleave.
            let scratch = unsafe { SCRATCH.get_ptr_mut(0)?.as_mut() }?;
            fill::<V6>(&frame, &mut scratch.headers);
            return Some(Taken::Read);
        }
        if frame.tcp_flags & (TURNS | TCP_ACK) != ANSWER {
            return None;
        }
    }
    let config = classify::config()?;
    let outcome = if to_vip {
        forward::<H, V6>(hook, &frame, config)
    } else {
        reply::<H, V6>(hook, &frame, config)
    };
    outcome.map(Taken::Done)
}

/// Whether an address with its port may be a VIP's, or a backend's.
#[inline(always)]
fn is_known(bits: Bits, hashes: u32, side: Side) -> bool {
    classify::is_known(bits, hashes + hash_bit(side.addr, side.rest))
}

/// An entry, as it was when it was found.
#[derive(Clone, Copy)]
struct Found {
    entry: *mut FlowEntry,
    control: u64,
    place: u64,
}

/// The live entry of a client's flow near its home; the first by place, as
/// `flow_table::find` has it.
#[inline(always)]
fn find<const V6: bool, T>(
    frame: &Frame,
    config: &Config,
    client: Side,
    other_side: impl Fn(*mut FlowEntry) -> Option<T>,
) -> Option<(Found, T)> {
    let family = if V6 { 6 } else { 4 };
    let hash = flow_hash(
        config.table_key,
        client.addr,
        client.port().to_ne_bytes(),
        frame.protocol,
        family,
    );
    let places = places(hash, config.set_mask);
    let set = FLOWS.get_ptr_mut(places.sets[0])?;
    let home = places.homes[0];
    let mark = get!(at(set, home, 0), home);
    let kind = if V6 { FLOW_IPV6 } else { 0 } | if frame.protocol == UDP { FLOW_UDP } else { 0 };
    let mut distance = 0;
    while distance < PLACES {
        if mark >> distance & 1 != 0 {
            let entry = at(set, home, distance);
            let control = get!(entry, control);
            if control_tag(control) == places.tag
                && is_live(control_state(control))
                && u16::from_ne_bytes(get!(entry, client_port)) == client.port()
                && client_words(entry) == client.addr
                && (get!(entry, flags) ^ kind) & (FLOW_IPV6 | FLOW_UDP) == 0
                && let Some(other) = other_side(entry)
            {
                let found = Found {
                    entry,
                    control,
                    place: place_of(places.sets[0], home, distance),
                };
                return Some((found, other));
            }
        }
        distance += 1;
    }
    None
}

#[inline(always)]
fn body_of(entry: *mut FlowEntry) -> Option<&'static ServiceBody> {
    classify::body(u32::from(get!(entry, service)))
}

#[inline(always)]
fn forward<H: Hook, const V6: bool>(
    hook: &mut H,
    frame: &Frame,
    config: &Config,
) -> Option<Outcome> {
    let service = |entry| body_of(entry).filter(|b| Side::of(&b.vip) == frame.destination);
    let (found, body) = find::<V6, _>(frame, config, frame.source, service)?;
    let entry = found.entry;
    let now = clock::tick(clock::coarse_ns());
    if frame.protocol == UDP && expired(entry, found.control, now, config) {
        return None;
    }
    let id = get!(entry, backend);
    let is_vip = id == body.vip_backend;
    let length = length_of(hook, frame);
    let backend = select::record(id)?;
    let mut hop = None;
    if !is_vip && backend.flags & BACKEND_REDIRECT != 0 {
        hop = Some(way_out::<H, V6>(
            hook,
            frame,
            config,
            length,
            backend.next_hop,
        )?);
    }
    let pool = pool_of(entry);
    track::<V6>(frame, &found, From::Client, length, now)?;
    count::packet(body.service, pool, id, From::Client, length);
    if is_vip {
        return Some(Outcome::pass(hook, Verdict::ForwardVip));
    }
    let to = Side::of(&backend.key);
    if write::<H, V6>(hook, frame, From::Client, to, hop).is_none() {
        return Some(Outcome::drop(hook, Verdict::RewriteFailed));
    }
    Some(match hop {
        Some(hop) => Outcome {
            verdict: Verdict::ForwardRedirect,
            action: hook.redirect(config, hop.ifindex),
        },
        None => Outcome::pass(hook, Verdict::ForwardKernel),
    })
}

#[inline(always)]
fn reply<H: Hook, const V6: bool>(hook: &mut H, frame: &Frame, config: &Config) -> Option<Outcome> {
    let sender = |entry| backend_of(entry).filter(|b| Side::of(&b.1.key) == frame.source);
    let (found, (id, backend)) = find::<V6, _>(frame, config, frame.destination, sender)?;
    let entry = found.entry;
    // The stages know what an answer to nobody is.
    if frame.tcp_flags & TCP_SYN != 0 && is_closing(control_state(found.control)) {
        return None;
    }
    let body = body_of(entry)?;
    let is_vip = id == body.vip_backend;
    let length = length_of(hook, frame);
    let mut hop = None;
    if H::NUMBER != HOOK_EGRESS {
        // Left to the kernel and to egress: the stages say so.
        if is_vip || backend.flags & BACKEND_REDIRECT == 0 {
            return None;
        }
        // SAFETY: a word of a map that the agent writes.
        let routes = unsafe { core::ptr::read_volatile(&raw const config.route_generation) };
        if get!(entry, route_generation) != routes as u16 {
            return None;
        }
        let next_hop = u32::from(get!(entry, next_hop));
        hop = Some(way_out::<H, V6>(hook, frame, config, length, next_hop)?);
    }
    let now = clock::tick(clock::coarse_ns());
    let pool = pool_of(entry);
    track::<V6>(frame, &found, From::Backend, length, now)?;
    count::packet(body.service, pool, id, From::Backend, length);
    if is_vip {
        return Some(Outcome::pass(hook, Verdict::ReplyVip));
    }
    let to = Side::of(&body.vip);
    if write::<H, V6>(hook, frame, From::Backend, to, hop).is_none() {
        return Some(Outcome::drop(hook, Verdict::RewriteFailed));
    }
    Some(match hop {
        Some(hop) => Outcome {
            verdict: Verdict::ReplyRedirect,
            action: hook.redirect(config, hop.ifindex),
        },
        None => Outcome::pass(hook, Verdict::ReplyEgress),
    })
}

#[inline(always)]
fn backend_of(entry: *mut FlowEntry) -> Option<(u16, &'static Backend)> {
    let id = get!(entry, backend);
    Some((id, select::record(id)?))
}

/// The next hop, if the packet can be redirected to it.
#[inline(always)]
fn way_out<H: Hook, const V6: bool>(
    hook: &H,
    frame: &Frame,
    config: &Config,
    length: u32,
    id: u32,
) -> Option<&'static NextHop> {
    let hop = route::next_hop_at(id)?;
    let longest = match hook.segment() {
        0 => length,
        segment => {
            let headers = if frame.protocol == TCP {
                headers_of::<V6>(frame)
            } else {
                by!(40, 20) + 8
            };
            headers + segment
        }
    };
    (longest <= hop.mtu
        && frame.hop_limit > 1
        && !hook.has_tag()
        && hook.can_leave_by(config, hop.ifindex))
    .then_some(hop)
}

/// Brings the entry up to date. `None`, and nothing written, where the entry is no
/// longer what it was when it was found: what was read of it since may then be
/// another flow's.
#[inline(always)]
fn track<const V6: bool>(
    frame: &Frame,
    found: &Found,
    from: From,
    length: u32,
    now: u32,
) -> Option<()> {
    let entry = found.entry;
    if get!(entry, control) != found.control {
        return None;
    }
    let last_seen = get!(entry, last_seen);
    let is_late = last_seen != now && needs_stamp(last_seen, now);
    if is_late || turns::<V6>(frame, found, from) {
        track_at(&seen::<V6>(frame, found, from, length, now));
        return Some(());
    }
    if frame.protocol == TCP && frame.tcp_flags & TCP_ACK != 0 {
        let last = acknowledgement::<V6>(frame);
        match from {
            From::Client => {
                if get!(entry, seq_a) != last {
                    set!(entry, seq_a, last);
                }
            }
            From::Backend => {
                if get!(entry, seq_b) != last {
                    set!(entry, seq_b, last);
                }
            }
        }
    }
    if last_seen != now {
        set!(entry, last_seen, now);
    }
    let units = get!(entry, high).saturating_add((length + 15) >> 4);
    set!(entry, high, units);
    Some(())
}

/// Whether a segment changes more of its flow than the last acknowledgement.
#[inline(always)]
fn turns<const V6: bool>(frame: &Frame, found: &Found, from: From) -> bool {
    let state = control_state(found.control);
    if frame.protocol == UDP {
        return state == STATE_UDP_UNANSWERED && from == From::Backend;
    }
    let flags = get!(found.entry, flags);
    let data = match from {
        From::Client => FLOW_CLIENT_DATA,
        From::Backend => FLOW_BACKEND_DATA,
    };
    state != STATE_ESTABLISHED
        || frame.tcp_flags & TURNS != 0
        || flags & (BOTH_FINS | FLOW_WATCHED) > FLOW_FIN_BACKEND
        || (from == From::Backend && flags & FLOW_REPLIED == 0)
        || (flags & data == 0 && has_data::<V6>(frame))
}

#[inline(always)]
fn acknowledgement<const V6: bool>(frame: &Frame) -> u32 {
    // SAFETY: `read` has checked that the headers can be read.
    u32::from_be(unsafe { by!(load32_at::<62>(frame.at), load32_at::<42>(frame.at)) })
}

/// The segment as the stages see it.
#[inline(always)]
fn seen<const V6: bool>(frame: &Frame, found: &Found, from: From, length: u32, now: u32) -> Seen {
    let mut seen = Seen {
        place: found.place,
        tag: control_tag(found.control),
        length,
        now,
        sequence: 0,
        acknowledgement: 0,
        payload: 0,
        tcp_flags: frame.tcp_flags,
        protocol: frame.protocol,
        from: from as u8,
        pad: 0,
        pad_end: 0,
    };
    if frame.protocol == TCP {
        // SAFETY: `read` has checked that the headers can be read.
        unsafe {
            seen.sequence = u32::from_be(by!(load32_at::<58>(frame.at), load32_at::<38>(frame.at)));
        }
        seen.acknowledgement = acknowledgement::<V6>(frame);
        // Without a length it has none to count.
        seen.payload = frame.length.saturating_sub(headers_of::<V6>(frame));
    }
    seen
}

/// Bytes of the IP and TCP headers.
#[inline(always)]
fn headers_of<const V6: bool>(frame: &Frame) -> u32 {
    // SAFETY: `read` has checked that the headers can be read.
    let words = unsafe { by!(load8_at::<66>(frame.at), load8_at::<46>(frame.at)) } >> 4;
    by!(40, 20) + u32::from(words) * 4
}

/// Whether a TCP segment carries data. Without a length it is aggregated, of
/// segments with data.
#[inline(always)]
fn has_data<const V6: bool>(frame: &Frame) -> bool {
    frame.length == 0 || frame.length > headers_of::<V6>(frame)
}

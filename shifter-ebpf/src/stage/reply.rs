//! From a backend to a client: the source becomes the VIP again.

use shifter_common::{
    abi::{
        Config, FlowEntry, ServiceBody,
        backend::BACKEND_REDIRECT,
        flow::{STATE_FREE, control_state, is_closing},
        miss::MISS_REPLY,
        stats::Verdict,
    },
    packet::{
        parse::{Headers, Kind, TCP_ACK, TCP_SYN},
        rewrite::{Side, rewrite},
    },
};

use crate::{
    clock,
    flow_table::{self, FlowKey, Match, get},
    hook::Hook,
    stage::{
        classify, count,
        forward::pool_of,
        route, select,
        send::{leave, write},
        track::{From, track},
    },
    verdict::Outcome,
};

/// Whether a segment answers a SYN.
#[inline(always)]
fn is_answer(headers: &Headers) -> bool {
    headers.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN | TCP_ACK
}

/// The flow of a packet from a backend to a client, and its service.
#[inline(always)]
fn flow_of<H: Hook>(
    hook: &H,
    headers: &Headers,
    config: &Config,
    key: &mut FlowKey,
    backend: u16,
) -> Option<(*mut FlowEntry, &'static ServiceBody)> {
    key.set(
        config,
        &headers.destination,
        headers.destination_port,
        headers.protocol,
        headers.family,
    );
    let Some(entry) = flow_table::find(key, Match::Backend(backend)) else {
        // Its entry may still lie in the table of the layout before.
        hook.ask_old::<MISS_REPLY>();
        return None;
    };
    let control = get!(entry, control);
    if is_answer(headers) && is_closing(control_state(control)) {
        // A SYN through the VIP would have chosen anew in a closing entry: this
        // answers one that went to the backend itself.
        let now = clock::tick(clock::coarse_ns());
        flow_table::transition(entry, control, STATE_FREE, now);
        return None;
    }
    Some((entry, classify::body(u32::from(get!(entry, service)))?))
}

/// A reply that came in from another host: un-NATed here and redirected, or
/// left to the kernel, which forwards it to an interface whose egress mends it.
/// It is never handed up rewritten: with an address of this host as its source
/// the kernel would take it for a martian.
#[inline(always)]
pub fn at_ingress<H: Hook>(
    hook: &mut H,
    headers: &Headers,
    config: &Config,
    key: &mut FlowKey,
    id: u16,
) -> Outcome {
    let Some((entry, body)) = flow_of(hook, headers, config, key, id) else {
        return Outcome::pass(hook, Verdict::NoFlow);
    };
    let Some(backend) = select::record(id) else {
        return Outcome::pass(hook, Verdict::GoneBackend);
    };
    if backend.flags & BACKEND_REDIRECT == 0 || id == body.vip_backend || hook.is_tagged(headers) {
        return Outcome::pass(hook, Verdict::ReplyKernel);
    }
    if headers.hop_limit <= 1 {
        return Outcome::pass(hook, Verdict::TtlExpired);
    }
    let Some(next) = route::to_client(hook, headers, entry, key.places.tag) else {
        return Outcome::pass(hook, Verdict::ReplyKernel);
    };
    if !hook.can_leave_by(config, next.ifindex) {
        return Outcome::pass(hook, Verdict::ReplyKernel);
    }
    if next.mtu != 0 && hook.wire_length(headers) > next.mtu {
        return Outcome::pass(hook, Verdict::TooBig);
    }
    count_and_track(hook, headers, entry, key, body, id);
    let written = leave(hook, headers, &next)
        .and_then(|()| rewrite(hook, headers, Side::Source, &body.vip.addr, body.vip.port));
    let is_error = headers.kind == Kind::Error;
    let verdict = if is_error {
        Verdict::IcmpReply
    } else {
        Verdict::ReplyRedirect
    };
    match written {
        Some(()) => Outcome {
            verdict,
            action: hook.redirect(config, next.ifindex),
        },
        None => Outcome::drop(hook, Verdict::RewriteFailed),
    }
}

/// A reply that leaves this host: from a server here, in a container, or
/// forwarded by the kernel.
#[inline(always)]
pub fn at_egress<H: Hook>(
    hook: &mut H,
    headers: &Headers,
    config: &Config,
    key: &mut FlowKey,
    id: u16,
) -> Outcome {
    let Some((entry, body)) = flow_of(hook, headers, config, key, id) else {
        return Outcome::pass(hook, Verdict::NoFlow);
    };
    count_and_track(hook, headers, entry, key, body, id);
    if id == body.vip_backend {
        return Outcome::pass(hook, Verdict::ReplyVip);
    }
    let is_error = headers.kind == Kind::Error;
    let verdict = if is_error {
        Verdict::IcmpReply
    } else {
        Verdict::ReplyEgress
    };
    match write(hook, headers, From::Backend, &body.vip, None) {
        Some(()) => Outcome::pass(hook, verdict),
        None => Outcome::drop(hook, Verdict::RewriteFailed),
    }
}

#[inline(always)]
fn count_and_track<H: Hook>(
    hook: &H,
    headers: &Headers,
    entry: *mut FlowEntry,
    key: &FlowKey,
    body: &ServiceBody,
    id: u16,
) {
    let length = hook.length().wrapping_sub(headers.l3 as u32);
    count::packet(body.service, pool_of(entry), id, From::Backend, length);
    track(
        hook,
        headers,
        key,
        From::Backend,
        length,
        clock::tick(clock::coarse_ns()),
    );
}

//! To the backend: rewritten, and redirected or left to the kernel.

use shifter_common::{
    abi::{AddressKey, NextHop, ServiceBody, backend::BACKEND_REDIRECT, stats::Verdict},
    packet::{
        parse::{Headers, Kind},
        rewrite::{Side, decrement_hop_limit, rewrite},
    },
};

use crate::{
    hook::Hook,
    stage::{
        classify, count, fast, route,
        select::{self, Choice},
        track::From,
    },
    verdict::Outcome,
};

/// Rewrites the destination and sends the packet to its backend.
#[inline(never)]
pub fn send<H: Hook>(
    hook: &mut H,
    headers: &Headers,
    body: &ServiceBody,
    choice: &Choice,
) -> Outcome {
    let length = hook.length().wrapping_sub(headers.l3 as u32);
    let id = choice.backend;
    count::packet(body.service, choice.pool, id, From::Client, length);
    if id == body.vip_backend {
        let is_error = headers.kind == Kind::Error;
        let verdict = if is_error {
            Verdict::IcmpForward
        } else {
            Verdict::ForwardVip
        };
        return Outcome::pass(hook, verdict);
    }
    let Some(backend) = select::record(id) else {
        return Outcome::pass(hook, Verdict::GoneBackend);
    };
    let is_error = headers.kind == Kind::Error;
    let mut verdict = if is_error {
        Verdict::IcmpForward
    } else {
        Verdict::ForwardKernel
    };
    let mut hop = None;
    if backend.flags & BACKEND_REDIRECT != 0
        && !hook.is_tagged(headers)
        && let Some(next) = route::next_hop_at(backend.next_hop)
        && let Some(config) = classify::config()
        && hook.can_leave_by(config, next.ifindex)
    {
        if hook.wire_length(headers) > next.mtu {
            verdict = Verdict::TooBig;
        } else if headers.hop_limit <= 1 {
            verdict = Verdict::TtlExpired;
        } else {
            hop = Some((next, config));
        }
    }
    if hop.is_some() && !is_error {
        verdict = Verdict::ForwardRedirect;
    }
    let next = hop.map(|(next, _)| next);
    if write(hook, headers, From::Client, &backend.key, next).is_none() {
        return Outcome::drop(hook, Verdict::RewriteFailed);
    }
    match hop {
        Some((next, config)) => Outcome {
            verdict,
            action: hook.redirect(config, next.ifindex),
        },
        None => Outcome::pass(hook, verdict),
    }
}

/// Writes one side of a packet, and the MACs of where it is redirected to.
/// `None`: it may be half written and must be dropped.
#[inline(always)]
pub fn write<H: Hook>(
    hook: &mut H,
    headers: &Headers,
    from: From,
    to: &AddressKey,
    hop: Option<&NextHop>,
) -> Option<()> {
    if headers.plain {
        return fast::write_plain(hook, headers, from, to, hop);
    }
    if let Some(next) = hop {
        leave(hook, headers, next)?;
    }
    let side = match from {
        From::Client => Side::Destination,
        From::Backend => Side::Source,
    };
    rewrite(hook, headers, side, &to.addr, to.port)
}

/// One hop less, and the MACs of the next hop.
#[inline(always)]
pub fn leave<H: Hook>(hook: &mut H, headers: &Headers, next: &NextHop) -> Option<()> {
    let delta = decrement_hop_limit(hook, headers)?;
    hook.put6(0, next.destination)?;
    hook.put6(6, next.source)?;
    hook.header_changed(delta);
    Some(())
}

//! To the backend: rewritten, and redirected or left to the kernel.

use shifter_common::{
    abi::{NextHop, ServiceBody, backend::BACKEND_REDIRECT, stats::Verdict},
    packet::{
        parse::{Headers, Kind},
        rewrite::{Side, decrement_hop_limit, rewrite},
    },
};

use crate::{
    hook::Hook,
    stage::{
        classify, count, route,
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
    if backend.flags & BACKEND_REDIRECT != 0 && !hook.is_tagged(headers) {
        hop = route::next_hop_at(backend.next_hop);
        let reachable = match (hop, classify::config()) {
            (Some(next), Some(config)) => hook.can_leave_by(config, next.ifindex),
            _ => false,
        };
        if !reachable {
            hop = None;
        }
        if let Some(next) = hop {
            if hook.wire_length(headers) > next.mtu {
                verdict = Verdict::TooBig;
                hop = None;
            } else if headers.hop_limit <= 1 {
                verdict = Verdict::TtlExpired;
                hop = None;
            }
        }
    }
    let Some(next) = hop else {
        let written = rewrite(
            hook,
            headers,
            Side::Destination,
            &backend.key.addr,
            backend.key.port,
        );
        return match written {
            Some(()) => Outcome::pass(hook, verdict),
            None => Outcome::drop(hook, Verdict::RewriteFailed),
        };
    };
    if !is_error {
        verdict = Verdict::ForwardRedirect;
    }
    let written = leave(hook, headers, next).and_then(|()| {
        rewrite(
            hook,
            headers,
            Side::Destination,
            &backend.key.addr,
            backend.key.port,
        )
    });
    match written {
        Some(()) => Outcome {
            verdict,
            action: hook.redirect(next.ifindex),
        },
        None => Outcome::drop(hook, Verdict::RewriteFailed),
    }
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

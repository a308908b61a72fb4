//! From a client to a VIP: find or make the flow, then send it to its backend.

use shifter_common::{
    abi::{
        Config, FirstFlow, FlowEntry, ServiceBody,
        backend::{BACKEND_SOCKETS, NETNS_CURRENT, NO_BACKEND},
        flow::*,
        miss::{MISS_CLIENT, MISS_OPENING},
        service::{LOCAL_BACKENDS, SERVICE_EXACT, SERVICE_LIVE_HAS_VIP},
        stats::Verdict,
    },
    packet::parse::{Headers, Kind, TCP_RST},
    tcp_state::is_opening,
};

use crate::{
    clock,
    flow_table::{self, FlowKey, Inserted, Match, NewFlow, get, is_pressed},
    hook::Hook,
    maps::{BACKEND_COUNTERS, FIRST_FLOW, POOL_COUNTERS},
    stage::{
        classify,
        select::{self, Choice, Origin},
        send::send,
        signals, socket,
        track::{From, track},
    },
    verdict::Outcome,
};

/// Backends of a ring that are tried where the client's port is taken.
const CLASH_TRIES: u32 = 3;
/// Places tried where another packet takes the one that was found free.
const INSERT_TRIES: u32 = 3;

/// A packet to a VIP with its surroundings; `key`, `new` and `choice` are
/// scratch space, which also keeps the verifier from following every value of theirs.
pub struct Packet<'a> {
    pub headers: &'a Headers,
    pub config: &'a Config,
    pub body: &'a ServiceBody,
    pub key: &'a mut FlowKey,
    pub new: &'a mut NewFlow,
    pub choice: &'a mut Choice,
}

/// A packet from a client to a VIP.
#[inline(always)]
pub fn forward<H: Hook>(hook: &mut H, packet: &mut Packet) -> Outcome {
    let Packet {
        headers,
        config,
        body,
        key,
        ..
    } = packet;
    let (headers, config, body) = (*headers, *config, *body);
    let ns = clock::coarse_ns();
    let now = clock::tick(ns);
    key.set(
        config,
        &headers.source,
        headers.source_port,
        headers.protocol,
        headers.family,
    );
    let service = body.service as u16;
    let found = flow_table::find(key, Match::Service(service));
    if found.is_none() {
        // Its entry may still lie in the table of the layout before.
        let opens =
            headers.kind != Kind::Error && headers.protocol != 17 && is_opening(headers.tcp_flags);
        if opens {
            hook.ask_old::<MISS_OPENING>();
        } else {
            hook.ask_old::<MISS_CLIENT>();
        }
    }
    if headers.kind == Kind::Error {
        return match found {
            Some(entry) => send(hook, headers, body, &choice_of(entry)),
            None => Outcome::pass(hook, Verdict::NoFlow),
        };
    }
    if let Some(entry) = found {
        let control = get!(entry, control);
        if !is_over(headers, entry, control, now, config) {
            return go_on(hook, headers, body, entry, key, now);
        }
        // Its place is free for whatever is chosen now; where another packet
        // was first, that one's entry is found on insert.
        signals::free(entry, control, now);
    }
    if !choose_into(hook, packet, ns) {
        return no_backend(hook, body);
    }
    if headers.tcp_flags & TCP_RST != 0 {
        return without_entry(hook, headers, body, packet.choice);
    }
    pin(hook, packet, now)
}

/// Whether a packet that opens a flow shall choose anew in spite of the entry.
#[inline(always)]
fn is_over(
    headers: &Headers,
    entry: *mut FlowEntry,
    control: u64,
    now: u32,
    config: &Config,
) -> bool {
    if headers.protocol == 17 {
        return flow_table::expired(entry, control, now, config);
    }
    is_opening(headers.tcp_flags)
        && (is_closing(control_state(control))
            || flow_table::expired(entry, control, now, config)
            || !select::is_open(get!(entry, backend)))
}

/// Chooses into scratch space; a frame of its own on the stack.
#[inline(never)]
fn choose_into<H: Hook>(hook: &H, packet: &mut Packet, ns: u64) -> bool {
    match choose(hook, packet.headers, packet.body, packet.key, ns) {
        Some(chosen) => {
            *packet.choice = chosen;
            true
        }
        None => false,
    }
}

/// Which backend a flow without an entry gets, and by what right.
#[inline(always)]
fn choose<H: Hook>(
    hook: &H,
    headers: &Headers,
    body: &ServiceBody,
    key: &FlowKey,
    ns: u64,
) -> Option<Choice> {
    let hash = select::hash_of(body, headers);
    let settling = ns < body.settle_until_ns;
    let live = select::live_pool(body);
    let vip = |origin| {
        Some(Choice {
            pool: live,
            backend: body.vip_backend,
            origin,
        })
    };
    if headers.protocol == 17 {
        if !settling {
            return select::of_new_flow(body, headers, hash);
        }
    } else if is_opening(headers.tcp_flags) {
        let held = settling && socket::serves(hook.context(), headers, &body.vip, NETNS_CURRENT);
        if held {
            return vip(Origin::Socket);
        }
        return select::of_new_flow(body, headers, hash);
    } else {
        if socket::serves(hook.context(), headers, &body.vip, NETNS_CURRENT) {
            return vip(Origin::Socket);
        }
        let held = held_locally(hook, headers, body, live);
        if held.is_some() {
            return held;
        }
    }
    if body.flags & SERVICE_LIVE_HAS_VIP != 0 {
        return vip(Origin::Adopted);
    }
    // While live entries give way, this may be the end of a handshake whose
    // entry just did: its SYN was sent where the weight says.
    let is_chosen = headers.protocol != 17
        && !settling
        && body.flags & SERVICE_EXACT == 0
        && is_pressed(key, clock::tick(ns)) != 0;
    let chosen = if is_chosen {
        select::of_new_flow(body, headers, hash)
    } else {
        select::in_pool(body, live, hash, 0)
    };
    chosen.map(|choice| Choice {
        origin: Origin::Adopted,
        ..choice
    })
}

/// The local backend whose socket has the connection.
#[inline(always)]
fn held_locally<H: Hook>(
    hook: &H,
    headers: &Headers,
    body: &ServiceBody,
    live: usize,
) -> Option<Choice> {
    let mut turn = 0;
    while turn < 2 * LOCAL_BACKENDS {
        let pool = if turn < LOCAL_BACKENDS {
            live
        } else {
            1 - live
        };
        let place = turn & (LOCAL_BACKENDS - 1);
        let id = if pool == 1 {
            body.local_backends[1][place]
        } else {
            body.local_backends[0][place]
        };
        if id != NO_BACKEND
            && let Some(backend) = select::record(id)
            && backend.flags & BACKEND_SOCKETS != 0
            && socket::serves(hook.context(), headers, &backend.key, backend.netns)
        {
            return Some(Choice {
                pool,
                backend: id,
                origin: Origin::Socket,
            });
        }
        turn += 1;
    }
    None
}

#[inline(always)]
fn fill_new(new: &mut NewFlow, headers: &Headers, body: &ServiceBody, choice: &Choice, now: u32) {
    let origin = choice.origin;
    let state = match (headers.protocol, origin) {
        (17, _) => STATE_UDP_UNANSWERED,
        (_, Origin::Chosen | Origin::Cohort) => STATE_HALF_OPEN,
        (_, Origin::Adopted) => STATE_ADOPTED,
        // A SYN that meets a socket is still to be proven by what follows.
        (_, Origin::Socket) => STATE_ESTABLISHED,
    };
    let green = if choice.pool == 1 { FLOW_GREEN } else { 0 };
    let how = match origin {
        Origin::Chosen => 0,
        Origin::Cohort => FLOW_COHORT,
        Origin::Adopted | Origin::Socket => FLOW_ADOPTED,
    };
    new.state = state;
    new.flags = green | how;
    new.service = body.service as u16;
    new.backend = choice.backend;
    new.generation = body.generation;
    new.now = now;
}

/// Writes the entry of a new flow, then forwards. Where another service has
/// mapped the client's port to the same backend, the older entry gives way if
/// it is closing, unproven or expired, else another backend of the pool is taken.
#[inline(always)]
fn pin<H: Hook>(hook: &mut H, packet: &mut Packet, now: u32) -> Outcome {
    let Packet {
        headers,
        config,
        body,
        key,
        new,
        choice,
    } = packet;
    let (headers, config, body) = (*headers, *config, *body);
    let mut tried = 1;
    let mut taken = 0;
    // Most clients have no entry at all. Of two SYNs of one port to two services on one
    // backend, on two CPUs at once, neither may see the other: replies then find the
    // first by place, and nothing that is proven has moved.
    while key.has_entry() && is_taken(key, choice.backend, now, config) {
        taken = taken << 16 | u32::from(choice.backend);
        let next = if tried < CLASH_TRIES && choice.origin.is_new() {
            select::in_pool(body, choice.pool, select::hash_of(body, headers), taken)
        } else {
            None
        };
        match next {
            Some(next) => choice.backend = next.backend,
            // What goes to the VIP untouched needs no entry of its own.
            None if choice.backend == body.vip_backend => {
                return Outcome::pass(hook, Verdict::ForwardVip);
            }
            None => return Outcome::drop(hook, Verdict::TupleClash),
        }
        tried += 1;
    }
    fill_new(new, headers, body, choice, now);
    new.flags |= signals::watched_flag(headers, key.places.tag, config.watch_mask);
    let mut inserted = flow_table::insert(key, new);
    let mut tries = 1;
    while tries < INSERT_TRIES && matches!(inserted, Inserted::Pending) {
        inserted = flow_table::insert(key, new);
        tries += 1;
    }
    match inserted {
        Inserted::New(entry) => begin(hook, headers, body, entry, choice, key, now),
        Inserted::Existing(entry) => go_on(hook, headers, body, entry, key, now),
        Inserted::Pending => unpinned(hook, headers, body, choice),
        Inserted::Full => {
            let is_vip = choice.backend == body.vip_backend;
            if is_vip || body.flags & SERVICE_LIVE_HAS_VIP != 0 {
                Outcome::pass(hook, Verdict::TableFullVip)
            } else {
                Outcome::drop(hook, Verdict::TableFull)
            }
        }
    }
}

/// Whether another flow of this client's port lives on the backend; one that
/// is closing, unproven or expired is recycled.
#[inline(always)]
fn is_taken(key: &mut FlowKey, backend: u16, now: u32, config: &Config) -> bool {
    let Some(entry) = flow_table::find(key, Match::Backend(backend)) else {
        return false;
    };
    let control = get!(entry, control);
    let state = control_state(control);
    // The service may be gone, and with it what the entry is for.
    let is_orphan = classify::body(u32::from(get!(entry, service))).is_none();
    if is_orphan
        || is_closing(state)
        || is_unproven(state)
        || flow_table::expired(entry, control, now, config)
    {
        return !signals::free(entry, control, now);
    }
    is_live(state)
}

/// The first packet of a pinned flow.
#[inline(always)]
fn begin<H: Hook>(
    hook: &mut H,
    headers: &Headers,
    body: &ServiceBody,
    entry: *mut FlowEntry,
    choice: &Choice,
    key: &FlowKey,
    now: u32,
) -> Outcome {
    let origin = choice.origin;
    if let Some(counters) = POOL_COUNTERS.get_ptr_mut(body.service * 2 + choice.pool as u32) {
        // SAFETY: per CPU.
        unsafe {
            match origin {
                Origin::Chosen => (*counters).new_flows += 1,
                Origin::Cohort => (*counters).cohort_flows += 1,
                Origin::Adopted | Origin::Socket => (*counters).adopted_flows += 1,
            }
        }
    }
    if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(u32::from(choice.backend)) {
        // SAFETY: per CPU.
        unsafe { (*counters).flows += 1 };
    }
    if origin.is_new() {
        stamp_generation(body);
        // What is owed by counting is of flows that were counted.
        if origin == Origin::Chosen {
            select::settle_debt(body, choice.pool);
        }
        // What a SYN says is in the entry already.
        if headers.protocol != 17 {
            signals::opened(body, choice.pool as u32, key, entry);
            return send(hook, headers, body, choice);
        }
    }
    go_on(hook, headers, body, entry, key, now)
}

/// Writes when the first flow of a generation was chosen, once.
#[inline(always)]
fn stamp_generation(body: &ServiceBody) {
    let Some(first) = FIRST_FLOW.get_ptr_mut(body.service) else {
        return;
    };
    let generation = u64::from(body.generation);
    // SAFETY: a map value; a race of two CPUs writes two times of the same moment.
    unsafe {
        if core::ptr::read_volatile(&raw const (*first).generation) < generation {
            let at_ns = aya_ebpf::helpers::bpf_ktime_get_ns();
            core::ptr::write_volatile(first, FirstFlow { at_ns, generation });
        }
    }
}

/// A packet of a flow that has its entry.
#[inline(always)]
fn go_on<H: Hook>(
    hook: &mut H,
    headers: &Headers,
    body: &ServiceBody,
    entry: *mut FlowEntry,
    key: &FlowKey,
    now: u32,
) -> Outcome {
    let choice = choice_of(entry);
    let length = hook.length().wrapping_sub(headers.l3 as u32);
    track(hook, headers, key, From::Client, length, now);
    send(hook, headers, body, &choice)
}

/// Forwards by choice alone: an entry of the flow is just being written.
#[inline(always)]
fn unpinned<H: Hook>(
    hook: &mut H,
    headers: &Headers,
    body: &ServiceBody,
    choice: &Choice,
) -> Outcome {
    if let Some(counters) = POOL_COUNTERS.get_ptr_mut(body.service * 2 + choice.pool as u32) {
        // SAFETY: per CPU.
        unsafe { (*counters).unpinned_flows += 1 };
    }
    without_entry(hook, headers, body, choice)
}

/// Sends a packet that no entry stands for; what went wrong keeps its reason.
#[inline(always)]
fn without_entry<H: Hook>(
    hook: &mut H,
    headers: &Headers,
    body: &ServiceBody,
    choice: &Choice,
) -> Outcome {
    let mut outcome = send(hook, headers, body, choice);
    if matches!(
        outcome.verdict,
        Verdict::ForwardRedirect | Verdict::ForwardKernel | Verdict::ForwardVip
    ) {
        outcome.verdict = Verdict::Unpinned;
    }
    outcome
}

/// No backend in either pool: only the VIP itself could still answer.
#[inline(always)]
fn no_backend<H: Hook>(hook: &H, body: &ServiceBody) -> Outcome {
    if body.flags & SERVICE_LIVE_HAS_VIP != 0 {
        Outcome::pass(hook, Verdict::ForwardVip)
    } else {
        Outcome::drop(hook, Verdict::NoBackend)
    }
}

/// What was chosen for a flow that has its entry.
#[inline(always)]
fn choice_of(entry: *const FlowEntry) -> Choice {
    Choice {
        pool: pool_of(entry),
        backend: get!(entry, backend),
        origin: Origin::Chosen,
    }
}

/// Pool of a flow's entry.
#[inline(always)]
pub fn pool_of(entry: *const FlowEntry) -> usize {
    usize::from(get!(entry, flags) & FLOW_GREEN != 0)
}

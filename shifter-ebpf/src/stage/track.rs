//! What a packet of an established flow changes in its entry.

use shifter_common::{
    abi::{flow::*, signals::ENDED},
    life::needs_stamp,
    packet::parse::{Headers, Kind, tcp_segment},
    signals::events,
    tcp_state::TcpState,
};

use crate::{
    flow_table::{FlowKey, get, raise_flags, set, transition},
    hook::Hook,
    stage::signals,
};

/// Whether the entry is still the flow's.
#[inline(always)]
fn is_of(control: u64, tag: u32) -> bool {
    is_live(control_state(control)) && control_tag(control) == tag
}

/// Both directions have ended.
const BOTH_FINS: u16 = FLOW_FIN_CLIENT | FLOW_FIN_BACKEND;

/// Who sent the packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum From {
    Client,
    Backend,
}

/// Brings the entry up to date. Races between CPUs cost a byte count or a
/// sequence, never a state: that moves by compare-and-swap from what was seen.
#[inline(always)]
pub fn track<H: Hook>(
    hook: &H,
    headers: &Headers,
    entry: *mut FlowEntry,
    key: &FlowKey,
    from: From,
    length: u32,
    now: u32,
) {
    if headers.kind != Kind::Segment {
        return;
    }
    let mut control = get!(entry, control);
    // Since it was found the entry may have gone to another flow.
    if !is_of(control, key.places.tag) {
        return;
    }
    let last_seen = get!(entry, last_seen);
    if last_seen != now {
        set!(entry, last_seen, now);
        if needs_stamp(last_seen, now) {
            // Whoever is about to free it for being idle has read another word.
            transition(entry, control, control_state(control), now);
            control = get!(entry, control);
            if !is_of(control, key.places.tag) {
                return;
            }
        }
    }
    if headers.protocol == 17 {
        if from == From::Backend && control_state(control) == STATE_UDP_UNANSWERED {
            transition(entry, control, STATE_UDP_ANSWERED, now);
        }
    } else {
        track_tcp(hook, headers, entry, key, from, control, now);
    }
    if control_state(control) != STATE_HALF_OPEN {
        let units = get!(entry, high).saturating_add((length + 15) >> 4);
        set!(entry, high, units);
    }
}

#[inline(always)]
fn track_tcp<H: Hook>(
    hook: &H,
    headers: &Headers,
    entry: *mut FlowEntry,
    key: &FlowKey,
    from: From,
    control: u64,
    now: u32,
) {
    let Some(segment) = tcp_segment(hook, headers) else {
        return;
    };
    let was = TcpState {
        state: control_state(control),
        flags: get!(entry, flags),
        seq_a: get!(entry, seq_a),
        seq_b: get!(entry, seq_b),
        high: get!(entry, high),
    };
    let is = match from {
        From::Client => was.from_client(segment),
        From::Backend => was.from_backend(segment),
    };
    if is.state != was.state && !transition(entry, control, is.state, now) {
        // The other direction moved it first: its view is as good as ours,
        // but for the flags, which both may raise.
        if control_tag(get!(entry, control)) == control_tag(control) {
            raise_flags(entry, is.flags & !was.flags);
        }
        return;
    }
    let is_backend = from == From::Backend;
    let mut events = events(&was, &is, segment, is_backend);
    let mut ended = is_closing(is.state) && was.state == STATE_ESTABLISHED;
    if is.flags != was.flags {
        let flags = raise_flags(entry, is.flags & !was.flags);
        let control = get!(entry, control);
        if flags & BOTH_FINS == BOTH_FINS && control_state(control) == STATE_ESTABLISHED {
            ended |= transition(entry, control, STATE_CLOSING, now);
        }
    }
    if was.flags & FLOW_ADOPTED == 0 {
        if ended {
            events |= 1 << ENDED;
        }
        if events != 0 {
            signals::note(key.place, entry, events);
        }
        if was.flags & FLOW_WATCHED != 0 {
            signals::watch(key, entry, from, segment.sequence, segment.payload);
        }
    }
    if is.seq_a != was.seq_a {
        set!(entry, seq_a, is.seq_a);
    }
    if is.seq_b != was.seq_b {
        set!(entry, seq_b, is.seq_b);
    }
    if is.high != was.high {
        set!(entry, high, is.high);
    }
}

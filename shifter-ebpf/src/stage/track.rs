//! What a packet of an established flow changes in its entry.

use shifter_common::{
    abi::{flow::*, signals::ENDED},
    life::needs_stamp,
    packet::parse::{Headers, Kind, tcp_segment},
    signals::events,
    tcp_state::{Segment, TcpState},
};

use crate::{
    flow_table::{FlowKey, PLACE_FOUND, entry_at, get, raise_flags, set, transition},
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

/// A segment, and the flow it belongs to. Without padding: it lies on the stack of
/// one function and is read by another.
#[repr(C)]
pub struct Seen {
    /// Where the flow's entry lies, with `PLACE_FOUND`.
    pub place: u64,
    /// Of the flow.
    pub tag: u32,
    /// Bytes from the IP header on.
    pub length: u32,
    pub now: u32,
    /// The rest means something for TCP only.
    pub sequence: u32,
    pub acknowledgement: u32,
    /// Bytes of data.
    pub payload: u32,
    pub tcp_flags: u8,
    pub protocol: u8,
    /// [`From`] as a number.
    pub from: u8,
    /// Zero.
    pub pad: u8,
    /// Zero.
    pub pad_end: u32,
}

/// Brings the entry up to date, from what the stages have read of a packet.
#[inline(always)]
pub fn track<H: Hook>(
    hook: &H,
    headers: &Headers,
    key: &FlowKey,
    from: From,
    length: u32,
    now: u32,
) {
    if headers.kind != Kind::Segment {
        return;
    }
    let mut segment = Segment {
        flags: 0,
        sequence: 0,
        acknowledgement: 0,
        payload: 0,
    };
    if headers.protocol != 17 {
        match tcp_segment(hook, headers) {
            Some(found) => segment = found,
            None => return,
        }
    }
    track_at(&Seen {
        place: key.place,
        tag: key.places.tag,
        length,
        now,
        sequence: segment.sequence,
        acknowledgement: segment.acknowledgement,
        payload: segment.payload,
        tcp_flags: segment.flags,
        protocol: headers.protocol,
        from: from as u8,
        pad: 0,
        pad_end: 0,
    });
}

/// Brings the entry up to date. Races between CPUs cost a byte count or a
/// sequence, never a state: that moves by compare-and-swap from what was seen.
/// A global function: verified once for all its callers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn track_at(seen: *const Seen) -> u64 {
    // SAFETY: null or whole; the verifier knows which.
    let Some(seen) = (unsafe { seen.as_ref() }) else {
        return 0;
    };
    if seen.place & PLACE_FOUND == 0 {
        return 0;
    }
    let Some(entry) = entry_at(seen.place) else {
        return 0;
    };
    let now = seen.now;
    let mut control = get!(entry, control);
    // Since it was found the entry may have gone to another flow.
    if !is_of(control, seen.tag) {
        return 0;
    }
    let last_seen = get!(entry, last_seen);
    if last_seen != now {
        set!(entry, last_seen, now);
        if needs_stamp(last_seen, now) {
            // Whoever is about to free it for being idle has read another word.
            transition(entry, control, control_state(control), now);
            control = get!(entry, control);
            if !is_of(control, seen.tag) {
                return 0;
            }
        }
    }
    if seen.protocol == 17 {
        if seen.from == From::Backend as u8 && control_state(control) == STATE_UDP_UNANSWERED {
            transition(entry, control, STATE_UDP_ANSWERED, now);
        }
    } else {
        track_tcp(seen, entry, control);
    }
    if control_state(control) != STATE_HALF_OPEN {
        let units = get!(entry, high).saturating_add((seen.length + 15) >> 4);
        set!(entry, high, units);
    }
    0
}

#[inline(always)]
fn track_tcp(seen: &Seen, entry: *mut FlowEntry, control: u64) {
    let now = seen.now;
    let segment = Segment {
        flags: seen.tcp_flags,
        sequence: seen.sequence,
        acknowledgement: seen.acknowledgement,
        payload: seen.payload,
    };
    let is_backend = seen.from == From::Backend as u8;
    let was = TcpState {
        state: control_state(control),
        flags: get!(entry, flags),
        seq_a: get!(entry, seq_a),
        seq_b: get!(entry, seq_b),
        high: get!(entry, high),
    };
    let is = if is_backend {
        was.from_backend(segment)
    } else {
        was.from_client(segment)
    };
    if is.state != was.state && !transition(entry, control, is.state, now) {
        // The other direction moved it first: its view is as good as ours,
        // but for the flags, which both may raise.
        if control_tag(get!(entry, control)) == control_tag(control) {
            raise_flags(entry, is.flags & !was.flags);
        }
        return;
    }
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
            signals::note(seen.place, entry, events);
        }
        if was.flags & FLOW_WATCHED != 0 {
            signals::watch(seen, entry);
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

//! The flow table's entry: one cache line a flow, both directions in one.

use core::mem::{offset_of, size_of};

/// Entries in a set; a map value is one set.
pub const SET_ENTRIES: usize = 16;

/// Nobody's; may still carry `home` marks of other flows.
pub const STATE_FREE: u8 = 0;
/// Being written by a packet.
pub const STATE_CLAIMING: u8 = 1;
/// TCP SYN seen, unproven.
pub const STATE_HALF_OPEN: u8 = 2;
/// TCP taken over in mid-stream, unproven.
pub const STATE_ADOPTED: u8 = 3;
/// UDP without an answer, unproven.
pub const STATE_UDP_UNANSWERED: u8 = 4;
/// TCP proven.
pub const STATE_ESTABLISHED: u8 = 5;
/// UDP with an answer.
pub const STATE_UDP_ANSWERED: u8 = 6;
/// TCP with a FIN both ways.
pub const STATE_CLOSING: u8 = 7;
/// TCP after a plausible RST.
pub const STATE_RESET: u8 = 8;

/// The client is IPv6.
pub const FLOW_IPV6: u16 = 1 << 0;
/// The pool is green; unset: blue.
pub const FLOW_GREEN: u16 = 1 << 1;
/// FIN seen from the client.
pub const FLOW_FIN_CLIENT: u16 = 1 << 2;
/// FIN seen from the backend.
pub const FLOW_FIN_BACKEND: u16 = 1 << 3;
/// Taken over in mid-stream or while settling, not chosen by weight.
pub const FLOW_ADOPTED: u16 = 1 << 4;
/// A SYN-ACK was seen: `seq_a`, `seq_b` and `high` hold sequences.
pub const FLOW_SYN_ACK: u16 = 1 << 5;
/// A segment from the backend was seen since the entry is proven.
pub const FLOW_REPLIED: u16 = 1 << 6;
/// UDP; unset: TCP.
pub const FLOW_UDP: u16 = 1 << 7;
/// The client has sent data.
pub const FLOW_CLIENT_DATA: u16 = 1 << 11;
/// The backend has sent data.
pub const FLOW_BACKEND_DATA: u16 = 1 << 12;
/// The SYN was sent again before any answer.
pub const FLOW_SYN_AGAIN: u16 = 1 << 13;
/// And once more: a failure, whatever comes.
pub const FLOW_SYN_LOST: u16 = 1 << 14;
/// What is sent again is counted: see `shifter_common::signals::is_watched`.
pub const FLOW_WATCHED: u16 = 1 << 15;
/// A cohort of its service forced the pool; not chosen by weight.
pub const FLOW_COHORT: u16 = 1 << 8;

/// In `home`: bit i of the low 16 says that an entry at distance i from this
/// place was inserted for a key whose home this place is.
pub const HOME_OVERFLOW: u32 = 1 << 16;

/// 64 bytes on a 64-byte boundary.
///
/// `home` belongs to the place and outlives the flow that lies there; it only
/// ever gains bits. Everything else belongs to the flow and is written under
/// a claim, but for the fields that established packets update in place.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowEntry {
    /// State, tag, sequence and stamp: see [`control_word`].
    pub control: u64,
    /// Network order; an IPv4 address in the first four bytes.
    pub client: [u8; 16],
    /// Network order.
    pub client_port: [u8; 2],
    /// `FLOW_*` bits.
    pub flags: u16,
    /// Service id.
    pub service: u16,
    /// Backend id.
    pub backend: u16,
    /// Next hop towards the client, or `NO_NEXT_HOP`.
    pub next_hop: u16,
    /// Low half of the route generation under which `next_hop` was found.
    pub route_generation: u16,
    /// See below: this one lies elsewhere in the layout that tests move to.
    #[cfg(feature = "next_layout")]
    pub seq_a: u32,
    /// See below.
    #[cfg(feature = "next_layout")]
    pub created: u32,
    /// Generation of the service under which the flow was chosen.
    pub generation: u32,
    /// Tick of the last packet of either direction.
    pub last_seen: u32,
    /// Tick of the first packet.
    #[cfg(not(feature = "next_layout"))]
    pub created: u32,
    /// Half-open: ISN of the first SYN-ACK. Later: the client's last acknowledgement.
    #[cfg(not(feature = "next_layout"))]
    pub seq_a: u32,
    /// Half-open: ISN of the last SYN-ACK. Later: the backend's last acknowledgement.
    pub seq_b: u32,
    /// Half-open: end of what the backend has sent. Later: bytes of both
    /// directions in units of 16, each packet rounded up, saturating.
    pub high: u32,
    /// See [`HOME_OVERFLOW`].
    pub home: u32,
}

const _: () = assert!(size_of::<FlowEntry>() == 64);
const _: () = assert!(offset_of!(FlowEntry, home) == 60);
#[cfg(not(feature = "next_layout"))]
const _: () = assert!(offset_of!(FlowEntry, generation) == 36);

/// A set of the table: one map value of 1,024 bytes.
pub type FlowSet = [FlowEntry; SET_ENTRIES];

/// Bytes in a unit of `high` once the flow is proven.
pub const BYTES_UNIT: u64 = 16;

/// A claim older than this many ticks (1 s) is free.
pub const CLAIM_TICKS: u16 = 60;

/// Bits 0..8 state, 8..32 tag, 32..48 sequence, 48..64 stamp (low half of the
/// tick of the last transition).
#[inline(always)]
pub const fn control_word(state: u8, tag: u32, sequence: u16, stamp: u16) -> u64 {
    state as u64 | (tag as u64 & 0xff_ffff) << 8 | (sequence as u64) << 32 | (stamp as u64) << 48
}

/// State of a control word.
#[inline(always)]
pub const fn control_state(control: u64) -> u8 {
    control as u8
}

/// Tag of a control word, 24 bits.
#[inline(always)]
pub const fn control_tag(control: u64) -> u32 {
    (control >> 8) as u32 & 0xff_ffff
}

/// Sequence of a control word.
#[inline(always)]
pub const fn control_sequence(control: u64) -> u16 {
    (control >> 32) as u16
}

/// Stamp of a control word.
#[inline(always)]
pub const fn control_stamp(control: u64) -> u16 {
    (control >> 48) as u16
}

/// Whether the state names a flow that packets can be matched to.
#[inline(always)]
pub const fn is_live(state: u8) -> bool {
    state >= STATE_HALF_OPEN
}

/// Whether the flow is proven (and not closing).
#[inline(always)]
pub const fn is_proven(state: u8) -> bool {
    state == STATE_ESTABLISHED || state == STATE_UDP_ANSWERED
}

/// Whether the flow is unproven.
#[inline(always)]
pub const fn is_unproven(state: u8) -> bool {
    state == STATE_HALF_OPEN || state == STATE_ADOPTED || state == STATE_UDP_UNANSWERED
}

/// Whether the flow is closing or was reset.
#[inline(always)]
pub const fn is_closing(state: u8) -> bool {
    state == STATE_CLOSING || state == STATE_RESET
}

/// Per state, four bits each: index of the timeout that holds.
const TIMEOUT_INDICES: u64 = {
    use super::config::*;
    let mut word = 0u64;
    let mut state = 0;
    while state < 9 {
        let index = match state {
            STATE_ESTABLISHED | STATE_ADOPTED => TIMEOUT_ESTABLISHED,
            STATE_CLOSING => TIMEOUT_CLOSING,
            STATE_RESET => TIMEOUT_RESET,
            STATE_UDP_UNANSWERED => TIMEOUT_UDP_UNANSWERED,
            STATE_UDP_ANSWERED => TIMEOUT_UDP_ANSWERED,
            _ => TIMEOUT_HALF_OPEN,
        };
        word |= (index as u64) << (4 * state);
        state += 1;
    }
    word
};

/// The timeout that holds in `state`, an index of `Config::timeouts`.
#[inline(always)]
pub const fn timeout_index(state: u8) -> usize {
    (TIMEOUT_INDICES >> (4 * (state & 15) as u32)) as usize & 7
}

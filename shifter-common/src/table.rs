//! Where a flow lies in the table, and when an entry gives way.

use crate::{
    abi::{
        config::{TIMEOUT_PROVEN_MAX, TIMEOUTS},
        flow::*,
    },
    hash::siphash13_and,
};

/// Places of a key: two sets, a home in each, and the tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Places {
    /// Indices of the two sets; never equal in a table of two sets or more.
    pub sets: [u32; 2],
    /// Home positions, `0..SET_ENTRIES`.
    pub homes: [u32; 2],
    /// 24 bits.
    pub tag: u32,
}

/// Keyed hash of a flow's client (its address as `address_words` gives it), port and
/// protocol: of 7 bytes with IPv4, of 19 with IPv6. SipHash tells inputs apart by their
/// length. Entries lie by it, so another hash is another layout.
#[inline(always)]
pub fn flow_hash(key: [u64; 2], client: [u64; 2], port: [u8; 2], protocol: u8, family: u8) -> u64 {
    let rest = u64::from(u16::from_ne_bytes(port)) | u64::from(protocol) << 16;
    let [low, high] = client;
    if family == 4 {
        siphash13_and::<0, 7>(key, [], low & 0xffff_ffff | rest << 32)
    } else {
        siphash13_and::<2, 3>(key, [low, high], rest)
    }
}

/// Places for a hash in a table of `set_mask + 1` sets.
#[inline(always)]
pub fn places(hash: u64, set_mask: u32) -> Places {
    let first = hash as u32 & set_mask;
    let mut second = (hash >> 32) as u32 & set_mask;
    if second == first {
        second = (second ^ 1) & set_mask;
    }
    Places {
        sets: [first, second],
        homes: [(hash >> 28) as u32 & 15, (hash >> 60) as u32 & 15],
        tag: (hash >> 40) as u32 & 0xff_ffff,
    }
}

/// How willingly an entry gives way to a new flow; 0: not at all.
pub const RANK_NONE: u32 = 0;
/// Unproven; the oldest first.
pub const RANK_UNPROVEN: u32 = 1;
/// Closing or reset.
pub const RANK_CLOSING: u32 = 2;
/// Past its timeout.
pub const RANK_EXPIRED: u32 = 3;
/// Free, or claimed by a packet that never came back.
pub const RANK_FREE: u32 = 4;

/// Whether `last_seen` is longer ago than the timeout of `state`.
#[inline(always)]
pub fn is_expired(state: u8, last_seen: u32, now: u32, timeouts: &[u32; TIMEOUTS]) -> bool {
    let idle = now.wrapping_sub(last_seen);
    // Another CPU may be one tick ahead.
    let behind = idle >> 31;
    u32::from(idle > timeouts[timeout_index(state)]) & (behind ^ 1) != 0
}

/// Whether an entry goes by time alone: a proven one only after days.
#[inline(always)]
pub fn is_due(state: u8, last_seen: u32, now: u32, timeouts: &[u32; TIMEOUTS]) -> bool {
    let idle = now.wrapping_sub(last_seen);
    if (idle as i32) <= 0 || !is_live(state) {
        return false;
    }
    let timeout = if state == STATE_ESTABLISHED {
        timeouts[TIMEOUT_PROVEN_MAX]
    } else {
        timeouts[timeout_index(state)]
    };
    idle > timeout
}

/// Whether a claim is so old that its packet cannot come back. One from the
/// next tick is fresh: the other CPU has read the clock later.
#[inline(always)]
pub fn is_claim_stale(control: u64, now: u32) -> bool {
    let age = (now as u16).wrapping_sub(control_stamp(control));
    age.wrapping_add(CLAIM_TICKS) > 2 * CLAIM_TICKS
}

/// Ticks since an entry was last seen; none where another CPU is ahead.
#[inline(always)]
pub fn idle_ticks(last_seen: u32, now: u32) -> u32 {
    let idle = now.wrapping_sub(last_seen);
    // Without a branch, as in `rank`.
    idle & (idle >> 31).wrapping_sub(1)
}

/// Per state, four bits each: how willingly it gives way before its timeout.
const RANKS: u64 = nibbles([
    RANK_FREE,     // free
    RANK_NONE,     // claiming
    RANK_UNPROVEN, // half open
    RANK_UNPROVEN, // adopted
    RANK_UNPROVEN, // udp unanswered
    RANK_NONE,     // established
    RANK_NONE,     // udp answered
    RANK_CLOSING,  // closing
    RANK_CLOSING,  // reset
]);

const fn nibbles(values: [u32; 9]) -> u64 {
    let mut word = 0;
    let mut i = 0;
    while i < values.len() {
        word |= (values[i] as u64) << (4 * i);
        i += 1;
    }
    word
}

/// How willingly the entry gives way. Without a branch: the verifier follows
/// every path of a loop over a set.
#[inline(always)]
pub fn rank(control: u64, last_seen: u32, now: u32, timeouts: &[u32; TIMEOUTS]) -> u32 {
    let state = control_state(control);
    let rank = (RANKS >> (4 * u32::from(state & 15))) as u32 & 15;
    let live = u32::from(is_live(state));
    let expired = live & u32::from(is_expired(state, last_seen, now, timeouts));
    let stale = u32::from(state == STATE_CLAIMING) & u32::from(is_claim_stale(control, now));
    // Expired beats the state's own rank, a stale claim is free.
    let rank = rank * (1 - expired) + RANK_EXPIRED * expired;
    rank + RANK_FREE * stale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        abi::config::{DEFAULT_TIMEOUTS_S, ticks_of_seconds},
        hash::siphash13,
    };

    fn timeouts() -> [u32; TIMEOUTS] {
        DEFAULT_TIMEOUTS_S.map(ticks_of_seconds)
    }

    #[test]
    fn the_two_sets_of_a_key_differ() {
        for i in 0..10_000u64 {
            let places = places(siphash13([1, 2], [i]), 63);
            assert_ne!(places.sets[0], places.sets[1]);
            assert!(places.sets.iter().all(|s| *s <= 63));
        }
    }

    #[test]
    fn a_proven_flow_never_gives_way_before_its_timeout() {
        let t = timeouts();
        let control = control_word(STATE_ESTABLISHED, 5, 1, 0);
        assert_eq!(rank(control, 1_000, 1_000 + t[1], &t), RANK_NONE);
        assert_eq!(rank(control, 1_000, 1_001 + t[1], &t), RANK_EXPIRED);
        assert!(!is_due(STATE_ESTABLISHED, 1_000, 1_001 + t[1], &t));
        assert!(is_due(STATE_ESTABLISHED, 1_000, 1_001 + t[6], &t));
    }

    #[test]
    fn a_clock_that_is_one_tick_behind_expires_nothing() {
        let t = timeouts();
        assert!(!is_expired(STATE_RESET, 1_000, 999, &t));
        assert!(!is_due(STATE_RESET, 1_000, 999, &t));
    }

    #[test]
    fn a_claim_is_free_after_a_second() {
        let t = timeouts();
        let control = control_word(STATE_CLAIMING, 5, 1, 65_530);
        assert_eq!(rank(control, 0, 65_540, &t), RANK_NONE);
        assert_eq!(rank(control, 0, 65_530 + 61, &t), RANK_FREE);
    }

    #[test]
    fn a_claim_from_the_next_tick_is_not_stolen() {
        let t = timeouts();
        let control = control_word(STATE_CLAIMING, 5, 1, 1_001);
        assert_eq!(rank(control, 0, 1_000, &t), RANK_NONE);
        let control = control_word(STATE_CLAIMING, 5, 1, 0);
        assert_eq!(rank(control, 0, 65_535, &t), RANK_NONE);
    }

    #[test]
    fn an_entry_from_the_next_tick_is_the_youngest() {
        assert_eq!(idle_ticks(1_001, 1_000), 0);
        assert_eq!(idle_ticks(1_000, 1_000), 0);
        assert_eq!(idle_ticks(1_000, 1_500), 500);
    }

    #[test]
    fn control_words_give_back_their_parts() {
        let control = control_word(STATE_CLOSING, 0xab_cdef, 0x1234, 0xfedc);
        assert_eq!(control_state(control), STATE_CLOSING);
        assert_eq!(control_tag(control), 0xab_cdef);
        assert_eq!(control_sequence(control), 0x1234);
        assert_eq!(control_stamp(control), 0xfedc);
    }
}

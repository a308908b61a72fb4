//! The life of an entry of the flow table as pure functions: which control word
//! follows which, and who gives way where two packets of one flow make an entry
//! at once. Packets, the agent and the exhaustive check (tests/life/) call them.

use crate::{
    abi::flow::*,
    table::{idle_ticks, is_claim_stale},
};

/// How often a packet looks whether a rival at a higher place gave up.
pub const RIVAL_PASSES: u32 = 4;

/// No rival.
pub const RIVAL_NONE: u32 = 0;
/// A visible entry with the flow's tag: a rival if it is of the same flow.
pub const RIVAL_LIVE: u32 = 1;
/// Another packet claims a lower place: it wins.
pub const RIVAL_LOWER: u32 = 2;
/// Another packet claims a higher place: it gives up, unless it looked before
/// this packet's claim was there.
pub const RIVAL_HIGHER: u32 = 3;

/// The word that claims an entry seen as `seen`.
#[inline(always)]
pub const fn claimed(seen: u64, tag: u32, now: u32) -> u64 {
    let sequence = control_sequence(seen).wrapping_add(1);
    control_word(STATE_CLAIMING, tag, sequence, now as u16)
}

/// The word under which the agent fills an entry for a flow of the table before. To
/// packets it is a proven flow that none of them belongs to: its tag is neither that
/// flow's nor that of who lay there. So, unlike a claim, it may last as long as the
/// agent is kept from running.
#[inline(always)]
pub const fn held(seen: u64, tag: u32, now: u32) -> u64 {
    let sequence = control_sequence(seen).wrapping_add(1);
    let other = tag ^ 0xff_ffff;
    let nobody = if other == control_tag(seen) {
        other ^ 1
    } else {
        other
    };
    control_word(STATE_ESTABLISHED, nobody, sequence, now as u16)
}

/// The claim of the flow for an entry that is held and filled: packets see it as a
/// rival, and nothing is written under it.
#[inline(always)]
pub const fn offered(held: u64, tag: u32, now: u32) -> u64 {
    control_word(STATE_CLAIMING, tag, control_sequence(held), now as u16)
}

/// The word of the same flow in another state: a claim made visible, or a transition.
#[inline(always)]
pub const fn moved(seen: u64, state: u8, now: u32) -> u64 {
    control_word(state, control_tag(seen), control_sequence(seen), now as u16)
}

/// The word of an entry given back. The sequence stays, so that no word ever
/// comes again while somebody may still hold it.
#[inline(always)]
pub const fn freed(seen: u64, now: u32) -> u64 {
    control_word(STATE_FREE, 0, control_sequence(seen), now as u16)
}

/// What an entry at another place is to a packet that holds a claim; one at
/// `is_lower` place goes before it. A claim whose packet cannot come back is none.
#[inline(always)]
pub fn rival(control: u64, tag: u32, now: u32, is_lower: bool) -> u32 {
    if control_tag(control) != tag {
        return RIVAL_NONE;
    }
    let state = control_state(control);
    if is_live(state) {
        return RIVAL_LIVE;
    }
    if state != STATE_CLAIMING || is_claim_stale(control, now) {
        return RIVAL_NONE;
    }
    if is_lower { RIVAL_LOWER } else { RIVAL_HIGHER }
}

/// Whether a packet gives its claim up after `passes` looks, the last of which
/// ended with `rival`; `None`: it looks again. It goes on only after a look that
/// found nobody. A rival at a higher place that does not give up has looked
/// before this packet's claim was there, and makes its entry visible: whoever
/// went on all the same would make a second one.
#[inline(always)]
pub const fn gives_up(rival: u32, passes: u32) -> Option<bool> {
    match rival {
        RIVAL_NONE => Some(false),
        RIVAL_HIGHER if passes < RIVAL_PASSES => None,
        _ => Some(true),
    }
}

/// Whether a packet has to renew the stamp of its entry: it was idle so long
/// that somebody may be about to free it for that. One second, less than any timeout.
#[inline(always)]
pub fn needs_stamp(last_seen: u32, now: u32) -> bool {
    idle_ticks(last_seen, now) > CLAIM_TICKS as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_never_gives_back_a_word_that_was_there() {
        let live = control_word(STATE_HALF_OPEN, 7, 3, 100);
        let free = freed(live, 101);
        assert_eq!(control_sequence(claimed(free, 7, 101)), 4);
        assert_eq!(control_sequence(claimed(live, 7, 101)), 4);
        assert_eq!(control_tag(free), 0);
    }

    #[test]
    fn a_held_entry_is_found_by_nobody_and_gives_way_to_nobody() {
        use crate::{
            abi::config::{DEFAULT_TIMEOUTS_S, ticks_of_seconds},
            table::{RANK_NONE, rank},
        };
        let timeouts = DEFAULT_TIMEOUTS_S.map(ticks_of_seconds);
        let tag = 0x12_3456;
        for before in [tag, tag ^ 0xff_ffff, 0] {
            let seen = control_word(STATE_FREE, before, 3, 100);
            let held = held(seen, tag, 1_000);
            assert_ne!(control_tag(held), before);
            assert_ne!(control_tag(held), tag);
            // Longer than any claim.
            assert_eq!(rank(held, 1_000, 1_000 + 300_000, &timeouts), RANK_NONE);
            let claim = offered(held, tag, 5_000);
            assert_eq!(control_sequence(claim), 4);
            assert_eq!(rival(claim, tag, 5_030, true), RIVAL_LOWER);
        }
    }

    #[test]
    fn a_stale_claim_is_no_rival() {
        let claim = control_word(STATE_CLAIMING, 7, 1, 100);
        assert_eq!(rival(claim, 7, 130, false), RIVAL_HIGHER);
        assert_eq!(rival(claim, 7, 130, true), RIVAL_LOWER);
        assert_eq!(rival(claim, 8, 130, true), RIVAL_NONE);
        assert_eq!(rival(claim, 7, 161, true), RIVAL_NONE);
    }

    #[test]
    fn nobody_goes_on_over_a_claim() {
        assert_eq!(gives_up(RIVAL_NONE, 1), Some(false));
        assert_eq!(gives_up(RIVAL_HIGHER, 1), None);
        assert_eq!(gives_up(RIVAL_HIGHER, RIVAL_PASSES), Some(true));
        assert_eq!(gives_up(RIVAL_LOWER, 1), Some(true));
        assert_eq!(gives_up(RIVAL_LIVE, 1), Some(true));
    }

    #[test]
    fn a_stamp_is_renewed_after_a_second() {
        assert!(!needs_stamp(1_000, 1_060));
        assert!(needs_stamp(1_000, 1_061));
        assert!(!needs_stamp(1_001, 1_000), "another CPU is ahead");
    }
}

//! What a segment tells of how its flow does, as pure functions: which counters
//! it moves, what is a failure, and what is sent again.

use crate::{
    abi::{
        flow::*,
        signals::{
            ANSWERED, CLIENT_RESETS, REFUSED, RESETS_AFTER_DATA, RESETS_BEFORE_DATA,
            SYN_RETRANSMITS,
        },
    },
    tcp_state::{Segment, TcpState, after, is_opening},
};

/// Event: a failure that the breaker counts. Lower bits are `1 << counter`.
pub const EVENT_FAILED: u32 = 1 << 16;
/// Event: the client's first data.
pub const EVENT_CLIENT_DATA: u32 = 1 << 18;
/// Event: the backend's first data, which answers the client's.
pub const EVENT_BACKEND_DATA: u32 = 1 << 19;

/// Time unit of `FlowTimes`, as a power of two of ns.
const UNIT_SHIFT: u32 = 10;
/// Ticks of 16.8 ms after which units are not asked: 18 minutes, longer than any bucket.
const ROUND_TICKS: u32 = 1 << 16;

const fn event(counter: usize) -> u32 {
    1 << counter
}

/// Events of a segment that took a flow from one state to another. Adopted flows
/// have none: how they began was not seen.
#[inline(always)]
pub fn events(was: &TcpState, is: &TcpState, segment: Segment, from_backend: bool) -> u32 {
    if was.flags & FLOW_ADOPTED != 0 {
        return 0;
    }
    let raised = is.flags & !was.flags;
    let mut events = 0;
    if from_backend {
        if raised & FLOW_SYN_ACK != 0 {
            events |= event(ANSWERED);
        }
        if raised & FLOW_BACKEND_DATA != 0 && was.flags & FLOW_CLIENT_DATA != 0 {
            events |= EVENT_BACKEND_DATA;
        }
        if is.state == STATE_RESET {
            events |= backend_reset(was);
        }
    } else {
        if was.state == STATE_HALF_OPEN
            && was.flags & FLOW_SYN_ACK == 0
            && is_opening(segment.flags)
        {
            events |= event(SYN_RETRANSMITS);
        }
        if raised & FLOW_SYN_LOST != 0 {
            events |= EVENT_FAILED;
        }
        if raised & FLOW_CLIENT_DATA != 0 {
            events |= EVENT_CLIENT_DATA;
        }
        // Who has said that it will send no more and then resets what still
        // comes ends the connection as it likes.
        if was.state == STATE_ESTABLISHED
            && is.state == STATE_RESET
            && was.flags & FLOW_FIN_CLIENT == 0
        {
            events |= event(CLIENT_RESETS);
        }
    }
    events
}

/// Events of a plausible RST from the backend.
#[inline(always)]
fn backend_reset(was: &TcpState) -> u32 {
    if was.state == STATE_HALF_OPEN && was.flags & FLOW_SYN_ACK == 0 {
        return event(REFUSED) | failed_once(was.flags);
    }
    if !matches!(was.state, STATE_HALF_OPEN | STATE_ESTABLISHED)
        || was.flags & FLOW_FIN_BACKEND != 0
    {
        return 0;
    }
    if was.flags & FLOW_BACKEND_DATA == 0 {
        event(RESETS_BEFORE_DATA) | failed_once(was.flags)
    } else {
        event(RESETS_AFTER_DATA)
    }
}

/// A flow fails once: one whose SYN was sent twice in vain has.
#[inline(always)]
const fn failed_once(flags: u16) -> u32 {
    if flags & FLOW_SYN_LOST == 0 {
        EVENT_FAILED
    } else {
        0
    }
}

/// Whether a flow that ends in this state, by time or by giving way, was never answered.
#[inline(always)]
pub const fn is_unanswered(state: u8, flags: u16) -> bool {
    state == STATE_HALF_OPEN && flags & FLOW_SYN_ACK == 0
}

/// Events of a flow that gives way unanswered.
#[inline(always)]
pub const fn unanswered_events(flags: u16) -> u32 {
    event(crate::abi::signals::UNANSWERED) | failed_once(flags)
}

/// Whether a flow is watched for what is sent again: one in `mask + 1`, drawn by
/// bits of its keyed hash that say nothing of where it lies.
#[inline(always)]
pub const fn is_watched(tag: u32, mask: u32) -> bool {
    tag & mask == 0
}

/// End of what a side has sent after a segment, and whether that held data sent
/// before. What comes late looks the same: order on the way is not restored here.
#[inline(always)]
pub const fn sent(end: u32, sequence: u32, payload: u32) -> (u32, bool) {
    if payload == 0 {
        return (end, false);
    }
    let here = sequence.wrapping_add(payload);
    if end == 0 {
        return (here, false);
    }
    let again = after(end, sequence);
    (if after(here, end) { here } else { end }, again)
}

/// A time in units of `FlowTimes`; never 0, which is unset.
#[inline(always)]
pub const fn units(ns: u64) -> u32 {
    let units = (ns >> UNIT_SHIFT) as u32;
    if units == 0 { 1 } else { units }
}

/// ns between two times in units, the first of which was at `since_tick`.
#[inline(always)]
pub const fn elapsed_ns(since: u32, now: u32, since_tick: u32, now_tick: u32) -> u64 {
    let ticks = now_tick.wrapping_sub(since_tick);
    // A packet on another CPU may be a tick ahead.
    if (ticks as i32) > 0 && ticks >= ROUND_TICKS {
        return u64::MAX;
    }
    let units = now.wrapping_sub(since);
    // Of what comes round in 73 minutes, less than half has passed here.
    if (units as i32) < 0 {
        return 0;
    }
    (units as u64) << UNIT_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        abi::signals::UNANSWERED,
        packet::parse::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    };

    const ISN: u32 = 1_000;

    fn segment(flags: u8, sequence: u32, acknowledgement: u32, payload: u32) -> Segment {
        Segment {
            flags,
            sequence,
            acknowledgement,
            payload,
        }
    }

    /// A flow, and the events of all its segments so far.
    #[derive(Clone, Copy)]
    struct Flow(TcpState, u32);

    impl Flow {
        fn new() -> Self {
            let state = TcpState {
                state: STATE_HALF_OPEN,
                flags: 0,
                seq_a: 0,
                seq_b: 0,
                high: 0,
            };
            Self(state, 0)
        }

        fn client(self, flags: u8, sequence: u32, acknowledgement: u32, payload: u32) -> Self {
            let segment = segment(flags, sequence, acknowledgement, payload);
            let is = self.0.from_client(segment);
            Self(is, self.1 | events(&self.0, &is, segment, false))
        }

        fn backend(self, flags: u8, sequence: u32, acknowledgement: u32, payload: u32) -> Self {
            let segment = segment(flags, sequence, acknowledgement, payload);
            let is = self.0.from_backend(segment);
            Self(is, self.1 | events(&self.0, &is, segment, true))
        }

        fn answered() -> Self {
            Self::new().backend(TCP_SYN | TCP_ACK, ISN, 101, 0)
        }

        fn established() -> Self {
            Self::answered().client(TCP_ACK, 101, ISN + 1, 0)
        }

        fn has(&self, counter: usize) -> bool {
            self.1 & event(counter) != 0
        }
    }

    #[test]
    fn a_handshake_is_answered_once() {
        let flow = Flow::answered();
        assert_eq!(flow.1, event(ANSWERED));
        let again = Flow(flow.0, 0).backend(TCP_SYN | TCP_ACK, ISN, 101, 0);
        assert_eq!(again.1, 0);
        assert_eq!(Flow(flow.0, 0).client(TCP_SYN, 100, 0, 0).1, 0);
    }

    #[test]
    fn the_second_syn_sent_again_is_a_failure_and_only_one() {
        let once = Flow::new().client(TCP_SYN, 100, 0, 0);
        assert_eq!(once.1, event(SYN_RETRANSMITS));
        let twice = once.client(TCP_SYN, 100, 0, 0);
        assert_eq!(twice.1, event(SYN_RETRANSMITS) | EVENT_FAILED);
        let later = Flow(twice.0, 0).client(TCP_SYN, 100, 0, 0);
        assert_eq!(later.1, event(SYN_RETRANSMITS));
        let refused = Flow(twice.0, 0).backend(TCP_RST | TCP_ACK, 0, 101, 0);
        assert_eq!(refused.1, event(REFUSED));
        assert_eq!(unanswered_events(twice.0.flags), event(UNANSWERED));
        assert_eq!(
            unanswered_events(once.0.flags),
            event(UNANSWERED) | EVENT_FAILED
        );
    }

    #[test]
    fn a_reset_is_told_apart_by_what_came_before_it() {
        let refused = Flow::new().backend(TCP_RST | TCP_ACK, 0, 101, 0);
        assert_eq!(refused.1, event(REFUSED) | EVENT_FAILED);
        let before = Flow::established()
            .client(TCP_ACK, 101, ISN + 1, 50)
            .backend(TCP_RST, ISN + 1, 0, 0);
        assert!(before.has(RESETS_BEFORE_DATA) && before.1 & EVENT_FAILED != 0);
        let after = Flow::established()
            .client(TCP_ACK, 101, ISN + 1, 50)
            .backend(TCP_ACK, ISN + 1, 151, 9)
            .client(TCP_ACK, 151, ISN + 10, 0)
            .backend(TCP_RST, ISN + 10, 0, 0);
        assert!(after.has(RESETS_AFTER_DATA) && after.1 & EVENT_FAILED == 0);
        assert!(!after.has(RESETS_BEFORE_DATA));
        let client = Flow::established().client(TCP_RST, 101, 0, 0);
        assert!(client.has(CLIENT_RESETS));
        let implausible = Flow::established().backend(TCP_RST, 7, 0, 0);
        assert!(!implausible.has(RESETS_BEFORE_DATA));
    }

    #[test]
    fn a_reset_after_a_fin_of_the_same_side_is_no_failure() {
        let backend = Flow::established()
            .backend(TCP_FIN | TCP_ACK, ISN + 1, 101, 0)
            .client(TCP_ACK, 101, ISN + 2, 5)
            .backend(TCP_RST, ISN + 2, 0, 0);
        assert_eq!(backend.0.state, STATE_RESET);
        assert!(!backend.has(RESETS_BEFORE_DATA) && backend.1 & EVENT_FAILED == 0);
        let client = Flow::established()
            .client(TCP_FIN | TCP_ACK, 101, ISN + 1, 0)
            .backend(TCP_ACK, ISN + 1, 102, 5)
            .client(TCP_RST, 102, 0, 0);
        assert!(!client.has(CLIENT_RESETS));
    }

    #[test]
    fn first_data_is_seen_once_each_way_and_only_as_an_answer() {
        let asked = Flow::established().client(TCP_ACK, 101, ISN + 1, 50);
        assert!(asked.1 & EVENT_CLIENT_DATA != 0);
        let again = Flow(asked.0, 0).client(TCP_ACK, 151, ISN + 1, 50);
        assert_eq!(again.1, 0);
        let replied = again.backend(TCP_ACK, ISN + 1, 201, 9);
        assert_eq!(replied.1, EVENT_BACKEND_DATA);
        // Who greets first has answered nothing.
        let greeted = Flow::established().backend(TCP_ACK, ISN + 1, 101, 9);
        assert_eq!(greeted.1 & EVENT_BACKEND_DATA, 0);
        assert!(greeted.0.flags & FLOW_BACKEND_DATA != 0);
        let with_proof = Flow::answered().client(TCP_ACK, 101, ISN + 1, 50);
        assert!(with_proof.1 & EVENT_CLIENT_DATA != 0);
    }

    #[test]
    fn adopted_flows_tell_nothing() {
        let mut flow = Flow::established();
        flow.0.flags |= FLOW_ADOPTED;
        assert_eq!(Flow(flow.0, 0).backend(TCP_RST, ISN + 1, 0, 0).1, 0);
    }

    #[test]
    fn what_lies_before_the_end_was_sent_again() {
        assert_eq!(sent(0, 100, 10), (110, false));
        assert_eq!(sent(110, 110, 10), (120, false));
        assert_eq!(sent(120, 110, 10), (120, true));
        assert_eq!(sent(120, 110, 20), (130, true));
        assert_eq!(sent(120, 119, 0), (120, false));
        assert_eq!(sent(u32::MAX - 4, u32::MAX - 4, 10), (5, false));
        assert_eq!(sent(5, u32::MAX - 4, 10), (5, true));
    }

    #[test]
    fn times_come_round_without_harm() {
        assert_eq!(units(0), 1);
        assert_eq!(elapsed_ns(units(2_048), units(4_096), 5, 5), 2_048);
        assert_eq!(elapsed_ns(u32::MAX, 1, 5, 6), 2_048);
        assert_eq!(elapsed_ns(10, 9, 6, 5), 0);
        // An hour: longer than any bucket is wide.
        let hour = 3_600_000_000_000u64;
        assert_eq!(
            elapsed_ns(units(1_024), units(1_024 + hour), 0, (hour >> 24) as u32),
            u64::MAX
        );
    }
}

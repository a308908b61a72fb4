//! What a TCP segment does to a flow, as a pure function.

use crate::{
    abi::flow::*,
    packet::parse::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
};

/// What of a segment matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// `TCP_*` bits.
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number; means something with `TCP_ACK` only.
    pub acknowledgement: u32,
    /// Bytes of data.
    pub payload: u32,
}

/// The part of a flow's entry that segments change. Half-open, `seq_a` and
/// `seq_b` are the ISNs of the first and the last SYN-ACK and `high` the end of
/// what the backend sent; later they are the last acknowledgements of client
/// and backend, and `high` counts bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpState {
    /// `STATE_*`.
    pub state: u8,
    /// `FLOW_*` bits.
    pub flags: u16,
    /// See [`TcpState`].
    pub seq_a: u32,
    /// See [`TcpState`].
    pub seq_b: u32,
    /// See [`TcpState`].
    pub high: u32,
}

/// Whether a segment opens a connection.
#[inline(always)]
pub const fn is_opening(flags: u8) -> bool {
    flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN
}

impl TcpState {
    /// After a segment from the client.
    #[inline(always)]
    pub fn from_client(mut self, segment: Segment) -> Self {
        let acks = segment.flags & TCP_ACK != 0;
        if self.state == STATE_HALF_OPEN {
            if acks && segment.flags & TCP_RST == 0 && self.is_proof(segment.acknowledgement) {
                self.state = STATE_ESTABLISHED;
                self.seq_a = segment.acknowledgement;
                // What the client sends next is what the backend has acknowledged.
                self.seq_b = segment.sequence;
                self.high = 0;
                if segment.flags & TCP_FIN != 0 {
                    self.flags |= FLOW_FIN_CLIENT;
                }
                self.note_client_data(segment.payload);
            } else if is_opening(segment.flags) && self.flags & FLOW_SYN_ACK == 0 {
                self.flags |= if self.flags & FLOW_SYN_AGAIN == 0 {
                    FLOW_SYN_AGAIN
                } else {
                    FLOW_SYN_LOST
                };
            }
            return self;
        }
        if segment.flags & TCP_RST != 0 {
            if segment.sequence == self.seq_b && self.state != STATE_ADOPTED {
                self.state = STATE_RESET;
            }
            return self;
        }
        if segment.flags & TCP_SYN != 0 {
            return self;
        }
        if acks {
            self.seq_a = segment.acknowledgement;
        }
        self.note_client_data(segment.payload);
        if segment.flags & TCP_FIN != 0 {
            self.flags |= FLOW_FIN_CLIENT;
        }
        self.close_if_both()
    }

    /// After a segment from the backend.
    #[inline(always)]
    pub fn from_backend(mut self, segment: Segment) -> Self {
        if segment.flags & TCP_RST != 0 {
            let plausible = match self.state {
                // It answers the SYN, or what followed it.
                STATE_HALF_OPEN => true,
                // Of an adopted flow too: who knows of no connection resets at
                // what it was asked to acknowledge (RFC 9293, section 3.5.2).
                _ => segment.sequence == self.seq_a,
            };
            if plausible {
                if self.state == STATE_HALF_OPEN {
                    // From here on it counts bytes.
                    self.high = 0;
                }
                self.state = STATE_RESET;
            }
            return self;
        }
        match self.state {
            STATE_HALF_OPEN => return self.half_open_answer(segment),
            STATE_ADOPTED => {
                self.state = STATE_ESTABLISHED;
                self.seq_a = segment.sequence;
            }
            // It goes on after all: the RST was none of its peer's.
            STATE_RESET => {
                self.state = STATE_ESTABLISHED;
            }
            _ => {}
        }
        self.flags |= FLOW_REPLIED;
        if segment.payload != 0 {
            self.flags |= FLOW_BACKEND_DATA;
        }
        if segment.flags & TCP_ACK != 0 {
            self.seq_b = segment.acknowledgement;
        }
        if segment.flags & TCP_FIN != 0 {
            self.flags |= FLOW_FIN_BACKEND;
        }
        self.close_if_both()
    }

    #[inline(always)]
    fn half_open_answer(mut self, segment: Segment) -> Self {
        let is_syn_ack = segment.flags & (TCP_SYN | TCP_ACK) == TCP_SYN | TCP_ACK;
        if is_syn_ack {
            if self.flags & FLOW_SYN_ACK == 0 {
                self.seq_a = segment.sequence;
            }
            self.flags |= FLOW_SYN_ACK;
            self.seq_b = segment.sequence;
            self.high = segment
                .sequence
                .wrapping_add(1)
                .wrapping_add(segment.payload);
        } else if self.flags & FLOW_SYN_ACK != 0 {
            // Data before the handshake is complete: Fast Open (RFC 7413).
            let end = segment.sequence.wrapping_add(segment.payload);
            if segment.payload != 0 {
                self.flags |= FLOW_BACKEND_DATA;
            }
            if after(end, self.high) {
                self.high = end;
            }
        }
        self
    }

    #[inline(always)]
    fn note_client_data(&mut self, payload: u32) {
        if payload != 0 {
            self.flags |= FLOW_CLIENT_DATA;
        }
    }

    /// Whether an acknowledgement covers more than an ISN and no more than was sent.
    #[inline(always)]
    fn is_proof(&self, acknowledgement: u32) -> bool {
        if self.flags & FLOW_SYN_ACK == 0 {
            return false;
        }
        acknowledgement == self.seq_a.wrapping_add(1)
            || (after(acknowledgement, self.seq_b) && !after(acknowledgement, self.high))
    }

    #[inline(always)]
    fn close_if_both(mut self) -> Self {
        let both = FLOW_FIN_CLIENT | FLOW_FIN_BACKEND;
        if self.flags & both == both && self.state == STATE_ESTABLISHED {
            self.state = STATE_CLOSING;
        }
        self
    }
}

/// Whether sequence number `a` comes after `b` (RFC 9293, section 3.4).
#[inline(always)]
pub const fn after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISN: u32 = 0xffff_fff0;

    fn segment(flags: u8, sequence: u32, acknowledgement: u32, payload: u32) -> Segment {
        Segment {
            flags,
            sequence,
            acknowledgement,
            payload,
        }
    }

    fn half_open() -> TcpState {
        TcpState {
            state: STATE_HALF_OPEN,
            flags: 0,
            seq_a: 0,
            seq_b: 0,
            high: 0,
        }
    }

    fn answered() -> TcpState {
        half_open().from_backend(segment(TCP_SYN | TCP_ACK, ISN, 101, 0))
    }

    fn established() -> TcpState {
        answered().from_client(segment(TCP_ACK, 101, ISN.wrapping_add(1), 0))
    }

    #[test]
    fn the_acknowledgement_of_the_isn_proves() {
        assert_eq!(established().state, STATE_ESTABLISHED);
    }

    #[test]
    fn a_guessed_acknowledgement_proves_nothing() {
        for guess in [0, ISN, ISN.wrapping_sub(1), ISN.wrapping_add(2), 101] {
            let flow = answered().from_client(segment(TCP_ACK, 101, guess, 0));
            assert_eq!(flow, answered(), "{guess}");
        }
        let unanswered = half_open().from_client(segment(TCP_ACK, 101, 1, 0));
        assert_eq!(unanswered, half_open());
    }

    #[test]
    fn the_isns_of_the_first_and_the_last_syn_ack_both_count() {
        let twice = answered().from_backend(segment(TCP_SYN | TCP_ACK, 5_000, 101, 0));
        for isn in [ISN, 5_000] {
            let flow = twice.from_client(segment(TCP_ACK, 101, isn.wrapping_add(1), 0));
            assert_eq!(flow.state, STATE_ESTABLISHED);
        }
    }

    #[test]
    fn data_of_fast_open_may_be_acknowledged_up_to_its_end() {
        let flow = answered().from_backend(segment(TCP_ACK, ISN.wrapping_add(1), 101, 1000));
        let ack = |n: u32| {
            flow.from_client(segment(TCP_ACK, 101, ISN.wrapping_add(n), 0))
                .state
        };
        assert_eq!(ack(1_001), STATE_ESTABLISHED);
        assert_eq!(ack(500), STATE_ESTABLISHED);
        assert_eq!(ack(1_002), STATE_HALF_OPEN);
    }

    #[test]
    fn fins_both_ways_close() {
        let flow =
            established().from_client(segment(TCP_FIN | TCP_ACK, 101, ISN.wrapping_add(1), 0));
        assert_eq!(flow.state, STATE_ESTABLISHED);
        let flow = flow.from_backend(segment(TCP_FIN | TCP_ACK, ISN.wrapping_add(1), 102, 0));
        assert_eq!(flow.state, STATE_CLOSING);
    }

    #[test]
    fn only_a_reset_at_the_last_acknowledgement_counts() {
        let flow = established().from_backend(segment(TCP_ACK, ISN.wrapping_add(1), 150, 10));
        assert_eq!(
            flow.from_client(segment(TCP_RST, 150, 0, 0)).state,
            STATE_RESET
        );
        assert_eq!(flow.from_client(segment(TCP_RST, 151, 0, 0)), flow);
        let last = ISN.wrapping_add(1);
        assert_eq!(
            flow.from_backend(segment(TCP_RST, last, 0, 0)).state,
            STATE_RESET
        );
        assert_eq!(
            flow.from_backend(segment(TCP_RST, last.wrapping_add(9), 0, 0)),
            flow
        );
    }

    #[test]
    fn data_from_the_backend_after_a_reset_makes_it_established_again() {
        let flow = established().from_client(segment(TCP_RST, 101, 0, 0));
        assert_eq!(flow.state, STATE_RESET);
        let flow = flow.from_backend(segment(TCP_ACK, ISN.wrapping_add(1), 101, 5));
        assert_eq!(flow.state, STATE_ESTABLISHED);
    }

    #[test]
    fn an_adopted_flow_is_proven_by_anything_but_a_reset() {
        let adopted = TcpState {
            state: STATE_ADOPTED,
            ..half_open()
        };
        assert_eq!(
            adopted.from_backend(segment(TCP_ACK, 7, 9, 1)).state,
            STATE_ESTABLISHED
        );
        assert_eq!(adopted.from_backend(segment(TCP_RST, 7, 9, 0)), adopted);
    }

    #[test]
    fn an_adopted_flow_that_nobody_knows_is_reset() {
        let adopted = TcpState {
            state: STATE_ADOPTED,
            ..half_open()
        };
        let flow = adopted.from_client(segment(TCP_ACK, 101, 5_001, 10));
        assert_eq!(flow.from_backend(segment(TCP_RST, 5_002, 0, 0)), flow);
        let flow = flow.from_backend(segment(TCP_RST, 5_001, 0, 0));
        assert_eq!(flow.state, STATE_RESET);
    }

    #[test]
    fn a_reset_answers_a_syn() {
        assert_eq!(
            half_open()
                .from_backend(segment(TCP_RST | TCP_ACK, 0, 101, 0))
                .state,
            STATE_RESET
        );
    }

    #[test]
    fn a_refused_flow_has_carried_no_bytes() {
        let flow = answered().from_backend(segment(TCP_RST, 0, 101, 0));
        assert_eq!((flow.state, flow.high), (STATE_RESET, 0));
    }

    #[test]
    fn no_segment_ever_leads_from_proven_to_unproven() {
        for flags in 0..=0x1f {
            for sequence in [0, 101, ISN.wrapping_add(1)] {
                let s = segment(flags, sequence, sequence, 1);
                assert!(!is_unproven(established().from_client(s).state));
                assert!(!is_unproven(established().from_backend(s).state));
            }
        }
    }
}

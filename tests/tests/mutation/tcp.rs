//! The model's own account of a flow's life.

use super::parse::View;

/// States by the names that `get flows` shows.
pub const HALF_OPEN: &str = "half_open";
pub const ADOPTED: &str = "adopted";
pub const ESTABLISHED: &str = "established";
pub const CLOSING: &str = "closing";
pub const RESET: &str = "reset";
pub const UNANSWERED: &str = "udp_unanswered";
pub const ANSWERED: &str = "udp_answered";

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A flow.
#[derive(Clone, Debug)]
pub struct Flow {
    pub backend: u16,
    pub pool: usize,
    pub adopted: bool,
    pub cohort: bool,
    pub generation: u32,
    pub state: &'static str,
    /// Units of 16 bytes.
    pub units: u64,
    /// ISNs of the first and the last SYN-ACK, and the end of what was sent.
    syn_ack: Option<(u32, u32, u32)>,
    /// Last acknowledgements of client and backend.
    acks: [u32; 2],
    fins: [bool; 2],
}

impl Flow {
    pub fn new(
        (pool, backend): (usize, u16),
        state: &'static str,
        adopted: bool,
        generation: u32,
    ) -> Self {
        Self {
            backend,
            pool,
            adopted,
            cohort: false,
            generation,
            state,
            units: 0,
            syn_ack: None,
            acks: [0, 0],
            fins: [false, false],
        }
    }

    pub fn is_closing(&self) -> bool {
        self.state == CLOSING || self.state == RESET
    }

    pub fn is_unproven(&self) -> bool {
        [HALF_OPEN, ADOPTED, UNANSWERED].contains(&self.state)
    }

    /// A packet of the flow passes; `by_backend`: it comes from the backend.
    pub fn see(&mut self, frame: &[u8], view: &View, by_backend: bool) {
        let was_half_open = self.state == HALF_OPEN;
        if view.source.protocol == 17 {
            if by_backend {
                self.state = ANSWERED;
            }
        } else {
            self.segment(frame, view, by_backend);
        }
        if !was_half_open {
            self.units += (frame.len() - view.ip).div_ceil(16) as u64;
        }
    }

    fn segment(&mut self, frame: &[u8], view: &View, by_backend: bool) {
        let at = view.transport;
        let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
        let (sequence, acknowledgement, flags) = (word(at + 4), word(at + 8), frame[at + 13]);
        let data = at + usize::from(frame[at + 12] / 16) * 4;
        let payload = if view.end == usize::MAX {
            0
        } else {
            view.end.saturating_sub(data) as u32
        };
        let is = |flag| flags & flag != 0;
        if self.state == HALF_OPEN {
            if by_backend {
                self.half_open_answer(flags, sequence, payload);
            } else if is(ACK) && !is(RST) && self.proves(acknowledgement) {
                self.state = ESTABLISHED;
                self.acks = [acknowledgement, sequence];
                self.fins[0] = is(FIN);
            }
            return;
        }
        let (own, other) = (usize::from(by_backend), usize::from(!by_backend));
        if is(RST) {
            let can_end = by_backend || self.state != ADOPTED;
            if can_end && sequence == self.acks[other] {
                self.state = RESET;
            }
            return;
        }
        if !by_backend && is(SYN) {
            return;
        }
        if by_backend && self.state == ADOPTED {
            self.state = ESTABLISHED;
            self.acks[0] = sequence;
        }
        if by_backend && self.state == RESET {
            self.state = ESTABLISHED;
        }
        if is(ACK) {
            self.acks[own] = acknowledgement;
        }
        self.fins[own] |= is(FIN);
        if self.fins == [true, true] && self.state == ESTABLISHED {
            self.state = CLOSING;
        }
    }

    fn half_open_answer(&mut self, flags: u8, sequence: u32, payload: u32) {
        if flags & RST != 0 {
            self.state = RESET;
            // It was never acknowledged by anybody: a later RST must hit the ISNs.
            let (first, last, _) = self.syn_ack.unwrap_or((0, 0, 0));
            self.acks = [first, last];
            return;
        }
        let end = sequence.wrapping_add(payload);
        if flags & (SYN | ACK) == SYN | ACK {
            let first = self.syn_ack.map_or(sequence, |(first, ..)| first);
            self.syn_ack = Some((first, sequence, end.wrapping_add(1)));
        } else if let Some((_, _, high)) = &mut self.syn_ack
            && is_after(end, *high)
        {
            *high = end;
        }
    }

    /// More than an ISN and no more than was sent.
    fn proves(&self, acknowledgement: u32) -> bool {
        self.syn_ack.is_some_and(|(first, last, high)| {
            acknowledgement == first.wrapping_add(1)
                || (is_after(acknowledgement, last) && !is_after(acknowledgement, high))
        })
    }
}

fn is_after(a: u32, b: u32) -> bool {
    let ahead = a.wrapping_sub(b);
    ahead != 0 && ahead <= 1 << 31
}

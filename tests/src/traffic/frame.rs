//! The unit of echoed data: numbered, filled with a pattern, stamped by its server.

/// Bytes of a frame; a UDP datagram holds one.
pub const FRAME: usize = 128;

const MAGIC_ECHO: [u8; 4] = *b"SFTE";
const MAGIC_BULK: [u8; 4] = *b"SFTB";
const STAMP: usize = 16;
const PATTERN: usize = 17;

/// What a server is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    Echo,
    /// Both ends send this many bytes of pattern, at this many bytes a second
    /// at most; 0 is as fast as it goes.
    Bulk {
        bytes: u64,
        rate: u32,
    },
}

/// Frame `seq` of flow `flow`, not yet stamped.
pub fn echo(flow: u32, seq: u64) -> [u8; FRAME] {
    header(MAGIC_ECHO, flow, seq)
}

/// Asks for `bytes` both ways, at `rate` bytes a second at most (0: no limit).
pub fn bulk(bytes: u64, rate: u32) -> [u8; FRAME] {
    header(MAGIC_BULK, rate, bytes)
}

fn header(magic: [u8; 4], flow: u32, number: u64) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..4].copy_from_slice(&magic);
    frame[4..8].copy_from_slice(&flow.to_be_bytes());
    frame[8..16].copy_from_slice(&number.to_be_bytes());
    fill(&mut frame[PATTERN..], u64::from(flow) << 32 ^ number, 0);
    frame
}

/// What a frame asks for, if it is one.
pub fn request(frame: &[u8; FRAME]) -> Option<Request> {
    match frame[..4].try_into().ok()? {
        MAGIC_ECHO => Some(Request::Echo),
        MAGIC_BULK => Some(Request::Bulk {
            bytes: number(frame),
            rate: u32::from_be_bytes([frame[4], frame[5], frame[6], frame[7]]),
        }),
        _ => None,
    }
}

fn number(frame: &[u8; FRAME]) -> u64 {
    u64::from_be_bytes([
        frame[8], frame[9], frame[10], frame[11], frame[12], frame[13], frame[14], frame[15],
    ])
}

/// Which frame of its flow an answer is.
pub fn sequence(frame: &[u8; FRAME]) -> u64 {
    number(frame)
}

/// Puts the server's identity, not 0, into a frame.
pub fn stamp(frame: &mut [u8; FRAME], identity: u8) {
    frame[STAMP] = identity;
}

/// Who answered.
pub fn identity(frame: &[u8; FRAME]) -> u8 {
    frame[STAMP]
}

/// Bytes by which an answer differs from what was sent, the stamp apart.
pub fn wrong_bytes(answer: &[u8; FRAME], flow: u32, seq: u64) -> u64 {
    let mut sent = echo(flow, seq);
    sent[STAMP] = answer[STAMP];
    sent.iter().zip(answer).filter(|(a, b)| a != b).count() as u64
}

/// Fills `out` with the bytes of the endless pattern of `seed` from `offset`,
/// a multiple of 8, on.
pub fn fill(out: &mut [u8], seed: u64, offset: u64) {
    for (word, chunk) in (offset / 8..).zip(out.chunks_mut(8)) {
        let bytes = mix(seed.wrapping_add(word.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
}

/// The finaliser of splitmix64.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_right_whoever_stamped_it_and_wrong_if_a_byte_is() {
        let mut answer = echo(7, 3);
        stamp(&mut answer, 2);
        assert_eq!(identity(&answer), 2);
        assert_eq!(sequence(&answer), 3);
        assert_eq!(wrong_bytes(&answer, 7, 3), 0);
        answer[100] ^= 1;
        assert_eq!(wrong_bytes(&answer, 7, 3), 1);
        assert!(wrong_bytes(&answer, 7, 4) > 50);
    }

    #[test]
    fn the_pattern_does_not_depend_on_where_it_is_cut() {
        let mut whole = [0; 64];
        fill(&mut whole, 5, 0);
        let mut part = [0; 32];
        fill(&mut part, 5, 32);
        assert_eq!(whole[32..], part);
    }

    #[test]
    fn requests_are_read_back() {
        assert_eq!(request(&echo(1, 2)), Some(Request::Echo));
        assert_eq!(
            request(&bulk(99, 1)),
            Some(Request::Bulk { bytes: 99, rate: 1 })
        );
        assert_eq!(request(&[0; FRAME]), None);
    }
}

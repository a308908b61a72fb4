//! The Internet checksum, updated by what changed (RFC 1624).

/// A difference of ones' complement sums, not folded. Words are taken as they
/// lie in memory, as `bpf_csum_diff` does, so that the same number serves the
/// kernel's helpers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Delta(pub u32);

impl Delta {
    /// Nothing changed.
    pub const ZERO: Self = Self(0);

    /// Two bytes changed from `old` to `new`.
    #[inline(always)]
    pub fn replace2(self, old: [u8; 2], new: [u8; 2]) -> Self {
        Self(self.0 + u32::from(!u16::from_ne_bytes(old)) + u32::from(u16::from_ne_bytes(new)))
    }

    /// Four bytes changed.
    #[inline(always)]
    pub fn replace4(self, old: [u8; 4], new: [u8; 4]) -> Self {
        self.replace2([old[0], old[1]], [new[0], new[1]])
            .replace2([old[2], old[3]], [new[2], new[3]])
    }

    /// Sixteen bytes changed.
    #[inline(always)]
    pub fn replace16(self, old: &[u8; 16], new: &[u8; 16]) -> Self {
        let mut delta = self;
        let mut i = 0;
        while i < 16 {
            delta = delta.replace2([old[i], old[i + 1]], [new[i], new[i + 1]]);
            i += 2;
        }
        delta
    }

    /// An address changed; IPv4 takes the first four bytes.
    #[inline(always)]
    pub fn replace_address(self, family: u8, old: &[u8; 16], new: &[u8; 16]) -> Self {
        if family == 4 {
            self.replace4(
                [old[0], old[1], old[2], old[3]],
                [new[0], new[1], new[2], new[3]],
            )
        } else {
            self.replace16(old, new)
        }
    }

    /// Both changes.
    #[inline(always)]
    pub fn plus(self, other: Self) -> Self {
        // Folded first, so that sums of sums cannot overflow.
        Self(u32::from(fold(self.0)) + u32::from(fold(other.0)))
    }
}

/// Ones' complement sum of a 32-bit accumulator in 16 bits.
#[inline(always)]
pub fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Ones' complement sum of a few 32-bit words in 16 bits.
#[inline(always)]
pub fn fold64(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// `checksum` after `delta` (RFC 1624, equation 3).
#[inline(always)]
pub fn update(checksum: [u8; 2], delta: Delta) -> [u8; 2] {
    let sum = u32::from(!u16::from_ne_bytes(checksum)) + u32::from(fold(delta.0));
    (!fold(sum)).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(words: &[[u8; 2]]) -> [u8; 2] {
        let sum = words
            .iter()
            .map(|w| u32::from(u16::from_ne_bytes(*w)))
            .sum();
        (!fold(sum)).to_ne_bytes()
    }

    #[test]
    fn both_folds_agree() {
        for i in 0..5_000u64 {
            let words = [
                i.wrapping_mul(2_654_435_761),
                i << 29 | 7,
                u64::MAX >> (i % 30),
            ];
            let sum = words.iter().map(|word| word & 0xffff_ffff).sum::<u64>();
            let halves = words
                .iter()
                .map(|word| (word & 0xffff) + (word >> 16 & 0xffff))
                .sum::<u64>();
            assert_eq!(fold64(sum), fold(halves as u32));
        }
    }

    #[test]
    fn an_update_equals_a_full_computation() {
        let mut words = [
            [0x45, 0x00],
            [0x12, 0x34],
            [0xff, 0xff],
            [0x00, 0x00],
            [0xab, 0xcd],
        ];
        let mut checksum = full(&words);
        for i in 0..5_000u32 {
            let place = (i % 5) as usize;
            let new = (i.wrapping_mul(2_654_435_761) >> 16) as u16 | 1;
            let delta = Delta::ZERO.replace2(words[place], new.to_be_bytes());
            words[place] = new.to_be_bytes();
            checksum = update(checksum, delta);
            assert_eq!(checksum, full(&words));
        }
    }
}

//! SipHash-1-3, the keyed hash of the flow table and of selection.
//!
//! Jean-Philippe Aumasson and Daniel J. Bernstein, "SipHash: a fast
//! short-input PRF", 2012, with one compression and three finalisation rounds.
//! Inputs are whole 64-bit words, little-endian, and up to seven bytes more, which
//! ride with the length; callers lay out their key so that two different keys never
//! give the same input.

macro_rules! round {
    ($v0:ident, $v1:ident, $v2:ident, $v3:ident) => {
        $v0 = $v0.wrapping_add($v1);
        $v1 = $v1.rotate_left(13) ^ $v0;
        $v0 = $v0.rotate_left(32);
        $v2 = $v2.wrapping_add($v3);
        $v3 = $v3.rotate_left(16) ^ $v2;
        $v0 = $v0.wrapping_add($v3);
        $v3 = $v3.rotate_left(21) ^ $v0;
        $v2 = $v2.wrapping_add($v1);
        $v1 = $v1.rotate_left(17) ^ $v2;
        $v2 = $v2.rotate_left(32);
    };
}

/// SipHash-1-3 of `N` whole words under a 128-bit key.
#[inline(always)]
pub fn siphash13<const N: usize>(key: [u64; 2], words: [u64; N]) -> u64 {
    siphash13_and::<N, 0>(key, words, 0)
}

/// SipHash-1-3 of `N` whole words and then the lowest `BYTES` bytes of `rest`, under a
/// 128-bit key. `BYTES` is below 8, and the other bytes of `rest` must be zero: the
/// length takes the highest, so these cost no round of their own.
#[inline(always)]
pub fn siphash13_and<const N: usize, const BYTES: usize>(
    key: [u64; 2],
    words: [u64; N],
    rest: u64,
) -> u64 {
    const { assert!(BYTES < 8) };
    debug_assert!(rest >> (8 * BYTES) == 0);
    let mut v0 = 0x736f_6d65_7073_6575 ^ key[0];
    let mut v1 = 0x646f_7261_6e64_6f6d ^ key[1];
    let mut v2 = 0x6c79_6765_6e65_7261 ^ key[0];
    let mut v3 = 0x7465_6462_7974_6573 ^ key[1];
    for word in words {
        v3 ^= word;
        round!(v0, v1, v2, v3);
        v0 ^= word;
    }
    let last = (N as u64 * 8 + BYTES as u64) << 56 | rest;
    v3 ^= last;
    round!(v0, v1, v2, v3);
    v0 ^= last;
    v2 ^= 0xff;
    round!(v0, v1, v2, v3);
    round!(v0, v1, v2, v3);
    round!(v0, v1, v2, v3);
    v0 ^ v1 ^ v2 ^ v3
}

/// The two words of a 16-byte address.
#[inline(always)]
pub fn address_words(addr: &[u8; 16]) -> [u64; 2] {
    let mut low = [0; 8];
    let mut high = [0; 8];
    low.copy_from_slice(&addr[..8]);
    high.copy_from_slice(&addr[8..]);
    [u64::from_le_bytes(low), u64::from_le_bytes(high)]
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::hash::Hasher as _;

    /// `std`'s `DefaultHasher` is SipHash-1-3 under the zero key.
    #[test]
    fn agrees_with_the_standard_library_under_the_zero_key() {
        for seed in 0..1000u64 {
            let words = [seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), seed, !seed];
            let mut standard = std::collections::hash_map::DefaultHasher::new();
            for word in words {
                standard.write(&word.to_le_bytes());
            }
            assert_eq!(siphash13([0, 0], words), standard.finish());
            let rest = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8;
            standard.write(&rest.to_le_bytes()[..7]);
            assert_eq!(
                siphash13_and::<3, 7>([0, 0], words, rest),
                standard.finish()
            );
            let mut standard = std::collections::hash_map::DefaultHasher::new();
            standard.write(&rest.to_le_bytes()[..3]);
            let three = rest & 0xff_ffff;
            assert_eq!(siphash13_and::<0, 3>([0, 0], [], three), standard.finish());
        }
    }

    #[test]
    fn depends_on_every_bit_of_the_key() {
        let plain = siphash13([1, 2], [3, 4]);
        for bit in 0..64 {
            assert_ne!(plain, siphash13([1 ^ 1 << bit, 2], [3, 4]));
            assert_ne!(plain, siphash13([1, 2 ^ 1 << bit], [3, 4]));
        }
    }
}

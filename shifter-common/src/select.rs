//! Which pool and which ring slot a new flow gets: the same in kernel and on host.

use crate::{
    abi::service::{AFFINITY_CLIENT, THRESHOLD_ONE},
    abi::{BLUE, GREEN},
    hash::{address_words, siphash13},
};

/// Hash of the affinity key under the service's seed. The low half chooses the
/// pool, the high half the ring slot, so that one does not depend on the other.
///
/// With `AFFINITY_FLOW` the key is `client` and `client_port`; with
/// `AFFINITY_CLIENT` it is the first `prefix` bits of `client` (of the
/// client's own family: up to 32 for `family` 4, up to 128 for 6).
#[inline(always)]
pub fn affinity_hash(
    seed: [u64; 2],
    affinity: u8,
    prefix: u8,
    client: &[u8; 16],
    client_port: [u8; 2],
    family: u8,
) -> u64 {
    let [low, high] = address_words(client);
    if affinity == AFFINITY_CLIENT {
        let (low, high) = cut(low, high, prefix);
        siphash13(seed, [low, high, u64::from(family) << 32])
    } else {
        let port = u64::from(u16::from_be_bytes(client_port));
        siphash13(seed, [low, high, u64::from(family) << 32 | 1 << 16 | port])
    }
}

/// Keeps the first `prefix` bits of an address in network order that was read
/// as little-endian words.
#[inline(always)]
fn cut(low: u64, high: u64, prefix: u8) -> (u64, u64) {
    if prefix < 64 {
        (low & mask(prefix), 0)
    } else if prefix < 128 {
        (low, high & mask(prefix - 64))
    } else {
        (low, high)
    }
}

/// The first `bits` bits in network order, for a word read as little-endian; `bits` below 64.
#[inline(always)]
fn mask(bits: u8) -> u64 {
    // A shift by 64 is never asked for, but the verifier has to see that.
    (!(u64::MAX >> (bits & 63))).swap_bytes()
}

/// Green below the threshold, blue from it on. `threshold` is in `[0, 2^32]`.
#[inline(always)]
pub fn pool_of(hash: u64, threshold: u64) -> usize {
    debug_assert!(threshold <= THRESHOLD_ONE);
    if hash & 0xffff_ffff < threshold {
        GREEN
    } else {
        BLUE
    }
}

/// Pool of the next new flow by error diffusion, and the error after it. An
/// error is a share of a flow that green is still owed, in units of
/// `1 / THRESHOLD_ONE`, below `THRESHOLD_ONE`; so over any sequence of
/// thresholds green has got their sum but for less than one flow.
#[inline(always)]
pub fn diffuse(error: u64, threshold: u64) -> (usize, u64) {
    debug_assert!(threshold <= THRESHOLD_ONE && error < THRESHOLD_ONE);
    let owed = error + threshold;
    if owed >= THRESHOLD_ONE {
        (GREEN, owed - THRESHOLD_ONE)
    } else {
        (BLUE, owed)
    }
}

/// The half of the hash that chooses a ring slot.
#[inline(always)]
pub fn ring_hash(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// Slot in `[0, slots)` for a ring hash; 0 when there are none.
#[inline(always)]
pub fn ring_slot(ring_hash: u32, slots: u32) -> u32 {
    ((u64::from(ring_hash) * u64::from(slots)) >> 32) as u32
}

/// Slots of a ring that are looked at for a backend which takes the flow: so many that one
/// with a tenth of the ring is missed by 1 flow in 850.
pub const RING_TRIES: u32 = 64;

/// Ring hash to go on with where the backend of one's slot does not take the flow.
/// Neighbouring slots will not do, nor those at any fixed distance: in a ring of few
/// backends both often name the same one for long. The mixing is the first round of
/// MurmurHash3's finalizer (Appleby, 2011); the constant keeps 0 from leading to 0.
#[inline(always)]
pub fn next_ring_hash(ring_hash: u32) -> u32 {
    let mixed = ring_hash.wrapping_add(0x9e37_79b9);
    let mixed = (mixed ^ mixed >> 16).wrapping_mul(0x85eb_ca6b);
    mixed ^ mixed >> 13
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::abi::service::AFFINITY_FLOW;

    fn v4(a: u8, b: u8, c: u8, d: u8) -> [u8; 16] {
        let mut addr = [0; 16];
        addr[..4].copy_from_slice(&[a, b, c, d]);
        addr
    }

    #[test]
    fn raising_the_weight_moves_points_only_from_blue_to_green() {
        for i in 0..10_000u64 {
            let hash = siphash13([7, 9], [i]);
            let mut was = BLUE;
            for threshold in [0, 1 << 20, 1 << 28, 1 << 31, (1 << 32) - 1, 1 << 32] {
                let pool = pool_of(hash, threshold);
                assert!(pool >= was, "a point went back to blue");
                was = pool;
            }
            assert_eq!(pool_of(hash, 0), BLUE);
            assert_eq!(pool_of(hash, THRESHOLD_ONE), GREEN);
        }
    }

    #[test]
    fn client_affinity_sees_only_the_prefix() {
        let hash = |addr: [u8; 16], prefix, port: u16| {
            affinity_hash(
                [1, 2],
                AFFINITY_CLIENT,
                prefix,
                &addr,
                port.to_be_bytes(),
                4,
            )
        };
        assert_eq!(hash(v4(10, 1, 2, 3), 24, 1), hash(v4(10, 1, 2, 200), 24, 2));
        assert_ne!(hash(v4(10, 1, 2, 3), 24, 1), hash(v4(10, 1, 3, 3), 24, 1));
        assert_ne!(hash(v4(10, 1, 2, 3), 32, 1), hash(v4(10, 1, 2, 2), 32, 1));
        assert_eq!(hash(v4(10, 1, 2, 3), 0, 1), hash(v4(99, 1, 3, 3), 0, 1));
        let mut a = [0xaa; 16];
        let mut b = a;
        a[9] = 0x10;
        b[9] = 0x1f;
        assert_eq!(hash(a, 76, 1), hash(b, 76, 1));
        assert_ne!(hash(a, 77, 1), hash(b, 77, 1));
    }

    #[test]
    fn flow_affinity_sees_the_port_and_the_family() {
        let hash = |port: u16, family| {
            affinity_hash(
                [1, 2],
                AFFINITY_FLOW,
                0,
                &v4(10, 0, 0, 1),
                port.to_be_bytes(),
                family,
            )
        };
        assert_ne!(hash(1, 4), hash(2, 4));
        assert_ne!(hash(1, 4), hash(1, 6));
    }

    #[test]
    fn diffused_shares_are_off_by_less_than_one_flow() {
        let mut error = 0;
        let mut green = 0u128;
        let mut wanted = 0u128;
        for i in 0..200_000u64 {
            // Thresholds change at odd moments, to none and to all among others.
            let threshold = match siphash13([3, 4], [i / 37]) % 5 {
                0 => 0,
                1 => THRESHOLD_ONE,
                2 => THRESHOLD_ONE / 3,
                3 => 1,
                _ => siphash13([5, 6], [i / 37]) >> 32,
            };
            let (pool, next) = diffuse(error, threshold);
            assert!(next < THRESHOLD_ONE);
            assert!(threshold > 0 || pool == BLUE, "none is exactly none");
            assert!(
                threshold < THRESHOLD_ONE || pool == GREEN,
                "all is exactly all"
            );
            error = next;
            green += u128::from(pool == GREEN);
            wanted += u128::from(threshold);
            let got = green * u128::from(THRESHOLD_ONE);
            assert!(got.abs_diff(wanted) < u128::from(THRESHOLD_ONE), "flow {i}");
        }
    }

    #[test]
    fn ring_slots_cover_the_ring_and_never_leave_it() {
        assert_eq!(ring_slot(0, 101), 0);
        assert_eq!(ring_slot(u32::MAX, 101), 100);
        assert_eq!(ring_slot(u32::MAX, 0), 0);
    }
}

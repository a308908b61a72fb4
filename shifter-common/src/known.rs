//! What VIPs and backends use, as bits: their ports, and a hash of address, port
//! and protocol. A packet of somebody else is told from ours by two bits.

use crate::{abi::AddressKey, hash::address_words};

/// First bit of the ports of VIPs.
pub const VIP_PORTS: u32 = 0;
/// First bit of the ports of backends.
pub const BACKEND_PORTS: u32 = 1 << 16;
/// First bit of the hashes of VIPs.
pub const VIP_HASHES: u32 = 2 << 16;
/// First bit of the hashes of backends.
pub const BACKEND_HASHES: u32 = 3 << 16;
/// Words of all bits.
pub const KNOWN_WORDS: usize = (4 << 16) / 64;

/// Bit of an address with its port, `0..65_536`: multiplicative hashing (Knuth,
/// The Art of Computer Programming 3, 6.4). `rest` is port, protocol and family
/// as they lie in an [`AddressKey`]. Not keyed: who aims at a bit costs a look-up.
#[inline(always)]
pub fn hash_bit(addr: [u64; 2], rest: u32) -> u32 {
    let [low, high] = addr;
    let word = low ^ high.wrapping_mul(0xc2b2_ae3d_27d4_eb4f) ^ u64::from(rest) << 32;
    (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32
}

/// The two bits of a VIP, or of a backend: in `ports` and in `hashes` on.
pub fn bits_of(key: &AddressKey, ports: u32, hashes: u32) -> [u32; 2] {
    let [low, high] = key.port;
    let rest = u32::from_le_bytes([low, high, key.protocol, key.family]);
    let port = u32::from(u16::from_be_bytes(key.port));
    [
        ports + port,
        hashes + hash_bit(address_words(&key.addr), rest),
    ]
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::HashSet;

    fn key(last: u8, port: u16, protocol: u8) -> AddressKey {
        let mut addr = [0; 16];
        addr[..4].copy_from_slice(&[10, 0, 0, last]);
        AddressKey {
            addr,
            port: port.to_be_bytes(),
            protocol,
            family: 4,
        }
    }

    #[test]
    fn neighbours_have_bits_of_their_own() {
        let bit = |key: AddressKey| bits_of(&key, BACKEND_PORTS, BACKEND_HASHES)[1];
        let near = (0..=255).flat_map(|last| [80, 443].map(|port| key(last, port, 6)));
        let bits: HashSet<_> = near.map(bit).collect();
        // Two of 512 meet in 65,536 bits about twice.
        assert!(bits.len() > 500, "{}", bits.len());
        assert_ne!(bit(key(1, 53, 6)), bit(key(1, 53, 17)));
    }

    #[test]
    fn bits_lie_within_their_quarter() {
        for port in [0, 80, 65_535] {
            let [port_bit, hash_bit] = bits_of(&key(1, port, 6), BACKEND_PORTS, BACKEND_HASHES);
            assert_eq!(port_bit, BACKEND_PORTS + u32::from(port));
            assert!((BACKEND_HASHES..KNOWN_WORDS as u32 * 64).contains(&hash_bit));
        }
    }
}

//! A destination NAT and nothing else: the backend by a hash, no state.

use crate::{
    frame::{Frame, fold},
    maps::{Destination, Key, REF_BACKENDS, REF_REPLIES, REF_RINGS, REF_VIPS, RING_SLOTS},
};

/// Bytes of the Ethernet header.
const ETHERNET: usize = 14;
/// Where the transport header lies without options, by family.
const L4_V4: usize = ETHERNET + 20;
const L4_V6: usize = ETHERNET + 40;

/// EtherTypes as they lie in a little-endian word.
const IPV4: u16 = u16::from_be(0x0800);
const IPV6: u16 = u16::from_be(0x86dd);

/// What is read of a packet.
pub struct Parsed {
    pub source: Key,
    pub destination: Key,
    pub tcp_flags: u8,
}

/// Which address of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

/// What a program does with a packet of a family, whose transport header lies
/// at `L4`; `None`: nothing.
pub trait Job {
    fn run<F: Frame, const L4: usize>(frame: &mut F) -> Option<i32>;
}

/// Does the job on packets of either family; all others pass.
#[inline(always)]
pub fn dispatch<J: Job, F: Frame>(frame: &mut F) -> i32 {
    match frame.get2(12) {
        Some(IPV4) => J::run::<F, L4_V4>(frame),
        Some(IPV6) => J::run::<F, L4_V6>(frame),
        _ => None,
    }
    .unwrap_or_else(|| frame.pass())
}

/// Rewrites what goes to a VIP or comes from a backend.
pub struct Nat;

impl Job for Nat {
    #[inline(always)]
    fn run<F: Frame, const L4: usize>(frame: &mut F) -> Option<i32> {
        let parsed = parse::<F, L4>(frame)?;
        // SAFETY: written before packets are sent.
        if let Some(service) = unsafe { REF_VIPS.get(&parsed.destination) } {
            let to = REF_BACKENDS.get(*REF_RINGS.get(slot(&parsed, *service))?)?;
            return send::<F, L4>(frame, &parsed, Side::Destination, to);
        }
        reply::<F, L4>(frame, &parsed)
    }
}

/// From a backend: the source becomes the VIP again.
#[inline(always)]
pub fn reply<F: Frame, const L4: usize>(frame: &mut F, parsed: &Parsed) -> Option<i32> {
    // SAFETY: as above.
    let to = unsafe { REF_REPLIES.get(&parsed.source) }?;
    send::<F, L4>(frame, parsed, Side::Source, to)
}

/// Ring slot of a client.
#[inline(always)]
pub fn slot(parsed: &Parsed, service: u32) -> u32 {
    let [a, b, c, d] = parsed.source.addr.map(u64::from);
    let port = u64::from(parsed.source.port);
    let mut hash = (a | b << 32) ^ port << 40;
    hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ hash >> 29 ^ (c | d << 32)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let place = ((hash >> 32) * u64::from(RING_SLOTS)) >> 32;
    service * RING_SLOTS + place as u32
}

/// Addresses, ports and flags of a TCP or UDP packet without options.
#[inline(always)]
pub fn parse<F: Frame, const L4: usize>(frame: &F) -> Option<Parsed> {
    let protocol = if L4 == L4_V4 {
        if frame.get1(ETHERNET)? != 0x45 {
            return None;
        }
        frame.get1(ETHERNET + 9)?
    } else {
        frame.get1(ETHERNET + 6)?
    };
    if protocol != 6 && protocol != 17 {
        return None;
    }
    let [source, destination, _] = places::<L4>();
    let tcp_flags = if protocol == 6 {
        frame.get1(L4 + 13)?
    } else {
        0
    };
    Some(Parsed {
        source: key::<F, L4>(frame, source, L4, protocol)?,
        destination: key::<F, L4>(frame, destination, L4 + 2, protocol)?,
        tcp_flags,
    })
}

#[inline(always)]
fn key<F: Frame, const L4: usize>(frame: &F, at: usize, port: usize, protocol: u8) -> Option<Key> {
    let mut addr = [frame.get4(at)?, 0, 0, 0];
    if L4 == L4_V6 {
        addr[1] = frame.get4(at + 4)?;
        addr[2] = frame.get4(at + 8)?;
        addr[3] = frame.get4(at + 12)?;
    }
    Some(Key {
        addr,
        port: frame.get2(port)?,
        protocol,
        family: if L4 == L4_V4 { 4 } else { 6 },
    })
}

/// Offsets of source and destination address, and their length in words.
#[inline(always)]
const fn places<const L4: usize>() -> [usize; 3] {
    if L4 == L4_V4 {
        [ETHERNET + 12, ETHERNET + 16, 1]
    } else {
        [ETHERNET + 8, ETHERNET + 24, 4]
    }
}

/// Rewrites one side, decrements the hop limit, and redirects.
#[inline(always)]
pub fn send<F: Frame, const L4: usize>(
    frame: &mut F,
    parsed: &Parsed,
    side: Side,
    to: &Destination,
) -> Option<i32> {
    let [source_at, destination_at, words] = places::<L4>();
    let (old, at, port_at) = match side {
        Side::Source => (&parsed.source, source_at, L4),
        Side::Destination => (&parsed.destination, destination_at, L4 + 2),
    };
    let mut addr_change = 0u32;
    let mut i = 0;
    while i < words {
        addr_change += fold(to.addr[i]) + fold(!old.addr[i]);
        frame.put4(at + 4 * i, to.addr[i])?;
        i += 1;
    }
    let port_change = u32::from(to.port) + u32::from(!old.port);
    frame.put2(port_at, to.port)?;
    if parsed.source.protocol == 6 {
        frame.fix_checksum(L4 + 16, addr_change, port_change, L4 == L4_V6)?;
    } else if frame.get2(L4 + 6)? != 0 {
        frame.fix_checksum(L4 + 6, addr_change, port_change, L4 == L4_V6)?;
    }
    hop::<F, L4>(frame, addr_change)?;
    let mut i = 0;
    while i < 3 {
        frame.put4(4 * i, to.macs[i])?;
        i += 1;
    }
    Some(frame.redirect(to.ifindex))
}

/// One hop less; the IPv4 header's checksum follows that and the address.
#[inline(always)]
fn hop<F: Frame, const L4: usize>(frame: &mut F, addr_change: u32) -> Option<()> {
    if L4 == L4_V6 {
        let [next, limit] = frame.get2(ETHERNET + 6)?.to_ne_bytes();
        if limit <= 1 {
            return None;
        }
        return frame.put2(ETHERNET + 6, u16::from_ne_bytes([next, limit - 1]));
    }
    let was = frame.get2(ETHERNET + 8)?;
    let [ttl, protocol] = was.to_ne_bytes();
    if ttl <= 1 {
        return None;
    }
    let is = u16::from_ne_bytes([ttl - 1, protocol]);
    frame.put2(ETHERNET + 8, is)?;
    let old = u32::from(frame.get2(ETHERNET + 10)?);
    let change = fold(addr_change) + u32::from(!was) + u32::from(is);
    let sum = fold((!old & 0xffff) + change);
    frame.put2(ETHERNET + 10, !sum as u16)
}

//! What is written into a packet: one side's address and port, in the header
//! itself or in what an ICMP error quotes, checksums mended (RFC 3022, RFC 5508).

use super::{
    ChecksumChange, Packet,
    checksum::{Delta, update},
    parse::{Headers, Kind, narrow, packet_end},
};

/// Which side of the packet changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The source becomes the VIP: from backend to client.
    Source,
    /// The destination becomes the backend: from client to backend.
    Destination,
}

/// Rewrites one side to `addr` and `port`. `None`: a header could not be
/// reached; the packet may then be half written and must be dropped.
#[inline(always)]
pub fn rewrite<P: Packet>(
    packet: &mut P,
    headers: &Headers,
    side: Side,
    addr: &[u8; 16],
    port: [u8; 2],
) -> Option<()> {
    match headers.kind {
        Kind::Error => rewrite_error(packet, headers, side, addr, port),
        _ => rewrite_segment(packet, headers, side, addr, port),
    }
}

#[inline(always)]
fn rewrite_segment<P: Packet>(
    packet: &mut P,
    headers: &Headers,
    side: Side,
    addr: &[u8; 16],
    port: [u8; 2],
) -> Option<()> {
    let (old_addr, old_port, port_at) = match side {
        Side::Source => (&headers.source, headers.source_port, headers.l4),
        Side::Destination => (
            &headers.destination,
            headers.destination_port,
            headers.l4 + 2,
        ),
    };
    put_address(packet, headers.family, headers.l3, side, old_addr, addr)?;
    packet.put2(port_at, port)?;
    let change = ChecksumChange {
        pseudo: Delta::ZERO.replace_address(headers.family, old_addr, addr),
        plain: Delta::ZERO.replace2(old_port, port),
        optional: headers.protocol == 17,
        family: headers.family,
    };
    packet.transport_checksum(headers.l4 + checksum_offset(headers.protocol), change)
}

/// In the quoted packet the other side changes: an error towards the backend
/// quotes what the backend sent, so the quoted source becomes the backend.
#[inline(always)]
fn rewrite_error<P: Packet>(
    packet: &mut P,
    headers: &Headers,
    side: Side,
    addr: &[u8; 16],
    port: [u8; 2],
) -> Option<()> {
    let family = headers.family;
    // `headers` hold the quoted addresses turned round.
    let (quoted_side, old_addr, old_port, port_at) = match side {
        Side::Destination => (
            Side::Source,
            &headers.destination,
            headers.destination_port,
            headers.quoted_l4,
        ),
        Side::Source => (
            Side::Destination,
            &headers.source,
            headers.source_port,
            headers.quoted_l4 + 2,
        ),
    };
    let mut plain = put_address(
        packet,
        family,
        headers.quoted_l3,
        quoted_side,
        old_addr,
        addr,
    )?;
    packet.put2(port_at, port)?;
    let ports = Delta::ZERO.replace2(old_port, port);
    plain = plain.plus(ports);
    plain = plain.plus(quoted_checksum(packet, headers, old_addr, addr, ports));

    // The outer address: towards the backend always, towards the client only
    // where the backend itself answers, and not a router on the way.
    let outer_at = headers.l3 + address_offset(family, side);
    let outer = get_address(packet, family, outer_at)?;
    let mut pseudo = Delta::ZERO;
    if outer == *old_addr {
        put_address(packet, family, headers.l3, side, old_addr, addr)?;
        if family == 6 {
            pseudo = pseudo.replace_address(family, old_addr, addr);
        }
    }
    let change = ChecksumChange {
        pseudo,
        plain,
        optional: false,
        family,
    };
    packet.transport_checksum(headers.l4 + 2, change)
}

/// Mends the quoted transport checksum where it is quoted at all.
#[inline(always)]
fn quoted_checksum<P: Packet>(
    packet: &mut P,
    headers: &Headers,
    old_addr: &[u8; 16],
    addr: &[u8; 16],
    ports: Delta,
) -> Delta {
    let at = headers.quoted_l4 + checksum_offset(headers.protocol);
    // Behind the end of the error lies no checksum but a trailer of the frame.
    let (Some(end), Some(old)) = (packet_end(packet, headers), packet.get2(at)) else {
        return Delta::ZERO;
    };
    let is_udp = headers.protocol == 17;
    if at + 2 > end || (is_udp && old == [0, 0]) {
        return Delta::ZERO;
    }
    let addresses = Delta::ZERO.replace_address(headers.family, old_addr, addr);
    let mut new = update(old, addresses.plus(ports));
    if is_udp && new == [0, 0] {
        // RFC 768: 0 would say that there is none.
        new = [0xff, 0xff];
    }
    match packet.put2(at, new) {
        Some(()) => Delta::ZERO.replace2(old, new),
        None => Delta::ZERO,
    }
}

#[inline(always)]
const fn checksum_offset(protocol: u8) -> usize {
    if protocol == 17 { 6 } else { 16 }
}

#[inline(always)]
const fn address_offset(family: u8, side: Side) -> usize {
    match (family, side) {
        (4, Side::Source) => 12,
        (4, Side::Destination) => 16,
        (_, Side::Source) => 8,
        (_, Side::Destination) => 24,
    }
}

#[inline(always)]
fn get_address<P: Packet>(packet: &P, family: u8, at: usize) -> Option<[u8; 16]> {
    if family == 4 {
        packet.get4(at).map(super::parse::widen)
    } else {
        packet.get16(at)
    }
}

/// Writes an address into the IP header at `l3`, mends the IPv4 header's
/// checksum, and says how the header's bytes changed in sum.
#[inline(always)]
fn put_address<P: Packet>(
    packet: &mut P,
    family: u8,
    l3: usize,
    side: Side,
    old: &[u8; 16],
    new: &[u8; 16],
) -> Option<Delta> {
    let at = l3 + address_offset(family, side);
    if family == 4 {
        packet.put4(at, narrow(new))?;
        let delta = Delta::ZERO.replace4(narrow(old), narrow(new));
        let checksum = packet.get2(l3 + 10)?;
        let updated = update(checksum, delta);
        packet.put2(l3 + 10, updated)?;
        Some(delta.replace2(checksum, updated))
    } else {
        packet.put16(at, *new)?;
        Some(Delta::ZERO.replace16(old, new))
    }
}

/// One hop less (RFC 1812, section 5.3.1); the caller has seen that it is above 1.
/// Says how the header's bytes changed in sum.
#[inline(always)]
pub fn decrement_hop_limit<P: Packet>(packet: &mut P, headers: &Headers) -> Option<Delta> {
    let less = headers.hop_limit.wrapping_sub(1);
    if headers.family == 4 {
        let protocol = packet.get1(headers.l3 + 9)?;
        packet.put1(headers.l3 + 8, less)?;
        let delta = Delta::ZERO.replace2([headers.hop_limit, protocol], [less, protocol]);
        let checksum = packet.get2(headers.l3 + 10)?;
        packet.put2(headers.l3 + 10, update(checksum, delta))?;
        // Address and checksum change cancel out.
        Some(Delta::ZERO)
    } else {
        let next = packet.get1(headers.l3 + 6)?;
        packet.put1(headers.l3 + 7, less)?;
        Some(Delta::ZERO.replace2([next, headers.hop_limit], [next, less]))
    }
}

//! Ethernet, VLAN, IPv4, IPv6, TCP, UDP and the errors of ICMP, as far as
//! steering needs them.

use super::Packet;

/// TCP flag bits (RFC 9293, section 3.1).
pub const TCP_FIN: u8 = 0x01;
/// See [`TCP_FIN`].
pub const TCP_SYN: u8 = 0x02;
/// See [`TCP_FIN`].
pub const TCP_RST: u8 = 0x04;
/// See [`TCP_FIN`].
pub const TCP_ACK: u8 = 0x10;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Extension headers that are walked through, at most.
const MAX_EXTENSIONS: usize = 6;

/// What a packet is to the packet path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// TCP or UDP with its ports.
    Segment = 0,
    /// An ICMP error that quotes TCP or UDP. Addresses and ports are those of
    /// the quoted packet turned round: as if the one who should have got the
    /// quoted packet had answered.
    Error = 1,
    /// A fragment, the first one too.
    Fragment = 2,
}

/// Where the headers lie and what they say.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    /// Source; of an error: the quoted packet's destination.
    pub source: [u8; 16],
    /// Destination; of an error: the quoted packet's source.
    pub destination: [u8; 16],
    /// As `source`. Zero for a later fragment.
    pub source_port: [u8; 2],
    /// As `destination`. Zero for a later fragment.
    pub destination_port: [u8; 2],
    /// 4 or 6.
    pub family: u8,
    /// TCP or UDP; of an error: the quoted packet's.
    pub protocol: u8,
    /// What it is.
    pub kind: Kind,
    /// TTL or hop limit of the outer header.
    pub hop_limit: u8,
    /// The frame carries a VLAN tag.
    pub vlan: bool,
    /// Everything lies where it does in a frame without tags, options and
    /// extension headers, and can be read directly.
    pub plain: bool,
    /// TCP flags; 0 for UDP and errors.
    pub tcp_flags: u8,
    /// Offset of the outer IP header.
    pub l3: usize,
    /// Offset of the transport header; of an error: of the ICMP header.
    pub l4: usize,
    /// Of an error: offset of the quoted IP header.
    pub quoted_l3: usize,
    /// Of an error: offset of the quoted transport header.
    pub quoted_l4: usize,
}

/// An IP header: what follows it, and where. Addresses are numbers here, in the
/// order that they lie in: of an array, where two ways of the parser meet, every
/// byte would take eight of the packet path's stack.
#[derive(Clone, Copy)]
struct Ip {
    source: u128,
    destination: u128,
    next: u8,
    offset: usize,
    fragment: bool,
    first: bool,
    hop_limit: u8,
}

/// The end of a packet whose length field counts from `start`. An aggregated
/// skb may be too long for the field, which is 0 then: no end.
#[inline(always)]
fn end_of(start: usize, field: [u8; 2]) -> usize {
    match u16::from_be_bytes(field) {
        0 => usize::MAX,
        length => start + usize::from(length),
    }
}

/// Parses a frame. `None`: not IP, cut short, malformed, or a protocol that is
/// never ours; such a packet is passed untouched.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Option<Headers> {
    let (ethertype, l3) = ethernet(packet)?;
    let family = match ethertype {
        [0x08, 0x00] => 4,
        [0x86, 0xdd] => 6,
        _ => return None,
    };
    let ip = ip_header(packet, family, l3)?;
    let mut headers = Headers {
        source: ip.source.to_ne_bytes(),
        destination: ip.destination.to_ne_bytes(),
        source_port: [0; 2],
        destination_port: [0; 2],
        family,
        protocol: ip.next,
        kind: Kind::Segment,
        hop_limit: ip.hop_limit,
        vlan: l3 != 14,
        plain: false,
        tcp_flags: 0,
        l3,
        l4: ip.offset,
        quoted_l3: 0,
        quoted_l4: 0,
    };
    if ip.fragment {
        headers.kind = Kind::Fragment;
        if ip.first && (ip.next == TCP || ip.next == UDP) {
            headers.source_port = packet.get2(ip.offset)?;
            headers.destination_port = packet.get2(ip.offset + 2)?;
        }
        return Some(headers);
    }
    match (ip.next, family) {
        (TCP, _) => {
            headers.source_port = packet.get2(ip.offset)?;
            headers.destination_port = packet.get2(ip.offset + 2)?;
            headers.tcp_flags = packet.get1(ip.offset + 13)?;
            // The whole fixed header must be there, or the checksum cannot be mended.
            packet.get2(ip.offset + 18)?;
            Some(headers)
        }
        (UDP, _) => {
            headers.source_port = packet.get2(ip.offset)?;
            headers.destination_port = packet.get2(ip.offset + 2)?;
            packet.get2(ip.offset + 6)?;
            Some(headers)
        }
        (ICMP, 4) | (ICMPV6, 6) => error(packet, headers),
        _ => None,
    }
}

/// EtherType behind at most two VLAN tags, and the offset of what follows.
#[inline(always)]
fn ethernet<P: Packet>(packet: &P) -> Option<([u8; 2], usize)> {
    let mut ethertype = packet.get2(12)?;
    let mut offset = 14;
    // 802.1Q and 802.1ad.
    if ethertype == [0x81, 0x00] || ethertype == [0x88, 0xa8] {
        ethertype = packet.get2(16)?;
        offset = 18;
        if ethertype == [0x81, 0x00] {
            ethertype = packet.get2(20)?;
            offset = 22;
        }
    }
    Some((ethertype, offset))
}

#[inline(always)]
fn ip_header<P: Packet>(packet: &P, family: u8, l3: usize) -> Option<Ip> {
    if family == 4 {
        ipv4(packet, l3)
    } else {
        ipv6(packet, l3)
    }
}

/// RFC 791, section 3.1.
#[inline(always)]
fn ipv4<P: Packet>(packet: &P, l3: usize) -> Option<Ip> {
    let version_and_length = packet.get1(l3)?;
    let header = usize::from(version_and_length & 0x0f) * 4;
    if version_and_length >> 4 != 4 || header < 20 {
        return None;
    }
    let fragment = u16::from_be_bytes(packet.get2(l3 + 6)?) & 0x3fff;
    Some(Ip {
        source: u128::from_ne_bytes(widen(packet.get4(l3 + 12)?)),
        destination: u128::from_ne_bytes(widen(packet.get4(l3 + 16)?)),
        next: packet.get1(l3 + 9)?,
        offset: l3 + header,
        // More fragments, or not the first.
        fragment: fragment != 0,
        first: fragment & 0x1fff == 0,
        hop_limit: packet.get1(l3 + 8)?,
    })
}

/// RFC 8200, sections 3 and 4.
#[inline(always)]
fn ipv6<P: Packet>(packet: &P, l3: usize) -> Option<Ip> {
    if packet.get1(l3)? >> 4 != 6 {
        return None;
    }
    let mut next = packet.get1(l3 + 6)?;
    let mut offset = l3 + 40;
    let mut fragment = false;
    let mut first = true;
    let mut i = 0;
    while i < MAX_EXTENSIONS {
        match next {
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => {
                // A route that goes on: the transport checksum is made for its
                // last address, and this host is only on the way.
                if next == 43 && packet.get1(offset + 3)? != 0 {
                    return None;
                }
                next = packet.get1(offset)?;
                offset += (usize::from(packet.get1(offset + 1)?) + 1) * 8;
            }
            // Fragment; an atomic one (RFC 6946) is whole.
            44 => {
                let field = u16::from_be_bytes(packet.get2(offset + 2)?) & 0xfff9;
                fragment |= field != 0;
                first &= field & 0xfff8 == 0;
                next = packet.get1(offset)?;
                offset += 8;
                if !first {
                    break;
                }
            }
            _ => break,
        }
        i += 1;
    }
    Some(Ip {
        source: u128::from_ne_bytes(packet.get16(l3 + 8)?),
        destination: u128::from_ne_bytes(packet.get16(l3 + 24)?),
        next,
        offset,
        fragment,
        first,
        hop_limit: packet.get1(l3 + 7)?,
    })
}

/// An ICMP (RFC 792) or ICMPv6 (RFC 4443) error and the packet it quotes.
#[inline(always)]
fn error<P: Packet>(packet: &P, mut headers: Headers) -> Option<Headers> {
    let kind = packet.get1(headers.l4)?;
    let is_error = if headers.family == 4 {
        // Destination unreachable, time exceeded, parameter problem.
        matches!(kind, 3 | 11 | 12)
    } else {
        // Destination unreachable, packet too big, time exceeded, parameter problem.
        matches!(kind, 1..=4)
    };
    if !is_error {
        return None;
    }
    let quoted_l3 = headers.l4 + 8;
    let quoted = ip_header(packet, headers.family, quoted_l3)?;
    if (quoted.next != TCP && quoted.next != UDP) || !quoted.first {
        return None;
    }
    // An error goes to the one who sent what it quotes.
    if u128::from_ne_bytes(headers.destination) != quoted.source {
        return None;
    }
    let quoted_source_port = packet.get2(quoted.offset)?;
    headers.source_port = packet.get2(quoted.offset + 2)?;
    headers.destination_port = quoted_source_port;
    headers.source = quoted.destination.to_ne_bytes();
    headers.destination = quoted.source.to_ne_bytes();
    headers.protocol = quoted.next;
    headers.kind = Kind::Error;
    headers.quoted_l3 = quoted_l3;
    headers.quoted_l4 = quoted.offset;
    Some(headers)
}

/// An IPv4 address as map keys hold it.
#[inline(always)]
pub const fn widen(addr: [u8; 4]) -> [u8; 16] {
    [
        addr[0], addr[1], addr[2], addr[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ]
}

/// The first four bytes.
#[inline(always)]
pub const fn narrow(addr: &[u8; 16]) -> [u8; 4] {
    [addr[0], addr[1], addr[2], addr[3]]
}

/// Where the outer IP packet ends by its own account; what follows is a
/// trailer of the frame.
#[inline(always)]
pub fn packet_end<P: Packet>(packet: &P, headers: &Headers) -> Option<usize> {
    let (start, field) = if headers.family == 4 {
        (headers.l3, headers.l3 + 2)
    } else {
        (headers.l3 + 40, headers.l3 + 4)
    };
    Some(end_of(start, packet.get2(field)?))
}

/// Whether the transport header, or the first 8 bytes of the quoted one
/// (RFC 792), lies within the packet and is no trailer of the frame. What
/// [`parse`] found is not to be used without.
#[inline(always)]
pub fn is_whole<P: Packet>(packet: &P, headers: &Headers) -> bool {
    let needed = match (headers.kind, headers.protocol) {
        (Kind::Fragment, _) => return true,
        (Kind::Error, _) => headers.quoted_l4 + 8,
        (Kind::Segment, TCP) => headers.l4 + 20,
        (Kind::Segment, _) => headers.l4 + 8,
    };
    match packet_end(packet, headers) {
        Some(end) => needed <= end,
        None => false,
    }
}

/// Sequence numbers of a TCP segment.
#[inline(always)]
pub fn tcp_segment<P: Packet>(packet: &P, headers: &Headers) -> Option<crate::tcp_state::Segment> {
    let total = packet_end(packet, headers)?;
    let data = headers.l4 + usize::from(packet.get1(headers.l4 + 12)? >> 4) * 4;
    Some(crate::tcp_state::Segment {
        flags: headers.tcp_flags,
        sequence: u32::from_be_bytes(packet.get4(headers.l4 + 4)?),
        acknowledgement: u32::from_be_bytes(packet.get4(headers.l4 + 8)?),
        // No end, no payload to count.
        payload: if total == usize::MAX {
            0
        } else {
            total.saturating_sub(data) as u32
        },
    })
}

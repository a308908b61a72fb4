//! The model's own reading of a frame, from the RFCs, without a line of the
//! packet path's parser.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Headers that begin further behind are not looked at.
const REACH: usize = 1_023;

/// TCP or UDP with ports, an error about it, or a fragment of anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Segment,
    Error,
    Fragment,
}

/// Address, port and protocol of one side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Side {
    pub addr: IpAddr,
    pub port: u16,
    pub protocol: u8,
}

/// A frame as far as it concerns the packet path. Of an error, the sides are
/// those of a packet that would have answered the quoted one.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub kind: Kind,
    pub source: Side,
    pub destination: Side,
    pub hop_limit: u8,
    pub is_tagged: bool,
    /// Offsets of the IP header and of what it carries.
    pub ip: usize,
    pub transport: usize,
    /// The same of a quoted packet.
    pub quoted_ip: usize,
    pub quoted_transport: usize,
    /// Where the IP packet ends by its own account.
    pub end: usize,
}

impl View {
    pub fn is_v6(&self) -> bool {
        self.source.addr.is_ipv6()
    }
}

struct Network {
    source: IpAddr,
    destination: IpAddr,
    next: u8,
    transport: usize,
    offset: u16,
    more: bool,
    hop_limit: u8,
    end: usize,
}

fn bytes<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    if at > REACH {
        return None;
    }
    frame.get(at..at + N)?.try_into().ok()
}

fn number(frame: &[u8], at: usize) -> Option<u16> {
    bytes(frame, at).map(u16::from_be_bytes)
}

fn byte(frame: &[u8], at: usize) -> Option<u8> {
    bytes::<1>(frame, at).map(|[byte]| byte)
}

/// `None`: not for the packet path, whatever it is.
pub fn view(frame: &[u8]) -> Option<View> {
    let mut ip = 12;
    let mut kind = number(frame, ip)?;
    if matches!(kind, 0x8100 | 0x88a8) {
        ip += 4;
        kind = number(frame, ip)?;
        if kind == 0x8100 {
            ip += 4;
            kind = number(frame, ip)?;
        }
    }
    ip += 2;
    let is_v6 = match kind {
        0x0800 => false,
        0x86dd => true,
        _ => return None,
    };
    let outer = network(frame, ip, is_v6)?;
    let mut view = View {
        kind: Kind::Segment,
        source: side(outer.source, 0, outer.next),
        destination: side(outer.destination, 0, outer.next),
        hop_limit: outer.hop_limit,
        is_tagged: ip != 14,
        ip,
        transport: outer.transport,
        quoted_ip: 0,
        quoted_transport: 0,
        end: outer.end,
    };
    if outer.offset != 0 || outer.more {
        view.kind = Kind::Fragment;
        if outer.offset == 0 && matches!(outer.next, 6 | 17) {
            view.source.port = number(frame, view.transport)?;
            view.destination.port = number(frame, view.transport + 2)?;
        }
        return Some(view);
    }
    match (outer.next, is_v6) {
        (6, _) => segment(frame, view, 20),
        (17, _) => segment(frame, view, 8),
        (1, false) | (58, true) => error(frame, view, is_v6),
        _ => None,
    }
}

fn side(addr: IpAddr, port: u16, protocol: u8) -> Side {
    Side {
        addr,
        port,
        protocol,
    }
}

/// The whole fixed header must be there, in the frame and in the packet.
fn segment(frame: &[u8], mut view: View, header: usize) -> Option<View> {
    view.source.port = number(frame, view.transport)?;
    view.destination.port = number(frame, view.transport + 2)?;
    number(frame, view.transport + header - 2)?;
    (view.transport + header <= view.end).then_some(view)
}

fn error(frame: &[u8], mut view: View, is_v6: bool) -> Option<View> {
    let kind = byte(frame, view.transport)?;
    let is_error = if is_v6 {
        (1..=4).contains(&kind)
    } else {
        [3, 11, 12].contains(&kind)
    };
    if !is_error {
        return None;
    }
    view.quoted_ip = view.transport + 8;
    let quoted = network(frame, view.quoted_ip, is_v6)?;
    view.quoted_transport = quoted.transport;
    let is_first = quoted.offset == 0;
    if !is_first || ![6, 17].contains(&quoted.next) || view.destination.addr != quoted.source {
        return None;
    }
    let from = number(frame, quoted.transport)?;
    let to = number(frame, quoted.transport + 2)?;
    view.source = side(quoted.destination, to, quoted.next);
    view.destination = side(quoted.source, from, quoted.next);
    view.kind = Kind::Error;
    (quoted.transport + 8 <= view.end).then_some(view)
}

fn network(frame: &[u8], at: usize, is_v6: bool) -> Option<Network> {
    if is_v6 {
        return network6(frame, at);
    }
    let first = byte(frame, at)?;
    let header = usize::from(first % 16) * 4;
    if first / 16 != 4 || header < 20 {
        return None;
    }
    let fragment = number(frame, at + 6)?;
    Some(Network {
        source: Ipv4Addr::from(bytes::<4>(frame, at + 12)?).into(),
        destination: Ipv4Addr::from(bytes::<4>(frame, at + 16)?).into(),
        next: byte(frame, at + 9)?,
        transport: at + header,
        offset: fragment & 0x1fff,
        more: fragment & 0x2000 != 0,
        hop_limit: byte(frame, at + 8)?,
        end: end(at, number(frame, at + 2)?),
    })
}

fn end(start: usize, length: u16) -> usize {
    if length == 0 {
        usize::MAX
    } else {
        start + usize::from(length)
    }
}

fn network6(frame: &[u8], at: usize) -> Option<Network> {
    if byte(frame, at)? / 16 != 6 {
        return None;
    }
    let mut network = Network {
        source: Ipv6Addr::from(bytes::<16>(frame, at + 8)?).into(),
        destination: Ipv6Addr::from(bytes::<16>(frame, at + 24)?).into(),
        next: byte(frame, at + 6)?,
        transport: at + 40,
        offset: 0,
        more: false,
        hop_limit: byte(frame, at + 7)?,
        end: end(at + 40, number(frame, at + 4)?),
    };
    // At most six extension headers.
    for _ in 0..6 {
        let here = network.transport;
        match network.next {
            0 | 43 | 60 => {
                if network.next == 43 && byte(frame, here + 3)? != 0 {
                    return None;
                }
                network.next = byte(frame, here)?;
                network.transport += 8 + 8 * usize::from(byte(frame, here + 1)?);
            }
            44 => {
                let field = number(frame, here + 2)?;
                network.offset |= field >> 3;
                network.more |= field & 1 != 0;
                network.next = byte(frame, here)?;
                network.transport += 8;
                if network.offset != 0 {
                    break;
                }
            }
            _ => break,
        }
    }
    Some(network)
}

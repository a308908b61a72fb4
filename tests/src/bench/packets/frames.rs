//! Templates: one base frame, and in each copy another client.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use shifter::datapath::memory::MappedArray;

use crate::packet::{ACK, Packet, SYN, addr, sum};

/// Words of a template; see `shifter-ebpf/src/bench/maps.rs`.
pub const TEMPLATE_WORDS: usize = 16;

/// A template as it lies in the map.
pub type Template = [u64; TEMPLATE_WORDS];

/// IP version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

/// What is measured with one set of flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    pub family: Family,
    pub is_udp: bool,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::of(Family::V4, false),
        Self::of(Family::V4, true),
        Self::of(Family::V6, false),
        Self::of(Family::V6, true),
    ];

    const fn of(family: Family, is_udp: bool) -> Self {
        Self { family, is_udp }
    }

    /// As in the name of a case.
    pub fn name(self) -> &'static str {
        match (self.family, self.is_udp) {
            (Family::V4, false) => "ipv4-tcp",
            (Family::V4, true) => "ipv4-udp",
            (Family::V6, false) => "ipv6-tcp",
            (Family::V6, true) => "ipv6-udp",
        }
    }

    /// Bytes of its frames, those of the driver.
    pub fn length(self) -> usize {
        match self.family {
            Family::V4 => 64,
            Family::V6 => 80,
        }
    }

    /// The service.
    pub fn vip(self) -> SocketAddr {
        match self.family {
            Family::V4 => addr("203.0.113.10:443"),
            Family::V6 => addr("[2001:db8::10]:443"),
        }
    }

    /// A backend of the service.
    pub fn backend(self, number: usize) -> SocketAddr {
        let last = 11 + number as u16;
        match self.family {
            Family::V4 => SocketAddr::from(([10, 8, 0, last as u8], 8443)),
            Family::V6 => SocketAddr::from(([0x2001, 0xdb8, 8, 0, 0, 0, 0, last], 8443)),
        }
    }
}

/// Step between the ports that one address uses.
const PORT_STEP: u32 = 1_009;
const FIRST_PORT: u32 = 10_000;

/// The client of a flow; there are 2^20 of them.
pub fn client(family: Family, number: u32) -> SocketAddr {
    let [low, high] = [number & 0xffff, number >> 16];
    let port = (FIRST_PORT + high * PORT_STEP + (low & 0x3ff)) as u16;
    match family {
        Family::V4 => SocketAddr::from(([10, 9, (low >> 8) as u8, low as u8], port)),
        Family::V6 => {
            let mixed = low.wrapping_mul(0x9e37_79b1);
            let words = [
                0x2001,
                0xdb8,
                9,
                0,
                (mixed >> 16) as u16,
                mixed as u16,
                0,
                low as u16,
            ];
            SocketAddr::from((words, port))
        }
    }
}

/// Number of the flow with this client.
pub fn number(client: SocketAddr) -> u32 {
    let low = match client.ip() {
        IpAddr::V4(ip) => u32::from_be_bytes(ip.octets()) & 0xffff,
        IpAddr::V6(ip) => u32::from(ip.segments()[7]),
    };
    let high = (u32::from(client.port()) - FIRST_PORT - (low & 0x3ff)) / PORT_STEP;
    high << 16 | low
}

/// What the packets of a case are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// TCP SYN, or a first datagram.
    Open,
    /// SYN-ACK, or an answer.
    Answer,
    /// What proves; then whatever a client sends.
    Data,
    /// What a backend sends.
    Reply,
    /// Neither port is known.
    NotOurs,
    /// The destination's port is a VIP's, its address is not.
    PortKnown,
}

/// The packet of a role from or to `client`; `backend` where it comes from one.
fn packet(kind: Kind, role: Role, client: SocketAddr, backend: SocketAddr) -> Packet {
    let mut other = kind.vip();
    let elsewhere = match kind.family {
        Family::V4 => addr("198.51.100.7:443"),
        Family::V6 => addr("[2001:db8:5::7]:443"),
    };
    let (source, destination) = match role {
        Role::Open | Role::Data => (client, other),
        Role::Answer | Role::Reply => (backend, client),
        Role::PortKnown => (client, elsewhere),
        Role::NotOurs => {
            other = elsewhere;
            other.set_port(9);
            (client, other)
        }
    };
    if kind.is_udp {
        let room = if kind.family == Family::V4 { 22 } else { 18 };
        return Packet::udp(source, destination).data(&vec![b'd'; room]);
    }
    let room = vec![b'd'; if kind.family == Family::V4 { 10 } else { 6 }];
    match role {
        Role::Open => Packet::tcp(source, destination, SYN).trailer(&room),
        Role::Answer => Packet::tcp(source, destination, SYN | ACK)
            .seq(5_000, 1_001)
            .data(&[])
            .trailer(&room),
        Role::Reply => Packet::tcp(source, destination, ACK)
            .seq(5_001, 1_001)
            .data(&room),
        _ => Packet::tcp(source, destination, ACK)
            .seq(1_001, 5_001)
            .data(&room),
    }
}

/// Writes the frames of `count` flows; `backend_of` says where a flow's
/// replies come from. Returns the first frame.
pub fn fill(
    templates: &MappedArray<Template>,
    kind: Kind,
    role: Role,
    count: u32,
    backend_of: impl Fn(u32) -> usize,
) -> Result<Vec<u8>> {
    let to_client = matches!(role, Role::Answer | Role::Reply);
    let bases: Vec<Base> = (0..BACKENDS)
        .map(|backend| Base::new(kind, role, backend, to_client))
        .collect();
    for flow in 0..count {
        let frame = bases[backend_of(flow)].with(client(kind.family, flow));
        templates.write(flow, frame);
    }
    let first = packet(
        kind,
        role,
        client(kind.family, 0),
        kind.backend(backend_of(0)),
    )
    .frame();
    ensure!(
        first.len() == kind.length() && bytes(&templates.read(0))[..first.len()] == first,
        "a template differs from the frame it stands for"
    );
    Ok(first)
}

/// Backends of the service, half of them blue.
pub const BACKENDS: usize = 8;

fn bytes(template: &Template) -> [u8; 8 * TEMPLATE_WORDS] {
    let mut bytes = [0; 8 * TEMPLATE_WORDS];
    for (at, word) in bytes.chunks_mut(8).zip(template) {
        at.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// A frame of the client with number 0, and where the client stands in it.
struct Base {
    frame: [u8; 8 * TEMPLATE_WORDS],
    /// Address and port.
    places: [std::ops::Range<usize>; 2],
    /// Checksum fields that follow the address, and the port as well.
    header_sum: Option<usize>,
    transport_sum: usize,
    first: SocketAddr,
}

impl Base {
    fn new(kind: Kind, role: Role, backend: usize, to_client: bool) -> Self {
        let first = client(kind.family, 0);
        let text = packet(kind, role, first, kind.backend(backend)).frame();
        let mut frame = [0; 8 * TEMPLATE_WORDS];
        frame[..text.len()].copy_from_slice(&text);
        let is_v4 = kind.family == Family::V4;
        let (l4, length, source) = if is_v4 { (34, 4, 26) } else { (54, 16, 22) };
        let at = source + if to_client { length } else { 0 };
        let port = l4 + if to_client { 2 } else { 0 };
        Self {
            frame,
            places: [at..at + length, port..port + 2],
            header_sum: is_v4.then_some(24),
            transport_sum: l4 + if kind.is_udp { 6 } else { 16 },
            first,
        }
    }

    fn with(&self, client: SocketAddr) -> Template {
        let mut frame = self.frame;
        let [address, port] = self.places.clone();
        match client.ip() {
            IpAddr::V4(ip) => frame[address.clone()].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => frame[address.clone()].copy_from_slice(&ip.octets()),
        }
        frame[port.clone()].copy_from_slice(&client.port().to_be_bytes());
        if client != self.first {
            let addr = difference(&self.frame[address.clone()], &frame[address]);
            let ports = difference(&self.frame[port.clone()], &frame[port]);
            if let Some(at) = self.header_sum {
                update(&mut frame, at, addr);
            }
            update(&mut frame, self.transport_sum, addr + ports);
        }
        std::array::from_fn(|i| u64::from_ne_bytes(std::array::from_fn(|j| frame[8 * i + j])))
    }
}

/// What a ones' complement sum gains (RFC 1624).
fn difference(old: &[u8], new: &[u8]) -> u32 {
    u32::from(sum::sum(new)) + u32::from(!sum::sum(old))
}

fn update(frame: &mut [u8], at: usize, difference: u32) {
    let old = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let mut sum = u32::from(!old) + difference;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[at..at + 2].copy_from_slice(&(!sum as u16).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_differ_and_are_told_by_their_address() {
        for family in [Family::V4, Family::V6] {
            for flow in (0..1 << 20).step_by(331).chain([0xf_ffff]) {
                assert_eq!(number(client(family, flow)), flow);
            }
        }
    }

    #[test]
    fn a_template_is_the_frame_of_its_client() {
        for kind in Kind::ALL {
            for role in [Role::Open, Role::Answer, Role::Data, Role::Reply] {
                let base = Base::new(kind, role, 3, matches!(role, Role::Answer | Role::Reply));
                for flow in [0, 1, 0xffff, 0xf_1234] {
                    let client = client(kind.family, flow);
                    let is = bytes(&base.with(client));
                    let wanted = packet(kind, role, client, kind.backend(3)).frame();
                    assert_eq!(is[..wanted.len()], wanted, "{kind:?} {role:?} {flow}");
                }
            }
        }
    }
}

//! Frames written out field by field, every checksum computed in full: what a
//! packet table says goes in and must come out.

mod build;
pub mod sum;

use std::net::{IpAddr, SocketAddr};

/// TCP flags by their letters.
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const ACK: u8 = 0x10;

/// An IPv6 extension header: its number and its bytes; the first byte (next
/// header) is written when the packet is.
pub type Extension = (u8, Vec<u8>);

/// A packet in words; [`Packet::frame`] writes it out.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Destination and source MAC.
    pub macs: [[u8; 6]; 2],
    /// VLAN tags, outermost first: EtherType and id.
    pub tags: Vec<([u8; 2], u16)>,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// IPv4 options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// IPv4 flags and fragment offset.
    pub fragment: u16,
    /// IPv6 extension headers.
    pub extensions: Vec<Extension>,
    pub body: Body,
    /// Bytes behind the end of the IP packet.
    pub trailer: Vec<u8>,
}

/// What an IP packet carries.
#[derive(Clone, Debug)]
pub enum Body {
    Tcp {
        flags: u8,
        sequence: u32,
        acknowledgement: u32,
        payload: Vec<u8>,
    },
    Udp {
        payload: Vec<u8>,
        /// Without: the field is 0.
        checksum: bool,
    },
    /// An ICMP or ICMPv6 error that quotes the first bytes of a packet.
    Error {
        kind: u8,
        code: u8,
        rest: [u8; 4],
        quoted: Box<Packet>,
        /// Bytes of the quoted packet from its IP header on.
        length: usize,
    },
    /// Anything else, as it is.
    Raw { protocol: u8, bytes: Vec<u8> },
}

/// Parses an address that a table names.
pub fn addr(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|_| panic!("{text} is no address and port"))
}

impl Packet {
    /// A packet with nothing special about it.
    pub fn new(source: SocketAddr, destination: SocketAddr, body: Body) -> Self {
        Self {
            macs: [[0; 6], [2, 0, 0, 0, 0, 7]],
            tags: Vec::new(),
            source,
            destination,
            hop_limit: 64,
            options: Vec::new(),
            fragment: 0x4000,
            extensions: Vec::new(),
            body,
            trailer: Vec::new(),
        }
    }

    /// A TCP segment with three bytes of data (none in a SYN).
    pub fn tcp(source: SocketAddr, destination: SocketAddr, flags: u8) -> Self {
        let payload = if flags & SYN == 0 {
            b"abc".to_vec()
        } else {
            Vec::new()
        };
        let body = Body::Tcp {
            flags,
            sequence: 1_000,
            acknowledgement: if flags & ACK == 0 { 0 } else { 5_001 },
            payload,
        };
        Self::new(source, destination, body)
    }

    /// A UDP datagram.
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        let body = Body::Udp {
            payload: b"question".to_vec(),
            checksum: true,
        };
        Self::new(source, destination, body)
    }

    /// "Destination unreachable: fragmentation needed", or "packet too big",
    /// from `router` to the sender of `quoted`.
    pub fn too_big(router: IpAddr, quoted: &Packet) -> Self {
        let (kind, code) = if router.is_ipv4() { (3, 4) } else { (2, 0) };
        Self::error(router, kind, code, quoted)
    }

    /// Any error from `router` to the sender of `quoted`, quoting all of it.
    pub fn error(router: IpAddr, kind: u8, code: u8, quoted: &Packet) -> Self {
        let body = Body::Error {
            kind,
            code,
            rest: [0, 0, 0x05, 0x14],
            quoted: Box::new(quoted.clone()),
            length: usize::MAX,
        };
        Self::new(SocketAddr::new(router, 0), quoted.source, body)
    }

    /// With other sequence numbers.
    pub fn seq(mut self, new_sequence: u32, new_acknowledgement: u32) -> Self {
        if let Body::Tcp {
            sequence,
            acknowledgement,
            ..
        } = &mut self.body
        {
            *sequence = new_sequence;
            *acknowledgement = new_acknowledgement;
        }
        self
    }

    /// With other data.
    pub fn data(mut self, bytes: &[u8]) -> Self {
        match &mut self.body {
            Body::Tcp { payload, .. } | Body::Udp { payload, .. } => *payload = bytes.to_vec(),
            Body::Raw { bytes: old, .. } => *old = bytes.to_vec(),
            Body::Error { .. } => {}
        }
        self
    }

    /// Without a UDP checksum.
    pub fn unsummed(mut self) -> Self {
        if let Body::Udp { checksum, .. } = &mut self.body {
            *checksum = false;
        }
        self
    }

    /// Of an error: quotes only so many bytes.
    pub fn quoting(mut self, bytes: usize) -> Self {
        if let Body::Error { length, .. } = &mut self.body {
            *length = bytes;
        }
        self
    }

    /// Of an error: with the quoted packet changed.
    pub fn quoted(mut self, change: impl FnOnce(Packet) -> Packet) -> Self {
        if let Body::Error { quoted, .. } = &mut self.body {
            **quoted = change((**quoted).clone());
        }
        self
    }

    /// From another source.
    pub fn from(mut self, source: SocketAddr) -> Self {
        self.source = source;
        self
    }

    /// To another destination.
    pub fn to(mut self, destination: SocketAddr) -> Self {
        self.destination = destination;
        self
    }

    /// With another TTL or hop limit.
    pub fn hops(mut self, hop_limit: u8) -> Self {
        self.hop_limit = hop_limit;
        self
    }

    /// As a next hop gets it: one hop less, other MACs.
    pub fn via(mut self, destination: [u8; 6], source: [u8; 6]) -> Self {
        self.hop_limit -= 1;
        self.macs = [destination, source];
        self
    }

    /// With VLAN tags.
    pub fn tagged(mut self, tags: &[([u8; 2], u16)]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    /// With IPv4 options.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// With an IPv6 extension header more.
    pub fn extension(mut self, number: u8, bytes: &[u8]) -> Self {
        self.extensions.push((number, bytes.to_vec()));
        self
    }

    /// With these IPv4 flags and fragment offset.
    pub fn fragment(mut self, field: u16) -> Self {
        self.fragment = field;
        self
    }

    /// With bytes behind the end of the IP packet.
    pub fn trailer(mut self, bytes: &[u8]) -> Self {
        self.trailer = bytes.to_vec();
        self
    }
}

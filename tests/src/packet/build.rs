//! From words to bytes.

use std::net::{IpAddr, SocketAddr};

use super::{Body, Packet, sum::checksum};

impl Packet {
    /// The whole frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = self.macs.concat();
        for (ethertype, id) in &self.tags {
            frame.extend(ethertype);
            frame.extend(id.to_be_bytes());
        }
        frame.extend(if self.source.is_ipv4() {
            [0x08, 0x00]
        } else {
            [0x86, 0xdd]
        });
        frame.extend(self.packet());
        frame.extend(&self.trailer);
        frame
    }

    /// From the IP header on.
    pub fn packet(&self) -> Vec<u8> {
        let (protocol, body) = self.transport();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header_length = 20 + self.options.len();
                let length = (header_length + body.len()) as u16;
                let mut header = vec![0x40 | (header_length / 4) as u8, 0];
                header.extend(length.to_be_bytes());
                header.extend([0x12, 0x34]);
                header.extend(self.fragment.to_be_bytes());
                header.extend([self.hop_limit, protocol, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                header.extend(&self.options);
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum);
                [header, body].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let extensions = self.extension_bytes(protocol);
                let first = self.extensions.first().map_or(protocol, |(kind, _)| *kind);
                let length = (extensions.len() + body.len()) as u16;
                let mut header = vec![0x60, 0, 0, 0];
                header.extend(length.to_be_bytes());
                header.extend([first, self.hop_limit]);
                header.extend(source.octets());
                header.extend(destination.octets());
                [header, extensions, body].concat()
            }
            _ => panic!("a packet from {} to {}", self.source, self.destination),
        }
    }

    fn extension_bytes(&self, protocol: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (i, (_, extension)) in self.extensions.iter().enumerate() {
            let next = self
                .extensions
                .get(i + 1)
                .map_or(protocol, |(kind, _)| *kind);
            bytes.push(next);
            bytes.extend(&extension[1..]);
        }
        bytes
    }

    /// Protocol number and bytes of what the IP packet carries.
    fn transport(&self) -> (u8, Vec<u8>) {
        let is_v6 = self.source.is_ipv6();
        match &self.body {
            Body::Tcp {
                flags,
                sequence,
                acknowledgement,
                payload,
            } => {
                let mut bytes = self.ports();
                bytes.extend(sequence.to_be_bytes());
                bytes.extend(acknowledgement.to_be_bytes());
                bytes.extend([0x50, *flags, 0x20, 0x00, 0, 0, 0, 0]);
                bytes.extend(payload);
                (6, self.summed(6, bytes, 16))
            }
            Body::Udp { payload, checksum } => {
                let mut bytes = self.ports();
                bytes.extend((8 + payload.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(payload);
                if *checksum {
                    bytes = self.summed(17, bytes, 6);
                    // RFC 768: a checksum of 0 is sent as all ones.
                    if bytes[6..8] == [0, 0] {
                        bytes[6..8].fill(0xff);
                    }
                }
                (17, bytes)
            }
            Body::Error {
                kind,
                code,
                rest,
                quoted,
                length,
            } => {
                let mut bytes = vec![*kind, *code, 0, 0];
                bytes.extend(rest);
                let quoted = quoted.packet();
                bytes.extend(&quoted[..quoted.len().min(*length)]);
                if is_v6 {
                    (58, self.summed(58, bytes, 2))
                } else {
                    let sum = checksum(&bytes);
                    bytes[2..4].copy_from_slice(&sum);
                    (1, bytes)
                }
            }
            Body::Raw { protocol, bytes } => (*protocol, bytes.clone()),
        }
    }

    fn ports(&self) -> Vec<u8> {
        let port = |addr: SocketAddr| addr.port().to_be_bytes();
        [port(self.source), port(self.destination)].concat()
    }

    /// With the checksum over pseudo-header and bytes at `at`.
    fn summed(&self, protocol: u8, mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
        let mut covered = Vec::new();
        for addr in [self.source.ip(), self.destination.ip()] {
            match addr {
                IpAddr::V4(addr) => covered.extend(addr.octets()),
                IpAddr::V6(addr) => covered.extend(addr.octets()),
            }
        }
        covered.extend((bytes.len() as u32).to_be_bytes());
        covered.extend([0, 0, 0, protocol]);
        covered.extend(&bytes);
        bytes[at..at + 2].copy_from_slice(&checksum(&covered));
        bytes
    }
}

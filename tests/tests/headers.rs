//! Where our parser looks for a field is where the kernel's headers have it:
//! frames laid out by `network-types`, whose structs follow those headers.

use std::mem::{offset_of, size_of};

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};
use shifter_common::packet::{
    parse::{Headers, Kind, TCP_ACK, TCP_SYN, narrow, parse},
    slice::SlicePacket,
};

const L3: usize = size_of::<EthHdr>();
const SOURCE_PORT: [u8; 2] = [0x12, 0x34];
const TARGET_PORT: [u8; 2] = [0x56, 0x78];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A frame of zeros with some bytes put in.
fn frame(length: usize, parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for (at, part) in parts {
        bytes[*at..*at + part.len()].copy_from_slice(part);
    }
    bytes
}

fn parsed(mut bytes: Vec<u8>) -> Headers {
    parse(&SlicePacket(&mut bytes)).expect("a whole packet")
}

/// An IPv4 packet with a transport header of `length` bytes at its end.
fn ipv4(protocol: u8, length: usize, transport: &[(usize, &[u8])]) -> (Headers, usize) {
    let l4 = L3 + size_of::<Ipv4Hdr>();
    let total = (size_of::<Ipv4Hdr>() + length) as u16;
    let mut parts: Vec<(usize, &[u8])> = vec![(offset_of!(EthHdr, ether_type), &[0x08, 0x00])];
    let total = total.to_be_bytes();
    let fields: [(usize, &[u8]); 6] = [
        (offset_of!(Ipv4Hdr, vihl), &[0x45]),
        (offset_of!(Ipv4Hdr, tot_len), &total),
        (offset_of!(Ipv4Hdr, ttl), &[63]),
        (offset_of!(Ipv4Hdr, proto), &[protocol]),
        (offset_of!(Ipv4Hdr, src_addr), &[192, 0, 2, 1]),
        (offset_of!(Ipv4Hdr, dst_addr), &[203, 0, 113, 10]),
    ];
    parts.extend(fields.map(|(at, bytes)| (L3 + at, bytes)));
    parts.extend(transport.iter().map(|(at, bytes)| (l4 + at, *bytes)));
    (parsed(frame(l4 + length, &parts)), l4)
}

#[test]
fn the_fields_of_ipv4_and_tcp_lie_where_the_kernels_headers_have_them() {
    // The flags are the last byte of the two that hold offset and flags.
    let flags = offset_of!(TcpHdr, _bitfield_1);
    let (headers, l4) = ipv4(
        TCP,
        size_of::<TcpHdr>(),
        &[
            (offset_of!(TcpHdr, source), &SOURCE_PORT),
            (offset_of!(TcpHdr, dest), &TARGET_PORT),
            (flags, &[0x50, TCP_SYN | TCP_ACK]),
        ],
    );
    assert_eq!((headers.family, headers.protocol), (4, TCP));
    assert_eq!(headers.kind, Kind::Segment);
    assert_eq!((headers.l3, headers.l4), (L3, l4));
    assert_eq!(narrow(&headers.source), [192, 0, 2, 1]);
    assert_eq!(narrow(&headers.destination), [203, 0, 113, 10]);
    assert_eq!(headers.source_port, SOURCE_PORT);
    assert_eq!(headers.destination_port, TARGET_PORT);
    assert_eq!(headers.tcp_flags, TCP_SYN | TCP_ACK);
    assert_eq!(headers.hop_limit, 63);
}

#[test]
fn the_fields_of_udp_lie_where_the_kernels_headers_have_them() {
    let length = size_of::<UdpHdr>();
    let (headers, l4) = ipv4(
        UDP,
        length,
        &[
            (offset_of!(UdpHdr, src), &SOURCE_PORT),
            (offset_of!(UdpHdr, dst), &TARGET_PORT),
            (offset_of!(UdpHdr, len), &(length as u16).to_be_bytes()),
        ],
    );
    assert_eq!((headers.protocol, headers.l4), (UDP, l4));
    assert_eq!(headers.source_port, SOURCE_PORT);
    assert_eq!(headers.destination_port, TARGET_PORT);
}

#[test]
fn the_flag_and_offset_of_fragments_lie_where_the_kernels_headers_have_them() {
    let l4 = L3 + size_of::<Ipv4Hdr>();
    let fragment = |field: [u8; 2]| {
        let parts: [(usize, &[u8]); 5] = [
            (offset_of!(EthHdr, ether_type), &[0x08, 0x00]),
            (L3 + offset_of!(Ipv4Hdr, vihl), &[0x45]),
            (L3 + offset_of!(Ipv4Hdr, tot_len), &[0, 40]),
            (L3 + offset_of!(Ipv4Hdr, proto), &[TCP]),
            (L3 + offset_of!(Ipv4Hdr, frags), &field),
        ];
        parsed(frame(l4 + size_of::<TcpHdr>(), &parts)).kind
    };
    assert_eq!(fragment([0x20, 0]), Kind::Fragment, "more fragments");
    assert_eq!(fragment([0, 1]), Kind::Fragment, "an offset");
    assert_eq!(fragment([0x40, 0]), Kind::Segment, "don't fragment");
}

#[test]
fn the_fields_of_ipv6_lie_where_the_kernels_headers_have_them() {
    let l4 = L3 + size_of::<Ipv6Hdr>();
    let (source, target) = ([0x20; 16], [0xfd; 16]);
    let length = size_of::<TcpHdr>() as u16;
    let ports = [SOURCE_PORT, TARGET_PORT].concat();
    let headers = parsed(frame(
        l4 + size_of::<TcpHdr>(),
        &[
            (offset_of!(EthHdr, ether_type), &[0x86, 0xdd]),
            (L3 + offset_of!(Ipv6Hdr, vcf), &[0x60]),
            (L3 + offset_of!(Ipv6Hdr, payload_len), &length.to_be_bytes()),
            (L3 + offset_of!(Ipv6Hdr, next_hdr), &[TCP]),
            (L3 + offset_of!(Ipv6Hdr, hop_limit), &[9]),
            (L3 + offset_of!(Ipv6Hdr, src_addr), &source),
            (L3 + offset_of!(Ipv6Hdr, dst_addr), &target),
            (l4, &ports),
        ],
    ));
    assert_eq!((headers.family, headers.l4), (6, l4));
    assert_eq!((headers.source, headers.destination), (source, target));
    assert_eq!(headers.source_port, SOURCE_PORT);
    assert_eq!(headers.hop_limit, 9);
}

//! What is not ours leaves as it came, whatever it looks like.

use shifter_tests::{
    need,
    packet::{ACK, Body, Packet, SYN, addr},
    scene::Scene,
};

use crate::{EGRESS, EVERYWHERE, INGRESS, Row, check, untouched, world::*};

fn strangers() -> [Packet; 4] {
    let v4 = (addr("10.9.0.7:40000"), addr("192.0.2.1:25"));
    let v6 = (addr("[2001:db8:9::7]:40000"), addr("[2001:db8:1::1]:25"));
    [
        Packet::tcp(v4.0, v4.1, SYN),
        Packet::tcp(v6.0, v6.1, ACK),
        Packet::udp(v4.0, v4.1),
        Packet::udp(v6.0, v6.1),
    ]
}

fn raw(case: &Case, protocol: u8, bytes: &[u8]) -> Packet {
    let bytes = bytes.to_vec();
    Packet::new(case.client, case.vip, Body::Raw { protocol, bytes })
}

/// With bytes of the finished frame changed.
fn with(packet: &Packet, changes: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = packet.frame();
    for (at, byte) in changes {
        frame[*at] = *byte;
    }
    frame
}

#[test]
fn ports_and_addresses_of_others_are_told_from_ours() {
    need!();
    world(|scene| {
        let mut rows = Vec::new();
        for packet in strangers() {
            rows.push(untouched(
                "a stranger",
                EVERYWHERE,
                packet.frame(),
                "not_ours",
            ));
        }
        let case = routed_tcp4();
        let elsewhere = Packet::tcp(case.client, addr("192.0.2.1:80"), SYN);
        let other_port = Packet::tcp(case.client, addr("203.0.113.20:81"), SYN);
        let as_udp = Packet::udp(case.client, case.vip);
        let unknown = Packet::tcp(case.backend, case.client, ACK).frame();
        let same_port = Packet::tcp(addr("192.0.2.9:8080"), case.client, ACK).frame();
        rows.extend([
            untouched(
                "another host, a VIP's port",
                INGRESS,
                elsewhere.frame(),
                "no_flow",
            ),
            untouched(
                "a VIP's host, another port",
                INGRESS,
                other_port.frame(),
                "not_ours",
            ),
            untouched("the other protocol", INGRESS, as_udp.frame(), "no_flow"),
            untouched("a backend without flows", EVERYWHERE, unknown, "no_flow"),
            untouched(
                "another host, a backend's port",
                EVERYWHERE,
                same_port,
                "no_flow",
            ),
            untouched(
                "a client at egress",
                EGRESS,
                Packet::tcp(case.client, case.vip, SYN).frame(),
                "not_ours",
            ),
        ]);
        check(scene, &rows);
        assert_eq!(flows(scene), 0, "none of them made a flow");
    });
}

fn flows(scene: &Scene) -> u64 {
    use shifter::datapath::Datapath as _;
    scene.datapath.census().live
}

#[test]
fn other_protocols_to_a_vip_pass() {
    need!();
    world(|scene| {
        let mut rows = Vec::new();
        for case in [tcp4(), routed_tcp6()] {
            for (name, protocol) in [("GRE", 47), ("ESP", 50), ("SCTP", 132), ("IP in IP", 4)] {
                let packet = raw(
                    &case,
                    protocol,
                    &[0x9c, 0x40, 0, 80, 0, 0, 0, 0, 1, 2, 3, 4],
                );
                rows.push(untouched(name, EVERYWHERE, packet.frame(), "unparsed"));
            }
        }
        let mac = Packet::tcp(tcp4().client, tcp4().vip, SYN).macs.concat();
        for (name, rest) in [
            ("ARP", &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1][..]),
            ("LLDP", &[0x88, 0xcc, 2, 7]),
            ("802.3 length", &[0, 40, 0x42, 0x42, 3]),
            ("MPLS", &[0x88, 0x47, 0, 0, 1, 64]),
            ("PPPoE", &[0x88, 0x64, 0x11, 0, 0, 1]),
            (
                "three tags",
                &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3, 8, 0],
            ),
        ] {
            let mut frame = [&mac[..], rest].concat();
            frame.resize(60, 0);
            rows.push(untouched(name, EVERYWHERE, frame, "unparsed"));
        }
        check(scene, &rows);
    });
}

#[test]
fn broken_headers_pass() {
    need!();
    world(|scene| {
        let mut rows = Vec::new();
        for case in [tcp4(), tcp6(), routed_udp4(), routed_udp6()] {
            let packet = if case.is_udp {
                Packet::udp(case.client, case.vip).data(&[])
            } else {
                Packet::tcp(case.client, case.vip, SYN)
            };
            let frame = packet.frame();
            for length in 15..frame.len() {
                // The kernel refuses to try what is shorter than an IP header.
                if length >= 14 + if case.vip.is_ipv4() { 20 } else { 40 } {
                    let cut = frame[..length].to_vec();
                    rows.push(untouched("cut short", EVERYWHERE, cut, "unparsed"));
                }
            }
            for version in [0x05, 0x35, 0x55, 0xf5] {
                let frame = with(&packet, &[(14, version)]);
                rows.push(untouched("another version", EVERYWHERE, frame, "unparsed"));
            }
        }
        let case = routed_tcp4();
        let packet = Packet::tcp(case.client, case.vip, SYN);
        for length in [0x40, 0x44, 0x4f] {
            let frame = with(&packet, &[(14, length)]);
            rows.push(untouched("a header length", EVERYWHERE, frame, "unparsed"));
        }
        for total in [19, 39] {
            let frame = with(&packet, &[(16, 0), (17, total)]);
            rows.push(untouched(
                "ends before TCP does",
                EVERYWHERE,
                frame,
                "unparsed",
            ));
        }
        let case = routed_udp6();
        let frame = with(&Packet::udp(case.client, case.vip), &[(19, 7)]);
        rows.push(untouched(
            "ends before UDP does",
            EVERYWHERE,
            frame,
            "unparsed",
        ));
        check(scene, &rows);
        assert_eq!(flows(scene), 0);
    });
}

#[test]
fn extension_headers_that_lead_elsewhere_pass() {
    need!();
    world(|scene| {
        let case = routed_tcp6();
        let packet = Packet::tcp(case.client, case.vip, SYN);
        let pad: &[u8] = &[0, 0, 1, 4, 0, 0, 0, 0];
        let many = |count| (0..count).fold(packet.clone(), |p, _| p.extension(60, pad));
        let under_way = packet.clone().extension(43, &[0, 0, 4, 1, 0, 0, 0, 0]);
        let beyond = packet.clone().extension(60, &[0, 200, 1, 4, 0, 0, 0, 0]);
        check(
            scene,
            &[
                untouched("more than six", INGRESS, many(7).frame(), "unparsed"),
                // Its checksum is made for the last address of the route.
                untouched(
                    "on a route that goes on",
                    INGRESS,
                    under_way.frame(),
                    "unparsed",
                ),
                untouched(
                    "longer than the packet",
                    INGRESS,
                    beyond.frame(),
                    "unparsed",
                ),
                untouched(
                    "no next header",
                    INGRESS,
                    raw(&case, 59, &[0; 20]).frame(),
                    "unparsed",
                ),
                untouched(
                    "authentication header",
                    INGRESS,
                    packet.extension(51, &[0, 1, 0, 0, 0, 0, 0, 9]).frame(),
                    "unparsed",
                ),
            ],
        );
    });
}

#[test]
fn fragments_pass_and_those_to_a_vip_are_counted() {
    need!();
    world(|scene| {
        let rows = |case: Case| -> Vec<Row> {
            let plain = if case.is_udp {
                Packet::udp(case.client, case.vip)
            } else {
                Packet::tcp(case.client, case.vip, SYN)
            };
            let fragment = |packet: &Packet, offset: u16, more: bool| {
                let more = u16::from(more);
                if case.vip.is_ipv4() {
                    packet.clone().fragment(more << 13 | offset).frame()
                } else {
                    let [high, low] = (offset << 3 | more).to_be_bytes();
                    let header = [0, 0, high, low, 0, 0, 0, 1];
                    packet.clone().extension(44, &header).frame()
                }
            };
            let elsewhere = strangers()[if case.vip.is_ipv4() { 2 } else { 3 }].clone();
            vec![
                untouched("first", INGRESS, fragment(&plain, 0, true), "fragment"),
                untouched("middle", INGRESS, fragment(&plain, 100, true), "fragment"),
                untouched("last", INGRESS, fragment(&plain, 200, false), "fragment"),
                untouched("at egress", EGRESS, fragment(&plain, 0, true), "not_ours"),
                untouched(
                    "others'",
                    EVERYWHERE,
                    fragment(&elsewhere, 0, true),
                    "not_ours",
                ),
            ]
        };
        for case in [tcp4(), tcp6(), routed_udp4(), routed_udp6()] {
            check(scene, &rows(case));
        }
        use shifter::datapath::Datapath as _;
        let counted = scene.datapath.pool_counters(1).unwrap()[0].fragments;
        assert_eq!(counted, 2, "the first fragment, by either hook");
    });
}

//! Errors follow the flow they quote, both ways.

use std::net::IpAddr;

use shifter_tests::{
    need,
    packet::{Packet, SYN},
    scene::Action,
};

use crate::{EGRESS, INGRESS, check, row, untouched, world::*};

fn router(case: &Case) -> IpAddr {
    if case.vip.is_ipv4() {
        "10.5.0.1".parse().unwrap()
    } else {
        "2001:db8:5::1".parse().unwrap()
    }
}

/// Kinds and codes of errors of a family.
fn kinds(case: &Case) -> &'static [(u8, u8)] {
    if case.vip.is_ipv4() {
        &[(3, 0), (3, 3), (3, 4), (11, 0), (12, 0)]
    } else {
        &[(1, 0), (1, 4), (2, 0), (3, 0), (4, 1)]
    }
}

#[test]
fn errors_from_the_clients_side_reach_the_backend() {
    need!();
    world(|scene| {
        let mut rows = Vec::new();
        for case in [routed_tcp4(), routed_tcp6(), routed_udp4(), routed_udp6()] {
            scene.judge(
                shifter::datapath::attach::Place::Xdp,
                &opening(&case).frame(),
            );
            for (kind, code) in kinds(&case) {
                let error = Packet::error(router(&case), *kind, *code, &from_vip(&case));
                let out = error
                    .clone()
                    .to(case.backend)
                    .quoted(|q| q.from(case.backend));
                rows.push(row(
                    "translated",
                    INGRESS,
                    error.frame(),
                    "icmp_forward",
                    Action::Pass,
                    out.frame(),
                ));
            }
        }
        for case in [tcp4(), tcp6(), udp4(), udp6()] {
            scene.judge(
                shifter::datapath::attach::Place::Xdp,
                &opening(&case).frame(),
            );
            let error = Packet::too_big(router(&case), &from_vip(&case));
            let out = error
                .clone()
                .to(case.backend)
                .quoted(|q| q.from(case.backend));
            let hop = hop();
            rows.push(row(
                "translated and redirected",
                INGRESS,
                error.frame(),
                "icmp_forward",
                Action::Redirect,
                out.via(hop.destination, hop.source).frame(),
            ));
        }
        check(scene, &rows);
    });
}

#[test]
fn errors_from_the_backends_side_reach_the_client() {
    need!();
    world(|scene| {
        let mut rows = Vec::new();
        for case in [routed_tcp4(), routed_tcp6(), routed_udp4(), routed_udp6()] {
            scene.judge(
                shifter::datapath::attach::Place::Xdp,
                &opening(&case).frame(),
            );
            for (kind, code) in kinds(&case) {
                let quoted = to_backend(&case);
                let error = Packet::error(router(&case), *kind, *code, &quoted);
                let out = error.clone().quoted(|q| q.to(case.vip));
                rows.push(row(
                    "a router's",
                    EGRESS,
                    error.frame(),
                    "icmp_reply",
                    Action::Pass,
                    out.frame(),
                ));
                let error = Packet::error(case.backend.ip(), *kind, *code, &quoted);
                let mut out = error.clone().quoted(|q| q.to(case.vip));
                out.source.set_ip(case.vip.ip());
                rows.push(row(
                    "the backend's own",
                    EGRESS,
                    error.frame(),
                    "icmp_reply",
                    Action::Pass,
                    out.frame(),
                ));
            }
        }
        check(scene, &rows);
    });
}

#[test]
fn an_error_of_a_neighbours_side_is_redirected_to_the_client() {
    need!();
    world(|scene| {
        let hop = route_to_clients(scene, MTU);
        scene.datapath.set_next_hops(&[hop]).unwrap();
        let mut rows = Vec::new();
        for case in [tcp4(), tcp6(), udp4(), udp6()] {
            scene.judge(
                shifter::datapath::attach::Place::Xdp,
                &opening(&case).frame(),
            );
            let error = Packet::too_big(router(&case), &to_backend(&case));
            let out = error.clone().quoted(|q| q.to(case.vip));
            rows.push(row(
                "redirected",
                INGRESS,
                error.frame(),
                "icmp_reply",
                Action::Redirect,
                out.via(hop.destination, hop.source).frame(),
            ));
        }
        check(scene, &rows);
    });
}

#[test]
fn a_quoted_packet_may_end_after_eight_bytes_and_carry_options() {
    need!();
    world(|scene| {
        let mut rows = Vec::new();
        for case in [routed_tcp4(), routed_tcp6(), routed_udp4(), routed_udp6()] {
            scene.judge(
                shifter::datapath::attach::Place::Xdp,
                &opening(&case).frame(),
            );
            let header = if case.vip.is_ipv4() { 20 } else { 40 };
            // 18: the quoted TCP checksum is there, what follows it is not.
            for transport in [8, 18] {
                let error = Packet::error(router(&case), 3, 0, &from_vip(&case))
                    .quoting(header + transport);
                let out = error
                    .clone()
                    .to(case.backend)
                    .quoted(|q| q.from(case.backend));
                rows.push(row(
                    "cut short",
                    INGRESS,
                    error.frame(),
                    "icmp_forward",
                    Action::Pass,
                    out.frame(),
                ));
                let trailer = [0xa5; 30];
                rows.push(row(
                    "cut short, with a trailer behind",
                    INGRESS,
                    error.trailer(&trailer).frame(),
                    "icmp_forward",
                    Action::Pass,
                    out.trailer(&trailer).frame(),
                ));
            }
            let quoted = if case.vip.is_ipv4() {
                from_vip(&case).options(&[1, 1, 1, 0])
            } else {
                from_vip(&case).extension(60, &[0, 0, 1, 4, 0, 0, 0, 0])
            };
            let error = Packet::too_big(router(&case), &quoted);
            let out = error
                .clone()
                .to(case.backend)
                .quoted(|q| q.from(case.backend));
            rows.push(row(
                "quoted options",
                INGRESS,
                error.frame(),
                "icmp_forward",
                Action::Pass,
                out.frame(),
            ));
        }
        check(scene, &rows);
    });
}

#[test]
fn a_quoted_udp_checksum_never_becomes_none() {
    need!();
    world(|scene| {
        let case = routed_udp4();
        let field = |packet: &Packet| {
            let bytes = packet.packet();
            u16::from_be_bytes([bytes[26], bytes[27]])
        };
        let zero = from_vip(&case).data(&[0, 0]).from(case.backend);
        let quoted = from_vip(&case).data(&field(&zero).to_be_bytes());
        assert_eq!(field(&quoted.clone().from(case.backend)), 0xffff);
        let none = from_vip(&case).unsummed();
        let mut rows = vec![row(
            "opens",
            INGRESS,
            opening(&case).frame(),
            "forward_kernel",
            Action::Pass,
            opening(&case).to(case.backend).frame(),
        )];
        for (name, quoted) in [("becomes zero", quoted), ("there is none", none)] {
            let error = Packet::too_big(router(&case), &quoted);
            let out = error
                .clone()
                .to(case.backend)
                .quoted(|q| q.from(case.backend));
            rows.push(row(
                name,
                INGRESS,
                error.frame(),
                "icmp_forward",
                Action::Pass,
                out.frame(),
            ));
        }
        check(scene, &rows);
    });
}

#[test]
fn errors_about_what_is_not_ours_pass_untouched() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        let elsewhere = "203.0.113.99".parse().unwrap();
        let mut lying = Packet::too_big(router(&case), &from_vip(&case));
        lying.destination.set_ip(elsewhere);
        let ping = |kind| {
            let mut packet = Packet::tcp(case.client, case.vip, SYN);
            packet.body = shifter_tests::packet::Body::Raw {
                protocol: 1,
                bytes: vec![kind, 0, 0, 0, 0, 1, 0, 1],
            };
            packet.frame()
        };
        let error = Packet::too_big(router(&case), &from_vip(&case));
        let later = error.clone().quoted(|q| q.fragment(0x0003));
        let mut truncated = error.frame();
        truncated.truncate(14 + 20 + 8 + 20 + 3);
        check(
            scene,
            &[
                untouched("no flow", INGRESS, error.frame(), "no_flow"),
                untouched("not to whom it quotes", INGRESS, lying.frame(), "unparsed"),
                untouched(
                    "a later fragment quoted",
                    INGRESS,
                    later.frame(),
                    "unparsed",
                ),
                untouched("ports cut off", INGRESS, truncated, "unparsed"),
                untouched("echo request", INGRESS, ping(8), "unparsed"),
                untouched("redirect", INGRESS, ping(5), "unparsed"),
            ],
        );
    });
}

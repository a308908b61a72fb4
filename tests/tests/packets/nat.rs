//! What is ours: client to backend and back, whatever the headers in between.

use shifter::datapath::Datapath as _;
use shifter_tests::{
    need,
    packet::{ACK, Packet, SYN},
    scene::Action,
};

use crate::{EGRESS, INGRESS, Row, check, row, untouched, world::*};

/// What the backend answers to the client.
fn answer(case: &Case) -> Packet {
    if case.is_udp {
        Packet::udp(case.backend, case.client)
    } else {
        Packet::tcp(case.backend, case.client, SYN | ACK).seq(5_000, 1_001)
    }
}

/// Client to backend by the kernel: the destination changes, nothing else.
fn forwarded(name: &'static str, case: &Case, packet: Packet) -> Row {
    let out = packet.clone().to(case.backend).frame();
    row(
        name,
        INGRESS,
        packet.frame(),
        "forward_kernel",
        Action::Pass,
        out,
    )
}

/// Client to a neighbour: MACs and the hop limit too.
fn redirected(name: &'static str, case: &Case, packet: Packet) -> Row {
    let hop = hop();
    let out = packet.clone().to(case.backend);
    row(
        name,
        INGRESS,
        packet.frame(),
        "forward_redirect",
        Action::Redirect,
        out.via(hop.destination, hop.source).frame(),
    )
}

/// Backend to client at egress: the source becomes the VIP.
fn unnatted(name: &'static str, case: &Case, packet: Packet) -> Row {
    let out = packet.clone().from(case.vip).frame();
    row(
        name,
        EGRESS,
        packet.frame(),
        "reply_egress",
        Action::Pass,
        out,
    )
}

#[test]
fn every_family_and_protocol_goes_to_its_backend_and_back() {
    need!();
    world(|scene| {
        let mut rows = Vec::new();
        for case in [routed_tcp4(), routed_tcp6(), routed_udp4(), routed_udp6()] {
            rows.push(forwarded("to the backend", &case, opening(&case)));
            rows.push(unnatted("and back", &case, answer(&case)));
        }
        for case in [tcp4(), tcp6(), udp4(), udp6()] {
            rows.push(redirected("to the neighbour", &case, opening(&case)));
            rows.push(unnatted("and back, at egress", &case, answer(&case)));
        }
        check(scene, &rows);
    });
}

#[test]
fn options_extension_headers_and_tags_change_nothing_about_it() {
    need!();
    const OPTIONS: &[u8] = &[0x94, 0x04, 0, 0, 1, 1, 1, 0];
    const PAD: &[u8] = &[0, 0, 1, 4, 0, 0, 0, 0];
    const LONG_PAD: &[u8] = &[0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const ROUTED: &[u8] = &[0, 0, 4, 0, 0, 0, 0, 0];
    const ATOMIC: &[u8] = &[0, 0, 0, 0, 1, 2, 3, 4];
    world(|scene| {
        let mut rows = Vec::new();
        for case in [routed_tcp4(), routed_udp4()] {
            let plain = opening(&case);
            rows.push(forwarded(
                "IPv4 options",
                &case,
                plain.clone().options(OPTIONS),
            ));
            rows.push(forwarded(
                "a trailer",
                &case,
                plain.clone().trailer(&[0; 18]),
            ));
            rows.push(forwarded(
                "one tag",
                &case,
                plain.clone().tagged(&[([0x81, 0], 5)]),
            ));
            let two = [([0x88, 0xa8], 5), ([0x81, 0], 6)];
            rows.push(forwarded("two tags", &case, plain.clone().tagged(&two)));
            let options = answer(&case).options(OPTIONS).tagged(&two);
            rows.push(unnatted("tagged and optioned reply", &case, options));
        }
        for case in [routed_tcp6(), routed_udp6()] {
            let plain = opening(&case);
            for (name, number, bytes) in [
                ("hop-by-hop", 0, PAD),
                ("destination options", 60, LONG_PAD),
                ("routing, at its end", 43, ROUTED),
                ("atomic fragment", 44, ATOMIC),
            ] {
                rows.push(forwarded(
                    name,
                    &case,
                    plain.clone().extension(number, bytes),
                ));
                rows.push(unnatted(
                    name,
                    &case,
                    answer(&case).extension(number, bytes),
                ));
            }
            let all = plain
                .extension(0, PAD)
                .extension(60, LONG_PAD)
                .extension(43, ROUTED)
                .extension(44, ATOMIC)
                .extension(60, PAD);
            rows.push(forwarded(
                "five, behind a tag",
                &case,
                all.tagged(&[([0x81, 0], 9)]),
            ));
        }
        check(scene, &rows);
    });
}

#[test]
fn a_tagged_frame_is_never_redirected() {
    need!();
    world(|scene| {
        let case = tcp4();
        let packet = opening(&case).tagged(&[([0x81, 0], 5)]);
        check(scene, &[forwarded("to the kernel", &case, packet)]);
    });
}

#[test]
fn a_udp_checksum_of_zero_stays_and_one_that_becomes_zero_is_all_ones() {
    need!();
    world(|scene| {
        let mut rows = Vec::new();
        for case in [routed_udp4(), routed_udp6()] {
            let plain = opening(&case);
            rows.push(forwarded("no checksum", &case, plain.clone().unsummed()));
            rows.push(unnatted(
                "no checksum",
                &case,
                answer(&case).data(b"x").unsummed(),
            ));
            // Two bytes of data that make the rewritten checksum all ones.
            let field = |packet: &Packet| {
                let bytes = packet.packet();
                let at = bytes.len() - 2 - 2;
                u16::from_be_bytes([bytes[at], bytes[at + 1]])
            };
            let zero = plain.clone().data(&[0, 0]).to(case.backend);
            let fill = field(&zero).to_be_bytes();
            let becomes = plain.data(&fill);
            assert_eq!(field(&becomes.clone().to(case.backend)), 0xffff);
            rows.push(forwarded("becomes zero", &case, becomes));
        }
        check(scene, &rows);
    });
}

#[test]
fn too_long_or_worn_out_packets_go_to_the_kernel() {
    need!();
    world(|scene| {
        let mut rows = Vec::new();
        for case in [tcp4(), tcp6(), udp4(), udp6()] {
            let plain = opening(&case);
            let header = plain.clone().data(&[]).packet().len();
            let mut fits = plain.clone().data(&vec![7; MTU as usize - header]);
            rows.push(redirected("as long as the MTU", &case, fits.clone()));
            fits = fits.data(&vec![7; MTU as usize - header + 1]);
            let out = fits.clone().to(case.backend).frame();
            rows.push(row(
                "a byte longer",
                INGRESS,
                fits.frame(),
                "too_big",
                Action::Pass,
                out,
            ));
            for hops in [0, 1] {
                let worn = plain.clone().hops(hops);
                let out = worn.clone().to(case.backend).frame();
                rows.push(row(
                    "no hop left",
                    INGRESS,
                    worn.frame(),
                    "ttl_expired",
                    Action::Pass,
                    out,
                ));
            }
            rows.push(redirected("one hop left", &case, plain.hops(2)));
        }
        check(scene, &rows);
    });
}

#[test]
fn replies_of_neighbours_are_redirected_where_the_client_is_known() {
    need!();
    world(|scene| {
        let mut rows = Vec::new();
        for case in [tcp4(), tcp6(), udp4(), udp6()] {
            rows.push(redirected("opens", &case, opening(&case)));
            let reply = answer(&case).frame();
            rows.push(untouched("no route yet", INGRESS, reply, "reply_kernel"));
        }
        check(scene, &rows);
        let hop = route_to_clients(scene, MTU);
        scene.datapath.set_next_hops(&[hop]).unwrap();
        let mut rows = Vec::new();
        for case in [tcp4(), tcp6(), udp4(), udp6()] {
            let reply = answer(&case);
            let out = reply.clone().from(case.vip);
            rows.push(row(
                "redirected",
                INGRESS,
                reply.frame(),
                "reply_redirect",
                Action::Redirect,
                out.via(hop.destination, hop.source).frame(),
            ));
            let worn = reply.clone().hops(1).frame();
            rows.push(untouched("no hop left", INGRESS, worn, "ttl_expired"));
            let long = reply.clone().data(&[7; MTU as usize]).frame();
            rows.push(untouched("too long", INGRESS, long, "too_big"));
            let tagged = reply.tagged(&[([0x81, 0], 5)]).frame();
            rows.push(untouched("tagged", INGRESS, tagged, "reply_kernel"));
        }
        check(scene, &rows);
    });
}

#[test]
fn replies_of_what_the_kernel_routes_are_left_to_egress() {
    need!();
    world(|scene| {
        let hop = route_to_clients(scene, MTU);
        scene.datapath.set_next_hops(&[hop]).unwrap();
        for case in [routed_tcp4(), routed_udp6()] {
            check(
                scene,
                &[
                    forwarded("opens", &case, opening(&case)),
                    untouched("reply", INGRESS, answer(&case).frame(), "reply_kernel"),
                ],
            );
        }
    });
}

#[test]
fn a_flow_of_a_removed_backend_passes_untouched() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        check(scene, &[forwarded("opens", &case, opening(&case))]);
        scene.datapath.delete_backend(backend_id(5)).unwrap();
        let goes_on = Packet::tcp(case.client, case.vip, ACK).frame();
        check(
            scene,
            &[untouched("goes on", INGRESS, goes_on, "gone_backend")],
        );
    });
}

#[test]
fn a_reply_too_long_for_the_route_goes_to_the_kernel_while_the_next_hop_is_new() {
    need!();
    world(|scene| {
        let hop = route_to_clients(scene, MTU);
        scene.ip("link set out mtu 1300");
        for case in [tcp4(), udp6()] {
            let reply = answer(&case);
            let header = reply.clone().data(&[]).packet().len();
            let fits = reply.clone().data(&vec![7; 1_300 - header]);
            let out = fits.clone().from(case.vip);
            let long = reply.data(&vec![7; 1_301 - header]).frame();
            check(
                scene,
                &[
                    redirected("opens", &case, opening(&case)),
                    untouched("too long", INGRESS, long, "reply_kernel"),
                    row(
                        "as long as the MTU",
                        INGRESS,
                        fits.frame(),
                        "reply_redirect",
                        Action::Redirect,
                        out.via(hop.destination, hop.source).frame(),
                    ),
                ],
            );
        }
    });
}

//! When there is no room, no backend, or two services meet on one backend.

use std::net::SocketAddr;

use shifter::{
    datapath::{Datapath as _, Placement, attach::Place},
    model::Protocol,
};
use shifter_common::abi::{ServiceBody, service::head_parts};
use shifter_tests::{
    need,
    packet::{ACK, FIN, Packet, SYN, addr},
    scene::{Action, Scene, image},
};

use crate::{INGRESS, check, row, untouched, world::*};

/// Clients enough to fill a table of 1,024 flows, which has 2,048 entries.
const CROWD: u32 = 20_000;

fn client(number: u32) -> SocketAddr {
    let [_, high, mid, low] = number.to_be_bytes();
    SocketAddr::from(([10, 9 + high, mid, low], 40_000))
}

fn give(scene: &mut Scene, packet: &Packet) -> &'static str {
    scene.judge(Place::TcIngress, &packet.frame()).verdict
}

/// A flow that is proven.
fn prove(scene: &mut Scene, case: &Case, client: SocketAddr) -> Action {
    let action = scene
        .run(
            Place::TcIngress,
            &Packet::tcp(client, case.vip, SYN).frame(),
        )
        .0;
    let synack = Packet::tcp(case.backend, client, SYN | ACK).seq(5_000, 1_001);
    scene.run(Place::TcEgress, &synack.frame());
    let ack = Packet::tcp(client, case.vip, ACK).seq(1_001, 5_001);
    scene.run(Place::TcIngress, &ack.frame());
    action
}

#[test]
fn unproven_flows_give_way_and_proven_ones_never() {
    need!();
    world_of(1_024, |scene| {
        let case = routed_tcp4();
        for number in 0..500 {
            assert_eq!(prove(scene, &case, client(number)), Action::Pass);
        }
        for number in 1_000..CROWD {
            let syn = Packet::tcp(client(number), case.vip, SYN).frame();
            let (action, _) = scene.run(Place::TcIngress, &syn);
            assert_eq!(action, Action::Pass, "an older SYN gives way to {number}");
        }
        let census = scene.datapath.census();
        assert_eq!(census.proven, 500, "no flood touches what is proven");
        assert!(census.unproven > 1_400, "{census:?}");
    });
}

#[test]
fn a_table_of_proven_flows_drops_what_is_new_and_says_so() {
    need!();
    world_of(1_024, |scene| {
        let case = routed_tcp4();
        let mut refused = None;
        let mut proven = 0;
        for number in 0..CROWD {
            match prove(scene, &case, client(number)) {
                Action::Drop => refused = refused.or(Some(number)),
                _ => proven += 1,
            }
        }
        assert_eq!(scene.datapath.census().proven, proven);
        assert_eq!(proven, 2_048, "every entry carries a flow in the end");
        let refused = refused.expect("more clients than entries");
        assert!(refused > 1_024, "flow {refused} of a capacity of 1,024");

        let syn = Packet::tcp(client(refused), case.vip, SYN).frame();
        let dropped = row(
            "no room",
            INGRESS,
            syn.clone(),
            "table_full",
            Action::Drop,
            syn,
        );
        check(scene, &[dropped]);

        // Where the live pool is the VIP itself, nothing need be dropped.
        let mut image = crate::world::service(5);
        image.live_has_vip = true;
        scene.service(&image, &[vip_id(5)], &[backend_id(5)]);
        let syn = Packet::tcp(client(refused), case.vip, SYN).frame();
        check(
            scene,
            &[untouched(
                "no room, the VIP serves",
                INGRESS,
                syn,
                "table_full_vip",
            )],
        );
    });
}

#[test]
fn without_any_backend_a_new_flow_is_dropped_unless_the_vip_serves() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        scene.service(&crate::world::service(5), &[], &[]);
        let syn = Packet::tcp(case.client, case.vip, SYN).frame();
        let dropped = row(
            "nobody there",
            INGRESS,
            syn.clone(),
            "no_backend",
            Action::Drop,
            syn.clone(),
        );
        check(scene, &[dropped]);
        let mut image = crate::world::service(5);
        image.live_has_vip = true;
        scene.service(&image, &[], &[]);
        check(
            scene,
            &[untouched("the VIP serves", INGRESS, syn, "forward_vip")],
        );
    });
}

/// Two services whose only backend is the same server.
fn two_services(scene: &Scene) -> [SocketAddr; 2] {
    let vips = [addr("203.0.113.41:80"), addr("203.0.113.42:80")];
    let shared = addr("10.8.0.50:8080");
    scene.backend(60, shared, Protocol::Tcp, Placement::Kernel { netns: None });
    for (id, vip) in [21, 22].into_iter().zip(vips) {
        scene.backend(50 + id, vip, Protocol::Tcp, Placement::Host);
        scene.service(&image(id, vip, Protocol::Tcp, 50 + id), &[60], &[]);
    }
    vips
}

#[test]
fn two_services_clash_on_one_backend_and_the_younger_gives_way() {
    need!();
    world(|scene| {
        let [first, second] = two_services(scene);
        let far = addr("10.9.0.7:42000");
        let shared = addr("10.8.0.50:8080");
        let case = Case {
            client: far,
            vip: first,
            backend: shared,
            is_udp: false,
        };
        assert_eq!(give(scene, &Packet::tcp(far, first, SYN)), "forward_kernel");
        // Half-open: the older one is recycled.
        assert_eq!(
            give(scene, &Packet::tcp(far, second, SYN)),
            "forward_kernel"
        );
        assert_eq!(scene.datapath.census().live, 1);
        prove(scene, &case, far);
        let syn = Packet::tcp(far, second, SYN);
        let dropped = row(
            "proven",
            INGRESS,
            syn.frame(),
            "tuple_clash",
            Action::Drop,
            syn.frame(),
        );
        check(scene, &[dropped]);
        // Another backend of the ring takes it where there is one.
        let other = addr("10.8.0.51:8080");
        scene.backend(61, other, Protocol::Tcp, Placement::Kernel { netns: None });
        let both = image(22, second, Protocol::Tcp, 72);
        scene.service(&both, &[60, 61], &[]);
        assert_eq!(give(scene, &syn), "forward_kernel");
        assert_eq!(scene.datapath.census().services[&22], [1, 0]);
        assert_eq!(scene.datapath.census().backends[&61], 1);
    });
}

#[test]
fn a_flow_chosen_anew_does_not_take_over_what_another_service_holds() {
    need!();
    world(|scene| {
        let [first, second] = two_services(scene);
        let far = addr("10.9.0.7:42000");
        let (shared, other) = (addr("10.8.0.50:8080"), addr("10.8.0.51:8080"));
        scene.backend(61, other, Protocol::Tcp, Placement::Kernel { netns: None });
        let case = |vip, backend| Case {
            client: far,
            vip,
            backend,
            is_udp: false,
        };
        // The second service's flow lives on another server and is closing.
        scene.service(&image(22, second, Protocol::Tcp, 72), &[61], &[]);
        prove(scene, &case(second, other), far);
        give(scene, &Packet::tcp(far, second, FIN | ACK));
        scene.judge(Place::TcEgress, &Packet::tcp(other, far, FIN | ACK).frame());
        // The first service's flow from the same port is proven on the shared one.
        prove(scene, &case(first, shared), far);
        scene.service(&image(22, second, Protocol::Tcp, 72), &[60], &[]);
        assert_eq!(give(scene, &Packet::tcp(far, second, SYN)), "tuple_clash");
        let reply = Packet::tcp(shared, far, ACK);
        let out = reply.clone().from(first).frame();
        check(
            scene,
            &[row(
                "still the first one's",
                crate::EGRESS,
                reply.frame(),
                "reply_egress",
                Action::Pass,
                out,
            )],
        );
    });
}

#[test]
fn a_record_that_names_another_service_is_not_ours() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        let heads = scene.map::<u64>("SERVICE_HEAD", shifter_common::abi::MAX_SERVICES);
        let bodies =
            scene.map::<ServiceBody>("SERVICE_BODY", shifter_common::abi::MAX_SERVICE_BODIES);
        let (slot, _) = head_parts(heads.read(5));
        let body = bodies.read(slot);
        let syn = Packet::tcp(case.client, case.vip, SYN).frame();
        for wrong in [
            ServiceBody { service: 6, ..body },
            ServiceBody {
                check: body.check + 1,
                ..body
            },
        ] {
            bodies.write(slot, wrong);
            check(
                scene,
                &[untouched("passes", INGRESS, syn.clone(), "bad_body")],
            );
        }
    });
}

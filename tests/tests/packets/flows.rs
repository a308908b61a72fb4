//! Which packets make, keep, renew and end a flow.

use shifter::{
    datapath::{
        BackendImage, Datapath as _, DeadManImage, FlowFilter, FlowRow, Placement, attach::Place,
        boot_ns, monotonic_ns,
    },
    model::{PoolName, Protocol},
};
use shifter_common::abi::{FlowEntry, flow::FlowSet};
use shifter_tests::{
    need,
    packet::{ACK, FIN, Packet, RST, SYN, addr},
    scene::{Action, Scene, image},
};

use crate::{EGRESS, INGRESS, check, row, untouched, world::*};

/// The only flow there is.
fn flow(scene: &Scene) -> FlowRow {
    let rows = flows(scene);
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows[0].clone()
}

pub fn flows(scene: &Scene) -> Vec<FlowRow> {
    let filter = FlowFilter {
        limit: 100,
        ..FlowFilter::default()
    };
    scene.datapath.flows(&filter).0
}

/// Gives a packet to tc ingress.
pub fn give(scene: &mut Scene, packet: &Packet) -> &'static str {
    scene.judge(Place::TcIngress, &packet.frame()).verdict
}

/// Gives a packet to tc egress.
fn answer(scene: &mut Scene, packet: &Packet) -> &'static str {
    scene.judge(Place::TcEgress, &packet.frame()).verdict
}

pub fn client(case: &Case, flags: u8) -> Packet {
    Packet::tcp(case.client, case.vip, flags)
}

fn server(case: &Case, flags: u8) -> Packet {
    Packet::tcp(case.backend, case.client, flags)
}

/// SYN, SYN-ACK, ACK.
pub fn handshake(scene: &mut Scene, case: &Case) {
    give(scene, &client(case, SYN).seq(1_000, 0));
    answer(scene, &server(case, SYN | ACK).seq(5_000, 1_001));
    give(scene, &client(case, ACK).seq(1_001, 5_001).data(&[]));
}

/// All flows were last seen so many seconds ago.
pub fn age(scene: &Scene, seconds: u64) {
    let ticks = (seconds * 1_000_000_000) >> 24;
    let sets = shifter::datapath::load::flow_sets(16_384);
    let map = scene.map::<FlowSet>("FLOWS", sets);
    for set in 0..sets {
        let mut entries: [FlowEntry; 16] = map.read(set);
        for entry in &mut entries {
            entry.last_seen = entry.last_seen.wrapping_sub(ticks as u32);
        }
        map.write(set, entries);
    }
}

/// Lets green have a backend and all new flows.
fn to_green(scene: &Scene, service: u16) {
    let green = addr("10.8.0.99:8080");
    scene.backend(90, green, Protocol::Tcp, Placement::Kernel { netns: None });
    let mut image = crate::world::service(service);
    image.threshold = 1 << 32;
    image.generation = 2;
    scene.service(&image, &[backend_id(service)], &[90]);
}

#[test]
fn a_handshake_proves_and_fins_both_ways_close() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        give(scene, &client(&case, SYN).seq(1_000, 0));
        assert_eq!(
            (flow(scene).state, flow(scene).proven),
            ("half_open", false)
        );
        answer(scene, &server(&case, SYN | ACK).seq(5_000, 1_001));
        give(scene, &client(&case, ACK).seq(1_001, 7_777));
        assert_eq!(flow(scene).state, "half_open", "a guess proves nothing");
        give(scene, &client(&case, ACK).seq(1_001, 5_001));
        assert_eq!(
            (flow(scene).state, flow(scene).proven),
            ("established", true)
        );
        give(scene, &client(&case, FIN | ACK).seq(1_004, 5_001));
        assert_eq!(flow(scene).state, "established");
        answer(scene, &server(&case, FIN | ACK).seq(5_001, 1_005));
        assert_eq!(flow(scene).state, "closing");
    });
}

#[test]
fn an_established_flow_stays_whatever_the_weight_says() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        handshake(scene, &case);
        to_green(scene, 5);
        let packet = client(&case, ACK);
        let out = packet.clone().to(case.backend).frame();
        check(
            scene,
            &[row(
                "goes on to blue",
                INGRESS,
                packet.frame(),
                "forward_kernel",
                Action::Pass,
                out,
            )],
        );
        assert_eq!(flow(scene).pool, PoolName::Blue);
        assert_eq!(flow(scene).generation, 1);
    });
}

#[test]
fn a_syn_again_meets_its_entry_until_that_is_over() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        give(scene, &client(&case, SYN));
        to_green(scene, 5);
        give(scene, &client(&case, SYN));
        assert_eq!(flow(scene).pool, PoolName::Blue, "retransmitted");
        age(scene, 80);
        give(scene, &client(&case, SYN));
        assert_eq!(flow(scene).pool, PoolName::Green, "half-open and expired");
        assert_eq!(flow(scene).generation, 2);
    });
}

#[test]
fn a_syn_on_a_closing_entry_is_chosen_anew() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        handshake(scene, &case);
        to_green(scene, 5);
        give(scene, &client(&case, SYN));
        assert_eq!(flow(scene).pool, PoolName::Blue, "a proven entry holds");
        give(scene, &client(&case, FIN | ACK));
        answer(scene, &server(&case, FIN | ACK));
        let packet = client(&case, SYN);
        let out = packet.clone().to(addr("10.8.0.99:8080")).frame();
        let anew = row(
            "chosen anew",
            &[Place::TcIngress],
            packet.frame(),
            "forward_kernel",
            Action::Pass,
            out,
        );
        check(scene, &[anew]);
        assert_eq!(flow(scene).pool, PoolName::Green);
        let [blue, green] = scene.datapath.pool_counters(5).unwrap();
        assert_eq!((blue.new_flows, green.new_flows), (1, 1));
    });
}

#[test]
fn a_syn_leaves_a_backend_that_is_down_or_in_maint() {
    need!();
    for (maint, down) in [(true, false), (false, true)] {
        world(move |scene| {
            let case = routed_tcp4();
            handshake(scene, &case);
            to_green(scene, 5);
            let image = BackendImage {
                addr: case.backend,
                protocol: Protocol::Tcp,
                placement: Placement::Kernel { netns: None },
                maint,
                down,
            };
            scene.datapath.put_backend(backend_id(5), &image).unwrap();
            give(scene, &client(&case, ACK));
            assert_eq!(flow(scene).pool, PoolName::Blue, "what exists stays");
            give(scene, &client(&case, SYN));
            assert_eq!(flow(scene).pool, PoolName::Green);
        });
    }
}

#[test]
fn a_reset_without_an_entry_is_forwarded_and_makes_none() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        let packet = client(&case, RST);
        let out = packet.clone().to(case.backend).frame();
        check(
            scene,
            &[row(
                "forwarded",
                INGRESS,
                packet.frame(),
                "unpinned",
                Action::Pass,
                out,
            )],
        );
        assert_eq!(flows(scene).len(), 0);
    });
}

#[test]
fn only_a_plausible_reset_ends_a_flow() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        handshake(scene, &case);
        answer(scene, &server(&case, ACK).seq(5_001, 1_001));
        give(scene, &client(&case, RST).seq(9, 0));
        assert_eq!(flow(scene).state, "established");
        give(scene, &client(&case, RST).seq(1_001, 0));
        assert_eq!(flow(scene).state, "reset");
        answer(scene, &server(&case, ACK).seq(5_004, 1_001));
        assert_eq!(flow(scene).state, "established", "it goes on after all");
    });
}

#[test]
fn a_reset_that_answers_an_adopted_flow_ends_it() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        give(scene, &client(&case, ACK).seq(1_001, 5_001));
        assert_eq!((flow(scene).state, flow(scene).adopted), ("adopted", true));
        answer(scene, &server(&case, RST).seq(7, 0));
        assert_eq!(flow(scene).state, "adopted", "it answers nothing");
        answer(scene, &server(&case, RST).seq(5_001, 0));
        assert_eq!(flow(scene).state, "reset");
    });
}

#[test]
fn what_is_taken_over_goes_to_the_live_pool() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        to_green(scene, 5);
        give(scene, &client(&case, ACK));
        assert_eq!(flow(scene).pool, PoolName::Blue, "whatever the weight says");
        assert!(!flow(scene).proven);
        answer(scene, &server(&case, ACK));
        assert!(flow(scene).proven);
        let [blue, green] = scene.datapath.pool_counters(5).unwrap();
        assert_eq!(
            (blue.adopted_flows, blue.new_flows, green.new_flows),
            (1, 0, 0)
        );
    });
}

#[test]
fn the_vip_itself_serves_untouched() {
    need!();
    world(|scene| {
        let (vip, far) = (addr("203.0.113.30:80"), addr("10.9.0.7:41000"));
        scene.backend(80, vip, Protocol::Tcp, Placement::Host);
        let mut service = image(20, vip, Protocol::Tcp, 80);
        service.live_has_vip = true;
        scene.service(&service, &[80], &[]);
        let syn = Packet::tcp(far, vip, SYN).frame();
        let synack = Packet::tcp(vip, far, SYN | ACK).seq(5_000, 1_001).frame();
        let ack = Packet::tcp(far, vip, ACK).frame();
        let error = Packet::too_big("10.5.0.1".parse().unwrap(), &Packet::tcp(vip, far, ACK));
        check(
            scene,
            &[
                untouched("opens", INGRESS, syn, "forward_vip"),
                untouched("answers", EGRESS, synack, "reply_vip"),
                untouched("goes on", INGRESS, ack, "forward_vip"),
                untouched("an error", INGRESS, error.frame(), "icmp_forward"),
            ],
        );
        assert_eq!(flow(scene).state, "established");
    });
}

#[test]
fn past_its_deadline_the_dead_man_holds() {
    need!();
    world(|scene| {
        to_green(scene, 5);
        let mut image = crate::world::service(5);
        image.threshold = 1 << 32;
        let mut dead_man = DeadManImage {
            safe_threshold: 0,
            deadline_ns: boot_ns() + 3_600_000_000_000,
        };
        for (port, pool) in [(1_000, PoolName::Green), (1_001, PoolName::Blue)] {
            image.dead_man = Some(dead_man);
            scene.datapath.publish(&image, None).unwrap();
            let mut packet = client(&routed_tcp4(), SYN);
            packet.source.set_port(port);
            give(scene, &packet);
            let chosen = flows(scene);
            let chosen = chosen.iter().find(|row| row.client.port() == port);
            assert_eq!(chosen.unwrap().pool, pool);
            dead_man.deadline_ns = boot_ns();
        }
    });
}

#[test]
fn while_settling_udp_goes_to_the_live_pool() {
    need!();
    world(|scene| {
        let case = routed_udp4();
        let green = addr("10.8.0.98:5353");
        scene.backend(91, green, Protocol::Udp, Placement::Kernel { netns: None });
        let mut image = crate::world::service(7);
        image.threshold = 1 << 32;
        image.settle_until_ns = monotonic_ns() + 3_600_000_000_000;
        scene.service(&image, &[backend_id(7)], &[91]);
        give(scene, &Packet::udp(case.client, case.vip));
        assert_eq!(
            (flow(scene).pool, flow(scene).adopted),
            (PoolName::Blue, true)
        );
        image.settle_until_ns = 0;
        scene.datapath.publish(&image, None).unwrap();
        let other = addr("10.9.0.8:40001");
        give(scene, &Packet::udp(other, case.vip));
        let rows = flows(scene);
        let row = rows.iter().find(|row| row.client == other).unwrap();
        assert_eq!((row.pool, row.adopted), (PoolName::Green, false));
    });
}

#[test]
fn udp_is_proven_by_an_answer_and_chosen_anew_when_expired() {
    need!();
    world(|scene| {
        let case = routed_udp4();
        let question = Packet::udp(case.client, case.vip);
        give(scene, &question);
        assert_eq!(flow(scene).state, "udp_unanswered");
        answer(scene, &Packet::udp(case.backend, case.client));
        assert_eq!(flow(scene).state, "udp_answered");
        let green = addr("10.8.0.98:5353");
        scene.backend(91, green, Protocol::Udp, Placement::Kernel { netns: None });
        let mut image = crate::world::service(7);
        image.threshold = 1 << 32;
        scene.service(&image, &[backend_id(7)], &[91]);
        age(scene, 170);
        give(scene, &question);
        assert_eq!(flow(scene).pool, PoolName::Blue);
        age(scene, 190);
        give(scene, &question);
        assert_eq!(flow(scene).pool, PoolName::Green);
    });
}

#[test]
fn a_direct_connection_to_a_backend_is_not_taken_for_a_flow_that_closed() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        handshake(scene, &case);
        give(scene, &client(&case, FIN | ACK));
        answer(scene, &server(&case, FIN | ACK));
        assert_eq!(flow(scene).state, "closing");
        let packet = server(&case, SYN | ACK);
        assert_eq!(answer(scene, &packet), "no_flow");
        assert_eq!(flows(scene), [], "the closed flow is forgotten");
    });
}

//! Floods of datagrams: they touch no TCP pin, and no UDP flow that was answered.

use shifter_tests::{
    need,
    need::{long, scaled},
    topology::{Family, Placement},
    traffic::{
        flood::Kind,
        hold::{Held, ask_all},
    },
};

use crate::scenario::{CAPACITY, Room, SMALL, Scenario, fire, lab, services, turn};

/// UDP flows that were answered and have lasted, beside the TCP flows.
fn lasting() -> u32 {
    scaled(1_000, 4_000)
}

fn unanswered(placement: Placement, hook: &'static str) {
    let (lab, _servers) = lab(placement);
    let mut scenario = Scenario::start(&lab, hook, CAPACITY, &services(&lab));
    scenario.hold_udp(lasting());
    scenario.flood(Kind::Udp, false);
    println!(
        "FLOOD {hook} Udp: {} answered UDP flows were among those asked",
        lasting()
    );
    // The other way round: no flood of segments touches them either.
    scenario.flood(Kind::Syn, false);
}

#[test]
fn a_udp_flood_touches_no_tcp_pin_and_no_answered_udp_flow() {
    need!();
    let _turn = turn();
    unanswered(Placement::RemoteOther, "xdp");
    if long() {
        unanswered(Placement::Container, "tc");
    }
}

/// Datagrams that the servers answer become flows that do not give way: they may
/// take all the room that is left, and nothing that is taken.
fn answered(placement: Placement, hook: &'static str) {
    let (lab, _servers) = lab(placement);
    let mut scenario = Scenario::start(&lab, hook, SMALL, &services(&lab));
    scenario.hold_udp(lasting());
    let to = lab.vip(Family::V4);
    let (before, packets) = (scenario.proven(), scenario.packets());
    scenario.endure("Question", Room::None, |gun| {
        fire(gun, Kind::Question, to, &[], packets)
    });
    let answered = scenario.proven() - before;
    assert!(
        answered > SMALL / 4,
        "{answered} of the flood were answered"
    );
    let refused = scenario.verdicts("table_full");
    println!(
        "FLOOD {hook} Question: {answered} flows of it were answered, {refused} found no room, \
         {} answered UDP flows were among those asked",
        lasting()
    );
    if refused > 0 {
        assert!(scenario.is_loud("table_full"));
    }
    // What is not answered takes nothing from what was.
    scenario.endure("Udp in a table of answered flows", Room::None, |gun| {
        fire(gun, Kind::Udp, to, &[], packets)
    });
    assert!(scenario.proven() >= before + answered, "they outlive it");
    let (lost, all) = (ask_all(&mut scenario.held), scenario.held.len() as u64);
    assert_eq!((lost.asked, lost.moved, lost.cut), (all, 0, 0), "{lost:?}");
    let is_udp = scenario.held.iter().filter(|held| Held::is_udp(held));
    assert_eq!(is_udp.count() as u32, lasting());
}

#[test]
fn a_udp_flood_that_is_answered_takes_only_what_room_is_left() {
    need!();
    let _turn = turn();
    answered(Placement::Container, "tc");
    if long() {
        answered(Placement::RemoteOther, "xdp");
    }
}

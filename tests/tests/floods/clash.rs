//! Floods from the addresses and ports of held flows to other services on the
//! same backends, where replies of both would look alike.

use std::net::SocketAddr;

use shifter_tests::{
    command::Process,
    mover::Service,
    need,
    need::{long, scaled},
    topology::{Family, Lab, Placement, Side},
    traffic::{flood::Kind, server},
};

use crate::scenario::{Room, SMALL, Scenario, fire, lab, services, turn};

/// Ports of VIPs: one that has the backends of the held flows, and one that has
/// a second backend in each pool.
const SHARED: u16 = 7_010;
const SPARE: u16 = 7_020;
/// Ports of the second backends.
const SECOND: [u16; 2] = [7_011, 7_012];

fn second(lab: &Lab, side: Side) -> SocketAddr {
    Lab::at_port(lab.backend(side, Family::V4), SECOND[side as usize])
}

fn second_servers(lab: &Lab) -> [Process; 2] {
    Side::BOTH.map(|side| {
        let identity = side.identity() + 2;
        server::start_at(lab, lab.server_ns(side), &[second(lab, side)], identity).unwrap()
    })
}

/// A service like that of the held flows, at another port of its address.
fn beside(lab: &Lab, protocol: &'static str, name: &str, port: u16) -> Service {
    let like = Service::of(lab, protocol, Family::V4).with_green("50%");
    Service {
        name: name.to_owned(),
        vip: Lab::at_port(like.vip, port),
        ..like
    }
}

fn all_services(lab: &Lab) -> Vec<Service> {
    let mut all = services(lab);
    all.push(beside(lab, "tcp", "shared-tcp", SHARED));
    all.push(beside(lab, "udp", "shared-udp", SHARED));
    let mut spare = beside(lab, "tcp", "spare-tcp", SPARE);
    spare.blue.push(second(lab, Side::Blue));
    spare.green.push(second(lab, Side::Green));
    all.push(spare);
    all
}

/// A flood from held tuples to the port of another service; packets that clashed.
fn clash(scenario: &mut Scenario, kind: Kind, port: u16) -> (u64, u64) {
    let aims = scenario.tuples(kind == Kind::Udp);
    let to = Lab::at_port(scenario.lab.vip(Family::V4), port);
    let packets = scenario.packets();
    let before = scenario.verdicts("tuple_clash");
    let what = format!("{kind:?} from held tuples to port {port}");
    let sent = scenario.endure(&what, Room::Enough, |gun| {
        fire(gun, kind, to, &aims, packets)
    });
    let clashed = scenario.verdicts("tuple_clash") - before;
    println!(
        "FLOOD {} {what}: {clashed} of {} packets clashed",
        scenario.hook, sent.packets
    );
    (clashed, sent.packets)
}

fn clashes(placement: Placement, hook: &'static str) {
    let (lab, _servers) = lab(placement);
    let _second = second_servers(&lab);
    let mut scenario = Scenario::start(&lab, hook, SMALL, &all_services(&lab));
    scenario.hold_udp(scaled(1_000, 4_000));
    let kinds: &[Kind] = if long() {
        &[Kind::Syn, Kind::Ack, Kind::Fin, Kind::Rst, Kind::Udp]
    } else {
        &[Kind::Syn, Kind::Ack, Kind::Udp]
    };
    for kind in kinds {
        let (clashed, sent) = clash(&mut scenario, *kind, SHARED);
        match kind {
            // It makes no entry, so there is none to clash.
            Kind::Rst => assert_eq!(clashed, 0),
            // Half of them are chosen to the backend of the held flow, the only
            // one of its pool; what went to the other has an entry from then on.
            _ => assert!(
                (sent / 8..=sent / 8 * 7).contains(&clashed),
                "{kind:?}: {clashed} of {sent}"
            ),
        }
    }
    assert!(scenario.is_loud("tuple_clash"));
    // With a second backend in the pool the clash is avoided.
    let flows = |scenario: &Scenario| {
        Side::BOTH.map(|side| {
            let label = format!("backend=\"{}\"", second(scenario.lab, side));
            scenario.metric("shifter_backend_new_flows_total", &label)
        })
    };
    let (clashed, sent) = clash(&mut scenario, Kind::Syn, SPARE);
    let second = flows(&scenario);
    println!("FLOOD {hook} second backends took {second:?} flows");
    // It is looked for in 64 slots of the ring: with two of equal weight it is found.
    assert!(
        clashed * 100_000 < sent,
        "another backend takes {sent}: {clashed}"
    );
    let tuples = scenario.tuples(false).len() as u64;
    assert!(second.iter().sum::<u64>() > tuples / 2, "{second:?}");
}

#[test]
fn a_flood_of_clashing_tuples_cuts_and_moves_nobody() {
    need!();
    let _turn = turn();
    clashes(Placement::RemoteOther, "xdp");
    if long() {
        clashes(Placement::Container, "tc");
    }
}

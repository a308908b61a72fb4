//! Floods, each of at least 16 times the table's capacity: nobody who holds a
//! proven flow is moved, reset or forgotten, half of them idle all the while,
//! and new honest connections are served while each lasts.

mod clash;
mod scenario;
mod slow;
mod udp;

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use shifter_tests::{
    command::eventually,
    evidence, need,
    need::long,
    topology::{Family, Placement},
    traffic::{
        flood::{Kind, Sent},
        hold::{Held, ask_all},
    },
};

use scenario::{CAPACITY, Scenario, add, lab, services, turn};

/// Flows of a table where every flow is a real connection, which takes descriptors.
const FEW: u64 = 8_192;

/// Kinds of TCP floods, and whether they are aimed at the flows that are held.
const FLOODS: [(Kind, bool); 10] = [
    (Kind::Syn, false),
    (Kind::Ack, false),
    (Kind::Pair, false),
    (Kind::Rst, false),
    (Kind::SynData, false),
    (Kind::Fin, false),
    (Kind::Rst, true),
    (Kind::Syn, true),
    (Kind::Fin, true),
    (Kind::Ack, true),
];

/// The short form runs every other flood under each hook.
fn tcp_floods(placement: Placement, hook: &'static str, first: usize) {
    let (lab, _servers) = lab(placement);
    let mut scenario = Scenario::start(&lab, hook, CAPACITY, &services(&lab));
    let every = if long() { 1 } else { 2 };
    let first = if long() { 0 } else { first };
    for (kind, is_aimed) in FLOODS.into_iter().skip(first).step_by(every) {
        scenario.flood(kind, is_aimed);
    }
}

#[test]
fn no_flood_of_segments_touches_a_proven_flow_under_tc() {
    need!();
    let _turn = turn();
    tcp_floods(Placement::Container, "tc", 0);
}

#[test]
fn no_flood_of_segments_touches_a_proven_flow_under_xdp() {
    need!();
    let _turn = turn();
    tcp_floods(Placement::RemoteOther, "xdp", 1);
}

/// Handshakes from addresses of their own until the table is full of proven flows.
fn fill(scenario: &mut Scenario) -> (Vec<Held>, Sent) {
    const REFUSALS: u32 = 20;
    const REFUSED: Duration = Duration::from_millis(200);
    let to = scenario.lab.vip(Family::V4);
    let (mut more, mut refused, mut tried) = (Vec::new(), 0, 0);
    let start = Instant::now();
    scenario.lab.client.run(|| {
        while refused < REFUSALS {
            let source = u32::from(Ipv4Addr::new(10, 82, 0, 1)) + tried % 60_000;
            let source = IpAddr::from(Ipv4Addr::from(source));
            tried += 1;
            match Held::tcp(tried, to, Some(source), REFUSED) {
                Ok(held) => more.push(held),
                Err(_) => refused += 1,
            }
        }
    });
    let sent = Sent {
        packets: u64::from(tried),
        took: start.elapsed(),
    };
    (more, sent)
}

fn full_table(placement: Placement, hook: &'static str) {
    let (lab, _servers) = lab(placement);
    let mut scenario = Scenario::start(&lab, hook, FEW, &services(&lab));
    let (mut more, sent) = fill(&mut scenario);
    let all = (more.len() + scenario.held.len()) as u64;
    assert!(all > FEW, "{all} flows in a table for {FEW}");
    assert!(scenario.verdicts("table_full") >= 20, "refused and counted");
    assert!(scenario.is_loud("table_full"));
    let mut lost = ask_all(&mut scenario.held);
    add(&mut lost, ask_all(&mut more));
    println!(
        "FLOOD {hook} handshakes: {} connections, {:.0} a second, {all} proven entries at risk, \
         0 gave way, {} asked, {} moved, {} cut",
        sent.packets,
        sent.rate(),
        lost.asked,
        lost.moved,
        lost.cut
    );
    assert!(lost.is_nothing(), "{lost:?}\n{}", evidence::of(&lab));
    assert_eq!(scenario.evicted("established"), 0);
    // Room comes back with flows that end.
    more.truncate(more.len() / 2);
    let back = eventually(Duration::from_secs(20), || {
        let to = lab.vip(Family::V4);
        let open = |i| Held::tcp(i, to, None, Duration::from_millis(500)).is_ok();
        lab.client.run(|| (0..20).all(open))
    });
    assert!(back, "new flows find the room of those that ended");
}

#[test]
fn a_table_full_of_proven_flows_refuses_new_ones_and_harms_none() {
    need!();
    let _turn = turn();
    full_table(Placement::Container, "tc");
    if long() {
        full_table(Placement::RemoteOther, "xdp");
    }
}

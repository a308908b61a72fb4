//! Handshakes that take long while a flood lasts: their entries give way between
//! SYN-ACK and ACK, and they end well all the same.

use std::thread;

use shifter_tests::{
    evidence, need,
    need::{long, scaled},
    topology::{Family, Placement},
    traffic::{
        flood::Kind,
        slow::{Ended, Slow},
        syn::Sender,
    },
};

use crate::scenario::{COUNTS_AGE, SMALL, Scenario, lab, services, turn};

/// Packets of the flood between SYN-ACK and ACK, in quarters of the entries that
/// are not proven.
const QUARTERS: [u64; 6] = [0, 1, 2, 3, 4, 8];

fn slow_handshakes(placement: Placement, hook: &'static str) -> Vec<(u64, Ended)> {
    let (lab, _servers) = lab(placement);
    let scenario = Scenario::start(&lab, hook, SMALL, &services(&lab));
    let vip = lab.vip(Family::V4);
    let sender = Sender::new(&lab.client, "c0", lab.host_addr(Family::V4, 0).ip()).unwrap();
    let clients = scaled(200, 1_000);
    let room = 2 * SMALL - scenario.proven();
    // Every place is taken before it begins. A server answers none of these, so
    // that only the table is tried.
    let fire = |packets| scenario.gun.fire(Kind::Udp, vip, &[], packets).unwrap();
    let all_gone = |packets: u64, evicted: u64| evicted * 10 >= packets * 9;
    fire(2 * room);
    thread::sleep(COUNTS_AGE);
    let mut evicted = scenario.evicted("");
    assert!(
        all_gone(room, evicted),
        "{evicted} gave way before it begins"
    );
    let mut all = Vec::new();
    for quarters in QUARTERS {
        let slow = Slow::begin(&lab.client, &sender, vip, clients).unwrap();
        let sent = fire(room * quarters / 4);
        let ended = slow.end().unwrap();
        thread::sleep(COUNTS_AGE);
        let before = std::mem::replace(&mut evicted, scenario.evicted(""));
        assert!(
            all_gone(sent.packets, evicted - before),
            "{} of {} packets took a place",
            evicted - before,
            sent.packets
        );
        println!(
            "FLOOD {hook} slow handshakes: {} packets between SYN-ACK and ACK, {:.2} of {room} \
             unproven entries: of {} {} served, {} reset, {} silent",
            sent.packets,
            quarters as f64 / 4.0,
            ended.served + ended.reset + ended.silent,
            ended.served,
            ended.reset,
            ended.silent
        );
        explain(&scenario, &ended);
        all.push((quarters, ended));
    }
    all
}

/// Why some were not served, as far as it can be seen: said at once, because the
/// table forgets.
fn explain(scenario: &Scenario<'_>, ended: &Ended) {
    const SHOWN: usize = 8;
    if ended.lost.is_empty() {
        return;
    }
    println!("{}", evidence::of(scenario.lab));
    for client in ended.lost.iter().take(SHOWN) {
        let client = client.to_string();
        match scenario.agent.json(&["explain", "tcp4", &client]) {
            Ok(why) => println!("{client}: {why}"),
            Err(error) => println!("{client}: {error}"),
        }
    }
}

#[test]
fn a_handshake_whose_entry_gave_way_to_a_flood_ends_well() {
    need!();
    let _turn = turn();
    let mut runs = vec![slow_handshakes(Placement::RemoteOther, "xdp")];
    runs.push(slow_handshakes(Placement::Container, "tc"));
    if long() {
        runs.push(slow_handshakes(Placement::RemoteOther, "tc"));
    }
    // Also where every entry gave way before its ACK came: what the SYN was
    // sent by is chosen again.
    for (quarters, ended) in runs.into_iter().flatten() {
        assert_eq!((ended.reset, ended.silent), (0, 0), "{quarters}: {ended:?}");
    }
}

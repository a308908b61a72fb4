//! Flows whose socket is gone.

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use super::rig::Rig;
use crate::{
    datapath::{FlowRow, Placement},
    model::PoolName,
    network::TcpSockets,
    reconcile::reconciler::lock,
};

const GREEN: &str = "10.0.1.1:8443";
const HERE: Option<i32> = None;

/// `web`, whose green backend is at a place.
fn rig(placement: Placement) -> Rig {
    let rig = Rig::with_web();
    lock(&rig.facts.placements).insert(GREEN.parse().unwrap(), placement);
    rig.reconciler.refresh_placements();
    rig
}

/// The sockets of a namespace: green's connections with these clients.
fn sockets(rig: &Rig, netns: Option<i32>, clients: &[&str]) {
    let mut sockets = TcpSockets::default();
    for client in clients {
        sockets.add(GREEN.parse().unwrap(), client.parse().unwrap());
    }
    lock(&rig.facts.sockets).insert(netns, sockets);
}

/// Flows of these clients on green, all of them idle for so long.
fn flows(rig: &Rig, clients: &[&str], idle_s: f64) {
    let flow = |client: &&str| FlowRow {
        idle_s,
        ..rig.flow(PoolName::Green, GREEN, client)
    };
    let flows: Vec<FlowRow> = clients.iter().map(flow).collect();
    rig.datapath.with(|k| k.flows.extend(flows));
}

/// A pass; the clients whose flows are left.
fn left(rig: &Rig) -> Vec<String> {
    rig.clock.pass(Duration::from_secs(60));
    rig.reconciler.maintain();
    let client = |flow: &FlowRow| flow.client.to_string();
    rig.datapath.with(|k| k.flows.iter().map(client).collect())
}

fn remembered(rig: &Rig) -> usize {
    lock(&rig.reconciler.gone).remembered()
}

const A: &str = "192.0.2.1:1000";
const B: &str = "192.0.2.1:1001";
const C: &str = "192.0.2.1:1002";
const ALL: [&str; 3] = [A, B, C];

#[test]
fn an_idle_flow_is_released_when_its_socket_was_seen_and_then_missed_twice() {
    for netns in [HERE, Some(7)] {
        let placement = match netns {
            None => Placement::Host,
            netns => Placement::Kernel { netns },
        };
        let rig = rig(placement);
        flows(&rig, &[A, B], 61.0);
        flows(&rig, &[C], 5.0);
        sockets(&rig, netns, &ALL);
        assert_eq!(left(&rig), ALL);
        sockets(&rig, netns, &[B]);
        assert_eq!(left(&rig), ALL, "one answer can miss a socket");
        assert_eq!(left(&rig), [B, C]);
        rig.datapath.with(|k| k.flows[1].idle_s = 61.0);
        assert_eq!(left(&rig), [B]);
        let places: Vec<_> = lock(&rig.facts.asked).iter().map(|a| a.0).collect();
        assert!(places.iter().all(|asked| *asked == netns));
    }
}

#[test]
fn a_socket_that_one_answer_missed_is_not_gone() {
    let rig = rig(Placement::Host);
    flows(&rig, &[A], 9_000.0);
    for clients in [&[A][..], &[], &[A], &[], &[A], &[]] {
        sockets(&rig, HERE, clients);
        assert_eq!(left(&rig), [A]);
    }
    assert!(left(&rig).is_empty(), "missed twice in a row");
}

#[test]
fn nothing_is_released_when_the_sockets_cannot_be_read() {
    let rig = rig(Placement::Host);
    flows(&rig, &[A], 9_000.0);
    sockets(&rig, HERE, &[A]);
    assert_eq!(left(&rig), [A]);
    lock(&rig.facts.sockets).clear();
    for _ in 0..4 {
        assert_eq!(left(&rig), [A]);
    }
    assert_eq!(lock(&rig.facts.asked).len(), 5);
}

#[test]
fn a_flow_of_another_host_or_an_unknown_namespace_is_never_asked_for() {
    let hop = crate::datapath::NextHopImage {
        ifindex: 3,
        mtu: 1_500,
        source: [2; 6],
        destination: [4; 6],
    };
    for placement in [Placement::NextHop(hop), Placement::Kernel { netns: None }] {
        let rig = rig(placement);
        flows(&rig, &[A], 9_000.0);
        sockets(&rig, HERE, &[]);
        assert_eq!(left(&rig), [A]);
        assert!(lock(&rig.facts.asked).is_empty());
    }
}

#[test]
fn a_flow_that_was_never_seen_as_a_socket_is_left_alone_whatever_others_show() {
    // A masquerade of some clients, or DNAT whose rule is gone while conntrack
    // still leads the connections on that began under it.
    for placement in [Placement::Host, Placement::Kernel { netns: Some(7) }] {
        let netns = match placement {
            Placement::Kernel { netns } => netns,
            _ => HERE,
        };
        let rig = rig(placement);
        flows(&rig, &[A, B], 61.0);
        sockets(&rig, netns, &[A, "10.0.1.254:1001"]);
        assert_eq!(left(&rig), [A, B]);
        sockets(&rig, netns, &["10.0.1.254:1001"]);
        left(&rig);
        for _ in 0..5 {
            assert_eq!(left(&rig), [B]);
        }
    }
}

#[test]
fn a_flow_behind_dnat_or_behind_what_cannot_be_read_is_left_alone() {
    for known in [true, false] {
        let rig = rig(Placement::Host);
        flows(&rig, &[A], 9_000.0);
        sockets(&rig, HERE, &[A]);
        assert_eq!(left(&rig), [A]);
        match known {
            true => {
                lock(&rig.facts.translated).insert(GREEN.parse().unwrap());
            }
            false => *lock(&rig.facts.filter_problem) = Some("nft failed".into()),
        }
        sockets(&rig, HERE, &[]);
        for _ in 0..4 {
            assert_eq!(left(&rig), [A]);
        }
        lock(&rig.facts.translated).clear();
        *lock(&rig.facts.filter_problem) = None;
        assert!(left(&rig).is_empty());
    }
}

#[test]
fn what_was_seen_at_another_place_does_not_count() {
    let rig = rig(Placement::Kernel { netns: Some(7) });
    flows(&rig, &[A], 61.0);
    sockets(&rig, Some(7), &[A]);
    assert_eq!(left(&rig), [A]);
    let moved = Placement::Kernel { netns: Some(8) };
    lock(&rig.facts.placements).insert(GREEN.parse().unwrap(), moved);
    rig.reconciler.refresh_placements();
    sockets(&rig, Some(8), &[]);
    for _ in 0..4 {
        assert_eq!(left(&rig), [A]);
    }
}

#[test]
fn only_flows_that_are_there_are_remembered() {
    let rig = rig(Placement::Host);
    // A and B had a packet just now: they are not listed as idle at all.
    flows(&rig, &[A, B], 1.0);
    sockets(&rig, HERE, &ALL);
    left(&rig);
    assert_eq!(remembered(&rig), 2, "what is no flow of ours is not kept");
    rig.datapath.with(|k| k.flows[0].idle_s = 0.0);
    rig.datapath.with(|k| k.flows.remove(1));
    left(&rig);
    assert_eq!(
        remembered(&rig),
        1,
        "a busy one is kept, an ended one is not"
    );
    // Another flow with the same ends begins with nothing known of it.
    flows(&rig, &[B], 61.0);
    sockets(&rig, HERE, &[A]);
    for _ in 0..4 {
        assert_eq!(left(&rig), [A, B]);
    }
}

#[test]
fn a_pass_delays_no_request() {
    let rig = rig(Placement::Host);
    flows(&rig, &[A], 61.0);
    sockets(&rig, HERE, &[A]);
    rig.clock.pass(Duration::from_secs(60));
    let (asked, is_asked) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    *lock(&rig.facts.gate) = Some(Box::new(move || {
        asked.send(()).unwrap();
        may_go_on.recv().unwrap();
    }));
    let reconciler = Arc::clone(&rig.reconciler);
    let pass = thread::spawn(move || reconciler.maintain());
    is_asked.recv().unwrap();
    assert_eq!(
        lock(&rig.facts.asked).len(),
        0,
        "the sockets are being read"
    );
    rig.shift("50%").unwrap();
    rig.rollback(0).unwrap();
    assert_eq!(rig.green(), "0%");
    go_on.send(()).unwrap();
    pass.join().unwrap();
}

#[test]
fn a_hundred_thousand_flows_are_compared_with_one_reading_a_pass() {
    const FLOWS: u32 = 100_000;
    let rig = rig(Placement::Host);
    let mut sockets = TcpSockets::default();
    let first = FlowRow {
        idle_s: 61.0,
        ..rig.flow(PoolName::Green, GREEN, A)
    };
    for number in 0..FLOWS {
        let ip = std::net::Ipv4Addr::from(0x0a80_0000 + number / 50_000);
        let client = SocketAddr::from((ip, (number % 50_000) as u16 + 1_024));
        sockets.add(GREEN.parse().unwrap(), client);
        let client_row = FlowRow {
            client,
            ..first.clone()
        };
        rig.datapath.with(|k| k.flows.push(client_row));
    }
    lock(&rig.facts.sockets).insert(HERE, sockets);
    for pass in 0..3 {
        rig.clock.pass(Duration::from_secs(60));
        let began = Instant::now();
        rig.reconciler.release_gone();
        // Beside it come the reading of the table and of the sockets.
        println!("pass {pass}: compared in {:?}", began.elapsed());
        assert_eq!(lock(&rig.facts.asked).len(), pass + 1);
        assert_eq!(remembered(&rig), FLOWS as usize);
    }
}

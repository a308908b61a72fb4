//! Flows whose socket is gone.

use std::time::Duration;

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
fn sockets(rig: &Rig, netns: Option<i32>, clients: &[&str], listens: bool) {
    let mut sockets = TcpSockets::default();
    for client in clients {
        sockets.add(GREEN.parse().unwrap(), client.parse().unwrap());
    }
    if listens {
        sockets.add_listener("0.0.0.0:8443".parse().unwrap());
    }
    lock(&rig.facts.sockets).insert(netns, sockets);
}

fn flow(rig: &Rig, client: &str, idle_s: f64) -> FlowRow {
    FlowRow {
        idle_s,
        ..rig.flow(PoolName::Green, GREEN, client)
    }
}

/// A pass; the clients whose flows are left.
fn left(rig: &Rig) -> Vec<String> {
    rig.clock.pass(Duration::from_secs(60));
    rig.reconciler.maintain();
    let client = |flow: &FlowRow| flow.client.to_string();
    rig.datapath.with(|k| k.flows.iter().map(client).collect())
}

const A: &str = "192.0.2.1:1000";
const B: &str = "192.0.2.1:1001";
const C: &str = "192.0.2.1:1002";

#[test]
fn an_idle_flow_without_a_socket_is_released() {
    let rig = rig(Placement::Host);
    let flows = [flow(&rig, A, 61.0), flow(&rig, B, 61.0), flow(&rig, C, 5.0)];
    rig.datapath.with(|k| k.flows.extend(flows));
    sockets(&rig, HERE, &[B], true);
    assert_eq!(left(&rig), [B, C]);
}

#[test]
fn nothing_is_released_when_the_sockets_cannot_be_read() {
    let rig = rig(Placement::Host);
    let idle = flow(&rig, A, 9_000.0);
    rig.datapath.with(|k| k.flows.push(idle));
    assert_eq!(left(&rig), [A]);
    assert_eq!(lock(&rig.facts.asked).len(), 1);
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
        let idle = flow(&rig, A, 9_000.0);
        rig.datapath.with(|k| k.flows.push(idle));
        sockets(&rig, HERE, &[], true);
        assert_eq!(left(&rig), [A]);
        assert!(lock(&rig.facts.asked).is_empty());
    }
}

#[test]
fn a_flow_behind_dnat_is_left_alone() {
    let rig = rig(Placement::Host);
    lock(&rig.facts.translated).insert(GREEN.parse().unwrap());
    let idle = flow(&rig, A, 9_000.0);
    rig.datapath.with(|k| k.flows.push(idle));
    // As where a proxy of the container's publisher listens here.
    sockets(&rig, HERE, &[], true);
    assert_eq!(left(&rig), [A]);
}

#[test]
fn in_a_namespace_a_socket_of_the_backend_must_have_been_seen() {
    let namespace = Some(7);
    let rig = rig(Placement::Kernel { netns: namespace });
    let flows = [flow(&rig, A, 61.0), flow(&rig, B, 1.0)];
    rig.datapath.with(|k| k.flows.extend(flows));
    // Clients are masqueraded: no socket has the flow's ends.
    sockets(&rig, namespace, &["10.0.1.254:1000"], true);
    assert_eq!(left(&rig), [A, B]);
    sockets(&rig, namespace, &[B], true);
    assert_eq!(left(&rig), [B]);
    // Seen once, that is known: the last flow goes too.
    rig.datapath.with(|k| k.flows[0].idle_s = 61.0);
    sockets(&rig, namespace, &[], true);
    assert!(left(&rig).is_empty());
    let places: Vec<_> = lock(&rig.facts.asked).iter().map(|a| a.0).collect();
    assert!(places.iter().all(|netns| *netns == namespace));
}

#[test]
fn what_was_seen_at_another_place_does_not_count() {
    let rig = rig(Placement::Kernel { netns: Some(7) });
    let busy = flow(&rig, A, 1.0);
    rig.datapath.with(|k| k.flows.push(busy));
    sockets(&rig, Some(7), &[A], true);
    assert_eq!(left(&rig), [A]);
    let moved = Placement::Kernel { netns: Some(8) };
    lock(&rig.facts.placements).insert(GREEN.parse().unwrap(), moved);
    rig.reconciler.refresh_placements();
    rig.datapath.with(|k| k.flows[0].idle_s = 61.0);
    sockets(&rig, Some(8), &[], true);
    assert_eq!(left(&rig), [A]);
}

#[test]
fn a_host_without_a_listener_or_a_flow_seen_says_nothing() {
    let rig = rig(Placement::Host);
    let idle = flow(&rig, A, 9_000.0);
    rig.datapath.with(|k| k.flows.push(idle));
    sockets(&rig, HERE, &[], false);
    assert_eq!(left(&rig), [A]);
}

//! What the agent frees in the table of the kernel, and what it leaves.

use std::collections::{BTreeMap, BTreeSet};

use shifter::{
    datapath::{Datapath as _, IdleFlow},
    model::PoolName,
};
use shifter_common::abi::{BackendCounters, PoolCounters};
use shifter_tests::{need, packet::ACK, scene::Scene};

use crate::{
    flows::{age, client, flows, give, handshake},
    world::*,
};

/// Seconds without a packet that the tests call idle.
const IDLE_S: u32 = 60;

/// An established flow of service 5, idle for two minutes, as it is read.
fn idle(scene: &mut Scene) -> Vec<IdleFlow> {
    handshake(scene, &routed_tcp4());
    let of = BTreeSet::from([backend_id(5)]);
    assert!(scene.datapath.idle_flows(&of, IDLE_S).is_empty());
    age(scene, 120);
    let found = scene.datapath.idle_flows(&of, IDLE_S);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].client, routed_tcp4().client);
    found
}

#[test]
fn an_idle_flow_is_released_once() {
    need!();
    world(|scene| {
        let found = idle(scene);
        let others = BTreeSet::from([backend_id(6)]);
        assert!(scene.datapath.idle_flows(&others, IDLE_S).is_empty());
        assert_eq!(scene.datapath.release(&found, Some(IDLE_S)), 1);
        assert!(flows(scene).is_empty());
        assert_eq!(scene.datapath.release(&found, Some(IDLE_S)), 0);
    });
}

#[test]
fn a_flow_that_had_a_packet_since_it_was_read_is_not_released() {
    need!();
    world(|scene| {
        let found = idle(scene);
        give(
            scene,
            &client(&routed_tcp4(), ACK).seq(1_001, 5_001).data(b"x"),
        );
        assert_eq!(scene.datapath.release(&found, Some(IDLE_S)), 0);
        assert_eq!(flows(scene).len(), 1);
    });
}

#[test]
fn a_flow_that_began_at_the_place_of_another_is_not_released() {
    need!();
    world(|scene| {
        let found = idle(scene);
        assert_eq!(scene.datapath.release(&found, Some(IDLE_S)), 1);
        handshake(scene, &routed_tcp4());
        age(scene, 120);
        assert_eq!(scene.datapath.release(&found, Some(IDLE_S)), 0);
        assert_eq!(flows(scene).len(), 1);
    });
}

#[test]
fn a_backend_carries_the_clients_of_its_flows() {
    need!();
    world(|scene| {
        for case in [routed_tcp4(), routed_tcp6()] {
            handshake(scene, &case);
        }
        let carries = |id, case: Case| scene.datapath.carries(id, case.client);
        assert!(carries(backend_id(5), routed_tcp4()));
        assert!(carries(backend_id(6), routed_tcp6()));
        assert!(!carries(backend_id(5), routed_tcp6()));
        assert!(!carries(backend_id(5), tcp4()), "another port");
        let named = scene.datapath.named_ids();
        assert_eq!(named.services, BTreeSet::from([5, 6]));
        assert_eq!(
            named.backends,
            BTreeSet::from([backend_id(5), backend_id(6)])
        );
    });
}

#[test]
fn flows_of_one_service_are_freed_and_those_of_others_stay() {
    need!();
    world(|scene| {
        for case in [routed_tcp4(), routed_tcp6()] {
            handshake(scene, &case);
        }
        assert_eq!(scene.datapath.free_flows(&BTreeSet::from([5])), 1);
        let left = flows(scene);
        assert_eq!((left.len(), left[0].service), (1, 6));
    });
}

#[test]
fn new_clients_of_all_services_are_counted_in_one_pass() {
    need!();
    world(|scene| {
        for case in [routed_tcp4(), routed_tcp6()] {
            handshake(scene, &case);
        }
        let windows = BTreeMap::from([(5, 60), (6, 60), (7, 60)]);
        let counted = scene.datapath.new_clients(&windows);
        assert_eq!(
            counted,
            BTreeMap::from([(5, (0, 1)), (6, (0, 1)), (7, (0, 0))])
        );
    });
}

#[test]
fn rings_are_read_back_as_they_were_published() {
    need!();
    world(|scene| {
        let mut image = service(5);
        image.generation += 1;
        let blue: Vec<u16> = (0..301).map(|i| backend_id(5 + i % 2)).collect();
        let rings = [blue, vec![backend_id(6)]];
        scene.datapath.publish(&image, Some(&rings)).unwrap();
        assert_eq!(scene.datapath.rings(5), Some(rings));
        assert_eq!(scene.datapath.rings(99), None);
        let first = scene.datapath.ring_choice(5, PoolName::Green, 0);
        assert_eq!(first, Some(backend_id(6)));
    });
}

#[test]
fn counters_that_are_set_to_zero_count_on_from_there() {
    need!();
    world(|scene| {
        let case = routed_tcp4();
        handshake(scene, &case);
        let pools = |scene: &Scene| scene.datapath.pool_counters(5).unwrap();
        let backend = |scene: &Scene| scene.datapath.backend_counters(backend_id(5)).unwrap();
        assert_eq!(pools(scene)[0].new_flows, 1);
        assert_eq!(backend(scene).flows, 1);
        scene.datapath.reset_service_counters(5).unwrap();
        scene
            .datapath
            .reset_backend_counters(backend_id(5))
            .unwrap();
        assert_eq!(pools(scene), [PoolCounters::default(); 2]);
        assert_eq!(backend(scene), BackendCounters::default());
        give(scene, &client(&case, ACK).seq(1_001, 5_001).data(b"x"));
        assert_eq!(pools(scene)[0].forward_packets, 1);
        assert_eq!(backend(scene).forward_packets, 1);
    });
}

//! What is freed when nothing names it any more.

use shifter_common::abi::{BackendCounters, PoolCounters};

use super::rig::{Rig, context, other, web};
use crate::{
    model::PoolName,
    reconcile::{Controller as _, reconciler::lock},
};

fn deleted(rig: &Rig) {
    let mut force = context();
    force.force = true;
    rig.reconciler.delete("web", &force).unwrap();
}

#[test]
fn flows_of_a_deleted_service_are_freed_and_its_ids_used_again() {
    let rig = Rig::with_web();
    let flow = rig.flow(PoolName::Blue, "10.0.0.1:8443", "192.0.2.1:1000");
    let mut closing = rig.flow(PoolName::Green, "10.0.1.1:8443", "192.0.2.1:1001");
    closing.state = "closing";
    rig.datapath.with(|k| k.flows.extend([flow, closing]));
    deleted(&rig);
    assert_eq!(rig.datapath.with(|k| k.flows.len()), 2);
    rig.reconciler.maintain();
    assert!(rig.datapath.with(|k| k.flows.is_empty()));
    assert!(rig.datapath.with(|k| k.backends.is_empty()));
    rig.apply(&[other("api", 11)]).unwrap();
    assert_eq!(rig.service_id("api"), 0);
}

#[test]
fn flows_of_other_services_stay() {
    let rig = Rig::with_web();
    rig.apply(&[other("api", 11)]).unwrap();
    let mut flow = rig.flow(PoolName::Blue, "10.0.0.1:8443", "192.0.2.1:1000");
    flow.service = rig.service_id("api");
    rig.datapath.with(|k| k.flows.push(flow));
    deleted(&rig);
    rig.reconciler.maintain();
    assert_eq!(rig.datapath.with(|k| k.flows.len()), 1);
    assert_eq!(rig.datapath.with(|k| k.backends.len()), 3, "api's are kept");
}

#[test]
fn a_flow_that_a_packet_under_way_makes_keeps_its_ids() {
    let rig = Rig::with_web();
    let late = rig.flow(PoolName::Blue, "10.0.0.1:8443", "192.0.2.1:1000");
    let blue = late.backend;
    deleted(&rig);
    rig.datapath.with(|k| k.late_flows.push(late));
    rig.reconciler.maintain();
    assert_eq!(rig.datapath.with(|k| k.grace_periods), 1);
    let left: Vec<u16> = rig.datapath.with(|k| k.backends.keys().copied().collect());
    assert_eq!(left, [blue], "what no flow names is freed at once");
    assert!(rig.datapath.with(|k| k.backends[&blue].maint));
    rig.apply(&[other("api", 11)]).unwrap();
    assert_eq!(rig.service_id("api"), 1, "id 0 was used again under a flow");
    rig.reconciler.maintain();
    assert!(rig.datapath.with(|k| k.flows.is_empty()));
    rig.apply(&[other("third", 12)]).unwrap();
    assert_eq!(rig.service_id("third"), 0);
}

#[test]
fn no_grace_period_is_waited_for_while_nothing_can_be_freed() {
    let rig = Rig::with_web();
    let flow = rig.flow(PoolName::Green, "10.0.1.1:8443", "192.0.2.1:1000");
    rig.datapath.with(|k| k.flows.push(flow));
    let mut spec = web();
    spec.green_pool[0].addr = "10.0.1.2:8443".parse().unwrap();
    rig.apply(&[spec]).unwrap();
    rig.reconciler.maintain();
    assert_eq!(rig.datapath.with(|k| k.grace_periods), 0);
}

#[test]
fn an_id_that_is_given_out_again_counts_from_zero() {
    let rig = Rig::with_web();
    let green = rig.backend("10.0.1.1:8443");
    rig.datapath.with(|k| {
        k.pool_counters.entry(0).or_default()[1].new_flows = 77;
        let counters = k.backend_counters.entry(green).or_default();
        (counters.forward_packets, counters.reply_packets) = (99, 99);
    });
    deleted(&rig);
    rig.reconciler.maintain();
    rig.apply(&[other("api", 11)]).unwrap();
    assert_eq!(rig.service_id("api"), 0);
    let view = rig.reconciler.get("api").unwrap();
    assert_eq!(view.counters, [PoolCounters::default(); 2]);
    for backend in view.backends {
        assert_eq!(
            backend.counters,
            BackendCounters::default(),
            "{}",
            backend.spec.addr
        );
    }
}

#[test]
fn a_change_of_a_service_keeps_its_counters() {
    let mut rig = Rig::with_web();
    let green = rig.backend("10.0.1.1:8443");
    rig.datapath.with(|k| {
        k.pool_counters.entry(0).or_default()[1].new_flows = 77;
        k.backend_counters.entry(green).or_default().flows = 77;
    });
    let mut spec = web();
    spec.green_pool[0].weight = 3;
    rig.apply(&[spec]).unwrap();
    rig.restart();
    let view = rig.reconciler.get("web").unwrap();
    assert_eq!(view.counters[1].new_flows, 77);
    assert_eq!(view.backends[1].counters.flows, 77);
}

#[test]
fn a_backend_taken_out_of_a_pool_stays_until_its_flows_have_ended() {
    let rig = Rig::with_web();
    let flow = rig.flow(PoolName::Green, "10.0.1.1:8443", "192.0.2.1:1000");
    let old = flow.backend;
    rig.datapath.with(|k| k.flows.push(flow));
    let mut spec = web();
    spec.green_pool[0].addr = "10.0.1.2:8443".parse().unwrap();
    rig.apply(&[spec]).unwrap();
    rig.reconciler.maintain();
    assert!(rig.datapath.with(|k| k.backends[&old].maint));
    rig.datapath.with(|k| k.flows.clear());
    rig.reconciler.maintain();
    assert!(!rig.datapath.with(|k| k.backends.contains_key(&old)));
}

#[test]
fn a_backend_that_was_named_while_flows_were_counted_is_not_freed() {
    let rig = Rig::with_web();
    let mut spec = web();
    spec.green_pool[0].addr = "10.0.1.2:8443".parse().unwrap();
    rig.apply(&[spec.clone()]).unwrap();
    let old = rig.backend("10.0.1.1:8443");
    let counted = lock(&rig.reconciler.core).backends.idle();
    rig.apply(&[web()]).unwrap();
    rig.apply(&[spec]).unwrap();
    let kept = |rig: &Rig| rig.datapath.with(|k| k.backends.contains_key(&old));
    for (id, since) in counted {
        rig.reconciler.free_backend(id, since);
    }
    assert!(kept(&rig), "a flow may have begun in between");
    rig.reconciler.maintain();
    assert!(!kept(&rig));
}

//! Delete, and what is freed when no flow names it any more.

use super::rig::{Rig, context, other, web};
use crate::{
    model::PoolName,
    reconcile::{Controller as _, controller::ControlError},
};

#[test]
fn a_delete_is_refused_while_backends_carry_flows_and_says_how_many() {
    let rig = Rig::with_web();
    let flows = [
        rig.flow(PoolName::Blue, "10.0.0.1:8443", "192.0.2.1:1000"),
        rig.flow(PoolName::Green, "10.0.1.1:8443", "192.0.2.1:1001"),
        rig.flow(PoolName::Blue, "203.0.113.10:443", "192.0.2.1:1002"),
    ];
    rig.datapath.with(|k| k.flows.extend(flows));
    let error = rig.reconciler.delete("web", &context()).unwrap_err();
    assert!(matches!(error, ControlError::Precondition(_)));
    let text = error.to_string();
    assert!(
        text.contains("carries 2 flows on backends other than the VIP (blue 1, green 1)"),
        "{text}"
    );
    let mut force = context();
    force.force = true;
    let receipt = rig.reconciler.delete("web", &force).unwrap();
    assert!(receipt.warnings[0].contains("would be cut"));
    assert!(rig.datapath.with(|k| k.services.is_empty()));
    assert!(matches!(
        rig.reconciler.get("web"),
        Err(ControlError::NotFound { .. })
    ));
}

#[test]
fn flows_on_the_vip_itself_and_closing_ones_do_not_keep_a_service() {
    let rig = Rig::with_web();
    let mut closing = rig.flow(PoolName::Blue, "10.0.0.1:8443", "192.0.2.1:1000");
    closing.state = "closing";
    let vip = rig.flow(PoolName::Blue, "203.0.113.10:443", "192.0.2.1:1002");
    rig.datapath.with(|k| k.flows.extend([closing, vip]));
    rig.reconciler.delete("web", &context()).unwrap();
}

#[test]
fn ids_are_used_again_only_when_no_flow_names_them() {
    let rig = Rig::with_web();
    let mut closing = rig.flow(PoolName::Blue, "10.0.0.1:8443", "192.0.2.1:1000");
    closing.state = "closing";
    let blue = closing.backend;
    rig.datapath.with(|k| k.flows.push(closing));
    rig.reconciler.delete("web", &context()).unwrap();
    rig.reconciler.maintain();
    let left: Vec<u16> = rig.datapath.with(|k| k.backends.keys().copied().collect());
    assert_eq!(left, [blue], "what no flow names is freed at once");
    assert!(rig.datapath.with(|k| k.backends[&blue].maint));
    rig.apply(&[other("api", 11)]).unwrap();
    assert_eq!(rig.service_id("api"), 1, "id 0 was used again under a flow");
    rig.datapath.with(|k| k.flows.clear());
    rig.reconciler.maintain();
    rig.apply(&[other("third", 12)]).unwrap();
    assert_eq!(rig.service_id("third"), 0);
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
fn a_delete_that_cannot_be_stored_is_not_done() {
    let rig = Rig::with_web();
    rig.disk_full(true);
    let text = rig
        .reconciler
        .delete("web", &context())
        .unwrap_err()
        .to_string();
    assert!(text.contains("nothing was changed"), "{text}");
    assert_eq!(rig.datapath.with(|k| k.services.len()), 1);
    rig.disk_full(false);
    let mut preview = context();
    preview.validate_only = true;
    rig.reconciler.delete("web", &preview).unwrap();
    assert_eq!(rig.datapath.with(|k| k.services.len()), 1);
    rig.reconciler.delete("web", &context()).unwrap();
}

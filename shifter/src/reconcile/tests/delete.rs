//! Delete, and what keeps it from being done.

use super::rig::{Rig, context};
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
fn flows_that_may_have_ended_unseen_are_named_apart() {
    let rig = Rig::with_web();
    let mut idle = rig.flow(PoolName::Green, "10.0.1.1:8443", "192.0.2.1:1001");
    idle.idle_s = 7_300.0;
    let busy = rig.flow(PoolName::Blue, "10.0.0.1:8443", "192.0.2.1:1000");
    rig.datapath.with(|k| k.flows.extend([idle, busy]));
    let text = rig.reconciler.delete("web", &context()).unwrap_err();
    assert!(
        text.to_string()
            .contains("carries 2 flows (1 of them idle for more than 2 h) on backends"),
        "{text}"
    );
    rig.reconciler.fresh_census();
    let view = rig.reconciler.get("web").unwrap();
    assert_eq!((view.carried, view.idle), ([1, 1], [0, 1]));
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

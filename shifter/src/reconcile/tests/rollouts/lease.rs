//! The lease on the weight, and who may move it meanwhile.

use super::*;

#[test]
fn the_lease_is_renewed_quietly_and_takes_the_weight_back_from_a_dead_agent() {
    let mut rig = with_signals();
    start(
        &rig,
        r#"{"strategy":"canary","steps":["10%","pause"],"interval":"1s","lease":"30s"}"#,
    )
    .unwrap();
    pass(&rig, 3);
    let before = rig.reconciler.get("web").unwrap();
    let records = rig.audit().len();
    pass(&rig, 100);
    let after = rig.reconciler.get("web").unwrap();
    assert_eq!(after.generation, before.generation);
    assert_eq!(rig.audit().len(), records, "{:?}", rig.actions());
    let left = after.dead_man.unwrap().remaining_s;
    assert!((19.0..=30.0).contains(&left), "{left}");
    // Nobody is there for longer than the lease.
    rig.clock.pass(Duration::from_secs(31));
    rig.restart();
    pass(&rig, 5);
    assert_eq!(view(&rig).state, "rolled back");
    assert!(view(&rig).why.contains("dead-man"), "{}", view(&rig).why);
    assert_eq!(rig.green(), "0%");
}

#[test]
fn after_a_reboot_within_the_lease_it_goes_on() {
    let mut rig = with_signals();
    start(
        &rig,
        r#"{"strategy":"canary","steps":["10%","pause"],"interval":"1s","lease":"5m"}"#,
    )
    .unwrap();
    pass(&rig, 5);
    rig.reboot(Duration::from_secs(30));
    pass(&rig, 2);
    assert_eq!(
        (view(&rig).state.as_str(), rig.green().as_str()),
        ("holding", "10%")
    );
    rig.reboot(Duration::from_secs(600));
    pass(&rig, 5);
    assert_eq!(
        (view(&rig).state.as_str(), rig.green().as_str()),
        ("rolled back", "0%")
    );
}

/// As if a weight were asked for whose result has not come.
fn ask_for(rig: &Rig, candidate: &str) {
    let candidate = candidate.parse().unwrap();
    leave_in_doubt(rig, Action::Weight { candidate });
}

#[test]
fn a_rollback_that_a_kill_kept_from_the_store_ends_it() {
    for freezes in [false, true] {
        let mut rig = with_signals();
        start(&rig, CANARY).unwrap();
        if freezes {
            // The next weight is asked for, and stays so.
            rig.reconciler.freeze("web", &context()).unwrap();
            ask_for(&rig, "50%");
            pass(&rig, 1);
        } else {
            pass(&rig, 2);
        }
        rig.disk_full(true);
        rig.rollback(0).unwrap();
        rig.restart();
        if freezes {
            rig.reconciler.unfreeze("web", &context()).unwrap();
        }
        assert_eq!(rig.green(), "0%");
        pass(&rig, 20);
        assert_eq!(
            (view(&rig).state.as_str(), rig.green().as_str()),
            ("rolled back", "0%"),
            "{}",
            view(&rig).why
        );
    }
}

#[test]
fn people_are_kept_from_the_weight_and_a_rollback_ends_it() {
    let rig = with_signals();
    start(&rig, CANARY).unwrap();
    for refused in [
        rig.shift("50%").unwrap_err(),
        rig.reconciler.confirm("web", &context()).unwrap_err(),
        rig.reconciler.promote("web", &context()).unwrap_err(),
        rig.reconciler.delete("web", &context()).unwrap_err(),
        start(&rig, CANARY).unwrap_err(),
    ] {
        assert!(
            refused.to_string().contains("runs (running): abort it"),
            "{refused}"
        );
    }
    let same = crate::model::ServiceSpec {
        green: "10%".parse().unwrap(),
        ..web()
    };
    assert!(rig.apply(&[same]).unwrap()[0].unchanged);
    assert!(
        rig.apply(&[web()])
            .unwrap_err()
            .to_string()
            .contains("abort it")
    );
    rig.rollback(0).unwrap();
    assert_eq!(view(&rig).state, "rolled back");
    assert!(view(&rig).why.contains("tester rolled the service back"));
    pass(&rig, 5);
    rig.shift("50%").unwrap();
}

#[test]
fn a_rollback_to_what_is_not_known_ends_nothing() {
    let rig = with_signals();
    start(&rig, CANARY).unwrap();
    let refused = rig.rollback(9_999).unwrap_err();
    assert!(
        refused.to_string().contains("has no generation 9999"),
        "{refused}"
    );
    assert_eq!(
        (view(&rig).state.as_str(), rig.green().as_str()),
        ("running", "10%")
    );
    pass(&rig, 15);
    assert_eq!(view(&rig).state, "promoted");
}

#[test]
fn the_lease_is_not_renewed_on_the_way_back() {
    let rig = with_signals();
    start(&rig, CANARY).unwrap();
    let phase = Phase::RollingBack { reason: "x".into() };
    lock(&rig.reconciler.core)
        .rollouts
        .get_mut("web")
        .unwrap()
        .state
        .phase = phase;
    pass(&rig, 20);
    let left = rig.reconciler.get("web").unwrap().dead_man.unwrap();
    assert!(left.remaining_s <= 10.0, "{}", left.remaining_s);
}

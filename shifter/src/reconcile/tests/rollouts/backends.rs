//! Backends that a rollout drains and brings back.

use super::*;

#[test]
fn a_drain_keeps_the_weight_and_its_dead_man() {
    let rig = Rig::with_web();
    let mut spec = web();
    let mut second = spec.green_pool[0];
    second.addr = "10.0.1.2:8443".parse().unwrap();
    spec.green_pool.push(second);
    rig.apply(&[spec]).unwrap();
    rig.shift_for("20%", Duration::from_secs(600));
    let named = NamedBackends {
        service: "web".into(),
        pool: None,
        backend: Some(second.addr),
    };
    rig.reconciler
        .drain(&named, Some(DrainEnd::default()), &context())
        .unwrap();
    let after = rig.reconciler.get("web").unwrap();
    assert_eq!(after.spec.green_pool[1].state, BackendState::Drain);
    assert_eq!(after.spec.green.to_string(), "20%");
    assert!(after.dead_man.is_some());
    rig.reconciler.drain(&named, None, &context()).unwrap();
    let wrong = NamedBackends {
        backend: Some("10.0.9.9:80".parse().unwrap()),
        ..named
    };
    let refused = rig
        .reconciler
        .drain(&wrong, Some(DrainEnd::default()), &context())
        .unwrap_err();
    assert!(
        refused.to_string().contains("it has 10.0.0.1:8443"),
        "{refused}"
    );
}

/// A check of a backend that has just ended, and began so long ago.
fn check_passes(rig: &Rig, backend: &str, age: Duration) {
    rig.reconciler.note(&Checked {
        service: "web".into(),
        backend: backend.parse().unwrap(),
        outcome: Outcome::Passed,
        took: age,
        age,
        health: Health::Up,
        is_news: false,
    });
}

/// Rolls blue, whose second backend is 10.0.0.2, with checks of both.
fn rolling() -> Rig {
    let rig = Rig::new();
    let mut spec = specs(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
         pools = { blue = [\"10.0.0.1:8443\", \"10.0.0.2:8443\"], green = [\"10.0.1.1:8443\"] }\n\
         health = { type = \"tcp\" }\n",
    );
    rig.apply(&[spec.remove(0)]).unwrap();
    let json = r#"{"strategy":"rolling","drain_deadline":"1s","health_deadline":"10s"}"#;
    start(&rig, json).unwrap();
    pass(&rig, 3);
    assert!(view(&rig).why.contains("update it"), "{}", view(&rig).why);
    rig
}

fn states(rig: &Rig) -> Vec<BackendState> {
    let spec = rig.reconciler.get("web").unwrap().spec;
    spec.blue_pool.iter().map(|b| b.state).collect()
}

#[test]
fn a_backend_is_good_by_a_check_that_began_after_its_update() {
    let rig = rolling();
    let first = "10.0.0.1:8443";
    // Up for long, and once more by a check that was under way at the update.
    check_passes(&rig, first, Duration::from_millis(3));
    rig.clock.pass(Duration::from_millis(400));
    tell(&rig, RolloutCommand::Advance).unwrap();
    rig.clock.pass(Duration::from_millis(100));
    check_passes(&rig, first, Duration::from_millis(200));
    pass(&rig, 3);
    assert_eq!(states(&rig), [BackendState::Drain, BackendState::Ready]);
    check_passes(&rig, first, Duration::from_millis(3));
    pass(&rig, 2);
    assert_eq!(states(&rig), [BackendState::Ready, BackendState::Drain]);
}

#[test]
fn a_backend_that_no_check_finds_good_after_its_update_stays_drained() {
    let rig = rolling();
    check_passes(&rig, "10.0.0.1:8443", Duration::from_millis(3));
    tell(&rig, RolloutCommand::Advance).unwrap();
    pass(&rig, 15);
    let over = view(&rig);
    assert_eq!(over.state, "rolled back", "{over:?}");
    assert!(
        over.why.contains("10.0.0.1:8443 is not up by a check"),
        "{}",
        over.why
    );
    assert_eq!(states(&rig), [BackendState::Drain, BackendState::Ready]);
}

#[test]
fn the_way_back_of_backends_needs_neither_the_store_nor_the_host() {
    let mut rig = Rig::new();
    let mut spec = specs(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
         pools = { blue = [\"10.0.0.1:8443\", \"10.0.0.2:8443\"], green = [\"10.0.1.1:8443\"] }\n",
    )
    .remove(0);
    spec.blue_pool[1].state = BackendState::Drain;
    rig.apply(&[spec]).unwrap();
    // The spare is brought in; it goes again with the way back.
    let json = r#"{"strategy":"rolling","surge":1,"max_unavailable":0,"drain_deadline":"1s"}"#;
    start(&rig, json).unwrap();
    pass(&rig, 2);
    tell(&rig, RolloutCommand::Advance).unwrap();
    pass(&rig, 3);
    assert_eq!(states(&rig), [BackendState::Drain, BackendState::Ready]);
    let ring = |rig: &Rig| rig.datapath.with(|kernel| kernel.rings[&0][0].clone());
    let with_spare = ring(&rig);
    rig.disk_full(true);
    let vip = "203.0.113.10".parse().unwrap();
    lock(&rig.facts.lost).insert(vip);
    tell(&rig, RolloutCommand::Abort).unwrap();
    pass(&rig, 3);
    assert_eq!(states(&rig), [BackendState::Drain, BackendState::Drain]);
    assert_ne!(ring(&rig), with_spare);
    let told = rig.reconciler.get("web").unwrap();
    assert!(
        told.warnings.iter().any(|w| w.starts_with("not durable")),
        "{:?}",
        told.warnings
    );
    rig.disk_full(false);
    pass(&rig, 15);
    assert_eq!(view(&rig).state, "rolled back");
    assert_eq!(rig.actions()[0], "rollout undrain");
    let told = rig.reconciler.get("web").unwrap();
    assert!(!told.warnings.iter().any(|w| w.starts_with("not durable")));
    rig.restart();
    assert_eq!(states(&rig), [BackendState::Drain, BackendState::Drain]);
}

#[test]
fn its_way_back_undoes_no_earlier_promote() {
    let rig = with_signals();
    let json = r#"{"strategy":"blue-green","bake":"5s"}"#;
    start(&rig, json).unwrap();
    pass(&rig, 15);
    assert_eq!(rig.live(), PoolName::Green);
    for by_hand in [false, true] {
        start(&rig, json).unwrap();
        assert_eq!(rig.green(), "0%");
        match by_hand {
            true => drop(rig.rollback(0).unwrap()),
            false => drop(tell(&rig, RolloutCommand::Abort).unwrap()),
        }
        assert_eq!(
            (rig.live(), rig.green().as_str()),
            (PoolName::Green, "100%")
        );
        pass(&rig, 5);
        assert_eq!(view(&rig).state, "rolled back");
    }
    // Without a rollout it means what it always does.
    rig.rollback(0).unwrap();
    assert_eq!(rig.live(), PoolName::Blue);
}

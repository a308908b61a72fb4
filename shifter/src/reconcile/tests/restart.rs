//! Crash, restart, reboot, and the agent's own file.

use std::time::Duration;

use super::rig::{Rig, context, other, web};
use crate::{
    datapath::ServiceImage,
    model::{PoolName, breaker::Breaker},
    reconcile::{Controller as _, reconciler::lock},
    store::{Commit, Store},
};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_restart_touches_nothing_that_is_as_it_should_be() {
    let mut rig = Rig::with_web();
    rig.apply(&[other("api", 11)]).unwrap();
    rig.shift_for("5%", MINUTE);
    let before = rig.datapath.with(|k| (k.services.clone(), k.publications));
    let generation = rig.reconciler.get("web").unwrap().generation;
    rig.restart();
    assert_eq!(
        rig.datapath.with(|k| (k.services.clone(), k.publications)),
        before
    );
    let view = rig.reconciler.get("web").unwrap();
    assert_eq!(
        (view.generation, view.spec.green.to_string().as_str()),
        (generation, "5%")
    );
    assert!(view.dead_man.is_some());
    assert!(rig.shift("6%").unwrap().generation > generation);
}

#[test]
fn a_restart_publishes_only_what_differs() {
    let mut rig = Rig::with_web();
    rig.apply(&[other("api", 11)]).unwrap();
    let before = rig.datapath.with(|k| {
        k.services.remove(&1);
        k.rings.remove(&1);
        k.publications
    });
    rig.restart();
    assert_eq!(rig.datapath.with(|k| k.publications), before + 1);
    assert_eq!(rig.reconciler.get("api").unwrap().generation, 3);
}

#[test]
fn a_reboot_brings_everything_back_under_higher_generations() {
    let mut rig = Rig::with_web();
    let generation = rig.shift("5%").unwrap().generation;
    rig.reboot(MINUTE);
    let view = rig.reconciler.get("web").unwrap();
    assert_eq!(view.spec.green.to_string(), "5%");
    assert!(view.generation > generation);
    let image = rig.datapath.with(|k| k.services[&0].clone());
    assert!(image.settle_until_ns > 0);
    assert_eq!(image.seed, web().seed.unwrap());
}

#[test]
fn a_service_newer_than_a_store_that_was_brought_back_goes_on() {
    let mut rig = Rig::with_web();
    rig.apply(&[other("api", 11)]).unwrap();
    // As if the file were a backup from before the last apply.
    lock(&rig.reconciler.core)
        .store
        .commit(&Commit {
            delete: vec!["api"],
            ..Commit::default()
        })
        .unwrap();
    for _ in 0..2 {
        rig.restart();
        assert_eq!(rig.datapath.with(|k| k.services.len()), 2);
        rig.reconciler.maintain();
        assert_eq!(rig.datapath.with(|k| k.backends.len()), 4);
        let warnings = rig.reconciler.info().unwrap().warnings;
        assert!(warnings.iter().any(|w| w.contains("goes on as it is")));
    }
}

#[test]
fn a_lost_store_leaves_the_kernel_alone_and_an_apply_takes_over() {
    let mut rig = Rig::with_web();
    rig.apply(&[other("api", 11)]).unwrap();
    rig.shift("5%").unwrap();
    let id = rig.service_id("api");
    let generation = rig.reconciler.get("web").unwrap().generation;
    rig.lose_store();
    rig.restart();
    assert_eq!(rig.datapath.with(|k| k.services.len()), 2);
    let info = rig.reconciler.info().unwrap();
    assert_eq!(info.warnings.len(), 2, "{:?}", info.warnings);
    rig.reconciler.maintain();
    let receipts = rig.apply(&[other("api", 11)]).unwrap();
    assert_eq!(rig.service_id("api"), id);
    assert!(receipts[0].generation > generation);
}

#[test]
fn a_failed_apply_over_an_orphan_leaves_it_as_it_was() {
    let mut rig = Rig::with_web();
    rig.shift("5%").unwrap();
    rig.lose_store();
    rig.restart();
    let held = |rig: &Rig| {
        rig.datapath.with(|k| {
            let image = ServiceImage {
                generation: 0,
                ..k.services[&0].clone()
            };
            (k.services.len(), image, k.rings[&0].clone())
        })
    };
    let before = held(&rig);
    let mut taken = web();
    taken.green_pool[0].addr = "10.0.1.9:8443".parse().unwrap();
    let batch = [taken, other("zoo", 12)];
    for failing in 1..=2 {
        rig.datapath
            .with(|k| k.fail_publication = Some(k.publications + failing));
        rig.apply(&batch).unwrap_err();
        rig.reconciler.maintain();
        assert_eq!(held(&rig), before, "failing {failing}");
        assert!(rig.reconciler.list().unwrap().is_empty());
    }
    rig.apply(&batch).unwrap();
    assert_eq!(rig.service_id("web"), 0);
}

#[test]
fn a_crash_between_publication_and_commit_of_a_shift_keeps_the_shift() {
    let mut rig = Rig::with_web();
    rig.shift("5%").unwrap();
    rig.datapath.with(|k| {
        let image = k.services.get_mut(&0).unwrap();
        image.generation += 5;
        image.threshold = "1/3".parse::<crate::model::Weight>().unwrap().threshold();
        image.desired_hash ^= 1;
    });
    rig.restart();
    let view = rig.reconciler.get("web").unwrap();
    assert_eq!(view.spec.green.to_string(), "1/3");
    let loaded = Store::open(&rig.state_dir()).unwrap().load().unwrap();
    assert_eq!(loaded.services[0].spec.green.to_string(), "1/3");
    assert!(loaded.generation >= 7);
    assert_eq!(rig.actions()[0], "agent adopt");
}

#[test]
fn a_crash_in_an_apply_is_completed_if_anything_reached_the_kernel() {
    let mut rig = Rig::with_web();
    let mut changed = web();
    changed.green = "5%".parse().unwrap();
    changed.green_pool[0].addr = "10.0.1.2:8443".parse().unwrap();
    let api = other("api", 11);
    {
        let mut core = lock(&rig.reconciler.core);
        core.store
            .note_pending(&[("web", Some(&changed)), ("api", Some(&api))])
            .unwrap();
    }
    rig.restart();
    assert_eq!(rig.green(), "0%", "nothing had reached the kernel");
    {
        let mut core = lock(&rig.reconciler.core);
        core.store
            .note_pending(&[("web", Some(&changed)), ("api", Some(&api))])
            .unwrap();
    }
    rig.datapath.with(|k| {
        let image = k.services.get_mut(&0).unwrap();
        image.generation += 1;
        image.threshold = changed.green.threshold();
        image.desired_hash = crate::reconcile::entry::desired_hash(
            crate::reconcile::entry::base_hash(&changed),
            changed.live,
            changed.green.threshold(),
            changed.cohorts_on,
        );
    });
    rig.restart();
    let view = rig.reconciler.get("web").unwrap();
    assert_eq!(view.spec.green_pool, changed.green_pool);
    assert_eq!(view.spec.green.to_string(), "5%");
    assert!(
        rig.reconciler.get("api").is_ok(),
        "the apply was completed in part"
    );
    let publications = rig.datapath.with(|k| k.publications);
    rig.restart();
    assert_eq!(rig.datapath.with(|k| k.publications), publications);
}

#[test]
fn a_crash_in_a_delete_is_completed() {
    let mut rig = Rig::with_web();
    lock(&rig.reconciler.core)
        .store
        .note_pending(&[("web", None)])
        .unwrap();
    rig.restart();
    assert!(rig.reconciler.get("web").is_ok(), "the kernel still had it");
    lock(&rig.reconciler.core)
        .store
        .note_pending(&[("web", None)])
        .unwrap();
    rig.datapath.with(|k| {
        k.services.clear();
        k.rings.clear();
    });
    rig.restart();
    assert!(rig.reconciler.get("web").is_err());
    rig.restart();
    assert!(rig.reconciler.get("web").is_err());
}

#[test]
fn a_dead_man_that_passed_while_the_host_was_down_is_a_rollback() {
    let mut rig = Rig::with_web();
    rig.shift_for("50%", 10 * MINUTE);
    rig.reboot(11 * MINUTE);
    let view = rig.reconciler.get("web").unwrap();
    assert_eq!(
        (view.dead_man, view.spec.green.to_string().as_str()),
        (None, "0%")
    );
    assert_eq!(rig.actions()[0], "dead-man rollback");
    rig.restart();
    assert_eq!(rig.green(), "0%");
}

#[test]
fn a_dead_man_goes_on_over_a_reboot_and_never_lasts_longer_than_it_was_set() {
    let mut rig = Rig::with_web();
    rig.shift_for("50%", 10 * MINUTE);
    rig.clock.pass(2 * MINUTE);
    rig.reboot(3 * MINUTE);
    let left = |rig: &Rig| {
        rig.reconciler
            .get("web")
            .unwrap()
            .dead_man
            .unwrap()
            .remaining_s
    };
    assert!((left(&rig) - 300.0).abs() < 1.0, "{}", left(&rig));
    rig.clock.pass(5 * MINUTE);
    rig.reconciler.maintain();
    assert_eq!(rig.green(), "0%");
}

#[test]
fn a_dead_man_that_passed_while_the_agent_was_dead_is_recorded() {
    let mut rig = Rig::with_web();
    rig.shift_for("50%", MINUTE);
    rig.clock.pass(2 * MINUTE);
    rig.restart();
    assert_eq!(rig.reconciler.get("web").unwrap().programmed_share, 0.0);
    rig.reconciler.maintain();
    assert_eq!(rig.green(), "0%");
    assert!(rig.reconciler.get("web").unwrap().dead_man.is_none());
}

#[test]
fn a_value_of_the_file_wins_only_when_it_is_new_in_the_file() {
    let mut rig = Rig::new();
    let mut file = web();
    file.green = "5%".parse().unwrap();
    assert!(
        rig.reconciler
            .load_file_services(&[file.clone()])
            .unwrap()
            .is_empty()
    );
    rig.shift("50%").unwrap();
    rig.restart();
    assert!(
        rig.reconciler
            .load_file_services(&[file.clone()])
            .unwrap()
            .is_empty()
    );
    assert_eq!(rig.green(), "50%");
    file.green_pool[0].addr = "10.0.1.2:8443".parse().unwrap();
    let warnings = rig.reconciler.load_file_services(&[file.clone()]).unwrap();
    assert!(
        warnings[0].contains("new values for pools.green"),
        "{warnings:?}"
    );
    let view = rig.reconciler.get("web").unwrap();
    assert_eq!(
        (
            view.spec.green.to_string().as_str(),
            view.spec.green_pool[0].addr.to_string().as_str()
        ),
        ("50%", "10.0.1.2:8443")
    );
    let breaker = Breaker {
        window: MINUTE,
        max_failures: 5,
        min_attempts: 20,
        max_ratio: "10%".parse().unwrap(),
    };
    file.breaker = Some(breaker);
    let warnings = rig.reconciler.load_file_services(&[file.clone()]).unwrap();
    assert!(
        warnings[0].contains("new values for breaker"),
        "{warnings:?}"
    );
    let view = rig.reconciler.get("web").unwrap();
    assert_eq!(view.spec.breaker, Some(breaker));
    file.green = "7%".parse().unwrap();
    let warnings = rig.reconciler.load_file_services(&[file]).unwrap();
    assert!(warnings[0].contains("new values for green"), "{warnings:?}");
    assert_eq!(rig.green(), "7%");
}

#[test]
fn a_service_that_was_deleted_is_not_brought_back_by_the_same_file() {
    let rig = Rig::new();
    rig.reconciler.load_file_services(&[web()]).unwrap();
    rig.reconciler.delete("web", &context()).unwrap();
    let warnings = rig.reconciler.load_file_services(&[web()]).unwrap();
    assert!(warnings[0].contains("it stays deleted"));
    assert!(rig.reconciler.get("web").is_err());
    let mut changed = web();
    changed.green = "5%".parse().unwrap();
    rig.reconciler.load_file_services(&[changed]).unwrap();
    assert_eq!(rig.green(), "5%");
    let warnings = rig.reconciler.load_file_services(&[]).unwrap();
    assert!(warnings[0].contains("not in the file any more but goes on"));
}

#[test]
fn a_promote_is_found_again_in_the_kernel() {
    let mut rig = Rig::with_web();
    rig.datapath.with(|k| {
        let image = k.services.get_mut(&0).unwrap();
        image.generation += 1;
        image.live = PoolName::Green;
        image.threshold = 1 << 32;
    });
    rig.restart();
    assert_eq!(
        (rig.live(), rig.green().as_str()),
        (PoolName::Green, "100%")
    );
    rig.rollback(0).unwrap();
    assert_eq!(rig.live(), PoolName::Blue);
}

#[test]
fn services_settle_again_after_a_gap() {
    let rig = Rig::with_web();
    rig.clock.pass(5 * MINUTE);
    let until = || rig.datapath.with(|k| k.services[&0].settle_until_ns);
    let before = until();
    rig.reconciler.settle_again();
    assert_eq!(until(), before + 300_000_000_000);
}

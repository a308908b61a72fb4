//! A store that is lost, a disk that fails, a clock that is set.

use std::time::Duration;

use super::rig::{Rig, context, other, web};
use crate::{
    model::PoolName,
    reconcile::{
        Controller as _, Settings,
        controller::{ControlError, WriteContext},
    },
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR_MS: i64 = 3_600_000;
const BY_VIP: &str = "vip-203.0.113.10-443-tcp";

/// `web` with two weighted backends in green and a shift to half.
fn rig() -> Rig {
    let rig = Rig::new();
    let mut spec = web();
    let mut second = spec.green_pool[0];
    second.addr = "10.0.1.2:8443".parse().unwrap();
    second.weight = 3;
    spec.green_pool.push(second);
    rig.apply(&[spec, other("api", 11)]).unwrap();
    rig.shift("50%").unwrap();
    rig
}

#[test]
fn a_damaged_store_leaves_services_as_the_kernel_tells_and_changes_nothing_there() {
    let mut rig = rig();
    let before = rig.datapath.with(|k| (k.services.clone(), k.publications));
    let generation = rig.reconciler.get("web").unwrap().generation;
    rig.damage_store();
    rig.restart();
    rig.reconciler.maintain();
    assert_eq!(
        rig.datapath.with(|k| (k.services.clone(), k.publications)),
        before
    );
    let view = rig.reconciler.get(BY_VIP).unwrap();
    assert_eq!(
        (view.generation, view.spec.green.to_string().as_str()),
        (generation, "50%")
    );
    let weights: Vec<_> = view
        .spec
        .green_pool
        .iter()
        .map(|backend| (backend.addr.to_string(), backend.weight))
        .collect();
    let expected = [
        ("10.0.1.1:8443".to_owned(), 1),
        ("10.0.1.2:8443".to_owned(), 3),
    ];
    assert_eq!(weights, expected);
    assert_eq!(rig.reconciler.list().unwrap().len(), 2);
    let warnings = rig.reconciler.info().unwrap().warnings;
    assert!(
        warnings[0].contains("the store cannot be written"),
        "{warnings:?}"
    );
    assert!(warnings[1].contains("2 services shown"), "{warnings:?}");
}

#[test]
fn a_damaged_store_refuses_ordinary_writes_before_the_kernel_and_lets_a_rollback_through() {
    let mut rig = rig();
    rig.damage_store();
    rig.restart();
    let publications = rig.datapath.with(|k| k.publications);
    let mut change = super::rig::to_green("70%");
    change.service = BY_VIP.into();
    let refused = [
        rig.reconciler.set_weight(&change, &context()).unwrap_err(),
        rig.apply(&[other("new", 12)]).unwrap_err(),
        rig.reconciler.delete(BY_VIP, &context()).unwrap_err(),
        rig.reconciler.promote(BY_VIP, &context()).unwrap_err(),
    ];
    for error in refused {
        let ControlError::Precondition(text) = error else {
            panic!("{error:?}");
        };
        assert!(
            text.contains("damaged") && text.contains("nothing was changed"),
            "{text}"
        );
    }
    assert_eq!(rig.datapath.with(|k| k.publications), publications);
    let receipt = rig
        .reconciler
        .rollback(BY_VIP, 0, None, &context())
        .unwrap();
    assert!(
        receipt.warnings[0].starts_with("not durable"),
        "{:?}",
        receipt.warnings
    );
    assert_eq!(rig.datapath.with(|k| k.services[&0].threshold), 0);

    // The good file is brought back: the rollback is kept, under the old name.
    let good = Rig::new();
    good.apply(&[web(), other("api", 11)]).unwrap();
    let file = crate::store::STORE_FILE;
    lock_free_copy(&good.state_dir().join(file), &rig.state_dir().join(file));
    rig.restart();
    assert_eq!(rig.green(), "0%");
    assert!(rig.shift("5%").unwrap().generation > receipt.generation);
}

/// A database is whole in its file once nobody has it open.
fn lock_free_copy(from: &std::path::Path, to: &std::path::Path) {
    let connection = rusqlite::Connection::open(from).unwrap();
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        .unwrap();
    std::fs::copy(from, to).unwrap();
    for suffix in ["-wal", "-shm"] {
        std::fs::remove_file(format!("{}{suffix}", to.display())).ok();
    }
}

#[test]
fn a_lost_name_is_found_in_the_agents_own_file() {
    let mut rig = rig();
    rig.damage_store();
    rig.restart_with(Settings {
        named: vec![web()],
        ..Settings::default()
    });
    assert_eq!(rig.green(), "50%");
    let warnings = rig.reconciler.load_file_services(&[web()]).unwrap();
    assert!(warnings[0].contains("without its store"), "{warnings:?}");
    assert_eq!(rig.green(), "50%");
}

#[test]
fn without_a_store_and_with_nothing_in_the_kernel_there_is_no_start() {
    let rig = rig();
    rig.damage_store();
    let text = rig.refused_after_reboot();
    assert!(
        text.contains("damaged") && text.contains("move it away"),
        "{text}"
    );
    assert!(text.contains("nothing is in force"), "{text}");
}

#[test]
fn a_dead_man_goes_on_without_a_store() {
    let mut rig = Rig::with_web();
    rig.shift_for("50%", MINUTE);
    rig.damage_store();
    rig.restart();
    assert!(rig.reconciler.get(BY_VIP).unwrap().dead_man.is_some());
    rig.clock.pass(2 * MINUTE);
    rig.reconciler.maintain();
    let view = rig.reconciler.get(BY_VIP).unwrap();
    assert_eq!((view.dead_man, view.programmed_share), (None, 0.0));
}

#[test]
fn who_rolled_back_on_a_full_disk_is_recorded_once_there_is_room() {
    let rig = Rig::with_web();
    rig.shift("5%").unwrap();
    rig.disk_full(true);
    let named = WriteContext {
        request_id: "r-9".into(),
        reason: "errors".into(),
        ..context()
    };
    rig.reconciler.rollback("web", 0, None, &named).unwrap();
    rig.reconciler.maintain();
    assert!(rig.reconciler.store_problem().is_some());
    assert_eq!(rig.actions()[0], "tester shift");
    rig.disk_full(false);
    rig.reconciler.maintain();
    let audit = rig.audit();
    let record = &audit[0];
    assert_eq!(
        (
            record.action.as_str(),
            record.request_id.as_str(),
            record.reason.as_str()
        ),
        ("rollback", "r-9", "errors")
    );
    assert_eq!(rig.reconciler.store_problem(), None);
    assert!(rig.reconciler.get("web").unwrap().warnings.is_empty());
}

#[test]
fn a_clock_that_is_set_moves_no_dead_man_not_even_over_a_reboot() {
    for by_ms in [HOUR_MS, -HOUR_MS] {
        let mut rig = Rig::with_web();
        rig.reconciler.maintain();
        rig.shift_for("50%", 10 * MINUTE);
        rig.clock.set_wall(by_ms);
        rig.reconciler.maintain();
        let left_s = |rig: &Rig| {
            let dead_man = rig.reconciler.get("web").unwrap().dead_man;
            dead_man.map_or(0.0, |dead_man| dead_man.remaining_s)
        };
        assert_eq!(left_s(&rig), 600.0, "by {by_ms}");
        rig.clock.pass(MINUTE);
        rig.restart();
        assert_eq!(left_s(&rig), 540.0, "by {by_ms}");
        rig.reboot(MINUTE);
        assert_eq!(left_s(&rig), 480.0, "by {by_ms}");
    }
}

#[test]
fn a_clock_that_is_set_while_no_agent_runs_is_followed_at_the_start() {
    let mut rig = Rig::with_web();
    rig.shift_for("50%", 10 * MINUTE);
    rig.clock.set_wall(HOUR_MS);
    rig.restart();
    rig.reboot(MINUTE);
    let dead_man = rig.reconciler.get("web").unwrap().dead_man.unwrap();
    assert_eq!(dead_man.remaining_s, 540.0);
}

#[test]
fn a_clock_that_is_set_leaves_a_promote_as_long_to_be_undone() {
    for by_ms in [24 * HOUR_MS, -24 * HOUR_MS] {
        let rig = Rig::with_web();
        rig.reconciler.maintain();
        rig.reconciler.promote("web", &context()).unwrap();
        rig.clock.set_wall(by_ms);
        rig.reconciler.maintain();
        rig.rollback(0).unwrap();
        assert_eq!(rig.live(), PoolName::Blue, "by {by_ms}");
    }
    let rig = Rig::with_web();
    rig.reconciler.maintain();
    rig.reconciler.promote("web", &context()).unwrap();
    rig.clock.set_wall(-24 * HOUR_MS);
    rig.reconciler.maintain();
    rig.clock.pass(Settings::default().bake + MINUTE);
    rig.rollback(0).unwrap();
    assert_eq!(rig.live(), PoolName::Green);
}

#[test]
fn the_audit_keeps_its_order_when_the_clock_is_set_back() {
    let rig = Rig::with_web();
    rig.shift("5%").unwrap();
    rig.clock.set_wall(-HOUR_MS);
    rig.shift("6%").unwrap();
    let audit = rig.audit();
    let after: Vec<_> = audit.iter().map(|a| a.after.as_str()).collect();
    assert_eq!(after[..2], ["blue live, green 6%", "blue live, green 5%"]);
    assert!(audit[0].at_unix_ms < audit[1].at_unix_ms);
}

//! What a rollback does not wait for: slow signals, a slow store. And that what was
//! measured meanwhile replaces nothing newer.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use super::rig::{Rig, context};
use crate::{
    reconcile::{
        Controller as _,
        controller::{ReportFormat, StartRollout},
        reconciler::lock,
    },
    rollout::{Happened, Window},
    store::{Beside, Measured},
};

const SECOND: Duration = Duration::from_secs(1);
/// What nobody waits for takes longer than this.
const PATIENCE: Duration = Duration::from_secs(10);

/// A canary at 10%, for long.
fn at_10_percent() -> Rig {
    let rig = Rig::with_web();
    let start = StartRollout {
        service: "web".into(),
        spec: Some(r#"{"strategy":"canary","steps":["10%"],"interval":"1h"}"#.into()),
    };
    rig.reconciler.start_rollout(&start, &context()).unwrap();
    rig.clock.pass(SECOND);
    rig.reconciler.tick_rollouts();
    rig.clock.pass(SECOND);
    rig
}

/// Green's threshold in the kernel.
fn programmed(rig: &Rig) -> u64 {
    let id = rig
        .datapath
        .with(|kernel| *kernel.services.keys().next().unwrap());
    rig.datapath.with(|kernel| kernel.services[&id].threshold)
}

fn comes_to_zero(rig: &Rig) -> bool {
    let start = Instant::now();
    while programmed(rig) != 0 {
        if start.elapsed() > PATIENCE {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

fn beside(rig: &Rig) -> Beside {
    lock(&rig.reconciler.core).store.beside().unwrap()
}

fn stored(rig: &Rig) -> (u64, String, usize) {
    let core = lock(&rig.reconciler.core);
    let row = core.store.rollouts("web", 1).unwrap().remove(0);
    let windows = core.store.rollout_windows(row.id).unwrap().len();
    (row.id, row.state, windows)
}

#[test]
fn a_rollback_does_not_wait_for_signals_that_are_read() {
    let rig = at_10_percent();
    let (reached, is_reached) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    *lock(&rig.datapath.signals_gate) = Some(Box::new(move || {
        reached.send(()).unwrap();
        // Ends with the test, whatever it comes to.
        let _ = may_go_on.recv();
    }));
    let reconciler = Arc::clone(&rig.reconciler);
    let ticking = thread::spawn(move || reconciler.tick_rollouts());
    is_reached.recv_timeout(PATIENCE).unwrap();
    let reconciler = Arc::clone(&rig.reconciler);
    let rolling_back = thread::spawn(move || reconciler.rollback("web", 0, None, &context()));
    assert!(comes_to_zero(&rig), "the rollback waits for signals");
    rolling_back.join().unwrap().unwrap();
    assert_eq!(
        rig.reconciler.rollout("web", 0).unwrap().state,
        "rolled back"
    );
    go_on.send(()).unwrap();
    ticking.join().unwrap();
    assert_eq!(rig.green(), "0%");
}

#[test]
fn a_rollback_is_programmed_while_measurements_are_stored() {
    let rig = at_10_percent();
    let beside = beside(&rig);
    // A gate has said something else; that moves nothing.
    let said = Happened {
        at_unix_ms: 1,
        kind: "gate".into(),
        text: "no data".into(),
    };
    {
        let mut core = lock(&rig.reconciler.core);
        core.rollouts
            .get_mut("web")
            .unwrap()
            .late
            .push(said.clone());
    }
    let turn = beside.turn();
    let reconciler = Arc::clone(&rig.reconciler);
    let ticking = thread::spawn(move || reconciler.tick_rollouts());
    // It comes to its write, or had none: both are what a slow disk meets.
    thread::sleep(Duration::from_millis(100));
    assert!(!ticking.is_finished(), "nothing was to be stored");
    let reconciler = Arc::clone(&rig.reconciler);
    let rolling_back = thread::spawn(move || reconciler.rollback("web", 0, None, &context()));
    let is_programmed = comes_to_zero(&rig);
    drop(turn);
    assert!(is_programmed, "the rollback waits for the store");
    let receipt = rolling_back.join().unwrap().unwrap();
    assert!(receipt.warnings.is_empty(), "{:?}", receipt.warnings);
    ticking.join().unwrap();
    let (id, ..) = stored(&rig);
    let notes = lock(&rig.reconciler.core).store.rollout_notes(id, 100);
    assert!(notes.unwrap().contains(&said));
    // The tick's state is the older one, whichever was stored last.
    let mut rig = rig;
    rig.restart();
    assert_eq!(
        rig.reconciler.rollout("web", 0).unwrap().state,
        "rolled back"
    );
}

#[test]
fn what_was_measured_replaces_no_newer_state_and_its_windows_are_kept() {
    let rig = at_10_percent();
    let (id, before, windows) = stored(&rig);
    let measured = |before: &str, state: &str, at_unix_ms| Measured {
        id,
        before: before.to_owned(),
        state: state.to_owned(),
        windows: vec![Window {
            at_unix_ms,
            ms: 1_000,
            ..Window::default()
        }],
        notes: Vec::new(),
    };
    let beside = beside(&rig);
    assert!(!beside.write(&measured("older", "stale", 1)).unwrap());
    assert_eq!(stored(&rig), (id, before.clone(), windows + 1));
    assert!(beside.write(&measured(&before, "newest", 2)).unwrap());
    assert_eq!(stored(&rig), (id, "newest".to_owned(), windows + 2));
}

#[test]
fn what_a_full_disk_did_not_take_is_stored_later() {
    let rig = at_10_percent();
    let pass = |seconds| {
        for _ in 0..seconds {
            rig.clock.pass(SECOND);
            rig.reconciler.tick_rollouts();
        }
    };
    pass(2);
    let (_, _, before) = stored(&rig);
    rig.disk_full(true);
    pass(5);
    assert_eq!(stored(&rig).2, before);
    assert!(lock(&rig.reconciler.core).store.problem().is_some());
    rig.disk_full(false);
    pass(1);
    assert_eq!(stored(&rig).2, before + 6);
    let recording = rig
        .reconciler
        .rollout_report("web", 0, ReportFormat::Recording);
    assert!(recording.unwrap().1.lines().count() > 6);
}

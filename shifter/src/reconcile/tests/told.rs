//! Events: told without waiting, listed though they are not stored yet.

use std::time::Duration;

use super::rig::Rig;
use crate::{
    health::Watched as _,
    reconcile::{
        Controller as _,
        controller::{Event, EventQuery},
        reconciler::lock,
    },
};

fn events(rig: &Rig) -> Vec<Event> {
    let query = EventQuery {
        limit: 100,
        ..EventQuery::default()
    };
    rig.reconciler.events(&query).unwrap().events
}

fn words(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.what.as_str()).collect()
}

#[test]
fn a_rollback_waits_for_nobody_who_stores_or_lists_events() {
    let rig = Rig::with_web();
    rig.shift("50%").unwrap();
    rig.reconciler
        .tell_event("agent", "lost", "", String::new());
    // Whoever does either holds this, while a disk may hang.
    let busy = lock(&rig.reconciler.event_file);
    rig.rollback(0).unwrap();
    assert_eq!(rig.green(), "0%");
    drop(busy);
    let told = events(&rig);
    assert_eq!(words(&told), ["apply", "shift", "lost", "rollback"]);
}

#[test]
fn what_a_failing_store_could_not_take_is_listed_without_a_number_and_stored_later() {
    let rig = Rig::with_web();
    rig.shift("50%").unwrap();
    rig.disk_full(true);
    rig.rollback(0).unwrap();
    rig.reconciler.maintain();
    let told = events(&rig);
    assert_eq!(words(&told), ["apply", "shift", "rollback", "store failed"]);
    assert_eq!(told[2].number, 0);
    rig.disk_full(false);
    rig.clock.pass(Duration::from_secs(11));
    rig.reconciler.maintain();
    rig.clock.pass(Duration::from_secs(1));
    rig.reconciler.maintain();
    let told = events(&rig);
    assert!(told.iter().all(|event| event.number > 0), "{told:?}");
    for what in ["rollback", "store failed", "store works"] {
        let count = words(&told).iter().filter(|word| **word == what).count();
        assert_eq!(count, 1, "{what}: {told:?}");
    }
}

#[test]
fn backends_that_go_down_and_come_back_are_told() {
    let rig = Rig::new();
    let specs = super::rig::specs(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
         pools = { blue = [\"10.0.0.1:8443\"], green = [\"10.0.1.1:8443\"] }\n\
         health = { type = \"tcp\" }\n",
    );
    rig.apply(&specs).unwrap();
    let green = "10.0.1.1:8443".parse().unwrap();
    assert!(rig.reconciler.settle("web", &[green].into()));
    assert!(rig.reconciler.settle("web", &Default::default()));
    rig.reconciler.maintain();
    let told = events(&rig);
    assert_eq!(
        words(&told),
        ["apply", "down", "pool down", "up", "pool up"]
    );
    assert!(told.iter().all(|event| event.number > 0));
    assert!(told[1].text.contains("10.0.1.1:8443"), "{:?}", told[1]);
}

//! A breaker that trips in the kernel is told, and recorded as a rollback.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use super::rig::{Rig, context, web};
use crate::{
    datapath::{BreakerState, Placement, Trip},
    health::Watched as _,
    model::{ServiceSpec, breaker::Breaker},
    reconcile::{Controller as _, reconciler::lock},
};

fn guarded() -> ServiceSpec {
    ServiceSpec {
        breaker: Some(Breaker::default()),
        ..web()
    }
}

/// With the breaker and half of the new flows on green.
fn shifted() -> Rig {
    let rig = Rig::new();
    rig.apply(&[guarded()]).unwrap();
    rig.shift("50%").unwrap();
    rig
}

/// What the kernel would write under the generation in force.
fn trip(rig: &Rig) {
    let at_ns = 1_000_000_000_000;
    rig.datapath.with(|kernel| {
        let generation = kernel.services[&0].generation;
        let state = BreakerState {
            attempts: 60,
            failures: 30,
            trip: Some(Trip {
                generation,
                at_ns,
                attempts: 58,
                failures: 29,
            }),
        };
        kernel.breakers.insert(0, state);
    });
}

#[test]
fn the_kernel_is_given_the_bounds() {
    let rig = shifted();
    let image = rig.datapath.with(|kernel| kernel.services[&0].breaker);
    let image = image.unwrap();
    assert_eq!(image.window_ns, 10_000_000_000);
    assert_eq!((image.max_failures, image.min_attempts), (20, 50));
    assert!((image.ratio() - 0.2).abs() < 1e-9);
    // An apply without it takes it out.
    let mut without = guarded();
    without.breaker = None;
    rig.apply(&[without]).unwrap();
    assert_eq!(
        rig.datapath.with(|kernel| kernel.services[&0].breaker),
        None
    );
}

#[test]
fn a_trip_is_seen_at_once_and_recorded_as_a_rollback() {
    let rig = shifted();
    trip(&rig);
    let view = rig.reconciler.get("web").unwrap();
    assert_eq!(
        (view.programmed_share, view.spec.green.to_string().as_str()),
        (0.0, "50%")
    );
    assert!(view.breaker.unwrap().tripped_ago_s.is_some());
    rig.reconciler.maintain();
    let view = rig.reconciler.get("web").unwrap();
    assert_eq!(view.spec.green.to_string(), "0%");
    assert_eq!(rig.actions()[0], "breaker rollback");
    assert_eq!(
        rig.audit()[0].reason,
        "breaker tripped in the kernel: 29 of 58 attempts on green within 10s were refused, unanswered or reset before data"
    );
    assert!(view.warnings[0].contains("mend green, then shift again"));
    // Once.
    rig.reconciler.maintain();
    assert_eq!(rig.actions()[1], "tester shift");
    // A shift is the answer to it, and ends the warning.
    rig.shift("5%").unwrap();
    let view = rig.reconciler.get("web").unwrap();
    assert!(view.warnings.is_empty() && view.programmed_share > 0.0);
    assert_eq!(view.breaker.unwrap().tripped_ago_s, None);
}

#[test]
fn a_write_that_comes_first_finds_the_rollback() {
    let rig = shifted();
    let etag = rig.reconciler.get("web").unwrap().etag;
    trip(&rig);
    let mut asked = context();
    asked.etag = Some(etag);
    let error = rig
        .reconciler
        .set_weight(&super::rig::to_green("60%"), &asked);
    assert!(error.unwrap_err().to_string().contains("etag"));
    assert_eq!(
        (rig.green().as_str(), rig.actions()[0].as_str()),
        ("0%", "breaker rollback")
    );
}

#[test]
fn nothing_that_nobody_asked_for_arms_it_anew() {
    let rig = shifted();
    trip(&rig);
    rig.reconciler.settle_again();
    assert_eq!(rig.green(), "0%");
    assert_eq!(rig.actions()[0], "breaker rollback");
}

/// The kernel refuses the next publication, and takes those after it.
fn refuse_next(rig: &Rig) {
    rig.datapath
        .with(|k| k.fail_publication = Some(k.publications + 1));
}

fn generation(rig: &Rig) -> u32 {
    rig.datapath.with(|k| k.services[&0].generation)
}

/// Recorded as soon as the kernel takes it.
fn assert_recorded(rig: &Rig) {
    rig.reconciler.maintain();
    assert_eq!(rig.green(), "0%");
    assert_eq!(rig.actions()[0], "breaker rollback");
}

#[test]
fn a_trip_that_the_kernel_refuses_to_record_outlives_a_settling_time() {
    let rig = shifted();
    trip(&rig);
    let before = generation(&rig);
    rig.clock.pass(Duration::from_secs(600));
    refuse_next(&rig);
    rig.reconciler.settle_again();
    assert_eq!(generation(&rig), before, "the breaker is armed anew");
    let until = || rig.datapath.with(|k| k.services[&0].settle_until_ns);
    let unsettled = until();
    assert_recorded(&rig);
    assert!(until() > unsettled, "the rollback brings it along");
}

#[test]
fn a_trip_that_the_kernel_refuses_to_record_outlives_new_placements() {
    let rig = shifted();
    trip(&rig);
    let before = generation(&rig);
    let addr = web().blue_pool[0].addr;
    lock(&rig.facts.placements).insert(addr, Placement::Host);
    refuse_next(&rig);
    rig.reconciler.refresh_placements();
    assert_eq!(generation(&rig), before, "the breaker is armed anew");
    assert_recorded(&rig);
    let local = rig
        .datapath
        .with(|k| k.services[&0].local_backends[0].len());
    assert_eq!(local, 1, "the rollback brings it along");
}

/// With the breaker, half on green, and two checked backends in blue; the second.
fn checked() -> (Rig, SocketAddr) {
    let rig = Rig::new();
    let mut spec = super::rig::specs(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
         pools = { blue = [\"10.0.0.1:8443\", \"10.0.0.2:8443\"], green = [\"10.0.1.1:8443\"] }\n\
         health = { type = \"tcp\" }\n",
    )
    .remove(0);
    spec.breaker = guarded().breaker;
    let lost = spec.blue_pool[1].addr;
    rig.apply(&[spec]).unwrap();
    rig.shift("50%").unwrap();
    (rig, lost)
}

#[test]
fn a_trip_that_the_kernel_refuses_to_record_outlives_a_change_of_health() {
    let (rig, lost) = checked();
    trip(&rig);
    let before = generation(&rig);
    refuse_next(&rig);
    assert!(!rig.reconciler.settle("web", &BTreeSet::from([lost])));
    assert_eq!(generation(&rig), before, "the breaker is armed anew");
    assert!(rig.reconciler.settle("web", &BTreeSet::from([lost])));
    assert_eq!(rig.actions()[0], "breaker rollback");
}

#[test]
fn a_change_of_health_does_not_arm_it_anew() {
    let (rig, lost) = checked();
    trip(&rig);
    assert!(rig.reconciler.settle("web", &BTreeSet::from([lost])));
    assert_eq!(rig.actions()[0], "breaker rollback");
    assert_eq!(rig.green(), "0%");
    rig.datapath.with(|kernel| {
        assert_eq!(kernel.services[&0].threshold, 0);
        let blue = &kernel.rings[&0][0];
        let is_lost = |id| kernel.backends[id].addr == lost;
        assert!(!blue.is_empty() && !blue.iter().any(is_lost));
    });
}

#[test]
fn a_trip_while_the_agent_was_dead_is_recorded_by_the_next() {
    let mut rig = shifted();
    trip(&rig);
    rig.clock.pass(Duration::from_secs(60));
    rig.restart();
    assert_eq!(rig.green(), "0%");
    assert_eq!(rig.actions()[0], "breaker rollback");
    let threshold = rig.datapath.with(|kernel| kernel.services[&0].threshold);
    assert_eq!(threshold, 0);
    let view = rig.reconciler.get("web").unwrap();
    assert!(view.breaker.unwrap().tripped_ago_s.unwrap() >= 60.0);
}

#[test]
fn without_a_disk_a_trip_is_a_rollback_all_the_same() {
    let rig = shifted();
    trip(&rig);
    rig.disk_full(true);
    rig.reconciler.maintain();
    assert_eq!(rig.green(), "0%");
    rig.disk_full(false);
    rig.reconciler.maintain();
    assert_eq!(rig.actions()[0], "breaker rollback");
}

#[test]
fn explain_and_plan_tell_of_it() {
    let rig = shifted();
    trip(&rig);
    let client = "198.51.100.7".parse().unwrap();
    let told = rig.reconciler.explain("web", client, Some(1_234)).unwrap();
    assert!(told.why.iter().any(|line| line.contains("breaker tripped")));
    let changes = Rig::with_web().reconciler.plan(&[guarded()]).unwrap();
    let line = "breaker: none -> more than 20 failures and 20% of at least 50 attempts within 10s";
    assert!(changes[0].details.iter().any(|l| l == line), "{changes:?}");
}

#[test]
fn a_trip_suspends_cohorts_even_at_weight_0() {
    let rig = Rig::new();
    let mut spec = guarded();
    spec.cohorts = super::rig::specs(
        "[[service]]\nname = \"a\"\nvip = \"203.0.113.11:443/tcp\"\n\
         pools = { blue = [\"10.0.0.1:8443\"], green = [\"10.0.1.1:8443\"] }\n\
         [[service.cohort]]\nname = \"inside\"\nprefixes = [\"198.51.100.0/24\"]\n",
    )
    .remove(0)
    .cohorts;
    rig.apply(&[spec]).unwrap();
    let told = || {
        let client = "198.51.100.7".parse().unwrap();
        rig.reconciler.explain("web", client, Some(1_234)).unwrap()
    };
    assert_eq!(told().cohort.as_deref(), Some("inside"));
    trip(&rig);
    let view = rig.reconciler.get("web").unwrap();
    assert_eq!((view.cohorts, told().cohort), ("suspended", None));
    rig.reconciler.maintain();
    assert!(!rig.reconciler.get("web").unwrap().spec.cohorts_on);
    assert_eq!(rig.actions()[0], "breaker rollback");
}

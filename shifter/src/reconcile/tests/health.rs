//! Backends that go down and come back, over the fake packet path.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use super::rig::{Rig, context, specs, to_green};
use crate::{
    health::{Checked, Watched as _, probe::Outcome, state::Health},
    model::{PoolName, ServiceSpec},
    reconcile::{
        Controller as _,
        controller::{ControlError, ServiceView, WeightChange},
    },
};

/// Blue 10.0.0.1 and 10.0.0.2, green 10.0.1.1.
fn checked(health: &str) -> ServiceSpec {
    let text = format!(
        "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
         seed = \"000102030405060708090a0b0c0d0e0f\"\n\
         pools = {{ blue = [\"10.0.0.1:8443\", \"10.0.0.2:8443\"], green = [\"10.0.1.1:8443\"] }}\n\
         {health}"
    );
    specs(&text).remove(0)
}

const TCP: &str = "health = { type = \"tcp\" }\n";

fn addr(text: &str) -> SocketAddr {
    format!("10.0.{text}:8443").parse().unwrap()
}

fn down(rig: &Rig, backends: &[&str]) -> bool {
    let down: BTreeSet<SocketAddr> = backends.iter().map(|text| addr(text)).collect();
    rig.reconciler.settle("web", &down)
}

fn fail(rig: &Rig, backend: &str) {
    rig.reconciler.note(&Checked {
        service: "web".into(),
        backend: addr(backend),
        outcome: Outcome::Failed {
            kind: "refused",
            text: "connection refused".into(),
        },
        took: Duration::from_millis(3),
        age: Duration::from_millis(3),
        health: Health::Down,
        is_news: true,
    });
}

fn rig() -> Rig {
    let rig = Rig::new();
    rig.apply(&[checked(TCP)]).unwrap();
    rig
}

fn view(rig: &Rig) -> ServiceView {
    rig.reconciler.get("web").unwrap()
}

/// Backends in the ring of blue and of green, as the kernel has them.
fn rings(rig: &Rig) -> [BTreeSet<SocketAddr>; 2] {
    rig.datapath.with(|kernel| {
        kernel.rings[&0]
            .each_ref()
            .map(|ring| ring.iter().map(|id| kernel.backends[id].addr).collect())
    })
}

fn set(backends: &[&str]) -> BTreeSet<SocketAddr> {
    backends.iter().map(|text| addr(text)).collect()
}

fn marked(rig: &Rig) -> BTreeSet<SocketAddr> {
    rig.datapath.with(|kernel| {
        let marked = kernel.backends.values().filter(|backend| backend.down);
        marked.map(|backend| backend.addr).collect()
    })
}

#[test]
fn a_backend_that_is_down_leaves_its_ring_and_comes_back() {
    let rig = rig();
    let before = view(&rig);
    fail(&rig, "0.1");
    assert!(down(&rig, &["0.1"]));
    assert_eq!(rings(&rig), [set(&["0.2"]), set(&["1.1"])]);
    assert_eq!(marked(&rig), set(&["0.1"]));
    let after = view(&rig);
    assert!(after.generation > before.generation);
    assert_eq!(after.etag, before.etag, "the desired state is as it was");
    let healths: Vec<&str> = after.backends.iter().map(|b| b.health).collect();
    assert_eq!(healths, ["down", "unknown", "unknown"]);
    let checks = after.backends[0].checks.as_ref().unwrap();
    assert_eq!(checks.reason, "connection refused");
    assert!(checks.since_unix_ms > 0);
    assert!(after.warnings.is_empty(), "{:?}", after.warnings);
    assert!(down(&rig, &[]));
    assert_eq!(rings(&rig), [set(&["0.1", "0.2"]), set(&["1.1"])]);
    assert_eq!(marked(&rig), set(&[]));
}

#[test]
fn what_is_told_again_publishes_nothing() {
    let rig = rig();
    assert!(down(&rig, &["0.1"]));
    let before = rig.datapath.with(|kernel| kernel.publications);
    assert!(down(&rig, &["0.1"]));
    assert!(down(&rig, &["0.1", "9.9"]));
    assert_eq!(rig.datapath.with(|kernel| kernel.publications), before);
}

#[test]
fn a_pool_without_a_backend_gives_its_new_flows_to_the_other_loudly() {
    let rig = rig();
    rig.shift("20%").unwrap();
    assert!(down(&rig, &["0.1", "0.2"]));
    assert_eq!(rings(&rig), [set(&[]), set(&["1.1"])]);
    let view = view(&rig);
    assert_eq!(view.programmed_share, 1.0);
    assert_eq!(view.spec.green.to_string(), "20%");
    let loud = rig.reconciler.loud();
    let text = "web: no backend of the live pool blue is up (2 backends down by their health checks): all of its new flows (80%) go to green until one is up";
    assert!(loud.contains(&text.to_owned()), "{loud:?}");
    assert!(down(&rig, &["0.1"]));
    let share = self::view(&rig).programmed_share;
    assert!((share - 0.2).abs() < 1e-6, "{share}");
    assert!(rig.reconciler.loud().is_empty());
}

#[test]
fn where_both_pools_are_down_or_it_is_asked_for_new_flows_stay() {
    let rig = rig();
    assert!(down(&rig, &["0.1", "0.2", "1.1"]));
    assert_eq!(rings(&rig), [set(&["0.1", "0.2"]), set(&["1.1"])]);
    assert_eq!(marked(&rig), set(&[]));
    assert_eq!(view(&rig).warnings.len(), 2);
    let hold = "health = { type = \"tcp\", on_pool_down = \"hold\" }\n";
    rig.apply(&[checked(hold)]).unwrap();
    assert!(down(&rig, &["0.1", "0.2"]));
    assert_eq!(rings(&rig), [set(&["0.1", "0.2"]), set(&["1.1"])]);
    let warnings = view(&rig).warnings;
    assert!(
        warnings[0].contains("on_pool_down = \"hold\""),
        "{warnings:?}"
    );
    let changes = rig.reconciler.plan(&[checked(TCP)]).unwrap();
    assert_eq!(changes[0].details, ["health: on_pool_down hold -> other"]);
    rig.apply(&[checked(TCP)]).unwrap();
    assert_eq!(rings(&rig), [set(&[]), set(&["1.1"])]);
}

#[test]
fn a_pool_with_too_few_healthy_backends_is_given_no_more_traffic_but_by_a_rollback() {
    let rig = rig();
    fail(&rig, "1.1");
    assert!(down(&rig, &["1.1"]));
    let right = "service \"web\": green would get 5% of new flows but has 0 of 1 backend up (10.0.1.1:8443 is down: connection refused), and health.min_healthy is 1: wait until they are up, or write a lower min_healthy";
    assert_eq!(rig.shift("5%").unwrap_err().to_string(), right);
    let plan = rig.reconciler.plan_weight(&to_green("5%"));
    assert_eq!(plan.unwrap_err().to_string(), right);
    let mut more = checked(TCP);
    more.green = "5%".parse().unwrap();
    assert_eq!(rig.apply(&[more]).unwrap_err().to_string(), right);
    let promoted = rig.reconciler.promote("web", &context()).unwrap_err();
    assert!(promoted.to_string().contains("green would get 100%"));
    assert!(down(&rig, &[]));
    rig.shift("50%").unwrap();
    assert!(down(&rig, &["0.1", "0.2"]));
    let back = rig.shift("0%").unwrap_err().to_string();
    assert!(back.contains("blue would get 100%"), "{back}");
    rig.rollback(0).unwrap();
    assert_eq!(rig.green(), "0%");
    let mut spec = checked(TCP);
    spec.health.as_mut().unwrap().min_healthy = 2;
    spec.green_pool.clear();
    assert!(down(&rig, &["0.1"]));
    rig.apply(&[spec]).unwrap();
}

#[test]
fn what_was_down_stays_so_over_a_restart() {
    for lost in [&["0.1"][..], &["0.1", "0.2"]] {
        let mut rig = rig();
        rig.shift("10%").unwrap();
        assert!(down(&rig, lost));
        rig.reconciler.maintain();
        let before = rig.datapath.with(|k| (k.publications, k.rings.clone()));
        let etag = view(&rig).etag;
        rig.restart();
        let after = rig.datapath.with(|k| (k.publications, k.rings.clone()));
        assert_eq!(after, before);
        assert_eq!(marked(&rig), set(lost));
        let view = view(&rig);
        assert_eq!(view.etag, etag);
        let checks = view.backends[0].checks.as_ref().unwrap();
        assert_eq!(checks.health, Health::Down);
        assert_eq!(checks.reason, "it was down when the agent started");
        let services = rig.reconciler.look(0).services;
        assert_eq!(services[0].down, set(lost));
        assert!(down(&rig, &[]));
        assert_eq!(rings(&rig), [set(&["0.1", "0.2"]), set(&["1.1"])]);
    }
}

#[test]
fn a_kill_before_health_is_stored_is_no_write_of_somebody_else() {
    let mut rig = rig();
    assert!(down(&rig, &["0.1"]));
    let (actions, etag) = (rig.actions(), view(&rig).etag);
    rig.restart();
    assert_eq!(rig.actions(), actions, "nothing was adopted");
    assert_eq!(view(&rig).etag, etag);
    assert_eq!(rings(&rig), [set(&["0.2"]), set(&["1.1"])]);
}

#[test]
fn an_apply_keeps_what_is_down_and_one_without_checks_forgets_it() {
    let rig = rig();
    assert!(down(&rig, &["0.1"]));
    let mut spec = checked("health = { type = \"tcp\", interval = \"5s\" }\n");
    spec.affinity = "client".parse().unwrap();
    let changes = rig.reconciler.plan(&[spec.clone()]).unwrap();
    let details = ["affinity: flow -> client", "health: interval 2s -> 5s"];
    assert_eq!(changes[0].details, details);
    rig.apply(&[spec]).unwrap();
    assert_eq!(rings(&rig)[0], set(&["0.2"]));
    rig.apply(&[checked("")]).unwrap();
    assert_eq!(rings(&rig)[0], set(&["0.1", "0.2"]));
    assert_eq!(marked(&rig), set(&[]));
    assert!(rig.reconciler.look(0).services.is_empty());
    assert_eq!(view(&rig).backends[0].checks, None);
    assert!(down(&rig, &["0.1"]), "told late");
    assert_eq!(rings(&rig)[0], set(&["0.1", "0.2"]));
}

#[test]
fn a_backend_that_another_service_still_offers_is_not_marked() {
    let rig = rig();
    let mut api = checked("");
    api.name = "api".into();
    api.vip.addr = "203.0.113.11:443".parse().unwrap();
    rig.apply(&[api]).unwrap();
    assert!(down(&rig, &["0.1"]));
    assert_eq!(rings(&rig)[0], set(&["0.2"]));
    assert_eq!(marked(&rig), set(&[]));
    rig.reconciler.delete("api", &context()).unwrap();
    assert_eq!(marked(&rig), set(&["0.1"]));
}

#[test]
fn a_publication_that_fails_leaves_all_as_it_was() {
    let rig = rig();
    rig.datapath
        .with(|k| k.fail_publication = Some(k.publications + 1));
    assert!(!down(&rig, &["0.1"]));
    assert_eq!(rings(&rig)[0], set(&["0.1", "0.2"]));
    assert_eq!(marked(&rig), set(&[]));
    assert_eq!(view(&rig).backends[0].health, "unknown");
    assert!(down(&rig, &["0.1"]));
    assert_eq!(rings(&rig)[0], set(&["0.2"]));
}

#[test]
fn backends_in_maint_are_not_checked() {
    let rig = Rig::new();
    let mut spec = checked(TCP);
    spec.blue_pool[0].state = "maint".parse().unwrap();
    rig.apply(&[spec]).unwrap();
    let checked = rig.reconciler.look(0).services.remove(0);
    assert_eq!(checked.backends, set(&["0.2", "1.1"]));
    assert_eq!(view(&rig).spec.pool(PoolName::Blue).len(), 2);
}

#[test]
fn a_look_at_what_changed_names_only_that() {
    let rig = rig();
    let mut api = checked(TCP);
    api.name = "api".into();
    api.vip.addr = "203.0.113.11:443".parse().unwrap();
    rig.apply(&[api.clone()]).unwrap();
    let all = rig.reconciler.look(0);
    assert!(all.is_whole);
    assert_eq!(all.services.len(), 2);
    let none = rig.reconciler.look(all.version);
    assert_eq!((none.services.len(), none.without.len()), (0, 0));
    assert!(!none.is_whole);
    assert!(down(&rig, &["0.1"]));
    api.health = None;
    rig.apply(&[api]).unwrap();
    let some = rig.reconciler.look(all.version);
    assert_eq!(some.services.len(), 1);
    assert_eq!(some.services[0].down, set(&["0.1"]));
    assert_eq!(some.without, ["api"]);
}

#[test]
fn cohorts_do_not_get_around_min_healthy() {
    let rig = Rig::new();
    let cohort = |prefixes: &str| {
        checked(&format!(
            "{TCP}[[service.cohort]]\nname = \"staff\"\nprefixes = [{prefixes}]\n"
        ))
    };
    let switch = |on: bool| {
        let change = WeightChange {
            cohorts: Some(on),
            ..to_green("0%")
        };
        rig.reconciler.set_weight(&change, &context()).map(drop)
    };
    let refused = |result: Result<(), ControlError>| {
        let error = result.unwrap_err().to_string();
        let part = "green would get the clients of cohort \"staff\" but has 0 of 1 backend up";
        assert!(error.contains(part), "{error}");
    };
    let two = "\"10.1.0.0/16\", \"10.2.0.0/16\"";
    rig.apply(&[cohort(two)]).unwrap();
    switch(false).unwrap();
    assert!(down(&rig, &["1.1"]));
    refused(switch(true));
    assert!(!view(&rig).spec.cohorts_on);
    assert!(down(&rig, &[]));
    switch(true).unwrap();
    // What they have already they may keep, or have less of.
    assert!(down(&rig, &["1.1"]));
    let apply = |prefixes: &str| rig.apply(&[cohort(prefixes)]).map(drop);
    apply("\"10.1.0.0/16\"").unwrap();
    refused(apply(two));
    refused(apply("\"10.3.0.0/16\""));
    assert_eq!(view(&rig).spec.cohorts[0].prefixes.len(), 1);
    assert!(down(&rig, &[]));
    apply(two).unwrap();
}

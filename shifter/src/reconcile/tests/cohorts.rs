//! Cohorts: sets that come and go whole, and when they are suspended.

use std::time::Duration;

use super::rig::{Rig, context, specs, to_green, web};
use crate::{
    datapath::{CohortSet, ServiceImage},
    model::{CohortSpec, PoolName, ServiceSpec, cohort},
    reconcile::{
        Controller as _,
        controller::WeightChange,
        entry::{base_hash, desired_hash},
        reconciler::lock,
    },
};

/// `web` with one cohort of these prefixes.
fn with_staff(prefixes: &[&str]) -> ServiceSpec {
    let mut spec = web();
    spec.cohorts = vec![CohortSpec {
        name: "staff".into(),
        pool: None,
        prefixes: prefixes.iter().map(|p| p.parse().unwrap()).collect(),
    }];
    spec
}

/// Sets in the kernel.
fn sets(rig: &Rig) -> Vec<CohortSet> {
    rig.datapath
        .with(|k| k.cohort_sets.keys().copied().collect())
}

/// What the kernel acts on: prefixes that are looked at.
fn in_force(rig: &Rig) -> usize {
    rig.datapath.with(|k| {
        let image = &k.services[&0];
        match image.cohorts_on {
            true => k.cohort_sets[&image.cohort_set].len(),
            false => 0,
        }
    })
}

fn state(rig: &Rig) -> &'static str {
    rig.reconciler.get("web").unwrap().cohorts
}

#[test]
fn a_set_is_written_when_prefixes_change_and_goes_when_it_is_replaced() {
    let rig = Rig::with_web();
    assert_eq!((sets(&rig).len(), state(&rig)), (0, ""));
    let staff = with_staff(&["10.1.0.0/16", "10.2.0.0/16", "2001:db8::/32"]);
    rig.apply(std::slice::from_ref(&staff)).unwrap();
    assert_eq!(
        (sets(&rig).len(), in_force(&rig), state(&rig)),
        (1, 2, "on")
    );
    let first = sets(&rig);
    rig.shift("10%").unwrap();
    let mut green = staff.clone();
    green.green = "20%".parse().unwrap();
    rig.apply(std::slice::from_ref(&green)).unwrap();
    assert_eq!(sets(&rig), first, "the weight is no matter of theirs");
    assert_eq!(rig.datapath.with(|k| k.cohort_writes), 1);
    let (_, changes) = rig
        .reconciler
        .apply(&[with_staff(&["10.1.0.0/16"])], &context())
        .unwrap();
    let line = "cohort staff: 3 prefixes -> 1 (0 new, 2 gone)".to_owned();
    assert!(changes[0].details.contains(&line), "{changes:?}");
    assert_ne!(sets(&rig), first);
    assert_eq!((sets(&rig).len(), in_force(&rig)), (1, 1));
    rig.apply(&[web()]).unwrap();
    assert_eq!((sets(&rig).len(), state(&rig)), (0, ""));
    rig.apply(&[staff]).unwrap();
    rig.reconciler.delete("web", &context()).unwrap();
    assert_eq!(sets(&rig).len(), 0);
}

#[test]
fn an_apply_that_fails_leaves_the_sets_as_they_were() {
    let rig = Rig::new();
    let staff = with_staff(&["10.1.0.0/16"]);
    let more = with_staff(&["10.1.0.0/16", "10.2.0.0/16"]);
    // The trie is full.
    rig.datapath.with(|k| k.fail_cohorts = Some(1));
    let error = rig.apply(std::slice::from_ref(&staff)).unwrap_err();
    assert!(error.to_string().contains("prefixes of cohorts"), "{error}");
    assert!(rig.reconciler.list().unwrap().is_empty());
    rig.apply(std::slice::from_ref(&staff)).unwrap();
    let before = sets(&rig);
    // The publication fails.
    rig.datapath
        .with(|k| k.fail_publication = Some(k.publications + 1));
    rig.apply(std::slice::from_ref(&more)).unwrap_err();
    assert_eq!((sets(&rig), in_force(&rig)), (before.clone(), 1));
    // The store fails.
    rig.disk_full(true);
    rig.apply(std::slice::from_ref(&more)).unwrap_err();
    rig.disk_full(false);
    assert_eq!((sets(&rig), in_force(&rig)), (before.clone(), 1));
    // A dry run.
    let mut dry = context();
    dry.validate_only = true;
    rig.reconciler
        .apply(std::slice::from_ref(&more), &dry)
        .unwrap();
    assert_eq!(sets(&rig), before);
    rig.apply(&[more]).unwrap();
    assert_eq!((sets(&rig).len(), in_force(&rig)), (1, 2));
}

#[test]
fn whatever_gives_the_live_pool_everything_suspends_cohorts() {
    let mut rig = Rig::new();
    let staff = with_staff(&["10.1.0.0/16"]);
    let apply = |rig: &Rig| rig.apply(std::slice::from_ref(&staff)).unwrap();
    let switch = |rig: &Rig, on| {
        let change = WeightChange {
            cohorts: Some(on),
            ..to_green("0%")
        };
        rig.reconciler.set_weight(&change, &context())
    };
    apply(&rig);
    let receipt = rig.reconciler.rollback("web", 0, None, &context()).unwrap();
    assert!(!receipt.unchanged, "cohorts gave green flows");
    assert!(receipt.warnings[0].contains("suspended"), "{receipt:?}");
    assert_eq!((in_force(&rig), state(&rig)), (0, "suspended"));
    rig.restart();
    assert_eq!((in_force(&rig), state(&rig)), (0, "suspended"));
    assert!(
        rig.reconciler
            .rollback("web", 0, None, &context())
            .unwrap()
            .unchanged
    );

    let receipts = apply(&rig);
    assert!(!receipts[0].unchanged);
    assert_eq!((in_force(&rig), state(&rig)), (1, "on"));
    assert!(apply(&rig)[0].unchanged);

    // A dead-man guards cohorts, even at weight 0.
    rig.shift_for("0%", Duration::from_secs(60));
    rig.clock.pass(Duration::from_secs(61));
    assert_eq!(state(&rig), "suspended", "as the kernel acts");
    rig.reconciler.maintain();
    assert_eq!((in_force(&rig), state(&rig)), (0, "suspended"));

    switch(&rig, true).unwrap();
    assert_eq!(in_force(&rig), 1);
    switch(&rig, false).unwrap();
    assert_eq!(in_force(&rig), 0);
    switch(&rig, true).unwrap();
    rig.reconciler.promote("web", &context()).unwrap();
    assert_eq!((in_force(&rig), state(&rig)), (0, "suspended"));

    rig.apply(&[web()]).unwrap();
    let error = switch(&rig, true).unwrap_err().to_string();
    assert!(error.contains("has no cohorts"), "{error}");
}

#[test]
fn a_suspension_that_a_crash_kept_from_the_store_stays() {
    let mut rig = Rig::new();
    rig.apply(&[with_staff(&["10.1.0.0/16"])]).unwrap();
    rig.disk_full(true);
    let receipt = rig.reconciler.rollback("web", 0, None, &context()).unwrap();
    assert!(receipt.warnings.iter().any(|w| w.contains("not durable")));
    rig.disk_full(false);
    rig.restart();
    assert_eq!((in_force(&rig), state(&rig)), (0, "suspended"));
    assert_eq!(sets(&rig).len(), 1);
}

#[test]
fn a_start_writes_the_set_where_the_kernel_has_another() {
    let mut rig = Rig::new();
    rig.apply(&[with_staff(&["10.1.0.0/16", "10.2.0.0/16"])])
        .unwrap();
    rig.datapath.with(|k| {
        let set = k.services[&0].cohort_set;
        let rules = k.cohort_sets[&set][..1].into();
        k.cohort_sets.insert(set, rules);
    });
    rig.restart();
    assert_eq!((sets(&rig).len(), in_force(&rig)), (1, 2));
    rig.reboot(Duration::from_secs(9));
    assert_eq!((sets(&rig).len(), in_force(&rig)), (1, 2));
}

#[test]
fn without_a_store_cohorts_are_as_the_kernel_tells() {
    let mut rig = Rig::new();
    rig.apply(&[with_staff(&["10.1.0.0/16"])]).unwrap();
    rig.damage_store();
    rig.restart();
    let view = rig.reconciler.list().unwrap().remove(0);
    assert_eq!(view.spec.cohorts[0].name, "cohort-1");
    assert_eq!(view.cohorts, "on");
    let name = &view.spec.name;
    rig.reconciler.rollback(name, 0, None, &context()).unwrap();
    assert_eq!(in_force(&rig), 0);
}

#[test]
fn explain_names_the_cohort_and_its_prefix() {
    let rig = Rig::new();
    rig.apply(&[with_staff(&["10.1.0.0/16"])]).unwrap();
    let explain = |client: &str| {
        let client = client.parse().unwrap();
        rig.reconciler.explain("web", client, Some(4_000)).unwrap()
    };
    let staff = explain("10.1.2.3");
    assert_eq!(staff.cohort.as_deref(), Some("staff"));
    assert_eq!(staff.pool, PoolName::Green);
    let line = "cohort \"staff\" holds 10.1.2.3 by its longest prefix 10.1.0.0/16: green, the candidate, whatever the weight";
    assert!(staff.why.iter().any(|why| why == line), "{staff:?}");
    let other = explain("10.2.2.3");
    assert_eq!((other.cohort, other.pool), (None, PoolName::Blue));
    assert!(other.why.iter().any(|why| why == "no cohort rule"));
    rig.reconciler.rollback("web", 0, None, &context()).unwrap();
    let suspended = explain("10.1.2.3");
    assert_eq!((&suspended.cohort, suspended.pool), (&None, PoolName::Blue));
    let told = |why: &String| why.contains("but cohorts are suspended");
    assert!(suspended.why.iter().any(told), "{suspended:?}");
}

#[test]
fn all_services_together_have_a_limit_of_prefixes() {
    let rig = Rig::new();
    let many = |name: &str, last: u8, first: u32| {
        let mut spec = super::rig::other(name, last);
        spec.cohorts = with_staff(&["10.1.0.0/16"]).cohorts;
        let addr = |bits: u32| std::net::Ipv4Addr::from_bits(first + bits).to_string();
        spec.cohorts[0].prefixes = (0..40_000)
            .map(|bits| addr(bits).parse().unwrap())
            .collect();
        spec
    };
    rig.apply(&[many("one", 11, 0x0b00_0000)]).unwrap();
    let error = rig.apply(&[many("two", 12, 0x0c00_0000)]).unwrap_err();
    let part = "the limit of 65536 cohort prefixes (of all services together) is reached";
    assert!(error.to_string().contains(part), "{error}");
    assert_eq!(sets(&rig).len(), 1);
    // One for another of the same service is no more than before.
    rig.apply(&[many("one", 11, 0x0d00_0000)]).unwrap();
    assert_eq!(cohort::rules(&many("one", 11, 0)).len(), 40_000);
}

#[test]
fn the_agents_file_does_not_undo_a_suspension() {
    let mut rig = Rig::new();
    let text = "[[service]]\nname = \"web\"\nvip = \"203.0.113.10:443/tcp\"\n\
         seed = \"000102030405060708090a0b0c0d0e0f\"\n\
         pools = { blue = [\"10.0.0.1:8443\"], green = [\"10.0.1.1:8443\"] }\n\
         [[service.cohort]]\nname = \"staff\"\nprefixes = [\"10.1.0.0/16\"]\n";
    rig.reconciler.load_file_services(&specs(text)).unwrap();
    assert_eq!(state(&rig), "on");
    rig.reconciler.rollback("web", 0, None, &context()).unwrap();
    rig.restart();
    rig.reconciler.load_file_services(&specs(text)).unwrap();
    assert_eq!(state(&rig), "suspended");
    let more = text.replace("10.1.0.0/16", "10.3.0.0/16");
    rig.reconciler.load_file_services(&specs(&more)).unwrap();
    assert_eq!(state(&rig), "suspended", "the file changed nothing of that");
    assert_eq!(sets(&rig).len(), 1);
}

#[test]
fn a_vip_that_is_freed_at_a_start_takes_its_set_along() {
    let mut rig = Rig::new();
    let staff = with_staff(&["10.1.0.0/16"]);
    rig.apply(std::slice::from_ref(&staff)).unwrap();
    let first = sets(&rig);
    // The agent dies between the publication at another VIP and the end of the one before.
    let mut moved = staff;
    moved.vip.addr = "203.0.113.12:443".parse().unwrap();
    lock(&rig.reconciler.core)
        .store
        .note_pending(&[("web", Some(&moved))])
        .unwrap();
    rig.datapath.with(|k| {
        let before = k.services[&0].clone();
        let rules = k.cohort_sets[&before.cohort_set].clone();
        k.cohort_sets.insert(before.cohort_set + 1, rules);
        let wanted = (moved.live, moved.green.threshold(), moved.cohorts_on);
        let image = ServiceImage {
            id: 1,
            vip: moved.vip,
            generation: before.generation + 1,
            desired_hash: desired_hash(base_hash(&moved), wanted.0, wanted.1, wanted.2),
            cohort_set: before.cohort_set + 1,
            ..before
        };
        k.services.insert(1, image);
        let rings = k.rings[&0].clone();
        k.rings.insert(1, rings);
    });
    rig.restart();
    let view = rig.reconciler.get("web").unwrap();
    assert_eq!(view.spec.vip, moved.vip);
    assert_eq!(rig.datapath.with(|k| k.services.len()), 1);
    assert_eq!(sets(&rig).len(), 1);
    assert_ne!(sets(&rig), first);
}

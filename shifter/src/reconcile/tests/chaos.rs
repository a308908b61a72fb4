//! Random writes under random failures: kernel, store and views stay in step.

use std::time::Duration;

use super::rig::{Rig, context, other};
use crate::{
    model::{BackendState, CohortSpec, PoolName, ServiceSpec, cohort},
    reconcile::{
        Controller as _,
        controller::{ServiceView, ShareOf, WeightChange},
        reconciler::lock,
    },
};

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn spec(random: &mut Random, number: u64) -> ServiceSpec {
    let mut spec = other(&format!("s{number}"), 20 + number as u8);
    for (pool, net) in [(PoolName::Blue, 0), (PoolName::Green, 1)] {
        let template = spec.pool(pool)[0];
        let backends = (1..=1 + random.below(3))
            .map(|_| {
                let mut backend = template;
                let host = 1 + random.below(6) as u8;
                backend.addr = std::net::SocketAddr::from(([10, 0, net, host], 80));
                backend.weight = 1 + random.below(3) as u32;
                backend.state = match random.below(6) {
                    0 => BackendState::Drain,
                    1 => BackendState::Maint,
                    _ => BackendState::Ready,
                };
                backend
            })
            .collect();
        match pool {
            PoolName::Blue => spec.blue_pool = backends,
            PoolName::Green => spec.green_pool = backends,
        }
    }
    let prefixes = 1 + random.below(3) as u8;
    if random.below(2) == 0 {
        let prefix = |net| format!("10.{net}.0.0/16").parse().unwrap();
        spec.cohorts = vec![CohortSpec {
            name: "staff".into(),
            pool: None,
            prefixes: (0..prefixes).map(prefix).collect(),
        }];
    }
    spec.green = format!("{}%", random.below(101)).parse().unwrap();
    if random.below(3) == 0 {
        spec.live = PoolName::Green;
    }
    spec
}

/// One random step; refusals are part of it.
fn step(rig: &mut Rig, random: &mut Random) {
    let name = format!("s{}", random.below(4));
    let context = context();
    match random.below(14) {
        0..4 => {
            let specs: Vec<ServiceSpec> = (0..4)
                .filter(|_| random.below(2) == 0)
                .collect::<Vec<u64>>()
                .into_iter()
                .map(|number| spec(random, number))
                .collect();
            rig.reconciler.apply(&specs, &context).ok();
        }
        4..7 => {
            let change = WeightChange {
                service: name,
                share: ShareOf::Candidate(format!("{}%", random.below(101)).parse().unwrap()),
                revert_after: (random.below(2) == 0).then_some(Duration::from_secs(60)),
                cohorts: None,
            };
            rig.reconciler.set_weight(&change, &context).ok();
        }
        7 => drop(rig.reconciler.promote(&name, &context)),
        8 => drop(rig.reconciler.rollback(&name, 0, None, &context)),
        9 => drop(rig.reconciler.delete(&name, &context)),
        10 => rig.disk_full(random.below(2) == 0),
        11 => {
            let next = random.below(4);
            rig.datapath
                .with(|k| k.fail_publication = Some(k.publications + 1 + next));
        }
        12 => {
            rig.clock.pass(Duration::from_secs(random.below(90)));
            rig.reconciler.maintain();
        }
        _ => {
            rig.datapath.with(|k| k.fail_publication = None);
            rig.restart();
        }
    }
}

fn views(rig: &Rig) -> Vec<ServiceView> {
    rig.reconciler.list().unwrap()
}

/// What the agent says is what the kernel does.
fn check(rig: &Rig) {
    let views = views(rig);
    let core = lock(&rig.reconciler.core);
    rig.datapath.with(|kernel| {
        assert_eq!(kernel.services.len(), views.len());
        let mut slots = 0;
        for view in &views {
            let entry = &core.services[&view.spec.name];
            let image = &kernel.services[&entry.id];
            assert_eq!(*image, entry.image());
            assert_eq!(kernel.rings[&entry.id], *entry.rings);
            assert!(image.generation <= core.generation);
            for pool in [PoolName::Blue, PoolName::Green] {
                let ready = crate::model::validate::has_ready(&view.spec, pool);
                assert_eq!(!entry.rings[pool.index()].is_empty(), ready);
            }
            for id in entry.named() {
                let slot = core.backends.get(id).expect("a named backend has a slot");
                assert_eq!(kernel.backends[&id].addr, slot.addr);
            }
            let rules = cohort::rules(&view.spec);
            let held = kernel.cohort_sets.get(&entry.cohort_set);
            assert_eq!(held.map_or(&[][..], |set| &set[..]), &rules[..]);
            slots += entry.rings.iter().map(|r| r.len() as u64).sum::<u64>();
        }
        assert_eq!(core.ring_slots, slots);
        let named = views.iter().filter(|v| !v.spec.cohorts.is_empty());
        assert_eq!(kernel.cohort_sets.len(), named.count(), "no set is left");
    });
}

#[test]
fn kernel_store_and_views_stay_in_step_under_random_failures() {
    let mut left_over = 0;
    for seed in 1..=40u64 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed));
        let mut rig = Rig::new();
        for _ in 0..120 {
            step(&mut rig, &mut random);
            check(&rig);
        }
        rig.datapath.with(|k| k.fail_publication = None);
        rig.disk_full(false);
        rig.reconciler.maintain();
        let before = views(&rig);
        let publications = rig.datapath.with(|k| k.publications);
        rig.restart();
        assert_eq!(
            rig.datapath.with(|k| k.publications),
            publications,
            "seed {seed}"
        );
        for (before, after) in before.iter().zip(views(&rig)) {
            assert_eq!(before.spec, after.spec, "seed {seed}");
            assert_eq!(before.etag, after.etag);
            assert_eq!(before.dead_man.is_some(), after.dead_man.is_some());
        }
        left_over += before.len();
        for view in before {
            let mut force = context();
            force.force = true;
            rig.reconciler.delete(&view.spec.name, &force).unwrap();
        }
        rig.reconciler.maintain();
        let left = rig.datapath.with(|k| (k.services.len(), k.backends.len()));
        assert_eq!(left, (0, 0), "seed {seed}: something was not freed");
    }
    assert!(
        left_over > 40,
        "only {left_over} services were left to compare"
    );
}

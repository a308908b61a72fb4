//! Services as the kernel's records tell them, for a start without a store.
//!
//! The kernel knows no names, and of the backends only those that rings name or
//! that hold the VIP. What is made of that serves reads and rollbacks; other
//! writes the store refuses. Nothing of it is published here.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use super::{
    entry::{DeadMan, Entry, base_hash},
    reconciler::Core,
    start::Start,
};
use crate::{
    datapath::{BackendId, DeadManImage, ServiceImage, plural},
    model::{
        BackendSpec, BackendState, CohortSpec, Mode, PoolName, Prefix, ServiceSpec, Vip, Weight,
        breaker::Breaker, cohort::Rule,
    },
    store::StoredDeadMan,
};

impl Start<'_> {
    /// Makes services of the records that no stored service stands for.
    pub(super) fn recover_the_rest(&mut self, core: &mut Core) {
        let kernel = std::mem::take(&mut self.kernel);
        let recovered = kernel.len() as u64;
        for (key, image) in kernel {
            let entry = self.recovered(core, &image);
            self.reconciler.name_backends(core, &entry);
            core.ring_slots += super::apply::slots(&entry);
            core.vips.insert(key, entry.spec.name.clone());
            core.services.insert(entry.spec.name.clone(), entry);
        }
        if recovered > 0 {
            core.warnings.push(format!(
                "{} shown as the kernel's records tell: names that only the store knew are made from the VIP, and backends that get no new flows are missing",
                plural(recovered, "service")
            ));
        }
    }

    fn recovered(&self, core: &Core, image: &ServiceImage) -> Entry {
        let facts = &*self.reconciler.facts;
        let rings = self.reconciler.datapath.rings(image.id);
        let rings = rings.unwrap_or_default();
        let mut spec = ServiceSpec {
            name: self.name_of(core, &image.vip),
            vip: image.vip,
            mode: Mode::Nat,
            live: image.live,
            green: Weight::from_threshold(image.threshold),
            split: image.split,
            affinity: image.affinity,
            seed: Some(image.seed),
            vip_routed: !facts.is_local(image.vip.ip()),
            blue_pool: Vec::new(),
            green_pool: Vec::new(),
            breaker: image.breaker.map(|breaker| Breaker {
                window: Duration::from_nanos(breaker.window_ns),
                max_failures: breaker.max_failures,
                min_attempts: breaker.min_attempts,
                max_ratio: Weight::from_threshold(u64::from(breaker.max_ratio)),
            }),
            cohorts: cohorts(&self.reconciler.datapath.cohort_rules(image.cohort_set)),
            cohorts_on: image.cohorts_on || image.cohort_set == 0,
            health: None,
            rollout: None,
        };
        let mut pools = [Vec::new(), Vec::new()];
        for name in [PoolName::Blue, PoolName::Green] {
            let mut members = members(core, &rings[name.index()]);
            let has_vip = members.iter().any(|(id, _)| *id == image.vip_backend);
            if image.live_has_vip && name == image.live && !has_vip {
                members.push((image.vip_backend, drained(&image.vip)));
            }
            let (ids, specs): (Vec<_>, Vec<_>) = members.into_iter().unzip();
            pools[name.index()] = ids;
            match name {
                PoolName::Blue => spec.blue_pool = specs,
                PoolName::Green => spec.green_pool = specs,
            }
        }
        Entry {
            id: image.id,
            vip_backend: image.vip_backend,
            pools,
            rings: Arc::new(rings),
            base_hash: base_hash(&spec),
            generation: image.generation,
            written: image.generation,
            down: Default::default(),
            out: Default::default(),
            dead_man: image
                .dead_man
                .map(|dead_man| self.recovered_dead_man(dead_man)),
            promoted: None,
            settle_until_ns: image.settle_until_ns,
            cohort_set: image.cohort_set,
            local_backends: image.local_backends.clone(),
            translated: facts.vip_is_translated(&image.vip),
            published: Default::default(),
            observed: None,
            dirty: false,
            republished: false,
            spec,
        }
    }

    fn recovered_dead_man(&self, image: DeadManImage) -> DeadMan {
        let now_ns = self.reconciler.clock.boot_ns();
        let left_ms = (image.deadline_ns.saturating_sub(now_ns) / 1_000_000) as i64;
        let stored = StoredDeadMan {
            safe_threshold: image.safe_threshold,
            deadline_unix_ms: self.at_unix_ms + left_ms,
            after_ms: left_ms,
        };
        DeadMan { image, stored }
    }

    /// The name in the agent's own file, or one that the VIP gives.
    fn name_of(&self, core: &Core, vip: &Vip) -> String {
        let named = self.reconciler.settings.named.iter();
        let mut named = named.filter(|spec| spec.vip == *vip).map(|spec| &spec.name);
        let name = named.find(|name| !core.services.contains_key(*name));
        name.cloned().unwrap_or_else(|| name_by_vip(vip))
    }
}

/// `vip-203.0.113.10-443-tcp`.
fn name_by_vip(vip: &Vip) -> String {
    let address = match vip.addr.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => ip.segments().map(|part| format!("{part:x}")).join("."),
    };
    format!("vip-{address}-{}-{}", vip.addr.port(), vip.protocol)
}

/// Whom a ring names, each with the weight that its slots come from.
fn members(core: &Core, ring: &[BackendId]) -> Vec<(BackendId, BackendSpec)> {
    let mut slots: BTreeMap<BackendId, u32> = BTreeMap::new();
    for id in ring {
        *slots.entry(*id).or_default() += 1;
    }
    let least = slots.values().copied().min().unwrap_or(1).max(1);
    slots
        .into_iter()
        .filter_map(|(id, count)| {
            let backend = BackendSpec {
                addr: core.backends.get(id)?.addr,
                weight: ((count + least / 2) / least).max(1),
                state: BackendState::Ready,
            };
            Some((id, backend))
        })
        .collect()
}

/// Cohorts by the numbers that they had; the kernel knows no names.
fn cohorts(rules: &[Rule]) -> Vec<CohortSpec> {
    let mut cohorts: BTreeMap<u16, (Option<PoolName>, Vec<Prefix>)> = BTreeMap::new();
    for rule in rules {
        let (pool, prefixes) = cohorts.entry(rule.cohort).or_default();
        *pool = rule.pool;
        prefixes.push(rule.prefix);
    }
    cohorts
        .into_iter()
        .map(|(number, (pool, prefixes))| CohortSpec {
            name: format!("cohort-{}", number + 1),
            pool,
            prefixes: prefixes.into(),
        })
        .collect()
}

/// The VIP itself, which the live pool holds without giving it new flows.
fn drained(vip: &Vip) -> BackendSpec {
    BackendSpec {
        addr: vip.addr,
        weight: 1,
        state: BackendState::Drain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;

    #[test]
    fn a_name_is_made_from_the_vip_and_is_a_name() {
        for (addr, expected) in [
            ("203.0.113.10:443", "vip-203.0.113.10-443-tcp"),
            ("[2001:db8::1]:53", "vip-2001.db8.0.0.0.0.0.1-53-tcp"),
        ] {
            let vip = Vip {
                addr: addr.parse().unwrap(),
                protocol: Protocol::Tcp,
            };
            assert_eq!(name_by_vip(&vip), expected);
            assert!(expected.len() <= 63);
        }
    }
}

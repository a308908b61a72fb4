//! Sets of cohort prefixes: written before the core is locked, so that a
//! rollback never waits for ten thousand prefixes.

use std::collections::BTreeMap;

use shifter_common::abi::cohort::MAX_COHORT_PREFIXES;

use super::{
    apply::Undo,
    controller::{ControlError, WriteContext},
    entry::Entry,
    reconciler::{Core, Reconciler, lock},
};
use crate::{
    datapath::{CohortSet, Datapath, DatapathError},
    model::{ServiceSpec, cohort},
};

/// Sets that an apply has written, by service; given up again unless kept.
pub(super) struct NewSets<'a> {
    datapath: &'a dyn Datapath,
    sets: BTreeMap<String, CohortSet>,
}

impl NewSets<'_> {
    /// They are in force.
    pub fn keep(mut self) {
        self.sets.clear();
    }
}

impl Drop for NewSets<'_> {
    fn drop(&mut self) {
        for set in self.sets.values() {
            self.datapath.drop_cohorts(*set);
        }
    }
}

impl Reconciler {
    /// Writes the sets of those services whose prefixes change.
    pub(super) fn write_sets(
        &self,
        specs: &[ServiceSpec],
        context: &WriteContext,
    ) -> Result<NewSets<'_>, ControlError> {
        let mut new = NewSets {
            datapath: &*self.datapath,
            sets: BTreeMap::new(),
        };
        if specs.iter().all(|spec| spec.cohorts.is_empty()) {
            return Ok(new);
        }
        let wanted: Vec<_> = {
            let core = lock(&self.core);
            check_prefixes(&core, specs)?;
            specs
                .iter()
                .map(|spec| (spec, cohort::rules(spec), before(&core, spec)))
                .collect()
        };
        if context.validate_only {
            return Ok(new);
        }
        for (spec, rules, set) in wanted {
            if *self.datapath.cohort_rules(set) != *rules {
                let set = self.datapath.write_cohorts(&rules)?;
                new.sets.insert(spec.name.clone(), set);
            }
        }
        Ok(new)
    }

    /// The set that a service shall name.
    pub(super) fn cohort_set_of(
        &self,
        core: &Core,
        spec: &ServiceSpec,
        entry: Option<&Entry>,
        new: &NewSets<'_>,
    ) -> Result<CohortSet, DatapathError> {
        if let Some(set) = new.sets.get(&spec.name) {
            return Ok(*set);
        }
        let rules = cohort::rules(spec);
        let set = entry.map_or_else(|| before(core, spec), |entry| entry.cohort_set);
        if *self.datapath.cohort_rules(set) == *rules {
            return Ok(set);
        }
        // A delete came in between: rare enough to be written here.
        self.datapath.write_cohorts(&rules)
    }

    /// Gives up the sets that an apply has replaced.
    pub(super) fn drop_replaced(&self, core: &Core, undo: &[Undo]) {
        for Undo {
            name,
            before,
            orphan,
        } in undo
        {
            let was = match (before, orphan) {
                (Some(entry), _) => entry.cohort_set,
                (None, Some((image, _))) => image.cohort_set,
                (None, None) => 0,
            };
            if core.services.get(name).is_some_and(|e| e.cohort_set != was) {
                self.datapath.drop_cohorts(was);
            }
        }
    }
}

/// The set in force for a service's VIP.
fn before(core: &Core, spec: &ServiceSpec) -> CohortSet {
    let orphan = || core.orphans.get(&(spec.vip.addr, spec.vip.protocol));
    match core.services.get(&spec.name) {
        Some(entry) => entry.cohort_set,
        None => orphan().map_or(0, |image| image.cohort_set),
    }
}

/// The limit of all services together.
fn check_prefixes(core: &Core, specs: &[ServiceSpec]) -> Result<(), DatapathError> {
    let count = |spec: &ServiceSpec| -> u64 {
        let is_ipv4 = spec.vip.addr.is_ipv4();
        let own = spec
            .cohorts
            .iter()
            .map(|cohort| cohort.counts(is_ipv4).0 as u64);
        own.sum()
    };
    let stay = core.services.values().map(|entry| &entry.spec);
    let stay = stay.filter(|spec| specs.iter().all(|other| other.name != spec.name));
    let all: u64 = stay.chain(specs).map(count).sum();
    if all > u64::from(MAX_COHORT_PREFIXES) {
        return Err(DatapathError::Full {
            what: "cohort prefixes (of all services together)",
            limit: u64::from(MAX_COHORT_PREFIXES),
            remedy: "write fewer, or shorter ones that hold several",
        });
    }
    Ok(())
}

//! What is done off the request's path: passed dead-men, second tries, freeing.

use super::{
    entry::local_backends,
    reconciler::{Core, Reconciler, lock},
};
use crate::{
    datapath::{Census, FlowFilter},
    store::Commit,
};

/// Passes over the whole flow table in one call, at most.
const PASSES: usize = 8;

impl Reconciler {
    /// The agent calls it once a second.
    pub fn maintain(&self) {
        {
            let mut core = lock(&self.core);
            let passed: Vec<String> = core
                .services
                .iter()
                .filter(|(_, entry)| entry.dead_man_passed(&*self.clock))
                .map(|(name, _)| name.clone())
                .collect();
            for name in passed {
                self.record_passed_dead_man(&mut core, &name);
            }
            self.save_dirty(&mut core);
        }
        self.free_unused();
    }

    /// Drops old history and audit records; once an hour is enough.
    pub fn prune(&self) {
        if let Err(error) = lock(&self.core).store.prune() {
            tracing::warn!(%error, "pruning the store failed");
        }
    }

    fn save_dirty(&self, core: &mut Core) {
        let rows: Vec<_> = core
            .services
            .values()
            .filter(|entry| entry.dirty)
            .map(|entry| entry.row(true))
            .collect();
        if rows.is_empty() {
            return;
        }
        let commit = Commit {
            generation: core.generation,
            at_unix_ms: self.clock.unix_ms(),
            rows,
            ..Commit::default()
        };
        match core.store.commit(&commit) {
            Ok(()) => {
                tracing::debug!("records that were published without a request are stored now");
                core.services.values_mut().for_each(|e| e.dirty = false);
            }
            Err(error) => tracing::debug!(%error, "still not durable"),
        }
    }

    /// Frees service and backend ids that neither a service nor a flow names.
    fn free_unused(&self) {
        let (services, backends) = {
            let core = lock(&self.core);
            // Which backends the rings of an orphan name is not known.
            if !core.orphans.is_empty() {
                return;
            }
            let retired: Vec<u16> = core.ids.retired.iter().copied().collect();
            (retired, core.backends.idle())
        };
        if services.is_empty() && backends.is_empty() {
            return;
        }
        let census = self.fresh_census();
        let mut passes = PASSES;
        for id in services {
            let filter = FlowFilter {
                service: Some(id),
                ..FlowFilter::default()
            };
            let counted = census.services.contains_key(&id);
            match self.is_free(counted, &census, filter, &mut passes) {
                Some(true) => lock(&self.core).ids.release(id),
                Some(false) => {}
                None => return,
            }
        }
        for id in backends {
            let filter = FlowFilter {
                backend: Some(id),
                ..FlowFilter::default()
            };
            let counted = census.backends.contains_key(&id);
            match self.is_free(counted, &census, filter, &mut passes) {
                Some(true) => self.free_backend(id),
                Some(false) => {}
                None => return,
            }
        }
    }

    /// The census leaves closing flows out, so what it does not name is looked
    /// for once more; `None` when this call has made passes enough.
    fn is_free(
        &self,
        counted: bool,
        census: &Census,
        filter: FlowFilter,
        passes: &mut usize,
    ) -> Option<bool> {
        if counted {
            return Some(false);
        }
        if census.live == 0 && census.closing == 0 {
            return Some(true);
        }
        *passes = passes.checked_sub(1)?;
        Some(self.datapath.flows(&filter).1 == 0)
    }

    fn free_backend(&self, id: u16) {
        let mut core = lock(&self.core);
        // A write may have named it since.
        if core.backends.get(id).is_none_or(|slot| slot.in_use()) {
            return;
        }
        match self.datapath.delete_backend(id) {
            Ok(()) => core.backends.release(id),
            Err(error) => tracing::debug!(backend = id, %error, "not freed yet"),
        }
    }

    /// Asks the host anew where each backend is and what stands in the way;
    /// the agent calls it when the network has changed.
    pub fn refresh_placements(&self) {
        let mut core = lock(&self.core);
        let Core {
            services,
            backends,
            generation,
            orphans,
            ..
        } = &mut *core;
        let mut moved = false;
        for id in backends.ids() {
            moved |= backends.refresh(id, &*self.facts);
            // One that no service names may still carry flows, or be an orphan's.
            if !orphans.is_empty() && !backends.get(id).is_some_and(|slot| slot.in_use()) {
                continue;
            }
            if let Err(error) = backends.sync(id, &*self.datapath) {
                tracing::warn!(backend = id, %error, "writing a backend's placement failed");
            }
        }
        for (name, entry) in services.iter_mut() {
            entry.translated = self.facts.vip_is_translated(&entry.spec.vip);
            if !moved {
                continue;
            }
            let local = local_backends(&entry.pools, entry.vip_backend, backends);
            if local == entry.local_backends {
                continue;
            }
            let before = std::mem::replace(&mut entry.local_backends, local);
            match self.publish(generation, entry, false) {
                Ok(()) => {
                    entry.dirty = true;
                    self.events.push(name, false);
                }
                Err(error) => {
                    entry.local_backends = before;
                    tracing::warn!(service = name, %error, "publishing new placements failed");
                }
            }
        }
    }

    /// All services settle anew; the agent calls it when a hook was attached
    /// after a gap, in which flows began that the table does not know.
    pub fn settle_again(&self) {
        let mut core = lock(&self.core);
        let Core {
            services,
            generation,
            ..
        } = &mut *core;
        for (name, entry) in services.iter_mut() {
            let before = std::mem::replace(&mut entry.settle_until_ns, self.settle_until_ns());
            match self.publish(generation, entry, false) {
                Ok(()) => entry.dirty = true,
                Err(error) => {
                    entry.settle_until_ns = before;
                    tracing::warn!(service = name, %error, "publishing a settling time failed");
                }
            }
        }
    }
}

//! What is done off the request's path: passed dead-men, second tries, placements.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    backends::Answer,
    entry::local_backends,
    reconciler::{Core, Reconciler, lock},
};
use crate::{datapath::BackendId, model::Vip, store::Commit};

/// A packet filter that could not be read is read again this often, in ns.
const FILTER_RETRY_NS: u64 = 30_000_000_000;

/// What is known of reading the packet filter.
#[derive(Default)]
pub struct FilterReading {
    /// Why it could not be read whole.
    pub problem: Option<String>,
    retry_ns: u64,
}

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
        self.release_gone();
        self.follow_filter_problem();
    }

    /// Keeps what cannot be read of the packet filter loud, and asks again
    /// until it can. When it begins or ends the host has other answers.
    fn follow_filter_problem(&self) {
        let now_ns = self.clock.monotonic_ns();
        let due = lock(&self.filter).retry_ns <= now_ns;
        let standing = self.facts.filter_problem(false);
        let problem = match standing {
            Some(_) if due => self.facts.filter_problem(true),
            standing => standing,
        };
        let changed = {
            let mut filter = lock(&self.filter);
            if due {
                filter.retry_ns = now_ns + FILTER_RETRY_NS;
            }
            let changed = filter.problem.is_some() != problem.is_some();
            filter.problem = problem;
            changed
        };
        if changed {
            self.refresh_placements();
        }
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

    /// Asks the host anew where each backend is and what stands in the way;
    /// the agent calls it when the network has changed. The host is asked
    /// without the lock: a rollback does not wait for netlink or nft.
    pub fn refresh_placements(&self) {
        // One at a time: no older answer replaces a newer one.
        let _turn = lock(&self.refreshing);
        let (backends, vips) = {
            let core = lock(&self.core);
            let slot = |id| core.backends.get(id).map(|s| (id, s.addr, s.protocol));
            let backends: Vec<_> = core.backends.ids().into_iter().filter_map(slot).collect();
            let vips: BTreeSet<Vip> = core.services.values().map(|e| e.spec.vip).collect();
            (backends, vips)
        };
        let facts = &*self.facts;
        let answers: Vec<(BackendId, Answer)> = backends
            .into_iter()
            .map(|(id, addr, protocol)| (id, Answer::ask(addr, protocol, facts)))
            .collect();
        let translated: BTreeMap<Vip, bool> = vips
            .into_iter()
            .map(|vip| (vip, facts.vip_is_translated(&vip)))
            .collect();
        self.place(answers, &translated);
    }

    /// What the host answered comes into force, as far as it is still asked for.
    fn place(&self, answers: Vec<(BackendId, Answer)>, translated: &BTreeMap<Vip, bool>) {
        let mut core = lock(&self.core);
        let Core {
            services,
            backends,
            generation,
            orphans,
            ..
        } = &mut *core;
        let mut moved = false;
        for (id, answer) in answers {
            moved |= backends.note(id, answer);
            // One that no service names may still carry flows, or be an orphan's.
            if !orphans.is_empty() && !backends.get(id).is_some_and(|slot| slot.in_use()) {
                continue;
            }
            if let Err(error) = backends.sync(id, &*self.datapath) {
                tracing::warn!(backend = id, %error, "writing a backend's placement failed");
            }
        }
        for (name, entry) in services.iter_mut() {
            if let Some(translated) = translated.get(&entry.spec.vip) {
                entry.translated = *translated;
            }
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

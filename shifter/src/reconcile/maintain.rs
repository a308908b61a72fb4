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

/// A store that fails is tried again this often, in ns.
const PROBE_NS: u64 = 10_000_000_000;
/// The wall clock against that of the boot: less is how clocks are kept right.
pub(super) const CLOCK_JUMP_MS: i64 = 5_000;

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
            self.record_trips(&mut core);
            self.tend_store(&mut core);
            self.follow_clock(&mut core);
            self.save_dirty(&mut core);
            self.tell_of_store(&core);
        }
        self.flush_events();
        self.free_unused();
        self.release_gone();
        self.follow_filter_problem();
    }

    /// Records breakers that tripped: once a second, and before anything is
    /// published that nobody asked for, which would arm them anew.
    fn record_trips(&self, core: &mut Core) {
        let guarded = core.services.iter();
        let guarded = guarded.filter(|(_, entry)| entry.spec.breaker.is_some());
        let names: Vec<String> = guarded.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.record_trip(core, &name);
        }
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
            .filter(|entry| entry.dirty || entry.republished)
            .map(|entry| entry.row(true))
            .collect();
        if rows.is_empty() && core.unstored.is_empty() {
            return;
        }
        let commit = Commit {
            generation: core.generation,
            at_unix_ms: self.clock.unix_ms(),
            rows,
            audit: core.unstored.clone(),
            ..Commit::default()
        };
        match core.store.commit(&commit) {
            Ok(()) => {
                core.unstored.clear();
                tracing::debug!("records that were published without a request are stored now");
                for entry in core.services.values_mut() {
                    (entry.dirty, entry.republished) = (false, false);
                }
            }
            Err(error) => tracing::debug!(%error, "still not durable"),
        }
    }

    /// Takes in what is wrong with the pins; once a second.
    pub fn note_pins(&self, problem: Option<String>) {
        lock(&self.core).pins = problem;
    }

    /// Looks whether the store's file is still whole, and whether what failed
    /// still does, so that neither waits for the next request.
    fn tend_store(&self, core: &mut Core) {
        if core.store.refused().is_some() {
            return;
        }
        let now_ns = self.clock.monotonic_ns();
        let tried = if core.store.problem().is_none() {
            core.store.check()
        } else if now_ns >= core.probe_ns {
            core.probe_ns = now_ns + PROBE_NS;
            core.store.probe()
        } else {
            return;
        };
        if let Err(error) = tried {
            tracing::debug!(%error, "the store cannot be written");
        }
    }

    /// Dead-men count on the clock that nobody sets. The wall clock says what is
    /// left of them after a boot, and how long a rollback undoes a promote: when
    /// somebody sets it, these times are moved with it.
    fn follow_clock(&self, core: &mut Core) {
        let offset_ms = self.clock.unix_ms() - (self.clock.boot_ns() / 1_000_000) as i64;
        let before = core.clock_offset_ms.replace(offset_ms);
        let jump_ms = offset_ms - before.unwrap_or(offset_ms);
        if jump_ms.abs() < CLOCK_JUMP_MS {
            return;
        }
        tracing::warn!(
            jump_s = jump_ms as f64 / 1e3,
            "the wall clock was set: dead-men and the time to undo a promote are not changed by it; records of the audit keep their order"
        );
        let Core { cuts, store, .. } = core;
        let then_ms = self.clock.unix_ms() - jump_ms;
        // What has begun has no deadline any more.
        for cut in cuts.iter_mut().filter(|cut| cut.due_unix_ms > then_ms) {
            cut.due_unix_ms += jump_ms;
            if let Err(error) = store.keep_cut(cut) {
                tracing::warn!(service = cut.key.service, %error, "the deadline of a drain is not stored: an agent that starts anew takes the one from before the clock was set");
            }
        }
        let text = format!(
            "by {} s; events keep their order by their numbers",
            jump_ms / 1_000
        );
        self.tell_event("agent", "clock set", "", text);
        for entry in core.services.values_mut() {
            if let Some(dead_man) = &mut entry.dead_man {
                dead_man.stored.deadline_unix_ms += jump_ms;
                entry.dirty = true;
            }
            if let Some(promoted) = &mut entry.promoted {
                promoted.at_unix_ms += jump_ms;
                entry.dirty = true;
            }
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
        self.record_trips(&mut core);
        let has_unknown = core.has_unknown();
        let Core {
            services,
            backends,
            generation,
            ..
        } = &mut *core;
        let mut moved = false;
        for (id, answer) in answers {
            moved |= backends.note(id, answer);
            // One that no service names may still carry flows, or be an orphan's.
            if has_unknown && !backends.get(id).is_some_and(|slot| slot.in_use()) {
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
            if self.holds_by_trip(entry) {
                // The rollback that records it brings them along.
                continue;
            }
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
        self.record_trips(&mut core);
        let Core {
            services,
            generation,
            ..
        } = &mut *core;
        for (name, entry) in services.iter_mut() {
            let before = std::mem::replace(&mut entry.settle_until_ns, self.settle_until_ns());
            if self.holds_by_trip(entry) {
                // Every new flow goes to the live pool already.
                continue;
            }
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

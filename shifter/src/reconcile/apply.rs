//! Apply: all services of a request come into force, or none.

use std::{collections::HashSet, sync::Arc};

use shifter_common::abi::MAX_RING_SLOTS;

use super::{
    asked::Asked,
    cohorts::NewSets,
    controller::{Change, ControlError, Receipt, WriteContext},
    entry::{Entry, local_backends},
    plan::{Rigour, Step, check_specs},
    reconciler::{Core, Reconciler, lock},
    write::{audit, check_etag, describe_spec, elapsed_ns, finish, nothing_changed, store_failed},
};
use crate::{
    datapath::{BackendId, DatapathError, ServiceId, ServiceImage},
    fault,
    health::offer::offer,
    model::{PoolName, ServiceSpec, weight::threshold_share},
    store::{Audit, Commit, StoreError},
};

/// What was made ready before the core was locked.
pub(super) struct Resolved<'a> {
    pub asked: Asked,
    pub sets: NewSets<'a>,
}

/// How to take one service back.
pub(super) struct Undo {
    pub name: String,
    pub before: Option<Entry>,
    /// What was taken over without a stored service, with its rings.
    pub orphan: Option<(ServiceImage, [Vec<BackendId>; 2])>,
}

impl Reconciler {
    pub(super) fn do_plan(&self, specs: &[ServiceSpec]) -> Result<Vec<Change>, ControlError> {
        check_specs(specs)?;
        let asked = Asked::of(specs, &*self.facts);
        let census = self.census();
        let mut core = lock(&self.core);
        for spec in specs {
            self.record_passed_dead_man(&mut core, &spec.name);
        }
        // A plan is not refused for what force would let through: it says so.
        let steps = self.prepare(&core, specs, Rigour::Forced, &asked, &census)?;
        Ok(steps.into_iter().map(|step| step.change).collect())
    }

    pub(super) fn do_apply(
        &self,
        specs: &[ServiceSpec],
        context: &WriteContext,
    ) -> Result<(Vec<Receipt>, Vec<Change>), ControlError> {
        check_specs(specs)?;
        // What the host says now holds until it is in force: placements are
        // asked for anew before or after, and then know these backends. A
        // rollback takes no turn: it waits for the core alone.
        let _turn = lock(&self.refreshing);
        let asked = Asked::of(specs, &*self.facts);
        let census = self.census();
        let sets = self.write_sets(specs, context)?;
        let mut core = lock(&self.core);
        for spec in specs {
            self.record_passed_dead_man(&mut core, &spec.name);
        }
        check_apply_etag(&core, specs, context)?;
        let rigour = match context.force {
            true => Rigour::Forced,
            false => Rigour::Whole,
        };
        let steps = self.prepare(&core, specs, rigour, &asked, &census)?;
        for step in steps.iter().filter(|step| !step.is_unchanged()) {
            let name = &step.spec.name;
            Self::check_no_rollout(&core, name, &context.actor)?;
            self.check_frozen(&core, name)?;
            self.check_origin(&core, &step.spec, context)?;
        }
        if context.validate_only {
            let receipts = steps.iter().map(|s| preview(&core, s, context)).collect();
            return Ok((receipts, steps.into_iter().map(|s| s.change).collect()));
        }
        let asked = Resolved { asked, sets };
        let done = self.carry_out(&mut core, steps, &asked, context)?;
        asked.sets.keep();
        Ok(done)
    }

    /// Publishes and commits prepared steps.
    pub(super) fn carry_out(
        &self,
        core: &mut Core,
        steps: Vec<Step>,
        asked: &Resolved<'_>,
        context: &WriteContext,
    ) -> Result<(Vec<Receipt>, Vec<Change>), ControlError> {
        let changed: Vec<&Step> = steps.iter().filter(|s| !s.is_unchanged()).collect();
        let mut undo: Vec<Undo> = Vec::with_capacity(changed.len());
        let mut programmed = std::collections::HashMap::new();
        let mut not_durable = None;
        let is_way_back = steps.iter().all(|s| s.rigour == Rigour::WayBack);
        if !changed.is_empty() {
            check_limits(core, &changed)?;
            let noted: Vec<_> = changed
                .iter()
                .map(|s| (s.spec.name.as_str(), Some(&s.spec)))
                .collect();
            match core.store.note_pending(&noted) {
                // What is done all the same is told below.
                Err(error) if is_way_back => tracing::warn!(%error, "not noted"),
                other => other.map_err(nothing_changed)?,
            }
            for step in &changed {
                if let Err(error) = self.put(core, step, asked, &mut undo) {
                    self.undo(core, undo);
                    core.store.clear_pending().ok();
                    return Err(error.into());
                }
                programmed.insert(step.spec.name.clone(), elapsed_ns(context));
                fault::point("apply");
            }
            match self.commit_steps(core, &changed, &undo, context) {
                Ok(()) => {}
                Err((error, records)) if is_way_back => {
                    let names = changed.iter().map(|s| s.spec.name.as_str());
                    not_durable = Some(core.keep_unstored(names, records, &error));
                }
                Err((error, _)) => {
                    self.undo(core, undo);
                    return Err(store_failed(&error, "the change was taken back"));
                }
            }
            self.drop_replaced(core, &undo);
        }
        let mut receipts = Vec::with_capacity(steps.len());
        for step in &steps {
            let mut receipt = preview(core, step, context);
            receipt.programmed_ns = programmed.get(&step.spec.name).copied().unwrap_or(0);
            receipt.warnings.extend(not_durable.clone());
            receipts.push(receipt);
        }
        for step in steps.iter().filter(|s| !s.is_unchanged()) {
            tracing::info!(
                service = step.spec.name,
                action = step.change.action,
                actor = context.actor,
                "applied"
            );
            self.events.push(&step.spec.name, false);
        }
        Ok((receipts, steps.into_iter().map(|s| s.change).collect()))
    }

    /// Brings one step into the kernel. What it changed is in `undo` even if it fails.
    fn put(
        &self,
        core: &mut Core,
        step: &Step,
        asked: &Resolved<'_>,
        undo: &mut Vec<Undo>,
    ) -> Result<(), DatapathError> {
        let before = core.services.get(&step.spec.name).cloned();
        let entry = self.next_entry(core, step, asked, before.as_ref())?;
        let removed: Vec<BackendId> = match &before {
            Some(before) => {
                let now: HashSet<BackendId> = entry.named().into_iter().collect();
                before
                    .named()
                    .into_iter()
                    .filter(|id| !now.contains(id))
                    .collect()
            }
            None => Vec::new(),
        };
        let old_slots = before.as_ref().map_or(0, slots);
        let vip = entry.spec.vip;
        let orphan = core.orphans.get(&(vip.addr, vip.protocol)).map(|image| {
            let rings = self.datapath.rings(image.id).unwrap_or_default();
            (image.clone(), rings)
        });
        undo.push(Undo {
            name: step.spec.name.clone(),
            before,
            orphan,
        });
        self.name_backends(core, &entry);
        core.backends.unname(entry.id, &removed);
        core.ring_slots = core.ring_slots + slots(&entry) - old_slots;
        let named = entry.named();
        core.vips
            .insert((vip.addr, vip.protocol), entry.spec.name.clone());
        // From here on `undo` finds the entry and takes everything back.
        let entry = core
            .services
            .entry(entry.spec.name.clone())
            .insert_entry(entry)
            .into_mut();
        for id in named {
            core.backends.sync(id, &*self.datapath)?;
        }
        self.publish(&mut core.generation, entry, step.rings.is_some())?;
        entry.written = entry.generation;
        core.orphans.remove(&(vip.addr, vip.protocol));
        for id in removed {
            core.backends.sync(id, &*self.datapath)?;
        }
        Ok(())
    }

    /// The entry that a step leads to, with ids.
    fn next_entry(
        &self,
        core: &mut Core,
        step: &Step,
        resolved: &Resolved<'_>,
        before: Option<&Entry>,
    ) -> Result<Entry, DatapathError> {
        let spec = &step.spec;
        let protocol = spec.vip.protocol;
        let answer = |addr| resolved.asked.answer(addr, protocol);
        let vip_backend = core.backends.acquire(answer(spec.vip.addr))?;
        let mut pools = [Vec::new(), Vec::new()];
        for pool in [PoolName::Blue, PoolName::Green] {
            for backend in spec.pool(pool) {
                pools[pool.index()].push(core.backends.acquire(answer(backend.addr))?);
            }
        }
        let rings = match (&step.rings, before) {
            (None, Some(before)) => before.rings.clone(),
            (None, None) => Arc::default(),
            (Some(local), _) => {
                let ids: Vec<BackendId> = pools.iter().flatten().copied().collect();
                Arc::new(
                    local
                        .rings
                        .each_ref()
                        .map(|ring| ring.iter().map(|n| ids[usize::from(*n) - 1]).collect()),
                )
            }
        };
        let (id, settle_until_ns) = match before {
            Some(before) => (before.id, before.settle_until_ns),
            None => self.new_id(core, spec)?,
        };
        let cohort_set = self.cohort_set_of(core, spec, before, &resolved.sets)?;
        Ok(Entry {
            id,
            vip_backend,
            cohort_set,
            local_backends: local_backends(&pools, vip_backend, &core.backends),
            pools,
            rings,
            base_hash: step.base_hash,
            generation: before.map_or(0, |b| b.generation),
            written: before.map_or(0, |b| b.written),
            out: offer(spec, &step.down).out,
            down: step.down.clone(),
            dead_man: before
                .filter(|_| step.keep_dead_man)
                .and_then(|b| b.dead_man),
            promoted: before.and_then(|b| b.promoted.filter(|_| b.spec.live == spec.live)),
            translated: step.translated,
            published: before.map(|b| b.published.clone()).unwrap_or_default(),
            observed: before.and_then(|b| b.observed),
            dirty: false,
            republished: false,
            settle_until_ns,
            spec: spec.clone(),
        })
    }

    /// Id and settling time of a new service; an orphan's are kept.
    fn new_id(
        &self,
        core: &mut Core,
        spec: &ServiceSpec,
    ) -> Result<(ServiceId, u64), DatapathError> {
        match core.orphans.get(&(spec.vip.addr, spec.vip.protocol)) {
            Some(orphan) => Ok((orphan.id, orphan.settle_until_ns)),
            None => Ok((self.take_id(&mut core.ids)?, self.settle_until_ns())),
        }
    }

    pub(super) fn settle_until_ns(&self) -> u64 {
        if self.settings.settle.is_zero() {
            return 0;
        }
        self.clock.monotonic_ns() + self.settings.settle.as_nanos() as u64
    }

    pub(super) fn name_backends(&self, core: &mut Core, entry: &Entry) {
        core.backends.name(
            entry.id,
            entry.vip_backend,
            [
                (&entry.pools[0], &entry.spec.blue_pool),
                (&entry.pools[1], &entry.spec.green_pool),
            ],
            &entry.out,
        );
    }

    /// What it could not store of the audit comes back.
    fn commit_steps(
        &self,
        core: &mut Core,
        steps: &[&Step],
        undo: &[Undo],
        context: &WriteContext,
    ) -> Result<(), (StoreError, Vec<Audit>)> {
        let at_unix_ms = self.clock.unix_ms();
        let mut commit = Commit {
            generation: core.generation,
            at_unix_ms,
            ..Commit::default()
        };
        for (step, undo) in steps.iter().zip(undo) {
            let Some(entry) = core.services.get(&step.spec.name) else {
                continue;
            };
            let before = undo.before.as_ref();
            let described = before.map_or_else(String::new, |b| describe_spec(&b.spec));
            let mut record = audit(at_unix_ms, context, entry, step.action, &described);
            record.after = format!("{}: {}", step.change.action, step.change.details.join("; "));
            commit.rows.push(entry.row(true));
            commit.audit.push(record);
        }
        match core.store.commit(&commit) {
            Ok(()) => Ok(()),
            Err(error) => Err((error, commit.audit)),
        }
    }

    /// Takes back what `put` did, newest first, under new generations.
    fn undo(&self, core: &mut Core, undo: Vec<Undo>) {
        for Undo {
            name,
            before,
            orphan,
        } in undo.into_iter().rev()
        {
            let Some(current) = core.services.remove(&name) else {
                continue;
            };
            core.backends.unname(current.id, &current.named());
            core.ring_slots -= slots(&current);
            let result = match before {
                None => {
                    let vip = current.spec.vip;
                    core.vips.remove(&(vip.addr, vip.protocol));
                    match orphan {
                        Some((image, rings)) => self.put_orphan_back(core, image, &rings),
                        None => {
                            core.ids.retired.insert(current.id);
                            self.datapath.delete_service(current.id)
                        }
                    }
                }
                Some(mut before) => {
                    before.dirty = true;
                    self.name_backends(core, &before);
                    for id in before.named() {
                        core.backends.sync(id, &*self.datapath).ok();
                    }
                    let result = self.publish(&mut core.generation, &mut before, true);
                    core.ring_slots += slots(&before);
                    core.services.insert(name.clone(), before);
                    result
                }
            };
            if let Err(error) = result {
                tracing::error!(service = name, %error, "taking a change back failed");
            }
        }
    }

    /// The kernel gets back what an apply had taken over.
    fn put_orphan_back(
        &self,
        core: &mut Core,
        mut image: ServiceImage,
        rings: &[Vec<BackendId>; 2],
    ) -> Result<(), DatapathError> {
        let key = (image.vip.addr, image.vip.protocol);
        if core.orphans.contains_key(&key) {
            // It was never replaced.
            return Ok(());
        }
        core.generation += 1;
        image.generation = core.generation;
        let result = self.datapath.publish(&image, Some(rings)).map(drop);
        // Even where it failed: an apply may take the id over again.
        core.orphans.insert(key, image);
        result
    }
}

/// Ring slots that an entry takes.
pub(super) fn slots(entry: &Entry) -> u64 {
    entry.rings.iter().map(|r| r.len() as u64).sum()
}

fn check_apply_etag(
    core: &Core,
    specs: &[ServiceSpec],
    context: &WriteContext,
) -> Result<(), ControlError> {
    let Some(asked) = &context.etag else {
        return Ok(());
    };
    let [spec] = specs else {
        return Err(ControlError::Invalid(
            "an etag guards one service: apply one service at a time, or leave the etag out".into(),
        ));
    };
    match core.services.get(&spec.name) {
        Some(entry) => check_etag(entry, context),
        None => Err(ControlError::Conflict {
            service: spec.name.clone(),
            is: "absent: there is no such service".into(),
            asked: asked.clone(),
        }),
    }
}

/// The limits that are known before anything is changed.
fn check_limits(core: &Core, steps: &[&Step]) -> Result<(), DatapathError> {
    let mut added = HashSet::new();
    let mut ring_slots = core.ring_slots;
    core.ids.check_limit(
        steps
            .iter()
            .filter(|step| {
                let vip = step.spec.vip;
                !core.services.contains_key(&step.spec.name)
                    && !core.orphans.contains_key(&(vip.addr, vip.protocol))
            })
            .count(),
    )?;
    for step in steps {
        let spec = &step.spec;
        for backend in spec.blue_pool.iter().chain(&spec.green_pool) {
            let id = core.backends.id(backend.addr, spec.vip.protocol);
            let slot = id.and_then(|id| core.backends.get(id));
            if slot.is_none_or(|slot| slot.users.is_empty()) {
                added.insert((backend.addr, spec.vip.protocol));
            }
        }
        if let Some(local) = &step.rings {
            let old = core.services.get(&spec.name).map_or(0, slots);
            ring_slots += local.rings.iter().map(|r| r.len() as u64).sum::<u64>();
            ring_slots -= old;
        }
    }
    core.backends.check_limit(added.len())?;
    if ring_slots > u64::from(MAX_RING_SLOTS) {
        return Err(DatapathError::Full {
            what: "ring slots",
            limit: u64::from(MAX_RING_SLOTS),
            remedy: "name fewer backends, or weights that differ less (a ring has 100 slots for each backend of the smallest weight)",
        });
    }
    Ok(())
}

/// A receipt of what is known without carrying the step out, or after it.
fn preview(core: &Core, step: &Step, context: &WriteContext) -> Receipt {
    let receipt = Receipt {
        service: step.spec.name.clone(),
        moved_share: step.change.moved_share,
        green_share: threshold_share(step.spec.green.threshold()),
        unchanged: step.is_unchanged(),
        warnings: step.warnings.clone(),
        ..Receipt::default()
    };
    match core.services.get(&step.spec.name) {
        Some(entry) => finish(receipt, entry, context),
        None => receipt,
    }
}

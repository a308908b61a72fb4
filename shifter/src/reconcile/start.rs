//! The start: what the kernel holds is adopted, and only what differs is published.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use super::{
    Clock, HostFacts, SystemClock,
    apply::slots,
    backends::{Answer, Backends},
    entry::{DeadMan, Entry, base_hash, desired_hash, is_of, local_backends},
    health::down_before,
    ids::ServiceIds,
    maintain::CLOCK_JUMP_MS,
    plan::rings_of,
    reconciler::{Core, Reconciler, Settings, StartError},
    write::describe_spec,
};
use crate::{
    datapath::{BackendId, CohortSet, Datapath, DatapathError, DeadManImage, ServiceImage},
    health::offer::offer,
    model::{PoolName, Protocol, ServiceSpec, Weight, cohort},
    store::{Audit, Commit, Loaded, Pending, Promoted, Store, StoredDeadMan, StoredService},
};

pub(super) type Key = (SocketAddr, Protocol);

impl Reconciler {
    /// Adopts what the kernel holds and brings the stored state into force.
    pub fn start(
        datapath: Arc<dyn Datapath>,
        facts: Arc<dyn HostFacts>,
        store: Store,
        settings: Settings,
    ) -> Result<Arc<Self>, StartError> {
        Self::start_with_clock(datapath, facts, store, settings, Arc::new(SystemClock))
    }

    /// The same under another clock, for tests.
    pub fn start_with_clock(
        datapath: Arc<dyn Datapath>,
        facts: Arc<dyn HostFacts>,
        mut store: Store,
        settings: Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, StartError> {
        let loaded = store.load().unwrap_or_else(|error| {
            store.refuse(error.to_string());
            Loaded::default()
        });
        let inventory = datapath.inventory().map_err(StartError::Inventory)?;
        let kernel: HashMap<Key, ServiceImage> = inventory
            .services
            .into_iter()
            .map(|image| ((image.vip.addr, image.vip.protocol), image))
            .collect();
        if let Some(why) = store.refused()
            && loaded.services.is_empty()
            && kernel.is_empty()
        {
            let why = why.to_owned();
            return Err(StartError::Nothing { why });
        }
        let newest = kernel.values().map(|image| image.generation).max();
        let mut core = Core {
            store,
            services: BTreeMap::new(),
            vips: HashMap::new(),
            backends: Backends::default(),
            ids: ServiceIds::default(),
            generation: loaded.generation.max(newest.unwrap_or(0)),
            orphans: HashMap::new(),
            ring_slots: 0,
            warnings: Vec::new(),
            unstored: Vec::new(),
            pins: None,
            probe_ns: 0,
            clock_offset_ms: None,
            rollouts: BTreeMap::new(),
            frozen: BTreeMap::new(),
            cuts: Vec::new(),
        };
        let mut known: Vec<BackendId> = Vec::new();
        for (id, addr, protocol) in inventory.backends {
            let answer = Answer::ask(addr, protocol, &*facts);
            core.backends.adopt(id, answer);
            known.push(id);
        }
        known.sort_unstable();
        for image in kernel.values() {
            core.ids.adopt(image.id);
        }
        // Flows of a service that was deleted before the restart still name its id.
        for id in datapath.named_ids().services {
            if !core.ids.is_taken(id) {
                core.ids.adopt(id);
                core.ids.retired.insert(id);
            }
        }
        let mut reconciler = Self::assemble(datapath, facts, clock, settings, core);
        reconciler.adopted = kernel.len();
        let start = Start {
            reconciler: &reconciler,
            kernel,
            known,
            moved_from: Vec::new(),
            at_unix_ms: reconciler.clock.unix_ms(),
        };
        let mut core = super::reconciler::lock(&reconciler.core);
        start.run(&mut core, loaded)?;
        reconciler.load_frozen(&mut core);
        reconciler.load_cuts(&mut core);
        reconciler.load_rollouts(&mut core);
        drop(core);
        Ok(Arc::new(reconciler))
    }
}

pub(super) struct Start<'a> {
    pub reconciler: &'a Reconciler,
    pub kernel: HashMap<Key, ServiceImage>,
    /// Backend ids that the kernel holds.
    known: Vec<BackendId>,
    /// VIPs that a completed write has moved its service away from.
    moved_from: Vec<Key>,
    pub at_unix_ms: i64,
}

/// A stored service and what the start found out about it.
struct Found {
    service: StoredService,
    /// The store has to be written.
    dirty: bool,
    audit: Option<Audit>,
}

impl Start<'_> {
    fn run(mut self, core: &mut Core, loaded: Loaded) -> Result<(), StartError> {
        let mut deleted = Vec::new();
        let services = self.complete_pending(loaded, &mut deleted);
        let mut audits = Vec::new();
        for found in services {
            let name = found.service.spec.name.clone();
            let audit = self
                .bring_up(core, found)
                .map_err(|source| StartError::Publish {
                    service: name,
                    source,
                })?;
            audits.extend(audit);
        }
        if core.store.refused().is_some() {
            self.recover_the_rest(core);
        } else {
            self.leave_the_rest(core);
        }
        self.commit(core, deleted, audits);
        Ok(())
    }

    /// A noted write that reached the kernel in any part is completed; one
    /// that did not is forgotten.
    fn complete_pending(&mut self, loaded: Loaded, deleted: &mut Vec<String>) -> Vec<Found> {
        let mut services: BTreeMap<String, Found> = loaded
            .services
            .into_iter()
            .map(|service| {
                let found = Found {
                    service,
                    dirty: false,
                    audit: None,
                };
                (found.service.spec.name.clone(), found)
            })
            .collect();
        let reached = |(_, spec): &Pending| spec.as_ref().is_some_and(|spec| self.has(spec));
        let complete = loaded.pending.iter().any(reached);
        for (name, spec) in loaded.pending {
            match spec {
                Some(spec) if complete => {
                    tracing::warn!(service = name, "completing a write that a crash cut off");
                    let key = (spec.vip.addr, spec.vip.protocol);
                    let kernel = self.kernel.get(&key).map_or(0, |image| image.generation);
                    let before = services.remove(&name);
                    let left = before.as_ref().map(|found| found.service.spec.vip);
                    self.moved_from.extend(
                        left.map(|vip| (vip.addr, vip.protocol))
                            .filter(|left| *left != key),
                    );
                    let generation = before.as_ref().map_or(0, |b| b.service.generation);
                    let service = StoredService {
                        generation: generation.max(kernel),
                        written: generation.max(kernel),
                        dead_man: None,
                        promoted: before.and_then(|b| b.service.promoted),
                        spec,
                    };
                    let audit = Some(self.audit(&service, "apply", "completed after a crash"));
                    services.insert(
                        name,
                        Found {
                            service,
                            dirty: true,
                            audit,
                        },
                    );
                }
                Some(_) => {}
                None => {
                    let gone = services.get(&name).is_some_and(|f| {
                        let vip = f.service.spec.vip;
                        !self.kernel.contains_key(&(vip.addr, vip.protocol))
                    });
                    if gone {
                        tracing::warn!(
                            service = name,
                            "completing a deletion that a crash cut off"
                        );
                        services.remove(&name);
                        deleted.push(name);
                    }
                }
            }
        }
        services.into_values().collect()
    }

    /// Whether the kernel carries out exactly this.
    fn has(&self, spec: &ServiceSpec) -> bool {
        let image = self.kernel.get(&(spec.vip.addr, spec.vip.protocol));
        let hash = desired_hash(
            base_hash(spec),
            spec.live,
            spec.green.threshold(),
            spec.cohorts_on,
        );
        image.is_some_and(|image| image.desired_hash == hash)
    }

    fn audit(&self, service: &StoredService, action: &str, reason: &str) -> Audit {
        Audit {
            at_unix_ms: self.at_unix_ms,
            actor: "agent".into(),
            request_id: String::new(),
            service: service.spec.name.clone(),
            action: action.into(),
            reason: reason.into(),
            before: String::new(),
            after: describe_spec(&service.spec),
            generation: service.generation,
        }
    }

    /// One service into force.
    fn bring_up(
        &mut self,
        core: &mut Core,
        mut found: Found,
    ) -> Result<Option<Audit>, DatapathError> {
        let vip = found.service.spec.vip;
        let image = self.kernel.remove(&(vip.addr, vip.protocol));
        let dead_man = match &image {
            Some(image) => self.take_newer(image, &mut found),
            None => self.rearm(&mut found),
        };
        let mut entry = self.entry(core, &found, image.as_ref())?;
        entry.dead_man = dead_man;
        entry.dirty = found.dirty;
        if let Some(audit) = self.reconciler.take_trip(&mut entry, self.at_unix_ms) {
            found.audit = Some(audit);
        }
        self.reconciler.name_backends(core, &entry);
        for id in entry.named() {
            core.backends.sync(id, &*self.reconciler.datapath)?;
        }
        let whole = image.as_ref().is_none_or(|image| {
            let known = |id: &BackendId| self.known.binary_search(id).is_ok();
            !is_of(image, &entry.spec) || !entry.named().iter().all(known)
        });
        let same = !whole && image.as_ref() == Some(&entry.image());
        if !same {
            self.reconciler
                .publish(&mut core.generation, &mut entry, whole)?;
            entry.dirty = true;
        }
        if found.audit.is_some() {
            entry.written = entry.generation;
        }
        core.ring_slots += slots(&entry);
        core.vips
            .insert((vip.addr, vip.protocol), entry.spec.name.clone());
        core.services.insert(entry.spec.name.clone(), entry);
        Ok(found.audit)
    }

    /// The kernel's newer split is taken into the store, never undone.
    fn take_newer(&self, image: &ServiceImage, found: &mut Found) -> Option<DeadMan> {
        let service = &mut found.service;
        let armed = image.dead_man.map(|dead_man| self.armed(dead_man, service));
        // The wall clock was set while no agent ran.
        let deadline = |stored: StoredDeadMan| stored.deadline_unix_ms;
        let wanted = armed.map(|dead_man| deadline(dead_man.stored));
        found.dirty |= wanted
            .zip(service.dead_man.map(deadline))
            .is_some_and(|(is, was)| is != was);
        if image.generation <= service.generation {
            return armed;
        }
        let green = Weight::from_threshold(image.threshold);
        let same_split = image.live == service.spec.live
            && image.threshold == service.spec.green.threshold()
            && (image.cohort_set == 0 || image.cohorts_on == service.spec.cohorts_on)
            && wanted == service.dead_man.map(deadline);
        if same_split {
            // Rings, placements or times were published, and not stored yet.
            service.generation = image.generation;
            found.dirty = true;
            return armed;
        }
        tracing::warn!(service = service.spec.name, generation = image.generation, %green, "the kernel has a newer split than the store: it is kept");
        if image.live != service.spec.live {
            let undone = service.promoted.is_some_and(|p| p.former == image.live);
            service.promoted = (!undone).then_some(Promoted {
                former: service.spec.live,
                at_unix_ms: self.at_unix_ms,
            });
        }
        service.spec.live = image.live;
        if image.cohort_set != 0 {
            service.spec.cohorts_on = image.cohorts_on;
        }
        if green.threshold() != service.spec.green.threshold() {
            service.spec.green = green;
        }
        service.generation = image.generation;
        service.dead_man = armed.map(|a| a.stored);
        found.dirty = true;
        found.audit = Some(self.audit(service, "adopt", "newer in the kernel after a crash"));
        armed
    }

    fn armed(&self, image: DeadManImage, service: &StoredService) -> DeadMan {
        let remaining = image
            .deadline_ns
            .saturating_sub(self.reconciler.clock.boot_ns());
        let remaining_ms = (remaining / 1_000_000) as i64;
        let mut stored = service.dead_man.unwrap_or(StoredDeadMan {
            safe_threshold: image.safe_threshold,
            deadline_unix_ms: self.at_unix_ms + remaining_ms,
            after_ms: remaining_ms,
        });
        let deadline_unix_ms = self.at_unix_ms + remaining_ms;
        if (deadline_unix_ms - stored.deadline_unix_ms).abs() >= CLOCK_JUMP_MS {
            stored.deadline_unix_ms = deadline_unix_ms;
        }
        DeadMan { image, stored }
    }

    /// After a reboot the wall clock says what is left, but never more than
    /// the whole; what has passed is a rollback and is not armed again.
    fn rearm(&self, found: &mut Found) -> Option<DeadMan> {
        let stored = found.service.dead_man?;
        let left_ms = (stored.deadline_unix_ms - self.at_unix_ms).min(stored.after_ms);
        if left_ms > 0 {
            let deadline_ns = self.reconciler.clock.boot_ns() + left_ms as u64 * 1_000_000;
            let image = DeadManImage {
                safe_threshold: stored.safe_threshold,
                deadline_ns,
            };
            return Some(DeadMan { image, stored });
        }
        let service = &mut found.service;
        let before = describe_spec(&service.spec);
        service.spec.green = service.spec.live.all();
        service.spec.cohorts_on = service.spec.cohorts.is_empty();
        service.dead_man = None;
        found.dirty = true;
        let reason = "not confirmed; the deadline passed while the host was down";
        let mut audit = self.audit(&found.service, "rollback", reason);
        audit.actor = "dead-man".into();
        audit.before = before;
        found.audit = Some(audit);
        None
    }

    /// The entry of a stored service, with the kernel's ids where it has them.
    fn entry(
        &self,
        core: &mut Core,
        found: &Found,
        image: Option<&ServiceImage>,
    ) -> Result<Entry, DatapathError> {
        let spec = &found.service.spec;
        let protocol = spec.vip.protocol;
        let facts = &*self.reconciler.facts;
        // Nobody else has the lock yet: the host may be slow.
        let ask = |addr| Answer::ask(addr, protocol, facts);
        let vip_backend = core.backends.acquire(ask(spec.vip.addr))?;
        let mut pools = [Vec::new(), Vec::new()];
        for pool in [PoolName::Blue, PoolName::Green] {
            for backend in spec.pool(pool) {
                pools[pool.index()].push(core.backends.acquire(ask(backend.addr))?);
            }
        }
        let (id, settle_until_ns) = match image {
            Some(image) => (image.id, image.settle_until_ns),
            None => (
                self.reconciler.take_id(&mut core.ids)?,
                self.reconciler.settle_until_ns(),
            ),
        };
        let down = down_before(&*self.reconciler.datapath, image, spec, &pools);
        let out = offer(spec, &down).out;
        let rings = rings_of(spec, &pools, &out);
        Ok(Entry {
            id,
            vip_backend,
            local_backends: local_backends(&pools, vip_backend, &core.backends),
            pools,
            rings: Arc::new(rings),
            base_hash: base_hash(spec),
            generation: found.service.generation,
            written: found.service.written,
            down,
            out,
            dead_man: None,
            promoted: found.service.promoted,
            translated: facts.vip_is_translated(&spec.vip),
            published: Default::default(),
            observed: None,
            dirty: false,
            republished: false,
            settle_until_ns,
            cohort_set: self.cohort_set(spec, image)?,
            spec: spec.clone(),
        })
    }

    /// The set in the kernel where it holds what the service wants, or a new one.
    fn cohort_set(
        &self,
        spec: &ServiceSpec,
        image: Option<&ServiceImage>,
    ) -> Result<CohortSet, DatapathError> {
        let datapath = &*self.reconciler.datapath;
        let rules = cohort::rules(spec);
        let set = image.map_or(0, |image| image.cohort_set);
        if *datapath.cohort_rules(set) == *rules {
            return Ok(set);
        }
        let new = datapath.write_cohorts(&rules)?;
        // It goes once the record that names it is replaced.
        datapath.drop_cohorts(set);
        Ok(new)
    }

    /// What the kernel holds beyond the stored services may be all that is left of
    /// a lost store, or newer than one that was brought back: it goes on, and an
    /// apply with the same VIP takes it over. Only a VIP that a completed write has
    /// moved away from is freed.
    fn leave_the_rest(&mut self, core: &mut Core) {
        for (key, image) in std::mem::take(&mut self.kernel) {
            if !self.moved_from.contains(&key) {
                core.warnings.push(format!(
                    "the kernel has a service at {} that the store knows nothing of: it goes on as it is; apply its description to take it over",
                    image.vip
                ));
                core.orphans.insert(key, image);
                continue;
            }
            tracing::warn!(vip = %image.vip, "freeing a VIP that its service has left");
            match self.reconciler.datapath.delete_service(image.id) {
                Ok(()) => {
                    core.ids.retired.insert(image.id);
                    self.reconciler.datapath.drop_cohorts(image.cohort_set);
                }
                Err(error) => tracing::error!(vip = %image.vip, %error, "freeing it failed"),
            }
        }
    }

    /// A store that cannot be written does not keep the agent from its work.
    fn commit(&self, core: &mut Core, deleted: Vec<String>, audit: Vec<Audit>) {
        let rows: Vec<_> = core
            .services
            .values()
            .filter(|e| e.dirty)
            .map(|e| e.row(true))
            .collect();
        if core.store.refused().is_some() {
            return;
        }
        if rows.is_empty() && deleted.is_empty() {
            if let Err(error) = core.store.clear_pending() {
                tracing::warn!(%error, "not durable");
            }
            return;
        }
        let commit = Commit {
            generation: core.generation,
            at_unix_ms: self.at_unix_ms,
            rows,
            delete: deleted.iter().map(String::as_str).collect(),
            audit,
        };
        match core.store.commit(&commit) {
            Ok(()) => core.services.values_mut().for_each(|e| e.dirty = false),
            Err(error) => {
                tracing::warn!(%error, "not durable");
                core.unstored.extend(commit.audit);
            }
        }
    }
}

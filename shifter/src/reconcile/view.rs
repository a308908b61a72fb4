//! Services, flows and the agent as they stand.

use std::{collections::HashMap, net::SocketAddr, time::Instant};

use super::{
    controller::{
        BackendView, ControlError, DeadManView, FlowQuery, FlowView, InfoView, ServiceView,
    },
    entry::Entry,
    health::pool_warning,
    observe::NewClients,
    reconciler::{Core, Reconciler, lock},
    shed,
    split::unready_warning,
    write::find,
};
use crate::{
    datapath::{BackendId, Census, FlowFilter, FlowRow, Placement, ServiceId, plural},
    model::{BackendSpec, BackendState, PoolName, Protocol, weight::threshold_share},
    store::Cut,
};

/// Flows in one answer if the query does not say.
const DEFAULT_FLOWS: usize = 1_000;
/// The flow table has two entries of 64 bytes for each flow of its capacity.
const TABLE_BYTES_PER_FLOW: u64 = 128;

/// What a view needs of the state; the rest is read without the lock.
struct Snapshot {
    entry: Entry,
    backends: Vec<SnapshotBackend>,
    cuts: Vec<Cut>,
}

struct SnapshotBackend {
    id: BackendId,
    pool: PoolName,
    spec: BackendSpec,
    placement: &'static str,
    warnings: Vec<String>,
}

fn snapshot(core: &Core, entry: &Entry) -> Snapshot {
    let mut backends = Vec::new();
    for pool in [PoolName::Blue, PoolName::Green] {
        for (id, spec) in entry.pools[pool.index()].iter().zip(entry.spec.pool(pool)) {
            let slot = core.backends.get(*id);
            let placement = if spec.addr == entry.spec.vip.addr {
                "vip"
            } else {
                match slot.map(|slot| slot.placement) {
                    Some(Placement::Host) => "host",
                    Some(Placement::NextHop(_)) => "next-hop",
                    _ => "kernel",
                }
            };
            backends.push(SnapshotBackend {
                id: *id,
                pool,
                spec: *spec,
                placement,
                warnings: slot.map(|slot| slot.warnings.clone()).unwrap_or_default(),
            });
        }
    }
    let of_it = core
        .cuts
        .iter()
        .filter(|c| c.key.service == entry.spec.name);
    Snapshot {
        entry: entry.clone(),
        backends,
        cuts: of_it.cloned().collect(),
    }
}

impl Reconciler {
    pub(super) fn do_list(&self) -> Result<Vec<ServiceView>, ControlError> {
        let census = self.census();
        let snapshots: Vec<Snapshot> = {
            let core = lock(&self.core);
            core.services.values().map(|e| snapshot(&core, e)).collect()
        };
        let clients = self.new_clients(snapshots.iter().map(|s| &s.entry));
        snapshots
            .into_iter()
            .map(|snapshot| self.view(snapshot, &census, &clients, false))
            .collect()
    }

    pub(super) fn do_get(&self, name: &str) -> Result<ServiceView, ControlError> {
        let census = self.census();
        let snapshot = {
            let core = lock(&self.core);
            snapshot(&core, find(&core.services, name)?)
        };
        let clients = self.new_clients([&snapshot.entry]);
        self.view(snapshot, &census, &clients, true)
    }

    /// `ask`: what stands in the way of backends is asked of the host anew.
    fn view(
        &self,
        snapshot: Snapshot,
        census: &Census,
        clients: &NewClients,
        ask: bool,
    ) -> Result<ServiceView, ControlError> {
        let Snapshot {
            entry,
            backends,
            cuts,
        } = snapshot;
        let counters = self.datapath.pool_counters(entry.id)?;
        let programmed_share = entry.share_of(self.threshold_in_force(&entry));
        let mut views = Vec::with_capacity(backends.len());
        for backend in backends {
            views.push(self.backend_view(&entry, backend, census, ask)?);
        }
        let first_flow = self
            .datapath
            .first_flow(entry.id)
            .filter(|(generation, _)| *generation == entry.generation)
            .and_then(|(generation, at_ns)| {
                let since = entry.published_ns(generation)?;
                Some((generation, at_ns.saturating_sub(since)))
            });
        Ok(ServiceView {
            etag: entry.etag(),
            generation: entry.generation,
            programmed_share,
            observed: self.observed(&entry, &counters, clients),
            carried: census.services.get(&entry.id).copied().unwrap_or_default(),
            idle: census.idle.get(&entry.id).copied().unwrap_or_default(),
            dead_man: self.dead_man_view(&entry),
            backends: views,
            first_flow,
            adoption: entry.adoption(),
            warnings: self.warnings(&entry, &counters),
            signals: self.datapath.signals(entry.id)?,
            breaker: self.breaker_view(&entry),
            cohorts: match self.trip_in_force(&entry) {
                Some(_) if !entry.spec.cohorts.is_empty() => "suspended",
                _ => entry.cohorts_word(&*self.clock),
            },
            counters,
            cuts: self.cut_views(&cuts),
            ended_flows: self.ended_flows(&entry.spec.name),
            spec: entry.spec,
        })
    }

    fn backend_view(
        &self,
        entry: &Entry,
        backend: SnapshotBackend,
        census: &Census,
        ask: bool,
    ) -> Result<BackendView, ControlError> {
        let mut warnings = if ask {
            let protocol = entry.spec.vip.protocol;
            self.facts.backend_warnings(backend.spec.addr, protocol)
        } else {
            backend.warnings
        };
        warnings.extend(self.silence(backend.id));
        let is_checked = backend.spec.state != BackendState::Maint;
        let checks = is_checked.then(|| self.standing(entry, backend.spec.addr));
        let checks = checks.flatten();
        Ok(BackendView {
            id: backend.id,
            pool: backend.pool,
            spec: backend.spec,
            health: checks.as_ref().map_or("unknown", |c| c.health.word()),
            checks,
            placement: backend.placement,
            live_flows: census.backends.get(&backend.id).copied().unwrap_or(0),
            counters: self.datapath.backend_counters(backend.id)?,
            warnings,
        })
    }

    fn dead_man_view(&self, entry: &Entry) -> Option<DeadManView> {
        let image = entry.dead_man?.image;
        let left_ns = image.deadline_ns.saturating_sub(self.clock.boot_ns());
        Some(DeadManView {
            safe_share: threshold_share(image.safe_threshold),
            remaining_s: left_ns as f64 / 1e9,
            passed: left_ns == 0,
        })
    }

    fn warnings(
        &self,
        entry: &Entry,
        counters: &[shifter_common::abi::PoolCounters; 2],
    ) -> Vec<String> {
        let spec = &entry.spec;
        let mut warnings = Vec::new();
        if !spec.vip_routed && !self.facts.is_local(spec.vip.ip()) {
            warnings.push(self.vip_not_local(spec.vip.ip()));
        }
        warnings.extend(unready_warning(entry, spec.live, spec.green));
        warnings.extend(pool_warning(entry, PoolName::Blue));
        warnings.extend(pool_warning(entry, PoolName::Green));
        let fragments = self.fragments(entry, counters);
        if fragments > 0 {
            warnings.push(format!(
                "{} to the VIP passed untouched within the last minute: such packets reach what listens on the VIP here, not a backend; let clients send packets that fit the path",
                plural(fragments, "fragment")
            ));
        }
        if entry.adoption() == "refused" {
            warnings.push(format!(
                "adoption: {}",
                super::entry::adoption_meaning("refused")
            ));
        }
        warnings.extend(self.breaker_view(entry).and_then(|breaker| breaker.warning));
        if entry.dirty {
            warnings.push("not durable: the last change is in force but not stored yet".into());
        }
        warnings
    }

    pub(super) fn do_flows(&self, query: &FlowQuery) -> Result<(Vec<FlowView>, u64), ControlError> {
        let (filters, names, addrs) = {
            let core = lock(&self.core);
            let names: HashMap<ServiceId, String> = core
                .services
                .values()
                .map(|e| (e.id, e.spec.name.clone()))
                .collect();
            let addrs: HashMap<BackendId, SocketAddr> = core
                .backends
                .ids()
                .into_iter()
                .filter_map(|id| Some((id, core.backends.get(id)?.addr)))
                .collect();
            (flow_filters(&core, query)?, names, addrs)
        };
        let name = |row: &FlowRow| {
            let deleted = || format!("(deleted service {})", row.service);
            names.get(&row.service).cloned().unwrap_or_else(deleted)
        };
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let (mut views, mut matched) = (Vec::new(), 0);
        for mut filter in filters {
            filter.limit -= views.len().min(filter.limit);
            let (rows, count) = self.datapath.flows(&filter);
            matched += count;
            views.extend(rows.into_iter().map(|row| FlowView {
                service: name(&row),
                backend: addrs.get(&row.backend).copied().unwrap_or(unknown),
                row,
            }));
        }
        Ok((views, matched))
    }

    /// What `status` shows as loud, but for drops and silent backends: of the
    /// agent, of services, and of what stands in the way of backends.
    pub fn loud(&self) -> Vec<String> {
        let mut loud = self.agent_warnings(&self.census());
        let snapshots: Vec<Snapshot> = {
            let core = lock(&self.core);
            core.services.values().map(|e| snapshot(&core, e)).collect()
        };
        for Snapshot {
            entry, backends, ..
        } in snapshots
        {
            let counters = self.datapath.pool_counters(entry.id).unwrap_or_default();
            let of_backends = backends.into_iter().flat_map(|backend| backend.warnings);
            let name = &entry.spec.name;
            loud.extend(
                self.warnings(&entry, &counters)
                    .into_iter()
                    .chain(of_backends)
                    .map(|text| format!("{name}: {text}")),
            );
        }
        loud
    }

    /// Warnings of the agent itself.
    fn agent_warnings(&self, census: &Census) -> Vec<String> {
        let mut warnings: Vec<String> = {
            let core = lock(&self.core);
            let problem = core.store.problem().map(store_warning);
            let pins = core.pins.clone();
            let standing = core.warnings.iter().cloned();
            problem.into_iter().chain(pins).chain(standing).collect()
        };
        let capacity = u64::from(self.settings.flow_capacity);
        if census.live >= capacity / 10 * 9 {
            warnings.push(format!(
                "the flow table holds {} flows of {capacity}: new ones will soon find no room; raise flow_capacity in shifter.toml and restart the agent, which takes the flows along",
                census.live
            ));
        }
        if let Some(problem) = &lock(&self.filter).problem {
            warnings.push(format!(
                "the packet filter is not known whole ({problem}): DNAT is taken to stand in front of every VIP that the live pool does not hold, and no flow is released because its socket is gone"
            ));
        }
        let shed = census.evicted.values().sum();
        if let Some(lately) = lock(&self.shed).note(shed, Instant::now()) {
            warnings.push(shed::warning(lately, shed));
        }
        warnings.extend(self.datapath.warnings());
        warnings.extend(self.facts.warnings());
        warnings
    }

    pub(super) fn do_info(&self) -> Result<InfoView, ControlError> {
        let census = self.census();
        let capacity = u64::from(self.settings.flow_capacity);
        let verdicts = self.datapath.verdicts()?;
        let now_ns = self.clock.monotonic_ns();
        Ok(InfoView {
            tag: self.datapath.tag(),
            uptime_s: self.started.elapsed().as_secs_f64(),
            hooks: self.datapath.hooks(),
            limits: self.datapath.limits(),
            census: (*census).clone(),
            flow_capacity: capacity,
            table_memory_bytes: capacity * TABLE_BYTES_PER_FLOW,
            dropped_lately: lock(&self.dropped).lately(now_ns, &verdicts),
            verdicts,
            warnings: self.agent_warnings(&census),
            state_dir: self.settings.state_dir.display().to_string(),
        })
    }

    pub(super) fn do_first_flow(
        &self,
        name: &str,
        generation: u32,
    ) -> Result<Option<(u32, u64)>, ControlError> {
        let entry = find(&lock(&self.core).services, name)?.clone();
        Ok(self
            .datapath
            .first_flow(entry.id)
            .filter(|(first, _)| *first >= generation && *first > 0)
            .map(|(first, at_ns)| {
                let since = entry.published_ns(generation).or(entry.published_ns(first));
                (first, since.map_or(0, |since| at_ns.saturating_sub(since)))
            }))
    }
}

fn store_warning(problem: &str) -> String {
    format!("the store cannot be written, so writes other than rollbacks are refused: {problem}")
}

/// A backend's address may be in use with both protocols: one filter for each.
fn flow_filters(core: &Core, query: &FlowQuery) -> Result<Vec<FlowFilter>, ControlError> {
    let entry = query
        .service
        .as_deref()
        .map(|name| find(&core.services, name))
        .transpose()?;
    let filter = FlowFilter {
        service: entry.map(|e| e.id),
        pool: query.pool,
        backend: None,
        client: query.client,
        client_port: None,
        open_only: query.open_only,
        limit: match query.limit {
            0 => DEFAULT_FLOWS,
            limit => limit,
        },
    };
    let Some(addr) = query.backend else {
        return Ok(vec![filter]);
    };
    let filters: Vec<FlowFilter> = [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .filter_map(|protocol| core.backends.id(addr, protocol))
        .map(|id| FlowFilter {
            backend: Some(id),
            ..filter.clone()
        })
        .collect();
    if filters.is_empty() {
        return Err(ControlError::Invalid(format!(
            "no service has the backend {addr}: `shifter get backends` lists them"
        )));
    }
    Ok(filters)
}

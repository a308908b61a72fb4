//! What health checks say comes into force: a backend that is down leaves its
//! rings. No write of desired state: the etag stays, and a rollback never waits.

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use tokio::sync::watch;

use super::{
    apply::slots,
    controller::ControlError,
    entry::{Entry, is_of},
    plan::rings_of,
    reconciler::{Core, Reconciler, lock},
    standing::Standing,
};
use crate::{
    datapath::{BackendId, Datapath, DatapathError, ServiceImage, plural},
    health::{
        Checked, CheckedService, Look, Watched,
        offer::{PoolHealth, healthy, offer, ready_count},
    },
    model::{BackendState, PoolName, ServiceSpec, cohort::Prefix},
};

/// Backends named one by one in a line of the log.
const NAMED: usize = 5;

impl Watched for Reconciler {
    fn look(&self, since: u64) -> Look {
        // Read before: what comes in between is looked at again.
        let version = *self.events.version().borrow();
        let names: Option<BTreeSet<String>> = self
            .events
            .since(since)
            .map(|events| events.into_iter().map(|event| event.service).collect());
        let mut look = Look {
            version,
            is_whole: names.is_none(),
            ..Look::default()
        };
        {
            let core = lock(&self.core);
            match names {
                None => look.services = core.services.values().filter_map(checked).collect(),
                Some(names) => {
                    for name in names {
                        match core.services.get(&name).and_then(checked) {
                            Some(checked) => look.services.push(checked),
                            None => look.without.push(name),
                        }
                    }
                }
            }
        }
        lock(&self.health).keep(&look);
        look
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.events.version()
    }

    fn note(&self, checked: &Checked) {
        let (unix_ms, boot_ns) = (self.clock.unix_ms(), self.clock.boot_ns());
        lock(&self.health).note(checked, unix_ms, boot_ns);
    }

    fn settle(&self, service: &str, down: &BTreeSet<SocketAddr>) -> bool {
        // Rings are filled without the lock: a rollback may be waiting for it.
        let Some(snapshot) = lock(&self.core).services.get(service).cloned() else {
            return true;
        };
        let Some(next) = Next::of(&snapshot, down) else {
            return true;
        };
        let mut core = lock(&self.core);
        // A trip holds for its generation alone: a new one would arm it anew.
        self.record_passed_dead_man(&mut core, service);
        let Some(entry) = core.services.get(service) else {
            return true;
        };
        if entry.id != snapshot.id || !same_rings(&entry.spec, &snapshot.spec) {
            // An apply came in between: the next turn sees what it has made.
            return false;
        }
        if self.holds_by_trip(entry) {
            return false;
        }
        match self.bring_down(&mut core, service, next) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(service, %error, "bringing the health of backends into force failed: it is tried again");
                false
            }
        }
    }
}

fn checked(entry: &Entry) -> Option<CheckedService> {
    let spec = &entry.spec;
    let backends = spec.blue_pool.iter().chain(&spec.green_pool);
    let checked = backends.filter(|backend| backend.state != BackendState::Maint);
    let green = spec.green_pool.iter().map(|backend| backend.addr);
    Some(CheckedService {
        service: spec.name.clone(),
        spec: spec.health.clone()?,
        backends: checked.map(|backend| backend.addr).collect(),
        green: green.collect(),
        down: entry.down.clone(),
    })
}

/// Whether two specs make the same rings, health apart.
fn same_rings(a: &ServiceSpec, b: &ServiceSpec) -> bool {
    a.seed == b.seed
        && a.blue_pool == b.blue_pool
        && a.green_pool == b.green_pool
        && a.health == b.health
}

/// What a service becomes.
struct Next {
    down: BTreeSet<SocketAddr>,
    out: BTreeSet<SocketAddr>,
    /// Set where they change.
    rings: Option<Arc<[Vec<BackendId>; 2]>>,
}

impl Next {
    /// `None`: nothing changes.
    fn of(entry: &Entry, down: &BTreeSet<SocketAddr>) -> Option<Self> {
        let spec = &entry.spec;
        spec.health.as_ref()?;
        let down = standing_down(spec, down);
        if down == entry.down {
            return None;
        }
        let out = offer(spec, &down).out;
        let rings = rings_of(spec, &entry.pools, &out);
        let rings = (rings != *entry.rings).then(|| Arc::new(rings));
        Some(Self { down, out, rings })
    }
}

/// Those that the service still has and that are checked.
pub(super) fn standing_down(
    spec: &ServiceSpec,
    down: &BTreeSet<SocketAddr>,
) -> BTreeSet<SocketAddr> {
    if spec.health.is_none() || down.is_empty() {
        return BTreeSet::new();
    }
    let backends = spec.blue_pool.iter().chain(&spec.green_pool);
    backends
        .filter(|backend| backend.state != BackendState::Maint)
        .map(|backend| backend.addr)
        .filter(|addr| down.contains(addr))
        .collect()
}

impl Reconciler {
    fn bring_down(&self, core: &mut Core, name: &str, next: Next) -> Result<(), DatapathError> {
        let Some(before) = core.services.get(name).cloned() else {
            return Ok(());
        };
        let mut entry = before.clone();
        let Next { down, out, rings } = next;
        (entry.down, entry.out) = (down, out);
        let with_rings = rings.is_some();
        if let Some(rings) = rings {
            entry.rings = rings;
        }
        // A backend that comes back is open before a ring names it, one that goes
        // is closed after. Killed in between, a start finds it by the ring.
        self.name_backends(core, &entry);
        let opened = before.out.difference(&entry.out).copied().collect();
        let result = self.sync_backends(core, &entry, &opened).and_then(|()| {
            if with_rings {
                self.publish(&mut core.generation, &mut entry, true)?;
                entry.republished = true;
            }
            Ok(())
        });
        if let Err(error) = result {
            self.name_backends(core, &before);
            self.sync_backends(core, &before, &opened).ok();
            return Err(error);
        }
        core.ring_slots = core.ring_slots + slots(&entry) - slots(&before);
        let closed = entry.out.difference(&before.out).copied().collect();
        self.tell(&before, &entry);
        let synced = self.sync_backends(core, &entry, &closed);
        core.services.insert(name.to_owned(), entry);
        self.events.push(name, false);
        if let Err(error) = synced {
            // The rings are what counts; the record is written with the next change.
            tracing::warn!(service = name, %error, "marking backends as down failed");
        }
        Ok(())
    }

    fn sync_backends(
        &self,
        core: &mut Core,
        entry: &Entry,
        addrs: &BTreeSet<SocketAddr>,
    ) -> Result<(), DatapathError> {
        for addr in addrs {
            if let Some(id) = core.backends.id(*addr, entry.spec.vip.protocol) {
                core.backends.sync(id, &*self.datapath)?;
            }
        }
        Ok(())
    }

    /// The line of the log for a change.
    fn tell(&self, before: &Entry, after: &Entry) {
        let service = &after.spec.name;
        let generation = after.generation;
        let name = |addrs: Vec<SocketAddr>| {
            let board = lock(&self.health);
            let texts: Vec<String> = addrs
                .iter()
                .take(NAMED)
                .map(|addr| match board.get(service, *addr) {
                    Some(Standing { reason, .. }) if !reason.is_empty() => {
                        format!("{addr} ({reason})")
                    }
                    _ => addr.to_string(),
                })
                .collect();
            let rest = addrs.len() - texts.len();
            let more = if rest > 0 {
                format!(" and {rest} more")
            } else {
                String::new()
            };
            format!("{}{more}", texts.join(", "))
        };
        let gone: Vec<SocketAddr> = after.down.difference(&before.down).copied().collect();
        let back: Vec<SocketAddr> = before.down.difference(&after.down).copied().collect();
        if !gone.is_empty() {
            let text = name(gone);
            tracing::warn!(service, generation, "down: {text}");
            self.tell_event("health", "down", service, text);
        }
        if !back.is_empty() {
            let text = name(back);
            tracing::info!(service, generation, "up again: {text}");
            self.tell_event("health", "up", service, text);
        }
        let (was, is) = (pools(before), pools(after));
        for pool in [PoolName::Blue, PoolName::Green] {
            if was[pool.index()] != is[pool.index()] {
                match pool_warning(after, pool) {
                    Some(text) => {
                        tracing::warn!(service, generation, "{text}");
                        self.tell_event("health", "pool down", service, text);
                    }
                    None => {
                        let text = format!("{pool} has backends that are up");
                        tracing::info!(service, generation, "{text}");
                        self.tell_event("health", "pool up", service, text);
                    }
                }
            }
        }
    }

    /// Refuses to give a pool more traffic that too few of its backends are up for.
    /// Weights other than those of a rollback go through here.
    pub(super) fn check_healthy(
        &self,
        spec: &ServiceSpec,
        down: &BTreeSet<SocketAddr>,
        pool: PoolName,
        share: &str,
    ) -> Result<(), ControlError> {
        self.check_up(spec, down, pool, &format!("{share} of new flows"))
    }

    /// The same for clients that cohorts give a pool which it did not have before.
    pub(super) fn check_cohorts_healthy(
        &self,
        before: Option<&ServiceSpec>,
        after: &ServiceSpec,
        down: &BTreeSet<SocketAddr>,
    ) -> Result<(), ControlError> {
        if after.health.is_none() || after.active_cohorts().is_empty() {
            return Ok(());
        }
        for pool in [PoolName::Blue, PoolName::Green] {
            let mut cohorts = after.active_cohorts().iter();
            let Some(first) = cohorts.find(|cohort| cohort.pool_when(after.live) == pool) else {
                continue;
            };
            // What the other pool gives away falls to this one, as far as it holds it.
            let gains = before.is_none_or(|before| {
                let (had, has) = (forced(before, pool), forced(after, pool));
                let (other_had, other_has) =
                    (forced(before, pool.other()), forced(after, pool.other()));
                !has.is_subset(&had) || !other_had.is_subset(&other_has)
            });
            if gains {
                let clients = format!("the clients of cohort {:?}", first.name);
                self.check_up(after, down, pool, &clients)?;
            }
        }
        Ok(())
    }

    fn check_up(
        &self,
        spec: &ServiceSpec,
        down: &BTreeSet<SocketAddr>,
        pool: PoolName,
        gain: &str,
    ) -> Result<(), ControlError> {
        let Some(health) = &spec.health else {
            return Ok(());
        };
        let min = health.min_healthy as usize;
        let up = healthy(spec, pool, down);
        if up >= min {
            return Ok(());
        }
        let name = &spec.name;
        let mut why = String::new();
        if let Some(first) = spec.pool(pool).iter().find(|b| down.contains(&b.addr)) {
            let board = lock(&self.health);
            let reason = board.get(name, first.addr).map(|s| s.reason.as_str());
            let reason = reason.filter(|reason| !reason.is_empty());
            why = format!(
                " ({} is down: {})",
                first.addr,
                reason.unwrap_or("its checks failed")
            );
        }
        Err(ControlError::Precondition(format!(
            "service {name:?}: {pool} would get {gain} but has {} of {} up{why}, and health.min_healthy is {min}: wait until they are up, or write a lower min_healthy",
            up,
            plural(spec.pool(pool).len() as u64, "backend"),
        )))
    }
}

/// Prefixes whose clients cohorts in force give a pool.
fn forced(spec: &ServiceSpec, pool: PoolName) -> HashSet<Prefix> {
    let cohorts = spec.active_cohorts().iter();
    let cohorts = cohorts.filter(|cohort| cohort.pool_when(spec.live) == pool);
    cohorts
        .flat_map(|cohort| cohort.prefixes.iter().copied())
        .collect()
}

/// The health of blue and green.
pub(super) fn pools(entry: &Entry) -> [PoolHealth; 2] {
    offer(&entry.spec, &entry.down).pools
}

/// A pool that has lost all its backends.
pub(super) fn pool_warning(entry: &Entry, pool: PoolName) -> Option<String> {
    let pools = pools(entry);
    let [share, count] = [share_of(entry, pool), {
        let count = ready_count(&entry.spec, pool) as u64;
        plural(count, "backend")
    }];
    let role = if pool == entry.spec.live {
        "the live pool "
    } else {
        ""
    };
    let lost = format!("no backend of {role}{pool} is up ({count} down by their health checks)");
    let other = pool.other();
    match pools[pool.index()] {
        PoolHealth::Carries => None,
        PoolHealth::GivesAway => Some(format!(
            "{lost}: all of its new flows ({share}) go to {other} until one is up"
        )),
        PoolHealth::Holds if pools[other.index()] == PoolHealth::Holds => Some(format!(
            "{lost}, nor of {other}: new flows go to them all the same, as if they were not checked"
        )),
        PoolHealth::Holds => Some(format!(
            "{lost}: its new flows ({share}) go to them all the same (on_pool_down = \"hold\")"
        )),
    }
}

fn share_of(entry: &Entry, pool: PoolName) -> String {
    match pool {
        PoolName::Green => entry.spec.green,
        PoolName::Blue => entry.spec.green.complement(),
    }
    .to_string()
}

/// What was down when the last agent ended: where the kernel's rings are this
/// spec's, those that are ready and in none of them. A pool that holds shows nothing.
pub(super) fn down_before(
    datapath: &dyn Datapath,
    image: Option<&ServiceImage>,
    spec: &ServiceSpec,
    pools: &[Vec<BackendId>; 2],
) -> BTreeSet<SocketAddr> {
    let image = image.filter(|image| spec.health.is_some() && is_of(image, spec));
    let Some(rings) = image.and_then(|image| datapath.rings(image.id)) else {
        return BTreeSet::new();
    };
    let mut down = BTreeSet::new();
    for pool in [PoolName::Blue, PoolName::Green] {
        let named: HashSet<BackendId> = rings[pool.index()].iter().copied().collect();
        for (backend, id) in spec.pool(pool).iter().zip(&pools[pool.index()]) {
            if backend.state == BackendState::Ready && !named.contains(id) {
                down.insert(backend.addr);
            }
        }
    }
    down
}

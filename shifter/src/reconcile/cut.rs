//! Which flows are to be ended, for whom, and until when.
//!
//! A cut belongs to a rollback, to a drain or to a backend that is down, and
//! holds as long as that is so: where its pool or backend is offered new flows
//! again, it stops. It takes flows that were chosen before it was asked for, so
//! whoever comes anew is left alone. `cutter` ends them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use super::{
    controller::{ControlError, CutView, Receipt, WriteContext},
    entry::Entry,
    reconciler::{Core, Reconciler, lock},
};
use crate::{
    datapath::{BackendId, CutFilter, Placement, plural},
    model::{BackendState, CutRate, OnDown, PoolName, Protocol, cut::DOWN_RATE},
    store::{Audit, Commit, Cut, CutCause, CutKey},
};

/// What is known of the cuts under way, for those who ask.
#[derive(Default)]
pub struct CutFigures {
    /// Flows ended by this agent, by service and cause.
    pub ended: BTreeMap<(String, CutCause), u64>,
    /// Flows that a cut has still to end, at the last look.
    pub left: HashMap<CutKey, u64>,
}

/// A cut that can act now.
pub(super) struct Job {
    pub key: CutKey,
    pub rate: CutRate,
    pub filter: CutFilter,
    pub homes: Arc<Homes>,
    /// The generation and the time of what was asked for; `None`: backends are down.
    pub asked: Option<(u32, i64)>,
}

/// Where each backend is.
pub(super) type Homes = HashMap<BackendId, (SocketAddr, Placement)>;

impl Job {
    /// Whether it is what was asked for, and not what took its place since.
    pub fn is_of(&self, cut: &Cut) -> bool {
        self.key == cut.key && self.asked == Some((cut.before, cut.due_unix_ms))
    }
}

impl Reconciler {
    /// Reads what the agent before had still to end.
    pub(super) fn load_cuts(&self, core: &mut Core) {
        match core.store.cuts() {
            Ok(cuts) => core.cuts = cuts,
            Err(error) => core.warnings.push(format!(
                "which flows were to be ended is not known: {error}"
            )),
        }
    }

    /// After a rollback: the flows that the pool which is not live still carries.
    /// The weight is in force already, whatever comes of this.
    pub(super) fn cut_after_rollback(
        &self,
        core: &mut Core,
        receipt: &mut Receipt,
        rate: CutRate,
        context: &WriteContext,
    ) {
        let Some(entry) = core.services.get(&receipt.service) else {
            return;
        };
        let pool = entry.spec.live.other();
        if let Some(why) = self.offers(entry, pool) {
            receipt.warnings.push(format!("no flow is ended: {why}"));
            return;
        }
        let cut = Cut {
            key: CutKey {
                service: receipt.service.clone(),
                cause: CutCause::Rollback,
                pool: Some(pool),
                backend: None,
            },
            rate,
            before: receipt.generation,
            due_unix_ms: self.clock.unix_ms(),
            actor: context.actor.clone(),
            reason: context.reason.clone(),
            ended: 0,
        };
        receipt.warnings.extend(self.begin_cut(core, cut));
    }

    /// The same where a rollout under way asks for it, and something else than the
    /// rollout has rolled its service back.
    pub(super) fn cut_of_rollout(&self, core: &mut Core, name: &str, context: &WriteContext) {
        let rate = pace_of_rollout(core, name);
        let (Some(rate), Some(entry)) = (rate, core.services.get(name)) else {
            return;
        };
        let mut receipt = Receipt {
            service: name.to_owned(),
            generation: entry.generation,
            ..Receipt::default()
        };
        self.cut_after_rollback(core, &mut receipt, rate, context);
        for warning in receipt.warnings {
            tracing::warn!(service = name, "{warning}");
        }
    }

    /// Why a pool may still be given new flows.
    fn offers(&self, entry: &Entry, pool: PoolName) -> Option<String> {
        if entry.spec.live == pool {
            return Some(format!("{pool} is live"));
        }
        let live = entry.spec.live;
        if entry.rings[live.index()].is_empty() {
            return Some(format!(
                "{pool} has the new flows of {live}, which has no backend for them"
            ));
        }
        if entry.programmed_threshold(&*self.clock) != entry.spec.live.all().threshold() {
            return Some(format!("{pool} is given new flows"));
        }
        let by_cohorts = entry.cohorts_word(&*self.clock) == "on";
        by_cohorts.then(|| "cohorts are in force".to_owned())
    }

    /// Puts a cut in force; a warning where it is not kept.
    pub(super) fn begin_cut(&self, core: &mut Core, cut: Cut) -> Option<String> {
        let kept = core.store.keep_cut(&cut);
        tracing::info!(
            service = cut.key.service,
            cause = cut.key.cause.word(),
            what = what(&cut.key),
            rate = %cut.rate,
            actor = cut.actor,
            "flows are to be ended"
        );
        core.cuts.retain(|other| other.key != cut.key);
        let after = format!("{} at {}", what(&cut.key), cut.rate);
        self.record_cut(core, &cut, "cut", after);
        self.events.push(&cut.key.service, false);
        core.cuts.push(cut);
        kept.err().map(|error| {
            format!("not durable: the flows are ended, but an agent that starts anew does not go on with it ({error})")
        })
    }

    /// Ends the cuts of a drain that is taken back.
    pub(super) fn stop_drain_cuts(&self, core: &mut Core, name: &str) {
        self.drop_moot(core, Some(name));
    }

    /// Takes out cuts whose reason is gone.
    fn drop_moot(&self, core: &mut Core, only: Option<&str>) {
        let moot: Vec<(CutKey, String)> = core
            .cuts
            .iter()
            .filter(|cut| only.is_none_or(|name| name == cut.key.service))
            .filter_map(|cut| Some((cut.key.clone(), self.moot(core, &cut.key)?)))
            .collect();
        for (key, why) in moot {
            self.finish_cut(core, &key, &format!("stopped: {why}"));
        }
    }

    fn moot(&self, core: &Core, key: &CutKey) -> Option<String> {
        let Some(entry) = core.services.get(&key.service) else {
            return Some("the service is gone".to_owned());
        };
        match (key.cause, key.pool) {
            (CutCause::Rollback, Some(pool)) => self.offers(entry, pool),
            _ => drained(entry, key)
                .is_empty()
                .then(|| "nothing of it is drained any more".to_owned()),
        }
    }

    /// A cut is over.
    pub(super) fn finish_cut(&self, core: &mut Core, key: &CutKey, how: &str) {
        let Some(at) = core.cuts.iter().position(|cut| cut.key == *key) else {
            return;
        };
        let cut = core.cuts.remove(at);
        if let Err(error) = core.store.forget_cut(key) {
            tracing::warn!(service = key.service, %error, "an ended cut is still stored");
        }
        let after = format!(
            "{} of {} ended, {how}",
            plural(cut.ended, "flow"),
            what(key)
        );
        tracing::info!(service = key.service, cause = key.cause.word(), "{after}");
        self.record_cut(core, &cut, "cut end", after);
        lock(&self.cut_figures).left.remove(key);
        self.events.push(&key.service, false);
    }

    /// The audit says who asked, and what came of it.
    fn record_cut(&self, core: &mut Core, cut: &Cut, action: &str, after: String) {
        let at_unix_ms = self.clock.unix_ms();
        let record = Audit {
            at_unix_ms,
            actor: cut.actor.clone(),
            service: cut.key.service.clone(),
            action: action.to_owned(),
            reason: cut.reason.clone(),
            before: cut.key.cause.word().to_owned(),
            after,
            generation: core
                .services
                .get(&cut.key.service)
                .map_or(0, |entry| entry.generation),
            ..Audit::default()
        };
        let commit = Commit {
            generation: core.generation,
            at_unix_ms,
            audit: vec![record.clone()],
            ..Commit::default()
        };
        if core.store.commit(&commit).is_err() {
            core.unstored.push(record);
        }
    }

    /// What is to be done now; what has no reason any more is taken out.
    pub(super) fn cut_jobs(&self) -> Vec<Job> {
        let mut core = lock(&self.core);
        self.drop_moot(&mut core, None);
        let now_ms = self.clock.unix_ms();
        let mut homes = None;
        let due = core.cuts.iter().filter(|cut| cut.due_unix_ms <= now_ms);
        let asked = due.filter_map(|cut| {
            let entry = core.services.get(&cut.key.service)?;
            let backends = (cut.key.cause == CutCause::Drain)
                .then(|| ids(&core, entry, &drained(entry, &cut.key)));
            let filter = CutFilter {
                service: entry.id,
                pool: cut.key.pool,
                backends,
                before: Some(cut.before),
            };
            let asked = Some((cut.before, cut.due_unix_ms));
            Some((cut.key.clone(), cut.rate, filter, asked))
        });
        let down = core.services.values().filter_map(|entry| {
            let health = entry.spec.health.as_ref()?;
            if health.on_down == OnDown::Keep || entry.out.is_empty() {
                return None;
            }
            let ended = down_and_not_drained(entry);
            if ended.is_empty() {
                return None;
            }
            let filter = CutFilter {
                service: entry.id,
                pool: None,
                backends: Some(ids(&core, entry, &ended)),
                before: None,
            };
            let key = CutKey {
                service: entry.spec.name.clone(),
                cause: CutCause::Down,
                pool: None,
                backend: None,
            };
            Some((key, DOWN_RATE, filter, None))
        });
        let mut job = |(key, rate, filter, asked)| Job {
            key,
            rate,
            filter,
            homes: Arc::clone(homes.get_or_insert_with(|| Arc::new(homes_of(&core)))),
            asked,
        };
        asked.chain(down).map(&mut job).collect()
    }

    /// Cuts of a service, as they stand.
    pub(super) fn cut_views(&self, cuts: &[Cut]) -> Vec<CutView> {
        let figures = lock(&self.cut_figures);
        let now_ms = self.clock.unix_ms();
        let view = |cut: &Cut| CutView {
            cause: cut.key.cause.word(),
            pool: cut.key.pool,
            backend: cut.key.backend,
            rate: cut.rate,
            ended: cut.ended,
            left: figures.left.get(&cut.key).copied(),
            begins_in_s: (cut.due_unix_ms - now_ms).max(0) as f64 / 1e3,
            actor: cut.actor.clone(),
            reason: cut.reason.clone(),
        };
        cuts.iter().map(view).collect()
    }

    /// Flows of a service ended on request so far, by cause.
    pub(super) fn ended_flows(&self, name: &str) -> [(&'static str, u64); 3] {
        let figures = lock(&self.cut_figures);
        [CutCause::Rollback, CutCause::Drain, CutCause::Down].map(|cause| {
            let ended = figures.ended.get(&(name.to_owned(), cause));
            (cause.word(), ended.copied().unwrap_or(0))
        })
    }
}

/// The pace of a rollout under way.
pub(super) fn pace_of_rollout(core: &Core, name: &str) -> Option<CutRate> {
    let rollout = core.rollouts.get(name).filter(|r| !r.is_over())?;
    rollout.spec.cut
}

/// A deadline in the store.
pub(super) fn due_after(now_unix_ms: i64, seconds: f64) -> Result<i64, ControlError> {
    const MOST: f64 = 30.0 * 86_400.0;
    if !(0.0..=MOST).contains(&seconds) {
        return Err(ControlError::Invalid(format!(
            "a deadline of {seconds} seconds is out of range: write up to 30 days, as \"5m\""
        )));
    }
    Ok(now_unix_ms + (seconds * 1e3) as i64)
}

fn homes_of(core: &Core) -> Homes {
    let home = |id: BackendId| {
        let slot = core.backends.get(id)?;
        Some((id, (slot.addr, slot.placement)))
    };
    core.backends.ids().into_iter().filter_map(home).collect()
}

/// Backends that are out for their checks alone. One that drains may have closed its
/// listener and go on serving what it has.
fn down_and_not_drained(entry: &Entry) -> BTreeSet<SocketAddr> {
    [PoolName::Blue, PoolName::Green]
        .into_iter()
        .flat_map(|pool| entry.spec.pool(pool))
        .filter(|backend| backend.state == BackendState::Ready)
        .map(|backend| backend.addr)
        .filter(|addr| entry.out.contains(addr))
        .collect()
}

/// Those of a drain's backends that are offered no new flow now.
fn drained(entry: &Entry, key: &CutKey) -> BTreeSet<SocketAddr> {
    let pools = [PoolName::Blue, PoolName::Green].into_iter();
    pools
        .filter(|pool| key.pool.is_none_or(|wanted| wanted == *pool))
        .flat_map(|pool| entry.spec.pool(pool))
        .filter(|backend| backend.state != BackendState::Ready)
        .map(|backend| backend.addr)
        .filter(|addr| key.backend.is_none_or(|wanted| wanted == *addr))
        .collect()
}

fn ids(core: &Core, entry: &Entry, addrs: &BTreeSet<SocketAddr>) -> BTreeSet<BackendId> {
    let protocol: Protocol = entry.spec.vip.protocol;
    let id = |addr: &SocketAddr| core.backends.id(*addr, protocol);
    addrs.iter().filter_map(id).collect()
}

/// `green`, `green/10.0.0.11:8443` or `both pools`.
fn what(key: &CutKey) -> String {
    match (key.pool, key.backend) {
        (Some(pool), Some(backend)) => format!("{pool}/{backend}"),
        (Some(pool), None) => pool.to_string(),
        (None, Some(backend)) => backend.to_string(),
        (None, None) => "both pools".to_owned(),
    }
}

//! Carrying out the effects of a rollout. Each looks at what is there first, so that
//! one whose result a crash has lost is recognised and not done again.

use std::time::Duration;

use super::{ACTOR, Rollout};
use crate::{
    fault,
    model::{BackendState, PoolName, ServiceSpec, Weight},
    reconcile::{
        controller::{ControlError, Receipt, WriteContext},
        entry::{DeadMan, Entry, Split},
        reconciler::{Core, Reconciler, lock},
        write::{Durability, SplitWrite, find, find_mut, own_context},
    },
    rollout::{
        Event, preset,
        state::{Action, Effect},
    },
    store::CutCause,
};

/// What became of an effect within the core's lock.
pub(super) enum Carried {
    Event(Event, Option<Receipt>),
    /// It needs more than the core.
    Slow,
}

impl Reconciler {
    /// Carries out what needs the core alone: everything on weights.
    pub(super) fn carry_quick(&self, core: &mut Core, name: &str, effect: &Effect) -> Carried {
        fault::point("rollout_intent");
        let done = match &effect.action {
            Action::Weight { candidate } => self.carry_weight(core, name, effect, *candidate),
            Action::Promote => self.carry_promote(core, name, effect),
            Action::Keep => self.carry_keep(core, name, effect),
            Action::Rollback { undrain, drain } => {
                let done = self.carry_rollback(core, name, effect);
                if done.is_ok() {
                    self.cut_after_rollout(core, name, effect);
                }
                match done {
                    Ok(_) if !undrain.is_empty() || !drain.is_empty() => return Carried::Slow,
                    done => done,
                }
            }
            Action::Drain { .. } | Action::Undrain { .. } | Action::Hook { .. } => {
                return Carried::Slow;
            }
        };
        fault::point("rollout_effect");
        match done {
            Ok(receipt) => Carried::Event(Event::Done { id: effect.id }, receipt),
            Err(error) => {
                tracing::warn!(service = name, %error, "a step of a rollout failed");
                let (id, reason) = (effect.id, error.to_string());
                Carried::Event(Event::Failed { id, reason }, None)
            }
        }
    }

    fn carry_weight(
        &self,
        core: &mut Core,
        name: &str,
        effect: &Effect,
        candidate: Weight,
    ) -> Result<Option<Receipt>, ControlError> {
        let (pool, lease_ms) = guarded(core, name)?;
        let rollout = core.rollouts.get(name);
        let cohorts =
            rollout.and_then(|it| preset::cohorts_at(it.spec.strategy, &it.plan, it.state.step));
        let entry = find(&core.services, name)?;
        if entry.spec.live == pool {
            return Err(ControlError::Precondition(format!(
                "service {name:?}: {pool} is live already"
            )));
        }
        let green = match pool {
            PoolName::Green => candidate,
            PoolName::Blue => candidate.complement(),
        };
        // Cohorts that a rollback has suspended come in force again where they are
        // what the rollout is about.
        let cohorts_on = cohorts.unwrap_or(entry.spec.cohorts_on);
        let same = entry.spec.green.threshold() == green.threshold()
            && entry.spec.cohorts_on == cohorts_on;
        if same && entry.dead_man.is_some() == needs_lease(entry, green, cohorts_on) {
            return Ok(None);
        }
        // The way back is let through.
        if needs_lease(entry, green, cohorts_on) {
            self.check_frozen(core, name)?;
        }
        self.check_gain(entry, green)?;
        self.check_cohorts_on(entry, cohorts_on)?;
        let mut next = Split {
            green,
            dead_man: self.lease(entry, green, cohorts_on, lease_ms)?,
            ..entry.split()
        };
        next.cohorts_on = cohorts_on;
        let write = SplitWrite {
            next,
            action: "shift",
            durability: Durability::Required,
            warnings: Vec::new(),
        };
        let context = self.rollout_context(core, name, effect, format!("step: {candidate}"));
        let receipt = self.write_split(core, name, write, &context)?;
        self.note_renewed(core, name);
        Ok(Some(receipt))
    }

    fn carry_promote(
        &self,
        core: &mut Core,
        name: &str,
        effect: &Effect,
    ) -> Result<Option<Receipt>, ControlError> {
        self.check_frozen(core, name)?;
        let (pool, _) = guarded(core, name)?;
        if find(&core.services, name)?.spec.live == pool {
            return Ok(None);
        }
        let context = self.rollout_context(core, name, effect, "every step is done".into());
        self.promote_split(core, name, &context).map(Some)
    }

    fn carry_keep(
        &self,
        core: &mut Core,
        name: &str,
        effect: &Effect,
    ) -> Result<Option<Receipt>, ControlError> {
        let entry = find(&core.services, name)?;
        if entry.dead_man.is_none() {
            return Ok(None);
        }
        self.check_frozen(core, name)?;
        let write = SplitWrite {
            next: Split {
                dead_man: None,
                ..entry.split()
            },
            action: "confirm",
            durability: Durability::Required,
            warnings: Vec::new(),
        };
        let context = self.rollout_context(core, name, effect, "every step is done".into());
        self.write_split(core, name, write, &context).map(Some)
    }

    fn carry_rollback(
        &self,
        core: &mut Core,
        name: &str,
        effect: &Effect,
    ) -> Result<Option<Receipt>, ControlError> {
        let entry = find(&core.services, name)?;
        let rollout = core.rollouts.get(name);
        if rollout.is_some_and(|rollout| !rollout.plan.has_weight()) {
            return Ok(None);
        }
        let is_good = !needs_lease(entry, entry.spec.green, entry.spec.cohorts_on);
        let promoted = rollout.is_some_and(|rollout| rollout.plan.candidate == entry.spec.live);
        if is_good && !promoted && entry.dead_man.is_none() {
            return Ok(None);
        }
        // To the pool that was live when the rollout began.
        let live = rollout.map_or(entry.spec.live, |rollout| rollout.plan.candidate.other());
        let write = SplitWrite {
            next: entry.way_back(live),
            action: "rollback",
            durability: Durability::Wanted,
            warnings: Vec::new(),
        };
        let reason = match rollout.map(|rollout| &rollout.state.phase) {
            Some(crate::rollout::Phase::RollingBack { reason }) => reason.clone(),
            _ => String::new(),
        };
        let context = self.rollout_context(core, name, effect, reason);
        self.write_split(core, name, write, &context).map(Some)
    }

    /// What a rollout says of the flows that the candidate still carries. The weight
    /// went first; one that the agent before began already goes on.
    fn cut_after_rollout(&self, core: &mut Core, name: &str, effect: &Effect) {
        let Some(rate) = core.rollouts.get(name).and_then(|r| r.spec.cut) else {
            return;
        };
        let is_under_way = core
            .cuts
            .iter()
            .any(|cut| cut.key.service == name && cut.key.cause == CutCause::Rollback);
        let Some(entry) = core.services.get(name).filter(|_| !is_under_way) else {
            return;
        };
        let mut receipt = Receipt {
            service: name.to_owned(),
            generation: entry.generation,
            ..Receipt::default()
        };
        let reason = format!("cut = {:?} of the rollout", rate.to_string());
        let context = self.rollout_context(core, name, effect, reason);
        self.cut_after_rollback(core, &mut receipt, rate, &context);
        for warning in receipt.warnings {
            tracing::warn!(service = name, "{warning}");
        }
    }

    /// What the rollout writes as.
    fn rollout_context(
        &self,
        core: &Core,
        name: &str,
        effect: &Effect,
        reason: String,
    ) -> WriteContext {
        let id = core.rollouts.get(name).map_or(0, |rollout| rollout.id);
        WriteContext {
            request_id: format!("rollout-{id}-{}", effect.id),
            ..own_context(ACTOR, reason)
        }
    }

    fn lease(
        &self,
        entry: &Entry,
        green: Weight,
        cohorts_on: bool,
        lease_ms: u64,
    ) -> Result<Option<DeadMan>, ControlError> {
        let live = entry.spec.live;
        match needs_lease(entry, green, cohorts_on) {
            true => self
                .dead_man(live, Duration::from_millis(lease_ms))
                .map(Some),
            false => Ok(None),
        }
    }

    fn note_renewed(&self, core: &mut Core, name: &str) {
        let now_ns = self.clock.boot_ns();
        if let Some(rollout) = core.rollouts.get_mut(name) {
            rollout.renewed_ns = now_ns;
        }
    }

    /// Moves the deadline of the lease on, under the same generation: nothing else
    /// changes, and nobody has to be told.
    pub(super) fn renew_lease(&self, core: &mut Core, name: &str) -> Result<(), ControlError> {
        let now_ns = self.clock.boot_ns();
        // One on its way back wants the lease to pass where the kernel refuses it.
        let goes_on = |r: &&Rollout| !r.is_over() && !r.is_rolling_back();
        let Some(rollout) = core.rollouts.get(name).filter(goes_on) else {
            return Ok(());
        };
        let third_ns = rollout.plan.lease_ms * 1_000_000 / 3;
        let is_due = now_ns.saturating_sub(rollout.renewed_ns) >= third_ns;
        let lease_ms = rollout.plan.lease_ms;
        // Before its first step and after its last nothing is guarded.
        let guards = rollout.plan.has_weight() && rollout.state.has_written();
        if !is_due || !guards {
            return Ok(());
        }
        let entry = find_mut(&mut core.services, name)?;
        if let Some(lease) = self.lease(entry, entry.spec.green, entry.spec.cohorts_on, lease_ms)? {
            let before = entry.dead_man.replace(lease);
            if let Err(error) = self.datapath.publish(&entry.image(), None) {
                entry.dead_man = before;
                return Err(error.into());
            }
            // The store needs it for a reboot only; it is stored with the next
            // round of the loop, and later where the store fails.
            entry.dirty = true;
        }
        self.note_renewed(core, name);
        Ok(())
    }

    /// Carries out what needs the host as well, without the core's lock.
    pub(super) fn carry_slow(&self, name: &str, id: u64) -> Option<Event> {
        // One at a time: no older change of a backend overtakes a newer one.
        let _turn = lock(&self.carrying);
        let effect = {
            let core = lock(&self.core);
            let pending = core.rollouts.get(name)?.state.pending.clone()?;
            (pending.id == id).then_some(pending)?
        };
        let states: Vec<_> = match &effect.action {
            Action::Drain { backend } => vec![(*backend, BackendState::Drain)],
            Action::Undrain { backend } => vec![(*backend, BackendState::Ready)],
            Action::Rollback { undrain, drain } => {
                let ready = undrain.iter().map(|b| (*b, BackendState::Ready));
                ready
                    .chain(drain.iter().map(|b| (*b, BackendState::Drain)))
                    .collect()
            }
            _ => return None,
        };
        let is_rollback = matches!(effect.action, Action::Rollback { .. });
        let verb = match effect.action {
            Action::Drain { .. } => "drain",
            _ => "undrain",
        };
        let context = {
            let core = lock(&self.core);
            self.rollout_context(&core, name, &effect, String::new())
        };
        let set = |spec: &mut ServiceSpec| {
            let backends = spec.blue_pool.iter_mut().chain(&mut spec.green_pool);
            for backend in backends {
                if let Some((_, state)) = states.iter().find(|(addr, _)| *addr == backend.addr) {
                    backend.state = *state;
                }
            }
        };
        let done = self.change_backends(name, verb, set, is_rollback, &context);
        fault::point("rollout_effect");
        Some(match done {
            Ok(_) => Event::Done { id },
            Err(error) => {
                tracing::warn!(service = name, %error, "a step of a rollout failed");
                let reason = error.to_string();
                Event::Failed { id, reason }
            }
        })
    }
}

/// Whether the candidate gets anything, by weight or by a cohort.
fn needs_lease(entry: &Entry, green: Weight, cohorts_on: bool) -> bool {
    let has_cohorts = cohorts_on && !entry.spec.cohorts.is_empty();
    has_cohorts || green.threshold() != entry.spec.live.all().threshold()
}

/// Which pool the rollout of a service may give traffic, and its lease in ms.
fn guarded(core: &Core, name: &str) -> Result<(PoolName, u64), ControlError> {
    let rollout = core.rollouts.get(name);
    let rollout = rollout
        .ok_or_else(|| ControlError::Internal(format!("service {name:?} has no rollout")))?;
    Ok((rollout.plan.candidate, rollout.plan.lease_ms))
}

//! Rollouts of services: they live in the core, beside the service that they move.

mod aftermath;
mod carry;
mod command;
mod drive;
mod end;
mod gates;
mod measure;
mod sample;
mod tell;
mod tick;
mod view;

use std::collections::{BTreeMap, VecDeque};

pub use gates::{Ask, HookRun, Work};
pub use tell::{News, Tell};
pub use view::{GateView, NoteView, RolloutView};

use super::{
    controller::ControlError,
    entry::{Entry, Split},
    reconciler::{Core, Reconciler},
};
use crate::{
    rollout::{Action, Event, Happened, Phase, Plan, RolloutSpec, State, Step, preset, spec},
    store::{AuditQuery, RolloutRow},
};
use aftermath::Aftermath;
use gates::{Asked, Seen};
use sample::Sampler;
use tell::Told;

/// Whom the audit names where a rollout has written.
pub const ACTOR: &str = "rollout";
/// What happened and is not stored yet: the oldest beyond this are dropped.
const MOST_LATE: usize = 1_000;

/// A rollout that is not over, or whose end is still being measured.
pub struct Rollout {
    pub id: u64,
    pub spec: RolloutSpec,
    pub plan: Plan,
    pub state: State,
    /// As the store has it.
    stored: String,
    pub actor: String,
    pub reason: String,
    pub began_unix_ms: i64,
    /// Wall clock less that of the boot when it was begun or loaded: what is set
    /// afterwards changes no step.
    offset_ms: i64,
    sampler: Sampler,
    asked: Asked,
    /// What webhooks are still to be told.
    told: Told,
    /// What its gates have seen in this step.
    seen: Seen,
    seen_step: usize,
    /// When its lease was last renewed, CLOCK_BOOTTIME in ns.
    renewed_ns: u64,
    /// What is measured after a rollback.
    aftermath: Option<Aftermath>,
    /// An effect that needs more than the core: it is carried out without its lock.
    slow: Option<u64>,
    /// What a crash had cut off was looked at.
    resumed: bool,
    /// Results of effects that the store could not take: they are taken in first.
    owed: VecDeque<Event>,
    /// What happened and is not stored yet: on the way back, or while the store failed.
    pub(super) late: Vec<Happened>,
    /// Cannot be stored just now, for this reason.
    unstored: Option<String>,
}

impl Rollout {
    pub(super) fn is_over(&self) -> bool {
        self.state.outcome().is_some()
    }

    fn is_rolling_back(&self) -> bool {
        matches!(self.state.phase, Phase::RollingBack { .. })
    }

    /// Whether it waits for flows to end.
    fn awaits_flows(&self) -> bool {
        let step = self.plan.steps.get(self.state.step);
        matches!(
            step,
            Some(Step::AwaitPool { .. } | Step::AwaitDrained { .. })
        )
    }

    /// Whether its step takes no time.
    fn is_at_quick_step(&self) -> bool {
        let step = self.plan.steps.get(self.state.step);
        !self.is_over()
            && matches!(
                step,
                Some(
                    Step::Weight { .. } | Step::Drain { .. } | Step::Undrain { .. } | Step::Promote
                )
            )
    }

    fn now_ms(&self, boot_ns: u64) -> i64 {
        (boot_ns / 1_000_000) as i64 + self.offset_ms
    }
}

/// Rollouts by the name of their service.
pub type Rollouts = BTreeMap<String, Rollout>;

impl Reconciler {
    /// Takes up what the store says is under way. Nothing is carried out yet.
    pub(super) fn load_rollouts(&self, core: &mut Core) {
        let rows = match core.store.open_rollouts() {
            Ok(rows) => rows,
            Err(error) => {
                core.warnings
                    .push(format!("rollouts are not known: {error}"));
                return;
            }
        };
        for row in rows {
            let (id, service) = (row.id, row.service.clone());
            match self.loaded(core, row) {
                Ok(rollout) => {
                    tracing::info!(service, rollout = id, "goes on with a rollout");
                    core.rollouts.insert(service, rollout);
                }
                Err(why) => {
                    core.warnings.push(format!(
                        "rollout {id} of service {service:?} cannot go on ({why}): its lease ends it; start another one"
                    ));
                    // It would be in the way of the next one, and stay for ever.
                    if let Err(error) = core.store.lose_rollout(id, self.clock.unix_ms()) {
                        tracing::warn!(service, rollout = id, %error, "it stays open in the store");
                    }
                }
            }
        }
    }

    fn loaded(&self, core: &Core, row: RolloutRow) -> Result<Rollout, String> {
        let wrong =
            |what: &str, why: String| format!("its {what} in the store cannot be read: {why}");
        let plan: Plan =
            serde_json::from_str(&row.plan).map_err(|e| wrong("plan", e.to_string()))?;
        let state: State =
            serde_json::from_str(&row.state).map_err(|e| wrong("state", e.to_string()))?;
        if state.version != crate::rollout::state::VERSION {
            return Err(format!(
                "its state has format {}, this agent knows {}",
                state.version,
                crate::rollout::state::VERSION
            ));
        }
        if !core.services.contains_key(&row.service) {
            return Err("there is no such service any more".into());
        }
        let spec = spec::from_json(&row.spec).map_err(|e| wrong("description", e.to_string()))?;
        let mut rollout = self.assembled(row.id, spec, plan, state);
        rollout.actor = row.actor;
        rollout.reason = row.reason;
        rollout.began_unix_ms = row.began_unix_ms;
        rollout.stored = row.state;
        let step = rollout.state.step;
        if let Ok(windows) = core.store.rollout_windows_of(row.id, step) {
            rollout.sampler.resume(step);
            for window in &windows {
                let gates = &rollout.spec.gates;
                rollout.seen.add(gates, window, rollout.plan.candidate);
            }
            rollout.seen_step = step;
        }
        if !rollout.is_rolling_back() {
            let back = taken_back_since(core, &row.service, row.audit_mark);
            rollout.sampler.taken_back =
                back.or_else(|| not_in_force(core, &row.service, &rollout));
        }
        Ok(rollout)
    }

    fn assembled(&self, id: u64, spec: RolloutSpec, plan: Plan, state: State) -> Rollout {
        Rollout {
            id,
            asked: Asked::default(),
            told: Told::default(),
            seen: Seen::new(&spec.gates),
            seen_step: state.step,
            sampler: Sampler::default(),
            offset_ms: self.clock.unix_ms() - (self.clock.boot_ns() / 1_000_000) as i64,
            actor: String::new(),
            reason: String::new(),
            stored: String::new(),
            began_unix_ms: self.clock.unix_ms(),
            renewed_ns: 0,
            aftermath: None,
            slow: None,
            resumed: false,
            owed: VecDeque::new(),
            late: Vec::new(),
            unstored: None,
            spec,
            plan,
            state,
        }
    }

    /// What a rollback of a service means while a rollout moves its weight.
    pub(super) fn rollout_way_back(core: &Core, entry: &Entry) -> Option<Split> {
        let rollout = core.rollouts.get(&entry.spec.name)?;
        let moves = !rollout.is_over() && rollout.plan.has_weight();
        moves.then(|| entry.way_back(rollout.plan.candidate.other()))
    }

    /// Refuses a write by anyone but the rollout itself while one runs.
    pub(super) fn check_no_rollout(
        core: &Core,
        name: &str,
        actor: &str,
    ) -> Result<(), ControlError> {
        match core.rollouts.get(name) {
            Some(rollout) if actor != ACTOR && !rollout.is_over() => {
                Err(ControlError::Precondition(format!(
                    "service {name:?}: rollout {} runs ({}): abort it with `shifter rollout abort {name}`, or steer it with `shifter rollout advance|pause|promote {name}`; `shifter rollback {name}` ends it at once",
                    rollout.id,
                    rollout.state.word()
                )))
            }
            _ => Ok(()),
        }
    }
}

/// The kernel had the live pool's way back already, and a crash kept it from the audit.
fn not_in_force(core: &Core, service: &str, rollout: &Rollout) -> Option<String> {
    let entry = core.services.get(service)?;
    let state = &rollout.state;
    if rollout.is_over() || entry.spec.live == rollout.plan.candidate {
        return None;
    }
    let is_good = entry.spec.green.threshold() == entry.spec.live.all().threshold();
    let cohorts = preset::cohorts_at(rollout.spec.strategy, &rollout.plan, state.step);
    let by_cohorts = cohorts == Some(true) && state.wrote_weight;
    let cohorts_gone = !entry.spec.cohorts.is_empty() && !entry.spec.cohorts_on;
    // Its own write, whose result was not stored.
    let is_pending = state.pending.as_ref().is_some_and(|effect| {
        matches!(effect.action, Action::Weight { candidate } if candidate.threshold() == 0)
    });
    let is_missed = state.weight.threshold() != 0 || by_cohorts && cohorts_gone;
    (is_good && is_missed && !is_pending)
        .then(|| "the live pool has everything again since the agent ended".to_owned())
}

/// Whether somebody else has given the live pool everything since the rollout was
/// last stored, and in which words.
fn taken_back_since(core: &Core, service: &str, mark: u64) -> Option<String> {
    const LOOKED_AT: u32 = 1_000;
    let query = AuditQuery {
        service: service.to_owned(),
        before: 0,
        limit: LOOKED_AT,
    };
    let records = core.store.audit(&query).ok()?;
    let since = records
        .into_iter()
        .take_while(|record| record.number > mark);
    // Its own, too: the agent may have died before it could store that it does so.
    let mut back = since.filter(|record| record.audit.action == "rollback");
    back.next().map(|record| {
        let audit = record.audit;
        format!(
            "{} gave the live pool everything again: {}",
            audit.actor, audit.reason
        )
    })
}

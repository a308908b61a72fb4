//! Rollouts as they are shown.

use super::Rollout;
use crate::{
    reconcile::{
        controller::ControlError,
        reconciler::{Core, Reconciler, lock},
    },
    rollout::{Plan, State, spec, state::Said},
    store::{ROLLOUT_LOST, RolloutRow},
};

/// Notes that are shown with a rollout.
const NOTES: u32 = 500;

/// One gate as it stands.
#[derive(Clone, PartialEq, Debug)]
pub struct GateView {
    pub name: String,
    /// "pass", "fail", "inconclusive", "no data", "error", or "" before its first.
    pub verdict: &'static str,
    pub reason: String,
}

/// Something that happened.
pub type NoteView = crate::rollout::Happened;

/// A rollout as it stands.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct RolloutView {
    pub id: u64,
    pub service: String,
    pub strategy: String,
    /// As it was described, as JSON.
    pub spec: String,
    /// "running", "holding", "paused", "rolling back", "promoted", "completed",
    /// "rolled back" or "lost".
    pub state: String,
    /// From 0.
    pub step: usize,
    pub steps: Vec<String>,
    /// Share of the candidate.
    pub weight: String,
    pub candidate: String,
    /// Why it does not go on, or how it ended.
    pub why: String,
    /// Spent in this step, and what it takes if all goes well; in s.
    pub spent_s: f64,
    pub expected_s: f64,
    pub began_unix_ms: i64,
    pub ended_unix_ms: Option<i64>,
    pub lease_s: f64,
    pub gates: Vec<GateView>,
    pub notes: Vec<NoteView>,
    pub actor: String,
    pub reason: String,
    pub is_over: bool,
    pub has_report: bool,
}

fn gate_views(plan: &Plan, state: &State) -> Vec<GateView> {
    let view = |(index, policy): (usize, &crate::rollout::GatePolicy)| {
        let said: Option<&Said> = state.judged.get(index).and_then(Option::as_ref);
        GateView {
            name: policy.name.clone(),
            verdict: said.map_or("", |said| said.verdict.word()),
            reason: said.map_or(String::new(), |said| said.reason.clone()),
        }
    };
    plan.gates.iter().enumerate().map(view).collect()
}

fn why(state: &State) -> String {
    use crate::rollout::Phase;
    match &state.phase {
        Phase::RollingBack { reason } => match &state.failed {
            Some(failed) => format!("{reason}; not yet: {failed}"),
            None => reason.clone(),
        },
        Phase::Over { outcome } => outcome.to_string(),
        Phase::Running | Phase::Paused => state.holding.clone().unwrap_or_default(),
    }
}

/// What rows and running rollouts have in common.
fn of_parts(plan: &Plan, state: &State, strategy: String, source: String) -> RolloutView {
    let current = plan.steps.get(state.step);
    let steps = match state.promoting {
        true => &plan.steps[..],
        false => &plan.steps[..plan.end],
    };
    RolloutView {
        id: 0,
        service: String::new(),
        strategy,
        spec: source,
        state: state.word().to_owned(),
        step: state.step,
        steps: steps.iter().map(ToString::to_string).collect(),
        weight: state.weight.to_string(),
        candidate: plan.candidate.to_string(),
        why: why(state),
        spent_s: state.spent_ms as f64 / 1e3,
        expected_s: current.map_or(0.0, |step| step.expected_ms() as f64 / 1e3),
        began_unix_ms: 0,
        ended_unix_ms: None,
        lease_s: plan.lease_ms as f64 / 1e3,
        gates: gate_views(plan, state),
        notes: Vec::new(),
        actor: String::new(),
        reason: String::new(),
        is_over: state.outcome().is_some(),
        has_report: false,
    }
}

/// A stored rollout as it is shown.
pub(super) fn of_row(row: &RolloutRow) -> Result<RolloutView, ControlError> {
    if row.outcome.as_deref() == Some(ROLLOUT_LOST) {
        return Ok(of_lost(row));
    }
    let wrong = |error: serde_json::Error| {
        ControlError::Internal(format!("rollout {} in the store: {error}", row.id))
    };
    let plan: Plan = serde_json::from_str(&row.plan).map_err(wrong)?;
    let state: State = serde_json::from_str(&row.state).map_err(wrong)?;
    let strategy = spec::from_json(&row.spec).map_or(String::new(), |s| s.strategy.to_string());
    Ok(RolloutView {
        id: row.id,
        service: row.service.clone(),
        began_unix_ms: row.began_unix_ms,
        ended_unix_ms: row.ended_unix_ms,
        actor: row.actor.clone(),
        reason: row.reason.clone(),
        has_report: row.report.is_some(),
        ..of_parts(&plan, &state, strategy, row.spec.clone())
    })
}

/// One that could not go on, maybe because this agent cannot read it.
fn of_lost(row: &RolloutRow) -> RolloutView {
    let strategy = spec::from_json(&row.spec).map_or(String::new(), |s| s.strategy.to_string());
    RolloutView {
        id: row.id,
        service: row.service.clone(),
        strategy,
        spec: row.spec.clone(),
        state: ROLLOUT_LOST.to_owned(),
        step: 0,
        steps: Vec::new(),
        weight: "0%".to_owned(),
        candidate: String::new(),
        why: "it could not go on after a start of the agent".to_owned(),
        spent_s: 0.0,
        expected_s: 0.0,
        began_unix_ms: row.began_unix_ms,
        ended_unix_ms: row.ended_unix_ms,
        lease_s: 0.0,
        gates: Vec::new(),
        notes: Vec::new(),
        actor: row.actor.clone(),
        reason: row.reason.clone(),
        is_over: true,
        has_report: row.report.is_some(),
    }
}

impl Reconciler {
    /// A running one as it is shown, without what happened in it.
    pub(super) fn rollout_view(&self, _core: &Core, name: &str, rollout: &Rollout) -> RolloutView {
        let spec = &rollout.spec;
        let mut view = of_parts(
            &rollout.plan,
            &rollout.state,
            spec.strategy.to_string(),
            spec.source.clone(),
        );
        view.id = rollout.id;
        name.clone_into(&mut view.service);
        view.began_unix_ms = rollout.began_unix_ms;
        view.actor.clone_from(&rollout.actor);
        view.reason.clone_from(&rollout.reason);
        if let Some(problem) = &rollout.unstored {
            let stands = std::mem::take(&mut view.why);
            view.why = format!("{stands} (not stored: {problem})")
                .trim()
                .to_owned();
        }
        view
    }

    /// The newest rollout of a service, or the one of a number.
    pub(in crate::reconcile) fn do_get_rollout(
        &self,
        name: &str,
        id: u64,
    ) -> Result<RolloutView, ControlError> {
        let core = lock(&self.core);
        let internal = |error: crate::store::StoreError| ControlError::Internal(error.to_string());
        let running = core.rollouts.get(name).filter(|r| id == 0 || r.id == id);
        let mut view = match running {
            Some(rollout) => self.rollout_view(&core, name, rollout),
            None => of_row(&self.rollout_row(&core, name, id)?)?,
        };
        view.notes = core.store.rollout_notes(view.id, NOTES).map_err(internal)?;
        if let Some(row) = core.store.rollout(view.id).map_err(internal)? {
            view.ended_unix_ms = row.ended_unix_ms;
            view.has_report = row.report.is_some();
        }
        Ok(view)
    }

    /// A stored rollout of a service, or the newest one where no number is given.
    pub(super) fn rollout_row(
        &self,
        core: &Core,
        name: &str,
        id: u64,
    ) -> Result<RolloutRow, ControlError> {
        let internal = |error: crate::store::StoreError| ControlError::Internal(error.to_string());
        let found = match id {
            0 => core
                .store
                .rollouts(name, 1)
                .map_err(internal)?
                .into_iter()
                .next(),
            id => core
                .store
                .rollout(id)
                .map_err(internal)?
                .filter(|row| row.service == name),
        };
        if let Some(row) = found {
            return Ok(row);
        }
        // A service that is not there at all is another mistake.
        crate::reconcile::write::find(&core.services, name)?;
        Err(ControlError::Invalid(match id {
            0 => format!(
                "service {name:?} had no rollout yet: `shifter rollout start {name}` begins one"
            ),
            id => format!(
                "service {name:?} has no rollout {id}: `shifter get rollouts {name}` lists them"
            ),
        }))
    }

    /// Rollouts of a service, or of all; newest first, what runs as it is now.
    pub(in crate::reconcile) fn do_list_rollouts(
        &self,
        name: &str,
        limit: u32,
    ) -> Result<Vec<RolloutView>, ControlError> {
        let core = lock(&self.core);
        if !name.is_empty() && !core.rollouts.contains_key(name) {
            crate::reconcile::write::find(&core.services, name)?;
        }
        let rows = core
            .store
            .rollouts(name, limit)
            .map_err(|error| ControlError::Internal(error.to_string()))?;
        rows.iter()
            .map(|row| match core.rollouts.get(&row.service) {
                Some(rollout) if rollout.id == row.id => {
                    Ok(self.rollout_view(&core, &row.service, rollout))
                }
                _ => of_row(row),
            })
            .collect()
    }
}

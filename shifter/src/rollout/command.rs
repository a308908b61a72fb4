//! What people tell a rollout, and when it can be told.

use super::{
    Plan, Step,
    state::{Action, Event, Phase, State},
};

/// Whether a command can be given now; the text says why not, and what can.
pub fn check(plan: &Plan, state: &State, event: &Event) -> Result<(), String> {
    let is_command = matches!(
        event,
        Event::Pause
            | Event::Resume
            | Event::Advance
            | Event::Retry
            | Event::Promote
            | Event::Abort { .. }
    );
    match &state.phase {
        _ if !is_command => return Ok(()),
        Phase::Over { outcome } => {
            return Err(format!(
                "the rollout is over ({outcome}): start another one"
            ));
        }
        Phase::RollingBack { .. } => {
            return Err("it is rolling back, and does so to the end".into());
        }
        Phase::Running | Phase::Paused => {}
    }
    match (event, &state.phase) {
        (Event::Pause, Phase::Paused) => Err("it is paused already: resume it, or abort it".into()),
        (Event::Resume, Phase::Running) => {
            let advance = match plan.steps.get(state.step) {
                Some(step) if step.awaits_person() => "; it waits for `advance`",
                _ => "",
            };
            Err(format!("it is not paused{advance}"))
        }
        (Event::Retry, _) => match failed_hook(plan, state) {
            Some(_) => Ok(()),
            None => Err(
                "no hook of it has failed: `retry` runs one again that has; advance it, or abort it"
                    .into(),
            ),
        },
        (Event::Promote, _) if plan.promote_at.is_none() => {
            Err("this strategy promotes nothing: advance it, or abort it".into())
        }
        (Event::Advance | Event::Promote, _) if holds_write(state) => Err(format!(
            "it cannot leave this step, because its change is not in force yet{}: abort it, or mend that",
            state
                .failed
                .as_deref()
                .map_or(String::new(), |why| format!(" ({why})"))
        )),
        _ => Ok(()),
    }
}

/// The hook of the step that it is in, if that has failed and can be run again.
pub(super) fn failed_hook(plan: &Plan, state: &State) -> Option<Action> {
    match plan.steps.get(state.step)? {
        Step::Hook { name, backend, .. } if state.failed.is_some() && state.pending.is_none() => {
            let (name, backend) = (name.clone(), *backend);
            Some(Action::Hook { name, backend })
        }
        _ => None,
    }
}

/// A change of traffic was asked for and is not done: a step must not be left so.
fn holds_write(state: &State) -> bool {
    state
        .pending
        .as_ref()
        .is_some_and(|effect| !matches!(effect.action, Action::Hook { .. }))
}

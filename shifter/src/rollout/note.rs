//! What there is to tell about a move from one state to the next.

use serde::{Deserialize, Serialize};

use super::{
    Plan, State,
    state::{Action, Phase, Said},
};

/// One line of a rollout's history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// "gate", "step", "weight", "holding", "goes on", "paused", "resumed", "failed",
    /// "retried", "rolling back" or "over"; for webhooks "begun" as well.
    pub kind: &'static str,
    pub text: String,
}

/// Something that has happened, and when.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Happened {
    pub at_unix_ms: i64,
    pub kind: String,
    pub text: String,
}

/// What changed between two states, in its order.
pub fn notes(plan: &Plan, before: &State, after: &State) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut tell = |kind, text: String| notes.push(Note { kind, text });
    if after.weight != before.weight {
        tell(
            "weight",
            format!("{} has {} of new flows", plan.candidate, after.weight),
        );
    }
    for (gate, said) in newly_judged(before, after) {
        let name = plan.gates.get(gate).map_or("", |gate| gate.name.as_str());
        let text = format!("{name}: {}: {}", said.verdict.word(), said.reason);
        tell("gate", text);
    }
    let turned = before.phase != after.phase;
    match &after.phase {
        Phase::Paused if turned => tell("paused", "paused".into()),
        Phase::Running if before.phase == Phase::Paused => tell("resumed", "resumed".into()),
        Phase::RollingBack { reason } if turned => tell("rolling back", reason.clone()),
        Phase::Over { outcome } if turned => tell("over", outcome.to_string()),
        _ => {}
    }
    if after.step != before.step
        && after.outcome().is_none()
        && let Some(step) = plan.steps.get(after.step)
    {
        let (number, all) = (after.step + 1, plan.steps.len());
        tell("step", format!("step {number} of {all}: {step}"));
    }
    let retried = match after.pending.as_ref().map(|effect| &effect.action) {
        Some(Action::Hook { name, backend }) if is_retry(before, after) => Some((name, backend)),
        _ => None,
    };
    if let Some((name, backend)) = retried {
        let whose = backend.map_or(String::new(), |backend| format!(" for {backend}"));
        tell("retried", format!("hook {name:?} is run again{whose}"));
    }
    match (&before.holding, &after.holding) {
        (was, Some(why)) if was.as_ref() != Some(why) => {
            let same_gate = was.as_ref().is_some_and(|was| same_but_numbers(was, why));
            if !same_gate {
                tell("holding", why.clone());
            }
        }
        (Some(_), None)
            if after.step == before.step && after.outcome().is_none() && retried.is_none() =>
        {
            tell("goes on", "it goes on".into());
        }
        _ => {}
    }
    if let Some(Action::Keep) = after.pending.as_ref().map(|effect| &effect.action)
        && before.pending.is_none()
    {
        tell("step", "every step is done: the weight is kept".into());
    }
    notes
}

/// Gates that say something else than before, in the same step.
fn newly_judged<'a>(before: &State, after: &'a State) -> Vec<(usize, &'a Said)> {
    let verdict = |gate: usize| before.judged.get(gate)?.as_ref().map(|said| said.verdict);
    let said = after.judged.iter().enumerate();
    let said = said.filter_map(|(gate, said)| Some((gate, said.as_ref()?)));
    said.filter(|(gate, said)| verdict(*gate) != Some(said.verdict))
        .collect()
}

/// Whether what has failed in this step is asked for under another number.
fn is_retry(before: &State, after: &State) -> bool {
    before.step == after.step && before.failed.is_some() && before.pending.is_none()
}

/// A reason that only counts on is told once.
fn same_but_numbers(a: &str, b: &str) -> bool {
    let letters = |text: &str| -> String { text.chars().filter(|c| c.is_alphabetic()).collect() };
    letters(a) == letters(b)
}

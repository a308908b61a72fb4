//! Which gates are asked when, and what has to be asked of others.

use std::collections::BTreeMap;

use super::{Rollout, tell::Tell};
use crate::{
    judge::{GateSpec, GateState, Judgement, Outcome, When, Window},
    model::PoolName,
    rollout::{Step, state::Effect},
};

/// What the agent has to do for rollouts beside the datapath.
#[derive(Default)]
pub struct Work {
    pub asks: Vec<Ask>,
    pub hooks: Vec<HookRun>,
    pub tells: Vec<Tell>,
}

/// A gate that reaches out of the agent.
#[derive(Clone, Debug)]
pub struct Ask {
    pub service: String,
    pub rollout: u64,
    pub step: usize,
    pub gate: usize,
    pub spec: GateSpec,
    /// For the payload.
    pub weight: String,
    pub phase: String,
    pub candidate: String,
}

/// A hook that is to be run once.
#[derive(Clone, Debug)]
pub struct HookRun {
    pub service: String,
    pub rollout: u64,
    pub effect: Effect,
    pub step: usize,
    pub weight: String,
    pub candidate: String,
}

/// Gates under way and when they answered.
#[derive(Default)]
pub struct Asked {
    step: usize,
    running: BTreeMap<usize, ()>,
    answered_ms: BTreeMap<usize, i64>,
    /// Hooks that this process has begun.
    pub hooks: Vec<u64>,
}

impl Asked {
    fn enter(&mut self, step: usize) {
        if self.step != step {
            self.step = step;
            self.running.clear();
            self.answered_ms.clear();
        }
    }

    /// An answer has come; whether it is of the step that it is in.
    pub fn answered(&mut self, step: usize, gate: usize, now_ms: i64) -> bool {
        if self.step != step {
            return false;
        }
        self.running.remove(&gate);
        self.answered_ms.insert(gate, now_ms);
        true
    }

    /// Nobody waits for an answer any more.
    pub fn forget_running(&mut self) {
        self.running.clear();
    }

    fn is_due(&self, gate: usize, every_ms: i64, now_ms: i64) -> bool {
        let last = self.answered_ms.get(&gate);
        !self.running.contains_key(&gate) && last.is_none_or(|last| now_ms - last >= every_ms)
    }
}

/// Gates that are asked now: those that judge here and now, and those that others
/// are asked for.
pub(super) fn due(rollout: &mut Rollout, now_ms: i64) -> (Vec<usize>, Vec<usize>) {
    let step = rollout.state.step;
    rollout.asked.enter(step);
    let (mut here, mut outside) = (Vec::new(), Vec::new());
    let current = rollout.plan.steps.get(step);
    let ends = match current {
        Some(Step::Analyse { for_ms, .. }) => rollout.state.spent_ms >= *for_ms,
        _ => false,
    };
    for gate in rollout.plan.judges_in(step) {
        let Some(spec) = rollout.spec.gates.get(gate) else {
            continue;
        };
        match spec.when() {
            When::Window => here.push(gate),
            When::AtEnd if ends => here.push(gate),
            When::AtEnd => {}
            When::Every(_) | When::Hook => {
                let every_ms = match spec.when() {
                    When::Every(every) => every.as_millis() as i64,
                    _ => i64::MAX,
                };
                if rollout.asked.is_due(gate, every_ms, now_ms) {
                    rollout.asked.running.insert(gate, ());
                    outside.push(gate);
                }
            }
        }
    }
    (here, outside)
}

/// What the gates of a rollout have seen in the step that it is in.
#[derive(Default)]
pub struct Seen(Vec<Option<GateState>>);

impl Seen {
    /// Nothing yet.
    pub fn new(gates: &[GateSpec]) -> Self {
        Self(gates.iter().map(GateState::new).collect())
    }

    /// Takes a window in that was stored, so that a replay sees the same.
    pub fn add(
        &mut self,
        gates: &[GateSpec],
        window: &crate::rollout::Window,
        candidate: PoolName,
    ) {
        let window = Window {
            live: window.signals[candidate.other().index()].clone(),
            candidate: window.signals[candidate.index()].clone(),
        };
        for (state, gate) in self.0.iter_mut().zip(gates) {
            if let Some(state) = state {
                state.add(gate, &window);
            }
        }
    }

    /// What a gate says of it; `alone`: the candidate is given every new flow.
    pub fn judge(
        &self,
        index: usize,
        gate: &GateSpec,
        problem: Option<&str>,
        alone: bool,
    ) -> Judgement {
        let error = |reason: String| Judgement {
            outcome: Outcome::Error,
            reason,
            statistics: Vec::new(),
        };
        match (problem, self.0.get(index).and_then(Option::as_ref)) {
            (Some(problem), _) => error(format!("the signals cannot be read: {problem}")),
            (None, Some(state)) if alone => state.judge_alone(gate),
            (None, Some(state)) => state.judge(gate),
            (None, None) => error(format!("judge {:?} needs to be asked", gate.judge.word())),
        }
    }
}

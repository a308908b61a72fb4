//! The state machine: a state, what happened and when give the next state and what to do.

use std::net::SocketAddr;

use super::{
    Facts, Health, OnDoubt, Plan, Step,
    command::{check, failed_hook},
    plan::list,
    state::{Action, Effect, Event, Outcome, Phase, Said, State, Verdict},
};
use crate::model::{Weight, duration};

/// Of one tick no more than this counts as analysed, in ms: while the agent was
/// away, nobody judged.
const ANALYSED_AT_MOST_MS: u64 = 5_000;

/// The next state, and what has to be done. A command that [`check`] refuses
/// changes nothing.
pub fn step(plan: &Plan, mut state: State, event: Event, now_ms: i64) -> (State, Vec<Effect>) {
    if state.outcome().is_some() || check(plan, &state, &event).is_err() {
        return (state, Vec::new());
    }
    // Judgements come between ticks, and must not use their time up.
    let passed_ms = match event {
        Event::Tick(_) => pass_time(&mut state, now_ms),
        _ => 0,
    };
    let mut machine = Machine {
        plan,
        state,
        effects: Vec::new(),
        now_ms,
    };
    machine.take(event, passed_ms);
    (machine.state, machine.effects)
}

/// Time never goes back, whatever the clock says.
fn pass_time(state: &mut State, now_ms: i64) -> u64 {
    let passed_ms = now_ms.saturating_sub(state.last_ms).max(0);
    state.last_ms = state.last_ms.max(now_ms);
    passed_ms as u64
}

struct Machine<'a> {
    plan: &'a Plan,
    state: State,
    effects: Vec<Effect>,
    now_ms: i64,
}

impl Machine<'_> {
    fn take(&mut self, event: Event, passed_ms: u64) {
        match event {
            Event::Tick(facts) => self.tick(&facts, passed_ms),
            Event::Done { id } => self.done(id),
            Event::Failed { id, reason } => self.failed(id, reason),
            Event::Judged { gate, judgement } => self.judged(gate, judgement.into()),
            Event::Pause => self.state.phase = Phase::Paused,
            Event::Resume => self.state.phase = Phase::Running,
            Event::Advance => {
                self.state.phase = Phase::Running;
                self.state.pending = None;
                self.advance();
            }
            Event::Retry => self.retry(),
            Event::Promote => self.promote(),
            Event::Abort { reason } => self.roll_back(reason),
            Event::TakenBack { reason } => {
                // Its own way back is still to bring backends back.
                if !self.rolls_back() {
                    self.roll_back(reason);
                }
            }
        }
    }

    fn rolls_back(&self) -> bool {
        matches!(self.state.phase, Phase::RollingBack { .. })
    }

    fn current(&self) -> Option<&Step> {
        self.plan.steps.get(self.state.step)
    }

    /// Asks for something. At most one thing is asked for at a time.
    fn ask(&mut self, action: Action) {
        let effect = Effect {
            id: self.state.next_id,
            action,
        };
        self.state.next_id += 1;
        self.state.failed = None;
        self.state.pending = Some(effect.clone());
        self.effects.push(effect);
    }

    fn tick(&mut self, facts: &Facts, passed_ms: u64) {
        if self.is_held(facts) {
            return;
        }
        if let Some(effect) = &self.state.pending {
            // What failed is tried again under its number: it was not done.
            if self.state.failed.is_some() && !matches!(effect.action, Action::Hook { .. }) {
                self.effects.push(effect.clone());
            }
            self.look_at_progress(passed_ms);
            return;
        }
        if self.rolls_back() {
            return;
        }
        let Some(step) = self.current().cloned() else {
            return self.finish();
        };
        if self.state.phase == Phase::Paused {
            return;
        }
        match self.is_done(&step, facts, passed_ms) {
            Ready::No => self.look_at_progress(0),
            Ready::Asks(action) => self.ask(action),
            Ready::Yes => self.advance(),
            Ready::Doubt(OnDoubt::Advance, why) => {
                self.state.holding = Some(why);
                self.advance();
            }
            Ready::Doubt(OnDoubt::Rollback, why) => self.roll_back(why),
            Ready::Doubt(OnDoubt::Hold, why) => {
                self.state.holding = Some(why);
                self.look_at_progress(0);
            }
        }
    }

    /// In a freeze nothing is asked for and no time counts, but on a way back.
    fn is_held(&mut self, facts: &Facts) -> bool {
        if self.rolls_back() || self.takes_all_back() {
            return false;
        }
        let was_frozen = std::mem::take(&mut self.state.frozen);
        match &facts.frozen {
            Some(why) => {
                self.state.frozen = true;
                self.state.holding = Some(why.clone());
                true
            }
            None => {
                if was_frozen {
                    self.state.holding = None;
                }
                false
            }
        }
    }

    /// Its next weight gives the live pool everything that the candidate has.
    fn takes_all_back(&self) -> bool {
        let next = match (&self.state.pending, self.current()) {
            (Some(effect), _) => match effect.action {
                Action::Weight { candidate } => Some(candidate),
                _ => None,
            },
            (None, Some(Step::Weight { candidate })) => Some(*candidate),
            _ => None,
        };
        self.state.phase == Phase::Running
            && self.state.weight.threshold() != 0
            && next.is_some_and(|next| next.threshold() == 0)
    }

    /// What a step that nothing is asked for needs next.
    fn is_done(&mut self, step: &Step, facts: &Facts, passed_ms: u64) -> Ready {
        let counts_ms = match step {
            Step::Analyse { .. } => passed_ms.min(ANALYSED_AT_MOST_MS),
            _ => passed_ms,
        };
        self.state.spent_ms = self.state.spent_ms.saturating_add(counts_ms);
        let spent_ms = self.state.spent_ms;
        match step {
            Step::Weight { candidate } => Ready::Asks(Action::Weight {
                candidate: *candidate,
            }),
            Step::Drain { backend } => Ready::Asks(Action::Drain { backend: *backend }),
            Step::Undrain { backend } => Ready::Asks(Action::Undrain { backend: *backend }),
            Step::Promote => Ready::Asks(Action::Promote),
            Step::Hook {
                name,
                backend,
                on_error,
            } => match &self.state.failed {
                Some(why) => Ready::Doubt(*on_error, with_remedy(*on_error, why)),
                None => Ready::Asks(Action::Hook {
                    name: name.clone(),
                    backend: *backend,
                }),
            },
            Step::Pause { for_ms: Some(ms) } => Ready::when(spent_ms >= *ms),
            Step::Pause { for_ms: None } => Ready::Doubt(
                OnDoubt::Hold,
                "it waits for `shifter rollout advance`".into(),
            ),
            Step::AwaitPerson { backends } => Ready::Doubt(
                OnDoubt::Hold,
                format!(
                    "{} is drained: update it, then `shifter rollout advance`",
                    list(backends)
                ),
            ),
            Step::Analyse { for_ms, gates } => match spent_ms >= *for_ms {
                true => self.asked_gates(gates),
                false => Ready::No,
            },
            Step::AwaitPool { pool, deadline_ms } => {
                self.await_flows(facts.flows[pool.index()], *deadline_ms)
            }
            Step::AwaitDrained {
                backends,
                deadline_ms,
            } => self.await_flows(facts.flows_on(backends), *deadline_ms),
            Step::AwaitHealthy {
                backends,
                deadline_ms,
            } => await_health(facts, backends, spent_ms, *deadline_ms),
        }
    }

    fn await_flows(&mut self, flows: u64, deadline_ms: u64) -> Ready {
        if flows > 0 && self.state.spent_ms < deadline_ms {
            return Ready::No;
        }
        self.state.left_behind += flows;
        Ready::Yes
    }

    /// The time of an analysis is over: what its gates said last counts.
    fn asked_gates(&self, gates: &[usize]) -> Ready {
        let mut doubt: Option<(OnDoubt, String)> = None;
        let mut is_asked = true;
        for gate in gates {
            let Some(policy) = self.plan.gates.get(*gate) else {
                continue;
            };
            let said = self.state.judged.get(*gate).and_then(Option::as_ref);
            let (on_doubt, why) = match said {
                None => {
                    is_asked = false;
                    continue;
                }
                Some(said) => match said.verdict {
                    Verdict::Pass => continue,
                    Verdict::Fail => (policy.on_fail, format!("failed: {}", said.reason)),
                    Verdict::NoData => (policy.on_no_data, format!("no data: {}", said.reason)),
                    Verdict::Inconclusive => (
                        policy.on_inconclusive,
                        format!("inconclusive: {}", said.reason),
                    ),
                    Verdict::Error => (policy.on_error, format!("error: {}", said.reason)),
                },
            };
            let why = format!("gate {:?}: {why}", policy.name);
            let worse = |is: &(OnDoubt, String)| severity(on_doubt) > severity(is.0);
            if doubt.as_ref().is_none_or(worse) {
                doubt = Some((on_doubt, why));
            }
        }
        match doubt {
            // Each gate is heard, but for a rollback.
            None | Some((OnDoubt::Advance | OnDoubt::Hold, _)) if !is_asked => Ready::No,
            None => Ready::Yes,
            Some((on_doubt, why)) => Ready::Doubt(on_doubt, why),
        }
    }

    fn done(&mut self, id: u64) {
        let Some(effect) = self.state.pending.take_if(|effect| effect.id == id) else {
            return;
        };
        self.state.failed = None;
        match effect.action {
            Action::Weight { candidate } => {
                self.state.weight = candidate;
                self.state.wrote_weight = true;
            }
            Action::Drain { backend } => {
                self.state.drained.push(backend);
                self.state.brought_in.retain(|b| *b != backend);
            }
            Action::Undrain { backend } => {
                self.state.drained.retain(|b| *b != backend);
                if self.plan.spares.contains(&backend) {
                    self.state.brought_in.push(backend);
                }
            }
            Action::Promote | Action::Hook { .. } => {}
            Action::Keep => return self.over(Outcome::Completed),
            Action::Rollback { undrain, drain } => {
                self.state.weight = Weight::ZERO;
                self.state.brought_in.retain(|b| !drain.contains(b));
                self.state.drained.retain(|b| !undrain.contains(b));
                if let Phase::RollingBack { reason } = &self.state.phase {
                    let reason = reason.clone();
                    self.over(Outcome::RolledBack { reason });
                }
                return;
            }
        }
        self.advance();
    }

    fn failed(&mut self, id: u64, reason: String) {
        let Some(effect) = self.state.pending.as_ref().filter(|effect| effect.id == id) else {
            return;
        };
        // A hook is not run again by itself: nobody knows how far it came.
        if matches!(effect.action, Action::Hook { .. }) {
            self.state.pending = None;
        }
        if !self.rolls_back() {
            let shown = match self.current() {
                Some(Step::Hook { on_error, .. }) => with_remedy(*on_error, &reason),
                _ => reason.clone(),
            };
            self.state.holding = Some(shown);
        }
        self.state.failed = Some(reason);
    }

    fn judged(&mut self, gate: usize, said: Said) {
        let Some(policy) = self.plan.gates.get(gate) else {
            return;
        };
        if self.rolls_back() {
            return;
        }
        let fails = said.verdict == Verdict::Fail && policy.on_fail == OnDoubt::Rollback;
        let reason = format!("gate {:?} failed: {}", policy.name, said.reason);
        if let Some(place) = self.state.judged.get_mut(gate) {
            *place = Some(said);
        }
        if fails {
            self.roll_back(reason);
        }
    }

    /// Leaves the step.
    fn advance(&mut self) {
        self.enter(self.state.step + 1);
    }

    fn enter(&mut self, step: usize) {
        let state = &mut self.state;
        state.step = step;
        state.spent_ms = 0;
        // Not by the last tick: what was seen between it and now was before this step.
        state.entered_ms = state.last_ms.max(self.now_ms);
        state.holding = None;
        state.failed = None;
        state.judged.fill(None);
        if self.plan.is_over(step, state.promoting) {
            self.finish();
        }
    }

    /// Its time begins anew, as if the step were entered now.
    fn retry(&mut self) {
        if let Some(hook) = failed_hook(self.plan, &self.state) {
            self.state.phase = Phase::Running;
            self.state.spent_ms = 0;
            self.state.entered_ms = self.state.last_ms.max(self.now_ms);
            self.state.holding = None;
            self.ask(hook);
        }
    }

    fn promote(&mut self) {
        if let Some(at) = self.plan.promote_at {
            self.state.phase = Phase::Running;
            self.state.promoting = true;
            self.state.pending = None;
            self.enter(at);
        }
    }

    /// Every step is done.
    fn finish(&mut self) {
        let last = self.state.step.checked_sub(1);
        let last = last.and_then(|index| self.plan.steps.get(index));
        if last == Some(&Step::Promote) {
            return self.over(Outcome::Promoted);
        }
        // The lease would take the weight back.
        match self.state.wrote_weight {
            true => self.ask(Action::Keep),
            false => self.over(Outcome::Completed),
        }
    }

    fn over(&mut self, outcome: Outcome) {
        self.state.phase = Phase::Over { outcome };
        self.state.pending = None;
        self.state.holding = None;
        self.state.failed = None;
    }

    /// Whatever was asked for is given up; nothing is waited for.
    fn roll_back(&mut self, mut reason: String) {
        let updating = self.current().map_or(&[][..], Step::updates);
        let (left, undrain): (Vec<SocketAddr>, Vec<SocketAddr>) = {
            let mut drained = self.state.drained.clone();
            // One that may have been drained, if its result was not told.
            if let Some(Action::Drain { backend }) = self.state.pending.as_ref().map(|e| &e.action)
                && !drained.contains(backend)
            {
                drained.push(*backend);
            }
            drained
                .into_iter()
                .filter(|backend| !self.plan.spares.contains(backend))
                .partition(|backend| updating.contains(backend))
        };
        if !left.is_empty() {
            reason = format!(
                "{reason} ({} stays drained, because its update was under way: `shifter undrain` when it is good)",
                list(&left)
            );
        }
        let mut drain = self.state.brought_in.clone();
        if let Some(Action::Undrain { backend }) = self.state.pending.as_ref().map(|e| &e.action)
            && self.plan.spares.contains(backend)
            && !drain.contains(backend)
        {
            drain.push(*backend);
        }
        self.state.phase = Phase::RollingBack { reason };
        self.state.holding = None;
        self.state.pending = None;
        self.ask(Action::Rollback { undrain, drain });
    }

    /// A step that takes too long is a failure, if the plan says so.
    fn look_at_progress(&mut self, passed_ms: u64) {
        self.state.spent_ms = self.state.spent_ms.saturating_add(passed_ms);
        let (Some(deadline_ms), Some(step)) = (self.plan.progress_deadline_ms, self.current())
        else {
            return;
        };
        let may_ms = step.expected_ms().saturating_add(deadline_ms);
        if self.state.phase != Phase::Running
            || step.awaits_person()
            || self.state.spent_ms <= may_ms
        {
            return;
        }
        let held = self.state.holding.as_deref();
        let why = held.map_or(String::new(), |why| format!(": {why}"));
        let reason = format!(
            "no progress at {step:?} for {} beyond its time{why}",
            duration::show(std::time::Duration::from_millis(deadline_ms)),
            step = step.to_string(),
        );
        self.roll_back(reason);
    }
}

/// Whether a step can be left.
enum Ready {
    No,
    Yes,
    Asks(Action),
    Doubt(OnDoubt, String),
}

impl Ready {
    fn when(done: bool) -> Self {
        if done { Self::Yes } else { Self::No }
    }
}

/// A hook that failed is waited for by a person, where it is held for.
fn with_remedy(on_error: OnDoubt, why: &str) -> String {
    match on_error {
        OnDoubt::Hold => format!("{why}; `shifter rollout retry` runs it again"),
        _ => why.to_owned(),
    }
}

fn await_health(facts: &Facts, backends: &[SocketAddr], spent_ms: u64, deadline_ms: u64) -> Ready {
    let down = facts.those(backends, Health::Down);
    let awaited = facts.those(backends, Health::Awaited);
    let why = match (down.is_empty(), awaited.is_empty()) {
        (true, true) => return Ready::Yes,
        _ if spent_ms < deadline_ms => return Ready::No,
        (false, _) => format!("{} is down after its update", list(&down)),
        (true, false) => format!(
            "{} is not up by a check that began after its update",
            list(&awaited)
        ),
    };
    Ready::Doubt(OnDoubt::Rollback, why)
}

fn severity(policy: OnDoubt) -> u8 {
    match policy {
        OnDoubt::Advance => 0,
        OnDoubt::Hold => 1,
        OnDoubt::Rollback => 2,
    }
}

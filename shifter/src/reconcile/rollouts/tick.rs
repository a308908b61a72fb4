//! Once a second: what the pools did, what gates say, and time for every rollout.

use super::{
    gates::{self, Ask, HookRun, Work},
    measure::{Reading, Taken},
};
use crate::{
    datapath::Census,
    health::state::Health as Checks,
    judge::Judgement,
    model::{BackendSpec, BackendState, Weight},
    reconcile::{
        controller::ControlError,
        reconciler::{Core, Reconciler, lock},
    },
    rollout::{
        BackendFacts, Event, Facts, Health,
        state::{Action, Effect},
    },
};

/// Steps that may follow each other in one round.
const STEPS_AT_ONCE: usize = 100;

impl Reconciler {
    /// Lets a second pass for every rollout; what others have to be asked comes back.
    pub fn tick_rollouts(&self) -> Work {
        let (names, waits) = {
            let core = lock(&self.core);
            let names: Vec<String> = core.rollouts.keys().cloned().collect();
            (names, core.rollouts.values().any(|r| r.awaits_flows()))
        };
        if names.is_empty() {
            return Work::default();
        }
        // A drain must not be taken for done by counts from before it.
        let census = match waits {
            true => self.fresh_census(),
            false => self.census(),
        };
        for name in names {
            self.tick_one(&name, &census);
            self.collect_tells(&mut lock(&self.core), &name);
            self.end_rollout(&name);
        }
        std::mem::take(&mut *lock(&self.rollout_work))
    }

    /// The same for one, so that a command shows at once what it led to. What others
    /// have to be asked is left to the next round.
    pub(super) fn tick_rollouts_of(&self, name: &str) {
        let census = self.census();
        self.tick_one(name, &census);
    }

    /// Steps that take no time follow each other at once.
    fn tick_one(&self, name: &str, census: &Census) {
        for _ in 0..STEPS_AT_ONCE {
            let before = lock(&self.core).rollouts.get(name).map(|r| r.state.step);
            let reading = self.read_signals(name);
            let measured = {
                let mut core = lock(&self.core);
                let ticked = self.tick_rollout(&mut core, name, census, reading);
                ticked.unwrap_or_else(|error| {
                    tracing::warn!(service = name, %error, "a rollout does not go on");
                    None
                })
            };
            self.store_measured(name, measured);
            self.carry_all_slow(name);
            let core = lock(&self.core);
            let rollout = core.rollouts.get(name);
            let goes_on =
                rollout.is_some_and(|r| Some(r.state.step) != before && r.is_at_quick_step());
            if !goes_on {
                return;
            }
        }
    }

    /// What it measured comes back, to be stored without the lock.
    fn tick_rollout(
        &self,
        core: &mut Core,
        name: &str,
        census: &Census,
        reading: Option<Reading>,
    ) -> Result<Option<Taken>, ControlError> {
        self.record_passed_dead_man(core, name);
        self.sample(core, name, census, reading);
        if core.rollouts.get(name).is_none_or(|r| r.is_over()) {
            return Ok(None);
        }
        self.renew_lease(core, name)?;
        self.resume_rollout(core, name)?;
        self.take_owed(core, name);
        self.judge_rollout(core, name)?;
        let frozen = self.check_frozen(core, name).err();
        let facts = Facts {
            frozen: frozen.map(|error| error.to_string()),
            ..self.facts_of(core, name, census)
        };
        let before = core.rollouts.get(name).map(|r| r.state.clone());
        self.advance_rollout(core, name, Event::Tick(facts))?;
        self.collect_hook(core, name);
        // Time that was spent and windows that are full, where nothing else moved.
        let stays = core
            .rollouts
            .get(name)
            .zip(before)
            .is_some_and(|(r, before)| {
                before.step == r.state.step && before.phase == r.state.phase
            });
        Ok(stays.then(|| self.measured(core, name)).flatten())
    }

    /// Once after a start: what a crash has cut off is recognised or carried out.
    pub(super) fn resume_rollout(&self, core: &mut Core, name: &str) -> Result<(), ControlError> {
        let Some(rollout) = core.rollouts.get_mut(name) else {
            return Ok(());
        };
        if std::mem::replace(&mut rollout.resumed, true) {
            return Ok(());
        }
        if let Some(reason) = rollout.sampler.taken_back.take() {
            return self.advance_rollout(core, name, Event::TakenBack { reason });
        }
        let Some(effect) = rollout.state.pending.clone() else {
            return Ok(());
        };
        self.carry_again(core, name, &effect)
    }

    fn carry_again(
        &self,
        core: &mut Core,
        name: &str,
        effect: &Effect,
    ) -> Result<(), ControlError> {
        if let Action::Hook { name: hook, .. } = &effect.action {
            let reason = format!(
                "the agent ended while hook {hook:?} ran: nobody knows how far it came, so it is not run again"
            );
            return self.advance_rollout(
                core,
                name,
                Event::Failed {
                    id: effect.id,
                    reason,
                },
            );
        }
        match self.carry_quick(core, name, effect) {
            super::carry::Carried::Event(event, receipt) => {
                if let Action::Rollback { .. } = effect.action {
                    self.note_programmed(core, name, receipt.as_ref());
                }
                self.advance_rollout(core, name, event)
            }
            super::carry::Carried::Slow => {
                if let Some(rollout) = core.rollouts.get_mut(name) {
                    rollout.slow = Some(effect.id);
                }
                Ok(())
            }
        }
    }

    fn judge_rollout(&self, core: &mut Core, name: &str) -> Result<(), ControlError> {
        let boot_ns = self.clock.boot_ns();
        let Some(rollout) = core.rollouts.get_mut(name) else {
            return Ok(());
        };
        let now_ms = rollout.now_ms(boot_ns);
        let (here, outside) = gates::due(rollout, now_ms);
        for gate in outside {
            lock(&self.rollout_work).asks.push(Ask {
                service: name.to_owned(),
                rollout: rollout.id,
                step: rollout.state.step,
                gate,
                spec: rollout.spec.gates[gate].clone(),
                weight: rollout.state.weight.to_string(),
                phase: rollout.state.word().to_owned(),
                candidate: rollout.plan.candidate.to_string(),
            });
        }
        let alone = rollout.state.weight.threshold() == Weight::ONE.threshold();
        let judgements: Vec<(usize, Judgement)> = here
            .into_iter()
            .map(|gate| {
                let spec = &rollout.spec.gates[gate];
                let problem = rollout.sampler.problem.as_deref();
                let judgement = rollout.seen.judge(gate, spec, problem, alone);
                (gate, judgement)
            })
            .collect();
        for (gate, judgement) in judgements {
            self.advance_rollout(core, name, Event::Judged { gate, judgement })?;
        }
        Ok(())
    }

    /// A hook that is asked for is handed out once.
    fn collect_hook(&self, core: &mut Core, name: &str) {
        if self.check_frozen(core, name).is_err() {
            return;
        }
        let Some(rollout) = core.rollouts.get_mut(name) else {
            return;
        };
        if let Some(effect) = &rollout.state.pending
            && let Action::Hook { .. } = effect.action
            && !rollout.asked.hooks.contains(&effect.id)
        {
            rollout.asked.hooks.push(effect.id);
            lock(&self.rollout_work).hooks.push(HookRun {
                service: name.to_owned(),
                rollout: rollout.id,
                effect: effect.clone(),
                step: rollout.state.step,
                weight: rollout.state.weight.to_string(),
                candidate: rollout.plan.candidate.to_string(),
            });
        }
    }

    /// Whoever asked gates and ran hooks is gone, and with it what was under way: gates
    /// are asked again, and a hook that was begun has failed.
    pub fn forsake_rollouts(&self) {
        let mut core = lock(&self.core);
        let not_begun = std::mem::take(&mut *lock(&self.rollout_work));
        for run in not_begun.hooks {
            if let Some(rollout) = core.rollouts.get_mut(&run.service) {
                rollout.asked.hooks.retain(|id| *id != run.effect.id);
            }
        }
        for tell in not_begun.tells {
            let rollout = core.rollouts.get_mut(&tell.service);
            if let Some(rollout) = rollout.filter(|r| r.id == tell.rollout) {
                rollout.told.put_back(tell);
            }
        }
        for rollout in core.rollouts.values_mut() {
            rollout.asked.forget_running();
            rollout.told.forget_running();
            let is_new_hook = rollout.state.pending.as_ref().is_some_and(|effect| {
                matches!(effect.action, Action::Hook { .. })
                    && !rollout.asked.hooks.contains(&effect.id)
            });
            if !is_new_hook {
                rollout.resumed = false;
            }
        }
    }

    /// An answer of a gate that was asked for outside.
    pub fn rollout_judged(&self, ask: &Ask, judgement: Judgement) {
        let mut core = lock(&self.core);
        let boot_ns = self.clock.boot_ns();
        let Some(rollout) = core.rollouts.get_mut(&ask.service) else {
            return;
        };
        let now_ms = rollout.now_ms(boot_ns);
        let counts = rollout.id == ask.rollout
            && rollout.state.step == ask.step
            && rollout.asked.answered(ask.step, ask.gate, now_ms);
        let gate = ask.gate;
        if counts
            && let Err(error) =
                self.advance_rollout(&mut core, &ask.service, Event::Judged { gate, judgement })
        {
            tracing::warn!(service = ask.service, %error, "a judgement is not taken in");
        }
        drop(core);
        self.carry_all_slow(&ask.service);
    }

    /// The result of a hook.
    pub fn rollout_hook_done(&self, run: &HookRun, result: Result<(), String>) {
        let mut core = lock(&self.core);
        let is_ours = core
            .rollouts
            .get(&run.service)
            .is_some_and(|r| r.id == run.rollout);
        if !is_ours {
            return;
        }
        let id = run.effect.id;
        let event = match result {
            Ok(()) => Event::Done { id },
            Err(reason) => Event::Failed { id, reason },
        };
        if let Err(error) = self.advance_rollout(&mut core, &run.service, event) {
            tracing::warn!(service = run.service, %error, "a hook's result is not taken in");
        }
        drop(core);
        self.carry_all_slow(&run.service);
    }
}

impl Reconciler {
    fn facts_of(&self, core: &Core, name: &str, census: &Census) -> Facts {
        let (Some(entry), Some(rollout)) = (core.services.get(name), core.rollouts.get(name))
        else {
            return Facts::default();
        };
        let health = |spec: &BackendSpec| match self.standing(entry, spec.addr) {
            _ if spec.state == BackendState::Maint => Health::Unknown,
            None => Health::Unknown,
            Some(standing) => match standing.health {
                Checks::Down => Health::Down,
                Checks::Up
                    if rollout.now_ms(standing.passed_began_ns) > rollout.state.entered_ms =>
                {
                    Health::Up
                }
                Checks::Up | Checks::Unknown => Health::Awaited,
            },
        };
        let pools = entry.pools.iter().flatten();
        let specs = entry.spec.blue_pool.iter().chain(&entry.spec.green_pool);
        let backends = pools.zip(specs).map(|(id, spec)| BackendFacts {
            backend: spec.addr,
            flows: census.backends.get(id).copied().unwrap_or(0),
            health: health(spec),
        });
        Facts {
            flows: census.services.get(&entry.id).copied().unwrap_or_default(),
            backends: backends.collect(),
            frozen: None,
        }
    }
}

//! From an event to the next state: stored before anything is carried out, and again
//! when its result is known.

use std::collections::VecDeque;

use super::{ACTOR, MOST_LATE, aftermath::Aftermath, carry::Carried};
use crate::{
    fault,
    reconcile::{
        controller::ControlError,
        reconciler::{Core, Reconciler, lock},
        write::store_failed,
    },
    rollout::{self, Event, Happened, Note, Phase, State, notes, state::Action},
    store::{Progress, StoreError},
};

impl Reconciler {
    /// Takes an event in and carries out what follows, as far as the core is enough.
    pub(super) fn advance_rollout(
        &self,
        core: &mut Core,
        name: &str,
        event: Event,
    ) -> Result<(), ControlError> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let decided_ns = self.clock.monotonic_ns();
            let Some(rollout) = core.rollouts.get(name) else {
                return Ok(());
            };
            rollout::check(&rollout.plan, &rollout.state, &event).map_err(|why| {
                ControlError::Precondition(format!("rollout of service {name:?}: {why}"))
            })?;
            let taken_back = matches!(event, Event::TakenBack { .. });
            let now_ms = rollout.now_ms(self.clock.boot_ns());
            let result = is_result(&event).then(|| event.clone());
            let (next, effects) =
                rollout::step(&rollout.plan, rollout.state.clone(), event, now_ms);
            let notes = notes(&rollout.plan, &rollout.state, &next);
            let begins_to_roll_back = !is_rolling_back(&rollout.state) && is_rolling_back(&next);
            let moves = has_moved(&rollout.state, &next);
            if begins_to_roll_back || !moves {
                // What gates say moves nothing yet: it is stored with the next round.
                // On the way back the kernel first, the store after it: nothing is waited for. A crash
                // in between is seen by what is in force then.
                let at_unix_ms = self.clock.unix_ms();
                if let Some(rollout) = core.rollouts.get_mut(name) {
                    let new = notes.iter().map(|note| happened(note, at_unix_ms));
                    rollout.late.extend(new);
                    let beyond = rollout.late.len().saturating_sub(MOST_LATE);
                    rollout.late.drain(..beyond);
                }
            } else if let Err(error) = self.store_move(core, name, &next, &notes) {
                // Nobody tells a result a second time.
                if let Some(rollout) = core.rollouts.get_mut(name) {
                    rollout.owed.extend(result);
                }
                return Err(error);
            }
            self.take_state(core, name, next, &notes);
            if begins_to_roll_back && let Some(rollout) = core.rollouts.get_mut(name) {
                rollout.aftermath = Some(match taken_back {
                    true => Aftermath::of_another(),
                    false => Aftermath::decided_at(decided_ns),
                });
            }
            for effect in effects {
                match self.carry_quick(core, name, &effect) {
                    Carried::Event(event, receipt) => {
                        if let Action::Rollback { .. } = effect.action {
                            self.note_programmed(core, name, receipt.as_ref());
                        }
                        events.push_back(event);
                    }
                    Carried::Slow => {
                        if let Action::Rollback { .. } = effect.action {
                            self.note_programmed(core, name, None);
                        }
                        if let Some(rollout) = core.rollouts.get_mut(name) {
                            rollout.slow = Some(effect.id);
                        }
                    }
                }
            }
            let state = core.rollouts.get(name).map(|rollout| rollout.state.clone());
            if begins_to_roll_back
                && let Some(state) = state
                && let Err(error) = self.store_state(core, name, &state, &[])
            {
                tracing::warn!(service = name, %error, "not durable");
            }
        }
        Ok(())
    }

    /// Takes results in that the store could not take when they came. What fails again
    /// is kept; nothing else waits for it.
    pub(super) fn take_owed(&self, core: &mut Core, name: &str) {
        let rollout = core.rollouts.get_mut(name);
        let mut owed = rollout.map_or(VecDeque::new(), |r| std::mem::take(&mut r.owed));
        while let Some(event) = owed.pop_front() {
            if let Err(error) = self.advance_rollout(core, name, event) {
                tracing::warn!(service = name, %error, "a result is not taken in yet");
                break;
            }
        }
        if let Some(rollout) = core.rollouts.get_mut(name) {
            rollout.owed.extend(owed);
        }
    }

    /// Stores a move before it is carried out. One of a rollback goes on whatever
    /// the store says; any other does not.
    fn store_move(
        &self,
        core: &mut Core,
        name: &str,
        next: &State,
        notes: &[Note],
    ) -> Result<(), ControlError> {
        if let Err(error) = self.store_state(core, name, next, notes) {
            if !is_rolling_back(next) && next.outcome().is_none() {
                return Err(store_failed(&error, "the rollout stays where it is"));
            }
            let at_unix_ms = self.clock.unix_ms();
            if let Some(rollout) = core.rollouts.get_mut(name) {
                let new = notes.iter().map(|note| happened(note, at_unix_ms));
                rollout.late.extend(new);
            }
        }
        fault::point("rollout_stored");
        Ok(())
    }

    fn take_state(&self, core: &mut Core, name: &str, next: State, notes: &[Note]) {
        let Some(rollout) = core.rollouts.get_mut(name) else {
            return;
        };
        rollout.state = next;
        let (at_unix_ms, now_ns) = (self.clock.unix_ms(), self.clock.monotonic_ns());
        for note in notes {
            rollout.hear(note, at_unix_ms, now_ns);
            match note.kind {
                "rolling back" | "holding" => {
                    tracing::warn!(
                        service = name,
                        rollout = rollout.id,
                        "{}: {}",
                        note.kind,
                        note.text
                    );
                }
                _ => tracing::info!(
                    service = name,
                    rollout = rollout.id,
                    "{}: {}",
                    note.kind,
                    note.text
                ),
            }
        }
        if !notes.is_empty() {
            self.events.push(name, false);
        }
    }

    /// Stores a state with what was measured since the last one.
    pub(super) fn store_state(
        &self,
        core: &mut Core,
        name: &str,
        state: &State,
        notes: &[Note],
    ) -> Result<(), StoreError> {
        let at_unix_ms = self.clock.unix_ms();
        let Core {
            store, rollouts, ..
        } = core;
        let Some(rollout) = rollouts.get_mut(name) else {
            return Ok(());
        };
        let text =
            serde_json::to_string(state).map_err(|error| StoreError::Content(error.to_string()))?;
        let new = notes.iter().map(|note| happened(note, at_unix_ms));
        let notes: Vec<Happened> = rollout.late.iter().cloned().chain(new).collect();
        let outcome = state.outcome().map(|outcome| outcome.word());
        let stored = store.move_rollout(&Progress {
            id: rollout.id,
            state: &text,
            at_unix_ms,
            outcome,
            notes: &notes,
            windows: &rollout.sampler.full,
        });
        match &stored {
            Ok(()) => {
                rollout.stored = text;
                rollout.sampler.full.clear();
                rollout.late.clear();
                rollout.unstored = None;
            }
            Err(error) => rollout.unstored = Some(error.to_string()),
        }
        stored
    }

    /// Carries out what needs the host, for every rollout that waits for it.
    pub(super) fn carry_all_slow(&self, name: &str) {
        loop {
            let wanted = {
                let mut core = lock(&self.core);
                core.rollouts.get_mut(name).and_then(|r| r.slow.take())
            };
            let Some(id) = wanted else {
                return;
            };
            let Some(event) = self.carry_slow(name, id) else {
                continue;
            };
            let mut core = lock(&self.core);
            if let Err(error) = self.advance_rollout(&mut core, name, event) {
                tracing::warn!(service = name, %error, "a rollout does not go on");
            }
        }
    }

    /// Somebody else gave the live pool everything: the rollout ends.
    pub(in crate::reconcile) fn rollout_taken_back(
        &self,
        core: &mut Core,
        name: &str,
        actor: &str,
        reason: &str,
    ) {
        let runs = core.rollouts.get(name).is_some_and(|r| !r.is_over());
        if !runs || actor == ACTOR {
            return;
        }
        let why = match reason.is_empty() {
            true => format!("{actor} rolled the service back"),
            false => format!("{actor} rolled the service back: {reason}"),
        };
        if let Err(error) = self.advance_rollout(core, name, Event::TakenBack { reason: why }) {
            tracing::warn!(service = name, %error, "ending a rollout failed; it is tried again");
        }
    }
}

fn happened(note: &Note, at_unix_ms: i64) -> Happened {
    Happened {
        at_unix_ms,
        kind: note.kind.to_owned(),
        text: note.text.clone(),
    }
}

/// Whether it says what became of an effect.
fn is_result(event: &Event) -> bool {
    matches!(event, Event::Done { .. } | Event::Failed { .. })
}

fn is_rolling_back(state: &State) -> bool {
    matches!(state.phase, Phase::RollingBack { .. })
}

/// Whether more than time and judgements changed.
fn has_moved(before: &State, after: &State) -> bool {
    before.phase != after.phase
        || before.step != after.step
        || before.pending != after.pending
        || before.holding != after.holding
        || before.weight != after.weight
        || before.promoting != after.promoting
        || before.drained != after.drained
        || before.brought_in != after.brought_in
}

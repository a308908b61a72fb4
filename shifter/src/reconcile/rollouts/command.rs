//! What people tell rollouts: start, pause, resume, advance, promote, abort.

use super::{Rollout, view::RolloutView};
use crate::{
    fault,
    judge::Origin,
    reconcile::{
        controller::{ControlError, RolloutCommand, StartRollout, WriteContext},
        reconciler::{Core, Reconciler, lock},
        write::{audit, check_etag, find, nothing_changed},
    },
    rollout::{Event, Note, RolloutSpec, State, preset, spec},
    store::{Commit, NewRollout},
};

impl Reconciler {
    pub(in crate::reconcile) fn do_start_rollout(
        &self,
        start: &StartRollout,
        context: &WriteContext,
    ) -> Result<RolloutView, ControlError> {
        let name = &start.service;
        {
            let mut core = lock(&self.core);
            self.record_passed_dead_man(&mut core, name);
            let rollout = self.prepared(&core, start, context)?;
            if context.validate_only {
                return Ok(self.rollout_view(&core, name, &rollout));
            }
            self.begin(&mut core, name, rollout, context)?;
        }
        // The first step does not wait for the next round of the loop.
        self.tick_rollouts_of(name);
        self.do_get_rollout(name, 0)
    }

    /// Everything that is checked before anything is changed.
    fn prepared(
        &self,
        core: &Core,
        start: &StartRollout,
        context: &WriteContext,
    ) -> Result<Rollout, ControlError> {
        let name = &start.service;
        let entry = find(&core.services, name)?;
        check_etag(entry, context)?;
        self.check_frozen(core, name)?;
        if core.rollouts.contains_key(name) {
            Self::check_no_rollout(core, name, &context.actor)?;
            return Err(ControlError::Precondition(format!(
                "service {name:?}: the end of the last rollout is still being measured, or webhooks told of it: try again in a few seconds"
            )));
        }
        let described: RolloutSpec = match (&start.spec, &entry.spec.rollout) {
            (Some(text), _) => {
                let spec = spec::from_json(text)
                    .map_err(|error| ControlError::Invalid(error.to_string()))?;
                // What reaches out of the agent comes from its own file only.
                self.check_gates(&spec, Origin::Api)?;
                spec
            }
            (None, Some(spec)) => {
                self.check_gates(spec, Origin::AgentFile)?;
                spec.clone()
            }
            (None, None) => {
                return Err(ControlError::Invalid(format!(
                    "service {name:?} has no [service.rollout] in its description: add one, or say how with --strategy canary --steps 5%,25%,50% --interval 2m"
                )));
            }
        };
        let plan = preset::plan(&described, &entry.spec)
            .map_err(|error| ControlError::Precondition(error.to_string()))?;
        let mut state = State::new(plan.gates.len(), self.clock.unix_ms());
        state.cut_before = self.cut_so_far();
        state.ended_before = self.ended_so_far(name);
        let mut rollout = self.assembled(0, described, plan, state);
        rollout.actor.clone_from(&context.actor);
        rollout.reason.clone_from(&context.reason);
        rollout.resumed = true;
        Ok(rollout)
    }

    fn begin(
        &self,
        core: &mut Core,
        name: &str,
        mut rollout: Rollout,
        context: &WriteContext,
    ) -> Result<(), ControlError> {
        core.store.check().map_err(nothing_changed)?;
        let json = |text: serde_json::Result<String>| {
            text.map_err(|error| ControlError::Internal(error.to_string()))
        };
        let plan = json(serde_json::to_string(&rollout.plan))?;
        let state = json(serde_json::to_string(&rollout.state))?;
        let new = NewRollout {
            service: name,
            spec: &rollout.spec.source,
            plan: &plan,
            state: &state,
            actor: &rollout.actor,
            reason: &rollout.reason,
            at_unix_ms: rollout.began_unix_ms,
        };
        rollout.id = core.store.begin_rollout(&new).map_err(nothing_changed)?;
        rollout.stored = state;
        fault::point("rollout_begun");
        tracing::info!(
            service = name,
            rollout = rollout.id,
            strategy = %rollout.spec.strategy,
            actor = context.actor,
            "rollout begins"
        );
        let begun = Note {
            kind: "begun",
            text: format!("rollout {} begins: {}", rollout.id, rollout.spec.strategy),
        };
        let now_ns = self.clock.monotonic_ns();
        rollout.hear(&begun, rollout.began_unix_ms, now_ns);
        core.rollouts.insert(name.to_owned(), rollout);
        self.audit_only(core, name, "rollout start", context);
        self.events.push(name, false);
        Ok(())
    }

    pub(in crate::reconcile) fn do_command_rollout(
        &self,
        name: &str,
        command: RolloutCommand,
        context: &WriteContext,
    ) -> Result<RolloutView, ControlError> {
        let reason = |what: &str| match context.reason.as_str() {
            "" => format!("{what} by {}", context.actor),
            why => format!("{what} by {}: {why}", context.actor),
        };
        let (event, action, goes_on) = match command {
            RolloutCommand::Pause => (Event::Pause, "rollout pause", false),
            RolloutCommand::Resume => (Event::Resume, "rollout resume", true),
            RolloutCommand::Advance => (Event::Advance, "rollout advance", true),
            RolloutCommand::Retry => (Event::Retry, "rollout retry", true),
            RolloutCommand::Promote => (Event::Promote, "rollout promote", true),
            RolloutCommand::Abort => {
                let reason = reason("aborted");
                (Event::Abort { reason }, "rollout abort", false)
            }
        };
        {
            let mut core = lock(&self.core);
            self.record_passed_dead_man(&mut core, name);
            find(&core.services, name)?;
            if goes_on {
                self.check_frozen(&core, name)?;
            }
            if core.rollouts.get(name).is_none_or(Rollout::is_over) {
                return Err(ControlError::Precondition(format!(
                    "service {name:?} has no rollout under way: `shifter rollout start {name}` begins one"
                )));
            }
            self.resume_rollout(&mut core, name)?;
            self.take_owed(&mut core, name);
            self.advance_rollout(&mut core, name, event)?;
            self.audit_only(&mut core, name, action, context);
        }
        self.carry_all_slow(name);
        self.tick_rollouts_of(name);
        self.do_get_rollout(name, 0)
    }

    /// A record in the audit of what changed no split.
    pub(in crate::reconcile) fn audit_only(
        &self,
        core: &mut Core,
        name: &str,
        action: &str,
        context: &WriteContext,
    ) {
        let at_unix_ms = self.clock.unix_ms();
        let record = match core.services.get(name) {
            Some(entry) => audit(at_unix_ms, context, entry, action, &entry.describe()),
            None => crate::store::Audit {
                at_unix_ms,
                actor: context.actor.clone(),
                request_id: context.request_id.clone(),
                service: name.to_owned(),
                action: action.to_owned(),
                reason: context.reason.clone(),
                ..crate::store::Audit::default()
            },
        };
        let commit = Commit {
            generation: core.generation,
            at_unix_ms,
            audit: vec![record],
            ..Commit::default()
        };
        if let Err(error) = core.store.commit(&commit) {
            tracing::warn!(service = name, %error, "the audit has no record of {action:?}");
        }
    }
}

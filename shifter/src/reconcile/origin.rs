//! What reaches out of the agent comes from its own file only: gates, hooks, and
//! checks by a program.

use super::{
    controller::{ControlError, WriteContext},
    file_load::FILE_ACTOR,
    reconciler::{Core, Reconciler},
};
use crate::{
    judge::{self, Origin},
    model::{
        HealthSpec, ServiceSpec,
        health::{Check, show},
    },
    rollout::RolloutSpec,
};

/// Who asks for a write.
fn origin(context: &WriteContext) -> Origin {
    match context.actor.as_str() {
        FILE_ACTOR => Origin::AgentFile,
        _ => Origin::Api,
    }
}

impl Reconciler {
    /// Refuses what a service newly has and may not have from there. What is in force
    /// already may stay, whoever writes it again.
    pub(super) fn check_origin(
        &self,
        core: &Core,
        spec: &ServiceSpec,
        context: &WriteContext,
    ) -> Result<(), ControlError> {
        let stored = core.services.get(&spec.name).map(|entry| &entry.spec);
        if let Some(rollout) = &spec.rollout
            && stored.and_then(|stored| stored.rollout.as_ref()) != Some(rollout)
        {
            self.check_gates(rollout, origin(context))?;
        }
        if let Some(health) = &spec.health
            && stored.and_then(|stored| stored.health.as_ref()) != Some(health)
        {
            self.check_program(&spec.name, health, origin(context))?;
        }
        Ok(())
    }

    fn check_program(
        &self,
        service: &str,
        health: &HealthSpec,
        origin: Origin,
    ) -> Result<(), ControlError> {
        if !matches!(health.check, Check::Exec(_)) {
            return Ok(());
        }
        let allowed = &self.settings.allowed;
        let text = match origin {
            Origin::Api => "a check of type \"exec\" runs a program of this host and cannot come over the API: write it into [[service]] of the agent's own file and restart the agent".to_owned(),
            Origin::AgentFile if !allowed.exec => "there is no directory of programs: set exec_dir of [gates] in the agent's file, as exec_dir = \"/etc/shifter/exec\"".to_owned(),
            Origin::AgentFile => match allowed.timeout_max {
                Some(most) if health.timeout > most => format!(
                    "its timeout of {} is above timeout_max of [gates] in the agent's file, {}: lower the one or raise the other",
                    show(health.timeout),
                    show(most)
                ),
                _ => return Ok(()),
            },
        };
        Err(ControlError::Precondition(format!(
            "service {service:?}: health: {text}"
        )))
    }

    /// Refuses gates and hooks that come from where they may not.
    pub(super) fn check_gates(
        &self,
        spec: &RolloutSpec,
        origin: Origin,
    ) -> Result<(), ControlError> {
        let refuse = |error: judge::GateError| ControlError::Precondition(error.to_string());
        judge::check_allowed(&spec.gates, origin, &self.settings.allowed).map_err(refuse)?;
        let hooks = spec.hooks();
        let Some(hook) = hooks.first() else {
            return Ok(());
        };
        match origin {
            Origin::Api => Err(ControlError::Precondition(format!(
                "hook {hook:?} runs a program of this host and cannot come over the API: write the rollout into [[service]] of the agent's own file and restart the agent"
            ))),
            Origin::AgentFile if !self.settings.allowed.exec => {
                Err(refuse(judge::GateError::NoExecDir {
                    gate: (*hook).to_owned(),
                }))
            }
            Origin::AgentFile => Ok(()),
        }
    }
}

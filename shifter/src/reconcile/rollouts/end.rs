//! The end of a rollout: once its aftermath is measured its report is made and kept.

use super::Rollout;
use crate::{
    judge::{Recorded, Recording},
    reconcile::{
        controller::{ControlError, ReportFormat},
        reconciler::{Core, Reconciler, lock},
    },
    rollout::{
        Plan,
        report::{Facts, Report, RollbackTimes},
    },
    store::{Ended, StoreError},
};

impl Reconciler {
    /// Makes the report of a rollout that is over and lets go of it.
    pub(super) fn end_rollout(&self, name: &str) {
        let Some((aftermath, service, candidate)) = ({
            let core = lock(&self.core);
            // Its service may be deleted since it is over.
            let service = core.services.get(name).map(|entry| entry.id);
            core.rollouts.get(name).and_then(|rollout| {
                let now_ns = self.clock.monotonic_ns();
                let measured = rollout.aftermath.as_ref().is_none_or(|a| a.is_due(now_ns));
                let is_measured = measured || service.is_none();
                let is_ready = rollout.is_over() && is_measured && !rollout.told.delays(now_ns);
                is_ready.then(|| (rollout.aftermath.clone(), service, rollout.plan.candidate))
            })
        }) else {
            return;
        };
        // A pass over the table, without the lock.
        let times = aftermath
            .zip(service)
            .map(|(aftermath, service)| self.rollback_times(&aftermath, service, candidate));
        let mut core = lock(&self.core);
        if let Err(error) = self.keep_report(&mut core, name, times) {
            tracing::debug!(service = name, %error, "the report of a rollout is not stored yet");
            return;
        }
        core.rollouts.remove(name);
        self.events.push(name, false);
    }

    pub(in crate::reconcile) fn do_rollout_report(
        &self,
        name: &str,
        id: u64,
        format: ReportFormat,
    ) -> Result<(u64, String), ControlError> {
        let core = lock(&self.core);
        let internal = |error: StoreError| ControlError::Internal(error.to_string());
        if format == ReportFormat::Recording {
            return self.recording(&core, name, id);
        }
        let row = match id {
            0 => {
                let rows = core.store.rollouts(name, 100).map_err(internal)?;
                rows.into_iter().find(|row| row.report.is_some())
            }
            id => Some(self.rollout_row(&core, name, id)?),
        };
        let row = match row {
            Some(row) => row,
            None => self.rollout_row(&core, name, 0)?,
        };
        let Some(json) = row.report else {
            return Err(ControlError::Precondition(format!(
                "rollout {} of service {name:?} has no report yet: it is made a few seconds after the end, `shifter rollout watch {name}` waits for it",
                row.id
            )));
        };
        let wrong = |error: serde_json::Error| {
            ControlError::Internal(format!(
                "the report of rollout {} cannot be read: {error}",
                row.id
            ))
        };
        let report: Report = serde_json::from_str(&json).map_err(wrong)?;
        let text = match format {
            ReportFormat::Json => serde_json::to_string_pretty(&report).map_err(wrong)?,
            ReportFormat::Markdown => report.markdown(),
            ReportFormat::Html => report.html(),
            ReportFormat::Recording => String::new(),
        };
        Ok((row.id, text))
    }

    /// What was measured in a rollout, over or not.
    fn recording(&self, core: &Core, name: &str, id: u64) -> Result<(u64, String), ControlError> {
        let row = self.rollout_row(core, name, id)?;
        let internal = |text: String| ControlError::Internal(text);
        let plan: Plan =
            serde_json::from_str(&row.plan).map_err(|error| internal(error.to_string()))?;
        let windows = core
            .store
            .rollout_windows(row.id)
            .map_err(|error| internal(error.to_string()))?;
        if windows.is_empty() {
            return Err(ControlError::Precondition(format!(
                "nothing is kept of what rollout {} of service {name:?} measured: windows are kept of the last 20 rollouts of a service",
                row.id
            )));
        }
        let recorded = windows.into_iter().map(|window| {
            let [blue, green] = window.signals;
            Recorded {
                at_ms: (window.at_unix_ms - row.began_unix_ms).max(0) as u64,
                step: window.step as u32,
                blue,
                green,
            }
        });
        let recording = Recording {
            service: name.to_owned(),
            live: plan.candidate.other(),
            windows: recorded.collect(),
        };
        Ok((row.id, recording.to_text()))
    }

    fn keep_report(
        &self,
        core: &mut Core,
        name: &str,
        times: Option<RollbackTimes>,
    ) -> Result<(), StoreError> {
        let Some(rollout) = core.rollouts.get_mut(name) else {
            return Ok(());
        };
        rollout.sampler.flush();
        rollout.stop_telling(self.clock.unix_ms());
        let (id, state) = (rollout.id, rollout.state.clone());
        // What is not stored yet belongs into it.
        self.store_state(core, name, &state, &[])?;
        let Some(rollout) = core.rollouts.get(name) else {
            return Ok(());
        };
        let report = self.report_of(core, name, rollout, times)?;
        let json = serde_json::to_string(&report)
            .map_err(|error| StoreError::Content(error.to_string()))?;
        let ended = Ended {
            cut: report.reset_by_shifter,
            failed: report.pools.iter().map(|pool| pool.failures).sum(),
            rollback_ns: report.rollback.programmed_ns,
        };
        core.store.set_report(id, &json, ended)
    }

    /// Packets of live traffic that the programs dropped, and established flows that
    /// gave way, since the maps were made.
    pub(super) fn cut_so_far(&self) -> u64 {
        let dropped: u64 = self
            .datapath
            .verdicts()
            .unwrap_or_default()
            .iter()
            .filter(|count| crate::telemetry::is_drop(count.number))
            .map(|count| count.packets)
            .sum();
        let census = self.census();
        let established = ["established", "udp_answered"];
        let evicted: u64 = established
            .iter()
            .filter_map(|state| census.evicted.get(state))
            .sum();
        dropped + evicted
    }

    /// Flows of a service that were ended on request, by this agent.
    pub(super) fn ended_so_far(&self, name: &str) -> u64 {
        self.ended_flows(name).iter().map(|(_, flows)| flows).sum()
    }

    fn report_of(
        &self,
        core: &Core,
        name: &str,
        rollout: &Rollout,
        times: Option<RollbackTimes>,
    ) -> Result<Report, StoreError> {
        let row = core.store.rollout(rollout.id)?;
        let ended_unix_ms = row.and_then(|row| row.ended_unix_ms);
        let notes = core.store.rollout_notes(rollout.id, u32::MAX)?;
        let windows = core.store.rollout_windows(rollout.id)?;
        Ok(Report::new(&Facts {
            id: rollout.id,
            service: name,
            spec: &rollout.spec,
            plan: &rollout.plan,
            state: &rollout.state,
            actor: &rollout.actor,
            reason: &rollout.reason,
            began_unix_ms: rollout.began_unix_ms,
            ended_unix_ms: ended_unix_ms.unwrap_or_else(|| self.clock.unix_ms()),
            notes: &notes,
            windows: &windows,
            times: times.unwrap_or_default(),
            cut_now: self.cut_so_far(),
            ended_now: self.ended_so_far(name),
        }))
    }
}

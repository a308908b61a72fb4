//! What is measured after a rollback: how soon it was in force, and when green was
//! given its last new flow.

use crate::{
    datapath::FlowFilter,
    model::PoolName,
    reconcile::{
        controller::Receipt,
        reconciler::{Core, Reconciler},
    },
    rollout::report::RollbackTimes,
};

/// Flows are looked at so long after the rollback, in ns.
const SETTLED_NS: u64 = 1_500_000_000;
/// Flows that are looked at.
const LOOKED_AT: usize = 1 << 20;

/// See the module. Times are CLOCK_MONOTONIC in ns.
#[derive(Clone, Debug, Default)]
pub struct Aftermath {
    /// `None`: somebody else rolled the service back.
    decided_ns: Option<u64>,
    programmed_ns: Option<u64>,
    generation: u32,
    noted_ns: u64,
}

impl Aftermath {
    pub fn decided_at(ns: u64) -> Self {
        Self {
            decided_ns: Some(ns),
            ..Self::default()
        }
    }

    pub fn of_another() -> Self {
        Self::default()
    }

    /// Whether the flows can be looked at.
    pub fn is_due(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.noted_ns) >= SETTLED_NS
    }
}

impl Reconciler {
    /// A rollback is in force.
    pub(super) fn note_programmed(&self, core: &mut Core, name: &str, receipt: Option<&Receipt>) {
        let now_ns = self.clock.monotonic_ns();
        let Some(entry) = core.services.get(name) else {
            return;
        };
        let (generation, published_ns) = (entry.generation, entry.published_ns(entry.generation));
        let Some(rollout) = core.rollouts.get_mut(name) else {
            return;
        };
        let Some(aftermath) = &mut rollout.aftermath else {
            return;
        };
        if aftermath.noted_ns != 0 {
            return;
        }
        aftermath.noted_ns = now_ns;
        aftermath.generation = generation;
        if receipt.is_some() {
            aftermath.programmed_ns = published_ns;
        }
    }

    /// What became of the flows; one pass over the table.
    pub(super) fn rollback_times(
        &self,
        aftermath: &Aftermath,
        service: u16,
        candidate: PoolName,
    ) -> RollbackTimes {
        let Some(programmed_ns) = aftermath.programmed_ns else {
            return RollbackTimes::default();
        };
        let decided_ns = aftermath.decided_ns.unwrap_or(programmed_ns);
        let filter = FlowFilter {
            service: Some(service),
            pool: Some(candidate),
            limit: LOOKED_AT,
            ..FlowFilter::default()
        };
        let (rows, _) = self.datapath.flows(&filter);
        let now_ns = self.clock.monotonic_ns();
        let chosen = rows.iter().filter(|row| !row.adopted);
        let began: Vec<u64> = chosen
            .map(|row| now_ns.saturating_sub((row.age_s * 1e9) as u64))
            .collect();
        let last = began.iter().max().copied();
        let after = rows
            .iter()
            .filter(|row| !row.adopted && row.generation >= aftermath.generation)
            .count();
        let first_flow = self.datapath.first_flow(service);
        RollbackTimes {
            programmed_ns: Some(programmed_ns.saturating_sub(decided_ns)),
            first_flow_ns: first_flow
                .filter(|(generation, _)| *generation >= aftermath.generation)
                .map(|(_, at_ns)| at_ns.saturating_sub(decided_ns)),
            last_candidate_flow_ns: last.map(|at| at as i64 - decided_ns as i64),
            candidate_flows_after: Some(after as u64),
        }
    }
}

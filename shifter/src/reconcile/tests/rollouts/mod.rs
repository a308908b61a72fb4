//! Rollouts over the fake packet path: judged, guarded by the lease, restarted, frozen.

mod backends;
mod cohorts;
mod freeze;
mod hooks;
mod judging;
mod lease;
mod storing;

use std::time::Duration;

use super::rig::{Rig, context, specs, web};
use crate::{
    health::{Checked, Watched as _, probe::Outcome, state::Health},
    model::{BackendState, PoolName, signals::PoolSignals},
    reconcile::{
        Controller as _,
        controller::{
            ControlError, DrainEnd, EventQuery, NamedBackends, ReportFormat, RolloutCommand,
            RolloutView, StartRollout, WriteContext,
        },
        reconciler::lock,
        rollouts::HookRun,
    },
    rollout::{Action, Effect, OnDoubt, Phase, Step},
    store::Progress,
};

const SECOND: Duration = Duration::from_secs(1);
const CANARY: &str = r#"{"strategy":"canary","steps":["10%","50%"],"interval":"5s","lease":"30s"}"#;

const SEQUENTIAL: &str =
    r#"{"strategy":"canary","steps":["50%"],"interval":"10m","gates":[{"judge":"sequential"}]}"#;

/// As if an action were asked for whose result has not come.
fn leave_in_doubt(rig: &Rig, action: Action) {
    let mut core = lock(&rig.reconciler.core);
    let state = &mut core.rollouts.get_mut("web").unwrap().state;
    state.pending = Some(Effect {
        id: state.next_id,
        action,
    });
    state.next_id += 1;
    state.failed = Some("it was in doubt".into());
}

fn start(rig: &Rig, json: &str) -> Result<RolloutView, ControlError> {
    let start = StartRollout {
        service: "web".into(),
        spec: Some(json.into()),
    };
    rig.reconciler.start_rollout(&start, &context())
}

fn tell(rig: &Rig, command: RolloutCommand) -> Result<RolloutView, ControlError> {
    rig.reconciler.command_rollout("web", command, &context())
}

fn view(rig: &Rig) -> RolloutView {
    rig.reconciler.rollout("web", 0).unwrap()
}

fn pass(rig: &Rig, seconds: u32) {
    for _ in 0..seconds {
        rig.clock.pass(SECOND);
        rig.reconciler.maintain();
        rig.reconciler.tick_rollouts();
    }
}

/// So many flows a second, of which some of green's are reset.
fn pass_with_traffic(rig: &Rig, seconds: u32, failing: u64) {
    let id = rig.service_id("web");
    for _ in 0..seconds {
        rig.datapath.with(|state| {
            let signals = state.signals.entry(id).or_default();
            for pool in signals.iter_mut() {
                pool.attempts += 100;
                pool.answered += 100;
                pool.ended += 100;
                pool.handshake.0[20] += 100;
            }
            signals[1].resets_before_data += failing;
        });
        pass(rig, 1);
    }
}

fn with_signals() -> Rig {
    let rig = Rig::with_web();
    let id = rig.service_id("web");
    let none = <[PoolSignals; 2]>::default();
    rig.datapath.with(|state| state.signals.insert(id, none));
    rig
}

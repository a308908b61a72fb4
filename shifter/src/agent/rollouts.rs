//! The task that walks rollouts: once a second time passes for each, and what others
//! have to be asked is asked beside it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::task::JoinSet;

use super::{
    engine::Engine,
    panics,
    supervise::{ROLLOUTS, Stopped, blocking},
};
use crate::{
    gate::{Asker, Subject},
    judge::{Exec, GateSpec, Judge, Outcome, Policy},
    reconcile::{
        Reconciler,
        rollouts::{Ask, HookRun},
    },
    rollout::Action,
};

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(1);
/// How long a hook may take.
const HOOK_TIMEOUT: Duration = Duration::from_secs(60);

/// Walks until `stopped`; what is asked of others is given up then: a hook's effect
/// is stored as begun, and a gate is asked again by who goes on.
pub async fn walk(engine: Engine, mut stopped: Stopped) -> Result<()> {
    let (reconciler, asker) = (engine.reconciler, engine.asker);
    let mut asked = JoinSet::new();
    let mut due = Instant::now();
    loop {
        panics::point(ROLLOUTS);
        let at_work = Arc::clone(&reconciler);
        let work = blocking(move || at_work.tick_rollouts()).await?;
        for ask in work.asks {
            asked.spawn(ask_gate(Arc::clone(&reconciler), Arc::clone(&asker), ask));
        }
        for run in work.hooks {
            asked.spawn(run_hook(Arc::clone(&reconciler), Arc::clone(&asker), run));
        }
        while asked.try_join_next().is_some() {}
        // A round that took long is not made up for.
        due = (due + EVERY).max(Instant::now());
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            _ = stopped.wait_for(|stop| *stop) => break,
        }
    }
    asked.shutdown().await;
    Ok(())
}

async fn ask_gate(reconciler: Arc<Reconciler>, asker: Arc<Asker>, ask: Ask) {
    let subject = Subject {
        service: ask.service.clone(),
        rollout: ask.rollout,
        step: ask.step,
        weight: ask.weight.clone(),
        phase: ask.phase.clone(),
        candidate: ask.candidate.clone(),
    };
    let judgement = asker.ask(&ask.spec, &subject).await;
    let told = blocking(move || reconciler.rollout_judged(&ask, judgement)).await;
    if let Err(error) = told {
        tracing::error!(%error, "taking a judgement in failed");
    }
}

/// A hook is a program as gates have it; its end with 0 is success.
async fn run_hook(reconciler: Arc<Reconciler>, asker: Arc<Asker>, run: HookRun) {
    let Action::Hook { name, backend } = &run.effect.action else {
        return;
    };
    let spec = GateSpec {
        name: name.clone(),
        judge: Judge::Exec(Exec {
            file: name.clone(),
            interval: HOOK_TIMEOUT,
            timeout: HOOK_TIMEOUT,
        }),
        on_fail: Policy::Hold,
        on_no_data: Policy::Hold,
        on_inconclusive: Policy::Hold,
        on_error: Policy::Hold,
        min_samples: 0,
    };
    let subject = Subject {
        service: run.service.clone(),
        rollout: run.rollout,
        step: run.step,
        weight: run.weight.clone(),
        // For an update: which backend.
        phase: backend.map_or("hook".to_owned(), |backend| format!("update {backend}")),
        candidate: run.candidate.clone(),
    };
    let judgement = asker.ask(&spec, &subject).await;
    let result = match judgement.outcome {
        Outcome::Pass => Ok(()),
        _ => Err(format!("hook {name:?} failed: {}", judgement.reason)),
    };
    let told = blocking(move || reconciler.rollout_hook_done(&run, result)).await;
    if let Err(error) = told {
        tracing::error!(%error, "taking a hook's result in failed");
    }
}

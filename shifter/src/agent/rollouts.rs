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
    judge::{Judgement, Outcome},
    reconcile::{
        Reconciler,
        rollouts::{Ask, HookRun},
    },
};

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(1);

/// Walks until `stopped`; what is asked of others is given up then: a hook's effect
/// is stored as begun, and a gate is asked again by who goes on.
pub async fn walk(engine: Engine, mut stopped: Stopped) -> Result<()> {
    let reconciler = engine.reconciler;
    let mut asked = JoinSet::new();
    let mut due = Instant::now();
    loop {
        panics::point(ROLLOUTS);
        let at_work = Arc::clone(&reconciler);
        let work = blocking(move || at_work.tick_rollouts()).await?;
        for ask in work.asks {
            asked.spawn(ask_gate(Arc::clone(&reconciler), ask));
        }
        for run in work.hooks {
            asked.spawn(run_hook(Arc::clone(&reconciler), run));
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

async fn ask_gate(reconciler: Arc<Reconciler>, ask: Ask) {
    let judgement = Judgement {
        outcome: Outcome::Error,
        reason: format!(
            "this agent cannot ask a gate of the kind {:?}",
            ask.spec.judge.word()
        ),
        statistics: Vec::new(),
    };
    let told = blocking(move || reconciler.rollout_judged(&ask, judgement)).await;
    if let Err(error) = told {
        tracing::error!(%error, "taking a judgement in failed");
    }
}

async fn run_hook(reconciler: Arc<Reconciler>, run: HookRun) {
    let result = Err("this agent cannot run hooks".to_owned());
    let told = blocking(move || reconciler.rollout_hook_done(&run, result)).await;
    if let Err(error) = told {
        tracing::error!(%error, "taking a hook's result in failed");
    }
}

//! The task that walks rollouts: once a second time passes for each, and what others
//! have to be asked is asked beside it.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::task::{Id, JoinSet};

use super::{
    engine::Engine,
    panics,
    supervise::{ROLLOUTS, Stopped, blocking},
};
use crate::{
    gate::{Asker, Subject},
    judge::{Exec, GateSpec, Judge, Judgement, Outcome, Policy},
    reconcile::{
        Reconciler,
        rollouts::{Ask, HookRun, Tell},
    },
    rollout::Action,
};

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(1);
/// How long a hook may take.
const HOOK_TIMEOUT: Duration = Duration::from_secs(60);

/// All that one webhook is told at once, together.
const TELL_TIMEOUT: Duration = Duration::from_secs(30);

/// Walks until `stopped`; what is asked of others is given up then: a hook's effect
/// is stored as begun, and a gate is asked again by who goes on.
pub async fn walk(engine: Engine, mut stopped: Stopped) -> Result<()> {
    let (reconciler, asker) = (engine.reconciler, engine.asker);
    let mut asked = Asked::default();
    let mut due = Instant::now();
    // Of a walk that has ended nobody waits for anything.
    let at_work = Arc::clone(&reconciler);
    blocking(move || at_work.forsake_rollouts()).await?;
    loop {
        panics::point(ROLLOUTS);
        let at_work = Arc::clone(&reconciler);
        let work = blocking(move || at_work.tick_rollouts()).await?;
        for ask in work.asks {
            let asks = ask_gate(Arc::clone(&reconciler), Arc::clone(&asker), ask.clone());
            asked.begin(What::Gate(Box::new(ask)), asks);
        }
        for run in work.hooks {
            let runs = run_hook(Arc::clone(&reconciler), Arc::clone(&asker), run.clone());
            asked.begin(What::Hook(Box::new(run)), runs);
        }
        for tell in work.tells {
            let tells = tell_webhook(Arc::clone(&reconciler), Arc::clone(&asker), tell.clone());
            asked.begin(What::Tell(Box::new(tell)), tells);
        }
        for (what, why) in asked.panicked() {
            let at_work = Arc::clone(&reconciler);
            blocking(move || what.fails(&at_work, &why)).await?;
        }
        // A round that took long is not made up for.
        due = (due + EVERY).max(Instant::now());
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {}
            _ = stopped.wait_for(|stop| *stop) => break,
        }
    }
    asked.tasks.shutdown().await;
    Ok(())
}

/// What is asked of others.
enum What {
    Gate(Box<Ask>),
    Hook(Box<HookRun>),
    Tell(Box<Tell>),
}

impl What {
    /// Nobody else says that it got no answer.
    fn fails(&self, reconciler: &Reconciler, why: &str) {
        let reason = format!("asking it panicked: {why}");
        match self {
            Self::Gate(ask) => reconciler.rollout_judged(
                ask,
                Judgement {
                    outcome: Outcome::Error,
                    reason,
                    statistics: Vec::new(),
                },
            ),
            Self::Hook(run) => reconciler.rollout_hook_done(run, Err(reason)),
            Self::Tell(tell) => reconciler.rollout_told(tell, Err(reason)),
        }
    }
}

/// Tasks that ask, and what each of them asks.
#[derive(Default)]
struct Asked {
    tasks: JoinSet<()>,
    what: HashMap<Id, What>,
}

impl Asked {
    fn begin(&mut self, what: What, asks: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(asks).id();
        self.what.insert(id, what);
    }

    /// Lets go of those that have ended; gives those that panicked.
    fn panicked(&mut self) -> Vec<(What, String)> {
        let mut panicked = Vec::new();
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            let (id, why) = match ended {
                Ok((id, ())) => (id, None),
                Err(error) => (error.id(), Some(error.to_string())),
            };
            let what = self.what.remove(&id);
            panicked.extend(what.zip(why));
        }
        panicked
    }
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

/// Tells a webhook one thing after the other; after the first that fails it is left alone.
async fn tell_webhook(reconciler: Arc<Reconciler>, asker: Arc<Asker>, tell: Tell) {
    let begun = Instant::now();
    let mut result = Ok(());
    for (told, news) in tell.news.iter().enumerate() {
        let subject = Subject {
            service: tell.service.clone(),
            rollout: tell.rollout,
            step: news.step,
            weight: news.weight.clone(),
            phase: news.phase.clone(),
            candidate: news.candidate.clone(),
        };
        let answer = match begun.elapsed() < TELL_TIMEOUT {
            true => asker.tell(&tell.spec, &subject, &news.happened).await,
            false => Err(format!("it took more than {} s", TELL_TIMEOUT.as_secs())),
        };
        if let Err(why) = answer {
            let left = tell.news.len() - told;
            let kind = &news.happened.kind;
            result = Err(match left {
                1 => format!("it was not told of {kind:?}: {why}"),
                _ => format!("it was not told of {kind:?} and {} more: {why}", left - 1),
            });
            break;
        }
    }
    let told = blocking(move || reconciler.rollout_told(&tell, result)).await;
    if let Err(error) = told {
        tracing::error!(%error, "noting what a webhook was told failed");
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

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(service: &str) -> What {
        What::Hook(Box::new(HookRun {
            service: service.into(),
            rollout: 1,
            effect: crate::rollout::Effect {
                id: 1,
                action: Action::Keep,
            },
            step: 0,
            weight: "5%".into(),
            candidate: "green".into(),
        }))
    }

    #[tokio::test]
    async fn a_panic_is_told_of_what_was_asked() {
        let mut asked = Asked::default();
        asked.begin(hook("good"), async {});
        asked.begin(hook("bad"), async { panic!("a bug") });
        let mut found = Vec::new();
        while !asked.what.is_empty() {
            found.extend(asked.panicked());
            tokio::task::yield_now().await;
        }
        let [(What::Hook(run), why)] = &found[..] else {
            panic!("{} of them", found.len());
        };
        assert_eq!(run.service, "bad");
        assert!(why.contains("a bug"), "{why}");
    }
}

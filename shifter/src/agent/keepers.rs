//! The tasks that keep the datapath up to date: by time, and as the network changes.

use std::{
    hash::{BuildHasher as _, Hasher as _},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tokio::{
    sync::broadcast::error::RecvError,
    task::{JoinHandle, JoinSet},
};

use super::{
    engine::Engine,
    loud::Loud,
    notify::Manager,
    panics, rollouts,
    supervise::{
        CUTS, HEALTH, MAINTAIN, NETWORK, PLACEMENTS, ROLLOUTS, Stopped, Supervisor, blocking,
        is_over,
    },
};
use crate::{
    datapath::{Datapath as _, kernel::KernelDatapath, plural},
    health::checker,
    network::LinkEvent,
};

/// Between two passes over what is kept up to date by time.
const MAINTAIN_EVERY: Duration = Duration::from_secs(1);
/// Between two turns of ending flows.
const CUT_EVERY: Duration = Duration::from_millis(100);
/// Passes between two sweeps of the flow table.
const SWEEP_EVERY: u64 = 5;
/// Passes between two prunings of history.
const PRUNE_EVERY: u64 = 3_600;

/// Starts them; each ends after the step that it is in once `stopped`.
pub fn start(
    engine: &Engine,
    manager: &Arc<Manager>,
    supervisor: &Arc<Supervisor>,
    stopped: &Stopped,
) -> Vec<JoinHandle<()>> {
    let each = || (engine.clone(), stopped.clone());
    let (maintained, until) = each();
    let manager = Arc::clone(manager);
    let by_time = move || {
        let (engine, until) = (maintained.clone(), until.clone());
        let manager = Arc::clone(&manager);
        async move { blocking(move || maintain(&engine, &manager, &until)).await }
    };
    let (followed, until) = each();
    let mut is_again = false;
    let network = move || {
        let again = std::mem::replace(&mut is_again, true);
        follow_network(followed.clone(), until.clone(), again)
    };
    let (placed, until) = each();
    let mut is_again = false;
    let placements = move || {
        let again = std::mem::replace(&mut is_again, true);
        follow_placements(placed.clone(), until.clone(), again)
    };
    let (checked, until) = each();
    let health = move || check_health(checked.clone(), until.clone());
    let (walked, until) = each();
    let walks = move || rollouts::walk(walked.clone(), until.clone());
    let (cut, until) = each();
    let cuts = move || cut_flows(cut.clone(), until.clone());
    vec![
        supervisor.run(MAINTAIN, stopped.clone(), by_time),
        supervisor.run(NETWORK, stopped.clone(), network),
        supervisor.run(PLACEMENTS, stopped.clone(), placements),
        supervisor.run(HEALTH, stopped.clone(), health),
        supervisor.run(ROLLOUTS, stopped.clone(), walks),
        supervisor.run(CUTS, stopped.clone(), cuts),
    ]
}

/// Once a second: dead-men, observed shares, expiry, neighbours of backends.
fn maintain(engine: &Engine, manager: &Manager, stopped: &Stopped) {
    let mut passes = 0u64;
    let mut loud = Loud::default();
    while !is_over(stopped) {
        panics::point(MAINTAIN);
        pass(engine, manager, &mut loud, passes);
        manager.answer();
        passes += 1;
        let due = Instant::now() + MAINTAIN_EVERY;
        while Instant::now() < due && !is_over(stopped) {
            engine.reconciler.flush_events();
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn pass(engine: &Engine, manager: &Manager, loud: &mut Loud, passes: u64) {
    let (reconciler, datapath) = (&engine.reconciler, &engine.datapath);
    reconciler.tick_observed();
    reconciler.maintain();
    datapath.reclaim();
    let mut keeper = engine.keeper.lock().unwrap_or_else(PoisonError::into_inner);
    reconciler.note_pins(keeper.look());
    drop(keeper);
    if engine.hooks.tend() {
        reconciler.settle_again();
    }
    match datapath.verdicts() {
        Ok(verdicts) => {
            reconciler.note_drops(&verdicts);
            loud.note_drops(&verdicts);
        }
        Err(error) => tracing::debug!(%error, "reading the verdicts failed"),
    }
    if passes.is_multiple_of(SWEEP_EVERY) {
        datapath.sweep();
        let warnings = reconciler.loud();
        manager.status(&status_line(datapath, &warnings));
        loud.note_warnings(warnings);
        resolve_backends(engine);
    }
    if passes.is_multiple_of(PRUNE_EVERY) {
        reconciler.prune();
    }
}

/// What `systemctl status` shows of an agent that serves.
fn status_line(datapath: &KernelDatapath, warnings: &[String]) -> String {
    let hooks: Vec<String> = datapath
        .hooks()
        .into_iter()
        .map(|hook| format!("{} ({})", hook.interface, hook.hook))
        .collect();
    let on = match hooks.as_slice() {
        [] => "no interface".to_owned(),
        some => some.join(", "),
    };
    match warnings {
        [] => format!("serving on {on}"),
        [only] => format!("serving on {on}; {only}"),
        [first, rest @ ..] => format!(
            "serving on {on}; {first} ({} in `shifter status`)",
            plural(rest.len() as u64, "more warning")
        ),
    }
}

fn resolve_backends(engine: &Engine) {
    let network = &engine.network;
    match engine.datapath.inventory() {
        Ok(inventory) => {
            let ips = inventory.backends.into_iter().map(|(_, addr, _)| addr.ip());
            network.keep_resolved(ips.filter(|ip| !network.is_local(*ip)));
        }
        Err(error) => tracing::warn!(%error, "reading the backends failed"),
    }
}

/// Checks backends. What was down stays so until its checks say otherwise, over a
/// new start of this task too.
async fn check_health(engine: Engine, stopped: Stopped) -> Result<()> {
    panics::point(HEALTH);
    let lots = std::hash::RandomState::new().build_hasher().finish();
    checker::run(
        engine.reconciler,
        engine.asker.runner().cloned(),
        stopped,
        lots,
    )
    .await
}

/// Ends flows where that is asked for.
async fn cut_flows(engine: Engine, mut stopped: Stopped) -> Result<()> {
    loop {
        panics::point(CUTS);
        tokio::select! {
            () = tokio::time::sleep(CUT_EVERY) => {}
            _ = stopped.wait_for(|stop| *stop) => return Ok(()),
        }
        let reconciler = Arc::clone(&engine.reconciler);
        blocking(move || reconciler.cut_flows()).await?;
    }
}

/// What netlink has told of.
enum Change {
    Link(LinkEvent),
    /// So many at once that some were lost: everything is looked at.
    All,
    NextHops,
}

/// Follows netlink: hooks on interfaces that come and go, and next hops. When
/// started `again`, what was told in between is lost: all is looked at.
async fn follow_network(engine: Engine, mut stopped: Stopped, again: bool) -> Result<()> {
    let mut changes = engine.changes.clone();
    let mut events = engine.network.link_events();
    let mut route_generation = engine.route_generation;
    // Thousands of services take a second, and the next notice must not wait. Ended
    // before this task ends: then another agent may be about to write.
    let mut settling = JoinSet::new();
    if again {
        let engine = engine.clone();
        blocking(move || {
            if follow(&engine, &Change::All, false) {
                engine.reconciler.settle_again();
            }
            follow(&engine, &Change::NextHops, true);
        })
        .await?;
    }
    let mut look = tokio::time::interval(MAINTAIN_EVERY);
    loop {
        panics::point(NETWORK);
        if !engine.network.is_watched() {
            bail!("the thread that watches the network has ended: restart the agent");
        }
        while settling.try_join_next().is_some() {}
        let change = tokio::select! {
            event = events.recv() => match event {
                Ok(event) => Change::Link(event),
                Err(RecvError::Lagged(_)) => Change::All,
                Err(RecvError::Closed) => bail!("the watcher of the network has ended"),
            },
            changed = changes.changed() => match changed {
                Ok(()) => Change::NextHops,
                Err(_) => bail!("the watcher of the network has ended"),
            },
            _ = look.tick() => continue,
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        let generation = engine.network.route_generation();
        let routes_changed = matches!(change, Change::NextHops)
            && std::mem::replace(&mut route_generation, generation) != generation;
        let at_work = engine.clone();
        // Attaching takes some ms: off the runtime's threads.
        if blocking(move || follow(&at_work, &change, routes_changed)).await? {
            let reconciler = Arc::clone(&engine.reconciler);
            settling.spawn_blocking(move || reconciler.settle_again());
        }
    }
    while settling.join_next().await.is_some() {}
    Ok(())
}

/// Acts on a change; whether services have to settle.
fn follow(engine: &Engine, change: &Change, routes_changed: bool) -> bool {
    match change {
        Change::Link(event) => engine.hooks.follow(event),
        Change::All => engine.hooks.tend(),
        Change::NextHops => {
            engine.hooks.refresh_next_hops(routes_changed);
            false
        }
    }
}

/// Where backends are, after each change of the network. A task of its own: it
/// asks netlink and nft and waits for applies, while next hops must not.
async fn follow_placements(engine: Engine, mut stopped: Stopped, again: bool) -> Result<()> {
    let mut changes = engine.changes.clone();
    if again {
        changes.mark_changed();
    }
    loop {
        panics::point(PLACEMENTS);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                bail!("the watcher of the network has ended");
            },
            _ = stopped.wait_for(|stop| *stop) => return Ok(()),
        }
        let reconciler = Arc::clone(&engine.reconciler);
        blocking(move || reconciler.refresh_placements()).await?;
    }
}

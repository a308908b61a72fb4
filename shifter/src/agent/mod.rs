//! The agent: opens the datapath, attaches it, and keeps both it and the API alive.
//!
//! Order of a start: locks, network, maps and programs, stored state, egress on
//! all interfaces, ingress, API. A stop leaves everything in the kernel.

mod alone;
mod hooks;
mod host;
mod left_over;
mod loud;
mod notify;
pub mod prepare;
mod privilege;

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    control,
    datapath::{
        Datapath as _,
        carry::Keeper,
        kernel::{KernelDatapath, Setup},
        load::Pins,
        mend::{mend_pins, note_installation},
        noted, plural,
    },
    model::config::{AgentConfig, parse_config},
    network::Network,
    reconcile::{Reconciler, Settings},
    store::Store,
    telemetry::{self, Receipts},
};
use hooks::Hooks;
use host::Host;
use loud::Loud;
use notify::Manager;

/// Between two passes over what is kept up to date by time.
const MAINTAIN_EVERY: Duration = Duration::from_secs(1);
/// Passes between two sweeps of the flow table.
const SWEEP_EVERY: u64 = 5;
/// Passes between two prunings of history.
const PRUNE_EVERY: u64 = 3_600;

/// Runs the agent of this host until SIGTERM or SIGINT.
pub fn run(config_path: &Path) -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("SHIFTER_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    let config = read_config(config_path)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the agent's runtime")?
        .block_on(serve(config))
}

/// The agent's configuration.
fn read_config(path: &Path) -> Result<AgentConfig> {
    let text = fs::read_to_string(path).with_context(|| {
        format!(
            "reading {}: name the agent's configuration with --config",
            path.display()
        )
    })?;
    Ok(parse_config(&text, &path.display().to_string())?)
}

async fn serve(config: AgentConfig) -> Result<()> {
    let started = Instant::now();
    let manager = Manager::from_environment();
    privilege::say_what_is_missing();
    noted::read_from(noted::path_beside(&config.unix));
    let pins = Pins::new(&config.bpffs);
    let _lock = pins.lock()?;
    let _alone = alone::claim()?;
    for note in mend_pins(&pins, &config.state_dir)? {
        tracing::warn!("{note}");
    }
    manager.status("loading the programs");
    let network = Network::start(config.interfaces.clone())?;
    let datapath = Arc::new(KernelDatapath::open(&Setup {
        bpffs: config.bpffs.clone(),
        flow_capacity: config.flow_capacity,
        timeouts_s: config.timeouts_s,
        egress: hooks::egress_of(config.hook_egress),
    })?);
    let hooks = Arc::new(Hooks::new(
        Arc::clone(&datapath),
        Arc::clone(&network),
        pins,
        config.hook,
    ));
    hooks.check_interfaces()?;
    datapath.set_next_hops(&network.next_hops())?;

    manager.status("bringing the kernel and the stored state together");
    let store = Store::open_or_refuse(&config.state_dir)?;
    let settings = Settings {
        settle: config.settle,
        bake: config.bake,
        gone_after: config.gone_after,
        state_dir: config.state_dir.clone(),
        flow_capacity: config.flow_capacity,
        named: config.services.clone(),
    };
    let reconciler = Reconciler::start(
        Arc::clone(&datapath) as _,
        Arc::new(Host(Arc::clone(&network))),
        store,
        settings,
    )?;
    if !config.services.is_empty() {
        reconciler.load_file_services(&config.services)?;
    }
    let socket = control::Socket::bind(&config.unix)?;
    // Whatever can be refused is refused before the first packet is touched.
    let metrics = match config.metrics {
        Some(listen) => Some(telemetry::bind(listen).await?),
        None => None,
    };
    let had_gap = hooks.attach_all()?;
    note_installation(&config.state_dir, &datapath.tag());
    if had_gap {
        reconciler.settle_again();
    }

    let (stop, stopped) = watch::channel(false);
    let receipts = Arc::new(Receipts::default());
    let api = tokio::spawn(control::serve(
        socket,
        Arc::clone(&reconciler) as _,
        Arc::clone(&receipts),
        stopped.clone(),
    ));
    if let Some(listener) = metrics {
        let controller = Arc::clone(&reconciler) as _;
        tokio::spawn(telemetry::serve(
            listener,
            controller,
            receipts,
            stopped.clone(),
        ));
    }
    tokio::spawn(follow_network(
        Arc::clone(&network),
        Arc::clone(&hooks),
        Arc::clone(&reconciler),
    ));
    tokio::spawn(follow_placements(
        Arc::clone(&network),
        Arc::clone(&reconciler),
    ));
    let keeper_of_pins = Keeper::new(Pins::new(&config.bpffs))?;
    let keeper = std::thread::Builder::new().name("maintain".into()).spawn({
        let (reconciler, stopped) = (Arc::clone(&reconciler), stopped.clone());
        let (datapath, hooks, network) = (datapath, Arc::clone(&hooks), network);
        let manager = Arc::clone(&manager);
        move || {
            maintain(
                &reconciler,
                &datapath,
                &hooks,
                &network,
                keeper_of_pins,
                &manager,
                &stopped,
            );
        }
    })?;
    tracing::info!(
        took_ms = started.elapsed().as_millis() as u64,
        api = %config.unix.display(),
        "serving"
    );
    manager.ready();
    tokio::spawn(Arc::clone(&manager).keep_alive());
    wait_for_signal().await?;
    tracing::info!("stopping; the datapath stays in place");
    manager.stopping();
    // Receivers that are gone need no word.
    let _ = stop.send(true);
    api.await.context("the API's task")??;
    if keeper.join().is_err() {
        tracing::error!("the maintenance thread had panicked");
    }
    Ok(())
}

async fn wait_for_signal() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Once a second: dead-men, observed shares, expiry, neighbours of backends.
fn maintain(
    reconciler: &Reconciler,
    datapath: &KernelDatapath,
    hooks: &Hooks,
    network: &Network,
    mut keeper_of_pins: Keeper,
    manager: &Manager,
    stopped: &watch::Receiver<bool>,
) {
    let mut passes = 0u64;
    let mut loud = Loud::default();
    while !*stopped.borrow() {
        // A pass that panics must not end those after it.
        let pass = std::panic::AssertUnwindSafe(|| {
            reconciler.tick_observed();
            reconciler.maintain();
            datapath.reclaim();
            reconciler.note_pins(keeper_of_pins.look());
            if hooks.tend() {
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
                resolve_backends(datapath, network);
            }
            if passes.is_multiple_of(PRUNE_EVERY) {
                reconciler.prune();
            }
        });
        match std::panic::catch_unwind(pass) {
            Ok(()) => manager.answer(),
            Err(_) => {
                tracing::error!("a maintenance pass panicked; the next one is due in a second");
            }
        }
        passes += 1;
        let due = Instant::now() + MAINTAIN_EVERY;
        while Instant::now() < due && !*stopped.borrow() {
            std::thread::sleep(Duration::from_millis(50));
        }
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

fn resolve_backends(datapath: &KernelDatapath, network: &Network) {
    match datapath.inventory() {
        Ok(inventory) => {
            let ips = inventory.backends.into_iter().map(|(_, addr, _)| addr.ip());
            network.keep_resolved(ips.filter(|ip| !network.is_local(*ip)));
        }
        Err(error) => tracing::warn!(%error, "reading the backends failed"),
    }
}

/// Follows netlink: hooks on interfaces that come and go, and next hops.
async fn follow_network(network: Arc<Network>, hooks: Arc<Hooks>, reconciler: Arc<Reconciler>) {
    let mut changes = network.changes();
    let mut events = network.link_events();
    let mut route_generation = network.route_generation();
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => {
                    let (hooks, reconciler) = (Arc::clone(&hooks), Arc::clone(&reconciler));
                    // Attaching takes some ms: off the runtime's threads.
                    let done = tokio::task::spawn_blocking(move || {
                        if hooks.follow(&event) {
                            // Thousands of services take a second, and the next notice must not wait.
                            tokio::task::spawn_blocking(move || reconciler.settle_again());
                        }
                    });
                    if done.await.is_err() {
                        tracing::error!("following an interface's change panicked");
                    }
                }
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {
                    let (hooks, reconciler) = (Arc::clone(&hooks), Arc::clone(&reconciler));
                    let done = tokio::task::spawn_blocking(move || {
                        if hooks.tend() {
                            reconciler.settle_again();
                        }
                    });
                    if done.await.is_err() {
                        tracing::error!("looking at the interfaces after lost events panicked");
                    }
                }
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            },
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                let generation = network.route_generation();
                let routes_changed = std::mem::replace(&mut route_generation, generation) != generation;
                let hooks = Arc::clone(&hooks);
                let done =
                    tokio::task::spawn_blocking(move || hooks.refresh_next_hops(routes_changed));
                if done.await.is_err() {
                    tracing::error!("following a change of the network panicked");
                }
            }
        }
    }
}

/// Where backends are, after each change of the network. A task of its own: it
/// asks netlink and nft and waits for applies, while next hops must not.
async fn follow_placements(network: Arc<Network>, reconciler: Arc<Reconciler>) {
    let mut changes = network.changes();
    while changes.changed().await.is_ok() {
        let reconciler = Arc::clone(&reconciler);
        let done = tokio::task::spawn_blocking(move || reconciler.refresh_placements());
        if done.await.is_err() {
            tracing::error!("asking where the backends are panicked");
        }
    }
}

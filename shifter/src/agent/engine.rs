//! What one run of the agent works with: locks, network, datapath, state.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::sync::watch;

use super::{
    alone::{self, Alone},
    doors,
    hooks::{self, Hooks},
    host::Host,
    limits,
    notify::Manager,
    supervise::Supervisor,
};
use crate::{
    datapath::{
        Datapath as _,
        carry::Keeper,
        kernel::{KernelDatapath, Setup},
        load::Pins,
        mend::{mend_pins, note_installation},
    },
    fault,
    gate::Asker,
    model::config::AgentConfig,
    network::Network,
    reconcile::{Reconciler, Settings},
    store::{EventQueue, Store},
};

/// The locks of the agent of this host; free when dropped.
pub struct Claim {
    _pins: fs::File,
    _alone: Alone,
}

impl Claim {
    /// Takes them, or names who holds them.
    pub fn take(config: &AgentConfig) -> Result<Self> {
        Ok(Self {
            _pins: Pins::new(&config.bpffs).lock()?,
            _alone: alone::claim(&doors::handover_path(config))?,
        })
    }
}

/// See the module. Copies share everything.
#[derive(Clone)]
pub struct Engine {
    pub network: Arc<Network>,
    /// Changes of the network that were not yet seen when this was opened.
    pub changes: watch::Receiver<u64>,
    /// Generation of the routes then.
    pub route_generation: u32,
    pub datapath: Arc<KernelDatapath>,
    pub hooks: Arc<Hooks>,
    pub reconciler: Arc<Reconciler>,
    /// Keeps the pins within reach of a path.
    pub keeper: Arc<Mutex<Keeper>>,
    /// Asks gates that reach out of the agent; knows who runs programs.
    pub asker: Arc<Asker>,
    events: Arc<EventQueue>,
    state_dir: PathBuf,
    pub took: Took,
}

/// How long the steps of a start took.
#[derive(Clone, Copy, Default)]
pub struct Took {
    /// Loading the programs, adopting the maps.
    pub open: Duration,
    /// Bringing kernel and store together.
    pub reconcile: Duration,
    pub attach: Duration,
}

impl Engine {
    /// Opens the datapath and brings it and the stored state together. Needs
    /// the locks. Attaches nothing.
    pub fn open(
        config: &AgentConfig,
        network: Arc<Network>,
        manager: &Manager,
        supervisor: &Arc<Supervisor>,
        asker: Arc<Asker>,
    ) -> Result<Self> {
        let begun = Instant::now();
        let (changes, route_generation) = (network.changes(), network.route_generation());
        manager.status("loading the programs");
        let pins = Pins::new(&config.bpffs);
        for note in mend_pins(&pins, &config.state_dir)? {
            tracing::warn!("{note}");
        }
        limits::check_memory(&pins, config.flow_capacity)?;
        let datapath = Arc::new(KernelDatapath::open(&Setup {
            bpffs: config.bpffs.clone(),
            flow_capacity: config.flow_capacity,
            timeouts_s: config.timeouts_s,
            egress: hooks::egress_of(config.hook_egress),
            watch_one_in: config.watch_one_in,
        })?);
        fault::point("start_opened");
        let hooks = Arc::new(Hooks::new(
            Arc::clone(&datapath),
            Arc::clone(&network),
            pins,
            config.hook,
            supervisor.events(),
        ));
        hooks.check_interfaces()?;
        datapath.set_next_hops(&network.next_hops())?;

        let open = begun.elapsed();
        manager.status("bringing the kernel and the stored state together");
        let mut store = Store::open_or_refuse(&config.state_dir)?;
        store.set_event_queue(supervisor.events());
        let settings = Settings {
            settle: config.settle,
            bake: config.bake,
            gone_after: config.gone_after,
            state_dir: config.state_dir.clone(),
            flow_capacity: config.flow_capacity,
            named: config.services.clone(),
            allowed: config.gates.allowed(),
        };
        let host = Arc::new(Host::new(Arc::clone(&network), Arc::clone(supervisor)));
        let facts = Arc::clone(&host) as _;
        let reconciler = Reconciler::start(Arc::clone(&datapath) as _, facts, store, settings)?;
        host.forget();
        fault::point("start_reconciled");
        Ok(Self {
            network,
            changes,
            route_generation,
            datapath,
            hooks,
            reconciler,
            keeper: Arc::new(Mutex::new(Keeper::new(Pins::new(&config.bpffs))?)),
            asker,
            events: supervisor.events(),
            state_dir: config.state_dir.clone(),
            took: Took {
                open,
                reconcile: begun.elapsed() - open,
                attach: Duration::ZERO,
            },
        })
    }

    /// Takes in the services of the agent's own file. What it says then counts as
    /// its last load: so it is not called where a start may still be taken back.
    pub fn load_file(&self, config: &AgentConfig) -> Result<()> {
        if !config.services.is_empty() {
            self.reconciler.load_file_services(&config.services)?;
        }
        Ok(())
    }

    /// Attaches all programs.
    pub fn attach(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.datapath.before_attach()?;
        let had_gap = self.hooks.attach_all()?;
        if let Some(moved) = self.datapath.after_attach()? {
            self.events.tell("agent", "migrated", "", moved);
        }
        note_installation(&self.state_dir, &self.datapath.tag());
        if had_gap {
            self.reconciler.settle_again();
        }
        self.took.attach = begun.elapsed();
        fault::point("start_attached");
        Ok(())
    }
}

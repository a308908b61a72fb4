//! The reconciler's state, and the publishing of an entry.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::{Duration, Instant},
};

use super::{
    Clock, HostFacts,
    backends::Backends,
    control::Answered,
    cut::CutFigures,
    cutter::Cutting,
    dropped::Dropped,
    entry::Entry,
    events::Events,
    gone::Gone,
    ids::ServiceIds,
    maintain::FilterReading,
    observe::Observer,
    rollouts::{Rollouts, Work},
    shed::Shed,
    standing::Board,
};
use crate::{
    datapath::{Census, Datapath, DatapathError, ServiceId, ServiceImage},
    judge::Allowed,
    model::{Protocol, ServiceSpec, config},
    store::{Audit, Cut, EventFile, EventQueue, Frozen, Store, StoreError},
};

/// How old the counts of the flow table may be when they are shown.
const CENSUS_AGE: Duration = Duration::from_secs(1);

/// What the reconciler is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a service is settling after creation, attach or loss of the table.
    pub settle: Duration,
    /// How long after a promote a rollback undoes it.
    pub bake: Duration,
    /// A flow is released when its socket is gone and it had no packet for so
    /// long; whole seconds.
    pub gone_after: Duration,
    pub flow_capacity: u32,
    pub state_dir: PathBuf,
    /// Services of the agent's own file: where the store is lost, they name
    /// what the kernel has.
    pub named: Vec<ServiceSpec>,
    /// Where gates of rollouts may reach.
    pub allowed: Allowed,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            settle: config::DEFAULT_SETTLE,
            bake: config::DEFAULT_BAKE,
            gone_after: config::DEFAULT_GONE_AFTER,
            flow_capacity: shifter_common::abi::DEFAULT_FLOW_CAPACITY,
            state_dir: "/var/lib/shifter".into(),
            named: Vec::new(),
            allowed: Allowed::default(),
        }
    }
}

/// Why the reconciler cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{why} (nothing is in force here that could be served without it)")]
    Nothing { why: String },
    #[error("reading what the kernel holds: {0}")]
    Inventory(DatapathError),
    #[error("bringing service {service:?} into force: {source}")]
    Publish {
        service: String,
        source: DatapathError,
    },
}

/// See the module.
pub struct Reconciler {
    pub(super) datapath: Arc<dyn Datapath>,
    pub(super) facts: Arc<dyn HostFacts>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: Settings,
    pub(super) started: Instant,
    /// Where events are stored. Before the core: the store moves its log into the file
    /// when it is closed last.
    pub(super) event_file: Mutex<Option<EventFile>>,
    pub(super) core: Mutex<Core>,
    pub(super) observer: Mutex<Observer>,
    pub(super) events: Events,
    pub(super) answered: Answered,
    pub(super) gone: Mutex<Gone>,
    pub(super) filter: Mutex<FilterReading>,
    /// Held while the host is asked for placements.
    pub(super) refreshing: Mutex<()>,
    pub(super) shed: Mutex<Shed>,
    pub(super) dropped: Mutex<Dropped>,
    pub(super) health: Mutex<Board>,
    /// Held while a rollout changes backends.
    pub(super) carrying: Mutex<()>,
    /// What rollouts have to ask of others.
    pub(super) rollout_work: Mutex<Work>,
    /// Services that were in force in the kernel when this began.
    pub(super) adopted: usize,
    /// Where events are told.
    pub(super) event_queue: Arc<EventQueue>,
    /// The store failed when it was last looked at.
    pub(super) store_failed: AtomicBool,
    /// Held while flows are ended.
    pub(super) cutting: Mutex<Cutting>,
    pub(super) cut_figures: Mutex<CutFigures>,
    census: Mutex<Option<(Instant, Arc<Census>)>>,
}

/// What one writer at a time changes.
pub struct Core {
    pub store: Store,
    pub services: BTreeMap<String, Entry>,
    pub vips: HashMap<(SocketAddr, Protocol), String>,
    pub backends: Backends,
    pub ids: ServiceIds,
    pub generation: u32,
    /// Services in the kernel that an empty store knows nothing of.
    pub orphans: HashMap<(SocketAddr, Protocol), ServiceImage>,
    pub ring_slots: u64,
    /// About the host as a whole.
    pub warnings: Vec<String>,
    /// Records of what is in force and could not be stored yet.
    pub unstored: Vec<Audit>,
    /// What is wrong with the pins.
    pub pins: Option<String>,
    /// When a store that fails is tried again; CLOCK_MONOTONIC in ns.
    pub probe_ns: u64,
    /// Wall clock less that of the boot, at the last look.
    pub clock_offset_ms: Option<i64>,
    pub rollouts: Rollouts,
    /// Services that refuse writes.
    pub frozen: BTreeMap<String, Frozen>,
    /// Flows that somebody has asked to be ended.
    pub cuts: Vec<Cut>,
}

impl Core {
    /// Whether the kernel may name backends that no service here does: those
    /// of an orphan's rings, or such as a lost store knew.
    pub fn has_unknown(&self) -> bool {
        !self.orphans.is_empty() || self.store.refused().is_some()
    }
}

/// A panic elsewhere must not stop the agent: every change leaves the state whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reconciler {
    pub(super) fn assemble(
        datapath: Arc<dyn Datapath>,
        facts: Arc<dyn HostFacts>,
        clock: Arc<dyn Clock>,
        settings: Settings,
        core: Core,
    ) -> Self {
        let base = clock.unix_ms().max(0) as u64 * 1_000;
        Self {
            datapath,
            facts,
            clock,
            settings,
            started: Instant::now(),
            observer: Mutex::default(),
            events: Events::new(base),
            answered: Answered::default(),
            gone: Mutex::default(),
            filter: Mutex::default(),
            refreshing: Mutex::default(),
            shed: Mutex::default(),
            dropped: Mutex::default(),
            health: Mutex::default(),
            carrying: Mutex::default(),
            rollout_work: Mutex::default(),
            cutting: Mutex::default(),
            cut_figures: Mutex::default(),
            adopted: 0,
            event_queue: core.store.event_queue(),
            event_file: Mutex::new(core.store.event_file()),
            store_failed: AtomicBool::new(false),
            core: Mutex::new(core),
            census: Mutex::new(None),
        }
    }

    /// Counts of the flow table, at most [`CENSUS_AGE`] old.
    pub(super) fn census(&self) -> Arc<Census> {
        if let Some((at, census)) = &*lock(&self.census)
            && at.elapsed() < CENSUS_AGE
        {
            return census.clone();
        }
        self.fresh_census()
    }

    /// Counts them now. The lock is not held during the pass.
    pub(super) fn fresh_census(&self) -> Arc<Census> {
        let census = Arc::new(self.datapath.census());
        *lock(&self.census) = Some((Instant::now(), census.clone()));
        census
    }

    /// An id for a new service, with counters that begin at zero.
    pub(super) fn take_id(&self, ids: &mut ServiceIds) -> Result<ServiceId, DatapathError> {
        let id = ids.take()?;
        if let Err(error) = self.datapath.reset_service_counters(id) {
            ids.release(id);
            return Err(error);
        }
        Ok(id)
    }

    /// Publishes an entry under the next generation.
    pub(super) fn publish(
        &self,
        generation: &mut u32,
        entry: &mut Entry,
        with_rings: bool,
    ) -> Result<(), DatapathError> {
        *generation += 1;
        let before = std::mem::replace(&mut entry.generation, *generation);
        let rings = with_rings.then_some(&*entry.rings);
        match self.datapath.publish(&entry.image(), rings) {
            Ok(at_ns) => {
                entry.note_published(at_ns);
                let sharing = Some(entry.sharing());
                if std::mem::replace(&mut entry.observed, sharing) != sharing {
                    self.restart_window(entry.id, at_ns);
                }
                Ok(())
            }
            Err(error) => {
                entry.generation = before;
                Err(error)
            }
        }
    }
}

//! What the agent knows of the host's network, kept fresh from netlink.
//!
//! Everything is read in the network namespace of the thread that calls
//! [`Network::start`]. Links, addresses and neighbours are kept in a
//! snapshot; routes are asked of the kernel when needed, so that policy
//! rules, metrics and learned MTUs count as they do for packets.

pub(crate) mod netlink;
mod obstacle;
mod placement;
mod reset;
mod resolve;
mod ruleset;
mod snapshot;
mod sock_diag;
#[cfg(test)]
mod tests;
mod watcher;

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::sync::{broadcast, watch};

pub use obstacle::{Obstacle, forwarding_off, sysctl};
pub use reset::send_reset;
pub use snapshot::{Link, XdpMode, XdpSlot};
pub use sock_diag::{TcpSockets, end_sockets, tcp_sockets};

use netlink::Query;
use resolve::Resolver;
use ruleset::RulesetCache;
use snapshot::Snapshot;

/// Changes are told at most this often, the first after a pause at once.
pub const COALESCE: Duration = Duration::from_millis(5);
/// And at most this often while they do not end, so that a storm of them does
/// not keep the agent busy.
pub const COALESCE_MOST: Duration = Duration::from_millis(40);
/// Next hops of backends are asked for again this often, where they are stale.
pub const RESOLVE_EVERY: Duration = Duration::from_secs(3);

/// Why the network could not be read.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("{operation} failed: {source}; {remedy}")]
    Netlink {
        operation: &'static str,
        source: io::Error,
        remedy: &'static str,
    },
    #[error("starting the thread that watches the network failed: {0}; raise the limit of tasks")]
    Thread(io::Error),
    #[error("{program} {problem}; {remedy}")]
    Program {
        program: &'static str,
        problem: String,
        remedy: &'static str,
    },
}

impl NetworkError {
    fn netlink(operation: &'static str, source: io::Error) -> Self {
        let remedy = match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => "run as root or with CAP_NET_ADMIN",
            Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => {
                "allow AF_NETLINK (RestrictAddressFamilies= in the unit)"
            }
            Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files",
            _ => "try again; if it stays, the log of the kernel may say why",
        };
        Self::Netlink {
            operation,
            source,
            remedy,
        }
    }
}

/// What happened to an interface with a hook, by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkEvent {
    /// The name is there again, with this index: attach.
    Appeared { name: String, ifindex: u32 },
    /// The interface was deleted or moved to another namespace.
    Vanished { name: String, ifindex: u32 },
    /// Up and with a carrier.
    Up { name: String, ifindex: u32 },
    /// Set down or without a carrier.
    Down { name: String, ifindex: u32 },
    /// Somebody put a program into its XDP slot or took one out. The kernel
    /// tells of those that are attached by netlink, not of links of bpf(2).
    XdpChanged { name: String, ifindex: u32 },
    /// The interface, and what is attached to it, has another name. If the new
    /// name is one with a hook, `Appeared` follows.
    Renamed {
        from: String,
        to: String,
        ifindex: u32,
    },
}

/// The host's network. Reading is cheap; the calls that ask the kernel say so.
pub struct Network {
    shared: Arc<Shared>,
    rules: RulesetCache,
}

/// What the watching thread and the callers have in common.
struct Shared {
    attached: Vec<String>,
    snapshot: RwLock<Snapshot>,
    query: Mutex<Query>,
    resolver: Mutex<Resolver>,
    changes: watch::Sender<u64>,
    events: broadcast::Sender<LinkEvent>,
    route_generation: AtomicU32,
    stop: AtomicBool,
    /// The thread that watches is gone.
    has_ended: AtomicBool,
}

impl Network {
    /// Reads the network and keeps watching it. `attached` are the names of
    /// the interfaces that have a hook, or shall get one.
    ///
    /// # Errors
    /// When netlink cannot be opened or read, or no thread be started.
    pub fn start(attached: Vec<String>) -> Result<Arc<Self>, NetworkError> {
        let open = |operation| {
            Query::open(netlink_sys::protocols::NETLINK_ROUTE)
                .map_err(|error| NetworkError::netlink(operation, error))
        };
        let subscription = watcher::subscribe()?;
        let mut query = open("opening a netlink socket")?;
        let snapshot = watcher::read_all(&mut query)?;
        let shared = Arc::new(Shared {
            attached,
            snapshot: RwLock::new(snapshot),
            query: Mutex::new(query),
            resolver: Mutex::default(),
            changes: watch::Sender::new(0),
            events: broadcast::Sender::new(256),
            route_generation: AtomicU32::new(1),
            stop: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
        });
        let own_query = open("opening a netlink socket for the watcher")?;
        watcher::spawn(subscription, own_query, Arc::clone(&shared))?;
        Ok(Arc::new(Self {
            shared,
            rules: RulesetCache::default(),
        }))
    }

    /// Rises whenever something changed that can be seen here, at most every
    /// [`COALESCE`] to [`COALESCE_MOST`]. A neighbour that turns stale and reachable is no change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Rises when packets may have to go elsewhere: a route, rule, address or
    /// link changed, or a neighbour's MAC or validity. Never 0.
    pub fn route_generation(&self) -> u32 {
        self.shared.route_generation.load(Ordering::Acquire)
    }

    /// What happens to the attached interfaces from now on.
    pub fn link_events(&self) -> broadcast::Receiver<LinkEvent> {
        self.shared.events.subscribe()
    }

    /// Whether changes are still told of.
    pub fn is_watched(&self) -> bool {
        !self.shared.has_ended.load(Ordering::Acquire)
    }

    /// Names of the interfaces that have a hook, or shall get one.
    pub fn attached(&self) -> &[String] {
        &self.shared.attached
    }

    /// An interface by name.
    pub fn link(&self, name: &str) -> Option<Link> {
        self.shared.snapshot().link(name).cloned()
    }

    /// An interface by index, whatever its name is now.
    pub fn link_at(&self, index: u32) -> Option<Link> {
        self.shared.snapshot().links.get(&index).cloned()
    }

    /// All interfaces, in the order of their indices.
    pub fn links(&self) -> Vec<Link> {
        let mut links: Vec<_> = self.shared.snapshot().links.values().cloned().collect();
        links.sort_by_key(|link| link.index);
        links
    }

    /// The interface that an address would sensibly be added to: an attached
    /// one whose subnet contains it, else the first attached one.
    pub fn interface_for(&self, ip: IpAddr) -> Option<String> {
        let snapshot = self.shared.snapshot();
        let in_subnet = |name: &&String| {
            snapshot.link(name).is_some_and(|link| {
                snapshot.addresses.iter().any(|((index, address), prefix)| {
                    *index == link.index && ruleset::contains(*address, *prefix, ip)
                })
            })
        };
        let attached = &self.shared.attached;
        attached
            .iter()
            .find(in_subnet)
            .or_else(|| attached.first())
            .cloned()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

impl Shared {
    fn snapshot(&self) -> RwLockReadGuard<'_, Snapshot> {
        self.snapshot.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn query(&self) -> MutexGuard<'_, Query> {
        self.query.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_attached(&self, link: &Link) -> bool {
        self.attached.contains(&link.name)
    }
}

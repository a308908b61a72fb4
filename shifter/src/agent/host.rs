//! The host as the reconciler asks for it, answered from netlink.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    datapath::Placement,
    model::{Protocol, Vip},
    network::{self, Network, TcpSockets},
    reconcile::HostFacts,
};

use super::supervise::Supervisor;

/// The network as facts, and what is loud about the agent's own tasks.
pub struct Host {
    network: Arc<Network>,
    supervisor: Arc<Supervisor>,
    remembered: Mutex<Option<Remembered>>,
}

/// Answers of a start, which asks for the same addresses thousands of times.
#[derive(Default)]
struct Remembered {
    placements: HashMap<IpAddr, Placement>,
    warnings: HashMap<(SocketAddr, Protocol), Vec<String>>,
}

impl Host {
    /// Remembers what is answered, until [`Host::forget`].
    pub fn new(network: Arc<Network>, supervisor: Arc<Supervisor>) -> Self {
        Self {
            network,
            supervisor,
            remembered: Mutex::new(Some(Remembered::default())),
        }
    }

    /// From now on the kernel is asked each time.
    pub fn forget(&self) {
        *self.remembered() = None;
    }

    fn remembered(&self) -> MutexGuard<'_, Option<Remembered>> {
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostFacts for Host {
    fn is_local(&self, ip: IpAddr) -> bool {
        self.network.is_local(ip)
    }
    fn interface_for(&self, ip: IpAddr) -> Option<String> {
        self.network.interface_for(ip)
    }
    fn placement(&self, addr: SocketAddr) -> Placement {
        let mut remembered = self.remembered();
        match &mut *remembered {
            // It does not depend on the port.
            Some(known) => *known
                .placements
                .entry(addr.ip())
                .or_insert_with(|| self.network.placement(addr)),
            None => {
                drop(remembered);
                self.network.placement(addr)
            }
        }
    }
    fn vip_is_translated(&self, vip: &Vip) -> bool {
        self.network.vip_is_translated(vip)
    }
    fn filter_problem(&self, anew: bool) -> Option<String> {
        match anew {
            true => self.network.filter_problem(),
            false => self.network.standing_filter_problem(),
        }
    }
    fn backend_warnings(&self, addr: SocketAddr, protocol: Protocol) -> Vec<String> {
        let mut remembered = self.remembered();
        match &mut *remembered {
            // Nothing stands between this host and itself.
            Some(known) if known.placements.get(&addr.ip()) == Some(&Placement::Host) => Vec::new(),
            Some(known) => known
                .warnings
                .entry((addr, protocol))
                .or_insert_with(|| self.network.backend_warnings(addr, protocol))
                .clone(),
            None => {
                drop(remembered);
                self.network.backend_warnings(addr, protocol)
            }
        }
    }
    fn tcp_sockets(&self, netns: Option<i32>, at: &HashSet<SocketAddr>) -> io::Result<TcpSockets> {
        network::tcp_sockets(netns, at)
    }
    fn end_sockets(
        &self,
        netns: Option<i32>,
        pairs: &[(SocketAddr, SocketAddr)],
    ) -> io::Result<Vec<bool>> {
        network::end_sockets(netns, pairs)
    }
    fn send_reset(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        sequence: u32,
        acknowledged: u32,
    ) -> io::Result<()> {
        network::send_reset(from, to, sequence, acknowledged)
    }
    fn warnings(&self) -> Vec<String> {
        self.supervisor.warnings()
    }
}

//! Flows whose socket is gone: an end that no packet showed (DESIGN §2.11).
//!
//! A TCP flow that ended by a RST that was not plausible, or by none, would
//! count as carried for days. Where its backend is on this host, the kernel
//! knows whether the socket is still there. A flow is released only if
//!
//! - it had no packet for [`IDLE_S`],
//! - the sockets of the namespace could be read whole, and none in any state
//!   has the flow's two ends,
//! - its backend's flows are known to end there: no DNAT stands in front of
//!   the backend, and another of its flows was found as a socket (on this host
//!   a listener does). What masquerades clients, or leads on to another
//!   namespace, shows no flow as a socket and is left alone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::SocketAddr,
};

use super::reconciler::{Reconciler, lock};
use crate::{
    datapath::{BackendId, IdleFlow, Placement},
    model::{Protocol, Vip},
    network::TcpSockets,
};

/// A flow is asked for after this long in seconds without a packet.
const IDLE_S: u32 = 60;
/// Between two passes, in ns.
const EVERY_NS: u64 = 15_000_000_000;

/// Where a backend's sockets are looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Home {
    addr: SocketAddr,
    netns: Option<i32>,
}

/// What is asked of one namespace.
#[derive(Default)]
struct Asked {
    backends: BTreeSet<BackendId>,
    idle: Vec<IdleFlow>,
}

/// What the passes remember.
#[derive(Default)]
pub struct Gone {
    due_ns: u64,
    /// Backends of which a flow was found as a socket there.
    seen: HashMap<BackendId, Home>,
}

impl Reconciler {
    /// Releases flows whose socket is gone, now and again.
    pub(super) fn release_gone(&self) {
        let now_ns = self.clock.monotonic_ns();
        {
            let mut gone = lock(&self.gone);
            if now_ns < gone.due_ns {
                return;
            }
            gone.due_ns = now_ns + EVERY_NS;
        }
        let homes = self.homes();
        lock(&self.gone)
            .seen
            .retain(|id, home| homes.get(id) == Some(home));
        let ids: BTreeSet<BackendId> = homes.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let mut namespaces: BTreeMap<Option<i32>, Asked> = BTreeMap::new();
        for flow in self.datapath.idle_flows(&ids, IDLE_S) {
            let asked = namespaces.entry(homes[&flow.backend].netns).or_default();
            asked.backends.insert(flow.backend);
            asked.idle.push(flow);
        }
        // Without an idle flow the sockets are asked for all the same until
        // one was seen: later, only those that ended may be left.
        let carrying = self.datapath.named_ids().backends;
        for id in carrying.intersection(&ids) {
            if !lock(&self.gone).seen.contains_key(id) {
                let asked = namespaces.entry(homes[id].netns).or_default();
                asked.backends.insert(*id);
            }
        }
        for (netns, asked) in namespaces {
            self.release_in(netns, asked, &homes);
        }
    }

    /// TCP backends whose sockets can be asked for.
    fn homes(&self) -> HashMap<BackendId, Home> {
        let core = lock(&self.core);
        let home = |id: BackendId| {
            let slot = core.backends.get(id)?;
            let netns = match slot.placement {
                Placement::Host => None,
                Placement::Kernel { netns: Some(netns) } => Some(netns),
                _ => return None,
            };
            let addr = slot.addr;
            (slot.protocol == Protocol::Tcp).then_some((id, Home { addr, netns }))
        };
        core.backends.ids().into_iter().filter_map(home).collect()
    }

    fn release_in(&self, netns: Option<i32>, asked: Asked, homes: &HashMap<BackendId, Home>) {
        let Asked { backends, idle } = asked;
        let at: HashSet<SocketAddr> = backends.iter().map(|id| homes[id].addr).collect();
        let sockets = match self.facts.tcp_sockets(netns, &at) {
            Ok(sockets) => sockets,
            Err(error) => {
                tracing::debug!(?netns, %error, "the sockets could not be read; no flow is released");
                return;
            }
        };
        let known: HashSet<BackendId> = backends
            .into_iter()
            .filter(|id| self.ends_there(*id, homes[id], &sockets))
            .collect();
        let is_gone = |flow: &IdleFlow| {
            known.contains(&flow.backend) && !sockets.has(homes[&flow.backend].addr, flow.client)
        };
        let gone: Vec<IdleFlow> = idle.into_iter().filter(is_gone).collect();
        // A backend that has moved meanwhile has its sockets elsewhere.
        if gone.is_empty() || self.homes() != *homes {
            return;
        }
        let released = self.datapath.release(&gone, IDLE_S);
        tracing::info!(
            flows = released,
            ?netns,
            "released flows whose socket is gone"
        );
    }

    /// Whether the flows of a backend are known to end in sockets there.
    fn ends_there(&self, id: BackendId, home: Home, sockets: &TcpSockets) -> bool {
        let found = sockets
            .peers(home.addr)
            .any(|client| self.datapath.carries(id, client));
        let seen = {
            let mut gone = lock(&self.gone);
            if found {
                gone.seen.insert(id, home);
            }
            gone.seen.contains_key(&id)
        };
        let evident = seen || home.netns.is_none() && sockets.listens(home.addr);
        let vip = Vip {
            addr: home.addr,
            protocol: Protocol::Tcp,
        };
        evident && !self.facts.vip_is_translated(&vip)
    }
}

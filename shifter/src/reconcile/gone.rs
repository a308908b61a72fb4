//! Flows whose socket is gone: an end that no packet showed.
//!
//! A TCP flow that ended by a RST that was not plausible, or by none, would
//! count as carried for days. Where its backend is on this host, the kernel
//! knows whether the socket is still there. A flow is released only if
//!
//! - itself, by its backend and client, was seen as a socket there once: what
//!   conntrack or a masquerade leads elsewhere never is, whatever listens
//!   here, whatever other flows show, and whether its rule is still there,
//! - since then two whole answers in a row named no such socket in any state
//!   (an answer of several datagrams can miss one),
//! - no DNAT stands in front of the backend, as far as that is known,
//! - it had no packet for `gone_after`.
//!
//! All others stay until a packet or their time ends them. A pass reads the
//! flow table once and each namespace's sockets once, under no lock that a
//! request or packet needs, and rests for [`REST`] times as long as it took.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::reconciler::{Reconciler, lock};
use crate::{
    datapath::{BackendId, IdleFlow, Placement},
    model::{Protocol, Vip},
    network::TcpSockets,
};

/// The longest pause between two passes; shorter where `gone_after` is short.
const PAUSE: Duration = Duration::from_secs(15);
/// A pass rests for so many times its own length: 5% of a CPU at most.
const REST: u32 = 20;
/// Whole answers in a row without a flow's socket.
const MISSES: u8 = 2;

/// Where a backend's sockets are looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Home {
    addr: SocketAddr,
    netns: Option<i32>,
}

type Homes = HashMap<BackendId, Home>;

/// A flow by what its socket would be found by, in 20 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Pair {
    backend: BackendId,
    port: u16,
    /// IPv4 as mapped to IPv6.
    ip: [u8; 16],
}

impl Pair {
    fn of(flow: &IdleFlow) -> Self {
        let ip = match flow.client.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Self {
            backend: flow.backend,
            port: flow.client.port(),
            ip: ip.octets(),
        }
    }

    fn client(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::from(self.ip).to_canonical(), self.port)
    }
}

/// What the passes remember: no more than the flows of local backends.
#[derive(Default)]
pub struct Gone {
    due_ns: u64,
    /// Where the backends were in the last pass.
    homes: Homes,
    /// Flows that were seen as sockets, and the whole answers without them since.
    seen: HashMap<Pair, u8>,
    /// It was said that the sockets of containers may not be looked at.
    said_denied: bool,
}

#[cfg(test)]
impl Gone {
    /// Flows that are remembered.
    pub fn remembered(&self) -> usize {
        self.seen.len()
    }
}

impl Reconciler {
    /// Releases flows whose socket is gone, now and again. One caller at a time.
    pub(super) fn release_gone(&self) {
        let now_ns = self.clock.monotonic_ns();
        // No request takes this lock.
        let mut gone = lock(&self.gone);
        if now_ns < gone.due_ns {
            return;
        }
        let began = Instant::now();
        let flows = self.look_for_sockets(&mut gone);
        let took = began.elapsed();
        let pause = PAUSE.min(self.settings.gone_after / 4).max(took * REST);
        gone.due_ns = now_ns + pause.as_nanos() as u64;
        tracing::debug!(
            flows,
            seen = gone.seen.len(),
            took_ms = took.as_millis() as u64,
            "looked for the sockets of flows"
        );
    }

    /// One pass; the number of flows it looked at.
    fn look_for_sockets(&self, gone: &mut Gone) -> usize {
        let homes = self.homes();
        // What was seen where a backend no longer is says nothing.
        let before = std::mem::take(&mut gone.homes);
        gone.seen
            .retain(|pair, _| homes.get(&pair.backend) == before.get(&pair.backend));
        gone.homes = homes;
        if gone.homes.is_empty() {
            gone.seen.clear();
            return 0;
        }
        let ids: BTreeSet<BackendId> = gone.homes.keys().copied().collect();
        // All of them, before the sockets: one that begins later has nothing
        // to be missed by. Only a packet in this very tick hides a flow.
        let flows = self.datapath.idle_flows(&ids, 0);
        self.forget_ended(gone, &flows);
        let count = flows.len();
        let mut namespaces: BTreeMap<Option<i32>, Vec<IdleFlow>> = BTreeMap::new();
        for flow in flows {
            let netns = gone.homes[&flow.backend].netns;
            namespaces.entry(netns).or_default().push(flow);
        }
        for (netns, flows) in namespaces {
            self.release_in(gone, netns, flows);
        }
        count
    }

    /// TCP backends whose sockets can be asked for.
    fn homes(&self) -> Homes {
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

    /// Keeps what was seen of flows that are still there.
    fn forget_ended(&self, gone: &mut Gone, flows: &[IdleFlow]) {
        if gone.seen.is_empty() {
            return;
        }
        let listed: HashSet<Pair> = flows.iter().map(Pair::of).collect();
        gone.seen.retain(|pair, _| {
            listed.contains(pair) || self.datapath.carries(pair.backend, pair.client())
        });
        if gone.seen.capacity() > 4 * gone.seen.len() {
            gone.seen.shrink_to_fit();
        }
    }

    /// Looks for the flows of one namespace.
    fn release_in(&self, gone: &mut Gone, netns: Option<i32>, flows: Vec<IdleFlow>) {
        let Gone {
            homes,
            seen,
            said_denied,
            ..
        } = gone;
        let at: HashSet<SocketAddr> = flows.iter().map(|f| homes[&f.backend].addr).collect();
        let sockets = match self.facts.tcp_sockets(netns, &at) {
            Ok(sockets) => sockets,
            Err(error) => {
                let is_news = error.kind() == std::io::ErrorKind::PermissionDenied;
                if is_news && !std::mem::replace(said_denied, true) {
                    tracing::warn!(
                        flows = flows.len(),
                        "sockets in containers may not be looked at without CAP_SYS_ADMIN: a flow to one that ended without a packet counts until its time is over (docs/service.md)"
                    );
                }
                tracing::debug!(?netns, %error, "the sockets could not be read; no flow is released");
                return;
            }
        };
        let mut ended: Vec<IdleFlow> = flows
            .into_iter()
            .filter(|flow| is_missed(seen, flow, homes[&flow.backend].addr, &sockets))
            .collect();
        if ended.is_empty() {
            return;
        }
        let mut ends_here: HashMap<BackendId, bool> = HashMap::new();
        ended.retain(|flow| {
            let ask = || !self.is_translated(homes[&flow.backend].addr);
            *ends_here.entry(flow.backend).or_insert_with(ask)
        });
        // A backend that has moved meanwhile has its sockets elsewhere.
        let now = self.homes();
        ended.retain(|flow| now.get(&flow.backend) == homes.get(&flow.backend));
        let gone_after_s = self.settings.gone_after.as_secs() as u32;
        let released = self.datapath.release(&ended, Some(gone_after_s));
        if released > 0 {
            tracing::info!(
                flows = released,
                ?netns,
                "released flows whose socket is gone"
            );
        }
    }

    fn is_translated(&self, addr: SocketAddr) -> bool {
        let protocol = Protocol::Tcp;
        self.facts.vip_is_translated(&Vip { addr, protocol })
    }
}

/// Notes whether a flow is there as a socket; true if it was once, and is
/// missed for long enough.
fn is_missed(
    seen: &mut HashMap<Pair, u8>,
    flow: &IdleFlow,
    at: SocketAddr,
    sockets: &TcpSockets,
) -> bool {
    let pair = Pair::of(flow);
    if sockets.has(at, flow.client) {
        seen.insert(pair, 0);
        return false;
    }
    seen.get_mut(&pair).is_some_and(|misses| {
        *misses = misses.saturating_add(1);
        *misses >= MISSES
    })
}

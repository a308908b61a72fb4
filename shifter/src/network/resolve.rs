//! Makes the kernel resolve neighbours, and keeps those of backends fresh.
//!
//! The kernel sends its own ARP and neighbour solicitations (RTM_NEWNEIGH with
//! NTF_USE); no packet of ours is sent, and no entry is pinned.
//!
//! Neighbours towards clients are asked for too while they are stale: what is
//! redirected to them does not pass by the kernel, which would ask, so a router
//! that another one has replaced without a word would never be missed.

use std::{collections::HashMap, io, net::IpAddr, sync::PoisonError, sync::atomic::Ordering};

use super::{
    Network, Shared,
    netlink::{self, Query, Request},
    placement::{family_and_bytes, read_neighbour, route_to},
};

const NDA_DST: u16 = 1;
const NTF_USE: u8 = 0x1;

/// A neighbour to ask for: interface and address.
type Hop = (u32, IpAddr);

/// Stale neighbours that are asked for at once; the others are next, for those
/// that answer are stale no more, and those that do not are lost.
const STALE_AT_ONCE: usize = 64;

/// Addresses whose next hops are kept resolved.
#[derive(Default)]
pub(super) struct Resolver {
    /// Next hop of each, where it has one.
    hops: HashMap<IpAddr, Option<Hop>>,
    /// Route generation that the hops were found under.
    generation: u32,
}

impl Network {
    /// Has the kernel resolve the next hop towards `ip` now, whatever is known
    /// of it. Does not wait for the answer: [`Network::changes`] tells it.
    pub fn solicit(&self, ip: IpAddr) {
        let query = &mut self.shared.query();
        if let Some(hop) = self.shared.next_hop_towards(query, ip) {
            ask_for(query, hop);
        }
    }

    /// From now on keeps the next hops towards exactly these addresses
    /// resolved: at once for new ones, then every few seconds where one is
    /// stale, failed or forgotten.
    pub fn keep_resolved(&self, ips: impl IntoIterator<Item = IpAddr>) {
        // Before the locks: an iterator may ask this network, which takes them too.
        let ips: Vec<IpAddr> = ips.into_iter().collect();
        let mut resolver = self.shared.resolver();
        let mut known = std::mem::take(&mut resolver.hops);
        let query = &mut self.shared.query();
        for ip in ips {
            let hop = known.remove(&ip).unwrap_or_else(|| {
                let hop = self.shared.next_hop_towards(query, ip);
                if let Some(hop) = hop {
                    self.shared.ask_if_wanted(query, hop);
                }
                hop
            });
            resolver.hops.insert(ip, hop);
        }
    }
}

/// Asks again for what is stale or failed.
pub(super) fn refresh(shared: &Shared, query: &mut Query) {
    let generation = shared.route_generation.load(Ordering::Acquire);
    let mut resolver = shared.resolver();
    if resolver.generation != generation {
        resolver.generation = generation;
        for (ip, hop) in &mut resolver.hops {
            *hop = shared.next_hop_towards(query, *ip);
        }
    }
    let mut hops: Vec<Hop> = resolver.hops.values().flatten().copied().collect();
    drop(resolver);
    hops.extend(shared.stale_neighbours());
    hops.sort_unstable();
    hops.dedup();
    for hop in hops {
        shared.ask_if_wanted(query, hop);
    }
}

impl Shared {
    fn resolver(&self) -> std::sync::MutexGuard<'_, Resolver> {
        self.resolver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Some of the stale ones on attached interfaces.
    fn stale_neighbours(&self) -> Vec<Hop> {
        let snapshot = self.snapshot();
        let is_asked = |index: &u32| {
            let link = snapshot.links.get(index);
            link.is_some_and(|link| self.is_attached(link) && link.running)
        };
        snapshot
            .neighbours
            .iter()
            .filter(|((index, _), neighbour)| neighbour.is_stale() && is_asked(index))
            .map(|(hop, _)| *hop)
            .take(STALE_AT_ONCE)
            .collect()
    }

    fn next_hop_towards(&self, query: &mut Query, ip: IpAddr) -> Option<Hop> {
        let route = route_to(query, ip)
            .ok()
            .filter(|route| route.is_forwarded())?;
        let snapshot = self.snapshot();
        let link = snapshot.links.get(&route.interface)?;
        (!link.no_arp && link.up).then(|| (link.index, route.gateway.unwrap_or(ip)))
    }

    fn ask_if_wanted(&self, query: &mut Query, hop: Hop) {
        // The kernel does not tell every step of a neighbour's state: ask it.
        let neighbour = read_neighbour(query, hop.0, hop.1);
        if neighbour.is_none_or(|neighbour| neighbour.wants_solicit()) {
            ask_for(query, hop);
        }
    }
}

fn ask_for(query: &mut Query, (interface, address): Hop) {
    let (family, bytes) = family_and_bytes(address);
    let mut body = [0; 12];
    body[0] = family;
    body[4..8].copy_from_slice(&interface.to_ne_bytes());
    body[10] = NTF_USE;
    let flags = netlink::ACK | netlink::CREATE;
    let request = Request::new(netlink::RTM_NEWNEIGH, flags, &body).with(NDA_DST, &bytes);
    let result: io::Result<()> = query.ask(&request, |_, _| {});
    if let Err(error) = result {
        tracing::debug!(%error, %address, interface, "asking for a neighbour failed");
    }
}

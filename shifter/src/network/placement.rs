//! Where packets for an address go: this host, a neighbour, or wherever the kernel routes.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
};

use super::{
    Link, Network, Shared,
    netlink::{self, Query, Request, attributes, u32_at},
    snapshot::{Neighbour, Snapshot, ip},
};
use crate::datapath::{NextHopImage, Placement};

const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTA_DST: u16 = 1;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_MASTER: u16 = 9;
const NTF_MASTER: u8 = 0x4;
const RTAX_MTU: u16 = 2;

/// What the kernel's routing says of a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Route {
    /// RTN_UNICAST, RTN_LOCAL, ...
    kind: u8,
    pub interface: u32,
    pub gateway: Option<IpAddr>,
    pub mtu: Option<u32>,
}

impl Route {
    pub(super) fn is_forwarded(&self) -> bool {
        self.kind == RTN_UNICAST
    }

    /// Reads the body of RTM_NEWROUTE.
    fn parse(payload: &[u8]) -> Option<Self> {
        let mut route = Self {
            kind: *payload.get(7)?,
            interface: 0,
            gateway: None,
            mtu: None,
        };
        for (kind, value) in attributes(payload.get(12..)?) {
            match kind {
                4 => route.interface = u32_at(value, 0)?,
                5 => route.gateway = ip(value),
                // RTA_VIA: a gateway of the other family, after its family.
                18 => route.gateway = value.get(2..).and_then(ip),
                8 => {
                    route.mtu = attributes(value)
                        .find(|metric| metric.0 == RTAX_MTU)
                        .and_then(|metric| u32_at(metric.1, 0))
                        .filter(|mtu| *mtu > 0);
                }
                _ => {}
            }
        }
        Some(route)
    }
}

/// Asks the kernel how it routes to `to`.
pub(super) fn route_to(query: &mut Query, to: IpAddr) -> io::Result<Route> {
    let (family, bytes) = family_and_bytes(to);
    let mut body = [0; 12];
    body[0] = family;
    body[1] = bytes.len() as u8 * 8;
    let request = Request::new(netlink::RTM_GETROUTE, 0, &body).with(RTA_DST, &bytes);
    let mut route = None;
    query.ask(&request, |kind, payload| {
        if kind == netlink::RTM_NEWROUTE {
            route = Route::parse(payload);
        }
    })?;
    route.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Address family and bytes in network order.
pub(super) fn family_and_bytes(ip: IpAddr) -> (u8, Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => (libc::AF_INET as u8, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6 as u8, ip.octets().to_vec()),
    }
}

/// A neighbour as the kernel knows it at this moment.
pub(super) fn read_neighbour(query: &mut Query, interface: u32, at: IpAddr) -> Option<Neighbour> {
    let (family, bytes) = family_and_bytes(at);
    let mut body = [0; 12];
    body[0] = family;
    body[4..8].copy_from_slice(&interface.to_ne_bytes());
    let request = Request::new(netlink::RTM_GETNEIGH, 0, &body).with(NDA_DST, &bytes);
    let mut neighbour = None;
    let result = query.ask(&request, |_, payload| {
        neighbour = Neighbour::parse(payload).map(|found| found.2);
    });
    result.ok().and(neighbour)
}

/// Which port of a bridge a MAC is behind; kernel 5.0.
fn bridge_port(query: &mut Query, bridge: u32, mac: [u8; 6]) -> Option<u32> {
    let mut body = [0; 12];
    body[0] = libc::AF_BRIDGE as u8;
    body[10] = NTF_MASTER;
    let request = Request::new(netlink::RTM_GETNEIGH, 0, &body)
        .with(NDA_LLADDR, &mac)
        .with(NDA_MASTER, &bridge.to_ne_bytes());
    let mut port = None;
    let result = query.ask(&request, |_, payload| port = u32_at(payload, 4));
    result.ok().and(port)
}

/// An interface as it is at this moment.
fn read_link(query: &mut Query, index: u32) -> Option<Link> {
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    let request = Request::new(netlink::RTM_GETLINK, 0, &body);
    let mut link = None;
    let result = query.ask(&request, |_, payload| link = Link::parse(payload));
    result.ok().and(link)
}

impl Network {
    /// Whether packets to `ip` end on this host: any of its addresses, 127/8,
    /// and what local routes add. Asks the kernel (some µs).
    pub fn is_local(&self, ip: IpAddr) -> bool {
        if ip.is_unspecified() || ip.is_multicast() {
            return false;
        }
        match route_to(&mut self.shared.query(), ip) {
            Ok(route) => route.kind == RTN_LOCAL,
            // No route: an address of an interface that is down, at most.
            Err(_) => {
                let snapshot = self.shared.snapshot();
                snapshot.addresses.keys().any(|(_, address)| *address == ip)
            }
        }
    }

    /// Where packets for a backend go now. Asks the kernel (tens of µs). The
    /// answer holds until [`Network::route_generation`] rises, that of a
    /// namespace behind a bridge until [`Network::changes`] does.
    pub fn placement(&self, backend: SocketAddr) -> Placement {
        let ip = backend.ip();
        let elsewhere = Placement::Kernel { netns: None };
        let query = &mut self.shared.query();
        let Ok(route) = route_to(query, ip) else {
            return elsewhere;
        };
        if route.kind == RTN_LOCAL {
            return Placement::Host;
        }
        let link = self.shared.snapshot().links.get(&route.interface).cloned();
        let Some(link) = link.filter(|_| route.is_forwarded()) else {
            return elsewhere;
        };
        let neighbour = self
            .shared
            .neighbour_mac(query, &link, route.gateway.unwrap_or(ip));
        if let Some(destination) = neighbour
            && self.shared.is_attached(&link)
            && let Some(mut next_hop) = next_hop(&link, destination)
        {
            next_hop.mtu = next_hop.mtu.min(route.mtu.unwrap_or(u32::MAX));
            return Placement::NextHop(next_hop);
        }
        Placement::Kernel {
            netns: namespace_behind(query, &link, neighbour),
        }
    }

    /// All neighbours on attached interfaces whose MAC may be used: the ways
    /// towards clients. In no particular order, each once.
    pub fn next_hops(&self) -> Vec<NextHopImage> {
        let found = next_hops_in(&self.shared.snapshot(), &self.shared.attached);
        found.into_iter().collect()
    }
}

/// Usable neighbours on the links that are called one of `attached`.
pub(super) fn next_hops_in(snapshot: &Snapshot, attached: &[String]) -> HashSet<NextHopImage> {
    let mut found = HashSet::new();
    for ((index, _), neighbour) in &snapshot.neighbours {
        if let Some(link) = snapshot.links.get(index)
            && attached.contains(&link.name)
            && let Some(mac) = neighbour.usable()
        {
            found.extend(next_hop(link, mac));
        }
    }
    found
}

impl Shared {
    /// MAC of a neighbour, from the snapshot, else from the kernel.
    pub(super) fn neighbour_mac(
        &self,
        query: &mut Query,
        link: &Link,
        at: IpAddr,
    ) -> Option<[u8; 6]> {
        if link.no_arp {
            return None;
        }
        let known = self.snapshot().neighbours.get(&(link.index, at)).copied();
        known.and_then(|neighbour| neighbour.usable()).or_else(|| {
            read_neighbour(query, link.index, at).and_then(|neighbour| neighbour.usable())
        })
    }
}

/// A neighbour on a link; `None` where the link has no MAC.
fn next_hop(link: &Link, destination: [u8; 6]) -> Option<NextHopImage> {
    Some(NextHopImage {
        ifindex: link.index,
        mtu: link.mtu,
        source: link.mac?,
        destination,
    })
}

/// Namespace whose sockets an output interface leads to, where one can tell.
fn namespace_behind(query: &mut Query, link: &Link, neighbour: Option<[u8; 6]>) -> Option<i32> {
    // Read anew: the kernel does not tell when the other end of a veth moves.
    match link.kind.as_deref()? {
        "veth" | "netkit" => read_link(query, link.index)?.namespace_behind(),
        "bridge" => {
            let port = bridge_port(query, link.index, neighbour?)?;
            read_link(query, port)?.namespace_behind()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(attributes: Request) -> Route {
        let mut body = vec![0; 12];
        body[7] = RTN_UNICAST;
        body.extend_from_slice(attributes.payload());
        Route::parse(&body).unwrap()
    }

    #[test]
    fn route_names_interface_gateway_and_mtu() {
        let mtu = Request::new(0, 0, &[]).with(RTAX_MTU, &1400u32.to_ne_bytes());
        let parsed = route(
            Request::new(0, 0, &[])
                .with(4, &7u32.to_ne_bytes())
                .with(5, &[10, 0, 0, 1])
                .with(8, mtu.payload()),
        );
        assert_eq!(parsed.interface, 7);
        assert_eq!(parsed.gateway, Some([10, 0, 0, 1].into()));
        assert_eq!(parsed.mtu, Some(1400));
        assert!(parsed.is_forwarded());
    }

    #[test]
    fn ipv4_route_may_have_an_ipv6_gateway() {
        let gateway: std::net::Ipv6Addr = "fe80::1".parse().unwrap();
        let mut via = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
        via.extend_from_slice(&gateway.octets());
        let parsed = route(Request::new(0, 0, &[]).with(18, &via));
        assert_eq!(parsed.gateway, Some(gateway.into()));
    }
}

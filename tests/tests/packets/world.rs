//! The services, backends and clients that the tables speak of.

use std::net::SocketAddr;

use shifter::{
    datapath::{NextHopImage, Placement, ServiceImage},
    model::Protocol,
};
use shifter_common::abi::config::DEFAULT_TIMEOUTS_S;
use shifter_tests::{
    packet::{ACK, Packet, SYN, addr},
    scene::{Scene, image, in_scene, neighbour},
};

/// Interface that redirected packets leave by; not that of the trial.
pub const OUT: u32 = 77;
/// MTU of the next hops of backends.
pub const MTU: u32 = 1_400;

/// A service with one backend, and a client of it.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub backend: SocketAddr,
    pub is_udp: bool,
}

macro_rules! cases {
    ($($(#[$doc:meta])* $name:ident: $id:literal, $protocol:ident, $client:literal, $vip:literal, $backend:literal, $redirect:literal;)*) => {
        $($(#[$doc])* pub fn $name() -> Case {
            Case {
                client: addr($client),
                vip: addr($vip),
                backend: addr($backend),
                is_udp: matches!(Protocol::$protocol, Protocol::Udp),
            }
        })*
        const CASES: &[(u16, Protocol, fn() -> Case, bool)] =
            &[$(($id, Protocol::$protocol, $name, $redirect)),*];
    };
}

cases! {
    /// TCP over IPv4 to a neighbour.
    tcp4: 1, Tcp, "10.9.0.7:40000", "203.0.113.10:80", "10.8.0.11:8080", true;
    /// TCP over IPv6 to a neighbour.
    tcp6: 2, Tcp, "[2001:db8:9::7]:40000", "[2001:db8::10]:80", "[2001:db8:8::11]:8080", true;
    /// UDP over IPv4 to a neighbour.
    udp4: 3, Udp, "10.9.0.7:40000", "203.0.113.10:53", "10.8.0.11:5353", true;
    /// UDP over IPv6 to a neighbour.
    udp6: 4, Udp, "[2001:db8:9::7]:40000", "[2001:db8::10]:53", "[2001:db8:8::11]:5353", true;
    /// TCP over IPv4 by the kernel's routes.
    routed_tcp4: 5, Tcp, "10.9.0.7:40001", "203.0.113.20:80", "10.8.0.21:8080", false;
    /// TCP over IPv6 by the kernel's routes.
    routed_tcp6: 6, Tcp, "[2001:db8:9::7]:40001", "[2001:db8::20]:80", "[2001:db8:8::21]:8080", false;
    /// UDP over IPv4 by the kernel's routes.
    routed_udp4: 7, Udp, "10.9.0.7:40001", "203.0.113.20:53", "10.8.0.21:5353", false;
    /// UDP over IPv6 by the kernel's routes.
    routed_udp6: 8, Udp, "[2001:db8:9::7]:40001", "[2001:db8::20]:53", "[2001:db8:8::21]:5353", false;
}

/// Backend id of the only backend of the service with this id.
pub const fn backend_id(service: u16) -> u16 {
    100 + service
}

/// Backend id of a service's VIP.
pub const fn vip_id(service: u16) -> u16 {
    200 + service
}

/// The next hop of redirected backends.
pub fn hop() -> NextHopImage {
    neighbour(OUT, 2, MTU)
}

/// A scene with every service above.
pub fn world(test: impl FnOnce(&mut Scene) + Send + 'static) {
    world_of(16_384, test);
}

/// As [`world`], with room for so many flows.
pub fn world_of(flow_capacity: u32, test: impl FnOnce(&mut Scene) + Send + 'static) {
    in_scene(flow_capacity, DEFAULT_TIMEOUTS_S, |scene| {
        for (id, protocol, case, is_redirected) in CASES {
            let case = case();
            scene.backend(vip_id(*id), case.vip, *protocol, Placement::Host);
            let placement = if *is_redirected {
                Placement::NextHop(hop())
            } else {
                Placement::Kernel { netns: None }
            };
            scene.backend(backend_id(*id), case.backend, *protocol, placement);
            let service = service(*id);
            scene.service(&service, &[backend_id(*id)], &[]);
        }
        test(scene);
    });
}

/// A service above as it is published.
pub fn service(id: u16) -> ServiceImage {
    let (id, protocol, case, _) = CASES
        .iter()
        .find(|case| case.0 == id)
        .expect("a service above");
    image(*id, case().vip, *protocol, vip_id(*id))
}

/// Lets replies be redirected; see [`Scene::route_to_clients`].
pub fn route_to_clients(scene: &Scene, mtu: u32) -> NextHopImage {
    scene.route_to_clients(78, mtu)
}

/// The first packet of a flow.
pub fn opening(case: &Case) -> Packet {
    if case.is_udp {
        Packet::udp(case.client, case.vip)
    } else {
        Packet::tcp(case.client, case.vip, SYN)
    }
}

/// A later packet of the backend, as the client's side sees it: from the VIP.
pub fn from_vip(case: &Case) -> Packet {
    if case.is_udp {
        Packet::udp(case.vip, case.client)
    } else {
        Packet::tcp(case.vip, case.client, ACK)
    }
}

/// A later packet of the client, as the backend's side sees it.
pub fn to_backend(case: &Case) -> Packet {
    if case.is_udp {
        Packet::udp(case.client, case.backend)
    } else {
        Packet::tcp(case.client, case.backend, ACK)
    }
}

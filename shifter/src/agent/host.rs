//! The host as the reconciler asks for it, answered from netlink.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    datapath::Placement,
    model::{Protocol, Vip},
    network::{self, Network, TcpSockets},
    reconcile::HostFacts,
};

/// The network as facts.
pub struct Host(pub Arc<Network>);

impl HostFacts for Host {
    fn is_local(&self, ip: IpAddr) -> bool {
        self.0.is_local(ip)
    }
    fn interface_for(&self, ip: IpAddr) -> Option<String> {
        self.0.interface_for(ip)
    }
    fn placement(&self, addr: SocketAddr) -> Placement {
        self.0.placement(addr)
    }
    fn vip_is_translated(&self, vip: &Vip) -> bool {
        self.0.vip_is_translated(vip)
    }
    fn filter_problem(&self, anew: bool) -> Option<String> {
        match anew {
            true => self.0.filter_problem(),
            false => self.0.standing_filter_problem(),
        }
    }
    fn backend_warnings(&self, addr: SocketAddr, protocol: Protocol) -> Vec<String> {
        self.0.backend_warnings(addr, protocol)
    }
    fn tcp_sockets(&self, netns: Option<i32>, at: &HashSet<SocketAddr>) -> io::Result<TcpSockets> {
        network::tcp_sockets(netns, at)
    }
}

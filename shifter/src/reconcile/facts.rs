//! What the reconciler asks of the host: addresses, routes, what stands in the way.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
};

use crate::{
    datapath::Placement,
    model::{Protocol, Vip},
    network::TcpSockets,
};

/// The host as netlink, sysctls and netfilter show it. `is_local` and
/// `interface_for` are answered from what is known. The others ask the kernel
/// or run nft: some µs for the most part, some seconds where nft is slow. So
/// they are called under no lock that a request needs: a rollback waits for
/// nothing.
pub trait HostFacts: Send + Sync + 'static {
    /// Whether an interface of this host has the address.
    fn is_local(&self, ip: IpAddr) -> bool;
    /// Interface to put an address on: the one that faces its clients.
    fn interface_for(&self, ip: IpAddr) -> Option<String>;
    /// Where packets for a backend go now.
    fn placement(&self, addr: SocketAddr) -> Placement;
    /// Whether DNAT stands in front of the VIP, as for a published container
    /// port; yes where that is not known.
    fn vip_is_translated(&self, vip: &Vip) -> bool;
    /// Why the packet filter is not known whole: as read last, which waits for
    /// nothing, or read `anew`.
    fn filter_problem(&self, anew: bool) -> Option<String>;
    /// What stands between this host and a backend, one sentence each with its remedy.
    fn backend_warnings(&self, addr: SocketAddr, protocol: Protocol) -> Vec<String>;
    /// The TCP sockets at these addresses, here or in the namespace with this
    /// id; whole or an error. Takes some ms: not for a request's path.
    fn tcp_sockets(&self, netns: Option<i32>, at: &HashSet<SocketAddr>) -> io::Result<TcpSockets>;
    /// Ends the sockets of these pairs (address here, peer), here or in the namespace
    /// with this id; of each whether there was one.
    fn end_sockets(
        &self,
        netns: Option<i32>,
        pairs: &[(SocketAddr, SocketAddr)],
    ) -> io::Result<Vec<bool>>;
    /// Sends a RST in the name of `from`, with this sequence number and acknowledgement.
    fn send_reset(
        &self,
        from: SocketAddr,
        to: SocketAddr,
        sequence: u32,
        acknowledged: u32,
    ) -> io::Result<()>;
    /// What is loud about the agent itself; waits for nothing.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

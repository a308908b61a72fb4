//! What of the host stands in the way of a VIP or a backend.

use std::net::{IpAddr, SocketAddr};

use super::{
    Network,
    ruleset::{Fate, Hook, Probe},
};
use crate::{
    datapath::Placement,
    model::{Protocol, Vip},
};

impl Network {
    /// Whether conntrack may translate (DNAT) packets to the VIP, as it does
    /// for a published container port. Errs on the side of yes. May run nft
    /// and iptables-save (some ms): call it off the async threads.
    pub fn vip_is_translated(&self, vip: &Vip) -> bool {
        let probe = Probe {
            address: vip.addr.ip(),
            port: vip.addr.port(),
            protocol: vip.protocol,
            inputs: self.attached(),
            output: None,
            local: self.is_local(vip.addr.ip()),
        };
        self.rules.get().translates(&probe).is_some()
    }

    /// What stands in the way of a backend, each with its remedy; empty: nothing
    /// that can be seen. May run nft and iptables-save, as above.
    pub fn backend_warnings(&self, backend: SocketAddr, protocol: Protocol) -> Vec<String> {
        let mut warnings = Vec::new();
        let placement = self.placement(backend);
        if placement == Placement::Host {
            return warnings;
        }
        let ip = backend.ip();
        if let Some(setting) = forwarding_off(ip) {
            warnings.push(format!(
                "backend {backend} is not on this host and {setting} is off: sysctl -w {setting}=1"
            ));
        }
        let output = self.output_interface(ip);
        if output.is_none() {
            warnings.push(format!(
                "there is no route to backend {backend}: add one (ip route add {ip} via GATEWAY), or correct the address"
            ));
        }
        // A packet that is redirected to its next hop meets no netfilter.
        if matches!(placement, Placement::Kernel { .. }) {
            self.filter_warnings(backend, protocol, output.as_deref(), &mut warnings);
        }
        warnings
    }

    /// Name of the interface that packets to `ip` leave by; `None` without a route.
    pub fn output_interface(&self, ip: IpAddr) -> Option<String> {
        let route = super::placement::route_to(&mut self.shared.query(), ip).ok()?;
        let snapshot = self.shared.snapshot();
        let link = snapshot.links.get(&route.interface)?;
        route.is_forwarded().then(|| link.name.clone())
    }

    fn filter_warnings(
        &self,
        backend: SocketAddr,
        protocol: Protocol,
        output: Option<&str>,
        warnings: &mut Vec<String>,
    ) {
        let ip = backend.ip();
        let rules = self.rules.get();
        let probe = Probe {
            address: ip,
            port: backend.port(),
            protocol,
            inputs: self.attached(),
            output,
            local: false,
        };
        if let Fate::Dropped(by) = rules.fate(Hook::Prerouting, &probe) {
            warnings.push(format!(
                "packets from outside that are addressed to backend {backend} are dropped by {by} \
                 (Docker from version 28 on does so for a container's own address): publish the \
                 container's port on an address of this host and name that as backend"
            ));
        }
        if let Fate::Dropped(by) = rules.fate(Hook::Forward, &probe) {
            let family = if ip.is_ipv4() { "ip" } else { "ip6" };
            let port = backend.port();
            warnings.push(format!(
                "forwarded packets to backend {backend} are dropped by {by}: accept them there \
                 ({family} daddr {ip} {protocol} dport {port} accept), or publish the port on an \
                 address of this host and name that as backend"
            ));
        }
        if let Some(problem) = &rules.problem {
            warnings.push(format!(
                "whether the packet filter lets packets to backend {backend} pass is not known: {problem}"
            ));
        }
    }

    /// Why the packet filter could not be read whole; `None` if it was.
    pub fn filter_problem(&self) -> Option<String> {
        self.rules.get().problem.clone()
    }
}

/// The setting that must be on for packets to `ip` to be forwarded, if it is off.
pub fn forwarding_off(ip: IpAddr) -> Option<&'static str> {
    let setting = match ip {
        IpAddr::V4(_) => "net.ipv4.ip_forward",
        IpAddr::V6(_) => "net.ipv6.conf.all.forwarding",
    };
    (sysctl(setting).as_deref() == Some("0")).then_some(setting)
}

/// Value of a setting of the kernel in the namespace of the calling thread.
pub fn sysctl(name: &str) -> Option<String> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    let value = std::fs::read_to_string(path).ok()?;
    Some(value.trim().to_owned())
}

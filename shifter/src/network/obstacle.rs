//! What of the host stands in the way of a VIP or a backend.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::{
    Network,
    ruleset::{Fate, Hook, Probe},
};
use crate::{
    datapath::Placement,
    model::{Protocol, Vip},
};

/// Something of the host that stands in the way of a backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Obstacle {
    pub what: String,
    /// What mends it.
    pub remedy: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.remedy)
    }
}

impl Network {
    /// Whether conntrack may translate (DNAT) packets to the VIP, as it does
    /// for a published container port. Yes too where the rules could not be
    /// read whole ([`Network::filter_problem`] says why). May run nft and
    /// iptables-save (some ms, at worst seconds): call it off the async threads
    /// and under no lock that a request needs.
    pub fn vip_is_translated(&self, vip: &Vip) -> bool {
        let probe = Probe {
            address: vip.addr.ip(),
            port: vip.addr.port(),
            protocol: vip.protocol,
            inputs: self.attached(),
            output: None,
            local: self.is_local(vip.addr.ip()),
        };
        self.rules.get().may_translate(&probe)
    }

    /// [`Network::backend_obstacles`] as text.
    pub fn backend_warnings(&self, backend: SocketAddr, protocol: Protocol) -> Vec<String> {
        let obstacles = self.backend_obstacles(backend, protocol);
        obstacles.iter().map(ToString::to_string).collect()
    }

    /// What stands in the way of a backend; empty: nothing that can be seen.
    /// May run nft and iptables-save, as above.
    pub fn backend_obstacles(&self, backend: SocketAddr, protocol: Protocol) -> Vec<Obstacle> {
        let mut obstacles = Vec::new();
        let placement = self.placement(backend);
        if placement == Placement::Host {
            return obstacles;
        }
        let ip = backend.ip();
        if let Some(setting) = forwarding_off(ip) {
            obstacles.push(Obstacle {
                what: format!("backend {backend} is not on this host and {setting} is off"),
                remedy: format!("sysctl -w {setting}=1"),
            });
        }
        let output = self.output_interface(ip);
        if output.is_none() {
            obstacles.push(Obstacle {
                what: format!("there is no route to backend {backend}"),
                remedy: format!("add one (ip route add {ip} via GATEWAY), or correct the address"),
            });
        }
        // A packet that is redirected to its next hop meets no netfilter.
        if matches!(placement, Placement::Kernel { .. }) {
            self.filter_obstacles(backend, protocol, output.as_deref(), &mut obstacles);
        }
        obstacles
    }

    /// Name of the interface that packets to `ip` leave by; `None` without a route.
    pub fn output_interface(&self, ip: IpAddr) -> Option<String> {
        let route = super::placement::route_to(&mut self.shared.query(), ip).ok()?;
        let snapshot = self.shared.snapshot();
        let link = snapshot.links.get(&route.interface)?;
        route.is_forwarded().then(|| link.name.clone())
    }

    fn filter_obstacles(
        &self,
        backend: SocketAddr,
        protocol: Protocol,
        output: Option<&str>,
        obstacles: &mut Vec<Obstacle>,
    ) {
        let (ip, port) = (backend.ip(), backend.port());
        let rules = self.rules.get();
        let probe = Probe {
            address: ip,
            port,
            protocol,
            inputs: self.attached(),
            output,
            local: false,
        };
        let publish =
            "publish the container's port on an address of this host and name that as backend";
        if let Fate::Dropped(by) = rules.fate(Hook::Prerouting, &probe) {
            obstacles.push(Obstacle {
                what: format!(
                    "packets from outside that are addressed to backend {backend} are dropped by \
                     {by} (as Docker from version 28 on does for a container's own address)"
                ),
                remedy: publish.into(),
            });
        }
        if let Fate::Dropped(by) = rules.fate(Hook::Forward, &probe) {
            let family = if ip.is_ipv4() { "ip" } else { "ip6" };
            obstacles.push(Obstacle {
                what: format!("forwarded packets to backend {backend} are dropped by {by}"),
                remedy: format!(
                    "accept them there ({family} daddr {ip} {protocol} dport {port} accept), or {publish}"
                ),
            });
        }
        if let Some(problem) = &rules.problem {
            obstacles.push(Obstacle {
                what: format!(
                    "whether the packet filter lets packets to backend {backend} pass is not known"
                ),
                remedy: problem.clone(),
            });
        }
    }

    /// Why the packet filter could not be read whole; `None` if it was. Reads
    /// it where nobody did yet, as above.
    pub fn filter_problem(&self) -> Option<String> {
        self.rules.get().problem.clone()
    }

    /// Why the packet filter could not be read whole when it was last read.
    /// Reads nothing and waits for nothing.
    pub fn standing_filter_problem(&self) -> Option<String> {
        self.rules.standing_problem()
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

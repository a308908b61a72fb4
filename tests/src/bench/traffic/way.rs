//! The ways that traffic can take from the client to the servers.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use shifter::datapath::NextHopImage;

use crate::{
    agent::{Agent, Settings},
    bench::{object::Object, packets::reference},
    command::{Process, run},
    mover::Service,
    topology::{Family, Lab, Netns, Side},
};

/// Port of the VIP that bulk traffic goes to, and that of its server.
pub const BULK_VIP_PORT: u16 = 7_100;
pub const BULK_PORT: u16 = 7_101;

/// One way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The host merely routes; clients name the servers.
    Routed,
    /// The host merely routes, to an address that both servers own; connections
    /// are spread over two next hops by a hash of addresses and ports.
    RoutedEcmp,
    ShifterTc,
    ShifterXdp,
    /// A stateless NAT and nothing else.
    NatTc,
    NatXdp,
    /// nftables DNAT, conntrack.
    Nftables,
    /// HAProxy in TCP mode.
    Haproxy,
}

impl Way {
    pub const ALL: [Self; 8] = [
        Self::Routed,
        Self::RoutedEcmp,
        Self::ShifterTc,
        Self::ShifterXdp,
        Self::NatTc,
        Self::NatXdp,
        Self::Nftables,
        Self::Haproxy,
    ];

    /// As tables have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::RoutedEcmp => "routed, ECMP",
            Self::ShifterTc => "shifter, tc",
            Self::ShifterXdp => "shifter, xdp",
            Self::NatTc => "bare NAT, tc",
            Self::NatXdp => "bare NAT, xdp",
            Self::Nftables => "nftables DNAT",
            Self::Haproxy => "HAProxy, TCP",
        }
    }

    /// The bare NAT at the same hook; for what has none, that at tc.
    pub fn bare(self) -> Self {
        match self {
            Self::ShifterXdp | Self::NatXdp => Self::NatXdp,
            _ => Self::NatTc,
        }
    }

    /// The program that it cannot do without, and its Debian package.
    pub fn tool(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Nftables => Some(("nft", "nftables")),
            Self::Haproxy => Some(("haproxy", "haproxy")),
            _ => None,
        }
    }
}

/// A way in force; undone when dropped.
#[derive(Debug)]
pub struct InForce<'lab> {
    lab: &'lab Lab,
    way: Way,
    what: What<'lab>,
}

/// What has to be kept.
enum What<'lab> {
    Nothing,
    Agent(Box<Agent<'lab>>),
    Object { _object: Box<Object> },
    Process { _process: Process },
}

impl std::fmt::Debug for What<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Agent(_) => "agent",
            Self::Object { .. } => "object",
            Self::Process { .. } => "process",
        })
    }
}

impl<'lab> InForce<'lab> {
    /// Puts a way in force; the NATs are in `object`.
    pub fn start(lab: &'lab Lab, way: Way, object: &std::path::Path) -> Result<Self> {
        let what = match way {
            Way::Routed => What::Nothing,
            Way::RoutedEcmp => {
                ecmp(lab)?;
                What::Nothing
            }
            Way::ShifterTc => What::Agent(Box::new(shifter(lab, "tc")?)),
            Way::ShifterXdp => What::Agent(Box::new(shifter(lab, "xdp")?)),
            Way::NatTc | Way::NatXdp => What::Object {
                _object: Box::new(nat(lab, way == Way::NatXdp, object)?),
            },
            Way::Nftables => {
                nftables(lab)?;
                What::Nothing
            }
            Way::Haproxy => What::Process {
                _process: haproxy(lab)?,
            },
        };
        Ok(Self { lab, way, what })
    }

    /// Where requests go: one address for each of two threads.
    pub fn requests_to(&self) -> [SocketAddr; 2] {
        match self.way {
            Way::Routed => Side::BOTH.map(|side| self.lab.listen(side, Family::V4)),
            Way::RoutedEcmp => [shared_by_servers(self.lab); 2],
            _ => [self.lab.vip(Family::V4); 2],
        }
    }

    /// Where bulk traffic goes.
    pub fn bulk_to(&self) -> SocketAddr {
        match self.way {
            Way::Routed | Way::RoutedEcmp => {
                Lab::at_port(self.lab.listen(Side::Blue, Family::V4), BULK_PORT)
            }
            _ => Lab::at_port(self.lab.vip(Family::V4), BULK_VIP_PORT),
        }
    }

    /// Stops the agent, if there is one, while another way is visited: its own work would
    /// be charged to that; or lets it go on.
    pub fn rest(&self, rests: bool) {
        if let What::Agent(agent) = &self.what {
            agent.signal(if rests { libc::SIGSTOP } else { libc::SIGCONT });
        }
    }

    /// Whether hardly any request failed, and where shifter is the way, whether it has
    /// carried the connections and lost none.
    pub fn check(&self, connections: u64, failed: u64) -> Result<()> {
        match &self.what {
            What::Agent(agent) => check_agent(agent, connections, failed),
            _ => check_failed(connections, failed),
        }
    }
}

/// Of so many connections one may fail: some are reset by the servers' kernel
/// (docs/results.md, "New connections that a server resets"), and a way that fails more
/// often is not measured by what is left.
const ONE_MAY_FAIL_OF: u64 = 2_000;

fn check_failed(connections: u64, failed: u64) -> Result<()> {
    ensure!(
        failed <= connections / ONE_MAY_FAIL_OF,
        "{failed} requests failed beside {connections} connections; one of {ONE_MAY_FAIL_OF} may"
    );
    Ok(())
}

/// The same, and that shifter chose a backend for each connection and lost the entry of
/// none: then it would have met segments of flows without one.
pub fn check_agent(agent: &Agent, connections: u64, failed: u64) -> Result<()> {
    let flows = agent.new_flows("tcp4")?;
    ensure!(
        flows.iter().all(|flows| *flows > 0) && flows.iter().sum::<u64>() >= connections,
        "{connections} connections were made and shifter chose {flows:?}"
    );
    let lost = agent.flows_without_entry("tcp4")?;
    ensure!(
        lost == 0,
        "shifter met {lost} flows without an entry ({failed} requests failed)"
    );
    check_failed(connections, failed)
}

pub fn shifter<'lab>(lab: &'lab Lab, hook: &'static str) -> Result<Agent<'lab>> {
    let agent = Agent::start(lab, Settings::hook(hook).with_capacity(1 << 20))?;
    let web = Service::of(lab, "tcp", Family::V4).with_green("50%");
    let mut bulk = Service::of(lab, "tcp", Family::V4);
    "bulk".clone_into(&mut bulk.name);
    bulk.vip = Lab::at_port(bulk.vip, BULK_VIP_PORT);
    for addr in bulk.blue.iter_mut().chain(&mut bulk.green) {
        addr.set_port(BULK_PORT);
    }
    agent.apply(&[web, bulk])?;
    Ok(agent)
}

fn nat(lab: &Lab, is_xdp: bool, object: &std::path::Path) -> Result<Object> {
    let program = if is_xdp {
        "bench_xdp_nat"
    } else {
        "bench_tc_nat"
    };
    let mut object = Object::load(object, &[program.to_owned()], &[("REF_PINS", 16)])?;
    let [h0, h1] = [link(&lab.host, "h0")?, link(&lab.host, "h1")?];
    let client = link(&lab.client, "c0")?;
    let to_clients = hop(&h0, &client);
    let to = |side: Side, port: Option<u16>| -> Result<_> {
        let server = link(lab.server_ns(side), "b0")?;
        let addr = lab.listen(side, Family::V4);
        Ok((
            port.map_or(addr, |port| Lab::at_port(addr, port)),
            hop(&h1, &server),
        ))
    };
    let vip = lab.vip(Family::V4);
    let web = [to(Side::Blue, None)?, to(Side::Green, None)?];
    let bulk = [to(Side::Blue, Some(BULK_PORT))?];
    for (number, vip, backends) in [
        (0, vip, &web[..]),
        (1, Lab::at_port(vip, BULK_VIP_PORT), &bulk[..]),
    ] {
        reference::Service {
            number,
            vip,
            is_udp: false,
            backends,
            to_clients,
        }
        .put(&object)?;
    }
    let attached = lab.host.run(|| {
        ["h0", "h1"].into_iter().try_for_each(|interface| {
            if is_xdp {
                object.attach_native(program, interface)
            } else {
                object.attach_tc(program, interface)
            }
        })
    });
    attached?;
    Ok(object)
}

/// Index and MAC of an interface.
struct Link {
    ifindex: u32,
    mac: [u8; 6],
}

fn link(ns: &Netns, name: &str) -> Result<Link> {
    let mut command: Command = ns.command("ip");
    let output = run(command.args(["-j", "link", "show", "dev", name]))?;
    let all: Value = serde_json::from_slice(&output.stdout)?;
    let text = all[0]["address"].as_str().context("an address of a link")?;
    let mut mac = [0; 6];
    for (byte, digits) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(digits, 16)?;
    }
    let ifindex = all[0]["ifindex"].as_u64().context("an index of a link")? as u32;
    Ok(Link { ifindex, mac })
}

fn hop(from: &Link, to: &Link) -> NextHopImage {
    NextHopImage {
        ifindex: from.ifindex,
        mtu: 1_500,
        source: from.mac,
        destination: to.mac,
    }
}

/// An address that both servers own, with the port of the VIP.
pub fn shared_by_servers(lab: &Lab) -> SocketAddr {
    (Ipv4Addr::new(10, 79, 0, 1), lab.vip(Family::V4).port()).into()
}

fn ecmp(lab: &Lab) -> Result<()> {
    let shared = shared_by_servers(lab).ip();
    let [blue, green] = Side::BOTH.map(|side| lab.listen(side, Family::V4).ip());
    lab.host.sysctl("ipv4/fib_multipath_hash_policy", "1")?;
    lab.host.ip(&[format!(
        "route add {shared}/32 nexthop via {blue} nexthop via {green}"
    )])
}

fn nftables(lab: &Lab) -> Result<()> {
    let vip = lab.vip(Family::V4).ip();
    let port = lab.vip(Family::V4).port();
    let [blue, green] = Side::BOTH.map(|side| lab.listen(side, Family::V4));
    let bulk = Lab::at_port(blue, BULK_PORT);
    lab.host.nft(&format!(
        "table ip bench {{ chain pre {{ type nat hook prerouting priority dstnat;
           ip daddr {vip} tcp dport {port} numgen random mod 2 0 dnat to {blue}
           ip daddr {vip} tcp dport {port} dnat to {green}
           ip daddr {vip} tcp dport {BULK_VIP_PORT} dnat to {bulk}
         }}
         }}\n"
    ))?;
    // Closed connections would fill conntrack, whose size a namespace cannot change.
    lab.host
        .sysctl("netfilter/nf_conntrack_tcp_timeout_time_wait", "1")
}

fn haproxy(lab: &Lab) -> Result<Process> {
    let vip = lab.vip(Family::V4);
    let [blue, green] = Side::BOTH.map(|side| lab.listen(side, Family::V4));
    let config = format!(
        "global\n nbthread 2\n maxconn 4000\n\
         defaults\n mode tcp\n timeout connect 5s\n timeout client 1m\n timeout server 1m\n\
         listen web\n bind {vip}\n balance roundrobin\n server blue {blue}\n server green {green}\n\
         listen bulk\n bind {}\n server blue {}\n",
        Lab::at_port(vip, BULK_VIP_PORT),
        Lab::at_port(blue, BULK_PORT),
    );
    let path = lab.dir().join("haproxy.cfg");
    fs::write(&path, config)?;
    let mut command = lab.host.command("haproxy");
    command.arg("-db").arg("-f").arg(&path);
    let mut process = Process::start(command, lab.dir().join("haproxy.log"))?;
    thread::sleep(Duration::from_millis(300));
    if let Some(status) = process.ended() {
        anyhow::bail!("haproxy ended with {status}: {}", process.output());
    }
    Ok(process)
}

//! A client, a shifter host and a blue and a green server, each in a network
//! namespace, wired for one placement of the servers.
//!
//! ```text
//! client c0 ──┬── [router] ──┬── h0 host ──┬── h1 ─ [router] ─┬── blue, green     RemoteOther
//!             │              │             ├── cbr0 ──────────┼── blue, green     Container, Published
//!             │           switch           └── hb, hg ────────┴── blue, green     ContainerVeth
//!             │              └── blue, green                                      RemoteSame
//! ```
//!
//! | net | IPv4 | IPv6 | host |
//! |---|---|---|---|
//! | client, behind the router | 10.70.0.0/24 | fd70::/64 | - |
//! | in front of the host | 10.71.0.0/24 | fd71::/64 | .1, VIP .100 |
//! | remote servers | 10.72.0.0/24 | fd72::/64 | .1 |
//! | containers behind a bridge | 10.73.0.0/24 | fd73::/64 | .1 |
//! | containers behind a veth | 10.74.1.0/24, 10.74.2.0/24 | fd74:1::/64, fd74:2::/64 | .1 |
//! | host to the servers' router | 10.75.0.0/24 | fd75::/64 | .1 |
//! | addresses the client sends raw frames from | 10.80.0.0/15 | fd80::/64 | routed |
//! | addresses the client binds sockets to | 10.82.0.0/16 | fd82::/64 | routed |

mod netns;
mod wire;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result};

pub use self::netns::{Netns, PREFIX, sweep_stale};
use crate::command::run;

/// Where the servers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// (a) Both on the host, on other ports of its own address.
    HostPorts,
    /// (b) Blue is the VIP itself, on the host; green on another port.
    Vip,
    /// (b) Blue is the VIP itself, which nft publishes from a container.
    VipPublished,
    /// (c) In namespaces of the host behind a bridge, by their own address.
    Container,
    /// (c) As [`Placement::Container`], each behind a routed veth.
    ContainerVeth,
    /// (c) In namespaces of the host, by ports published on the host's address.
    Published,
    /// (d) On other hosts, behind the interface that the clients are behind.
    RemoteSame,
    /// (d) On other hosts, behind another interface.
    RemoteOther,
}

impl Placement {
    /// Every placement.
    pub const ALL: [Self; 8] = [
        Self::HostPorts,
        Self::Vip,
        Self::VipPublished,
        Self::Container,
        Self::ContainerVeth,
        Self::Published,
        Self::RemoteSame,
        Self::RemoteOther,
    ];

    fn is_behind_bridge(self) -> bool {
        matches!(self, Self::Container | Self::Published | Self::VipPublished)
    }
}

/// Which of the two pools.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Blue,
    Green,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Blue, Self::Green];

    /// What its server stamps into every answer.
    pub const fn identity(self) -> u8 {
        match self {
            Self::Blue => 1,
            Self::Green => 2,
        }
    }

    /// As written in service files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Green => "green",
        }
    }
}

/// Address family of a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// What can be different from the plain lab.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub placement: Placement,
    /// A router between client and host.
    pub client_router: bool,
    /// A router between host and remote servers (`RemoteOther` only).
    pub backend_router: bool,
    /// MTU between client and router; without a router unused.
    pub mtu_client: u32,
    /// MTU of the host's interface towards the clients.
    pub mtu_front: u32,
    /// MTU of the host's interface towards remote servers.
    pub mtu_back: u32,
    /// MTU of the servers' own links.
    pub mtu_backend: u32,
    /// Leave checksum and segmentation offload on where namespaces stand for
    /// a wire; XDP cannot rewrite such frames.
    pub wire_offloads: bool,
    /// Each flow's packets are handled by one CPU at its server, as a network card's
    /// queues have it. Where two CPUs handle the ACK and the first data of a new
    /// connection at once, Linux may answer the data by a reset: for an instant there is
    /// neither handshake nor socket (docs/results.md, "New connections that a server resets").
    /// Where a server is on the host, this is so for shifter's tc ingress too.
    pub one_cpu_a_flow: bool,
}

impl Options {
    /// A lab without routers or small links.
    pub const fn new(placement: Placement) -> Self {
        Self {
            placement,
            client_router: false,
            backend_router: false,
            mtu_client: 1500,
            mtu_front: 1500,
            mtu_back: 1500,
            mtu_backend: 1500,
            wire_offloads: false,
            one_cpu_a_flow: true,
        }
    }
}

/// Port of the VIP.
pub const VIP_PORT: u16 = 7000;
const SERVER_PORT: [u16; 2] = [7001, 7002];
const PUBLISHED_PORT: [u16; 2] = [8001, 8002];

/// The namespaces of a scenario; removed when dropped.
#[derive(Debug)]
pub struct Lab {
    pub options: Options,
    pub client: Netns,
    pub host: Netns,
    blue: Option<Netns>,
    green: Option<Netns>,
    client_router: Option<Netns>,
    backend_net: Option<Netns>,
    directory: Directory,
}

impl Lab {
    /// The plain lab for a placement.
    pub fn new(placement: Placement) -> Result<Self> {
        Self::with(Options::new(placement))
    }

    /// A lab with routers or small links.
    pub fn with(options: Options) -> Result<Self> {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep_stale);
        let directory = Directory::create()?;
        let make = |role: &str| Netns::create(format!("{}-{role}", directory.name));
        let away = !matches!(options.placement, Placement::HostPorts | Placement::Vip);
        let remote = matches!(
            options.placement,
            Placement::RemoteSame | Placement::RemoteOther
        );
        let lab = Self {
            options,
            client: make("client")?,
            host: make("host")?,
            blue: away.then(|| make("blue")).transpose()?,
            green: away.then(|| make("green")).transpose()?,
            client_router: options.client_router.then(|| make("router")).transpose()?,
            backend_net: remote.then(|| make("net")).transpose()?,
            directory,
        };
        wire::connect(&lab).with_context(|| format!("wire a lab for {options:?}"))?;
        Ok(lab)
    }

    /// Makes the link between client and host again, after it was deleted.
    pub fn rewire_front(&self) -> Result<()> {
        wire::front(self)
    }

    /// Directory for files of this lab; removed with it.
    pub fn dir(&self) -> &Path {
        &self.directory.path
    }

    /// Where a scenario puts programs that the agent shall find before the system's.
    pub fn programs(&self) -> PathBuf {
        self.dir().join("bin")
    }

    /// Directory of the lab's own BPF file system.
    pub fn bpffs(&self) -> PathBuf {
        self.directory.path.join("bpf")
    }

    /// Unique name of this lab, `sft-PID-N`.
    pub fn name(&self) -> &str {
        &self.directory.name
    }

    /// Interfaces that the agent has to be given.
    pub fn interfaces(&self) -> &'static [&'static str] {
        match self.options.placement {
            Placement::RemoteOther => &["h0", "h1"],
            _ => &["h0"],
        }
    }

    /// Where clients connect to.
    pub fn vip(&self, family: Family) -> SocketAddr {
        pick(family, 71, 0x100, 100, VIP_PORT)
    }

    /// The host's own address on the clients' side, with a port.
    pub fn host_addr(&self, family: Family, port: u16) -> SocketAddr {
        pick(family, 71, 1, 1, port)
    }

    /// The client's own address.
    pub fn client_ip(&self, family: Family) -> IpAddr {
        let net = if self.options.client_router { 70 } else { 71 };
        pick(family, net, 2, 2, 0).ip()
    }

    /// Namespace of a side's server.
    pub fn server_ns(&self, side: Side) -> &Netns {
        let own = match side {
            Side::Blue => &self.blue,
            Side::Green => &self.green,
        };
        own.as_ref().unwrap_or(&self.host)
    }

    /// The router between client and host.
    pub fn client_router(&self) -> Option<&Netns> {
        self.client_router.as_ref()
    }

    /// The switch or router that remote servers are behind.
    pub fn backend_net(&self) -> Option<&Netns> {
        self.backend_net.as_ref()
    }

    /// The switch that clients and servers share (`RemoteSame`), and its port
    /// to the host.
    pub fn switch(&self) -> Option<(&Netns, &'static str)> {
        match self.options.placement {
            Placement::RemoteSame => self.backend_net.as_ref().map(|net| (net, "ph")),
            _ => None,
        }
    }

    /// Where a side's server listens.
    pub fn listen(&self, side: Side, family: Family) -> SocketAddr {
        let i = side as usize;
        let last = [21, 22][i];
        let port = SERVER_PORT[i];
        match self.options.placement {
            Placement::Vip if side == Side::Blue => self.vip(family),
            Placement::HostPorts | Placement::Vip => self.host_addr(family, port),
            Placement::RemoteSame | Placement::RemoteOther => {
                pick(family, 72, u16::from(last), last, port)
            }
            Placement::ContainerVeth => {
                let net = i as u8 + 1;
                match family {
                    Family::V4 => (Ipv4Addr::new(10, 74, net, last), port).into(),
                    Family::V6 => (
                        Ipv6Addr::new(0xfd74, u16::from(net), 0, 0, 0, 0, 0, u16::from(last)),
                        port,
                    )
                        .into(),
                }
            }
            _ => pick(family, 73, u16::from(last), last, port),
        }
    }

    /// A side's backend as the service file names it.
    pub fn backend(&self, side: Side, family: Family) -> SocketAddr {
        match self.options.placement {
            Placement::VipPublished if side == Side::Blue => self.vip(family),
            Placement::Published | Placement::VipPublished => {
                self.host_addr(family, PUBLISHED_PORT[side as usize])
            }
            _ => self.listen(side, family),
        }
    }

    /// As [`Lab::backend`] or [`Lab::listen`] address, with another port.
    pub fn at_port(mut addr: SocketAddr, port: u16) -> SocketAddr {
        addr.set_port(port);
        addr
    }
}

/// 10.NET.0.LAST4 or fdNET::LAST6.
fn pick(family: Family, net: u8, last6: u16, last4: u8, port: u16) -> SocketAddr {
    match family {
        Family::V4 => (Ipv4Addr::new(10, net, 0, last4), port).into(),
        Family::V6 => {
            // fd71 for net 71: the decimal digits are read as hexadecimal.
            let digits = u16::from(net / 10) << 4 | u16::from(net % 10);
            (
                Ipv6Addr::new(0xfd00 | digits, 0, 0, 0, 0, 0, 0, last6),
                port,
            )
                .into()
        }
    }
}

/// Temporary directory with a BPF file system of its own at `bpf`.
#[derive(Debug)]
struct Directory {
    name: String,
    path: PathBuf,
}

impl Directory {
    fn create() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "{PREFIX}{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(&name);
        fs::create_dir_all(path.join("bpf"))
            .with_context(|| format!("create {}", path.display()))?;
        let directory = Self { name, path };
        run(Command::new("mount")
            .args(["-t", "bpf", "bpf"])
            .arg(directory.path.join("bpf")))?;
        Ok(directory)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        remove_directory(&self.path);
    }
}

/// Unmounts the BPF file system of a lab's directory and removes it.
fn remove_directory(path: &Path) {
    // Lazily, because a process that is just ending may still hold it.
    let _ = run(Command::new("umount").arg("-l").arg(path.join("bpf")));
    let _ = fs::remove_dir_all(path);
}

//! Many new flows without sockets: SYNs (or datagrams) built by hand, from
//! client addresses and ports that are all different.

use std::{
    fs, io,
    mem::zeroed,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::frame::mix;
use crate::{command::run, packet::sum::checksum, topology::Netns};

const ETHERNET: usize = 14;
const TCP: usize = 20;
/// Ports of a batch of tuples.
const PORTS: u16 = 640;

/// A client address and port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    pub ip: IpAddr,
    pub port: u16,
}

/// `count` tuples, no two alike, of the family of `to`: each address has one
/// port, so they are also distinct clients. Batches (0 to 99) have no tuple in
/// common; `seed` changes ports and, for IPv6, addresses. At most 131,072 for IPv4.
pub fn tuples(to: SocketAddr, count: u32, batch: u16, seed: u64) -> Vec<Tuple> {
    assert!(batch < 100, "there are ports for 100 batches");
    let ip = |i: u32| -> IpAddr {
        match to {
            SocketAddr::V4(_) => {
                Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 80, 0, 0)) + (i & 0x1_ffff)).into()
            }
            SocketAddr::V6(_) => {
                let [a, b, c, d] = words(mix(seed).rotate_left(17) ^ u64::from(i));
                Ipv6Addr::new(0xfd80, 0, 0, 0, a, b, c, d).into()
            }
        }
    };
    (0..count)
        .map(|i| Tuple {
            ip: ip(i),
            port: 1024 + batch * PORTS + (mix(seed ^ u64::from(i)) % u64::from(PORTS)) as u16,
        })
        .collect()
}

fn words(value: u64) -> [u16; 4] {
    [48, 32, 16, 0].map(|shift| (value >> shift) as u16)
}

/// Sends SYNs out of one interface of a namespace.
#[derive(Debug)]
pub struct Sender {
    pub(super) socket: OwnedFd,
    pub(super) interface: i32,
    pub(super) source_mac: [u8; 6],
    pub(super) next_hop_mac: [u8; 6],
}

impl Sender {
    /// Sends out of `interface` of `ns` to the neighbour `next_hop`.
    pub fn new(ns: &Netns, interface: &str, next_hop: IpAddr) -> Result<Self> {
        // A packet to it makes the kernel look for its MAC.
        let ping = if next_hop.is_ipv6() { "-6" } else { "-4" };
        let addr = next_hop.to_string();
        let neighbour = run(ns
            .command("ip")
            .args(["neigh", "show", &addr, "dev", interface]))?;
        let mut text = String::from_utf8_lossy(&neighbour.stdout).into_owned();
        if !text.contains("lladdr") {
            ns.run(|| provoke(next_hop));
            thread::sleep(Duration::from_millis(200));
            let again = run(ns
                .command("ip")
                .args([ping, "neigh", "show", &addr, "dev", interface]))?;
            text = String::from_utf8_lossy(&again.stdout).into_owned();
        }
        let next_hop_mac = text
            .split_whitespace()
            .skip_while(|word| *word != "lladdr")
            .nth(1)
            .and_then(parse_mac)
            .with_context(|| format!("no MAC of {addr} in {text:?}"))?;
        ns.run(|| Self::open(interface, next_hop_mac))
    }

    fn open(interface: &str, next_hop_mac: [u8; 6]) -> Result<Self> {
        let name = std::ffi::CString::new(interface)?;
        // SAFETY: `name` is a C string that outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            bail!("no interface {interface}");
        }
        // SAFETY: socket takes plain numbers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("open a packet socket");
        }
        // SAFETY: the descriptor was just made and has no other owner.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            source_mac: own_mac(&socket, interface)?,
            socket,
            interface: index.cast_signed(),
            next_hop_mac,
        })
    }

    /// Sends a SYN from each tuple to `to`, at most `per_second` of them.
    pub fn send(&self, to: SocketAddr, tuples: &[Tuple], per_second: u32) -> Result<()> {
        const BURST: usize = 32;
        let start = std::time::Instant::now();
        for (burst, tuples) in tuples.chunks(BURST).enumerate() {
            for tuple in tuples {
                self.send_frame(&self.syn(to, *tuple))?;
            }
            let due = Duration::from_secs_f64((burst * BURST) as f64 / f64::from(per_second));
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
        Ok(())
    }

    /// Where its frames go, as the kernel is told.
    pub(super) fn address(&self) -> libc::sockaddr_ll {
        // SAFETY: all zero is a valid sockaddr_ll.
        let mut addr: libc::sockaddr_ll = unsafe { zeroed() };
        addr.sll_family = libc::AF_PACKET as u16;
        addr.sll_ifindex = self.interface;
        addr.sll_halen = 6;
        addr
    }

    pub(super) fn send_frame(&self, frame: &[u8]) -> Result<()> {
        let addr = self.address();
        // SAFETY: frame and address are valid for the lengths given.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const addr).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if sent < 0 {
            let error = io::Error::last_os_error();
            // A full queue: that SYN is lost, as on a wire; who counts sees it.
            if error.raw_os_error() != Some(libc::ENOBUFS) {
                return Err(error).context("send a raw frame");
            }
        }
        Ok(())
    }

    /// A whole Ethernet frame with a SYN, checksums right.
    fn syn(&self, to: SocketAddr, from: Tuple) -> Vec<u8> {
        let mut frame = Vec::with_capacity(ETHERNET + 40 + TCP);
        frame.extend(self.next_hop_mac);
        frame.extend(self.source_mac);
        let mut tcp = [0u8; TCP];
        tcp[0..2].copy_from_slice(&from.port.to_be_bytes());
        tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
        let isn = mix(u64::from(from.port)) as u32;
        tcp[4..8].copy_from_slice(&isn.to_be_bytes());
        tcp[12] = 5 << 4;
        tcp[13] = 0x02;
        tcp[14..16].copy_from_slice(&64_240u16.to_be_bytes());
        match (from.ip, to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend(0x0800u16.to_be_bytes());
                let ip = ipv4(source, destination);
                let pseudo = [source.octets(), destination.octets()].concat();
                put_checksum(&mut tcp, &pseudo);
                frame.extend(ip);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend(0x86ddu16.to_be_bytes());
                frame.extend([0x60, 0, 0, 0, 0, TCP as u8, libc::IPPROTO_TCP as u8, 64]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                let pseudo = [source.octets(), destination.octets()].concat();
                put_checksum(&mut tcp, &pseudo);
            }
            _ => unreachable!("tuples are of the family of their destination"),
        }
        frame.extend(tcp);
        frame
    }
}

fn ipv4(source: Ipv4Addr, destination: Ipv4Addr) -> [u8; 20] {
    let mut ip = [0u8; 20];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(20 + TCP as u16).to_be_bytes());
    ip[6] = 0x40;
    ip[8] = 64;
    ip[9] = libc::IPPROTO_TCP as u8;
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&destination.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    ip
}

fn put_checksum(tcp: &mut [u8; TCP], addresses: &[u8]) {
    let pseudo = [0, libc::IPPROTO_TCP as u8, 0, TCP as u8];
    let sum = checksum(&[addresses, &pseudo, tcp].concat());
    tcp[16..18].copy_from_slice(&sum);
}

/// Sends a datagram nobody waits for.
fn provoke(to: IpAddr) {
    let any: IpAddr = match to {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    if let Ok(socket) = std::net::UdpSocket::bind((any, 0)) {
        let _ = socket.send_to(&[0], (to, 9));
    }
}

fn own_mac(socket: &OwnedFd, interface: &str) -> Result<[u8; 6]> {
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: `request` is a valid ifreq with a name.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error()).context("ask for a MAC");
    }
    // SAFETY: SIOCGIFHWADDR has filled the hardware address.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    Ok(std::array::from_fn(|i| data[i].cast_unsigned()))
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Counts and swallows the SYNs that reach a server: a rule of its namespace,
/// so that what shifter says of itself is not needed to judge it.
#[derive(Debug)]
pub struct Counter<'a> {
    ns: &'a Netns,
    port: u16,
}

impl<'a> Counter<'a> {
    /// Counts SYNs to `port` in `ns` from now on; none reaches a socket.
    pub fn start(ns: &'a Netns, port: u16) -> Result<Self> {
        ns.nft(&format!(
            "table inet count{port} {{ chain in {{\n\
             type filter hook input priority 0;\n\
             tcp dport {port} tcp flags & (syn | ack) == syn counter drop\n}}\n}}\n"
        ))?;
        Ok(Self { ns, port })
    }

    /// SYNs so far.
    pub fn count(&self) -> Result<u64> {
        let table = format!("count{}", self.port);
        let output = run(self
            .ns
            .command("nft")
            .args(["list", "table", "inet", &table]))?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.split_whitespace()
            .skip_while(|word| *word != "packets")
            .nth(1)
            .and_then(|n| n.parse().ok())
            .with_context(|| format!("no counter in {text}"))
    }
}

impl Drop for Counter<'_> {
    fn drop(&mut self) {
        let table = format!("count{}", self.port);
        let _ = run(self
            .ns
            .command("nft")
            .args(["delete", "table", "inet", &table]));
    }
}

/// A seed that no other run has.
pub fn fresh_seed() -> u64 {
    let mut bytes = [0; 8];
    let filled = fs::File::open("/dev/urandom")
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut bytes));
    match filled {
        Ok(()) => u64::from_le_bytes(bytes),
        // The clock is as good where there is no /dev/urandom.
        Err(_) => std::time::UNIX_EPOCH
            .elapsed()
            .map_or(1, |t| t.as_nanos() as u64),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_tuples_share_an_address() {
        for to in ["10.0.0.1:1", "[fd00::1]:1"] {
            let tuples = tuples(to.parse().unwrap(), 100_000, 99, 7);
            let addrs: HashSet<IpAddr> = tuples.iter().map(|t| t.ip).collect();
            assert_eq!(addrs.len(), 100_000);
        }
    }
}

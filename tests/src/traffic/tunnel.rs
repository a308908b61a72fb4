//! Two servers behind one forwarder that holds SYN-ACKs back. The kernel answers for
//! its listeners at once and this kernel has no netem, so each server lives in a
//! namespace behind two TUN devices, and one thread carries the packets of both: what
//! a busy machine adds, it adds to both.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::topology::{Family, Lab, Netns, Side};

/// `_IOW('T', 202, int)` of linux/if_tun.h.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const IFF_TUN: i16 = 1;
const IFF_NO_PI: i16 = 0x1000;
/// How often the thread looks whether it shall end.
const LOOK: Duration = Duration::from_millis(50);

/// Namespaces behind those of the servers, and the thread that carries packets there.
#[derive(Debug)]
pub struct Tunnel {
    /// Where the servers of blue and green are.
    pub inner: [Netns; 2],
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Behind both servers (`Placement::RemoteOther`), at addresses of their own.
    /// SYN-ACKs of blue and of green wait for `holds`, nothing else does.
    pub fn behind(lab: &Lab, holds: [Duration; 2]) -> Result<Self> {
        let (blue, mut first) = wire(lab, Side::Blue)?;
        let (green, mut second) = wire(lab, Side::Green)?;
        (first.hold, second.hold) = holds.into();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            if let Err(error) = carry(&mut [first, second], &flag) {
                eprintln!("the tunnel broke: {error}");
            }
        });
        Ok(Self {
            inner: [blue, green],
            stop,
            thread: Some(thread),
        })
    }

    /// Where a side's server listens, which is the backend's address too.
    pub fn at(&self, side: Side, port: u16) -> SocketAddr {
        (address(side), port).into()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn address(side: Side) -> Ipv4Addr {
    Ipv4Addr::new(10, 76, 0, [21, 22][side as usize])
}

/// A namespace behind a server's, and the two ends that packets go between.
fn wire(lab: &Lab, side: Side) -> Result<(Netns, Pair)> {
    let address = address(side);
    let outer = lab.server_ns(side);
    let inner = Netns::create(format!("{}t", outer.name()))?;
    let outer_end = outer.run(|| open_tun("hold0"))?;
    let inner_end = inner.run(|| open_tun("hold1"))?;
    outer.sysctl("ipv4/ip_forward", "1")?;
    outer.ip(&[
        "link set hold0 up".to_owned(),
        format!("route add {address}/32 dev hold0"),
    ])?;
    inner.ip(&[
        "link set hold1 up".to_owned(),
        format!("address add {address}/32 dev hold1"),
        "route add default dev hold1".to_owned(),
    ])?;
    let via = lab.listen(side, Family::V4).ip();
    lab.host
        .ip(&[format!("route add {address}/32 via {via}")])?;
    let pair = Pair {
        outer: outer_end,
        inner: inner_end,
        hold: Duration::ZERO,
        held: VecDeque::new(),
    };
    Ok((inner, pair))
}

fn open_tun(name: &str) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("open /dev/net/tun")?;
    // struct ifreq: 16 bytes of name, then flags; 40 bytes in all.
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
    // SAFETY: an ifreq of the right size, on an open descriptor.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error()).context("TUNSETIFF");
    }
    Ok(file)
}

/// One server's way.
struct Pair {
    outer: File,
    inner: File,
    hold: Duration,
    /// SYN-ACKs and when they go on, oldest first.
    held: VecDeque<(Instant, Vec<u8>)>,
}

impl Pair {
    /// Lets go of what has waited long enough; how long the next one waits.
    fn let_go(&mut self, now: Instant) -> io::Result<Duration> {
        while let Some((due, packet)) = self.held.pop_front() {
            if due > now {
                self.held.push_front((due, packet));
                return Ok(due - now);
            }
            self.outer.write_all(&packet)?;
        }
        Ok(LOOK)
    }

    /// Carries what has come both ways.
    fn carry(&mut self, packet: &mut [u8]) -> io::Result<()> {
        while let Some(length) = read(&mut self.outer, packet)? {
            self.inner.write_all(&packet[..length])?;
        }
        while let Some(length) = read(&mut self.inner, packet)? {
            if is_syn_ack(&packet[..length]) {
                let due = Instant::now() + self.hold;
                self.held.push_back((due, packet[..length].to_vec()));
            } else {
                self.outer.write_all(&packet[..length])?;
            }
        }
        Ok(())
    }
}

/// Carries packets both ways until told to stop.
fn carry(pairs: &mut [Pair; 2], stop: &AtomicBool) -> io::Result<()> {
    let mut packet = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let mut wait = LOOK;
        for pair in pairs.iter_mut() {
            wait = wait.min(pair.let_go(now)?);
        }
        wait_for(pairs, wait)?;
        for pair in pairs.iter_mut() {
            pair.carry(&mut packet)?;
        }
    }
    Ok(())
}

/// One packet, if there is one.
fn read(from: &mut File, packet: &mut [u8]) -> io::Result<Option<usize>> {
    match from.read(packet) {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn wait_for(pairs: &[Pair; 2], limit: Duration) -> io::Result<()> {
    let [first, second] = pairs;
    let files = [&first.outer, &first.inner, &second.outer, &second.inner];
    let mut polled = files.map(|file| libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    });
    let limit = libc::timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    // SAFETY: four pollfds and a timespec, which outlive the call.
    let ready = unsafe { libc::ppoll(polled.as_mut_ptr(), 4, &raw const limit, std::ptr::null()) };
    match ready {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Of an IPv4 packet: TCP with SYN and ACK.
fn is_syn_ack(packet: &[u8]) -> bool {
    const SYN_AND_ACK: u8 = 0x12;
    let header = usize::from(packet.first().copied().unwrap_or(0) & 15) * 4;
    packet.get(9) == Some(&6)
        && packet
            .get(header + 13)
            .is_some_and(|flags| flags & SYN_AND_ACK == SYN_AND_ACK)
}

//! Floods: frames built by hand, as fast as the machine sends them, from every CPU.

use std::{
    io,
    mem::zeroed,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    frame::{echo, mix},
    syn::Sender,
};
use crate::{
    packet::{ACK, FIN, Packet, RST, SYN, sum::fold},
    topology::Netns,
};

/// What a flood is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// SYNs.
    Syn,
    /// A SYN, then an ACK of the same tuple with guessed numbers.
    Pair,
    /// SYNs that carry data.
    SynData,
    Ack,
    Rst,
    Fin,
    /// Datagrams that no server answers.
    Udp,
    /// Datagrams that the servers answer.
    Question,
}

impl Kind {
    fn is_udp(self) -> bool {
        matches!(self, Self::Udp | Self::Question)
    }

    /// The frame before its source and its numbers are put in; the second one
    /// is sent to the same tuple right after.
    fn templates(self, sender: &Sender, to: SocketAddr) -> Result<Vec<Template>> {
        let nobody: SocketAddr = (Ipv4Addr::UNSPECIFIED, 0).into();
        let tcp = |flags| Packet::tcp(nobody, to, flags).seq(0, 0);
        let packets = match self {
            Self::Syn => vec![tcp(SYN)],
            Self::Pair => vec![tcp(SYN), tcp(ACK).data(b"")],
            Self::SynData => vec![tcp(SYN).data(b"before anything was agreed on")],
            Self::Ack => vec![tcp(ACK)],
            Self::Rst => vec![tcp(RST).data(b"")],
            Self::Fin => vec![tcp(FIN | ACK).data(b"")],
            Self::Udp => vec![Packet::udp(nobody, to)],
            Self::Question => vec![Packet::udp(nobody, to).data(&echo(0, 0))],
        };
        packets
            .into_iter()
            .map(|packet| Template::new(packet, sender, self.is_udp()))
            .collect()
    }
}

/// What was sent.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sent {
    pub packets: u64,
    pub took: Duration,
}

impl Sent {
    /// Packets a second.
    pub fn rate(&self) -> f64 {
        self.packets as f64 / self.took.as_secs_f64()
    }
}

/// Where floods come from: an interface of a namespace and the neighbour behind it.
#[derive(Debug)]
pub struct Gun {
    senders: Vec<Sender>,
}

impl Gun {
    /// One sender for each CPU.
    pub fn new(ns: &Netns, interface: &str, next_hop: IpAddr) -> Result<Self> {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let senders = (0..cpus).map(|_| Sender::new(ns, interface, next_hop));
        Ok(Self {
            senders: senders.collect::<Result<_>>()?,
        })
    }

    /// Sends `packets` frames to `to` (IPv4): from the tuples `aims` in turn, or
    /// where there is none from addresses of 10.80.0.0/15 and ports at random.
    pub fn fire(
        &self,
        kind: Kind,
        to: SocketAddr,
        aims: &[SocketAddrV4],
        packets: u64,
    ) -> Result<Sent> {
        let start = Instant::now();
        let share = packets / self.senders.len() as u64;
        let seed = super::syn::fresh_seed();
        let results: Vec<Result<u64>> = thread::scope(|scope| {
            let one = |(cpu, sender)| {
                scope.spawn(move || {
                    pin_to(cpu);
                    shoot(sender, kind, to, aims, share, mix(seed ^ cpu as u64))
                })
            };
            let threads: Vec<_> = self.senders.iter().enumerate().map(one).collect();
            let join = |thread: thread::ScopedJoinHandle<_>| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        });
        Ok(Sent {
            packets: results.into_iter().sum::<Result<u64>>()?,
            took: start.elapsed(),
        })
    }
}

fn shoot(
    sender: &Sender,
    kind: Kind,
    to: SocketAddr,
    aims: &[SocketAddrV4],
    packets: u64,
    seed: u64,
) -> Result<u64> {
    let templates = kind.templates(sender, to)?;
    let mut batch = Batch::new(sender);
    let mut sent = 0;
    for i in 0..packets / templates.len() as u64 {
        let chance = mix(seed.wrapping_add(i));
        let source = match aims.get((i % aims.len().max(1) as u64) as usize) {
            Some(aim) => *aim,
            None => stranger(chance),
        };
        for (turn, template) in (0..).zip(&templates) {
            sent += batch.add(template, source, mix(chance ^ turn))?;
        }
    }
    Ok(sent + batch.flush()?)
}

/// A source in 10.80.0.0/15.
fn stranger(chance: u64) -> SocketAddrV4 {
    let addr = u32::from(Ipv4Addr::new(10, 80, 0, 0)) + (chance as u32 & 0x1_ffff);
    let port = 1_024 + (chance >> 32) as u16 % 60_000;
    SocketAddrV4::new(addr.into(), port)
}

fn pin_to(cpu: usize) {
    // SAFETY: an all-zero set is valid, and the call reads as much as it is told.
    unsafe {
        let mut set: libc::cpu_set_t = zeroed();
        libc::CPU_SET(cpu, &mut set);
        // Where it is not allowed the flood is slower, no more.
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}

/// A frame without source and numbers, and the sums of the rest of it.
struct Template {
    frame: Vec<u8>,
    is_udp: bool,
    ip_sum: u32,
    body_sum: u32,
}

const SOURCE: usize = 14 + 12;
const IP_SUM: usize = 14 + 10;
const BODY: usize = 14 + 20;
const TCP_SUM: usize = BODY + 16;
const UDP_SUM: usize = BODY + 6;

impl Template {
    fn new(mut packet: Packet, sender: &Sender, is_udp: bool) -> Result<Self> {
        packet.macs = [sender.next_hop_mac, sender.source_mac];
        let frame = packet.frame();
        let sum_at = if is_udp { UDP_SUM } else { TCP_SUM };
        let word = |at: usize| u32::from(!u16::from_be_bytes([frame[at], frame[at + 1]]));
        anyhow::ensure!(frame.len() <= ROOM, "a frame of {} bytes", frame.len());
        Ok(Self {
            ip_sum: word(IP_SUM),
            body_sum: word(sum_at),
            frame,
            is_udp,
        })
    }

    /// Writes the frame; returns its length.
    fn write(&self, out: &mut [u8; ROOM], source: SocketAddrV4, chance: u64) -> usize {
        let length = self.frame.len();
        out[..length].copy_from_slice(&self.frame);
        let addr = u32::from(*source.ip());
        out[SOURCE..SOURCE + 4].copy_from_slice(&addr.to_be_bytes());
        out[BODY..BODY + 2].copy_from_slice(&source.port().to_be_bytes());
        let halves = |word: u32| (word >> 16) + (word & 0xffff);
        let ip = !fold(u64::from(self.ip_sum + halves(addr)));
        out[IP_SUM..IP_SUM + 2].copy_from_slice(&ip.to_be_bytes());
        let mut sum = self.body_sum + halves(addr) + u32::from(source.port());
        let sum_at = if self.is_udp {
            UDP_SUM
        } else {
            out[BODY + 4..BODY + 12].copy_from_slice(&chance.to_be_bytes());
            sum += halves((chance >> 32) as u32) + halves(chance as u32);
            TCP_SUM
        };
        let sum = match !fold(u64::from(sum)) {
            // RFC 768: a checksum of 0 is sent as all ones.
            0 if self.is_udp => 0xffff,
            sum => sum,
        };
        out[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        length
    }
}

/// Longest frame of a flood.
const ROOM: usize = 192;
/// How long a full queue is left alone: it holds more than it sends in that time.
const FULL: Duration = Duration::from_micros(50);
/// Frames handed to the kernel at once.
const BATCH: usize = 64;

struct Batch<'a> {
    sender: &'a Sender,
    frames: Vec<[u8; ROOM]>,
    lengths: Vec<usize>,
}

impl<'a> Batch<'a> {
    fn new(sender: &'a Sender) -> Self {
        Self {
            sender,
            frames: vec![[0; ROOM]; BATCH],
            lengths: Vec::with_capacity(BATCH),
        }
    }

    /// Adds a frame; how many were sent by that.
    fn add(&mut self, template: &Template, source: SocketAddrV4, chance: u64) -> Result<u64> {
        let next = self.lengths.len();
        let length = template.write(&mut self.frames[next], source, chance);
        self.lengths.push(length);
        if self.lengths.len() == BATCH {
            self.flush()
        } else {
            Ok(0)
        }
    }

    fn flush(&mut self) -> Result<u64> {
        let mut to = self.sender.address();
        let mut parts: Vec<libc::iovec> = self
            .frames
            .iter_mut()
            .zip(&self.lengths)
            .map(|(frame, length)| libc::iovec {
                iov_base: frame.as_mut_ptr().cast(),
                iov_len: *length,
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: an all-zero header is valid.
                let mut message: libc::mmsghdr = unsafe { zeroed() };
                message.msg_hdr.msg_name = (&raw mut to).cast();
                message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let mut done = 0;
        while done < messages.len() {
            let rest = &mut messages[done..];
            // SAFETY: headers, address and frames outlive the call.
            let sent = unsafe {
                libc::sendmmsg(
                    self.sender.socket.as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as u32,
                    0,
                )
            };
            match sent {
                n if n > 0 => done += n as usize,
                _ => {
                    let error = io::Error::last_os_error();
                    if error.raw_os_error() != Some(libc::ENOBUFS) {
                        return Err(error).context("send a batch of raw frames");
                    }
                    // A full queue: the frame is sent again, once the queue has
                    // room for those too who share it.
                    thread::sleep(FULL);
                }
            }
        }
        self.lengths.clear();
        Ok(done as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(packet: Packet, is_udp: bool) -> Template {
        let frame = packet.frame();
        let at = if is_udp { UDP_SUM } else { TCP_SUM };
        let word = |at: usize| u32::from(!u16::from_be_bytes([frame[at], frame[at + 1]]));
        Template {
            ip_sum: word(IP_SUM),
            body_sum: word(at),
            frame,
            is_udp,
        }
    }

    #[test]
    fn a_frame_of_a_flood_is_the_one_that_is_built_in_full() {
        let to: SocketAddr = "10.71.0.100:7000".parse().unwrap();
        let nobody: SocketAddr = "0.0.0.0:0".parse().unwrap();
        for i in 0..1_000 {
            let source = stranger(mix(i));
            let mut out = [0; ROOM];
            let udp = template(Packet::udp(nobody, to), true);
            let length = udp.write(&mut out, source, mix(i));
            let whole = Packet::udp(source.into(), to).frame();
            assert_eq!(out[..length], whole);
            let question = |from| Packet::udp(from, to).data(&echo(7, i));
            let length = template(question(nobody), true).write(&mut out, source, mix(i));
            assert_eq!(out[..length], question(source.into()).frame());
            let ack = template(Packet::tcp(nobody, to, ACK).seq(0, 0), false);
            let length = ack.write(&mut out, source, mix(i));
            let numbers = [(mix(i) >> 32) as u32, mix(i) as u32];
            let whole = Packet::tcp(source.into(), to, ACK).seq(numbers[0], numbers[1]);
            assert_eq!(out[..length], whole.frame());
        }
    }
}

//! Clients far away, built by hand: between the SYN-ACK and the ACK of their
//! handshakes passes as much as a scenario wants.

use std::{
    collections::HashMap,
    io,
    mem::zeroed,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    frame::{self, FRAME, mix},
    poll,
    syn::{self, Sender},
};
use crate::{
    packet::{ACK, Packet, RST, SYN},
    topology::Netns,
};

/// How long an answer is waited for before what it answers is sent again.
const WAIT: Duration = Duration::from_secs(1);
/// How often something is sent: a real client goes on for minutes (RFC 9293, 3.8.3),
/// so one that is silent after this is not merely unlucky.
const TRIES: u32 = 12;
/// Bytes of an ear's buffer: room for the answers to every client at once, which ask
/// together; what finds no room once finds none again.
const EAR: libc::c_int = 16 << 20;

/// Handshakes under way.
#[derive(Debug)]
pub struct Slow<'a> {
    ns: &'a Netns,
    sender: &'a Sender,
    to: SocketAddr,
    clients: HashMap<SocketAddrV4, Client>,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
struct Client {
    isn: u32,
    backend_isn: Option<u32>,
    end: Option<End>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Served,
    Reset,
}

/// What became of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    pub served: usize,
    pub reset: usize,
    pub silent: usize,
    /// Those that were not served.
    pub lost: Vec<SocketAddrV4>,
}

impl<'a> Slow<'a> {
    /// `count` clients with addresses of their own send a SYN to `to` (IPv4)
    /// and have their SYN-ACK.
    pub fn begin(ns: &'a Netns, sender: &'a Sender, to: SocketAddr, count: u32) -> Result<Self> {
        let seed = syn::fresh_seed();
        let client = |tuple: syn::Tuple| match tuple.ip {
            IpAddr::V4(ip) => Some((
                SocketAddrV4::new(ip, tuple.port),
                Client {
                    isn: mix(seed ^ u64::from(u32::from(ip))) as u32,
                    backend_isn: None,
                    end: None,
                },
            )),
            IpAddr::V6(_) => None,
        };
        let tuples = syn::tuples(to, count, (seed % 100) as u16, seed);
        let mut slow = Self {
            ns,
            sender,
            to,
            clients: tuples.into_iter().filter_map(client).collect(),
        };
        let syn = |client: &Client| (SYN, client.isn, 0, Vec::new());
        slow.exchange(|client| client.backend_isn.is_none(), syn)?;
        let open = slow.clients.values().filter(|c| c.backend_isn.is_none());
        let open = open.count();
        // A tuple of an earlier run may still be connected: then there is no SYN-ACK.
        ensure!(
            open <= count as usize / 50,
            "{open} of {count} SYNs were not answered"
        );
        slow.clients
            .retain(|_, client| client.backend_isn.is_some());
        Ok(slow)
    }

    /// They send their ACKs, with a question in them, and hear the answer.
    pub fn end(mut self) -> Result<Ended> {
        let question = frame::echo(0, 0).to_vec();
        let ack = |client: &Client| {
            let next = client.backend_isn.unwrap_or(0).wrapping_add(1);
            (ACK, client.isn.wrapping_add(1), next, question.clone())
        };
        self.exchange(|client| client.end.is_none(), ack)?;
        let count = |end| self.clients.values().filter(|c| c.end == end).count();
        Ok(Ended {
            served: count(Some(End::Served)),
            reset: count(Some(End::Reset)),
            silent: count(None),
            lost: {
                let is_lost = |client: &Client| client.end != Some(End::Served);
                let clients = self.clients.iter();
                clients
                    .filter(|(_, client)| is_lost(client))
                    .map(|(addr, _)| *addr)
                    .collect()
            },
        })
    }

    /// Sends for every client that is `open` until none is, or too often.
    fn exchange(
        &mut self,
        open: impl Fn(&Client) -> bool,
        segment: impl Fn(&Client) -> (u8, u32, u32, Vec<u8>),
    ) -> Result<()> {
        let ear = Ear::open(self.ns, self.sender)?;
        for _ in 0..TRIES {
            for (addr, client) in self.clients.iter().filter(|(_, client)| open(client)) {
                let (flags, sequence, acknowledgement, data) = segment(client);
                let mut packet = Packet::tcp((*addr).into(), self.to, flags)
                    .seq(sequence, acknowledgement)
                    .data(&data);
                packet.macs = [self.sender.next_hop_mac, self.sender.source_mac];
                self.sender.send_frame(&packet.frame())?;
            }
            let until = Instant::now() + WAIT;
            while Instant::now() < until && self.clients.values().any(&open) {
                if let Some(heard) = ear.hear(self.to)? {
                    self.note(&heard);
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, heard: &Heard) {
        let Some(client) = self.clients.get_mut(&heard.to) else {
            return;
        };
        if heard.flags & RST != 0 {
            client.end.get_or_insert(End::Reset);
        } else if heard.flags & (SYN | ACK) == SYN | ACK {
            client.backend_isn.get_or_insert(heard.sequence);
        } else if heard.payload >= FRAME {
            client.end.get_or_insert(End::Served);
        }
    }
}

/// A segment that came from the VIP.
struct Heard {
    to: SocketAddrV4,
    flags: u8,
    sequence: u32,
    payload: usize,
}

/// A packet socket that hears what comes in by the sender's interface.
struct Ear {
    socket: OwnedFd,
}

impl Ear {
    fn open(ns: &Netns, sender: &Sender) -> Result<Self> {
        const IPV4: u16 = 0x0800;
        let protocol = IPV4.to_be();
        // SAFETY: socket takes plain numbers.
        let fd = ns.run(|| unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                i32::from(protocol),
            )
        });
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("open a packet socket");
        }
        // SAFETY: the descriptor was just made and has no other owner.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        poll::widen_receive_buffer(&socket, EAR)?;
        let mut addr = sender.address();
        addr.sll_protocol = protocol;
        // SAFETY: `addr` is a whole sockaddr_ll.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const addr).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if bound != 0 {
            return Err(io::Error::last_os_error()).context("bind a packet socket");
        }
        Ok(Self { socket })
    }

    /// The next segment from `from`, if one comes within a moment.
    fn hear(&self, from: SocketAddr) -> Result<Option<Heard>> {
        // SAFETY: an all-zero pollfd is valid.
        let mut poll: libc::pollfd = unsafe { zeroed() };
        poll.fd = self.socket.as_raw_fd();
        poll.events = libc::POLLIN;
        let mut frame = [0; 2048];
        // SAFETY: one pollfd, and a buffer of the length given.
        let length = unsafe {
            libc::poll(&raw mut poll, 1, 20);
            libc::recv(poll.fd, frame.as_mut_ptr().cast(), frame.len(), 0)
        };
        match usize::try_from(length) {
            Ok(length) => Ok(segment(&frame[..length], from)),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error).context("receive a raw frame"),
            },
        }
    }
}

/// What an Ethernet frame says, if it is a TCP segment from `from` over IPv4.
fn segment(frame: &[u8], from: SocketAddr) -> Option<Heard> {
    let ip = frame.get(14..)?;
    let header = usize::from(*ip.first()? & 15) * 4;
    let total = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
    let tcp = ip.get(header..total)?;
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..at + 4)?;
        Some(u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
    };
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let source = SocketAddrV4::new(Ipv4Addr::from(word(ip, 12)?), port(0)?);
    let is_ours = ip[9] == libc::IPPROTO_TCP as u8 && SocketAddr::from(source) == from;
    is_ours.then_some(())?;
    Some(Heard {
        to: SocketAddrV4::new(Ipv4Addr::from(word(ip, 16)?), port(2)?),
        flags: *tcp.get(13)?,
        sequence: word(tcp, 4)?,
        payload: tcp.len() - usize::from(tcp[12] >> 4) * 4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::addr;

    #[test]
    fn a_segment_is_heard_as_it_was_written() {
        let (vip, client) = (addr("10.71.0.100:7000"), addr("10.80.0.5:1025"));
        let frame = Packet::tcp(vip, client, ACK)
            .seq(77, 1)
            .data(b"abcd")
            .frame();
        let heard = segment(&frame, vip).unwrap();
        assert_eq!(SocketAddr::from(heard.to), client);
        assert_eq!((heard.flags, heard.sequence, heard.payload), (ACK, 77, 4));
        assert!(segment(&frame, client).is_none(), "from someone else");
        let datagram = Packet::udp(vip, client).frame();
        assert!(segment(&datagram, vip).is_none());
    }
}

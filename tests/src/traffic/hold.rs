//! Connections that are held for a long time: some busy, some idle, each asked
//! again and again who serves it.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use super::{
    frame::{self, FRAME},
    poll,
};

/// How long an answer may take on a machine that is busy with a flood.
const PATIENCE: Duration = Duration::from_secs(20);

enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

/// A connection and the server that answered it first.
pub struct Held {
    number: u32,
    socket: Socket,
    identity: u8,
    asked: u64,
}

impl Held {
    /// Connects to `to`, from `source` if it is given, and asks once.
    pub fn tcp(
        number: u32,
        to: SocketAddr,
        source: Option<IpAddr>,
        limit: Duration,
    ) -> io::Result<Self> {
        let stream = match source {
            Some(_) => poll::connect_within(to, source, limit)?,
            None => TcpStream::connect_timeout(&to, limit)?,
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Self::first(number, Socket::Tcp(stream))
    }

    /// The same over UDP.
    pub fn udp(number: u32, to: SocketAddr) -> io::Result<Self> {
        let socket = poll::connect_udp(to, None)?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Self::first(number, Socket::Udp(socket))
    }

    fn first(number: u32, socket: Socket) -> io::Result<Self> {
        let mut held = Self {
            number,
            socket,
            identity: 0,
            asked: 0,
        };
        held.identity = held.ask()?;
        Ok(held)
    }

    /// Whether it is a UDP flow.
    pub fn is_udp(&self) -> bool {
        matches!(self.socket, Socket::Udp(_))
    }

    /// Its own address, where it is IPv4.
    pub fn local(&self) -> io::Result<Option<SocketAddrV4>> {
        let addr = match &self.socket {
            Socket::Tcp(stream) => stream.local_addr()?,
            Socket::Udp(socket) => socket.local_addr()?,
        };
        Ok(match addr {
            SocketAddr::V4(addr) => Some(addr),
            SocketAddr::V6(_) => None,
        })
    }

    /// Who serves it now.
    pub fn ask(&mut self) -> io::Result<u8> {
        let question = frame::echo(self.number, self.asked);
        let mut answer = [0; FRAME];
        match &mut self.socket {
            Socket::Tcp(stream) => {
                stream.write_all(&question)?;
                stream.read_exact(&mut answer)?;
            }
            Socket::Udp(socket) => ask_by_datagram(socket, &question, &mut answer)?,
        }
        if frame::wrong_bytes(&answer, self.number, self.asked) != 0 {
            return Err(io::Error::other("the answer is not what was sent"));
        }
        self.asked += 1;
        Ok(frame::identity(&answer))
    }
}

/// A datagram may be lost on a busy machine; so it is asked a few times.
fn ask_by_datagram(
    socket: &UdpSocket,
    question: &[u8; FRAME],
    answer: &mut [u8; FRAME],
) -> io::Result<()> {
    let mut last = io::Error::other("not asked");
    for _ in 0..5 {
        socket.send(question)?;
        match socket.recv(answer) {
            // The late answer to an earlier question is passed over.
            Ok(_) if frame::sequence(answer) != frame::sequence(question) => {
                last = io::Error::other("an answer came late");
            }
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What became of held connections.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Lost {
    pub asked: u64,
    pub moved: u64,
    pub cut: u64,
    /// Why the first few were cut.
    pub errors: Vec<String>,
}

impl Lost {
    pub fn is_nothing(&self) -> bool {
        self.moved == 0 && self.cut == 0
    }
}

/// Asks each once.
pub fn ask_all(held: &mut [Held]) -> Lost {
    ask_until(held, &AtomicBool::new(true))
}

/// Asks each in turn until `stop` holds, all of them once at least.
pub fn ask_until(held: &mut [Held], stop: &AtomicBool) -> Lost {
    let mut lost = Lost::default();
    let mut gone = vec![false; held.len()];
    loop {
        for (held, gone) in held.iter_mut().zip(&mut gone).filter(|(_, gone)| !**gone) {
            lost.asked += 1;
            match held.ask() {
                Ok(identity) if identity == held.identity => continue,
                Ok(_) => lost.moved += 1,
                Err(error) => {
                    lost.cut += 1;
                    if lost.errors.len() < 5 {
                        lost.errors.push(error.to_string());
                    }
                }
            }
            *gone = true;
        }
        if stop.load(Relaxed) {
            return lost;
        }
    }
}

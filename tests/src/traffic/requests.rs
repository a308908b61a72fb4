//! Short connections, one request each: who answers new flows, and since when.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::frame::{self, FRAME};
use crate::topology::Netns;

/// A request that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(5);

/// Makes one request over TCP and tells who answered.
pub fn ask(to: SocketAddr, source: Option<IpAddr>) -> io::Result<u8> {
    let mut stream = match source {
        None => TcpStream::connect_timeout(&to, LIMIT)?,
        Some(source) => connect_from(to, source)?,
    };
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(&frame::echo(0, 0))?;
    let mut answer = [0; FRAME];
    stream.read_exact(&mut answer)?;
    judge(&answer)
}

/// A blocking connection from an address of the client's.
pub fn connect_from(to: SocketAddr, source: IpAddr) -> io::Result<TcpStream> {
    let stream = super::poll::connect(to, Some(source))?;
    let mut poll = super::poll::Poll::new()?;
    poll.add(&stream, 0, libc::EPOLLOUT as u32)?;
    poll.wait(LIMIT)?;
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    stream.set_nonblocking(false)?;
    // Says ENOTCONN where the wait ran out.
    stream.peer_addr()?;
    Ok(stream)
}

/// Makes one request over UDP from a new port and tells who answered.
pub fn ask_udp(to: SocketAddr, source: Option<IpAddr>) -> io::Result<u8> {
    let socket: UdpSocket = super::poll::connect_udp(to, source)?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.send(&frame::echo(0, 0))?;
    let mut answer = [0; FRAME];
    socket.recv(&mut answer)?;
    judge(&answer)
}

fn judge(answer: &[u8; FRAME]) -> io::Result<u8> {
    match frame::wrong_bytes(answer, 0, 0) {
        0 => Ok(frame::identity(answer)),
        n => Err(io::Error::new(
            ErrorKind::InvalidData,
            format!("{n} bytes of the answer are wrong"),
        )),
    }
}

/// The `i`th address of those that the client may bind to besides its own.
pub fn client_address(to: SocketAddr, i: u16) -> IpAddr {
    match to {
        SocketAddr::V4(_) => {
            let [high, low] = i.to_be_bytes();
            Ipv4Addr::new(10, 82, high, low).into()
        }
        SocketAddr::V6(_) => Ipv6Addr::new(0xfd82, 0, 0, 0, 0, 0, 0, i).into(),
    }
}

/// What came of the requests so far.
#[derive(Clone, Default, Debug)]
pub struct Tally {
    pub answered: u64,
    pub failures: u64,
    pub by_identity: BTreeMap<u8, u64>,
    /// When the last connection began that each server got.
    pub last_begun: BTreeMap<u8, Instant>,
    /// When the first connection began that each server got since
    /// [`Requests::mark`].
    pub first_begun: BTreeMap<u8, Instant>,
    /// The first few failures.
    pub errors: Vec<String>,
}

/// Requests that go on beside the caller; ended when dropped.
#[derive(Debug)]
pub struct Requests {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

impl Requests {
    /// Starts `workers` threads that make `rate` requests a second together,
    /// going round over `to`.
    pub fn start(ns: &Netns, to: &[SocketAddr], workers: u32, rate: u32) -> Result<Self> {
        let mut requests = Self {
            stop: Arc::default(),
            tally: Arc::default(),
            threads: Vec::new(),
        };
        for worker in 0..workers {
            let stop = Arc::clone(&requests.stop);
            let tally = Arc::clone(&requests.tally);
            let to = to.to_vec();
            let pause = Duration::from_secs(1) * workers / rate.max(1);
            requests
                .threads
                .push(ns.spawn(move || work(&to, worker as usize, pause, &stop, &tally))?);
        }
        Ok(requests)
    }

    /// What came so far.
    pub fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    /// Forgets which connections were first.
    pub fn mark(&self) {
        lock(&self.tally).first_begun.clear();
    }

    /// Counts since `before`, per server.
    pub fn since(&self, before: &Tally) -> BTreeMap<u8, u64> {
        let now = self.tally();
        now.by_identity
            .iter()
            .map(|(id, n)| (*id, n - before.by_identity.get(id).copied().unwrap_or(0)))
            .collect()
    }

    /// Ends them and gives the last counts.
    pub fn finish(mut self) -> Result<Tally> {
        self.end().context("a worker panicked")?;
        Ok(self.tally())
    }

    fn end(&mut self) -> Option<()> {
        self.stop.store(true, Relaxed);
        let results: Vec<_> = self.threads.drain(..).map(JoinHandle::join).collect();
        results.iter().all(Result::is_ok).then_some(())
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn work(
    to: &[SocketAddr],
    worker: usize,
    pause: Duration,
    stop: &AtomicBool,
    tally: &Mutex<Tally>,
) {
    let mut due = Instant::now();
    for round in worker.. {
        if stop.load(Relaxed) {
            return;
        }
        let begun = Instant::now();
        let result = ask(to[round % to.len()], None);
        let mut tally = lock(tally);
        match result {
            Ok(identity) => {
                tally.answered += 1;
                *tally.by_identity.entry(identity).or_default() += 1;
                let last = tally.last_begun.entry(identity).or_insert(begun);
                *last = begun.max(*last);
                let first = tally.first_begun.entry(identity).or_insert(begun);
                *first = begun.min(*first);
            }
            Err(error) => {
                tally.failures += 1;
                if tally.errors.len() < 5 {
                    tally.errors.push(error.to_string());
                }
            }
        }
        drop(tally);
        due = (due + pause).max(Instant::now() - pause);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

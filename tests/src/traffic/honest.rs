//! Honest clients that open new connections while something else goes on, and
//! say how each of them fared.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use super::{
    frame::{self, FRAME},
    poll,
};

/// What a connection may take to stand, and then to answer: a SYN that the
/// machine lost is sent again after 1, 3 and 7 s.
const LIMIT: Duration = Duration::from_secs(10);
/// A handshake that took longer needed a second SYN.
const ONE_SYN: Duration = Duration::from_millis(900);
/// Clients at once: one that waits holds up none of the others for long.
const CLIENTS: u32 = 16;

/// What became of new connections.
#[derive(Clone, Default, Debug)]
pub struct Opened {
    /// They stood and were answered.
    pub served: u64,
    /// Of those: the first SYN or its answer was lost.
    pub second_syn: u64,
    /// Reset, before they stood or after.
    pub reset: u64,
    /// They did not stand in time, or were not answered in time.
    pub stalled: u64,
    /// Longest handshake.
    pub slowest: Duration,
    /// What went wrong with the first few.
    pub errors: Vec<String>,
}

impl Opened {
    /// Whether every one was served.
    pub fn is_clean(&self) -> bool {
        self.reset == 0 && self.stalled == 0
    }

    fn note(&mut self, result: io::Result<Duration>) {
        let error = match result {
            Ok(took) => {
                self.served += 1;
                self.second_syn += u64::from(took > ONE_SYN);
                self.slowest = self.slowest.max(took);
                return;
            }
            Err(error) => error,
        };
        match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => self.stalled += 1,
            _ => self.reset += 1,
        }
        if self.errors.len() < 5 {
            self.errors.push(error.to_string());
        }
    }

    /// Both together.
    fn with(mut self, other: Self) -> Self {
        self.served += other.served;
        self.second_syn += other.second_syn;
        self.reset += other.reset;
        self.stalled += other.stalled;
        self.slowest = self.slowest.max(other.slowest);
        self.errors.extend(other.errors);
        self
    }
}

impl std::fmt::Display for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} new connections served during it ({} with a second SYN, slowest handshake {} ms), \
             {} reset, {} stalled",
            self.served,
            self.second_syn,
            self.slowest.as_millis(),
            self.reset,
            self.stalled
        )
    }
}

/// Opens connections to `to` in turn, about `per_second` of them, each of which
/// asks once, until `stop` holds. In the namespace of the calling thread.
pub fn open_until(to: &[SocketAddr], per_second: u32, stop: &AtomicBool) -> Opened {
    let count = AtomicU32::new(0);
    let period = Duration::from_secs(1) * CLIENTS / per_second;
    let client = |turn: u32| {
        let mut opened = Opened::default();
        // So that they do not all begin at once.
        thread::sleep(period * turn / CLIENTS);
        while !stop.load(Relaxed) {
            let due = Instant::now() + period;
            let number = count.fetch_add(1, Relaxed);
            opened.note(open(number, to[number as usize % to.len()]));
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        opened
    };
    thread::scope(|scope| {
        let client = &client;
        let threads: Vec<_> = (0..CLIENTS)
            .map(|turn| scope.spawn(move || client(turn)))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .fold(Opened::default(), Opened::with)
    })
}

/// One connection; how long its handshake took.
fn open(number: u32, to: SocketAddr) -> io::Result<Duration> {
    let start = Instant::now();
    let mut stream: TcpStream = poll::connect_within(to, None, LIMIT)?;
    let took = start.elapsed();
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(&frame::echo(number, 0))?;
    let mut answer = [0; FRAME];
    stream.read_exact(&mut answer)?;
    match frame::wrong_bytes(&answer, number, 0) {
        0 => Ok(took),
        _ => Err(io::Error::other("the answer is not what was sent")),
    }
}

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
/// machine lost is sent again after 1, 3, 7 and 15 s.
const LIMIT: Duration = Duration::from_secs(20);
/// A handshake that took longer needed a second SYN.
const ONE_SYN: Duration = Duration::from_millis(900);
/// Clients at once: one that waits holds up none of the others for long.
const CLIENTS: u32 = 16;

/// What became of new connections.
#[derive(Clone, Default, Debug)]
pub struct Opened {
    /// They stood and were answered.
    pub served: u64,
    /// Of those: before they were told to stop.
    pub in_time: u64,
    /// Of those: the first SYN or its answer was lost.
    pub second_syn: u64,
    /// Their SYN was answered by a reset.
    pub refused: u64,
    /// Reset after they stood.
    pub reset: u64,
    /// The answer was another's, or something else went wrong.
    pub wrong: u64,
    /// From standing to being reset; the shortest.
    pub soonest_reset: Option<Duration>,
    /// They did not stand in time, or were not answered in time.
    pub stalled: u64,
    /// Longest handshake.
    pub slowest: Duration,
    /// What went wrong with the first few.
    pub errors: Vec<String>,
}

/// How one connection ended.
enum End {
    Served { handshake: Duration },
    Reset { stood: Duration, error: io::Error },
    Refused(io::Error),
    Stalled(io::Error),
    Wrong(io::Error),
}

impl Opened {
    /// Whether none was refused or reset, and no more stalled than a machine loses
    /// whose every queue is full: SYN after SYN is dropped before it comes to the hook.
    pub fn is_clean(&self) -> bool {
        self.refused + self.reset + self.wrong == 0 && self.stalled <= 2 + self.served / 8
    }

    fn note(&mut self, end: End, is_over: bool) {
        let error = match end {
            End::Served { handshake } => {
                self.served += 1;
                self.in_time += u64::from(!is_over);
                self.second_syn += u64::from(handshake > ONE_SYN);
                self.slowest = self.slowest.max(handshake);
                return;
            }
            End::Reset { stood, error } => {
                self.reset += 1;
                self.soonest_reset = sooner(self.soonest_reset, Some(stood));
                error
            }
            End::Refused(error) => {
                self.refused += 1;
                error
            }
            End::Stalled(error) => {
                self.stalled += 1;
                error
            }
            End::Wrong(error) => {
                self.wrong += 1;
                error
            }
        };
        if self.errors.len() < 5 {
            self.errors.push(error.to_string());
        }
    }

    /// Both together.
    fn with(mut self, other: Self) -> Self {
        self.served += other.served;
        self.in_time += other.in_time;
        self.second_syn += other.second_syn;
        self.refused += other.refused;
        self.reset += other.reset;
        self.wrong += other.wrong;
        self.soonest_reset = sooner(self.soonest_reset, other.soonest_reset);
        self.stalled += other.stalled;
        self.slowest = self.slowest.max(other.slowest);
        self.errors.extend(other.errors);
        self
    }
}

fn sooner(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    a.into_iter().chain(b).min()
}

impl std::fmt::Display for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} new connections served, {} before its end ({} with a second SYN, slowest \
             handshake {} ms), {} refused, {} stalled, {} reset",
            self.served,
            self.in_time,
            self.second_syn,
            self.slowest.as_millis(),
            self.refused,
            self.stalled,
            self.reset
        )?;
        match self.soonest_reset {
            Some(soonest) => write!(f, " (after {} ms at the soonest)", soonest.as_millis()),
            None => Ok(()),
        }
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
            let end = open(number, to[number as usize % to.len()]);
            opened.note(end, stop.load(Relaxed));
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

fn open(number: u32, to: SocketAddr) -> End {
    let is_late =
        |error: &io::Error| matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock);
    let is_reset = |error: &io::Error| {
        use ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
    };
    let start = Instant::now();
    let stream = match poll::connect_within(to, None, LIMIT) {
        Ok(stream) => stream,
        Err(error) if is_late(&error) => return End::Stalled(error),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return End::Refused(error),
        // It stood, and was reset before this thread had its turn.
        Err(error) if is_reset(&error) => {
            let stood = start.elapsed();
            return End::Reset { stood, error };
        }
        Err(error) => return End::Wrong(error),
    };
    let stood = Instant::now();
    match ask(stream, number) {
        Ok(()) => End::Served {
            handshake: stood - start,
        },
        Err(error) if is_late(&error) => End::Stalled(error),
        Err(error) if is_reset(&error) => End::Reset {
            stood: stood.elapsed(),
            error,
        },
        Err(error) => End::Wrong(error),
    }
}

fn ask(mut stream: TcpStream, number: u32) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(&frame::echo(number, 0))?;
    let mut answer = [0; FRAME];
    stream.read_exact(&mut answer)?;
    match frame::wrong_bytes(&answer, number, 0) {
        0 => Ok(()),
        _ => Err(io::Error::other("the answer is not what was sent")),
    }
}

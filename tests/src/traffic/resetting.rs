//! A server that fails some of its clients.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::frame;
use crate::topology::{Family, Lab, Side};

/// An echo server that resets every `one_in`-th connection once it has read a request.
pub struct Resetting {
    stop: Arc<AtomicBool>,
    reset: Arc<AtomicU64>,
    addr: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Resetting {
    /// Where the lab's placement has this side's server.
    pub fn start(lab: &Lab, side: Side, family: Family, one_in: u64) -> Self {
        let addr = lab.listen(side, family);
        let (stop, reset) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (until, counted) = (Arc::clone(&stop), Arc::clone(&reset));
        let identity = side.identity();
        let ns = lab.server_ns(side);
        let listener = ns.run(|| TcpListener::bind(addr)).unwrap();
        let serve = move || {
            for (number, stream) in listener.incoming().enumerate() {
                if until.load(Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let resets = (number as u64).is_multiple_of(one_in);
                counted.fetch_add(u64::from(resets), Relaxed);
                std::thread::spawn(move || answer(stream, identity, resets));
            }
        };
        let thread = Some(ns.spawn(serve).unwrap());
        Self {
            stop,
            reset,
            addr,
            thread,
        }
    }

    /// Connections that it has reset.
    pub fn count(&self) -> u64 {
        self.reset.load(Relaxed)
    }
}

/// Answers a connection's requests, or resets it after the first.
fn answer(mut stream: TcpStream, identity: u8, resets: bool) {
    let mut buffer = [0u8; frame::FRAME];
    while stream.read_exact(&mut buffer).is_ok() {
        if resets {
            let linger = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            // SAFETY: the option takes a linger of this size, and the socket is open.
            unsafe {
                libc::setsockopt(
                    stream.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_LINGER,
                    (&raw const linger).cast(),
                    size_of_val(&linger) as libc::socklen_t,
                );
            }
            return;
        }
        frame::stamp(&mut buffer, identity);
        if stream.write_all(&buffer).is_err() {
            return;
        }
    }
}

impl Drop for Resetting {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // Whoever waits for a connection gets one more.
        let _ = TcpStream::connect_timeout(&self.addr, Duration::from_millis(100));
        drop(self.thread.take());
    }
}

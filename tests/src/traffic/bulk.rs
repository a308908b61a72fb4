//! Many bytes both ways at once, every one checked.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::frame;
use crate::topology::Netns;

const CHUNK: usize = 64 * 1024;
const SEED_UP: u64 = 0x75_70;
const SEED_DOWN: u64 = 0x64_6f_77_6e;
/// A transfer that stands still this long has failed.
const STALL: Duration = Duration::from_secs(10);

/// What came of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BulkReport {
    pub identity: u8,
    /// Bytes that arrived at the client, and those of them that were wrong.
    pub down: u64,
    pub down_wrong: u64,
    /// The same at the server.
    pub up: u64,
    pub up_wrong: u64,
    pub took: Duration,
}

impl BulkReport {
    /// Asserts that `bytes` arrived both ways as they were sent.
    ///
    /// # Panics
    ///
    /// When they did not.
    pub fn assert_intact(&self, what: &str, bytes: u64) {
        assert!(
            self.up == bytes && self.down == bytes && self.up_wrong == 0 && self.down_wrong == 0,
            "{what}: {bytes} bytes both ways did not arrive intact: {self:?}"
        );
    }
}

/// Sends `bytes` to a server and receives as many from it, at the same time.
pub fn transfer(ns: &Netns, to: SocketAddr, bytes: u64) -> io::Result<BulkReport> {
    transfer_at(ns, to, bytes, 0)
}

/// As [`transfer`], with at most `rate` bytes a second each way where it is not 0.
pub fn transfer_at(ns: &Netns, to: SocketAddr, bytes: u64, rate: u32) -> io::Result<BulkReport> {
    ns.run(|| client(to, bytes, rate))
}

/// Many transfers at once, as [`transfer_at`], in threads beside the caller;
/// they go round over `to`.
pub fn start_many(
    ns: &Netns,
    to: &[SocketAddr],
    count: usize,
    bytes: u64,
    rate: u32,
) -> anyhow::Result<Vec<JoinHandle<io::Result<BulkReport>>>> {
    to.iter()
        .cycle()
        .take(count)
        .map(|to| {
            let to = *to;
            ns.spawn(move || client(to, bytes, rate))
        })
        .collect()
}

fn client(to: SocketAddr, bytes: u64, rate: u32) -> io::Result<BulkReport> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    limit(&stream)?;
    stream.write_all(&frame::bulk(bytes, rate))?;
    let mut hello = [0; 1];
    stream.read_exact(&mut hello)?;
    let (sent, received) = exchange(&stream, &[], bytes, SEED_UP, SEED_DOWN, rate);
    sent?;
    let (down, down_wrong) = received?;
    let mut verdict = [0; 16];
    stream.read_exact(&mut verdict)?;
    let (up, up_wrong) = verdict.split_at(8);
    Ok(BulkReport {
        identity: hello[0],
        down,
        down_wrong,
        up: u64::from_be_bytes(up.try_into().unwrap_or_default()),
        up_wrong: u64::from_be_bytes(up_wrong.try_into().unwrap_or_default()),
        took: start.elapsed(),
    })
}

/// The server's side, after the request; `early` is what came behind it.
pub fn serve(
    mut stream: &TcpStream,
    early: &[u8],
    identity: u8,
    bytes: u64,
    rate: u32,
) -> io::Result<()> {
    limit(stream)?;
    stream.write_all(&[identity])?;
    let (sent, received) = exchange(stream, early, bytes, SEED_DOWN, SEED_UP, rate);
    sent?;
    let (up, wrong) = received?;
    stream.write_all(&up.to_be_bytes())?;
    stream.write_all(&wrong.to_be_bytes())
}

fn limit(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))
}

type Exchanged = (io::Result<()>, io::Result<(u64, u64)>);

fn exchange(
    stream: &TcpStream,
    early: &[u8],
    bytes: u64,
    send_seed: u64,
    receive_seed: u64,
    rate: u32,
) -> Exchanged {
    thread::scope(|scope| {
        let sender = scope.spawn(move || send(stream, bytes, send_seed, rate));
        let received = receive(early.chain(stream), bytes, receive_seed);
        let sent = sender
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the sender panicked")));
        (sent, received)
    })
}

fn send(mut to: &TcpStream, bytes: u64, seed: u64, rate: u32) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    let start = Instant::now();
    while offset < bytes {
        if rate > 0 {
            let due = Duration::from_secs_f64(offset as f64 / f64::from(rate));
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
        // At a low rate the pieces are small, so that the flow is never idle for long.
        let piece = match rate {
            0 => CHUNK,
            _ => (rate as usize / 20 / 8 * 8).clamp(8, CHUNK),
        };
        let n = piece.min((bytes - offset) as usize);
        frame::fill(&mut chunk[..n], seed, offset);
        to.write_all(&chunk[..n])?;
        offset += n as u64;
    }
    Ok(())
}

/// Bytes that came, and how many of them were wrong.
fn receive(mut from: impl Read, bytes: u64, seed: u64) -> io::Result<(u64, u64)> {
    let mut chunk = vec![0; CHUNK];
    let mut right = vec![0; CHUNK];
    let (mut offset, mut wrong) = (0, 0);
    while offset < bytes {
        let n = CHUNK.min((bytes - offset) as usize);
        from.read_exact(&mut chunk[..n])?;
        frame::fill(&mut right[..n], seed, offset);
        if chunk[..n] != right[..n] {
            wrong += chunk[..n]
                .iter()
                .zip(&right[..n])
                .filter(|(a, b)| a != b)
                .count() as u64;
        }
        offset += n as u64;
    }
    Ok((offset, wrong))
}

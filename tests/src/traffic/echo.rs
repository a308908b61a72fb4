//! The server: stamps and echoes frames, sends bulk data on demand.

use std::{
    collections::HashMap,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use super::{
    bulk,
    frame::{self, FRAME, Request},
    poll::{BOTH, Poll, READ},
};

/// A connection and what is on its way through it.
struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// What to do with a connection after its events.
enum Next {
    Stay,
    Close,
    Bulk { bytes: u64, rate: u32 },
}

/// Serves TCP and UDP at every address until the process ends, answering as
/// `identity`. Calls `ready` once all sockets listen.
pub fn serve(addrs: &[SocketAddr], identity: u8, ready: impl FnOnce()) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listeners: Vec<TcpListener> = Vec::new();
    let mut sockets: Vec<UdpSocket> = Vec::new();
    let at = |addr: &SocketAddr, e: io::Error| io::Error::new(e.kind(), format!("{addr}: {e}"));
    for addr in addrs {
        let listener = TcpListener::bind(addr).map_err(|e| at(addr, e))?;
        listener.set_nonblocking(true)?;
        listeners.push(listener);
        let socket = UdpSocket::bind(addr).map_err(|e| at(addr, e))?;
        socket.set_nonblocking(true)?;
        sockets.push(socket);
    }
    let count = addrs.len() as u64;
    for (token, listener) in (0..).zip(&listeners) {
        widen_backlog(listener);
        poll.add(listener, token, READ)?;
    }
    for (token, socket) in (count..).zip(&sockets) {
        poll.add(socket, token, READ)?;
    }
    ready();
    let mut connections: HashMap<u64, Connection> = HashMap::new();
    let mut next_token = 2 * count;
    loop {
        for (token, _) in poll.wait(Duration::from_secs(1))? {
            if token < count {
                accept(
                    &listeners[token as usize],
                    &poll,
                    &mut connections,
                    &mut next_token,
                );
            } else if token < 2 * count {
                answer_datagrams(&sockets[(token - count) as usize], identity);
            } else if let Some(connection) = connections.get_mut(&token) {
                match advance(connection, identity) {
                    Next::Stay => {}
                    Next::Close => drop(connections.remove(&token)),
                    Next::Bulk { bytes, rate } => {
                        if let Some(connection) = connections.remove(&token) {
                            hand_over(connection, identity, bytes, rate);
                        }
                    }
                }
            }
        }
    }
}

/// std listens with a backlog of 128 at least; storms need more.
fn widen_backlog(listener: &TcpListener) {
    use std::os::fd::AsRawFd;
    // SAFETY: listen on a listening socket only changes its backlog.
    unsafe { libc::listen(listener.as_raw_fd(), 8192) };
}

fn accept(
    listener: &TcpListener,
    poll: &Poll,
    connections: &mut HashMap<u64, Connection>,
    next_token: &mut u64,
) {
    while let Ok((stream, _)) = listener.accept() {
        let token = *next_token;
        *next_token += 1;
        let set_up = stream
            .set_nonblocking(true)
            .and_then(|()| stream.set_nodelay(true))
            .and_then(|()| poll.add(&stream, token, BOTH));
        if set_up.is_ok() {
            connections.insert(
                token,
                Connection {
                    stream,
                    input: Vec::new(),
                    output: Vec::new(),
                },
            );
        }
    }
}

fn answer_datagrams(socket: &UdpSocket, identity: u8) {
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        if length == FRAME
            && let Ok(frame) = (&mut buffer[..FRAME]).try_into()
        {
            frame::stamp(frame, identity);
            // A datagram may be lost; the client counts.
            let _ = socket.send_to(&buffer[..FRAME], from);
        }
    }
}

fn advance(connection: &mut Connection, identity: u8) -> Next {
    let mut buffer = [0; 16 * 1024];
    let mut ended = false;
    loop {
        match connection.stream.read(&mut buffer) {
            Ok(0) => {
                ended = true;
                break;
            }
            Ok(n) => {
                connection.input.extend_from_slice(&buffer[..n]);
                if let next @ Next::Bulk { .. } = take_frames(connection, identity) {
                    return next;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(_) => return Next::Close,
        }
    }
    while !connection.output.is_empty() {
        match connection.stream.write(&connection.output) {
            Ok(n) => drop(connection.output.drain(..n)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(_) => return Next::Close,
        }
    }
    if ended { Next::Close } else { Next::Stay }
}

/// Moves whole frames, stamped, from input to output.
fn take_frames(connection: &mut Connection, identity: u8) -> Next {
    let whole = connection.input.len() / FRAME * FRAME;
    let (frames, _) = connection.input[..whole].as_chunks_mut::<FRAME>();
    for frame in frames.iter_mut() {
        if let Some(Request::Bulk { bytes, rate }) = frame::request(frame) {
            connection.input.drain(..FRAME);
            return Next::Bulk { bytes, rate };
        }
        frame::stamp(frame, identity);
    }
    connection
        .output
        .extend_from_slice(&connection.input[..whole]);
    connection.input.drain(..whole);
    Next::Stay
}

/// Bulk transfers block, so each has a thread.
fn hand_over(connection: Connection, identity: u8, bytes: u64, rate: u32) {
    thread::spawn(move || {
        // The client sees and reports what goes wrong.
        let _ = connection.stream.set_nonblocking(false).and_then(|()| {
            bulk::serve(&connection.stream, &connection.input, identity, bytes, rate)
        });
    });
}

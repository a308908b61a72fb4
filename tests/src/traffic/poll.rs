//! epoll and non-blocking sockets, as far as a load generator needs them.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

/// What to wait for; edge-triggered.
pub const BOTH: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
/// Readable; level-triggered.
pub const READ: u32 = libc::EPOLLIN as u32;

/// An epoll instance.
#[derive(Debug)]
pub struct Poll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poll {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1 takes a flag only.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Self {
            // SAFETY: the descriptor was just made and has no other owner.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            events: vec![libc::epoll_event { events: 0, u64: 0 }; 1024],
        })
    }

    /// Watches a descriptor; its events carry `token`. Closing it ends that.
    pub fn add(&self, fd: &impl AsRawFd, token: u64, interest: u32) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: interest,
            u64: token,
        };
        // SAFETY: both descriptors are open and `event` outlives the call.
        check(unsafe {
            libc::epoll_ctl(
                self.fd.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                fd.as_raw_fd(),
                &raw mut event,
            )
        })?;
        Ok(())
    }

    /// Waits up to `limit`; the tokens and events that came.
    pub fn wait(&mut self, limit: Duration) -> io::Result<Vec<(u64, u32)>> {
        let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the buffer holds as many events as the call is told.
        let n = unsafe {
            libc::epoll_wait(
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len() as i32,
                millis,
            )
        };
        let n = match check(n) {
            Ok(n) => n as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(self.events[..n].iter().map(|e| (e.u64, e.events)).collect())
    }
}

/// Begins a non-blocking connection; epoll says when it stands. With `source`
/// the socket is bound to that address and the port is chosen at connect.
pub fn connect(to: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = socket(to, libc::SOCK_STREAM)?;
    if let Some(source) = source {
        let on: libc::c_int = 1;
        set_option(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            on,
        )?;
        let (addr, len) = raw(SocketAddr::new(source, 0));
        // SAFETY: `addr` is a socket address of `len` bytes.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const addr).cast(), len) })?;
    }
    let (addr, len) = raw(to);
    // SAFETY: `addr` is a socket address of `len` bytes.
    match check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const addr).cast(), len) }) {
        Ok(_) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection that stands within `limit`, blocking from then on.
pub fn connect_within(
    to: SocketAddr,
    source: Option<IpAddr>,
    limit: Duration,
) -> io::Result<TcpStream> {
    let stream = connect(to, source)?;
    let mut poll = libc::pollfd {
        fd: stream.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one pollfd, which outlives the call.
    if check(unsafe { libc::poll(&raw mut poll, 1, limit.as_millis() as i32) })? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// A non-blocking UDP socket bound to `source` and connected to `to`.
pub fn connect_udp(to: SocketAddr, source: Option<IpAddr>) -> io::Result<UdpSocket> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((source.unwrap_or(any), 0))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn socket(to: SocketAddr, kind: i32) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes plain numbers.
    let fd = check(unsafe { libc::socket(family, kind, 0) })?;
    // SAFETY: the descriptor was just made and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_option(fd: RawFd, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option is a c_int and `value` is one.
    check(unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as u32,
        )
    })?;
    Ok(())
}

/// Makes room for so many bytes that came and are not read yet, also above the
/// limit that others have (`net.core.rmem_max`).
pub fn widen_receive_buffer(socket: &impl AsRawFd, bytes: libc::c_int) -> io::Result<()> {
    set_option(
        socket.as_raw_fd(),
        libc::SOL_SOCKET,
        libc::SO_RCVBUFFORCE,
        bytes,
    )
}

fn raw(addr: SocketAddr) -> (libc::sockaddr_in6, u32) {
    // SAFETY: all zero is a valid sockaddr_in6.
    let mut out: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
    match addr {
        SocketAddr::V6(addr) => {
            out.sin6_family = libc::AF_INET6 as u16;
            out.sin6_port = addr.port().to_be();
            out.sin6_addr.s6_addr = addr.ip().octets();
            (out, size_of::<libc::sockaddr_in6>() as u32)
        }
        SocketAddr::V4(addr) => {
            let v4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: addr.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(addr.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_in6 is larger than sockaddr_in and at least as aligned.
            unsafe { (&raw mut out).cast::<libc::sockaddr_in>().write(v4) };
            (out, size_of::<libc::sockaddr_in>() as u32)
        }
    }
}

/// Raises the limit of open files to what the kernel lets this process have.
pub fn raise_file_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit for both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max.max(65_536);
            limit.rlim_max = limit.rlim_cur;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

//! Which TCP sockets exist, in this network namespace or another of this host,
//! and the end of single ones.
//!
//! Asked of the kernel by NETLINK_SOCK_DIAG (`linux/inet_diag.h`, kernel 3.3):
//! every state but LISTEN counts, TIME_WAIT and half-open ones too. An answer
//! is whole or an error; yet where it takes several datagrams, a socket can be
//! missed in it when another of its bucket is closed in between.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    net::{IpAddr, SocketAddr},
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
};

use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_SOCK_DIAG};

use super::netlink::{self, Query, Request, attributes, u32_at};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const TCP_LISTEN: u8 = 10;
/// Length of `struct inet_diag_req_v2`.
const REQUEST_LEN: usize = 56;
/// Where the socket's cookie lies in it, to its end.
const COOKIE: usize = 48;
/// Where network namespaces are kept by name; `/proc` has those of processes.
const NAMED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// TCP sockets at some addresses of one network namespace.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct TcpSockets {
    /// Peers by the address that a socket has here.
    peers: HashMap<SocketAddr, HashSet<SocketAddr>>,
}

impl TcpSockets {
    /// Notes a socket that is connected, or was or will be.
    pub fn add(&mut self, at: SocketAddr, peer: SocketAddr) {
        self.peers.entry(at).or_default().insert(peer);
    }

    /// Whether a socket with these two ends is there in any state.
    pub fn has(&self, at: SocketAddr, peer: SocketAddr) -> bool {
        self.peers
            .get(&at)
            .is_some_and(|peers| peers.contains(&peer))
    }
}

/// Reads the sockets at the addresses `at`, in the namespace of the calling
/// thread, or in the one that has the id `netns` there.
///
/// # Errors
/// When the kernel does not answer, or not whole, or the namespace is not
/// found or cannot be entered (CAP_SYS_ADMIN).
pub fn tcp_sockets(netns: Option<i32>, at: &HashSet<SocketAddr>) -> io::Result<TcpSockets> {
    let at = at.clone();
    within(netns, move || read(&at))
}

/// Ends sockets at once (SOCK_DESTROY, kernel 4.5 with INET_DIAG_DESTROY): the peer
/// gets a RST, the server's program an error. Of each pair (address here, peer)
/// whether a socket was ended; a listener never is.
///
/// # Errors
/// As [`tcp_sockets`], and without CAP_NET_ADMIN in that namespace, or where the
/// kernel cannot.
pub fn end_sockets(
    netns: Option<i32>,
    pairs: &[(SocketAddr, SocketAddr)],
) -> io::Result<Vec<bool>> {
    let pairs = pairs.to_vec();
    within(netns, move || {
        let mut query = Query::open(NETLINK_SOCK_DIAG)?;
        let ended = pairs.iter().map(|(at, peer)| end(&mut query, *at, *peer));
        ended.collect()
    })
}

/// Runs `body` in the namespace that has the id here, or in this one.
fn within<T: Send + 'static>(
    netns: Option<i32>,
    body: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let Some(id) = netns else {
        return body();
    };
    let namespace = open_namespace(id)?;
    // A thread that ends with it: the others stay where they are.
    let enter = move || {
        // SAFETY: a descriptor that is open; concerns the calling thread only.
        match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => body(),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let thread = std::thread::Builder::new().name("sock-diag".into());
    thread
        .spawn(enter)?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("asking for sockets panicked")))
}

/// Ends one. The kernel answers with the listener where no such socket is: only
/// the very socket that was looked at is named, by its cookie.
fn end(query: &mut Query, at: SocketAddr, peer: SocketAddr) -> io::Result<bool> {
    let mut body = [0; REQUEST_LEN];
    body[0] = match at {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    } as u8;
    body[1] = libc::IPPROTO_TCP as u8;
    body[4..8].fill(0xff);
    body[8..10].copy_from_slice(&at.port().to_be_bytes());
    body[10..12].copy_from_slice(&peer.port().to_be_bytes());
    write_ip(&mut body[12..28], at.ip());
    write_ip(&mut body[28..44], peer.ip());
    body[COOKIE..].fill(0xff);
    let mut cookie = None;
    let request = Request::new(SOCK_DIAG_BY_FAMILY, 0, &body);
    let found = query.ask(&request, |_, payload| {
        let Some(socket) = Socket::parse(payload) else {
            return;
        };
        if socket.state != TCP_LISTEN && (socket.source, socket.destination) == (at, peer) {
            cookie = payload.get(44..52).map(<[u8]>::to_vec);
        }
    });
    let Some(cookie) = found.map_or_else(absent, |()| Ok(cookie))? else {
        return Ok(false);
    };
    body[COOKIE..].copy_from_slice(&cookie);
    let request = Request::new(SOCK_DESTROY, netlink::ACK, &body);
    let ended = query.ask(&request, |_, _| ()).map(|()| Some(()));
    Ok(ended.or_else(absent)?.is_some())
}

/// No such socket, or no longer.
fn absent<T>(error: io::Error) -> io::Result<Option<T>> {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESTALE | libc::EINVAL) => Ok(None),
        _ => Err(error),
    }
}

fn write_ip(field: &mut [u8], ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => field[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => field.copy_from_slice(&ip.octets()),
    }
}

fn read(at: &HashSet<SocketAddr>) -> io::Result<TcpSockets> {
    let mut query = Query::open(NETLINK_SOCK_DIAG)?;
    let mut sockets = TcpSockets::default();
    // IPv6 first: a socket can turn from IPv6 to IPv4 (IPV6_ADDRFORM), not back.
    for family in [libc::AF_INET6, libc::AF_INET] {
        let mut body = [0; REQUEST_LEN];
        body[0] = family as u8;
        body[1] = libc::IPPROTO_TCP as u8;
        // All states; no interface, any cookie.
        body[4..8].fill(0xff);
        body[48..56].fill(0xff);
        let request = Request::new(SOCK_DIAG_BY_FAMILY, netlink::DUMP, &body);
        let mut odd = false;
        query.ask(&request, |_, payload| match Socket::parse(payload) {
            Some(socket) => sockets.take(&socket, at),
            None => odd = true,
        })?;
        if odd {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(sockets)
}

impl TcpSockets {
    fn take(&mut self, socket: &Socket, at: &HashSet<SocketAddr>) {
        if socket.state != TCP_LISTEN && at.contains(&socket.source) {
            self.add(socket.source, socket.destination);
        }
    }
}

/// One answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Socket {
    state: u8,
    source: SocketAddr,
    destination: SocketAddr,
}

impl Socket {
    /// Reads `struct inet_diag_msg`.
    fn parse(payload: &[u8]) -> Option<Self> {
        let family = i32::from(*payload.first()?);
        let address = |bytes: usize, port: usize| {
            let all: [u8; 16] = payload.get(bytes..bytes + 16)?.try_into().ok()?;
            let port: [u8; 2] = payload.get(port..port + 2)?.try_into().ok()?;
            let ip = match family {
                libc::AF_INET => IpAddr::from([all[0], all[1], all[2], all[3]]),
                // A client over IPv4 on a socket for both.
                libc::AF_INET6 => IpAddr::from(all).to_canonical(),
                _ => return None,
            };
            Some(SocketAddr::new(ip, u16::from_be_bytes(port)))
        };
        Some(Self {
            state: *payload.get(1)?,
            source: address(8, 4)?,
            destination: address(24, 6)?,
        })
    }
}

/// The namespace with an id, by a name or a process that is in it.
fn open_namespace(id: i32) -> io::Result<File> {
    let mut query = Query::open(NETLINK_ROUTE)?;
    let mut asked = HashSet::new();
    for path in namespace_paths() {
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if !asked.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        if let Ok(file) = File::open(&path)
            && namespace_id(&mut query, &file) == Some(id)
        {
            return Ok(file);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("no process that can be seen is in network namespace {id}"),
    ))
}

fn namespace_paths() -> impl Iterator<Item = PathBuf> {
    let entries = |directory: &str| fs::read_dir(directory).into_iter().flatten().flatten();
    let named = NAMED.iter().flat_map(move |directory| entries(directory));
    let processes = entries("/proc").filter(|entry| {
        let name = entry.file_name();
        name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
    });
    let of_processes = processes.map(|entry| entry.path().join("ns/net"));
    named.map(|entry| entry.path()).chain(of_processes)
}

/// The id that the query's namespace has for another.
fn namespace_id(query: &mut Query, namespace: &File) -> Option<i32> {
    let fd = namespace.as_raw_fd() as u32;
    let request = Request::new(RTM_GETNSID, 0, &[0; 4]).with(NETNSA_FD, &fd.to_ne_bytes());
    let mut id = None;
    let result = query.ask(&request, |_, payload| {
        id = attributes(payload.get(4..).unwrap_or_default())
            .find(|attribute| attribute.0 == NETNSA_NSID)
            .and_then(|attribute| u32_at(attribute.1, 0));
    });
    result.ok().and(id).map(|id| id as i32)
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn a_socket_is_seen_while_it_exists_and_not_after() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(any).unwrap();
            let at = listener.local_addr().unwrap();
            let wanted = HashSet::from([at]);
            let client = TcpStream::connect(at).unwrap();
            let peer = client.local_addr().unwrap();
            let (server, _) = listener.accept().unwrap();
            let sockets = tcp_sockets(None, &wanted).unwrap();
            assert!(sockets.has(at, peer), "{sockets:?}");
            assert_eq!(sockets.peers[&at].len(), 1, "the listener is none");
            // A reset leaves no TIME_WAIT behind.
            let linger = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            // SAFETY: a valid option of an open socket.
            let failed = unsafe {
                libc::setsockopt(
                    server.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_LINGER,
                    (&raw const linger).cast(),
                    size_of::<libc::linger>() as u32,
                )
            };
            assert_eq!(failed, 0);
            drop((server, listener));
            let sockets = tcp_sockets(None, &wanted).unwrap();
            assert!(!sockets.has(at, peer), "{sockets:?}");
        }
    }

    #[test]
    fn a_client_over_ipv4_is_seen_on_a_socket_for_both() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        let client = TcpStream::connect(at).unwrap();
        let (_server, _) = listener.accept().unwrap();
        let sockets = tcp_sockets(None, &HashSet::from([at])).unwrap();
        assert!(sockets.has(at, client.local_addr().unwrap()), "{sockets:?}");
    }

    #[test]
    fn a_socket_is_ended_and_its_listener_goes_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(at).unwrap();
        let peer = client.local_addr().unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let stranger = SocketAddr::from(([127, 0, 0, 1], 1));
        match end_sockets(None, &[(at, stranger), (at, peer)]) {
            // Tests run without root too.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                assert!(std::env::var_os("CI").is_none(), "skipped: {error}");
                eprintln!("skipped: ending a socket needs CAP_NET_ADMIN");
                return;
            }
            ended => assert_eq!(ended.unwrap(), [false, true]),
        }
        let read = client.read(&mut [0; 8]).unwrap_err();
        assert_eq!(read.kind(), io::ErrorKind::ConnectionReset);
        assert!(server.read(&mut [0; 8]).is_err());
        TcpStream::connect(at).expect("the listener goes on");
        assert_eq!(end_sockets(None, &[(at, peer)]).unwrap(), [false]);
    }

    #[test]
    fn a_namespace_that_nobody_is_in_is_an_error() {
        let error = tcp_sockets(Some(i32::MAX), &HashSet::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn cut_off_answers_are_not_taken_for_sockets() {
        let mut payload = [0; 72];
        payload[0] = libc::AF_INET as u8;
        assert!(Socket::parse(&payload).is_some());
        for length in 0..40 {
            assert_eq!(Socket::parse(&payload[..length]), None);
        }
        payload[0] = libc::AF_UNIX as u8;
        assert_eq!(Socket::parse(&payload), None);
    }
}

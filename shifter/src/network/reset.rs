//! A RST in the name of one end of a TCP connection whose other end is elsewhere.
//!
//! A socket in repair (`TCP_REPAIR`, kernel 3.5; CAP_NET_ADMIN) takes the
//! place of that end for some µs: with its address (`IP_TRANSPARENT`), its next
//! sequence number, and no packet on the wire. Closed without lingering, the kernel
//! sends the RST, checksummed and routed as any other segment of this host. So
//! one that comes from a backend meets the programs at egress and leaves from the VIP.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_RECV_QUEUE: u32 = 1;
const TCP_SEND_QUEUE: u32 = 2;
/// Without a window probe; kernel 4.19.
const TCP_REPAIR_OFF_NO_WP: i32 = -1;

/// Sends a RST from one end to the other. `sequence` is what `to` has
/// acknowledged last: it takes no other at once (RFC 5961, section 3.2).
///
/// # Errors
/// When this host has a socket for the same two ends, has no route, or the
/// process lacks CAP_NET_ADMIN.
pub fn send_reset(
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    acknowledged: u32,
) -> io::Result<()> {
    let (family, level, transparent) = match from {
        SocketAddr::V4(_) => (libc::AF_INET, libc::SOL_IP, libc::IP_TRANSPARENT),
        SocketAddr::V6(_) => (libc::AF_INET6, libc::SOL_IPV6, libc::IPV6_TRANSPARENT),
    };
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just opened, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&socket, level, transparent, &1i32)?;
    set(&socket, libc::IPPROTO_TCP, TCP_REPAIR, &1i32)?;
    with_address(from, |address, length| {
        // SAFETY: an address of that length.
        unsafe { libc::bind(socket.as_raw_fd(), address, length) }
    })?;
    for (queue, number) in [(TCP_SEND_QUEUE, sequence), (TCP_RECV_QUEUE, acknowledged)] {
        set(&socket, libc::IPPROTO_TCP, TCP_REPAIR_QUEUE, &queue)?;
        set(&socket, libc::IPPROTO_TCP, TCP_QUEUE_SEQ, &number)?;
    }
    // In repair it sends nothing and is connected at once.
    with_address(to, |address, length| {
        // SAFETY: as above.
        unsafe { libc::connect(socket.as_raw_fd(), address, length) }
    })?;
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    set(&socket, libc::SOL_SOCKET, libc::SO_LINGER, &at_once)?;
    set(
        &socket,
        libc::IPPROTO_TCP,
        TCP_REPAIR,
        &TCP_REPAIR_OFF_NO_WP,
    )
    // What is dropped here sends it.
}

fn set<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: `value` is valid for `length` bytes.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn with_address(
    addr: SocketAddr,
    call: impl FnOnce(*const libc::sockaddr, libc::socklen_t) -> i32,
) -> io::Result<()> {
    let done = match addr {
        SocketAddr::V4(addr) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: addr.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(addr.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            let length = size_of_val(&address) as libc::socklen_t;
            call((&raw const address).cast(), length)
        }
        SocketAddr::V6(addr) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: addr.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: addr.ip().octets(),
                },
                sin6_scope_id: addr.scope_id(),
            };
            let length = size_of_val(&address) as libc::socklen_t;
            call((&raw const address).cast(), length)
        }
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

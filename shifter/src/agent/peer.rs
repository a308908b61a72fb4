//! Who is at the other end of a unix socket (SO_PEERCRED).

use std::os::{fd::AsRawFd as _, unix::net::UnixStream};

/// Whoever called listen(2) at the other end, or connect(2).
pub fn of(stream: &UnixStream) -> Option<libc::ucred> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: libc::uid_t::MAX,
        gid: libc::gid_t::MAX,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` and `length` are valid for what the kernel writes.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_of_a_pair_is_this_process() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = of(&one).unwrap();
        // SAFETY: it cannot fail and touches no memory.
        let own = unsafe { libc::geteuid() };
        assert_eq!((peer.uid, peer.pid), (own, std::process::id() as i32));
    }
}

//! Lines of JSON over a unix stream, with file descriptors beside them.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use super::{SOCKETS, Said};

/// No message is longer.
const LONGEST: usize = 64 << 10;
/// Room for a header and [`SOCKETS`] descriptors, in 8-byte words (cmsg(3)).
const CONTROL: usize = 8;

/// Sends a message with descriptors.
pub fn send(stream: &UnixStream, said: &Said, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    let mut sent = send_some(stream, &line, sockets)?;
    while sent < line.len() {
        sent += send_some(stream, &line[sent..], &[])?;
    }
    Ok(())
}

/// Waits for a message; `None` where the other side has gone. A time limit of
/// the stream is an error of kind `WouldBlock`.
pub fn receive(stream: &UnixStream) -> io::Result<Option<(Said, Vec<OwnedFd>)>> {
    let (mut line, mut sockets) = (Vec::new(), Vec::new());
    loop {
        let mut bytes = [0; 4_096];
        match receive_some(stream, &mut bytes, &mut sockets)? {
            0 => return Ok(None),
            count => line.extend_from_slice(&bytes[..count]),
        }
        // They speak in turns: nothing follows a line.
        if let Some(text) = line.strip_suffix(b"\n") {
            return Ok(Some((serde_json::from_slice(text)?, sockets)));
        }
        if line.len() > LONGEST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a message without an end",
            ));
        }
    }
}

fn send_some(stream: &UnixStream, bytes: &[u8], sockets: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if sockets.len() > SOCKETS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut control = [0u64; CONTROL];
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all zeros is a message without address, parts and control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !sockets.is_empty() {
        let length = size_of_val(sockets) as u32;
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: computes a number.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(length) } as _;
        // SAFETY: `control` has room for one header and SOCKETS descriptors, is
        // aligned for both, and lives over the call.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(length) as _;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            for (i, socket) in sockets.iter().enumerate() {
                data.add(i).write_unaligned(socket.as_raw_fd());
            }
        }
    }
    let fd = stream.as_raw_fd();
    // SAFETY: the message names `part` and `control`, which live over the call.
    again(|| unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL) })
}

/// Repeats a call that a signal has interrupted.
fn again(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

fn receive_some(
    stream: &UnixStream,
    bytes: &mut [u8],
    sockets: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut control = [0u64; CONTROL];
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all zeros is a message without address, parts and control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let fd = stream.as_raw_fd();
    // SAFETY: the message names `part` and `control`, which live over the call.
    let received =
        again(|| unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_CMSG_CLOEXEC) })?;
    // SAFETY: the kernel has filled `control` with whole headers; descriptors in
    // there are new, and nobody else's.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if ((*header).cmsg_level, (*header).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for i in 0..bytes / size_of::<RawFd>() {
                    sockets.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(received)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::fd::AsFd as _,
    };

    use super::*;
    use crate::agent::handover::Offer;

    #[test]
    fn a_message_comes_with_its_descriptors() {
        let (old, new) = UnixStream::pair().unwrap();
        let (mut left, right) = UnixStream::pair().unwrap();
        let said = Said::Offer(Offer {
            unix: vec![("/run/shifter/shifter.sock".into(), 7)],
            metrics: Some("127.0.0.1:9464".parse().unwrap()),
            manager: None,
        });
        send(&old, &said, &[right.as_fd(), right.as_fd()]).unwrap();
        drop(right);
        let (heard, sockets) = receive(&new).unwrap().unwrap();
        assert_eq!((heard, sockets.len()), (said, 2));
        let mut right = UnixStream::from(sockets.into_iter().next().unwrap());
        left.write_all(b"x").unwrap();
        let mut byte = [0];
        right.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
    }

    #[test]
    fn what_comes_in_pieces_is_put_together_and_an_end_is_no_message() {
        let (mut old, new) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            old.write_all(br#"{"say":"#).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            old.write_all(b"\"gone\"}\n").unwrap();
        });
        assert_eq!(receive(&new).unwrap().unwrap().0, Said::Gone);
        writer.join().unwrap();
        assert!(receive(&new).unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (mut old, new) = UnixStream::pair().unwrap();
        old.write_all(b"GET / HTTP/1.1\n").unwrap();
        assert!(receive(&new).is_err());
        let many: Vec<_> = (0..SOCKETS + 1).map(|_| old.as_fd()).collect();
        assert!(send(&old, &Said::Gone, &many).is_err());
    }
}

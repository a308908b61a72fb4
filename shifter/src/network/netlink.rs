//! Netlink messages as bytes: requests, attributes, and one socket to ask with.
//!
//! Only the few attributes that the agent needs are read, so that a kernel
//! that is newer than this program is no obstacle. Layouts:
//! `linux/netlink.h`, `linux/rtnetlink.h`. All fields are in host order.

use std::{
    io,
    os::fd::{AsRawFd as _, RawFd},
};

use netlink_sys::{Socket, SocketAddr};

pub const RTM_NEWLINK: u16 = 16;
pub const RTM_DELLINK: u16 = 17;
pub const RTM_GETLINK: u16 = 18;
pub const RTM_NEWADDR: u16 = 20;
pub const RTM_DELADDR: u16 = 21;
pub const RTM_GETADDR: u16 = 22;
pub const RTM_NEWROUTE: u16 = 24;
pub const RTM_DELROUTE: u16 = 25;
pub const RTM_GETROUTE: u16 = 26;
pub const RTM_NEWNEIGH: u16 = 28;
pub const RTM_DELNEIGH: u16 = 29;
pub const RTM_GETNEIGH: u16 = 30;
pub const RTM_NEWRULE: u16 = 32;
pub const RTM_DELRULE: u16 = 33;
pub const RTM_NEWNEXTHOP: u16 = 104;
pub const RTM_DELNEXTHOP: u16 = 105;

/// Ask for all objects of a kind.
pub const DUMP: u16 = 0x300;
/// Ask for an acknowledgement.
pub const ACK: u16 = 4;
/// Make the object if it is not there.
pub const CREATE: u16 = 0x400;

const HEADER_LEN: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_MULTI: u16 = 2;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER are flags in the attribute's kind.
const ATTRIBUTE_KIND: u16 = 0x3fff;
/// The kernel answers within µs; a dump of a very large table takes some ms.
const ANSWER_MS: i32 = 3_000;

/// A request under construction.
pub struct Request {
    kind: u16,
    flags: u16,
    payload: Vec<u8>,
}

impl Request {
    /// `body` is the fixed part that the kind asks for.
    pub fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        Self {
            kind,
            flags,
            payload: body.to_vec(),
        }
    }

    /// Appends an attribute.
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = 4 + value.len() as u16;
        self.payload.extend_from_slice(&length.to_ne_bytes());
        self.payload.extend_from_slice(&kind.to_ne_bytes());
        self.payload.extend_from_slice(value);
        self.payload
            .resize(self.payload.len().next_multiple_of(4), 0);
        self
    }

    /// Attributes so far, to nest them in another.
    #[cfg(test)]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    fn to_bytes(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.payload.len());
        let length = (HEADER_LEN + self.payload.len()) as u32;
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&self.kind.to_ne_bytes());
        bytes.extend_from_slice(&(self.flags | NLM_F_REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// One message of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

/// The messages of a datagram; ends at the first that is cut off.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        let payload = bytes.get(HEADER_LEN..length)?;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            payload,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

/// The attributes after a fixed part; ends at the first that is cut off.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & ATTRIBUTE_KIND;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// A 16-bit field in host order.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let field = bytes.get(offset..offset + 2)?;
    Some(u16::from_ne_bytes(field.try_into().ok()?))
}

/// A 32-bit field in host order.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..offset + 4)?;
    Some(u32::from_ne_bytes(field.try_into().ok()?))
}

/// A string attribute without its final zero.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// Waits until the socket can be read; false when `timeout_ms` have passed.
pub fn wait_readable(fd: RawFd, timeout_ms: i32) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` is one valid pollfd and lives over the call.
    match unsafe { libc::poll(&mut poll, 1, timeout_ms) } {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
        ready => Ok(ready > 0),
    }
}

/// A socket that asks the kernel and waits for its answer.
pub struct Query {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Query {
    /// Opens it in the network namespace of the calling thread.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(1 << 16),
        })
    }

    /// Sends the request and hands every message of the answer to `each`. A
    /// refusal of the kernel is its errno; a dump that was overtaken by a
    /// change is `Interrupted`.
    pub fn ask(&mut self, request: &Request, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&request.to_bytes(self.sequence), 0)?;
        let mut overtaken = false;
        loop {
            if !wait_readable(self.socket.as_raw_fd(), ANSWER_MS)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            for message in messages(&self.buffer) {
                if message.sequence != self.sequence {
                    continue;
                }
                overtaken |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_ERROR => return errno(message.payload),
                    NLMSG_DONE if overtaken => return Err(io::ErrorKind::Interrupted.into()),
                    NLMSG_DONE => return Ok(()),
                    kind => each(kind, message.payload),
                }
                let single = message.flags & NLM_F_MULTI == 0;
                if single && request.flags & (ACK | DUMP) == 0 {
                    return Ok(());
                }
            }
        }
    }
}

/// What an error message says; 0 is an acknowledgement.
fn errno(payload: &[u8]) -> io::Result<()> {
    match u32_at(payload, 0).map(|code| code as i32) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_read_back_as_it_was_built() {
        let request = Request::new(RTM_GETLINK, DUMP, &[0; 16])
            .with(3, b"eth0\0")
            .with(4, &1500u32.to_ne_bytes());
        let bytes = request.to_bytes(7);
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].kind, all[0].flags, all[0].sequence), (18, 0x301, 7));
        let found: Vec<_> = attributes(&all[0].payload[16..]).collect();
        assert_eq!(found[0], (3, &b"eth0\0"[..]));
        assert_eq!(text(found[0].1), "eth0");
        assert_eq!(u32_at(found[1].1, 0), Some(1500));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn cut_off_bytes_end_the_walk_and_never_panic() {
        let bytes = Request::new(RTM_GETLINK, 0, &[0; 16])
            .with(3, b"eth0\0")
            .to_bytes(1);
        for length in 0..bytes.len() {
            assert_eq!(messages(&bytes[..length]).count(), 0);
            let _ = attributes(&bytes[length..]).count();
        }
        // A length of zero would turn in circles if it were believed.
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(attributes(&[0; 64]).count(), 0);
    }

    #[test]
    fn refusal_of_the_kernel_becomes_its_errno() {
        let refused = errno(&(-101i32).to_ne_bytes()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENETUNREACH));
        assert!(errno(&0i32.to_ne_bytes()).is_ok());
        assert!(errno(&[]).is_err());
    }
}

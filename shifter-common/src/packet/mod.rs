//! Packets through a small seam: the same parser and rewriter run over an XDP
//! frame, over an skb and over a byte slice on the host.

pub mod checksum;
pub mod parse;
pub mod rewrite;
pub mod slice;

/// Longest offset that is ever read; bounds what the verifier has to follow.
pub const MAX_OFFSET: usize = 1_023;

/// Bytes of a packet from the Ethernet header on.
///
/// Every access is checked: `None` means that the packet (or what of it can be
/// reached) ends before, or that `offset` is beyond [`MAX_OFFSET`].
pub trait Packet {
    /// One byte.
    fn get1(&self, offset: usize) -> Option<u8>;
    /// Two bytes in packet order.
    fn get2(&self, offset: usize) -> Option<[u8; 2]>;
    /// Four bytes in packet order.
    fn get4(&self, offset: usize) -> Option<[u8; 4]>;
    /// Six bytes in packet order.
    fn get6(&self, offset: usize) -> Option<[u8; 6]>;
    /// Sixteen bytes in packet order.
    fn get16(&self, offset: usize) -> Option<[u8; 16]>;
    /// Writes one byte.
    fn put1(&mut self, offset: usize, bytes: u8) -> Option<()>;
    /// Writes two bytes.
    fn put2(&mut self, offset: usize, bytes: [u8; 2]) -> Option<()>;
    /// Writes four bytes.
    fn put4(&mut self, offset: usize, bytes: [u8; 4]) -> Option<()>;
    /// Writes six bytes.
    fn put6(&mut self, offset: usize, bytes: [u8; 6]) -> Option<()>;
    /// Writes sixteen bytes.
    fn put16(&mut self, offset: usize, bytes: [u8; 16]) -> Option<()>;

    /// Updates the checksum at `offset` of a transport header (or of ICMP) by
    /// what changed: `pseudo` in addresses of the pseudo-header, `plain` in
    /// bytes that the checksum covers. `optional`: 0 means "none" (UDP) and
    /// stays. Comes last: it may invalidate what was read before.
    fn transport_checksum(&mut self, offset: usize, change: ChecksumChange) -> Option<()>;
}

/// What changed under a transport checksum.
#[derive(Clone, Copy, Debug)]
pub struct ChecksumChange {
    /// Change of addresses in the pseudo-header.
    pub pseudo: checksum::Delta,
    /// Change of bytes covered directly.
    pub plain: checksum::Delta,
    /// A checksum of 0 means that there is none.
    pub optional: bool,
    /// 4 or 6.
    pub family: u8,
}

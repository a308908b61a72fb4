//! The context of a packet: one small trait over XDP frames and skbs.

mod tc;
mod xdp;

use core::ffi::c_void;

use shifter_common::{
    abi::Config,
    packet::{MAX_OFFSET, Packet, checksum::Delta, parse::Headers},
};

use crate::atomic;
pub use tc::{TC_NEXT, TcPacket};
pub use xdp::XdpFrame;

/// What a program returns to the kernel.
pub type Action = i32;

/// A packet at a hook.
pub trait Hook: Packet {
    /// `HOOK_*`, for verdict counters.
    const NUMBER: u32;
    /// The context as helpers take it.
    fn context(&self) -> *mut c_void;
    /// Leaves the packet to the program of the layout before, while flows move
    /// over from its table: it does not return then. The packet is unchanged.
    fn ask_old<const MISS: u32>(&self);
    /// Interface that the packet came in by (or leaves by, at egress).
    fn ifindex(&self) -> u32;
    /// Bytes from the Ethernet header on.
    fn length(&self) -> u32;
    /// Where what can be read directly begins.
    fn data(&self) -> usize;
    /// Where it ends.
    fn data_end(&self) -> usize;
    /// The first byte, where at least `N` can be read and written directly.
    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<usize> {
        let data = self.data();
        if data + N > self.data_end() {
            None
        } else {
            Some(data)
        }
    }
    /// Bytes that can be read directly.
    #[inline(always)]
    fn linear(&self) -> u32 {
        (self.data_end() - self.data()) as u32
    }
    /// Mends the checksum of TCP or UDP in a plain frame that begins at `head`
    /// by sums of 32-bit words, not folded: of addresses and of what it covers
    /// directly. Comes last, as [`Packet::transport_checksum`].
    fn mend_checksum<const V6: bool>(
        &mut self,
        head: usize,
        is_udp: bool,
        addresses: u64,
        covered: u64,
    ) -> Option<()>;
    /// Payload of each packet that an aggregated skb becomes; 0: it is one packet.
    fn segment(&self) -> u32;
    /// Makes the headers of a packet that is not plain reachable. Where the data lie
    /// in pages, as a server's on this host do, it costs the kernel a new buffer. False
    /// where nothing was to be done.
    fn pull(&self) -> bool;
    /// Whether a VLAN tag lies beside the frame.
    fn has_tag(&self) -> bool;
    /// Longest layer-3 packet that this becomes on the wire.
    fn wire_length(&self, headers: &Headers) -> u32;
    /// Whether the packet carries a VLAN tag, in its frame or beside it. It is
    /// never redirected: the tag means nothing on another interface.
    fn is_tagged(&self, headers: &Headers) -> bool;
    /// Bytes of the IP header changed by `delta` in sum, and no checksum made up for it.
    fn header_changed(&mut self, delta: Delta);
    /// On its way, untouched or rewritten.
    fn pass(&self) -> Action;
    /// Dropped.
    fn drop(&self) -> Action;
    /// Whether a packet can be redirected to an interface from here.
    fn can_leave_by(&self, config: &Config, ifindex: u32) -> bool;
    /// Out of an interface; MACs are written already.
    fn redirect(&self, config: &Config, ifindex: u32) -> Action;
}

/// Pointer to `size` bytes at `offset`, checked against the packet's end.
#[inline(always)]
fn bounded(data: usize, end: usize, offset: usize, size: usize) -> Option<usize> {
    if offset > MAX_OFFSET {
        return None;
    }
    let at = atomic::add(data, offset);
    if at + size > end { None } else { Some(at) }
}

/// RFC 768: a UDP checksum of 0 would say that there is none.
#[inline(always)]
fn some_sum(sum: u16) -> u16 {
    if sum == 0 { 0xffff } else { sum }
}

macro_rules! direct_access {
    () => {
        #[inline(always)]
        fn get1(&self, offset: usize) -> Option<u8> {
            let at = bounded(self.data(), self.data_end(), offset, 1)?;
            // SAFETY: checked by `bounded`.
            Some(unsafe { atomic::load8(at) })
        }
        #[inline(always)]
        fn get2(&self, offset: usize) -> Option<[u8; 2]> {
            let at = bounded(self.data(), self.data_end(), offset, 2)?;
            // SAFETY: checked by `bounded`.
            Some(unsafe { atomic::load16(at) }.to_ne_bytes())
        }
        #[inline(always)]
        fn get4(&self, offset: usize) -> Option<[u8; 4]> {
            let at = bounded(self.data(), self.data_end(), offset, 4)?;
            // SAFETY: checked by `bounded`.
            Some(unsafe { atomic::load32(at) }.to_ne_bytes())
        }
        #[inline(always)]
        fn get6(&self, offset: usize) -> Option<[u8; 6]> {
            let [a, b, c, d] = self.get4(offset)?;
            let [e, f] = self.get2(offset + 4)?;
            Some([a, b, c, d, e, f])
        }
        #[inline(always)]
        fn get16(&self, offset: usize) -> Option<[u8; 16]> {
            let at = bounded(self.data(), self.data_end(), offset, 16)?;
            // SAFETY: checked by `bounded`.
            let (low, high) = unsafe { (atomic::load64(at), atomic::load64(at + 8)) };
            Some((u128::from(low) | u128::from(high) << 64).to_le_bytes())
        }
        #[inline(always)]
        fn put1(&mut self, offset: usize, byte: u8) -> Option<()> {
            let at = bounded(self.data(), self.data_end(), offset, 1)?;
            // SAFETY: checked by `bounded`.
            unsafe { atomic::store8(at, byte) };
            Some(())
        }
        #[inline(always)]
        fn put2(&mut self, offset: usize, bytes: [u8; 2]) -> Option<()> {
            let at = bounded(self.data(), self.data_end(), offset, 2)?;
            // SAFETY: checked by `bounded`.
            unsafe { atomic::store16(at, u16::from_ne_bytes(bytes)) };
            Some(())
        }
        #[inline(always)]
        fn put4(&mut self, offset: usize, bytes: [u8; 4]) -> Option<()> {
            let at = bounded(self.data(), self.data_end(), offset, 4)?;
            // SAFETY: checked by `bounded`.
            unsafe { atomic::store32(at, u32::from_ne_bytes(bytes)) };
            Some(())
        }
        #[inline(always)]
        fn put6(&mut self, offset: usize, bytes: [u8; 6]) -> Option<()> {
            self.put4(offset, [bytes[0], bytes[1], bytes[2], bytes[3]])?;
            self.put2(offset + 4, [bytes[4], bytes[5]])
        }
        #[inline(always)]
        fn put16(&mut self, offset: usize, bytes: [u8; 16]) -> Option<()> {
            let at = bounded(self.data(), self.data_end(), offset, 16)?;
            let value = u128::from_le_bytes(bytes);
            // SAFETY: checked by `bounded`.
            unsafe {
                atomic::store64(at, value as u64);
                atomic::store64(at + 8, (value >> 64) as u64);
            }
            Some(())
        }
    };
}
use direct_access;

const _: () = assert!(size_of::<usize>() == 8);

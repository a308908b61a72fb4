//! The context of a packet: one small trait over XDP frames and skbs.

use core::{
    ffi::c_void,
    mem::{offset_of, size_of},
};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, xdp_action, xdp_md},
    helpers::{
        bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_skb_pull_data, bpf_xdp_get_buff_len,
    },
    programs::{TcContext, XdpContext},
};
use shifter_common::{
    abi::{
        Config,
        config::XDP_INTERFACES,
        miss::MISS_EGRESS,
        stats::{HOOK_EGRESS, HOOK_TC, HOOK_XDP},
    },
    packet::{
        ChecksumChange, MAX_OFFSET, Packet,
        checksum::{Delta, fold, fold64},
        parse::Headers,
        slice::update_in_place,
    },
};

use crate::{
    atomic::{self, load16_at, store16_at},
    maps::{OLD_TC, OLD_XDP},
};

/// What a program returns to the kernel.
pub type Action = i32;

/// On with the next program of the chain (TCX_NEXT, and TC_ACT_UNSPEC for clsact).
const TC_NEXT: Action = -1;
const TC_DROP: Action = 2;

/// Headers that must be reachable in an skb: Ethernet, IPv6, TCP.
const PULL_AT_LEAST: u32 = 74;
/// What is made reachable where they are not: room for options and quoted packets.
const PULL: u32 = 192;

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
    /// in pages, as a server's on this host do, it costs the kernel a new buffer.
    fn pull(&self);
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
    fn redirect(&self, ifindex: u32) -> Action;
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

/// A frame in the driver, before there is an skb.
pub struct XdpFrame(pub *mut xdp_md);

impl Packet for XdpFrame {
    direct_access!();

    #[inline(always)]
    fn transport_checksum(&mut self, offset: usize, change: ChecksumChange) -> Option<()> {
        update_in_place(self, offset, change)
    }
}

impl Hook for XdpFrame {
    const NUMBER: u32 = HOOK_XDP;

    #[inline(always)]
    fn data(&self) -> usize {
        // SAFETY: the kernel hands the program a valid context.
        unsafe { atomic::context_pointer::<{ offset_of!(xdp_md, data) }>(self.0 as usize) }
    }
    #[inline(always)]
    fn data_end(&self) -> usize {
        // SAFETY: as above.
        unsafe { atomic::context_pointer::<{ offset_of!(xdp_md, data_end) }>(self.0 as usize) }
    }
    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.0.cast()
    }
    #[inline(always)]
    fn ask_old<const MISS: u32>(&self) {
        // SAFETY: nothing that the packet needs lives past the call.
        unsafe { OLD_XDP.tail_call(&XdpContext::new(self.0), MISS) };
    }
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).ingress_ifindex }
    }
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: as above; the helper counts fragments of a multi-buffer frame.
        unsafe { bpf_xdp_get_buff_len(self.0) as u32 }
    }
    #[inline(always)]
    fn mend_checksum<const V6: bool>(
        &mut self,
        head: usize,
        is_udp: bool,
        addresses: u64,
        covered: u64,
    ) -> Option<()> {
        let change = addresses + covered;
        let after = |old: u16| !fold64(u64::from(!old) + change);
        // SAFETY: the caller has checked that the headers can be reached.
        unsafe {
            match (V6, is_udp) {
                (false, false) => store16_at::<50>(head, after(load16_at::<50>(head))),
                (true, false) => store16_at::<70>(head, after(load16_at::<70>(head))),
                (false, true) => match load16_at::<40>(head) {
                    0 => {}
                    old => store16_at::<40>(head, some_sum(after(old))),
                },
                (true, true) => match load16_at::<60>(head) {
                    0 => {}
                    old => store16_at::<60>(head, some_sum(after(old))),
                },
            }
        }
        Some(())
    }
    #[inline(always)]
    fn segment(&self) -> u32 {
        0
    }
    #[inline(always)]
    fn pull(&self) {}
    #[inline(always)]
    fn has_tag(&self) -> bool {
        false
    }
    #[inline(always)]
    fn wire_length(&self, headers: &Headers) -> u32 {
        self.length().wrapping_sub(headers.l3 as u32)
    }
    #[inline(always)]
    fn is_tagged(&self, headers: &Headers) -> bool {
        headers.vlan
    }
    #[inline(always)]
    fn header_changed(&mut self, _delta: Delta) {}
    #[inline(always)]
    fn pass(&self) -> Action {
        xdp_action::XDP_PASS as Action
    }
    #[inline(always)]
    fn drop(&self) -> Action {
        xdp_action::XDP_DROP as Action
    }
    #[inline(always)]
    fn can_leave_by(&self, config: &Config, ifindex: u32) -> bool {
        if ifindex == self.ifindex() {
            return true;
        }
        let mut i = 0;
        while i < XDP_INTERFACES {
            if config.xdp_interfaces[i] == ifindex {
                return true;
            }
            i += 1;
        }
        false
    }
    #[inline(always)]
    fn redirect(&self, ifindex: u32) -> Action {
        if ifindex == self.ifindex() {
            return xdp_action::XDP_TX as Action;
        }
        // SAFETY: takes an interface's number only.
        unsafe { bpf_redirect(ifindex, 0) as Action }
    }
}

/// An skb at tc ingress or egress.
pub struct TcPacket<const EGRESS: bool>(*mut __sk_buff);

impl<const EGRESS: bool> TcPacket<EGRESS> {
    /// The packet as the kernel hands it over.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        Self(skb)
    }
}

impl<const EGRESS: bool> Packet for TcPacket<EGRESS> {
    direct_access!();

    /// The helpers know what an skb's checksum means: computed, left to the
    /// device (CHECKSUM_PARTIAL) or summed by it (CHECKSUM_COMPLETE).
    #[inline(always)]
    fn transport_checksum(&mut self, offset: usize, change: ChecksumChange) -> Option<()> {
        let mangled = if change.optional {
            u64::from(BPF_F_MARK_MANGLED_0)
        } else {
            0
        };
        let at = offset as u32;
        if change.pseudo != Delta::ZERO {
            let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled;
            let delta = u32::from(fold(change.pseudo.0));
            // SAFETY: the helper checks the offset.
            if unsafe { bpf_l4_csum_replace(self.0, at, 0, u64::from(delta), flags) } != 0 {
                return None;
            }
            if change.family == 6 {
                // No header checksum makes up for an IPv6 address: the sum of
                // the whole packet stays, which the helper does not know
                // (mended in the kernel by BPF_F_IPV6, 6.16).
                // SAFETY: takes a number.
                unsafe { bpf_csum_update(self.0, delta) };
            }
        }
        if change.plain != Delta::ZERO {
            let delta = u32::from(fold(change.plain.0));
            // SAFETY: the helper checks the offset.
            if unsafe { bpf_l4_csum_replace(self.0, at, 0, u64::from(delta), mangled) } != 0 {
                return None;
            }
        }
        Some(())
    }
}

impl<const EGRESS: bool> Hook for TcPacket<EGRESS> {
    const NUMBER: u32 = if EGRESS { HOOK_EGRESS } else { HOOK_TC };

    #[inline(always)]
    fn data(&self) -> usize {
        // SAFETY: the kernel hands the program a valid context.
        unsafe { atomic::context_pointer::<{ offset_of!(__sk_buff, data) }>(self.0 as usize) }
    }
    #[inline(always)]
    fn data_end(&self) -> usize {
        // SAFETY: as above.
        unsafe { atomic::context_pointer::<{ offset_of!(__sk_buff, data_end) }>(self.0 as usize) }
    }
    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.0.cast()
    }
    #[inline(always)]
    fn ask_old<const MISS: u32>(&self) {
        // SAFETY: nothing that the packet needs lives past the call.
        unsafe {
            if EGRESS {
                OLD_TC.tail_call(&TcContext::new(self.0), MISS_EGRESS);
            } else {
                OLD_TC.tail_call(&TcContext::new(self.0), MISS);
            }
        }
    }
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).ifindex }
    }
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).len }
    }
    #[inline(always)]
    fn mend_checksum<const V6: bool>(
        &mut self,
        _head: usize,
        is_udp: bool,
        addresses: u64,
        covered: u64,
    ) -> Option<()> {
        let change = ChecksumChange {
            pseudo: Delta(u32::from(fold64(addresses))),
            plain: Delta(u32::from(fold64(covered))),
            optional: is_udp,
            family: if V6 { 6 } else { 4 },
        };
        let offset = if V6 { 54 } else { 34 } + if is_udp { 6 } else { 16 };
        self.transport_checksum(offset, change)
    }
    #[inline(always)]
    fn segment(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).gso_size }
    }
    #[inline(always)]
    fn pull(&self) {
        let (linear, length) = (self.linear(), self.length());
        if linear < PULL_AT_LEAST && linear < length {
            let wanted = if length < PULL { length } else { PULL };
            // SAFETY: as above; on failure the parser finds the packet cut short.
            unsafe { bpf_skb_pull_data(self.0, wanted) };
        }
    }
    #[inline(always)]
    fn has_tag(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.0).vlan_present != 0 }
    }
    /// Of an aggregated skb (GRO) that of one segment.
    #[inline(always)]
    fn wire_length(&self, headers: &Headers) -> u32 {
        // SAFETY: as above.
        let segment = unsafe { (*self.0).gso_size };
        if segment == 0 {
            return self.length().wrapping_sub(headers.l3 as u32);
        }
        let transport = if headers.protocol == 6 {
            self.get1(headers.l4 + 12)
                .map_or(20, |byte| u32::from(byte >> 4) * 4)
        } else {
            8
        };
        (headers.l4 - headers.l3) as u32 + transport + segment
    }
    /// The kernel takes the outer tag out of the frame before tc sees it.
    #[inline(always)]
    fn is_tagged(&self, headers: &Headers) -> bool {
        // SAFETY: as above.
        headers.vlan || unsafe { (*self.0).vlan_present } != 0
    }
    #[inline(always)]
    fn header_changed(&mut self, delta: Delta) {
        if delta != Delta::ZERO {
            // SAFETY: takes a number; without CHECKSUM_COMPLETE it does nothing.
            unsafe { bpf_csum_update(self.0, u32::from(fold(delta.0))) };
        }
    }
    #[inline(always)]
    fn pass(&self) -> Action {
        TC_NEXT
    }
    #[inline(always)]
    fn drop(&self) -> Action {
        TC_DROP
    }
    #[inline(always)]
    fn can_leave_by(&self, _config: &Config, _ifindex: u32) -> bool {
        true
    }
    #[inline(always)]
    fn redirect(&self, ifindex: u32) -> Action {
        // SAFETY: takes an interface's number only.
        unsafe { bpf_redirect(ifindex, 0) as Action }
    }
}

const _: () = assert!(size_of::<usize>() == 8);

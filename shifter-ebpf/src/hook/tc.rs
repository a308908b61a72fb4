//! An skb in the traffic control layer.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::{bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_skb_pull_data},
    programs::TcContext,
};
use shifter_common::{
    abi::{
        Config,
        miss::MISS_EGRESS,
        stats::{HOOK_EGRESS, HOOK_TC},
    },
    packet::{
        ChecksumChange, Packet,
        checksum::{Delta, fold, fold64},
        parse::Headers,
    },
};

use super::{Action, Hook, bounded, direct_access};
use crate::{
    atomic,
    maps::{CONFIG, OLD_TC},
};

/// On with the next program of the chain (TCX_NEXT, and TC_ACT_UNSPEC for clsact).
pub const TC_NEXT: Action = -1;
const TC_DROP: Action = 2;

/// Headers that must be reachable where a frame is not plain: Ethernet, IPv6, TCP.
const PULL_AT_LEAST: u32 = 74;
/// What is made reachable where they are not: room for options and quoted packets.
const PULL: u32 = 192;

/// An skb at tc ingress or egress.
pub struct TcPacket<const EGRESS: bool>(*mut __sk_buff);

impl<const EGRESS: bool> TcPacket<EGRESS> {
    /// The packet as the kernel hands it over.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        Self(skb)
    }

    /// Whether ingress has redirected this very packet: there is nothing left to do. The
    /// mark is taken off.
    #[inline(always)]
    pub fn take_redirected(&self) -> bool {
        // SAFETY: the context is valid.
        let found = unsafe { [(*self.0).cb[0], (*self.0).cb[1]] };
        // Most packets have zeros there.
        let is_marked = found != [0; 2] && CONFIG.get(0).is_some_and(|own| seal(own) == found);
        if is_marked {
            self.mark([0; 2]);
        }
        is_marked
    }

    /// Leaves a mark for egress, which meets the packet next: `bpf_redirect` leads straight
    /// from here to the other interface, and nothing on the way touches these words. Where
    /// no egress of ours is, the mark goes on with the packet until a stack or a bridge
    /// takes it in, which begin with zeros there.
    #[inline(always)]
    fn mark(&self, [low, high]: [u32; 2]) {
        // SAFETY: as above; only this program has the packet.
        unsafe {
            core::ptr::write_volatile(&raw mut (*self.0).cb[0], low);
            core::ptr::write_volatile(&raw mut (*self.0).cb[1], high);
        }
    }
}

/// What marks a redirected packet: half of the tag, which is random and the installation's own.
#[inline(always)]
fn seal(config: &Config) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h, ..] = config.tag;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    ]
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
    fn pull(&self) -> bool {
        let (linear, length) = (self.linear(), self.length());
        if linear < PULL_AT_LEAST && linear < length {
            let wanted = if length < PULL { length } else { PULL };
            // SAFETY: as above; on failure the parser finds the packet cut short.
            unsafe { bpf_skb_pull_data(self.0, wanted) };
            return true;
        }
        false
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
    fn redirect(&self, config: &Config, ifindex: u32) -> Action {
        self.mark(seal(config));
        // SAFETY: takes an interface's number only.
        unsafe { bpf_redirect(ifindex, 0) as Action }
    }
}

//! A packet as the usual program sees it: fixed offsets, no options.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_PSEUDO_HDR, xdp_action, xdp_md},
    helpers::{bpf_csum_update, bpf_l4_csum_replace, bpf_redirect},
};
use core::mem::offset_of;

use crate::atomic;

/// A packet at a hook.
pub trait Frame {
    /// First byte and the one after the last.
    fn bounds(&self) -> (usize, usize);
    /// On its way.
    fn pass(&self) -> i32;
    /// Out of an interface.
    fn redirect(&self, ifindex: u32) -> i32;
    /// Changes a transport checksum by the differences of an address and of a port.
    fn fix_checksum(&mut self, offset: usize, addr: u32, port: u32, v6: bool) -> Option<()>;

    /// Where `size` bytes at a constant offset lie.
    #[inline(always)]
    fn at(&self, offset: usize, size: usize) -> Option<usize> {
        let (data, end) = self.bounds();
        (data + offset + size <= end).then_some(data + offset)
    }
    #[inline(always)]
    fn get1(&self, offset: usize) -> Option<u8> {
        // SAFETY: checked by `at`.
        self.at(offset, 1).map(|at| unsafe { atomic::load8(at) })
    }
    #[inline(always)]
    fn get2(&self, offset: usize) -> Option<u16> {
        // SAFETY: checked by `at`.
        self.at(offset, 2).map(|at| unsafe { atomic::load16(at) })
    }
    #[inline(always)]
    fn get4(&self, offset: usize) -> Option<u32> {
        // SAFETY: checked by `at`.
        self.at(offset, 4).map(|at| unsafe { atomic::load32(at) })
    }
    #[inline(always)]
    fn put2(&mut self, offset: usize, word: u16) -> Option<()> {
        // SAFETY: checked by `at`.
        self.at(offset, 2)
            .map(|at| unsafe { atomic::store16(at, word) })
    }
    #[inline(always)]
    fn put4(&mut self, offset: usize, word: u32) -> Option<()> {
        // SAFETY: checked by `at`.
        self.at(offset, 4)
            .map(|at| unsafe { atomic::store32(at, word) })
    }
}

/// A frame in the driver.
pub struct Xdp(pub *mut xdp_md);

impl Frame for Xdp {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let context = self.0 as usize;
        // SAFETY: the kernel hands the program a valid context.
        unsafe {
            (
                atomic::context_pointer::<{ offset_of!(xdp_md, data) }>(context),
                atomic::context_pointer::<{ offset_of!(xdp_md, data_end) }>(context),
            )
        }
    }
    #[inline(always)]
    fn pass(&self) -> i32 {
        xdp_action::XDP_PASS as i32
    }
    #[inline(always)]
    fn redirect(&self, ifindex: u32) -> i32 {
        // SAFETY: takes a number.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }
    #[inline(always)]
    fn fix_checksum(&mut self, offset: usize, addr: u32, port: u32, _v6: bool) -> Option<()> {
        let old = u32::from(self.get2(offset)?);
        let sum = fold((!old & 0xffff) + fold(addr) + fold(port));
        self.put2(offset, !sum as u16)
    }
}

/// An skb.
pub struct Skb(pub *mut __sk_buff);

impl Frame for Skb {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let context = self.0 as usize;
        // SAFETY: the kernel hands the program a valid context.
        unsafe {
            (
                atomic::context_pointer::<{ offset_of!(__sk_buff, data) }>(context),
                atomic::context_pointer::<{ offset_of!(__sk_buff, data_end) }>(context),
            )
        }
    }
    #[inline(always)]
    fn pass(&self) -> i32 {
        crate::TC_NEXT
    }
    #[inline(always)]
    fn redirect(&self, ifindex: u32) -> i32 {
        // SAFETY: takes a number.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }
    #[inline(always)]
    fn fix_checksum(&mut self, offset: usize, addr: u32, port: u32, v6: bool) -> Option<()> {
        let (at, addr) = (offset as u32, fold(addr));
        let pseudo = u64::from(BPF_F_PSEUDO_HDR);
        // SAFETY: the helper checks the offset.
        if unsafe { bpf_l4_csum_replace(self.0, at, 0, u64::from(addr), pseudo) } != 0 {
            return None;
        }
        if v6 {
            // SAFETY: takes a number.
            unsafe { bpf_csum_update(self.0, addr) };
        }
        // SAFETY: the helper checks the offset.
        if unsafe { bpf_l4_csum_replace(self.0, at, 0, u64::from(fold(port)), 0) } != 0 {
            return None;
        }
        Some(())
    }
}

/// The halves added, carries too.
#[inline(always)]
pub fn fold(sum: u32) -> u32 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16)
}

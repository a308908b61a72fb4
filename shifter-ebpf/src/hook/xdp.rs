//! A frame in the driver.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::{bpf_redirect, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use shifter_common::{
    abi::{Config, config::XDP_INTERFACES, stats::HOOK_XDP},
    packet::{
        ChecksumChange, Packet,
        checksum::{Delta, fold64},
        parse::Headers,
        slice::update_in_place,
    },
};

use super::{Action, Hook, bounded, direct_access, some_sum};
use crate::{
    atomic::{self, load16_at, store16_at},
    maps::OLD_XDP,
};

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
    fn pull(&self) -> bool {
        false
    }
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
    fn redirect(&self, _config: &Config, ifindex: u32) -> Action {
        if ifindex == self.ifindex() {
            return xdp_action::XDP_TX as Action;
        }
        // SAFETY: takes an interface's number only.
        unsafe { bpf_redirect(ifindex, 0) as Action }
    }
}

//! The packet path: entry points of the XDP and tc programs.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// A key that is moved is copied once more on a stack of 512 bytes.
#![allow(clippy::needless_borrows_for_generic_args)]

mod atomic;
mod clock;
mod flow_table;
mod hook;
mod maps;
mod stage;
mod verdict;

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};

use hook::{Hook, TC_NEXT, TcPacket, XdpFrame};
use stage::{classify, fast};
use verdict::conclude;

/// Ingress in the driver.
#[xdp(frags)]
#[inline(always)]
pub fn shifter_xdp(context: XdpContext) -> u32 {
    let mut frame = XdpFrame(context.ctx);
    match fast::established(&mut frame) {
        left @ (0 | fast::READ) => ingress(&mut frame, left == fast::READ) as u32,
        done => done as u32,
    }
}

/// Ingress in the traffic control layer.
#[classifier]
#[inline(always)]
pub fn shifter_ingress(context: TcContext) -> i32 {
    let mut packet = TcPacket::<false>::new(context.skb.skb);
    match fast::established(&mut packet) {
        left @ (0 | fast::READ) => ingress(&mut packet, left == fast::READ) as i32,
        done => done as i32,
    }
}

/// Egress: replies of servers on this host, in containers, and forwarded ones.
#[classifier]
#[inline(always)]
pub fn shifter_egress(context: TcContext) -> i32 {
    let mut packet = TcPacket::<true>::new(context.skb.skb);
    if packet.take_redirected() {
        return TC_NEXT;
    }
    match fast::established(&mut packet) {
        0 => egress(&mut packet) as i32,
        done => done as i32,
    }
}

/// The stages at ingress. A function of its own, as `fast::established` is: the
/// stack of the one is gone when the other begins. What it gives is given to the
/// kernel as it is: a program of the layout before may have answered in its place.
#[inline(never)]
fn ingress<H: Hook>(hook: &mut H, is_read: bool) -> u64 {
    u64::from(conclude::<H>(classify::ingress(hook, is_read)).cast_unsigned())
}

/// The stages at egress.
#[inline(never)]
fn egress<H: Hook>(hook: &mut H) -> u64 {
    u64::from(conclude::<H>(classify::egress(hook)).cast_unsigned())
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The helpers that look sockets up are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

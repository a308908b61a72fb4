//! Programs of `cargo xtask bench`, in an object of their own that is never
//! installed: the driver that feeds packets to a program under test, and what
//! shifter is measured beside.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
// A key that is moved is copied once more on a stack of 512 bytes.
#![allow(clippy::needless_borrows_for_generic_args)]

#[allow(dead_code)]
#[path = "../atomic.rs"]
mod atomic;
mod driver;
mod frame;
mod maps;
mod nat;
mod reference;

use aya_ebpf::{
    bindings::xdp_action,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};

use frame::{Skb, Xdp};
use nat::{Nat, dispatch};
use reference::Reference;

/// On with the next program of the chain.
const TC_NEXT: i32 = -1;

/// Restores a frame, then tail-calls the program under test.
#[xdp(frags)]
pub fn bench_xdp_driver(context: XdpContext) -> u32 {
    driver::restore(context.data(), context.data_end());
    // SAFETY: both are the program's own.
    unsafe { maps::XDP_SUBJECT.tail_call(&context, 0) };
    xdp_action::XDP_ABORTED
}

/// As [`bench_xdp_driver`], over an skb.
#[classifier]
pub fn bench_tc_driver(context: TcContext) -> i32 {
    driver::restore(context.data(), context.data_end());
    // SAFETY: both are the program's own.
    unsafe { maps::TC_SUBJECT.tail_call(&context, 0) };
    TC_NEXT
}

/// Does nothing: what it costs is the driver's own cost.
#[xdp(frags)]
pub fn bench_xdp_empty(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// As [`bench_xdp_empty`], over an skb.
#[classifier]
pub fn bench_tc_empty(_context: TcContext) -> i32 {
    TC_NEXT
}

/// Waits for the frame and does nothing else.
#[xdp(frags)]
pub fn bench_xdp_wait(context: XdpContext) -> u32 {
    driver::wait(&Xdp(context.ctx));
    xdp_action::XDP_PASS
}

/// As [`bench_xdp_wait`], over an skb.
#[classifier]
pub fn bench_tc_wait(context: TcContext) -> i32 {
    driver::wait(&Skb(context.skb.skb));
    TC_NEXT
}

/// The same job the usual way, pins in the kernel's LRU hash.
#[xdp(frags)]
pub fn bench_xdp_reference(context: XdpContext) -> u32 {
    dispatch::<Reference, _>(&mut Xdp(context.ctx)) as u32
}

/// As [`bench_xdp_reference`], over an skb.
#[classifier]
pub fn bench_tc_reference(context: TcContext) -> i32 {
    dispatch::<Reference, _>(&mut Skb(context.skb.skb))
}

/// A stateless NAT and nothing else.
#[xdp(frags)]
pub fn bench_xdp_nat(context: XdpContext) -> u32 {
    dispatch::<Nat, _>(&mut Xdp(context.ctx)) as u32
}

/// As [`bench_xdp_nat`], over an skb.
#[classifier]
pub fn bench_tc_nat(context: TcContext) -> i32 {
    dispatch::<Nat, _>(&mut Skb(context.skb.skb))
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

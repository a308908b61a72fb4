//! A plain frame: what is read of it, at constant offsets.

use core::mem::{offset_of, size_of};

use shifter_common::abi::{AddressKey, stats::HOOK_XDP};

use super::{L3, TCP, UDP};
use crate::{
    atomic::{self, load8_at, load16_at, load32_at, load64_at},
    hook::Hook,
};

/// More fragments, or an offset (RFC 791), as it lies in memory.
const FRAGMENT: u16 = 0x3fffu16.to_be();

/// One side of a packet as it lies in memory, and as an [`AddressKey`] has it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Side {
    pub addr: [u64; 2],
    /// Port, protocol and family.
    pub rest: u32,
}

impl Side {
    #[inline(always)]
    pub fn new<const V6: bool>(addr: [u64; 2], port: u16, protocol: u8) -> Self {
        let family: u32 = if V6 { 6 } else { 4 };
        Self {
            addr,
            rest: u32::from(port) | u32::from(protocol) << 16 | family << 24,
        }
    }

    /// In three loads: a key is aligned to nothing.
    #[inline(always)]
    pub fn of(key: &AddressKey) -> Self {
        const { assert!(size_of::<AddressKey>() == 20 && offset_of!(AddressKey, port) == 16) };
        const { assert!(offset_of!(AddressKey, protocol) == 18) };
        let at = core::ptr::from_ref(key) as usize;
        // SAFETY: within the key.
        unsafe {
            Self {
                addr: [load64_at::<0>(at), load64_at::<8>(at)],
                rest: load32_at::<16>(at),
            }
        }
    }

    #[inline(always)]
    pub fn port(self) -> u16 {
        self.rest as u16
    }
}

/// What a frame says.
#[derive(Clone, Copy)]
pub struct Frame {
    /// Its first byte.
    pub at: usize,
    pub source: Side,
    pub destination: Side,
    pub protocol: u8,
    pub hop_limit: u8,
    pub tcp_flags: u8,
    /// Of the IP packet by its own account; 0: it has none.
    pub length: u32,
}

/// EtherType of a frame, as it lies in memory.
#[inline(always)]
pub fn ether_type<H: Hook>(hook: &H) -> Option<u16> {
    let at = hook.head::<42>()?;
    // SAFETY: `head` has checked that so many bytes can be read.
    Some(unsafe { load16_at::<12>(at) })
}

/// Reads a frame whose headers are of the plain kind and whole. One check serves both
/// protocols where the frame has room for TCP. Of UDP no more bytes are asked for than
/// its headers have: the data may lie in pages.
#[inline(always)]
pub fn read<H: Hook, const V6: bool>(hook: &H) -> Option<Frame> {
    if let Some(at) = long::<H, V6>(hook) {
        return read_long::<V6>(at);
    }
    let at = by!(hook.head::<62>()?, hook.head::<42>()?);
    match protocol_of::<V6>(at) {
        UDP => read_as::<V6, UDP>(at),
        _ => None,
    }
}

/// The first byte of a frame that has room for TCP.
#[inline(always)]
pub fn long<H: Hook, const V6: bool>(hook: &H) -> Option<usize> {
    by!(hook.head::<74>(), hook.head::<54>())
}

/// [`read`] of a frame that has room for TCP.
#[inline(always)]
pub fn read_long<const V6: bool>(at: usize) -> Option<Frame> {
    match protocol_of::<V6>(at) {
        TCP => read_as::<V6, TCP>(at),
        UDP => read_as::<V6, UDP>(at),
        _ => None,
    }
}

/// What the IP header says follows it.
#[inline(always)]
fn protocol_of<const V6: bool>(at: usize) -> u8 {
    // SAFETY: `read` has checked that the headers can be read.
    unsafe { by!(load8_at::<20>(at), load8_at::<23>(at)) }
}

#[inline(always)]
fn read_as<const V6: bool, const PROTOCOL: u8>(at: usize) -> Option<Frame> {
    // SAFETY: `read` has checked that the headers can be read.
    unsafe {
        let version = load8_at::<14>(at);
        if V6 {
            if version >> 4 != 6 {
                return None;
            }
        } else if version != 0x45 || load16_at::<20>(at) & FRAGMENT != 0 {
            return None;
        }
        let (tcp_flags, header) = if PROTOCOL == TCP {
            (by!(load8_at::<67>(at), load8_at::<47>(at)), 20)
        } else {
            (0, 8)
        };
        // An aggregated skb may be too long for the field, which is 0 then.
        let field = u32::from(u16::from_be(by!(load16_at::<18>(at), load16_at::<16>(at))));
        let length = match field {
            0 => 0,
            length => length + by!(40, 0),
        };
        if length != 0 && length < header + by!(40, 20) {
            return None;
        }
        let (source, destination) = if V6 {
            (
                [load64_at::<22>(at), load64_at::<30>(at)],
                [load64_at::<38>(at), load64_at::<46>(at)],
            )
        } else {
            (
                [u64::from(load32_at::<26>(at)), 0],
                [u64::from(load32_at::<30>(at)), 0],
            )
        };
        let source_port = by!(load16_at::<54>(at), load16_at::<34>(at));
        let destination_port = by!(load16_at::<56>(at), load16_at::<36>(at));
        Some(Frame {
            at,
            source: Side::new::<V6>(source, source_port, PROTOCOL),
            destination: Side::new::<V6>(destination, destination_port, PROTOCOL),
            // Not the byte that was looked at: the verifier has to see which it is.
            protocol: atomic::constant::<PROTOCOL>(),
            hop_limit: by!(load8_at::<21>(at), load8_at::<22>(at)),
            tcp_flags,
            length,
        })
    }
}

/// Bytes from the IP header on. Those in one piece, where the packet is no
/// longer by its own account: the kernel is asked for the others only.
#[inline(always)]
pub fn length_of<H: Hook>(hook: &H, frame: &Frame) -> u32 {
    let linear = hook.linear().wrapping_sub(L3 as u32);
    if H::NUMBER == HOOK_XDP && frame.length != 0 && frame.length <= linear {
        linear
    } else {
        hook.length().wrapping_sub(L3 as u32)
    }
}

//! What is written into a plain frame: one side of it, its checksums, and the
//! MACs of a next hop, at constant offsets.

use core::mem::offset_of;

use shifter_common::{
    abi::NextHop,
    packet::checksum::{Delta, fold64},
};

use super::{
    UDP,
    frame::{Frame, Side},
};
use crate::{
    atomic::{load16_at, load32_at, load64_at, store8_at, store16_at, store32_at, store64_at},
    hook::Hook,
    stage::track::From,
};

/// Change of a ones' complement sum from one address to another, in sums of
/// 32-bit words, not folded.
#[inline(always)]
fn address_change<const V6: bool>(old: [u64; 2], new: [u64; 2]) -> u64 {
    let halves = |word: u64| (word & 0xffff_ffff) + (word >> 32);
    if V6 {
        halves(!old[0]) + halves(!old[1]) + halves(new[0]) + halves(new[1])
    } else {
        u64::from(!(old[0] as u32)) + new[0]
    }
}

/// MACs of the next hop, and one hop less. What changed beside the address.
///
/// # Safety
/// `at` must have been checked to be writable for the headers.
#[inline(always)]
unsafe fn leave<const V6: bool>(at: usize, hop_limit: u8, hop: &NextHop) -> u64 {
    const { assert!(offset_of!(NextHop, destination) == 8 && offset_of!(NextHop, source) == 14) };
    let from = core::ptr::from_ref(hop) as usize;
    let less = hop_limit - 1;
    // SAFETY: the caller's promise; `from` is a whole next hop.
    unsafe {
        store64_at::<0>(at, load64_at::<8>(from));
        store32_at::<8>(at, load32_at::<16>(from));
        by!(store8_at::<21>(at, less), store8_at::<22>(at, less));
    }
    // Beside it lies a byte that stays.
    let word = |limit| u64::from(u16::from_ne_bytes(by!([0, limit], [limit, 0])));
    (word(hop_limit) ^ 0xffff) + word(less)
}

/// Writes one side of the packet, its checksums, and where it is redirected to.
#[inline(always)]
pub fn write<H: Hook, const V6: bool>(
    hook: &mut H,
    frame: &Frame,
    from: From,
    to: Side,
    hop: Option<&NextHop>,
) -> Option<()> {
    let at = frame.at;
    let old = match from {
        From::Client => frame.destination,
        From::Backend => frame.source,
    };
    let addresses = address_change::<V6>(old.addr, to.addr);
    // SAFETY: `read` has checked that the headers can be reached.
    unsafe {
        let header = match hop {
            Some(hop) => leave::<V6>(at, frame.hop_limit, hop),
            None => 0,
        };
        if V6 {
            match from {
                From::Client => {
                    store64_at::<38>(at, to.addr[0]);
                    store64_at::<46>(at, to.addr[1]);
                    store16_at::<56>(at, to.port());
                }
                From::Backend => {
                    store64_at::<22>(at, to.addr[0]);
                    store64_at::<30>(at, to.addr[1]);
                    store16_at::<54>(at, to.port());
                }
            }
            hook.header_changed(Delta(header as u32));
        } else {
            let sum = u64::from(!load16_at::<24>(at)) + addresses + header;
            store16_at::<24>(at, !fold64(sum));
            match from {
                From::Client => {
                    store32_at::<30>(at, to.addr[0] as u32);
                    store16_at::<36>(at, to.port());
                }
                From::Backend => {
                    store32_at::<26>(at, to.addr[0] as u32);
                    store16_at::<34>(at, to.port());
                }
            }
        }
    }
    let ports = u64::from(!old.port()) + u64::from(to.port());
    hook.mend_checksum::<V6>(at, frame.protocol == UDP, addresses, ports)
}

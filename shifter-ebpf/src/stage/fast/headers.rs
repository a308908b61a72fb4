//! The stages read and write a plain frame as this way does.

use shifter_common::{
    abi::{AddressKey, NextHop},
    hash::address_words,
    packet::parse::{Headers, Kind},
};

use super::{
    IPV4, IPV6, L3,
    frame::{Frame, Side, ether_type, long, read_long},
    write::write,
};
use crate::{hook::Hook, stage::track::From};

/// Fills what `parse` would find. `false`: the frame is not plain, and nothing
/// is filled.
#[inline(always)]
pub fn read_plain<H: Hook>(hook: &H, headers: &mut Headers) -> bool {
    // What `write_plain` asks for.
    match ether_type(hook) {
        Some(IPV4) => read_into::<H, false>(hook, headers),
        Some(IPV6) => read_into::<H, true>(hook, headers),
        _ => false,
    }
}

#[inline(always)]
fn read_into<H: Hook, const V6: bool>(hook: &H, headers: &mut Headers) -> bool {
    let Some(frame) = long::<H, V6>(hook).and_then(read_long::<V6>) else {
        return false;
    };
    fill::<V6>(&frame, headers);
    true
}

/// What `parse` would find in a frame. It must be long enough for [`write_plain`], as
/// one with TCP is.
#[inline(always)]
pub fn fill<const V6: bool>(frame: &Frame, headers: &mut Headers) {
    *headers = Headers {
        source: bytes(frame.source.addr),
        destination: bytes(frame.destination.addr),
        source_port: frame.source.port().to_ne_bytes(),
        destination_port: frame.destination.port().to_ne_bytes(),
        family: by!(6, 4),
        protocol: frame.protocol,
        kind: Kind::Segment,
        hop_limit: frame.hop_limit,
        vlan: false,
        plain: true,
        tcp_flags: frame.tcp_flags,
        l3: L3,
        l4: L3 + by!(40, 20),
        quoted_l3: 0,
        quoted_l4: 0,
    };
}

#[inline(always)]
fn bytes(words: [u64; 2]) -> [u8; 16] {
    (u128::from(words[0]) | u128::from(words[1]) << 64).to_le_bytes()
}

/// Writes one side of a frame that [`read_plain`] has read.
#[inline(always)]
pub fn write_plain<H: Hook>(
    hook: &mut H,
    headers: &Headers,
    from: From,
    to: &AddressKey,
    hop: Option<&NextHop>,
) -> Option<()> {
    if headers.family == 4 {
        let frame = frame_of::<false>(long::<H, false>(hook)?, headers);
        write::<H, false>(hook, &frame, from, Side::of(to), hop)
    } else {
        let frame = frame_of::<true>(long::<H, true>(hook)?, headers);
        write::<H, true>(hook, &frame, from, Side::of(to), hop)
    }
}

#[inline(always)]
fn frame_of<const V6: bool>(at: usize, headers: &Headers) -> Frame {
    let side = |addr: &[u8; 16], port: [u8; 2]| {
        let port = u16::from_ne_bytes(port);
        Side::new::<V6>(address_words(addr), port, headers.protocol)
    };
    Frame {
        at,
        source: side(&headers.source, headers.source_port),
        destination: side(&headers.destination, headers.destination_port),
        protocol: headers.protocol,
        hop_limit: headers.hop_limit,
        tcp_flags: headers.tcp_flags,
        length: 0,
    }
}

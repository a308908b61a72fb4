//! The model's own rewriting: fields are replaced, and every checksum is set
//! so that the sum over all it covers is what it was. A right checksum stays
//! right, a wrong one stays exactly as wrong.

use std::net::IpAddr;

use shifter_tests::packet::sum::sum;

use super::parse::{Kind, Side, View};

/// Which side of the packet becomes another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Source,
    Destination,
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// Offset of an address from the beginning of its IP header.
fn address_at(is_v6: bool, which: Which) -> usize {
    match (is_v6, which) {
        (false, Which::Source) => 12,
        (false, Which::Destination) => 16,
        (true, Which::Source) => 8,
        (true, Which::Destination) => 24,
    }
}

/// Sets the checksum at `at` so that `new` sums up to what `old` does;
/// `at` counts from the beginning of both.
fn keep_sum(old: &[u8], new: &mut [u8], at: usize, is_udp: bool) {
    new[at..at + 2].fill(0);
    let class = |bytes: &[u8]| u32::from(sum(bytes)) % 0xffff;
    let field = (class(old) + 0xffff - class(new)) % 0xffff;
    let field = if is_udp && field == 0 { 0xffff } else { field };
    new[at..at + 2].copy_from_slice(&(field as u16).to_be_bytes());
}

/// An address in an IP header, and the header's checksum if it has one.
fn put_address(frame: &mut [u8], ip: usize, is_v6: bool, which: Which, addr: IpAddr) {
    let at = ip + address_at(is_v6, which);
    let addr = octets(addr);
    let old = frame[ip..].to_vec();
    frame[at..at + addr.len()].copy_from_slice(&addr);
    if !is_v6 {
        let header = usize::from(frame[ip] % 16) * 4;
        // Options may lie beyond the end of a quoted packet: only what is
        // there, which the change does not touch.
        let end = (ip + header).min(frame.len());
        keep_sum(&old[..end - ip], &mut frame[ip..end], 10, false);
    }
}

/// Both addresses of an IP header, as they are summed up in a pseudo-header.
fn addresses(frame: &[u8], ip: usize, is_v6: bool) -> Vec<u8> {
    let (at, length) = if is_v6 { (8, 32) } else { (12, 8) };
    frame[ip + at..ip + at + length].to_vec()
}

/// Sets the transport checksum after a change of addresses or of what follows.
fn keep_transport(
    old: &[u8],
    frame: &mut [u8],
    ip: usize,
    is_v6: bool,
    from: usize,
    field: usize,
    is_udp: bool,
) {
    if is_udp && old[field..field + 2] == [0, 0] {
        return;
    }
    let before = [addresses(old, ip, is_v6), old[from..].to_vec()].concat();
    let head = addresses(frame, ip, is_v6);
    let mut after = [head.clone(), frame[from..].to_vec()].concat();
    keep_sum(&before, &mut after, head.len() + field - from, is_udp);
    frame[from..].copy_from_slice(&after[head.len()..]);
}

const fn checksum_at(protocol: u8) -> usize {
    if protocol == 17 { 6 } else { 16 }
}

/// Makes one side of the packet another.
pub fn rewrite(frame: &mut [u8], view: &View, which: Which, to: Side) {
    let is_v6 = view.is_v6();
    let is_udp = view.source.protocol == 17;
    let old = frame.to_vec();
    if view.kind == Kind::Segment {
        put_address(frame, view.ip, is_v6, which, to.addr);
        let port = view.transport + if which == Which::Source { 0 } else { 2 };
        frame[port..port + 2].copy_from_slice(&to.port.to_be_bytes());
        let field = view.transport + checksum_at(view.source.protocol);
        keep_transport(&old, frame, view.ip, is_v6, view.transport, field, is_udp);
        return;
    }
    // The quoted packet went the other way.
    let (quoted, was) = match which {
        Which::Source => (Which::Destination, view.source),
        Which::Destination => (Which::Source, view.destination),
    };
    put_address(frame, view.quoted_ip, is_v6, quoted, to.addr);
    let port = view.quoted_transport + if quoted == Which::Source { 0 } else { 2 };
    frame[port..port + 2].copy_from_slice(&to.port.to_be_bytes());
    let field = view.quoted_transport + checksum_at(view.source.protocol);
    if field + 2 <= view.end.min(frame.len()) && field <= 1_023 {
        keep_transport(
            &old,
            frame,
            view.quoted_ip,
            is_v6,
            view.quoted_transport,
            field,
            is_udp,
        );
    }
    let outer = view.ip + address_at(is_v6, which);
    let was = octets(was.addr);
    if old[outer..outer + was.len()] == was {
        put_address(frame, view.ip, is_v6, which, to.addr);
    }
    // ICMP has no pseudo-header, ICMPv6 has one.
    let field = view.transport + 2;
    if is_v6 {
        keep_transport(&old, frame, view.ip, true, view.transport, field, false);
    } else {
        keep_sum(
            &old[view.transport..],
            &mut frame[view.transport..],
            2,
            false,
        );
    }
}

/// One hop less, and the MACs of the next one.
pub fn leave(frame: &mut [u8], view: &View, destination: [u8; 6], source: [u8; 6]) {
    frame[..6].copy_from_slice(&destination);
    frame[6..12].copy_from_slice(&source);
    if view.is_v6() {
        frame[view.ip + 7] -= 1;
    } else {
        let old = frame[view.ip..view.ip + 20].to_vec();
        frame[view.ip + 8] -= 1;
        keep_sum(&old, &mut frame[view.ip..view.ip + 20], 10, false);
    }
}

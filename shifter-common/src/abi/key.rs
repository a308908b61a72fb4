//! The key of VIPs and backends: family, address, port, protocol.

use core::mem::size_of;

/// 20 bytes without padding. An IPv4 address lies in the first four bytes of
/// `addr`, the rest zero, and `family` tells it from an IPv6 address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AddressKey {
    /// Network order.
    pub addr: [u8; 16],
    /// Network order.
    pub port: [u8; 2],
    /// IANA protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
}

const _: () = assert!(size_of::<AddressKey>() == 20);

//! The reference program's maps; its side of them is `shifter-ebpf/src/bench/maps.rs`.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use shifter::datapath::NextHopImage;
use shifter_common::abi::AddressKey;

use super::frames::{BACKENDS, Kind, client};
use crate::bench::object::{Object, delete};

/// Slots of a ring.
const RING_SLOTS: u32 = 65_537;
/// Services that there is room for.
const SERVICES: u32 = 8;
/// Backends that there is room for.
const BACKEND_ELEMENTS: u32 = 64;

/// See `Destination` there.
#[repr(C)]
#[derive(Clone, Copy)]
struct Destination {
    addr: [u8; 16],
    macs: [[u8; 6]; 2],
    ifindex: u32,
    port: [u8; 2],
    pad: [u8; 6],
}

const _: () = assert!(size_of::<Destination>() == 40);

/// See `Tuple` there.
#[repr(C)]
#[derive(Clone, Copy)]
struct Tuple {
    source: [u8; 16],
    destination: [u8; 16],
    ports: [[u8; 2]; 2],
    protocol: u32,
}

const _: () = assert!(size_of::<Tuple>() == 40);

/// A service of the reference program or of the bare NAT.
pub struct Service<'a> {
    /// Below 8.
    pub number: u32,
    pub vip: SocketAddr,
    pub is_udp: bool,
    /// Each with where its packets leave.
    pub backends: &'a [(SocketAddr, NextHopImage)],
    /// Where packets to clients leave.
    pub to_clients: NextHopImage,
}

impl Service<'_> {
    /// Writes it into the maps of an object.
    pub fn put(&self, object: &Object) -> Result<()> {
        let elements = object.mapped::<Destination>("REF_BACKENDS", BACKEND_ELEMENTS)?;
        let ring = object.mapped::<u32>("REF_RINGS", SERVICES * RING_SLOTS)?;
        let first = self.number * BACKENDS as u32;
        for (i, (backend, hop)) in self.backends.iter().enumerate() {
            elements.write(first + i as u32, destination_of(*backend, hop));
            let reply = destination_of(self.vip, &self.to_clients);
            object.put("REF_REPLIES", key(*backend, self.is_udp), reply)?;
        }
        for slot in 0..RING_SLOTS {
            let turn = slot % self.backends.len() as u32;
            ring.write(self.number * RING_SLOTS + slot, first + turn);
        }
        object.put("REF_VIPS", key(self.vip, self.is_udp), self.number)
    }
}

/// Forgets the pins of the first `count` flows.
pub fn forget(object: &Object, kind: Kind, count: u32) -> Result<()> {
    let pins = object.map("REF_PINS")?;
    let destination = key(kind.vip(), kind.is_udp);
    for flow in 0..count {
        let source = key(client(kind.family, flow), kind.is_udp);
        let tuple = Tuple {
            source: source.addr,
            destination: destination.addr,
            ports: [source.port, destination.port],
            protocol: u32::from(source.protocol),
        };
        delete(pins, &tuple);
    }
    Ok(())
}

fn destination_of(addr: SocketAddr, hop: &NextHopImage) -> Destination {
    Destination {
        addr: bytes(addr.ip()),
        macs: [hop.destination, hop.source],
        ifindex: hop.ifindex,
        port: addr.port().to_be_bytes(),
        pad: [0; 6],
    }
}

fn key(addr: SocketAddr, is_udp: bool) -> AddressKey {
    AddressKey {
        addr: bytes(addr.ip()),
        port: addr.port().to_be_bytes(),
        protocol: if is_udp { 17 } else { 6 },
        family: if addr.is_ipv4() { 4 } else { 6 },
    }
}

fn bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
    }
}

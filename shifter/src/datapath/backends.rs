//! Backends, next hops, and the bits of what is in use.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use aya::maps::{HashMap as BpfHashMap, MapData, MapError};
use shifter_common::{
    abi::{self, AddressKey, Backend, NextHop, NextHopKey, PROTOCOL_TCP, PROTOCOL_UDP, backend::*},
    known,
};

use super::{
    BackendId, BackendImage, DatapathError, NextHopImage, Placement, allocator::Numbers,
    load::failed, memory::MappedArray,
};
use crate::model::{Protocol, Vip};

/// Makes a `repr(C)` map struct without padding a value for aya.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Plain<T: Copy>(pub T);

// SAFETY: used only with the map structs of `shifter_common::abi`, which are
// `repr(C)` with explicit padding and valid for every bit pattern.
unsafe impl<T: Copy + 'static> aya::Pod for Plain<T> {}

/// Whether a removal failed because there was nothing to remove: where an agent
/// was killed half-way.
pub fn is_not_there(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}

/// An address as map keys hold it, and its family.
pub fn address_bytes(ip: IpAddr) -> ([u8; 16], u8) {
    match ip {
        IpAddr::V4(ip) => (shifter_common::packet::parse::widen(ip.octets()), 4),
        IpAddr::V6(ip) => (ip.octets(), 6),
    }
}

/// IANA number.
pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => PROTOCOL_TCP,
        Protocol::Udp => PROTOCOL_UDP,
    }
}

/// Key of a VIP or backend.
pub fn key_of(addr: SocketAddr, protocol: Protocol) -> AddressKey {
    let (bytes, family) = address_bytes(addr.ip());
    AddressKey {
        addr: bytes,
        port: addr.port().to_be_bytes(),
        protocol: protocol_number(protocol),
        family,
    }
}

/// What a key stands for.
pub fn addr_of(key: &AddressKey) -> (SocketAddr, Protocol) {
    let ip = if key.family == 4 {
        let [a, b, c, d, ..] = key.addr;
        IpAddr::from([a, b, c, d])
    } else {
        IpAddr::from(key.addr)
    };
    let protocol = if key.protocol == PROTOCOL_UDP {
        Protocol::Udp
    } else {
        Protocol::Tcp
    };
    (SocketAddr::new(ip, u16::from_be_bytes(key.port)), protocol)
}

/// A VIP as its key.
pub fn vip_key(vip: &Vip) -> AddressKey {
    key_of(vip.addr, vip.protocol)
}

/// What VIPs and backends use, as bits; each bit with the number of its users.
pub struct Known {
    words: MappedArray<u64>,
    users: HashMap<u32, u32>,
}

/// Whose bits.
#[derive(Clone, Copy)]
pub enum Whose {
    Vip,
    Backend,
}

impl Whose {
    fn bits(self, key: &AddressKey) -> [u32; 2] {
        match self {
            Self::Vip => known::bits_of(key, known::VIP_PORTS, known::VIP_HASHES),
            Self::Backend => known::bits_of(key, known::BACKEND_PORTS, known::BACKEND_HASHES),
        }
    }
}

impl Known {
    pub fn new(words: MappedArray<u64>) -> Self {
        Self {
            words,
            users: HashMap::new(),
        }
    }

    /// Sets the bits of an address, before packets are to find it.
    pub fn add(&mut self, whose: Whose, key: &AddressKey) {
        for bit in whose.bits(key) {
            *self.users.entry(bit).or_default() += 1;
            let word = bit / 64;
            self.words
                .write(word, self.words.read(word) | 1 << (bit % 64));
        }
    }

    /// Clears those bits that nobody else uses.
    pub fn remove(&mut self, whose: Whose, key: &AddressKey) {
        for bit in whose.bits(key) {
            let Some(users) = self.users.get_mut(&bit) else {
                continue;
            };
            *users -= 1;
            if *users == 0 {
                self.users.remove(&bit);
                let word = bit / 64;
                self.words
                    .write(word, self.words.read(word) & !(1 << (bit % 64)));
            }
        }
    }
}

/// Next hops by what they say; an id is immutable while it is valid.
pub struct NextHops {
    slots: MappedArray<NextHop>,
    ids: BpfHashMap<MapData, Plain<NextHopKey>, u32>,
    known: HashMap<NextHopImage, u32>,
    /// What `ids` holds.
    offered: HashMap<NextHopKey, u32>,
    numbers: Numbers,
}

fn next_hop_key(hop: &NextHopImage) -> NextHopKey {
    NextHopKey {
        ifindex: hop.ifindex,
        destination: hop.destination,
        pad: [0; 2],
    }
}

impl NextHops {
    /// Takes over what is there.
    pub fn adopt(
        slots: MappedArray<NextHop>,
        ids: BpfHashMap<MapData, Plain<NextHopKey>, u32>,
    ) -> Self {
        let mut known = HashMap::new();
        for id in 1..slots.count() {
            let slot = slots.read(id);
            if slot.ifindex != 0 {
                known.insert(
                    NextHopImage {
                        ifindex: slot.ifindex,
                        mtu: slot.mtu,
                        source: slot.source,
                        destination: slot.destination,
                    },
                    id,
                );
            }
        }
        let numbers = Numbers::new(slots.count(), known.values().copied());
        let offered = ids.iter().flatten().map(|(key, id)| (key.0, id));
        Self {
            offered: offered.collect(),
            slots,
            ids,
            known,
            numbers,
        }
    }

    /// Id of a next hop, made where it is new.
    pub fn intern(&mut self, hop: &NextHopImage) -> Result<u32, DatapathError> {
        if let Some(id) = self.known.get(hop) {
            return Ok(*id);
        }
        let id = self.numbers.take().ok_or(DatapathError::Full {
            what: "next hops",
            limit: u64::from(abi::MAX_NEXT_HOPS),
            remedy: "put a router between the backends and this host",
        })?;
        let slot = NextHop {
            ifindex: hop.ifindex,
            mtu: hop.mtu,
            source: hop.source,
            destination: hop.destination,
            pad: 0,
        };
        // `ifindex` makes the slot valid: last.
        self.slots.write(id, NextHop { ifindex: 0, ..slot });
        self.slots.write(id, slot);
        self.known.insert(*hop, id);
        Ok(id)
    }

    /// As [`NextHops::intern`], for one that packets to clients look up by its
    /// interface and MAC. A backend's is named by its id alone: with the MTU of
    /// its route it may be another than that of the neighbour it goes to.
    pub fn offer(&mut self, hop: &NextHopImage) -> Result<(), DatapathError> {
        let id = self.intern(hop)?;
        let key = next_hop_key(hop);
        // A link that has its old MTU or MAC again is led back to its old record.
        if self.offered.get(&key) != Some(&id) {
            self.ids
                .insert(Plain(key), id, 0)
                .map_err(|error| failed("writing a next hop", error, ""))?;
            self.offered.insert(key, id);
        }
        Ok(())
    }

    /// Forgets all next hops but `wanted` and those whose id is in `held`.
    /// Returns whether any went: the caller raises the route generation.
    pub fn retain(&mut self, wanted: &[NextHopImage], held: &[u32]) -> bool {
        let wanted: HashSet<&NextHopImage> = wanted.iter().collect();
        let held: HashSet<u32> = held.iter().copied().collect();
        let offers: HashSet<NextHopKey> = wanted.iter().map(|hop| next_hop_key(hop)).collect();
        let ids = &mut self.ids;
        self.offered.retain(|key, _| {
            let is_wanted = offers.contains(key);
            if !is_wanted {
                // The key may be gone already: nothing is lost then.
                let _ = ids.remove(&Plain(*key));
            }
            is_wanted
        });
        let gone: Vec<_> = self
            .known
            .iter()
            .filter(|(hop, id)| !wanted.contains(*hop) && !held.contains(*id))
            .map(|(hop, id)| (*hop, *id))
            .collect();
        for (hop, id) in &gone {
            self.known.remove(hop);
            self.slots.write(
                *id,
                NextHop {
                    ifindex: 0,
                    ..self.slots.read(*id)
                },
            );
            self.numbers.give_back(*id);
        }
        !gone.is_empty()
    }

    /// Before a grace period.
    pub fn ripen(&mut self) {
        self.numbers.ripen();
    }

    /// After a grace period.
    pub fn reclaim(&mut self) {
        self.numbers.reclaim();
    }

    pub fn used(&self) -> u64 {
        self.numbers.used()
    }
}

/// Records of backends.
pub struct Backends {
    pub records: MappedArray<Backend>,
    pub ids: BpfHashMap<MapData, Plain<AddressKey>, u32>,
}

impl Backends {
    /// Writes a record; the address of an id in use never changes.
    pub fn put(
        &mut self,
        id: BackendId,
        image: &BackendImage,
        next_hops: &mut NextHops,
        known: &mut Known,
    ) -> Result<(), DatapathError> {
        let key = key_of(image.addr, image.protocol);
        let index = u32::from(id);
        let old = self.records.read(index);
        let is_new = old.flags & BACKEND_USED == 0;
        if !is_new && old.key != key {
            return Err(DatapathError::Refused(format!(
                "backend id {id} belongs to {}: it must be freed before {} takes it",
                addr_of(&old.key).0,
                image.addr
            )));
        }
        let (mut flags, netns, next_hop) = match image.placement {
            Placement::Host => (BACKEND_SOCKETS, NETNS_CURRENT, 0),
            Placement::Kernel { netns: Some(netns) } => (BACKEND_SOCKETS, netns, 0),
            Placement::Kernel { netns: None } => (0, NETNS_CURRENT, 0),
            Placement::NextHop(hop) => (BACKEND_REDIRECT, NETNS_CURRENT, next_hops.intern(&hop)?),
        };
        flags |= BACKEND_USED;
        if image.maint {
            flags |= BACKEND_MAINT;
        }
        if image.down {
            flags |= BACKEND_DOWN;
        }
        // Word by word: a packet that reads in between sees the old or the new
        // way to the same server.
        let record = self.records.at(index);
        // SAFETY: within the mapping; single aligned words.
        unsafe {
            if is_new {
                std::ptr::write_volatile(&raw mut (*record).key, key);
            }
            std::ptr::write_volatile(&raw mut (*record).next_hop, next_hop);
            std::ptr::write_volatile(&raw mut (*record).netns, netns);
        }
        // Also where an agent was killed between the two.
        if !self
            .ids
            .get(&Plain(key), 0)
            .is_ok_and(|there| there == index)
        {
            self.ids
                .insert(Plain(key), index, 0)
                .map_err(|error| failed(format!("writing backend {}", image.addr), error, ""))?;
        }
        if is_new {
            known.add(Whose::Backend, &key);
        }
        // SAFETY: as above. In use from here on.
        unsafe { std::ptr::write_volatile(&raw mut (*record).flags, flags) };
        Ok(())
    }

    pub fn delete(&mut self, id: BackendId, known: &mut Known) -> Result<(), DatapathError> {
        let index = u32::from(id);
        let record = self.records.read(index);
        if record.flags & BACKEND_USED == 0 {
            return Ok(());
        }
        let (addr, _) = addr_of(&record.key);
        match self.ids.remove(&Plain(record.key)) {
            Ok(()) => {}
            Err(error) if is_not_there(&error) => {}
            Err(error) => return Err(failed(format!("removing backend {addr}"), error, "")),
        }
        known.remove(Whose::Backend, &record.key);
        self.records.write(index, Backend { flags: 0, ..record });
        Ok(())
    }

    /// Ids in use.
    pub fn used(&self) -> impl Iterator<Item = (BackendId, Backend)> + '_ {
        (1..self.records.count()).filter_map(|id| {
            let record = self.records.read(id);
            (record.flags & BACKEND_USED != 0).then_some((id as BackendId, record))
        })
    }
}

//! The host's links, addresses and neighbours as last read. Pure.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::Serialize;

use super::{
    LinkEvent,
    netlink::{self, attributes, text, u16_at, u32_at},
};

const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;
const IFF_RUNNING: u32 = 0x40;
const IFF_NOARP: u32 = 0x80;
/// REACHABLE, STALE, DELAY, PROBE, PERMANENT: the MAC may be used.
const NUD_USABLE: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x80;
const NUD_STALE: u16 = 0x04;
/// INCOMPLETE, REACHABLE, DELAY, PROBE, NOARP, PERMANENT: asking again is of no use.
const NUD_SETTLED: u16 = 0x01 | 0x02 | 0x08 | 0x10 | 0x40 | 0x80;
const NTF_PROXY: u8 = 0x8;
/// Entries of IPv6's routing cache are no change of a route.
const RTM_F_CLONED: u32 = 0x200;

/// How somebody's XDP program is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    Native,
    Generic,
    Offloaded,
    /// More than one program in different modes.
    Multiple,
}

/// The XDP slot of an interface, taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct XdpSlot {
    pub mode: XdpMode,
    pub program_id: u32,
}

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Link {
    pub name: String,
    pub index: u32,
    /// `None` where the interface has no 6-byte MAC.
    pub mac: Option<[u8; 6]>,
    /// Longest layer-3 packet in bytes.
    pub mtu: u32,
    /// Set up by its owner.
    pub up: bool,
    /// Up and with a carrier.
    pub running: bool,
    pub loopback: bool,
    /// Neighbours are not resolved here.
    pub no_arp: bool,
    /// "veth", "bridge", "bond", "tun", ...; `None` for hardware and loopback.
    pub kind: Option<String>,
    /// Namespace id behind it: where the other end of a veth is.
    pub netns: Option<i32>,
    /// Index of the bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// Index of the lower link or of the veth's other end (in its namespace).
    pub peer: Option<u32>,
    pub xdp: Option<XdpSlot>,
}

impl Link {
    /// Whether the other end leads into another namespace, and which.
    pub fn namespace_behind(&self) -> Option<i32> {
        match self.kind.as_deref() {
            Some("veth" | "netkit") => self.netns,
            _ => None,
        }
    }

    /// Reads the body of RTM_NEWLINK; `None` for another family's view of a link.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        if *payload.first()? != libc::AF_UNSPEC as u8 {
            return None;
        }
        let flags = u32_at(payload, 8)?;
        let mut link = Self {
            index: u32_at(payload, 4)?,
            up: flags & IFF_UP != 0,
            running: flags & IFF_UP != 0 && flags & IFF_RUNNING != 0,
            loopback: flags & IFF_LOOPBACK != 0,
            no_arp: flags & (IFF_NOARP | IFF_LOOPBACK) != 0,
            ..Self::default()
        };
        for (kind, value) in attributes(payload.get(16..)?) {
            match kind {
                1 => link.mac = value.try_into().ok(),
                3 => link.name = text(value),
                4 => link.mtu = u32_at(value, 0)?,
                5 => link.peer = u32_at(value, 0).filter(|index| *index != 0),
                10 => link.master = u32_at(value, 0).filter(|index| *index != 0),
                18 => link.kind = attributes(value).find(|a| a.0 == 1).map(|a| text(a.1)),
                37 => link.netns = u32_at(value, 0).map(|id| id as i32).filter(|id| *id >= 0),
                43 => link.xdp = parse_xdp(value),
                _ => {}
            }
        }
        Some(link)
    }
}

/// Reads IFLA_XDP; `None` when the slot is free.
fn parse_xdp(value: &[u8]) -> Option<XdpSlot> {
    let mut mode = None;
    let mut program_id = 0;
    for (kind, value) in attributes(value) {
        match kind {
            2 => {
                mode = match *value.first()? {
                    1 => Some(XdpMode::Native),
                    2 => Some(XdpMode::Generic),
                    3 => Some(XdpMode::Offloaded),
                    4 => Some(XdpMode::Multiple),
                    _ => None,
                }
            }
            4..=7 if program_id == 0 => program_id = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(XdpSlot {
        mode: mode?,
        program_id,
    })
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Neighbour {
    mac: Option<[u8; 6]>,
    state: u16,
}

impl Neighbour {
    /// Its MAC, where it may be used.
    pub(super) fn usable(&self) -> Option<[u8; 6]> {
        self.mac
            .filter(|mac| self.state & NUD_USABLE != 0 && mac[0] & 1 == 0 && *mac != [0; 6])
    }

    /// Whether nobody has heard of it for a while.
    pub(super) fn is_stale(&self) -> bool {
        self.state & NUD_STALE != 0
    }

    /// Whether the kernel should be asked to look for it (again).
    pub(super) fn wants_solicit(&self) -> bool {
        self.state & NUD_SETTLED == 0
    }

    /// Reads the body of RTM_NEWNEIGH: interface, address, entry.
    pub(super) fn parse(payload: &[u8]) -> Option<(u32, IpAddr, Self)> {
        let family = i32::from(*payload.first()?);
        let is_ip = family == libc::AF_INET || family == libc::AF_INET6;
        if !is_ip || *payload.get(10)? & NTF_PROXY != 0 {
            return None;
        }
        let mut neighbour = Self {
            mac: None,
            state: u16_at(payload, 8)?,
        };
        let mut address = None;
        for (kind, value) in attributes(payload.get(12..)?) {
            match kind {
                1 => address = ip(value),
                2 => neighbour.mac = value.try_into().ok(),
                _ => {}
            }
        }
        Some((u32_at(payload, 4)?, address?, neighbour))
    }
}

/// An address of 4 or 16 bytes.
pub(super) fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

/// What a batch of messages changed.
#[derive(Default, Debug, PartialEq, Eq)]
pub(super) struct Effects {
    /// Something that the agent can see.
    pub changed: bool,
    /// Something that may lead packets elsewhere.
    pub rerouted: bool,
    pub events: Vec<LinkEvent>,
}

impl Effects {
    fn reroute(&mut self) {
        self.changed = true;
        self.rerouted = true;
    }
}

/// Everything that was read.
#[derive(Default, Debug)]
pub(super) struct Snapshot {
    pub links: HashMap<u32, Link>,
    /// `(interface, address)` to prefix length.
    pub addresses: HashMap<(u32, IpAddr), u8>,
    pub neighbours: HashMap<(u32, IpAddr), Neighbour>,
}

impl Snapshot {
    pub(super) fn link(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// Takes in one message of the kernel; events are for `attached` names.
    pub(super) fn apply(
        &mut self,
        kind: u16,
        payload: &[u8],
        attached: &[String],
        effects: &mut Effects,
    ) {
        match kind {
            netlink::RTM_NEWLINK => self.put_link(payload, attached, effects),
            netlink::RTM_DELLINK => self.delete_link(payload, attached, effects),
            netlink::RTM_NEWADDR | netlink::RTM_DELADDR => {
                self.put_address(kind == netlink::RTM_NEWADDR, payload, effects);
            }
            netlink::RTM_NEWNEIGH | netlink::RTM_DELNEIGH => {
                self.put_neighbour(kind == netlink::RTM_NEWNEIGH, payload, effects);
            }
            netlink::RTM_NEWROUTE | netlink::RTM_DELROUTE
                if u32_at(payload, 8).is_some_and(|flags| flags & RTM_F_CLONED == 0) =>
            {
                effects.reroute();
            }
            netlink::RTM_NEWRULE
            | netlink::RTM_DELRULE
            | netlink::RTM_NEWNEXTHOP
            | netlink::RTM_DELNEXTHOP => effects.reroute(),
            _ => {}
        }
    }

    fn put_link(&mut self, payload: &[u8], attached: &[String], effects: &mut Effects) {
        let Some(link) = Link::parse(payload) else {
            return;
        };
        let old = self.links.insert(link.index, link.clone());
        if old.as_ref() == Some(&link) {
            return;
        }
        let only_xdp = old.as_ref().is_some_and(|old| {
            let mut same = old.clone();
            same.xdp = link.xdp;
            same == link
        });
        if only_xdp {
            effects.changed = true;
        } else {
            effects.reroute();
        }
        link_events(old.as_ref(), &link, attached, &mut effects.events);
    }

    fn delete_link(&mut self, payload: &[u8], attached: &[String], effects: &mut Effects) {
        // A bridge tells of a port that leaves it as family AF_BRIDGE.
        if payload.first() != Some(&(libc::AF_UNSPEC as u8)) {
            return;
        }
        let Some(old) = u32_at(payload, 4).and_then(|index| self.links.remove(&index)) else {
            return;
        };
        self.addresses.retain(|key, _| key.0 != old.index);
        self.neighbours.retain(|key, _| key.0 != old.index);
        effects.reroute();
        if attached.contains(&old.name) {
            effects.events.push(LinkEvent::Vanished {
                name: old.name,
                ifindex: old.index,
            });
        }
    }

    fn put_address(&mut self, new: bool, payload: &[u8], effects: &mut Effects) {
        let (Some(&prefix), Some(index)) = (payload.get(1), u32_at(payload, 4)) else {
            return;
        };
        let all = || attributes(payload.get(8..).unwrap_or(&[]));
        // IFA_LOCAL; on a point-to-point link IFA_ADDRESS is the other end's.
        let local = all()
            .find(|a| a.0 == 2)
            .or_else(|| all().find(|a| a.0 == 1));
        let Some(address) = local.and_then(|a| ip(a.1)) else {
            return;
        };
        let old = match new {
            true => self.addresses.insert((index, address), prefix),
            false => self.addresses.remove(&(index, address)),
        };
        if old != new.then_some(prefix) {
            effects.reroute();
        }
    }

    fn put_neighbour(&mut self, new: bool, payload: &[u8], effects: &mut Effects) {
        if payload.first() == Some(&(libc::AF_BRIDGE as u8)) {
            // A bridge learnt where a MAC is: a backend's namespace may be known now.
            effects.changed = true;
            return;
        }
        let Some((index, address, neighbour)) = Neighbour::parse(payload) else {
            return;
        };
        let old = match new {
            true => self.neighbours.insert((index, address), neighbour),
            false => self.neighbours.remove(&(index, address)),
        };
        let now = neighbour.usable().filter(|_| new);
        if old.and_then(|old| old.usable()) != now {
            effects.reroute();
        }
    }

    /// What happened to attached links between `self` and `newer`, which was read anew.
    pub(super) fn events_to(&self, newer: &Self, attached: &[String]) -> Vec<LinkEvent> {
        let mut events = Vec::new();
        for old in self.links.values() {
            if !newer.links.contains_key(&old.index) && attached.contains(&old.name) {
                events.push(LinkEvent::Vanished {
                    name: old.name.clone(),
                    ifindex: old.index,
                });
            }
        }
        for link in newer.links.values() {
            link_events(self.links.get(&link.index), link, attached, &mut events);
        }
        events
    }
}

/// Events of one link that was `old` and is `link` now.
fn link_events(old: Option<&Link>, link: &Link, attached: &[String], events: &mut Vec<LinkEvent>) {
    let (name, ifindex) = (link.name.clone(), link.index);
    let is_attached = attached.contains(&link.name);
    let renamed = old.filter(|old| old.name != link.name);
    if let Some(old) = renamed
        && (is_attached || attached.contains(&old.name))
    {
        events.push(LinkEvent::Renamed {
            from: old.name.clone(),
            to: name.clone(),
            ifindex,
        });
    }
    if !is_attached {
        return;
    }
    if old.is_none() || renamed.is_some() {
        let name = name.clone();
        events.push(LinkEvent::Appeared { name, ifindex });
    }
    if old.is_some_and(|old| old.xdp != link.xdp) {
        let name = name.clone();
        events.push(LinkEvent::XdpChanged { name, ifindex });
    }
    match (old.is_some_and(|old| old.running), link.running) {
        (false, true) => events.push(LinkEvent::Up { name, ifindex }),
        (true, false) => events.push(LinkEvent::Down { name, ifindex }),
        _ => {}
    }
}

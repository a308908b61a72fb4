//! What notices of the kernel change in the picture, message by message. Bonds
//! are tried here only: the kernel that the scenarios run on has no driver for
//! them, so the messages are laid out by hand as `linux/if_link.h` has them.

use std::net::IpAddr;

use super::{
    LinkEvent,
    netlink::{self, Request},
    placement::next_hops_in,
    snapshot::{Effects, Snapshot},
};

const IFF_UP: u32 = 0x1;
const IFF_RUNNING: u32 = 0x40;
const IFF_MASTER: u32 = 0x400;
const IFF_SLAVE: u32 = 0x800;
const UP: u32 = IFF_UP | IFF_RUNNING;

const NUD_REACHABLE: u16 = 0x02;
const NUD_STALE: u16 = 0x04;
const NUD_FAILED: u16 = 0x20;

const BOND: u32 = 7;
const FIRST: u32 = 3;
const SECOND: u32 = 4;
const ROUTER: [u8; 6] = [2, 0, 0, 0, 9, 9];

/// One link as the kernel tells of it.
#[derive(Clone)]
struct Told {
    index: u32,
    name: &'static str,
    flags: u32,
    mac: [u8; 6],
    mtu: u32,
    master: Option<u32>,
    /// A bond's active member.
    bond: Option<u32>,
    /// Program in the XDP slot.
    xdp: Option<u32>,
}

fn card(index: u32, name: &'static str) -> Told {
    Told {
        index,
        name,
        flags: UP,
        mac: [2, 0, 0, 0, 0, index as u8],
        mtu: 1_500,
        master: None,
        bond: None,
        xdp: None,
    }
}

fn member(index: u32, name: &'static str) -> Told {
    Told {
        flags: UP | IFF_SLAVE,
        master: Some(BOND),
        ..card(index, name)
    }
}

fn bond(active: u32) -> Told {
    Told {
        flags: UP | IFF_MASTER,
        bond: Some(active),
        ..card(BOND, "bond0")
    }
}

impl Told {
    /// `struct ifinfomsg` and its attributes.
    fn message(&self) -> Vec<u8> {
        let mut body = [0; 16];
        body[4..8].copy_from_slice(&self.index.to_ne_bytes());
        body[8..12].copy_from_slice(&self.flags.to_ne_bytes());
        let nested = |parts: Request| parts.payload().to_vec();
        let mut message = Request::new(0, 0, &body)
            .with(3, format!("{}\0", self.name).as_bytes())
            .with(1, &self.mac)
            .with(4, &self.mtu.to_ne_bytes());
        if let Some(master) = self.master {
            message = message.with(10, &master.to_ne_bytes());
        }
        if let Some(active) = self.bond {
            // IFLA_INFO_DATA with IFLA_BOND_ACTIVE_SLAVE.
            let data = nested(Request::new(0, 0, &[]).with(2, &active.to_ne_bytes()));
            let info = Request::new(0, 0, &[]).with(1, b"bond\0").with(2, &data);
            message = message.with(18, &nested(info));
        }
        let mode = [u8::from(self.xdp.is_some())];
        let mut slot = Request::new(0, 0, &[]).with(2, &mode);
        if let Some(program) = self.xdp {
            slot = slot.with(4, &program.to_ne_bytes());
        }
        message.with(43, &nested(slot)).payload().to_vec()
    }
}

/// A picture that notices are put into; `bond0` and `eth9` are configured.
struct Picture(Snapshot);

impl Picture {
    fn of(links: &[Told]) -> Self {
        let mut picture = Self(Snapshot::default());
        for link in links {
            picture.link(link);
        }
        picture
    }

    fn take(&mut self, kind: u16, payload: &[u8]) -> Effects {
        let mut effects = Effects::default();
        self.0.apply(kind, payload, &attached(), &mut effects);
        effects
    }

    fn link(&mut self, link: &Told) -> Effects {
        self.take(netlink::RTM_NEWLINK, &link.message())
    }

    fn neighbour(&mut self, interface: u32, mac: [u8; 6], state: u16) -> Effects {
        let mut body = [0; 12];
        body[0] = libc::AF_INET as u8;
        body[4..8].copy_from_slice(&interface.to_ne_bytes());
        body[8..10].copy_from_slice(&state.to_ne_bytes());
        let message = Request::new(0, 0, &body)
            .with(1, &[10, 0, 0, 1])
            .with(2, &mac);
        self.take(netlink::RTM_NEWNEIGH, message.payload())
    }

    /// Source and destination MAC, and MTU, of the only next hop.
    fn hop(&self) -> ([u8; 6], [u8; 6], u32) {
        let hops: Vec<_> = next_hops_in(&self.0, &attached()).into_iter().collect();
        assert_eq!(hops.len(), 1, "{hops:?}");
        (hops[0].source, hops[0].destination, hops[0].mtu)
    }
}

fn attached() -> Vec<String> {
    vec!["bond0".to_owned(), "eth9".to_owned()]
}

/// A bond of two with a router behind it.
fn bonded() -> Picture {
    let mut picture = Picture::of(&[bond(FIRST), member(FIRST, "eth1"), member(SECOND, "eth2")]);
    picture.neighbour(BOND, ROUTER, NUD_REACHABLE);
    picture
}

#[test]
fn a_member_that_joins_or_leaves_a_bond_reroutes_and_leaves_the_bonds_hook_alone() {
    let mut picture = bonded();
    let third = card(5, "eth3");
    assert!(picture.link(&third).rerouted);
    let joined = picture.link(&member(5, "eth3"));
    assert_eq!((joined.rerouted, joined.events), (true, vec![]));
    assert_eq!(picture.0.links[&5].master, Some(BOND));
    let left = picture.link(&third);
    assert_eq!((left.rerouted, left.events), (true, vec![]));
    assert_eq!(picture.0.links[&5].master, None);
    let gone = picture.take(netlink::RTM_DELLINK, &third.message());
    assert_eq!((gone.rerouted, gone.events), (true, vec![]));
    assert!(!picture.0.links.contains_key(&5));
    assert_eq!(picture.hop(), (bond(FIRST).mac, ROUTER, 1_500));
}

#[test]
fn another_active_member_changes_nothing_unless_the_bonds_mac_goes_with_it() {
    let mut picture = bonded();
    // The bond sends by whichever is active: its next hops stay.
    assert_eq!(picture.link(&bond(SECOND)), Effects::default());
    // fail_over_mac=active: the bond takes the MAC of the member.
    let moved = Told {
        mac: member(SECOND, "eth2").mac,
        ..bond(SECOND)
    };
    let effects = picture.link(&moved);
    assert_eq!((effects.rerouted, effects.events), (true, vec![]));
    assert_eq!(picture.hop(), (moved.mac, ROUTER, 1_500));
}

#[test]
fn a_bond_without_a_member_that_carries_is_down_until_one_does() {
    let mut picture = bonded();
    let named = || ("bond0".to_owned(), BOND);
    let lost = Told {
        flags: IFF_UP | IFF_MASTER,
        ..bond(FIRST)
    };
    let (name, ifindex) = named();
    let effects = picture.link(&lost);
    assert_eq!(effects.events, [LinkEvent::Down { name, ifindex }]);
    assert!(effects.rerouted);
    let (name, ifindex) = named();
    let effects = picture.link(&bond(SECOND));
    assert_eq!(effects.events, [LinkEvent::Up { name, ifindex }]);
}

#[test]
fn a_configured_card_that_joins_a_bond_keeps_its_hook_and_leaves_with_another_mac() {
    let mut picture = Picture::of(&[bond(FIRST), card(9, "eth9")]);
    picture.neighbour(9, ROUTER, NUD_REACHABLE);
    let joined = Told {
        mac: bond(FIRST).mac,
        ..member(9, "eth9")
    };
    let effects = picture.link(&joined);
    assert_eq!((effects.rerouted, effects.events), (true, vec![]));
    assert_eq!(picture.hop(), (bond(FIRST).mac, ROUTER, 1_500));
}

#[test]
fn another_mtu_is_that_of_the_next_hops_at_once() {
    let mut picture = bonded();
    let effects = picture.link(&Told {
        mtu: 1_400,
        ..bond(FIRST)
    });
    assert_eq!((effects.rerouted, effects.events), (true, vec![]));
    assert_eq!(picture.hop().2, 1_400);
}

#[test]
fn a_program_in_the_xdp_slot_is_an_event_and_no_reroute() {
    let mut picture = Picture::of(&[card(9, "eth9"), card(2, "eth0")]);
    let with = |index, name, xdp| Told {
        xdp,
        ..card(index, name)
    };
    for xdp in [Some(42), Some(43), None] {
        let effects = picture.link(&with(9, "eth9", xdp));
        let expected = LinkEvent::XdpChanged {
            name: "eth9".to_owned(),
            ifindex: 9,
        };
        assert_eq!(effects.events, [expected], "{xdp:?}");
        assert!(effects.changed && !effects.rerouted);
        // The kernel often tells the same twice.
        assert_eq!(
            picture.link(&with(9, "eth9", xdp)),
            Effects::default(),
            "{xdp:?}"
        );
    }
    let elsewhere = picture.link(&with(2, "eth0", Some(42)));
    assert_eq!(elsewhere.events, [], "nobody is attached there");
}

#[test]
fn a_neighbour_that_is_lost_takes_its_next_hop_with_it() {
    let mut picture = bonded();
    assert_eq!(
        picture.neighbour(BOND, ROUTER, NUD_STALE),
        Effects::default(),
        "its MAC may still be used"
    );
    assert!(picture.neighbour(BOND, [0; 6], NUD_FAILED).rerouted);
    assert!(next_hops_in(&picture.0, &attached()).is_empty());
    let other = [2, 0, 0, 0, 9, 8];
    assert!(picture.neighbour(BOND, other, NUD_REACHABLE).rerouted);
    assert_eq!(picture.hop().1, other);
}

#[test]
fn what_was_missed_between_two_pictures_is_told_in_the_right_words() {
    let attached = attached();
    let before = bonded();
    let renamed = Told {
        name: "old0",
        ..bond(FIRST)
    };
    let into = Told {
        name: "bond0",
        ..card(SECOND, "eth2")
    };
    let mut after = Picture::of(&[renamed, into]);
    after.neighbour(BOND, ROUTER, NUD_REACHABLE);
    let events = before.0.events_to(&after.0, &attached);
    let said = |wanted: &dyn Fn(&LinkEvent) -> bool| events.iter().filter(|e| wanted(e)).count();
    let is_renamed =
        |e: &LinkEvent| matches!(e, LinkEvent::Renamed { ifindex, .. } if *ifindex == BOND);
    let has_appeared =
        |e: &LinkEvent| matches!(e, LinkEvent::Appeared { ifindex, .. } if *ifindex == SECOND);
    assert_eq!(said(&is_renamed), 1, "{events:?}");
    assert_eq!(said(&has_appeared), 1, "{events:?}");
    let neighbour: IpAddr = [10, 0, 0, 1].into();
    assert!(after.0.neighbours.contains_key(&(BOND, neighbour)));
}

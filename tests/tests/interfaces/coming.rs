//! Interfaces that go down, away, by another name, and come back.

use std::time::Duration;

use shifter_tests::{
    agent::Settings,
    command::eventually,
    need,
    topology::{Family, Lab, Netns, Placement},
    traffic::{requests, server},
};

use crate::{goes_on, ip, rounds, start, storm, turn, watch::Watch};

/// What an owner does to a clients' interface that is there again.
const ADDRESSES: [&str; 5] = [
    "link set h0 up",
    "addr replace 10.71.0.1/24 dev h0",
    "addr replace 10.71.0.100/32 dev h0",
    "addr replace fd71::1/64 dev h0 nodad",
    "addr replace fd71::100/128 dev h0 nodad",
];

/// The client's side of a link that was made anew.
const CLIENT: [&str; 5] = [
    "link set c0 up",
    "addr add 10.71.0.2/24 dev c0",
    "addr add fd71::2/64 dev c0 nodad",
    "route add default via 10.71.0.1",
    "route add ::/0 via fd71::1",
];

fn down_and_up(lab: &Lab, watch: &mut Watch<'_>) {
    watch.followed(
        "set down",
        "Down",
        || ip(&lab.host, &["link set h0 down"]),
        |watch| !watch.is_up("h0"),
    );
    watch.followed(
        "set up",
        "Up",
        || ip(&lab.host, &ADDRESSES),
        |watch| watch.is_up("h0") && watch.is_whole("h0"),
    );
}

fn deleted_and_made_anew(lab: &Lab, watch: &mut Watch<'_>) {
    let is_gone = |watch: &mut Watch<'_>| watch.is_loud("interface h0 is not there");
    let delete = || ip(&lab.host, &["link del h0"]);
    watch.followed("deleted", "Vanished", delete, is_gone);
    let bare = format!(
        "link add h0 type veth peer name c0 netns {}",
        lab.client.name()
    );
    watch.followed(
        "made anew",
        "Appeared",
        || ip(&lab.host, &[&bare]),
        |watch| watch.is_whole("h0"),
    );
    // Packets that come before the programs are on are answered by this host, with
    // a reset: addresses after that.
    ip(&lab.client, &CLIENT);
    for (ns, interface) in [(&lab.client, "c0"), (&lab.host, "h0")] {
        ns.ethtool(interface, &["gro", "on"]).unwrap();
    }
    lab.client.ethtool("c0", &["tx", "off"]).unwrap();
    ip(&lab.host, &ADDRESSES);
    let is_up = eventually(Duration::from_secs(1), || watch.is_up("h0"));
    assert!(is_up, "{:#?}", watch.info());
}

fn renamed_away_and_back(lab: &Lab, watch: &mut Watch<'_>) {
    watch.followed(
        "renamed away",
        "Renamed",
        || ip(&lab.host, &["link set h0 name old0"]),
        |watch| {
            // Flows may need its programs.
            watch.is_whole("old0")
                && watch.is_loud("interface old0 is not in [agent] interfaces")
                && watch.is_loud("interface h0 is not there")
        },
    );
    watch.followed(
        "renamed back",
        "Appeared",
        || ip(&lab.host, &["link set old0 name h0"]),
        |watch| watch.is_whole("h0") && !watch.is_loud("interface"),
    );
    let why = watch.interface("h0").unwrap().why;
    assert!(!why.contains("attached as"), "{why}");
}

/// In one go, so that no name is free in between.
fn another_takes_the_name(lab: &Lab, watch: &mut Watch<'_>) {
    ip(&lab.host, &["link add spare type veth peer name spare2"]);
    watch.followed(
        "another one renamed into its name",
        "Appeared",
        || {
            ip(
                &lab.host,
                &["link set h0 name old0", "link set spare name h0"],
            );
        },
        |watch| watch.is_whole("h0") && watch.is_whole("old0"),
    );
    assert!(watch.is_loud("interface old0 is not in"));
    watch.followed(
        "two swap names",
        "Renamed",
        || {
            let swap = ["link set h0 name spare", "link set old0 name h0"];
            ip(&lab.host, &swap);
        },
        |watch| watch.is_whole("h0") && watch.is_loud("interface spare is not in"),
    );
    assert!(watch.is_whole("spare"), "flows may come in there");
    // Of one that is only left over no notice is needed: the pass of each second sees it.
    ip(&lab.host, &["link del spare2"]);
    let is_forgotten = eventually(Duration::from_secs(5), || {
        watch.interface("spare").is_none() && !watch.is_loud("interface")
    });
    assert!(is_forgotten, "{:#?}", watch.info());
}

fn moved_away_and_back(lab: &Lab, away: &Netns, watch: &mut Watch<'_>) {
    watch.followed(
        "moved to another namespace",
        "Vanished",
        || {
            let there = format!("link set h0 netns {}", away.name());
            ip(&lab.host, &[&there]);
        },
        |watch| watch.is_loud("interface h0 is not there"),
    );
    watch.followed(
        "moved back",
        "Appeared",
        || {
            let here = format!("link set h0 netns {}", lab.host.name());
            ip(away, &[&here]);
        },
        |watch| watch.is_whole("h0"),
    );
    ip(&lab.host, &ADDRESSES);
}

fn come_and_go(hook: &'static str, what: &'static str) {
    let _turn = turn();
    let lab = Lab::new(Placement::Container).unwrap();
    let away = Netns::create(format!("{}-away", lab.name())).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = start(&lab, Settings::hook(hook), "50%");
    let storm = storm(&lab, 0);
    let mut watch = Watch::start(what, &lab, &agent);
    for _ in 0..rounds() {
        down_and_up(&lab, &mut watch);
        goes_on(&storm);
        renamed_away_and_back(&lab, &mut watch);
        goes_on(&storm);
        another_takes_the_name(&lab, &mut watch);
        goes_on(&storm);
        moved_away_and_back(&lab, &away, &mut watch);
        goes_on(&storm);
        deleted_and_made_anew(&lab, &mut watch);
        goes_on(&storm);
    }
    ip(&lab.host, &["link add spare type veth peer name spare2"]);
    ip(
        &lab.host,
        &["link set h0 name old0", "link set spare name h0"],
    );
    storm.finish().unwrap().assert_untouched(what);
    let is_off = eventually(Duration::from_secs(20), || {
        watch.interface("old0").is_none() && !watch.is_loud("old0")
    });
    assert!(is_off, "nobody needs old0 any more: {:#?}", watch.info());
    watch.finish();
}

#[test]
fn an_interface_that_comes_and_goes_under_traffic_is_followed_under_tc() {
    need!();
    come_and_go("tc", "tc");
}

#[test]
fn an_interface_that_comes_and_goes_under_traffic_is_followed_under_xdp() {
    need!();
    come_and_go("xdp", "xdp");
}

/// Moves the host's addresses from one interface to another, and the routes
/// with them.
fn move_addresses(lab: &Lab, from: &str, to: &str) {
    let mut lines = Vec::new();
    for address in ["10.71.0.1/24", "10.71.0.100/32"] {
        lines.push(format!("addr del {address} dev {from}"));
        lines.push(format!("addr add {address} dev {to}"));
    }
    for address in ["fd71::1/64", "fd71::100/128"] {
        lines.push(format!("addr del {address} dev {from}"));
        lines.push(format!("addr add {address} dev {to} nodad"));
    }
    lab.host.ip(&lines).unwrap();
}

#[test]
fn an_interface_that_is_enslaved_to_a_bridge_and_released_goes_on_serving() {
    need!();
    let _turn = turn();
    let lab = Lab::new(Placement::Container).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = start(&lab, Settings::hook("tc"), "50%");
    let bridge = "link add br9 type bridge forward_delay 0 stp_state 0 mcast_snooping 0";
    ip(&lab.host, &[bridge, "link set br9 up"]);
    let storm = storm(&lab, 0);
    let mut watch = Watch::start("bridge", &lab, &agent);
    for _ in 0..rounds() {
        for (what, line, from, to) in [
            ("enslaved", "link set h0 master br9", "h0", "br9"),
            ("released", "link set h0 nomaster", "br9", "h0"),
        ] {
            let before = watch.route_generation();
            watch.followed(
                what,
                "",
                || ip(&lab.host, &[line]),
                |watch| watch.route_generation() != before,
            );
            move_addresses(&lab, from, to);
            assert!(watch.is_whole("h0"), "{what}: {:#?}", watch.info());
            goes_on(&storm);
            let chosen = || agent.new_flows("tcp4").unwrap().iter().sum::<u64>();
            let before = chosen();
            let vip = lab.vip(Family::V4);
            lab.client.run(|| requests::ask(vip, None)).unwrap();
            assert!(chosen() > before, "{what}: new flows are chosen");
        }
    }
    storm.finish().unwrap().assert_untouched("bridge");
    watch.finish();
}

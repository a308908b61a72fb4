//! Where packets leave: MACs, neighbours, routes and MTUs that change under
//! flows that are redirected past the kernel.

use std::{fs, time::Duration};

use shifter_common::abi::NextHop;
use shifter_tests::{
    agent::Settings,
    command::eventually,
    need,
    topology::{Family, Lab, Netns, Options, Placement, Side},
    traffic::{bulk, server, storm::Storm},
};

use crate::{
    goes_on, ip, rounds, start, storm, turn,
    watch::{Watch, index_of},
};

/// A lab whose clients are behind a router and whose servers are other hosts'.
fn routed(backend_router: bool) -> Lab {
    Lab::with(Options {
        client_router: true,
        backend_router,
        ..Options::new(Placement::RemoteOther)
    })
    .unwrap()
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Another MAC, which neighbours are told of: gratuitous ARP and unsolicited
/// neighbour advertisements.
fn change_mac(ns: &Netns, interface: &str, mac: [u8; 6]) {
    for key in ["ipv4/conf/IF/arp_notify", "ipv6/conf/IF/ndisc_notify"] {
        ns.sysctl(&key.replace("IF", interface), "1").unwrap();
    }
    ip(
        ns,
        &[&format!("link set {interface} address {}", text(mac))],
    );
}

/// Another MAC that nobody is told of, nor can anybody guess it from what the
/// router asks: it knows the host's.
fn change_mac_silently(router: &Netns, mac: [u8; 6], host: [u8; 6]) {
    router
        .nft(
            "table arp mute {
               chain out { type filter hook output priority 0; arp operation request drop; }
             }
             table ip6 mute {
               chain out { type filter hook output priority 0; icmpv6 type nd-neighbor-solicit drop; }
             }\n",
        )
        .unwrap();
    let mut lines = vec![format!("link set r1 address {}", text(mac))];
    for address in ["10.71.0.1", "10.71.0.100", "fd71::1", "fd71::100"] {
        let host = text(host);
        lines.push(format!(
            "neigh replace {address} lladdr {host} dev r1 nud permanent"
        ));
    }
    router.ip(&lines).unwrap();
}

/// Every backend of a side is sent to this MAC.
fn all_to(hops: &[Option<NextHop>], mac: [u8; 6]) -> bool {
    !hops.is_empty()
        && hops
            .iter()
            .all(|hop| hop.is_some_and(|hop| hop.destination == mac))
}

/// A second link between host and router, by which answers can leave.
fn second_link(lab: &Lab, router: &Netns) {
    let link = format!("link add h2 type veth peer name r2 netns {}", router.name());
    ip(
        &lab.host,
        &[
            &link,
            "addr add 10.76.0.1/24 dev h2",
            "addr add fd76::1/64 dev h2 nodad",
            "link set h2 up",
        ],
    );
    ip(
        router,
        &[
            "addr add 10.76.0.2/24 dev r2",
            "addr add fd76::2/64 dev r2 nodad",
            "link set r2 up",
        ],
    );
    lab.host.ethtool("h2", &["gro", "on"]).unwrap();
    router.ethtool("r2", &["gro", "on"]).unwrap();
    router.ethtool("r2", &["tx", "off"]).unwrap();
}

const FIRST: [&str; 2] = [
    "route replace 10.70.0.0/24 via 10.71.0.2 dev h0 advmss 1460",
    "route replace fd70::/64 via fd71::2 dev h0 advmss 1440",
];
const SECOND: [&str; 2] = [
    "route replace 10.70.0.0/24 via 10.76.0.2 dev h2 advmss 1460",
    "route replace fd70::/64 via fd76::2 dev h2 advmss 1440",
];

/// Packets that have left an interface.
fn sent(ns: &Netns, interface: &str) -> u64 {
    let table = ns.run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    let row = table.lines().find_map(|line| {
        let (name, counts) = line.split_once(':')?;
        (name.trim() == interface).then_some(counts)
    });
    // Eight columns of what came, then bytes and packets of what went.
    let field = row.unwrap().split_whitespace().nth(9).unwrap();
    field.parse().unwrap()
}

fn macs_change(lab: &Lab, router: &Netns, round: u8, watch: &mut Watch<'_>) {
    for side in Side::BOTH {
        let mac = [2, 0, 0, 0xbb, side.identity(), round];
        watch.followed(
            "backend's MAC",
            "",
            || change_mac(lab.server_ns(side), "b0", mac),
            |watch| all_to(&watch.hops_of(side), mac),
        );
    }
    let mac = [2, 0, 0, 0xcc, 0, round];
    watch.followed(
        "router's MAC",
        "",
        || change_mac(router, "r1", mac),
        |watch| {
            let hops = watch.hops_out_of("h0");
            !hops.is_empty() && hops.iter().all(|hop| hop.destination == mac)
        },
    );
}

fn neighbours_are_flushed(lab: &Lab, storm: &Storm, watch: &mut Watch<'_>) {
    let before = watch.route_generation();
    watch.followed(
        "neighbours flushed",
        "",
        || {
            ip(&lab.host, &["neigh flush dev h0", "neigh flush dev h1"]);
        },
        |watch| watch.route_generation() != before,
    );
    // The kernel is left to deliver until it has found them again.
    goes_on(storm);
    let found = eventually(Duration::from_secs(2), || {
        let hops = Side::BOTH.map(|side| watch.hops_of(side));
        hops.iter().flatten().all(Option::is_some) && !watch.hops_out_of("h0").is_empty()
    });
    assert!(found, "{:#?}", watch.hops_of(Side::Blue));
}

fn router_fails_over(lab: &Lab, storm: &Storm, watch: &mut Watch<'_>) {
    for (what, routes, to) in [
        ("route to another interface", SECOND, "h2"),
        ("route back", FIRST, "h0"),
    ] {
        let before = watch.route_generation();
        watch.followed(
            what,
            "",
            || ip(&lab.host, &routes),
            |watch| watch.route_generation() != before,
        );
        goes_on(storm);
        let out = sent(&lab.host, to);
        goes_on(storm);
        assert!(
            sent(&lab.host, to) > out + 100,
            "{what}: answers leave by {to}"
        );
    }
}

fn next_hops_change(hook: &'static str, what: &'static str) {
    let _turn = turn();
    let lab = routed(false);
    let router = lab.client_router().unwrap();
    second_link(&lab, router);
    let _servers = server::start_both(&lab).unwrap();
    let mut settings = Settings::hook(hook);
    settings.interfaces = vec!["h0", "h1", "h2"];
    let agent = start(&lab, settings, "50%");
    let storm = storm(&lab, 20);
    let mut watch = Watch::start(what, &lab, &agent);
    let settled = eventually(Duration::from_secs(5), || {
        Side::BOTH
            .iter()
            .all(|side| watch.hops_of(*side).iter().all(Option::is_some))
    });
    assert!(settled, "all backends are redirected to");
    for round in 0..rounds() {
        macs_change(&lab, router, round as u8 + 1, &mut watch);
        goes_on(&storm);
        neighbours_are_flushed(&lab, &storm, &mut watch);
        router_fails_over(&lab, &storm, &mut watch);
    }
    let report = storm.finish().unwrap();
    report.assert_untouched(what);
    assert_eq!(report.tcp_by_identity.len(), 2, "{report:?}");
    watch.finish();
}

#[test]
fn pinned_flows_follow_their_next_hops_under_tc() {
    need!();
    next_hops_change("tc", "next hops, tc");
}

#[test]
fn pinned_flows_follow_their_next_hops_under_xdp() {
    need!();
    next_hops_change("xdp", "next hops, xdp");
}

#[test]
fn a_router_that_another_replaces_without_a_word_is_missed() {
    need!();
    let _turn = turn();
    let lab = routed(false);
    let router = lab.client_router().unwrap();
    // Of the kernel's patience with a silent neighbour, half a minute, a few seconds.
    for family in ["ipv4", "ipv6"] {
        for (key, value) in [
            ("base_reachable_time_ms", "1000"),
            ("delay_first_probe_time", "1"),
            ("retrans_time_ms", "300"),
        ] {
            let key = format!("{family}/neigh/h0/{key}");
            lab.host.sysctl(&key, value).unwrap();
        }
    }
    let _servers = server::start_both(&lab).unwrap();
    let agent = start(&lab, Settings::hook("tc"), "50%");
    let storm = storm(&lab, 0);
    let watch = Watch::start("silent router", &lab, &agent);
    let mac = [2, 0, 0, 0xdd, 0, 1];
    let host = watch.hops_out_of("h0")[0].source;
    change_mac_silently(router, mac, host);
    let is_found = eventually(Duration::from_secs(25), || {
        let hops = watch.hops_out_of("h0");
        !hops.is_empty() && hops.iter().all(|hop| hop.destination == mac)
    });
    assert!(is_found, "{:#?}", watch.hops_out_of("h0"));
    goes_on(&storm);
    storm.finish().unwrap().assert_untouched("silent router");
}

#[test]
fn another_mtu_is_in_force_at_once_and_long_frames_go_to_the_kernel() {
    need!();
    let _turn = turn();
    let lab = routed(true);
    let far_end = lab.backend_net().unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = start(&lab, Settings::hook("tc"), "50%");
    let storm = storm(&lab, 20);
    let mut watch = Watch::start("MTU", &lab, &agent);
    let transfer = |what: &str| {
        for family in Family::BOTH {
            let report = bulk::transfer(&lab.client, lab.vip(family), 1 << 20);
            report.unwrap().assert_intact(what, 1 << 20);
        }
    };
    transfer("before");
    for round in 0..rounds() {
        for mtu in [1_400, 1_500] {
            let line = format!("link set h1 mtu {mtu}");
            let far_line = format!("link set ph mtu {mtu}");
            ip(far_end, &[&far_line]);
            let is_in_force = |watch: &mut Watch<'_>| {
                let hops = Side::BOTH.map(|side| watch.hops_of(side)).concat();
                hops.iter().all(|hop| hop.is_some_and(|hop| hop.mtu == mtu))
            };
            let what = format!("MTU of {mtu}");
            watch.followed(&what, "", || ip(&lab.host, &[&line]), is_in_force);
            if round == 0 {
                let before = watch.too_big();
                transfer(&what);
                let is_counted = watch.too_big() > before;
                assert_eq!(is_counted, mtu == 1_400, "{what}: what is too long");
            }
        }
    }
    storm.finish().unwrap().assert_untouched("MTU");
    watch.finish();
}

#[test]
fn a_link_that_has_its_old_mtu_again_is_found_by_packets_to_clients() {
    need!();
    let _turn = turn();
    let lab = Lab::new(Placement::RemoteSame).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = start(&lab, Settings::hook("tc"), "50%");
    let storm = storm(&lab, 20);
    let mut watch = Watch::start("MTU there and back", &lab, &agent);
    let index = index_of(&lab.host, "h0");
    for mtu in [1_400, 1_500, 1_400, 1_500] {
        let line = format!("link set h0 mtu {mtu}");
        watch.followed(
            "MTU of the clients' interface",
            "",
            || ip(&lab.host, &[&line]),
            |watch| {
                let hops = watch.hops_by_key();
                !hops.is_empty()
                    && hops
                        .iter()
                        .all(|hop| (hop.ifindex, hop.mtu) == (index, mtu))
            },
        );
        goes_on(&storm);
    }
    storm
        .finish()
        .unwrap()
        .assert_untouched("MTU there and back");
    watch.finish();
}

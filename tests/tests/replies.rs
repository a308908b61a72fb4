//! Bulk data both ways through every placement, and small links on the way.

use shifter_tests::{
    agent::Settings,
    command::run,
    mover::{Mover, Service},
    need,
    topology::{Family, Lab, Options, Placement, Side},
    traffic::{bulk, server},
};

const HUNDRED_MB: u64 = 100 << 20;

/// Blue over IPv4 and green over IPv6, `bytes` both ways.
fn both_sides_intact(options: Options, hook: &'static str, bytes: u64) {
    let lab = Lab::with(options).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let mut mover = Mover::start(&lab, Settings::hook(hook)).unwrap();
    let services = Family::BOTH.map(|family| Service::of(&lab, "tcp", family));
    mover.apply(&services).unwrap();
    for side in Side::BOTH {
        for (family, service) in Family::BOTH.into_iter().zip(&services) {
            let weight = match side {
                Side::Blue => "0%",
                Side::Green => "100%",
            };
            mover.shift(&service.name, weight).unwrap();
            // The full amount once a side and once a family is enough.
            let bytes = match (side, family) {
                (Side::Blue, Family::V4) | (Side::Green, Family::V6) => bytes,
                _ => bytes / 10,
            };
            let what = format!("{options:?}, {hook}, {side:?} over {family:?}");
            let report = bulk::transfer(&lab.client, lab.vip(family), bytes)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            report.assert_intact(&what, bytes);
            assert_eq!(report.identity, side.identity(), "{what}");
        }
        assert_learned(&lab, side);
    }
}

/// Asserts that the sender before a small link was told of it.
fn assert_learned(lab: &Lab, side: Side) {
    let options = lab.options;
    let towards_servers = options.mtu_back.min(options.mtu_backend) < 1500;
    let own_link = options.placement == Placement::HostPorts && options.mtu_front < 1500;
    let towards_clients = options.mtu_front.min(options.mtu_client) < 1500 && !own_link;
    for family in Family::BOTH {
        let (ns, to) = match (towards_servers, towards_clients) {
            (true, _) => (&lab.client, lab.vip(family).ip()),
            (_, true) => (lab.server_ns(side), lab.client_ip(family)),
            _ => return,
        };
        let output = run(ns.command("ip").args(["route", "get", &to.to_string()])).unwrap();
        let route = String::from_utf8_lossy(&output.stdout);
        assert!(
            route.contains("mtu 1400"),
            "{options:?}: the path to {to} is not known to be small: {route}"
        );
    }
}

fn every_placement(hook: &'static str) {
    for placement in Placement::ALL {
        both_sides_intact(Options::new(placement), hook, HUNDRED_MB);
    }
}

#[test]
fn a_hundred_megabytes_arrive_intact_both_ways_through_every_placement_under_tc() {
    need!();
    every_placement("tc");
}

#[test]
fn a_hundred_megabytes_arrive_intact_both_ways_through_every_placement_under_xdp() {
    need!();
    every_placement("xdp");
}

#[test]
fn segments_larger_than_any_link_pass_under_tc() {
    need!();
    for placement in Placement::ALL {
        let options = Options {
            wire_offloads: true,
            ..Options::new(placement)
        };
        both_sides_intact(options, "tc", HUNDRED_MB);
    }
}

/// Every way a link can be smaller than the ends believe.
fn small_links() -> Vec<Options> {
    let routed = |placement| Options {
        client_router: true,
        backend_router: placement == Placement::RemoteOther,
        ..Options::new(placement)
    };
    let mut all = Vec::new();
    for placement in [
        Placement::HostPorts,
        Placement::Container,
        Placement::Published,
        Placement::RemoteOther,
    ] {
        // Shifter's own interface, towards the client.
        all.push(Options {
            mtu_front: 1400,
            ..routed(placement)
        });
        // Behind a further router, towards the client.
        all.push(Options {
            mtu_client: 1400,
            ..routed(placement)
        });
    }
    // Shifter's own interface, towards the servers.
    all.push(Options {
        mtu_back: 1400,
        ..routed(Placement::RemoteOther)
    });
    // Behind a further router, towards the servers.
    all.push(Options {
        mtu_backend: 1400,
        ..routed(Placement::RemoteOther)
    });
    all
}

#[test]
fn a_small_link_is_discovered_wherever_it_is_under_tc() {
    need!();
    for options in small_links() {
        both_sides_intact(options, "tc", 4 << 20);
    }
}

#[test]
fn a_small_link_is_discovered_wherever_it_is_under_xdp() {
    need!();
    for options in small_links() {
        both_sides_intact(options, "xdp", 4 << 20);
    }
}

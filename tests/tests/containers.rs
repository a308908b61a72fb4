//! The rules that Docker 28 makes: a published port works, a container's own
//! address is refused or warned of.

use shifter_tests::{
    agent::Settings,
    mover::{Mover, Service, to_toml},
    need,
    topology::{Family, Lab, Placement, Side},
    traffic::{bulk, requests, server},
};

/// Docker's raw and filter rules for two containers of one bridge; the lab's
/// placement has the nat ones.
fn docker_rules(lab: &Lab) {
    for (table, family) in [("ip", Family::V4), ("ip6", Family::V6)] {
        let of = |side| lab.listen(side, family);
        let raw: String = Side::BOTH
            .map(|side| {
                let ip = of(side).ip();
                format!("{table} daddr {ip} iifname != \"cbr0\" counter drop\n")
            })
            .concat();
        let accept: String = Side::BOTH
            .map(|side| {
                let (ip, port) = (of(side).ip(), of(side).port());
                format!(
                    "{table} daddr {ip} iifname != \"cbr0\" oifname \"cbr0\" \
                     meta l4proto {{ tcp, udp }} th dport {port} counter accept\n"
                )
            })
            .concat();
        lab.host
            .nft(&format!(
                "table {table} raw {{ chain PREROUTING {{
                   type filter hook prerouting priority raw; policy accept;\n{raw} }}
                 }}
                 table {table} filter {{
                   chain DOCKER {{\n{accept}
                     iifname != \"cbr0\" oifname \"cbr0\" counter drop
                   }}
                   chain FORWARD {{
                     type filter hook forward priority filter; policy drop;
                     oifname \"cbr0\" ct state related,established counter accept
                     oifname \"cbr0\" counter jump DOCKER
                     iifname \"cbr0\" counter accept
                   }}
                 }}\n"
            ))
            .unwrap();
    }
}

fn published_ports_work(hook: &'static str) {
    let lab = Lab::new(Placement::Published).unwrap();
    docker_rules(&lab);
    let _servers = server::start_both(&lab).unwrap();
    let mut mover = Mover::start(&lab, Settings::hook(hook)).unwrap();
    let services = Service::all_four(&lab);
    mover.apply(&services).unwrap();
    for (side, weight) in [(Side::Blue, "0%"), (Side::Green, "100%")] {
        for service in &services {
            mover.shift(&service.name, weight).unwrap();
            let what = format!("{hook}, {} on {side:?}", service.name);
            let answered = lab.client.run(|| match service.protocol {
                "tcp" => requests::ask(service.vip, None),
                _ => requests::ask_udp(service.vip, None),
            });
            assert_eq!(answered.expect(&what), side.identity(), "{what}");
            if service.protocol == "tcp" {
                let report = bulk::transfer(&lab.client, service.vip, 8 << 20).expect(&what);
                report.assert_intact(&what, 8 << 20);
            }
        }
    }
}

#[test]
fn a_port_published_by_dockers_rules_works_under_tc() {
    need!();
    published_ports_work("tc");
}

#[test]
fn a_port_published_by_dockers_rules_works_under_xdp() {
    need!();
    published_ports_work("xdp");
}

#[test]
fn a_containers_own_address_behind_dockers_rules_is_refused_or_warned_of() {
    need!();
    let lab = Lab::new(Placement::Published).unwrap();
    docker_rules(&lab);
    let _servers = server::start_both(&lab).unwrap();
    let mut mover = Mover::start(&lab, Settings::hook("tc")).unwrap();
    let Some(agent) = mover.agent() else { return };
    for family in Family::BOTH {
        let mut service = Service::of(&lab, "tcp", family);
        service.green = vec![lab.listen(Side::Green, family)];
        let path = agent
            .services_file(&to_toml(std::slice::from_ref(&service)))
            .unwrap();
        let output = agent.cli(&["apply", "-f", path.to_str().unwrap()]).unwrap();
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        let own = service.green[0].ip().to_string();
        assert!(
            said.contains(&own) && said.to_lowercase().contains("publish"),
            "{family:?}: nothing says that {own} is behind a raw drop and what mends it: {said}"
        );
    }
}

//! The lab itself: servers answer over the routed path in every placement,
//! so that a scenario that fails is not the lab's doing.

use std::collections::BTreeMap;

use shifter_tests::{
    agent::{Agent, Settings},
    mover::Service,
    need,
    need::scaled,
    topology::{Family, Lab, Options, Placement, Side},
    traffic::{bulk, requests, server},
};

#[test]
fn servers_answer_over_the_routed_path_in_every_placement() {
    need!();
    for placement in Placement::ALL {
        let lab = Lab::new(placement).unwrap();
        let _servers = server::start_both(&lab).unwrap();
        for (side, family) in Side::BOTH
            .into_iter()
            .flat_map(|side| Family::BOTH.map(|family| (side, family)))
        {
            let addr = lab.backend(side, family);
            let what = format!("{placement:?} {side:?} at {addr}");
            let (tcp, udp) = lab
                .client
                .run(|| (requests::ask(addr, None), requests::ask_udp(addr, None)));
            assert_eq!(tcp.expect(&what), side.identity(), "{what}");
            assert_eq!(udp.expect(&what), side.identity(), "{what}");
            let report = bulk::transfer(&lab.client, addr, 1 << 20).expect(&what);
            report.assert_intact(&what, 1 << 20);
            let other = requests::client_address(addr, 7);
            let from_other = lab.client.run(|| requests::ask(addr, Some(other)));
            assert_eq!(from_other.expect(&what), side.identity(), "{what}");
        }
    }
}

/// New connections, one after the other, that failed, by their error. Merely routed
/// without a hook; with one, shifter must have kept the flow of each.
fn failed(
    hook: Option<&'static str>,
    one_cpu_a_flow: bool,
    connections: u32,
) -> BTreeMap<String, u32> {
    let options = Options {
        one_cpu_a_flow,
        ..Options::new(Placement::Container)
    };
    let lab = Lab::with(options).unwrap();
    let _servers = server::start_both(&lab).unwrap();
    let agent = hook.map(|hook| {
        let agent = Agent::start(&lab, Settings::hook(hook)).unwrap();
        let service = Service::of(&lab, "tcp", Family::V6).with_green("50%");
        agent.apply(&[service]).unwrap();
        agent
    });
    let vip = lab.vip(Family::V6);
    let to = match &agent {
        Some(_) => vip,
        None => lab.listen(Side::Blue, Family::V6),
    };
    let mut failed = BTreeMap::new();
    lab.client.run(|| {
        for i in 0..connections {
            // Its ports do not come round within the time that a server keeps them.
            let client = requests::client_address(vip, (i % 10_000 + 1) as u16);
            if let Err(error) = requests::ask(to, Some(client)) {
                *failed.entry(error.to_string()).or_default() += 1;
            }
        }
    });
    if let Some(agent) = agent {
        // It would have met segments of what it had lost, whoever reset it.
        let lost = agent.flows_without_entry("tcp6").unwrap();
        assert_eq!(
            lost, 0,
            "{hook:?}: flows without an entry; failed: {failed:?}"
        );
    }
    failed
}

#[test]
fn no_connection_fails_where_one_cpu_handles_each_flow() {
    need!();
    let connections = scaled(20_000, 200_000);
    for hook in [None, Some("tc"), Some("xdp")] {
        let what = hook.unwrap_or("routed");
        // What fails here the servers' kernel may have reset: docs/results.md, "New
        // connections that a server resets".
        let as_it_is = failed(hook, false, connections);
        println!("LAB {what}, as the kernel has it: of {connections} failed {as_it_is:?}");
        let steered = failed(hook, true, connections);
        println!("LAB {what}, one CPU a flow: of {connections} failed {steered:?}");
        assert!(steered.is_empty(), "{what}: {steered:?}");
    }
}
